"""Several syncs under way at once: those that wait together for a journal share its commits and flushes."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from maildir_async.disk.threads import Crew

__all__ = ["CallsSideBySide", "Syncs"]


class Syncs(Protocol):
    """Some syncs under way, each with its number, the first being 0.

    Attributes:
        ended: the numbers of those that have ended, in that order.
        failures: what went wrong with some of them.

    """

    ended: list[int]
    failures: dict[int, BaseException]

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until all have ended, or the time is up; with None until one more has. Return whether all have."""
        ...

    def leave_behind(self) -> None:
        """Some of them hang: they must hold up nobody else's. Somebody goes on waiting for them."""
        ...


#: Threads that make calls side by side, for one such group. On a journaled ext4, 4, 8, 16, 32 and 63 of them synced 64
#: files at the rate of 3.2, 4.5, 6.0, 6.6 and 5.6 thousand a second.
SIDE_BY_SIDE: Final = 32


class CallsSideBySide:
    """Has threads of *crew* make *calls*, side by side. See `Syncs`."""

    def __init__(self, crew: Crew, calls: Sequence[Callable[[], object]]) -> None:
        self._crew = crew
        self._count = len(calls)
        self._todo = deque(enumerate(calls))
        self._changed = threading.Condition()
        self._is_left_behind = False
        self._told = 0  # how many of `ended` a wait for one more has returned for
        self.ended: list[int] = []
        self.failures: dict[int, BaseException] = {}
        self._begin(min(self._count, SIDE_BY_SIDE))

    def _begin(self, threads: int) -> None:
        try:
            for _ in range(threads):
                self._crew.run(self._work)
        except RuntimeError:  # no thread to be had: fewer will do, or this one
            if not self._crew.threads:
                self._work()

    def _work(self) -> None:
        todo, ended = self._todo, self.ended
        while todo:
            try:
                number, call = todo.popleft()
            except IndexError:  # another thread took the last
                break
            try:
                call()
            except BaseException as exc:
                self.failures[number] = exc
            with self._changed:  # or who leaves this behind would not know whether to count it
                ended.append(number)
                if self._is_left_behind or len(ended) == self._count:
                    self._changed.notify_all()
                if self._is_left_behind:
                    self._crew.widen(-1)
                    return  # each that hung had one thread more

    def wait(self, timeout_s: float | None) -> bool:
        """See `Syncs.wait`."""
        with self._changed:
            if timeout_s is None:
                self._changed.wait_for(lambda: len(self.ended) > self._told or len(self.ended) == self._count)
                self._told = len(self.ended)
            else:
                self._changed.wait_for(lambda: len(self.ended) == self._count, timeout_s)
            return len(self.ended) == self._count

    def leave_behind(self) -> None:
        """See `Syncs.leave_behind`: threads that hang are replaced, and what has not begun has a thread each."""
        with self._changed:
            self._is_left_behind = True
            self._told = len(self.ended)
            self._crew.widen(self._count - len(self.ended))
            waiting = len(self._todo)
        self._begin(waiting)
