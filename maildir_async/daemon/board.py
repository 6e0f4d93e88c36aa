"""What the workers and the main process can see of each other: a little shared memory, older than any of them.

Each cell has one writer at a time, and is written in one go: eight bytes, aligned. Nothing is locked, since whoever is
killed holding a lock holds it for ever.
"""

import mmap
import time
from typing import Final

__all__ = ["BEAT_S", "HUNG_S", "YOUNG_S", "Board"]

_ABSENT: Final = -1
_NS: Final = 10**9

# For each worker: its connections; the generation of users and map that it works with; when its loop last answered,
# and when it was forked, in monotonic nanoseconds; whether the one before it died young.
_CONNECTIONS, _GENERATION, _BEAT, _BORN, _FAILING, _CELLS = range(6)

# Behind those: the generation there is to be, whether all is to end, and whether all was ready once.
_WANTED, _ENDING, _READY, _COMMON = range(4)

#: Of a worker: it has died young, and there is none now.
_GONE: Final = 2

#: Seconds between two beats of a worker's loop.
BEAT_S: Final = 1.0

#: Seconds without a beat after which a worker's loop hangs. Arbitrary: a loop that waits for nothing comes round in
#: milliseconds, on a machine that is overloaded in seconds.
HUNG_S: Final = 10.0

#: A worker that has lived for so many seconds has not died young.
YOUNG_S: Final = 5.0


class Board:
    """A column for each of *workers*, made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._workers = range(workers)
        self._cells = memoryview(mmap.mmap(-1, (_CELLS * workers + _COMMON) * 8)).cast("q")
        self._common = _CELLS * workers
        for slot in self._workers:
            self.leave(slot)

    def enter(self, slot: int) -> None:
        """Worker *slot* has begun to accept connections."""
        self._cells[_CELLS * slot + _GENERATION] = self.wanted
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
        return self._cells[self._common + _WANTED]

    def want_next(self) -> None:
        """Main process: there is another generation."""
        self._cells[self._common + _WANTED] += 1

    def loaded(self, slot: int, generation: int) -> None:
        """Worker *slot* works with *generation*, or could not read it and has told so."""
        self._cells[_CELLS * slot + _GENERATION] = generation

    @property
    def is_ending(self) -> bool:
        """Whether the daemon ends, and not only a worker whose place another one takes."""
        return self._cells[self._common + _ENDING] != 0

    def end(self) -> None:
        """Main process: it does. A worker says so, too, that finds the main process gone."""
        self._cells[self._common + _ENDING] = 1

    def all_loaded(self) -> bool:
        """Whether every worker there is has read what it is to have."""
        present = filter(self.is_present, self._workers)
        return all(self._cells[_CELLS * slot + _GENERATION] >= self.wanted for slot in present)

    # How they are.

    def born(self, slot: int, *, is_failing: bool) -> None:
        """Main process: worker *slot* has been forked; *is_failing* if the one before it died young."""
        self._cells[_CELLS * slot + _BORN] = time.monotonic_ns()
        self._cells[_CELLS * slot + _BEAT] = 0
        self._cells[_CELLS * slot + _FAILING] = is_failing

    def failing(self, slot: int) -> None:
        """Main process: worker *slot* has died young, and another one comes only after a while."""
        self._cells[_CELLS * slot + _FAILING] = _GONE

    def beat(self, slot: int) -> None:
        """Worker *slot*: the loop comes round."""
        self._cells[_CELLS * slot + _BEAT] = time.monotonic_ns()

    def last_beat(self, slot: int) -> int:
        """Return when the loop of worker *slot* last came round, in monotonic nanoseconds; 0: it has not begun."""
        return self._cells[_CELLS * slot + _BEAT]

    def ready(self) -> None:
        """Main process: all workers have begun."""
        self._cells[self._common + _READY] = 1

    @property
    def is_ready(self) -> bool:
        """Whether new connections are served: it has begun, does not end, and a worker is there that answers."""
        is_up = self._cells[self._common + _READY] != 0 and not self.is_ending
        return is_up and any(self.is_present(slot) and self._is_fresh(slot) for slot in self._workers)

    def ailing(self) -> list[str]:
        """Return what is wrong with workers, a line for each that does not answer or dies again and again."""
        told: list[str] = []
        now = time.monotonic_ns()
        for slot in self._workers:
            is_young = now - self._cells[_CELLS * slot + _BORN] < YOUNG_S * _NS
            failing = self._cells[_CELLS * slot + _FAILING]
            if failing == _GONE or (failing and is_young):
                told.append(f"worker {slot} dies again and again")
            elif not self._is_fresh(slot):
                told.append(f"worker {slot} does not answer")
        return told

    def _is_fresh(self, slot: int) -> bool:
        """Whether its loop has come round of late; one that has just been forked has time to begin."""
        since = max(self._cells[_CELLS * slot + _BEAT], self._cells[_CELLS * slot + _BORN])
        return time.monotonic_ns() - since < HUNG_S * _NS
