"""Several syncs under way at once: those that wait together for a journal share its commits and flushes."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from maildir_async.disk.threads import Crew

__all__ = ["Outcome", "Syncs", "call_side_by_side"]

#: Which, and what went wrong, if anything.
Outcome = tuple[int, BaseException | None]

#: Threads that sync at once, over the process, where the kernel does not by itself.
THREADS: Final = 64


class Syncs(Protocol):
    """Some syncs under way."""

    def done(self, timeout_s: float | None) -> Sequence[Outcome]:
        """Wait until all are done, or the time is up; return those that are and have not been returned before.

        With None, wait until at least one more is. Empty once all have been returned.
        """
        ...


def call_side_by_side(calls: Sequence[Callable[[], object]]) -> Syncs:
    """Have threads make *calls*, side by side."""
    return _Calls(calls)


class _Calls:
    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._left = len(calls)  # to be returned
        self._running = len(calls)
        self._todo = deque(enumerate(calls))
        self._done: deque[Outcome] = deque()
        self._changed = threading.Condition()
        try:
            for _ in calls:
                _crew.run(self._work)
        except RuntimeError:  # no thread to be had: fewer will do, or this one
            if not _crew.threads:
                while self._todo:
                    self._work()

    def _work(self) -> None:
        try:
            number, call = self._todo.popleft()
        except IndexError:
            return
        failure: BaseException | None = None
        try:
            call()
        except BaseException as exc:
            failure = exc
        with self._changed:
            self._done.append((number, failure))
            self._running -= 1
            self._changed.notify_all()

    def done(self, timeout_s: float | None) -> Sequence[Outcome]:
        with self._changed:
            if timeout_s is None:
                self._changed.wait_for(lambda: self._done or not self._left)
            else:
                self._changed.wait_for(lambda: not self._running, timeout_s)
            found = list(self._done)
            self._done.clear()
            self._left -= len(found)
            return found


_crew: Final = Crew(THREADS, "maildir-sync")
