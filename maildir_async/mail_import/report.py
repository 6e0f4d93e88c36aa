"""What has become of an import: counts, and what was odd, with its place."""

import threading
from dataclasses import dataclass, field
from typing import Final

from maildir_async.format.html import fields_of, table

__all__ = ["Drained", "ImportProblem", "ImportReport", "Problems"]

#: Problems that are kept; of more, the number.
KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class ImportProblem:
    """Something odd in what was imported from.

    Attributes:
        path: the file or directory, ``-`` for standard input.
        offset: bytes before it in that file, after decompression; None where it is about the whole.
        reason: what is odd, or why it could not be read.
        is_loss: whether mail was not imported because of it.
        is_refused: whether that was the maildir's doing: another time it may go well.

    """

    path: str
    offset: int | None
    reason: str
    is_loss: bool = False
    is_refused: bool = False

    def __str__(self) -> str:
        place = self.path if self.offset is None else f"{self.path}, byte {self.offset}"
        return f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import came to. Two of them can be added.

    Attributes:
        imported: messages stored by it; with *dry_run*, those that would be.
        already_there: messages that an earlier import has stored.
        failed: messages, files and directories that were not imported, or not wholly.
        refused: how many of these the maildir refused. An import that is run again tries them again.
        size: bytes of the messages imported.
        problems: the first hundred of what could not be read, or was odd.
        problem_count: how many there were in all.
        dry_run: whether nothing was stored.

    """

    imported: int = 0
    already_there: int = 0
    failed: int = 0
    refused: int = 0
    size: int = 0
    problems: tuple[ImportProblem, ...] = field(default_factory=tuple)
    problem_count: int = 0
    dry_run: bool = False

    def __add__(self, other: "ImportReport") -> "ImportReport":
        if not isinstance(other, ImportReport):
            return NotImplemented
        return ImportReport(
            self.imported + other.imported,
            self.already_there + other.already_there,
            self.failed + other.failed,
            self.refused + other.refused,
            self.size + other.size,
            (self.problems + other.problems)[:KEPT],
            self.problem_count + other.problem_count,
            self.dry_run or other.dry_run,
        )

    def __str__(self) -> str:
        done = "to be imported" if self.dry_run else "imported"
        parts = [f"{self.imported} {done} ({self.size} bytes)", f"{self.already_there} already there"]
        parts.append(f"{self.failed} failed")
        if self.problem_count:
            parts.append(f"{self.problem_count} odd")
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        """Return a table, for notebooks."""
        rows: list[tuple[str, object]] = [row for row in fields_of(self) if row[0] != "problems"]
        return table("ImportReport", rows + [("", str(problem)) for problem in self.problems])


#: What has been collected: the first problems, how many there were, how many were losses, and were refused.
Drained = tuple[list[ImportProblem], int, int, int]


class Problems:
    """Collects what is odd. Any thread may say it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.first: list[ImportProblem] = []
        self.count = 0
        self.failed = 0
        self.refused = 0

    def odd(self, path: str, offset: int | None, reason: str) -> None:
        """Name what cost no mail."""
        self._add(ImportProblem(path, offset, reason))

    def lost(self, path: str, offset: int | None, reason: str) -> None:
        """Name what was not imported."""
        self._add(ImportProblem(path, offset, reason, is_loss=True))

    def refused_by(self, exc: Exception, path: str, offset: int | None) -> None:
        """Name what the maildir did not take."""
        self._add(ImportProblem(path, offset, str(exc), is_loss=True, is_refused=True))

    def drain(self) -> "Drained":
        """Return what has been collected, which can be pickled, and begin anew."""
        with self._lock:
            drained = self.first, self.count, self.failed, self.refused
            self.first, self.count, self.failed, self.refused = [], 0, 0, 0
        return drained

    def take(self, drained: "Drained") -> None:
        """Add what others have collected."""
        first, count, failed, refused = drained
        with self._lock:
            self.first += first[: KEPT - len(self.first)]
            self.count += count
            self.failed += failed
            self.refused += refused

    def _add(self, problem: ImportProblem) -> None:
        with self._lock:
            self.count += 1
            self.failed += problem.is_loss
            self.refused += problem.is_refused
            if len(self.first) < KEPT:
                self.first.append(problem)
