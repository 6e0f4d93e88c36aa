"""What has been read of a source and not been stored yet: read on in time, and shared by all that store."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.mail_import.messages import Found
from maildir_async.mail_import.session import Step

__all__ = ["Ahead"]

#: Messages ready to be stored, from which on no more are read, and bytes of them.
READY_MESSAGES: Final = 512
READY_BYTES: Final = 1 << 22


class Ahead:
    """Messages that are ready to be stored. For one loop.

    Args:
        read: begins to read some.
        until: awaits what that gives, and raises what it raises.
        arrived: called with what has come.

    Attributes:
        coming: what is being read, or None.

    """

    def __init__(
        self,
        read: "Callable[[], UncancellableFuture[Step]]",
        until: "Callable[[UncancellableFuture[Step]], Awaitable[Step]]",
        arrived: Callable[[Step], object],
    ) -> None:
        self._read = read
        self._until = until
        self._has_arrived = arrived
        self._ready = deque[tuple[Found, bytes]]()
        self._size = 0
        self._change = asyncio.Event()  # set for a moment when those who wait are to look again
        self._is_waited_for = False  # whether one waits for `coming`
        self._is_long = False  # whether a long message has been taken, and is being stored
        self._is_last = False
        self.coming: UncancellableFuture[Step] | None = None

    async def take(self) -> tuple[Found, bytes] | None:
        """Return a message and its ident, or None after the last. After a long one, call `go_on`."""
        while True:
            if self.coming is None:
                self._read_on()
            elif self._ready and not self._is_waited_for and _has_come(self.coming):
                await self._arrival(self.coming)  # or reading would rest until all that is ready has been taken
                continue
            if self._ready:
                taken = self._ready.popleft()
                self._size -= len(taken[0].first)
                self._is_long = taken[0].is_long
                return taken
            if self._is_long or self._is_waited_for:
                await self._change.wait()  # all go on in one turn of the loop, and share what is synced
            elif self.coming is None:
                return None
            else:
                await self._arrival(self.coming)

    def go_on(self) -> None:
        """Have more read: a long message has been stored, or has failed."""
        self._is_long = False
        self._wake()

    async def _arrival(self, coming: "UncancellableFuture[Step]") -> None:
        self._is_waited_for = True
        try:
            step = await self._until(coming)
            self.coming = None
            self._is_last = step.is_last
            self._has_arrived(step)
            self._ready.extend(step.wanted)
            self._size += sum([len(message.first) for message, _ in step.wanted])
        finally:
            self._is_waited_for = False
            self._wake()

    def _wake(self) -> None:
        self._change.set()
        self._change.clear()

    def _read_on(self) -> None:
        """Have more read, unless there is enough. Nothing is read beside a long message."""
        is_enough = len(self._ready) >= READY_MESSAGES or self._size >= READY_BYTES
        has_long = self._is_long or (bool(self._ready) and self._ready[-1][0].is_long)
        if not is_enough and not self._is_last and not has_long:
            self.coming = self._read()


def _has_come(coming: "UncancellableFuture[Step]") -> bool:
    """Return whether it has, and is no failure: that is raised when what was read before it has been taken."""
    return coming.done() and not coming.cancelled() and coming.exception() is None
