"""A message of any kind as a sequence of chunks."""

import asyncio
import contextlib
import contextvars
import errno
import importlib
import inspect
import io
import os
import stat
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from email.message import Message
from typing import Any, Final, Protocol, TypeVar

import anyio
from anyio.abc import ByteReceiveStream

from maildir_async.commit.waiting import run_in_thread
from maildir_async.disk.threads import Crew
from maildir_async.receive.messages import BytesLike, check_message, is_nothing
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.user_code import goes_on

__all__ = ["END", "Source", "cost_of", "source_of"]

importlib.import_module("email.generator")  # Message.as_bytes() would import it late

T = TypeVar("T")

#: Bytes asked for in one read of a file or stream.
READ_SIZE: Final = 128 * 1024

#: Bytes of a message given as bytes that are passed on at once; nothing is copied.
SLICE_SIZE: Final = 512 * 1024

#: What a `Source` returns when there is no more.
END: Final[Any] = object()


def cost_of(message: Any) -> int:
    """Return the bytes that *message* may hold in memory: two chunks, if they come as they are asked for."""
    if isinstance(message, (bytes, bytearray)):
        return len(message)
    if isinstance(message, memoryview):
        return message.nbytes
    return _serialised_size(message) if isinstance(message, Message) else 2 * CHUNK_SIZE


def _serialised_size(message: "Message[Any, Any]") -> int:
    """Return about how many bytes *message* is when it is serialised, without a look at its text, which takes long.

    Exact for the payload of nearly all mail, which is ASCII; line ends, folding and boundaries come to a few percent.
    """
    size = 0
    try:
        for part in message.walk():
            size += 100 + sum(len(name) + len(str(value)) + 4 for name, value in part.raw_items())
            # Not get_payload(), which goes through the whole text to see whether it can be given as it is.
            payload = getattr(part, "_payload", None)
            if isinstance(payload, str):
                size += len(payload) if payload.isascii() else 2 * len(payload)
    except BaseException as exc:  # a subclass may make of these questions what it likes: it is an estimate
        if goes_on(exc):
            raise
    return size or 2 * CHUNK_SIZE


class Source(Protocol):
    """A message as a sequence of chunks.

    Attributes:
        waits: whether `read` returns awaitables.
        size: bytes of the whole, where that is known before the first chunk is passed on.
        last: whether the chunk just read is known to be the last.

    """

    waits: bool
    size: int | None
    last: bool

    def read(self) -> Any:
        """Return the next chunk, or an awaitable of it; `END` at the end. An empty chunk is not the end.

        What the caller's code gives for a chunk is not looked at here: whoever takes it does that.
        """
        ...

    def close(self) -> Awaitable[object] | None:
        """End what reading began, if it has not come to its end."""
        ...


def source_of(message: Any, crew: Crew) -> Source:
    """Return *message* as a source; TypeError if it is of no kind that `as_producer` takes.

    What blocks is done by threads of *crew*. May raise whatever the ``__iter__`` or ``__aiter__`` of *message* does.
    """
    check_message(message)
    if isinstance(message, BytesLike):
        return _Bytes(message)
    if isinstance(message, Message):
        return _Email(message, crew)
    if callable(getattr(message, "read", None)):
        return _Reader(message) if inspect.iscoroutinefunction(message.read) else _File(message, crew)
    if isinstance(message, ByteReceiveStream):
        return _Stream(message)
    return _AsyncIterator(message) if isinstance(message, AsyncIterable) else _Iterator(message)


class _Base:
    waits: bool = True

    def __init__(self) -> None:
        self.size: int | None = None
        self.last = False

    def close(self) -> Awaitable[object] | None:
        return None


class _Bytes(_Base):
    waits = False

    def __init__(self, message: BytesLike) -> None:
        super().__init__()
        view = memoryview(message)
        self._view = view.cast("B") if view.c_contiguous else memoryview(bytes(view))
        self._whole = message if isinstance(message, bytes) and len(message) <= SLICE_SIZE else None
        self.size: int | None = len(self._view)
        self._at = 0

    def read(self) -> BytesLike:
        if self._whole is not None:
            self.last = True
            return self._whole
        chunk = self._view[self._at : self._at + SLICE_SIZE]
        self._at += len(chunk)
        self.last = self._at >= len(self._view)
        return chunk


def _in_thread(crew: Crew, call: Callable[..., T], *args: object) -> Awaitable[T]:
    """Have a thread of *crew* call code of the caller, in the context of the running task."""
    return run_in_thread(asyncio.get_running_loop(), crew, contextvars.copy_context().run, call, *args)


class _Email(_Base):
    """An email message, serialised in a worker thread: as it is, without a From line or mangling."""

    def __init__(self, message: "Message[Any, Any]", crew: Crew) -> None:
        super().__init__()
        self._message = message
        self._crew = crew
        self._bytes: _Bytes | None = None

    async def read(self) -> BytesLike:
        if self._bytes is None:
            self._bytes = _Bytes(await _in_thread(self._crew, self._message.as_bytes))
            self.size = self._bytes.size
        chunk = self._bytes.read()
        self.last = self._bytes.last
        return chunk


class _File(_Base):
    """A file whose ``read`` blocks, or may: a plain method that returns an awaitable is found out at the first call."""

    def __init__(self, file: Any, crew: Crew) -> None:
        super().__init__()
        self._file = file
        self._crew = crew
        self._begun = False

    async def read(self) -> Any:
        if not self._begun:
            self._begun = True
            if _is_plain(self._file):
                self.size = await _in_thread(self._crew, _bytes_left, self._file)
        chunk = await _in_thread(self._crew, self._file.read, READ_SIZE)
        if inspect.isawaitable(chunk):
            chunk = await chunk
        return _unless_empty(chunk)


def _is_plain(file: object) -> bool:
    """Whether *file* is one of the system's, as it is: what wraps one may have its ``fileno``, and other bytes."""
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file  # type: ignore[attr-defined] # pyright: ignore
    return type(raw) is io.FileIO


def _bytes_left(file: Any) -> int | None:
    """Return how much of a regular file is to be read, from where it stands; None for all else."""
    with contextlib.suppress(OSError, ValueError):  # a hint: what is wrong with the file is told by its read
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            return max(0, status.st_size - int(file.tell()))
    return None


def _unless_empty(chunk: Any) -> Any:
    """Return what ``read`` has returned, as a `Source` does."""
    if chunk is None:
        raise BlockingIOError(errno.EAGAIN, "the file is non-blocking and has nothing to read")
    return END if is_nothing(chunk) else chunk


class _Reader(_Base):
    """Anything with an async ``read(n)``: asyncio.StreamReader, an aiofiles handle, anyio's AsyncFile."""

    def __init__(self, reader: Any) -> None:
        super().__init__()
        self._reader = reader

    async def read(self) -> Any:
        return _unless_empty(await self._reader.read(READ_SIZE))


class _Stream(_Base):
    """An anyio byte stream."""

    def __init__(self, stream: ByteReceiveStream) -> None:
        super().__init__()
        self._stream = stream

    async def read(self) -> Any:
        try:
            return await self._stream.receive(READ_SIZE)
        except anyio.EndOfStream:
            return END


class _AsyncIterator(_Base):
    def __init__(self, iterable: AsyncIterable[BytesLike]) -> None:
        super().__init__()
        self._iterator: AsyncIterator[BytesLike] = aiter(iterable)

    async def read(self) -> Any:
        # Not anext(iterator, default): CPython 3.11 dies of that if __anext__ raises when it is called.
        try:
            return await self._iterator.__anext__()
        except StopAsyncIteration:
            return END

    def close(self) -> Awaitable[object] | None:
        return self._iterator.aclose() if isinstance(self._iterator, AsyncGenerator) else None


class _Iterator(_Base):
    waits = False

    def __init__(self, iterable: Iterable[BytesLike]) -> None:
        super().__init__()
        self._iterator: Iterator[BytesLike] = iter(iterable)

    def read(self) -> Any:
        return next(self._iterator, END)

    def close(self) -> None:
        if isinstance(self._iterator, Generator):
            self._iterator.close()
