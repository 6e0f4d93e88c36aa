"""The plots, drawn from results.json, as SVG.

    python -m benchmarks.plots RESULTS.json DIRECTORY

Each is drawn if its case was run. The same peer has the same colour everywhere.
"""

import importlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.build import UnavailableError
from benchmarks.peers import PEERS

__all__ = ["draw"]

COLOURS: Final = {
    "ours": "#0b6e4f",
    "ours-syncfs": "#3aa17e",
    "ours-helper": "#8fd0b5",
    "floor": "#222222",
    "floor-syncfs": "#777777",
    "floor-no-writeback": "#555555",
    "raw": "#aaaaaa",
    "one-hop": "#c9a227",
    "stdlib-threads": "#c8553d",
    "stdlib-loop": "#e8998d",
    "aiofiles": "#3d5a98",
    "anyio": "#86a0d6",
    "twisted": "#7b4b94",
    "aiosmtpd": "#b07cc6",
    "mdeliver": "#8a6d3b",
    "dovecot": "#d98e04",
    "go-maildir": "#17a2b8",
    "nothing": "#cccccc",
}

Line = dict[str, Any]
Measurement = dict[str, Any]


def draw(results: dict[str, Any], directory: Path) -> list[Path]:
    """Draw what there is in *results*; return the files. Raise `UnavailableError` without matplotlib."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("svg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as exc:
        raise UnavailableError(f"matplotlib is not installed ({exc})") from exc
    pyplot.rcParams.update(
        {
            "svg.fonttype": "none",  # text as text: smaller, and found by a search
            "svg.hashsalt": "maildir_async",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
        }
    )
    cases = {case["name"]: case for case in results["cases"] if not case["skipped"]}
    places = results["conditions"]["file_systems"]
    where = next((places[name]["what"] for name in ("jext4", "the directory") if name in places), "").partition(" (")[0]
    drawn = []
    for name, plot in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        if plot(axes, cases):
            axes.set_title(f"{axes.get_title(loc='left')}\n{where}", loc="left", fontsize=10)
            path = directory / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            drawn.append(path)
        pyplot.close(figure)
    return drawn


def throughput(axes: Any, cases: dict[str, Any]) -> bool:
    """Throughput against concurrency."""
    found = list(_lines(cases.get("concurrency")))
    if not found:
        return False
    for peer in dict.fromkeys(line["peer"] for line in found):
        points = [
            (line["workload"]["in_flight"], [_rate(each) for each in _rounds(line)])
            for line in found
            if line["peer"] == peer
        ]
        _curve(axes, peer, points)
    axes.set(xscale="log", yscale="log", xlabel="in flight", ylabel="messages/s, durable as in the legend")
    _count_axis(axes.xaxis, sorted({line["workload"]["in_flight"] for line in found}))
    _plain_numbers(axes.yaxis)
    axes.set_title("Throughput against concurrency: messages of 4 KiB", loc="left")
    axes.legend(frameon=False, fontsize=9)
    return True


def latency(axes: Any, cases: dict[str, Any]) -> bool:
    """Latency percentiles of all peers."""
    axes.set_title("Latency with 64 in flight: messages of 4 KiB", loc="left")
    return _percentiles(axes, cases.get("full-64"), "latency_ms", ("p50", "p90", "p99", "max"))


def lag(axes: Any, cases: dict[str, Any]) -> bool:
    """How late the loop is."""
    axes.set_title("Loop lag with 64 in flight: how late the loop wakes a coroutine", loc="left")
    return _percentiles(axes, cases.get("lag"), "lag_ms", ("p50", "p99", "max"))


def mailbox_size(axes: Any, cases: dict[str, Any]) -> bool:
    """Cost of a delivery against what is in the maildir already."""
    curves = {
        in_flight: [
            (line["workload"]["existing"], [1e6 / _rate(each) for each in _rounds(line)])
            for line in _lines(cases.get("mailbox-size"))
            if line["workload"]["in_flight"] == in_flight
        ]
        for in_flight in (1, 64)
    }
    for in_flight, points in curves.items():
        if points:
            _curve(axes, "ours", points, f"{in_flight} in flight", "--" if in_flight == 1 else "-")
    if not any(curves.values()):
        return False
    axes.set(xlabel="messages in the maildir before", ylabel="µs per message")
    axes.set_xscale("symlog", linthresh=1000)
    _count_axis(axes.xaxis, sorted({x for line in axes.lines for x in line.get_xdata()}))
    axes.set_ylim(0, 1.2 * max(value for points in curves.values() for _, values in points for value in values))
    axes.set_title("Cost against mailbox size: messages of 4 KiB, file + directory synced", loc="left")
    axes.legend(frameon=False)
    return True


def memory(axes: Any, cases: dict[str, Any]) -> bool:
    """Memory while streaming."""
    bars = [
        (case["title"].partition(",")[0], line["peer"], [each["memory"] / 2**20 for each in _rounds(line)])
        for name, case in cases.items()
        if name.startswith("stream")
        for line in _lines(case)
        if line["workload"]["fresh"] and all(each["memory"] is not None for each in _rounds(line))
    ]
    if not bars:
        return False
    for number, (_, peer, values) in enumerate(bars):
        axes.barh(number, statistics.median(values), color=COLOURS[peer])
        axes.annotate(f" {statistics.median(values):.1f}", (statistics.median(values), number), va="center")
    axes.set_yticks(range(len(bars)), [f"{PEERS[peer].title}:\n{title}" for title, peer, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.figure.set_figheight(1.4 + 0.5 * len(bars))
    axes.set(xlabel="MiB by which memory grew")
    axes.set_title("Memory while streaming", loc="left")
    return True


PLOTS: Final[dict[str, Callable[[Any, dict[str, Any]], bool]]] = {
    "throughput": throughput,
    "latency": latency,
    "lag": lag,
    "mailbox-size": mailbox_size,
    "memory": memory,
}


def _curve(
    axes: Any, peer: str, points: list[tuple[int, list[float]]], label: str | None = None, style: str = "-"
) -> None:
    xs = [x for x, _ in points]
    axes.plot(
        xs,
        [statistics.median(ys) for _, ys in points],
        style,
        marker="o",
        color=COLOURS[peer],
        label=label or _legend(peer),
    )
    axes.fill_between(xs, [min(ys) for _, ys in points], [max(ys) for _, ys in points], color=COLOURS[peer], alpha=0.12)


def _percentiles(axes: Any, case: dict[str, Any] | None, key: str, shares: tuple[str, ...]) -> bool:
    found = [line for line in _lines(case) if any(each[key] for each in _rounds(line))]
    found = [line for line in found if key == "lag_ms" or PEERS[line["peer"]].stores]
    if not found:
        return False
    markers = {"p50": "o", "p90": "D", "p99": "s", "max": "|"}
    for number, line in enumerate(found):
        values = [statistics.median(each[key][share] for each in _rounds(line)) for share in shares]
        colour = COLOURS[line["peer"]]
        axes.plot([values[0], values[-1]], [number, number], color=colour, alpha=0.4, linewidth=2)
        for share, value in zip(shares, values, strict=True):
            axes.plot(value, number, markers[share], color=colour, markersize=9 if share == "max" else 6)
    for share in shares:
        axes.plot([], [], markers[share], color="#444444", label=share)
    axes.set_yticks(range(len(found)), [_legend(line["peer"]) for line in found], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="ms")
    _plain_numbers(axes.xaxis)
    axes.figure.set_figheight(1.6 + 0.32 * len(found))
    axes.figure.legend(frameon=False, ncols=len(shares), loc="outside lower center")
    return True


def _legend(peer: str) -> str:
    syncs = PEERS[peer].syncs or "file + directory"
    return f"{PEERS[peer].title} ({syncs})"


def _count_axis(axis: Any, ticks: list[int]) -> None:
    axis.set_ticks(ticks, [f"{int(tick):,}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10 ... instead of powers."""
    ticker: Any = importlib.import_module("matplotlib.ticker")
    low, high = axis.get_view_interval()
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _lines(case: dict[str, Any] | None) -> Iterator[Line]:
    if case is not None:
        for line in case["lines"]:
            if _rounds(line):
                yield line


def _rounds(line: Line) -> list[Measurement]:
    return [each for each in line["rounds"] if each is not None]


def _rate(found: Measurement) -> float:
    return float(found["messages"] / found["seconds"])


if __name__ == "__main__":
    for drawn in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(drawn)
