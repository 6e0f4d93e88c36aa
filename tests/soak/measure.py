"""What is measured of the program, in bounded memory: latencies and lag by the minute, and what a process holds."""

import asyncio
import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

__all__ = ["SHARES", "Histogram", "Journal", "crews_of", "held", "trim", "types"]

#: Percentiles that are told, by name.
SHARES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

#: Each bucket of a histogram is wider than the one before by so much; the first ends at a microsecond.
_STEP: Final = math.log(1.03)
_PAGE: Final = resource.getpagesize()


class Histogram:
    """Durations in buckets of 3 %, so that an hour costs no more memory than a minute."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.worst = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[max(0, int(math.log(max(seconds, 1e-6) * 1e6) / _STEP) + 1)] += 1
        self.worst = max(self.worst, seconds)

    def told(self) -> dict[str, float]:
        """Return count, percentiles and worst, in milliseconds."""
        total, seen, shares = self.counts.total(), 0, dict(SHARES)
        found: dict[str, float] = {"count": total}
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            for name in [name for name, share in shares.items() if seen >= share * total]:
                found[name] = round(min(math.exp(bucket * _STEP) / 1e3, self.worst * 1e3), 3)
                del shares[name]
        return {**found, "worst": round(self.worst * 1e3, 3)}


class Journal:
    """Lines of JSON in a file, so that nothing of them is kept in the process that is measured."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 it is open as long as the process is
        self._began = time.monotonic()
        self._histograms: dict[str, Histogram] = {}
        self._outcomes: Counter[str] = Counter()

    def now(self) -> float:
        """Return seconds since the beginning."""
        return time.monotonic() - self._began

    def write(self, kind: str, **told: Any) -> None:
        """Write a line."""
        self._file.write(json.dumps({"kind": kind, "t": round(self.now(), 3), **told}) + "\n")

    def add(self, kind: str, seconds: float) -> None:
        """Count a duration of that kind."""
        self._histograms.setdefault(kind, Histogram()).add(seconds)

    def count(self, what: str) -> None:
        """Count something that happened."""
        self._outcomes[what] += 1

    def minute(self) -> None:
        """Write what was counted since the last time, with the buckets, so that minutes can be added up."""
        for name, histogram in self._histograms.items():
            self.write("latency", name=name, buckets=histogram.counts, **histogram.told())
        self.write("outcomes", counts=self._outcomes)
        self._histograms, self._outcomes = {}, Counter()


def held() -> dict[str, int]:
    """Return what this process holds: bytes resident, descriptors, threads, tasks."""
    return {
        "memory": int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE,
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # the listing's own
        "threads": len(os.listdir("/proc/self/task")),
        "tasks": len(asyncio.all_tasks()),
    }


def crews_of(threads: Iterable[threading.Thread]) -> dict[str, int]:
    """Return how many of *threads* are of which crew of the library."""
    return dict(Counter(name for each in threads if (name := each.name.rpartition("-")[0]).startswith("maildir-")))


def trim() -> None:
    """Have the C library give back what it keeps for later: a backlog on a busy machine leaves much, and is no leak."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def types() -> Counter[str]:
    """Return how many objects of each type the garbage collector knows, after it has collected."""
    gc.collect()
    return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
