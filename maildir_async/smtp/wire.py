"""What a client sends, read in large chunks by what asyncio's streams offer to everybody."""

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from maildir_async.smtp.dot_stuffing import TERMINATOR, begun
from maildir_async.smtp.user_code import ClientGoneError

__all__ = ["READ_LIMIT", "LineTooLongError", "SessionReader", "each_chunk", "each_octet"]

#: Bytes past which a reader hands over what it has; it pauses the socket at twice as many. Arbitrary: a turn of the
#: loop for every 64 KiB costs little, and 1,000 clients in the middle of messages hold 400 MiB at the very most.
READ_LIMIT: Final = 2**16

#: Bytes at the beginning of a message that are handed over, and followed by a turn for others, where it takes a call
#: for every few bytes to read them: 1 or 2 ms.
SMALL_STEPS: Final = 4096

Take = Callable[[bytes], Awaitable[None]]


class LineTooLongError(Exception):
    """A line was longer than a reader has room for. It has been read to its end, and dropped."""


class SessionReader(asyncio.StreamReader):
    """A stream reader whose lines are its session's: how the next command line comes to be is the session's business.

    Args:
        next_command: what ``readuntil()`` gives aiosmtpd's loop to await. It reads with `line`.
        loop: the session's.

    """

    def __init__(self, next_command: Callable[[], Coroutine[Any, Any, bytes]], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=READ_LIMIT, loop=loop)
        self._next_command = next_command

    def line(self) -> Coroutine[Any, Any, bytes]:
        """Return the next line, or what `asyncio.StreamReader.readuntil` raises."""
        return super().readuntil(b"\n")

    async def drop_line(self, octets: int) -> bytes:
        """Read the line that `line` had no room for to its end; return its first *octets*, which `line` has told."""
        beginning = await self.readexactly(octets)
        while True:
            try:
                await self.line()
            except asyncio.LimitOverrunError as exc:
                await self.readexactly(exc.consumed)
            else:
                return beginning

    def readuntil(  # pyright: ignore[reportIncompatibleMethodOverride]  # it is only awaited
        self, separator: Any = b"\n"
    ) -> Coroutine[Any, Any, bytes]:
        """Return a command line, or, with another separator than LF, what asyncio's reader would."""
        return self._next_command() if separator == b"\n" else super().readuntil(separator)

    async def readline(self) -> bytes:
        """Return an answer to a challenge of AUTH. CancelledError if the client is gone: half of one is none."""
        try:
            return await self.line()
        except asyncio.LimitOverrunError as exc:
            await self.drop_line(exc.consumed)
            raise LineTooLongError from None
        except asyncio.IncompleteReadError:
            raise ClientGoneError from None


class _OneATurn:
    """Has one large chunk taken in each turn of a loop: however many large messages come at once, it is not a long one.

    The others come one after another, in the turns that follow. What their clients send meanwhile stays in the sockets,
    past what a reader keeps.
    """

    __slots__ = ("__weakref__", "_is_taken", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def come(self) -> None:
        """Return when a large chunk may be taken."""
        if not self._is_taken:
            self._is_taken = True
            self._loop.call_soon(self._next)
            return
        waiting = self._loop.create_future()
        self._waiting.append(waiting)
        await waiting

    def _next(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():  # cancelled
                waiting.set_result(None)
                self._loop.call_soon(self._next)
                return
        self._is_taken = False


#: By the id of a loop. Those that are in use are held by their loop, or by who waits; so no loop is kept by this.
_turns: Final[weakref.WeakValueDictionary[int, _OneATurn]] = weakref.WeakValueDictionary()


def _turn() -> _OneATurn:
    """Return what all sessions of the running loop take turns by."""
    loop = asyncio.get_running_loop()
    turn = _turns.get(id(loop))
    if turn is None:
        turn = _turns[id(loop)] = _OneATurn(loop)
    return turn


async def each_chunk(reader: asyncio.StreamReader, take: Take) -> None:
    """Read a message with its doubled dots up to its terminator, and give it to *take*, chunk by chunk.

    The terminator is read, its own CRLF is given. IncompleteReadError if the client has gone before.
    """
    # The CRLF of the DATA command may begin the terminator, so it is taken for seen. What has been read cannot be put
    # back; so while the last bytes may be the beginning of a terminator, no more is read than must follow in any case.
    head = bytearray()
    held, unreal = TERMINATOR[:2], 2
    while held:
        seen = held + await reader.readexactly(len(TERMINATOR) - len(held))
        if seen == TERMINATOR:
            await take(bytes(head) + TERMINATOR[unreal:2])
            return
        held = TERMINATOR[: begun(seen)]
        head += seen[unreal : len(seen) - len(held)]
        unreal = 0
        if len(head) >= SMALL_STEPS:
            await take(bytes(head))
            head.clear()
            await asyncio.sleep(0)
    while True:
        try:
            chunk = await reader.readuntil(TERMINATOR)
        except asyncio.LimitOverrunError as exc:
            # So many bytes have no terminator in them, and do not end within one.
            await _turn().come()
            chunk = await reader.readexactly(exc.consumed)
            await take(bytes(head) + chunk if head else chunk)
            head.clear()
        else:
            await take(bytes(head) + chunk[:-3])
            return


async def each_octet(reader: asyncio.StreamReader, count: int, take: Take | None = None) -> None:
    """Read *count* bytes and give them to *take*, as they come. IncompleteReadError if the client has gone before."""
    while count > 0:
        if count > READ_LIMIT:
            await _turn().come()
        chunk = await reader.read(min(count, 4 * READ_LIMIT))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", count)
        count -= len(chunk)
        if take is not None:
            await take(chunk)
