"""The plot of a run, as SVG, by hand: latency and lag by the minute, and what the process held."""

import math
from collections.abc import Callable
from typing import Any, Final

__all__ = ["draw"]

WIDTH, HEIGHT, LEFT, GAP = 800, 150, 70, 40
COLOURS: Final = {"p50": "#0b6e4f", "p99": "#d98e04", "p99.9": "#c8553d", "worst": "#aaaaaa"}


def draw(told: dict[str, Any]) -> str:
    """Return the plot."""
    seconds = max(told["seconds"], *(line["t"] for line in told["held"])) if told["held"] else told["seconds"]
    parts: list[str] = []
    top = 30.0
    for name, title in (("whole", "append(bytes), ms"), ("stream", "streams, ms"), ("lag", "the loop's lag, ms")):
        lines = told["by_minute_ms"].get(name, [])
        curves = {share: [(line["t"], line[share]) for line in lines if share in line] for share in COLOURS}
        parts += _panel(top, title, curves, seconds, logarithmic=True)
        top += HEIGHT + GAP
    for name, unit in (("memory", 2**20), ("descriptors", 1), ("threads", 1)):
        every = max(1, len(told["held"]) // 300)
        points = [(line["t"], line[name] / unit) for line in told["held"][::every]]
        title = "memory, MiB" if name == "memory" else name
        parts += _panel(top, title, {"p50": points}, seconds, logarithmic=False)
        top += HEIGHT + GAP
    legend = "".join(
        f'<text x="{LEFT + 300 + 90 * number}" y="14" fill="{colour}">{share}</text>'
        for number, (share, colour) in enumerate(COLOURS.items())
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" font-family="sans-serif" '
    return f'{head}font-size="12"><rect width="100%" height="100%" fill="white"/>{legend}{"".join(parts)}</svg>\n'


def _panel(
    top: float, title: str, curves: dict[str, list[tuple[float, float]]], seconds: float, *, logarithmic: bool
) -> list[str]:
    values = [value for points in curves.values() for _, value in points]
    if not values:
        return []
    scale: Callable[[float], float] = (lambda value: math.log10(max(value, 0.01))) if logarithmic else float
    low = math.floor(scale(min(values))) if logarithmic else 0.0
    high = math.ceil(scale(max(values)) + 1e-9) if logarithmic else 1.15 * max(values) or 1.0
    high = max(high, low + 1) if logarithmic else high

    def y(value: float) -> float:
        return top + HEIGHT * (1 - (scale(value) - low) / (high - low))

    def x(when: float) -> float:
        return LEFT + (WIDTH - LEFT - 10) * when / seconds

    ticks = [10.0**power for power in range(int(low), int(high) + 1)] if logarithmic else [0, high / 2.3, high / 1.15]
    drawn = [f'<text x="{LEFT}" y="{top - 6:.0f}" font-weight="bold">{title}</text>']
    for tick in ticks:
        drawn.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - 10}" stroke="#e6e6e6"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:,.4g}</text>')
    for part in range(5):
        when = seconds * part / 4
        drawn.append(
            f'<text x="{x(when):.0f}" y="{top + HEIGHT + 14:.0f}" text-anchor="middle">{when / 60:.3g} min</text>'
        )
    for name, points in reversed(curves.items()):
        if points:
            path = "L".join(f"{x(when):.1f} {y(value):.1f}" for when, value in points)
            drawn.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>')
    return drawn
