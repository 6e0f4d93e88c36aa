"""The rule by which a run is judged, and the figures that are told of it."""

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final

from .measure import Histogram

__all__ = ["ALLOWED", "ALLOWED_OBJECTS", "ALLOWED_SHORT", "FEWEST", "judge", "read", "summary"]

#: How much the median of the last quarter may be above that of the second. Those `working` are the threads that there
#: were at least in the calm before the rest, while mail flowed: on a busy machine 8 to 21, one after the other.
ALLOWED: Final = {"memory": 8 * 2**20, "descriptors": 2, "threads": 4, "working": 16, "tasks": 2}

#: In a run shorter than ten minutes, where memory and asyncio's own pool of threads still grow.
ALLOWED_SHORT: Final = ALLOWED | {"memory": 24 * 2**20, "threads": 8}

#: The same for objects of one type.
ALLOWED_OBJECTS: Final = 250

#: With fewer samples there is nothing to judge by, and that is a fault of the run.
FEWEST: Final = 4


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _growth(values: list[float]) -> tuple[float, float]:
    """Return the medians of the second and of the last quarter."""
    quarter = len(values) // 4
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


def judge(lines: list[dict[str, Any]], allowed: dict[str, int]) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """Return what is wrong, and the medians of each resource: of the second quarter and of the last."""
    faults = [line["what"] for line in lines if line["kind"] == "fault"]
    if not any(line["kind"] == "held at the end" for line in lines):
        faults.append("the program did not come to its end")
    rests = [line for line in lines if line["kind"] == "rest"]
    if len(rests) < FEWEST:
        return [*faults, f"the program came to rest {len(rests)} times: too few to judge by"], {}
    medians = {name: _growth([line[name] for line in rests]) for name in ALLOWED}
    for name, (before, after) in medians.items():
        if after - before > allowed[name]:
            faults.append(f"{name} grew from {before:,.0f} to {after:,.0f}; {allowed[name]:,} more are allowed")
    for name in sorted({name for line in rests for name in line["counts"]}):
        before, after = _growth([line["counts"].get(name, 0) for line in rests])
        if after - before > ALLOWED_OBJECTS:
            faults.append(f"objects of {name} grew from {before:,.0f} to {after:,.0f}")
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
        "rests": [{**line, "counts": sum(line["counts"].values())} for line in lines if line["kind"] == "rest"],
        "troubles": [line for line in lines if line["kind"] in ("trouble", "over")],
        "left": [line for line in lines if line["kind"] == "left"],
    }
