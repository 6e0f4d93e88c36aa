"""What a case is: lines to measure, and what is asked of them."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.workload import MIB, Workload

__all__ = ["Case", "Entry", "Form", "Measure", "Target"]

Measure = Literal["rate", "cost", "lag_p99", "worst", "memory", "per_second", "mb_s", "lag_max"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a case: a peer and its workload.

    Attributes:
        peer: its name.
        workload: what it does.
        variant: what distinguishes it from other lines with the same peer.
        python: another interpreter, or None.

    """

    peer: str
    workload: Workload
    variant: str = ""
    python: str | None = None

    @property
    def label(self) -> str:
        """What the line is called."""
        return f"{self.peer} {self.variant}".strip()


@dataclass(frozen=True, slots=True)
class Target:
    """Something asked of this library.

    Attributes:
        text: the row of the table of targets.
        entry: the line that must meet it.
        bound: the number to reach, or to stay below.
        measure: ``rate``: messages a second over those of *against*, at least the bound; ``mb_s``: likewise bytes;
            ``cost``: time per message over that of *against*, at most; ``lag_p99``, ``lag_max`` and ``worst``:
            milliseconds, at most; ``memory``: MiB of growth, at most; ``per_second``: messages a second, at least.
        against: the line to compare with.

    """

    text: str
    entry: str
    bound: float
    measure: Measure = "rate"
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """Measurements that belong together: in each round, all of them run once, in an order drawn by lot.

    Attributes:
        name: short, for the command line.
        title: what is measured.
        filesystem: where: a name from `benchmarks.filesystems`.
        entries: the lines.
        baseline: the line that others are compared with.
        targets: what is asked.
        quick: whether it is part of the quick form.

    """

    name: str
    title: str
    filesystem: str
    entries: tuple[Entry, ...]
    baseline: str
    targets: tuple[Target, ...] = ()
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """How thorough to be.

    Attributes:
        full: all cases and peers, or those of the quick form.
        seconds: of the timed part of a measurement, at most.
        rounds: how often each case is run.
        messages: if given, at most so many a measurement, and all other sizes in proportion: a trial of the rig.
        pythons: other interpreters: their versions, and where they are.

    """

    full: bool
    seconds: float
    rounds: int
    messages: int | None = None
    pythons: dict[str, str] = field(default_factory=dict)

    def rounds_of(self, case: Case) -> int:
        """Return how often to run *case*: one of which nothing is asked need not be as sure of itself."""
        return self.rounds if case.targets or self.rounds < 3 else max(2, self.rounds - 2)

    def workload(self, **options: Any) -> Workload:
        """Return a workload, in this form's size."""
        asked = Workload(**{"messages": 12_000, "seconds": self.seconds, **options})
        if self.messages is None:
            return asked
        few = self.messages
        return replace(
            asked,
            messages=min(asked.messages, few),
            warmup=min(asked.warmup, few),
            maildirs=min(asked.maildirs, few),
            existing=min(asked.existing, few),
            size=min(asked.size, 3 * MIB) if asked.stream else asked.size,
        )
