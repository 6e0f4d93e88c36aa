"""What became of each FILE, told in the order of FILEs whatever the order they were settled in."""

import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from maildir_async.command.progress import NO_PROGRESS, Progress

__all__ = ["Outcome", "Outcomes"]

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")


class Outcome(NamedTuple):
    """What became of a FILE.

    Attributes:
        code: the exit code for it.
        complaints: lines for standard error.
        path: where it is, if it was delivered.
        size: bytes stored.

    """

    code: int
    complaints: Sequence[str] = ()
    path: str | None = None
    size: int = 0


class Outcomes:
    """Tells outcomes by lines on standard output and standard error, each when all before it have been told."""

    def __init__(self, progress: Progress = NO_PROGRESS) -> None:
        self.worst = os.EX_OK
        self._progress = progress
        self._waiting: dict[int, Outcome] = {}
        self._next = 0
        self._delivered = 0
        self._failed = 0
        self._size = 0

    def add(self, number: int, outcome: Outcome) -> None:
        """Take the outcome of the FILE *number*, counted from 0."""
        self.worst = max(self.worst, outcome.code)
        if outcome.path is None:
            self._failed += 1
        else:
            self._delivered += 1
            self._size += outcome.size
        self._waiting[number] = outcome
        while (told := self._waiting.pop(self._next, None)) is not None:
            self._tell(told)
            self._next += 1
        self._progress.show(self.settled)

    @property
    def settled(self) -> int:
        """How many have an outcome."""
        return self._delivered + self._failed

    def tell_rest(self) -> None:
        """Tell also those before which one is missing that a signal has aborted."""
        for number in sorted(self._waiting):
            self._tell(self._waiting.pop(number))

    def summary(self, total: int, seconds: float) -> str:
        """Return the line that sums up what became of *total* FILEs."""
        parts = [f"{self._delivered} delivered", f"{self._failed} failed"]
        if rest := total - self.settled:
            parts.append(f"{rest} not delivered")
        return f"{', '.join(parts)}; {_size(self._size)} in {seconds:.2f} s"

    def _tell(self, outcome: Outcome) -> None:
        for line in outcome.complaints:
            self._progress.write(sys.stderr, "maildir-async: " + " ".join(line.splitlines()))
        if outcome.path is not None:
            self._progress.write(sys.stdout, outcome.path)


def _size(size: int) -> str:
    if size < 2**10:
        return f"{size} bytes"
    power = min((size.bit_length() - 1) // 10, len(_UNITS))
    return f"{size / 2 ** (10 * power):.1f} {_UNITS[power - 1]}"
