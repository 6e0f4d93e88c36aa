"""What the workers and the main process can see of each other: a little shared memory, older than any of them.

Each cell has one writer at a time, and is written in one go: eight bytes, aligned. Nothing is locked, since whoever is
killed holding a lock holds it for ever.
"""

import mmap
from typing import Final

__all__ = ["Board"]

_ABSENT: Final = -1
_CELLS: Final = 2  # for each worker: its connections, and the generation of users and map that it works with
_COMMON: Final = 2  # behind those: the generation there is to be, and whether all is to end


class Board:
    """A column for each of *workers*, made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._workers = range(workers)
        self._cells = memoryview(mmap.mmap(-1, (_CELLS * workers + _COMMON) * 8)).cast("q")
        for slot in self._workers:
            self.leave(slot)

    def enter(self, slot: int) -> None:
        """Worker *slot* has begun to accept connections."""
        self._cells[_CELLS * slot + 1] = self.wanted
        self._cells[_CELLS * slot] = 0

    def leave(self, slot: int) -> None:
        """It accepts none any more, or is not there."""
        self._cells[_CELLS * slot] = _ABSENT

    def is_present(self, slot: int) -> bool:
        """Whether worker *slot* accepts connections."""
        return self._cells[_CELLS * slot] != _ABSENT

    def tell(self, slot: int, connections: int) -> None:
        """Worker *slot* has so many connections."""
        self._cells[_CELLS * slot] = connections

    @property
    def connections(self) -> int:
        """How many connections there are in all workers."""
        return sum(max(0, self._cells[_CELLS * slot]) for slot in self._workers)

    def another_has_fewer(self, slot: int, connections: int) -> bool:
        """Whether another worker than *slot*, with its *connections*, should rather take the next one."""
        return any(0 <= self._cells[_CELLS * other] < connections for other in self._workers if other != slot)

    @property
    def wanted(self) -> int:
        """The generation of users and map that all workers are to have."""
        return self._cells[_CELLS * len(self._workers)]

    def want_next(self) -> None:
        """Main process: there is another generation."""
        self._cells[_CELLS * len(self._workers)] += 1

    def loaded(self, slot: int, generation: int) -> None:
        """Worker *slot* works with *generation*, or could not read it and has told so."""
        self._cells[_CELLS * slot + 1] = generation

    @property
    def is_ending(self) -> bool:
        """Whether the daemon ends, and not only a worker whose place another one takes."""
        return self._cells[_CELLS * len(self._workers) + 1] != 0

    def end(self) -> None:
        """Main process: it does. A worker says so, too, that finds the main process gone."""
        self._cells[_CELLS * len(self._workers) + 1] = 1

    def all_loaded(self) -> bool:
        """Whether every worker there is has read what it is to have."""
        present = filter(self.is_present, self._workers)
        return all(self._cells[_CELLS * slot + 1] >= self.wanted for slot in present)
