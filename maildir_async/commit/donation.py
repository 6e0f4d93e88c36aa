"""A loop that is never idle lends its worker threads some time.

CPython hands its interpreter lock over when the holder blocks, or when another thread has waited for 5 ms in which
nobody else got it. A loop that is always busy, in turns shorter than that, drops the lock in every turn and has it
back before a worker has woken: deliveries then go on at some 40 a second, and single ones take seconds. So while a
loop has something with worker threads, it looks every `TICK_S` whether it has been running all the time; if it has, it
stands still for up to `SHARE` of that time. An idle or half-busy loop never does.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

__all__ = ["Donation"]

#: Seconds between two looks.
TICK_S: Final = 0.005

#: The part of the time since the last look that is given at most: 2 ms for 5. A saturated loop that gives none has
#: 40 messages a second delivered (4 KiB, 64 in flight), the slowest in 2 s; with this over a thousand, and 0.1 s.
SHARE: Final = 0.4

#: Seconds given at most, to a loop with turns so long that the interpreter takes the lock from it by itself.
MOST_S: Final = 0.008

#: The part of the time since the last look that the loop's thread has run, from which on it counts as saturated.
SATURATED: Final = 0.7


class Donation:
    """Watches the loops that have something with worker threads.

    Args:
        needed: whether worker threads have anything to do.
        clock: seconds that have passed.
        cpu: seconds that the calling thread has run.

    """

    def __init__(
        self,
        needed: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._needed = needed
        self._clock = clock
        self._cpu = cpu
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child."""
        self._watched: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._enough = threading.Event()
        self._is_standing = False  # a loop, for now

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look after *loop*, which is the running one, for as long as it is needed."""
        if loop not in self._watched:
            self._watched.add(loop)
            loop.call_later(TICK_S, self._look, loop, self._clock(), self._cpu())

    def enough(self) -> None:
        """Let a loop that stands still go on: there are results for it. From any thread."""
        if self._is_standing:
            self._enough.set()

    def _look(self, loop: asyncio.AbstractEventLoop, clock: float, cpu: float) -> None:
        if not self._needed():
            self._watched.discard(loop)
            return
        passed = self._clock() - clock
        if self._cpu() - cpu > SATURATED * passed:
            self._is_standing = True
            self._enough.clear()
            self._enough.wait(min(SHARE * passed, MOST_S))
            self._is_standing = False
        loop.call_later(TICK_S, self._look, loop, self._clock(), self._cpu())
