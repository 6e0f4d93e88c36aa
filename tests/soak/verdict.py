"""The rule by which a run is judged, and the figures that are told of it."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .measure import Histogram

__all__ = ["ALLOWED", "ALLOWED_OBJECTS", "judge", "read", "summary"]

#: How much the median of the last quarter may be above that of the second.
ALLOWED: Final = {"memory": 8 * 2**20, "descriptors": 6, "threads": 12, "tasks": 25}

#: The same for objects of one type. What is under way when they are counted differs by some hundreds.
ALLOWED_OBJECTS: Final = 600

#: A quarter with fewer samples says nothing, and that is a fault of the run.
FEWEST: Final = 2


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _growth(samples: Iterable[tuple[float, float]], seconds: float) -> tuple[float, float] | None:
    """Return the medians of the second and of the last quarter; None if there are too few samples for them."""
    quarters: dict[int, list[float]] = defaultdict(list)
    for when, value in samples:
        quarters[min(3, int(4 * when / seconds))].append(value)
    if min(len(quarters[1]), len(quarters[3])) < FEWEST:
        return None
    return statistics.median(quarters[1]), statistics.median(quarters[3])


def judge(lines: list[dict[str, Any]], seconds: float) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """Return what is wrong, and the medians of each resource: of the second quarter and of the last."""
    faults = [line["what"] for line in lines if line["kind"] == "fault"]
    if not any(line["kind"] == "held at the end" for line in lines):
        faults.append("the program did not come to its end")
    medians = {}
    held = [line for line in lines if line["kind"] == "held" and line["calm"]]
    for name, allowed in ALLOWED.items():
        found = _growth([(line["t"], line[name]) for line in held], seconds)
        if found is None:
            faults.append(f"there are too few samples of {name} to judge")
            continue
        medians[name] = found
        if found[1] - found[0] > allowed:
            faults.append(f"{name} grew from {found[0]:,.0f} to {found[1]:,.0f}; {allowed:,} more are allowed")
    counted = [line for line in lines if line["kind"] == "types" and line["calm"]]
    for name in sorted({name for line in counted for name in line["counts"]}):
        found = _growth([(line["t"], line["counts"].get(name, 0)) for line in counted], seconds)
        if found is None:
            faults.append("objects were counted too rarely to judge")
            break
        if found[1] - found[0] > ALLOWED_OBJECTS:
            faults.append(f"objects of {name} grew from {found[0]:,.0f} to {found[1]:,.0f}")
    return faults, medians


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return latencies by kind, over all and by the minute, and how often what happened."""
    whole: dict[str, Histogram] = defaultdict(Histogram)
    minutes: dict[str, list[dict[str, float]]] = defaultdict(list)
    outcomes: Counter[str] = Counter()
    for line in lines:
        if line["kind"] == "latency":
            whole[line["name"]].counts.update({int(bucket): count for bucket, count in line["buckets"].items()})
            whole[line["name"]].worst = max(whole[line["name"]].worst, line["worst"] / 1e3)
            minutes[line["name"]].append(
                {key: value for key, value in line.items() if key not in ("kind", "name", "buckets")}
            )
        elif line["kind"] == "outcomes":
            outcomes.update(line["counts"])
    return {
        "latency_ms": {name: histogram.told() for name, histogram in sorted(whole.items())},
        "by_minute_ms": minutes,
        "outcomes": outcomes,
        "held": [line for line in lines if line["kind"] in ("held", "held at the end")],
        "troubles": [line for line in lines if line["kind"] in ("trouble", "over")],
        "left": [line for line in lines if line["kind"] == "left"],
    }
