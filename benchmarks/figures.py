"""From measurements to figures: medians and ranges over the rounds of a run, and whether targets are met."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.case import Measure, Target
from benchmarks.run import CaseResult
from benchmarks.workload import MIB, Measurement

__all__ = ["Figure", "Verdict", "figure", "ratio", "verdict"]


@dataclass(frozen=True, slots=True)
class Figure:
    """The median over the rounds, and the range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Figure":
        """Return that of *values*, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str = ".2f") -> str:
        """Return it as text: median (low to high)."""
        if self.low == self.high:
            return f"{self.median:{form}}"
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a target; *seen* is None where nothing could be measured."""

    target: Target
    seen: Figure | None
    met: bool | None
    why: str = ""


VALUES: Final[dict[Measure, Callable[[Measurement], float]]] = {
    "rate": lambda found: found.rate,
    "per_second": lambda found: found.rate,
    "mb_s": lambda found: found.mb_s,
    "cost": lambda found: found.rate,
    "lag_p99": lambda found: found.lag_ms["p99"],
    "lag_max": lambda found: found.lag_ms["max"],
    "worst": lambda found: found.latency_ms["max"],
    "memory": lambda found: (found.memory or 0) / MIB,
}

#: Where more is better.
AT_LEAST: Final = ("rate", "per_second", "mb_s")


def figure(result: CaseResult, label: str, value: Callable[[Measurement], float | None]) -> Figure | None:
    """Return the figure of a line: *value* of each of its measurements that has one."""
    found = [value(each) for each in result.lines[label].rounds if each is not None]
    there = [each for each in found if each is not None]
    return Figure.of(there) if there else None


def ratio(
    result: CaseResult, label: str, against: str, value: Callable[[Measurement], float], *, inverse: bool = False
) -> Figure | None:
    """Return the ratio of *value* of two lines, taken within each round, in which they ran close together."""
    if against not in result.lines:
        return None
    pairs = zip(result.lines[label].rounds, result.lines[against].rounds, strict=False)
    values = [(value(ours), value(theirs)) for ours, theirs in pairs if ours is not None and theirs is not None]
    ratios = [theirs / ours if inverse else ours / theirs for ours, theirs in values if ours and theirs]
    return Figure.of(ratios) if ratios else None


def verdict(result: CaseResult, target: Target) -> Verdict:
    """Return whether *target* was met. Ratios by the median round; that none may be over a time, by the worst."""
    if result.skipped is not None:
        return Verdict(target, None, None, result.skipped)
    for label in (target.entry, target.against):
        if label is not None and (label not in result.lines or not result.lines[label].rounds):
            line = result.lines.get(label)
            return Verdict(target, None, None, f"{label}: {(line and line.skipped) or 'not run'}")
    value = VALUES[target.measure]
    if target.against is not None:
        seen = ratio(result, target.entry, target.against, value, inverse=target.measure == "cost")
    else:
        seen = figure(result, target.entry, value)
    if seen is None:
        return Verdict(target, None, None, "failed")
    if target.measure in AT_LEAST:
        return Verdict(target, seen, seen.median >= target.bound)
    return Verdict(target, seen, (seen.high if target.measure in ("worst", "lag_max") else seen.median) <= target.bound)
