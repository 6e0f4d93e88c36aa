"""Several syncs under way at once: those that wait together for a journal share its commits and flushes."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

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


class CallsSideBySide:
    """Has threads of *crew* make *calls*, side by side. See `Syncs`."""

    def __init__(self, crew: Crew, calls: Sequence[Callable[[], object]]) -> None:
        self._crew = crew
        self._count = len(calls)
        self._todo = deque(enumerate(calls))
        self._changed = threading.Condition()
        self._told = 0  # how many of `ended` a wait for one more has returned for
        self._extra = 0  # threads that the crew may have for those of these that hang
        self.ended: list[int] = []
        self.failures: dict[int, BaseException] = {}
        try:
            for _ in calls:
                crew.run(self._work)
        except RuntimeError:  # no thread to be had: fewer will do, or this one
            if not crew.threads:
                while self._todo:
                    self._work()

    def _work(self) -> None:
        try:
            number, call = self._todo.popleft()
        except IndexError:
            return
        try:
            call()
        except BaseException as exc:
            self.failures[number] = exc
        with self._changed:
            self.ended.append(number)
            if self._extra:
                self._extra -= 1
                self._crew.widen(-1)
            self._changed.notify_all()

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
        """See `Syncs.leave_behind`: threads that hang are replaced."""
        with self._changed:
            self._extra = self._count - len(self.ended)
            self._crew.widen(self._extra)
