"""A message of any kind as a sequence of chunks."""

import asyncio
import contextlib
import errno
import inspect
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Generator, Iterable, Iterator
from email.message import Message
from typing import Any, Final, Protocol, TypeGuard

import anyio
from anyio.abc import ByteReceiveStream

from maildir_async.commit.waiting import run_in_thread
from maildir_async.disk.threads import Crew

__all__ = ["BytesLike", "Source", "check_chunk", "check_message", "source_of"]

BytesLike = bytes | bytearray | memoryview

#: Bytes asked for in one read of a file or stream.
READ_SIZE: Final = 128 * 1024

#: Bytes of a message given as bytes that are passed on at once; nothing is copied.
SLICE_SIZE: Final = 512 * 1024

#: Reads callers' files, which may block for as long as they like (a pipe, a terminal).
_readers: Final = Crew(64, "maildir-read")


def check_message(message: object) -> None:
    """Raise TypeError, naming the type, unless `as_producer` takes *message*. Touches nothing."""
    if isinstance(message, (bytes, bytearray, memoryview, Message)):
        return
    if isinstance(message, str | io.TextIOBase | os.PathLike) or not (
        callable(getattr(message, "read", None)) or isinstance(message, (ByteReceiveStream, AsyncIterable, Iterable))
    ):
        raise TypeError(
            "message must be bytes, an email.message.Message, a binary file, a byte stream or an iterable of bytes, "
            f"not {type(message).__name__}"
        )


def check_chunk(chunk: object) -> TypeGuard[BytesLike]:
    """Return True for a bytes-like *chunk*; raise TypeError, naming the type, for anything else."""
    if isinstance(chunk, (bytes, bytearray, memoryview)):
        return True
    raise TypeError(f"a chunk of a message must be bytes, not {type(chunk).__name__}")


class Source(Protocol):
    """A message as a sequence of chunks.

    Attributes:
        size: bytes of the whole, where that is known before the first chunk is passed on.
        last: whether the chunk just read is known to be the last.

    """

    size: int | None
    last: bool

    def read(self) -> BytesLike | None | Awaitable[BytesLike | None]:
        """Return the next chunk, or an awaitable of it; None at the end. An empty chunk is not the end."""
        ...

    def close(self) -> Awaitable[object] | None:
        """End what reading began, if it has not come to its end."""
        ...


def source_of(message: Any) -> Source:
    """Return *message* as a source; TypeError if it is of no kind that `as_producer` takes."""
    check_message(message)
    if isinstance(message, BytesLike):
        return _Bytes(message)
    if isinstance(message, Message):
        return _Email(message)
    if callable(getattr(message, "read", None)):
        return _Reader(message) if inspect.iscoroutinefunction(message.read) else _File(message)
    if isinstance(message, ByteReceiveStream):
        return _Stream(message)
    return _AsyncIterator(message) if isinstance(message, AsyncIterable) else _Iterator(message)


class _Base:
    def __init__(self) -> None:
        self.size: int | None = None
        self.last = False

    def close(self) -> Awaitable[object] | None:
        return None


class _Bytes(_Base):
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


class _Email(_Base):
    """An email message, serialised in a worker thread: as it is, without a From line or mangling."""

    def __init__(self, message: "Message[Any, Any]") -> None:
        super().__init__()
        self.size: int | None = None
        self._message = message
        self._bytes: _Bytes | None = None

    def read(self) -> BytesLike | None | Awaitable[BytesLike]:
        if self._bytes is None:
            return self._serialise()
        chunk = self._bytes.read()
        self.last = self._bytes.last
        return chunk

    async def _serialise(self) -> BytesLike:
        whole = await run_in_thread(asyncio.get_running_loop(), _readers, self._message.as_bytes)
        self._bytes = _Bytes(whole)
        self.size = len(whole)
        chunk = self._bytes.read()
        self.last = self._bytes.last
        return chunk


class _File(_Base):
    """A file whose ``read`` blocks, or may: a plain method that returns an awaitable is found out at the first call."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._begun = False

    async def read(self) -> BytesLike | None:
        loop = asyncio.get_running_loop()
        if not self._begun:
            self._begun = True
            self.size = await run_in_thread(loop, _readers, _bytes_left, self._file)
        chunk = await run_in_thread(loop, _readers, self._file.read, READ_SIZE)
        if inspect.isawaitable(chunk):
            chunk = await chunk
        return _unless_empty(chunk)


def _bytes_left(file: Any) -> int | None:
    """Return how much of a regular file is to be read, from where it stands; None for all else."""
    with contextlib.suppress(Exception):  # a hint: whatever a file-like object makes of these questions is all right
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            return max(0, status.st_size - int(file.tell()))
    return None


def _unless_empty(chunk: BytesLike | None) -> BytesLike | None:
    """Return what ``read`` has returned, as a `Source` does."""
    if chunk is None:
        raise BlockingIOError(errno.EAGAIN, "the file is non-blocking and has nothing to read")
    return chunk if not check_chunk(chunk) or len(chunk) else None


class _Reader(_Base):
    """Anything with an async ``read(n)``: asyncio.StreamReader, an aiofiles handle, anyio's AsyncFile."""

    def __init__(self, reader: Any) -> None:
        super().__init__()
        self._reader = reader

    async def read(self) -> BytesLike | None:
        return _unless_empty(await self._reader.read(READ_SIZE))


class _Stream(_Base):
    """An anyio byte stream."""

    def __init__(self, stream: ByteReceiveStream) -> None:
        super().__init__()
        self._stream = stream

    async def read(self) -> BytesLike | None:
        try:
            return await self._stream.receive(READ_SIZE)
        except anyio.EndOfStream:
            return None


_END: Final[Any] = object()


def _unless_end(chunk: Any) -> BytesLike | None:
    """Return what iteration has yielded, as a `Source` does: None is the end there, and a mistake here."""
    return chunk if chunk is not _END and check_chunk(chunk) else None


class _AsyncIterator(_Base):
    def __init__(self, iterable: AsyncIterable[BytesLike]) -> None:
        super().__init__()
        self._iterator: AsyncIterator[BytesLike] = aiter(iterable)

    async def read(self) -> BytesLike | None:
        return _unless_end(await anext(self._iterator, _END))

    def close(self) -> Awaitable[object] | None:
        return self._iterator.aclose() if isinstance(self._iterator, AsyncGenerator) else None


class _Iterator(_Base):
    def __init__(self, iterable: Iterable[BytesLike]) -> None:
        super().__init__()
        self._iterator: Iterator[BytesLike] = iter(iterable)

    def read(self) -> BytesLike | None:
        return _unless_end(next(self._iterator, _END))

    def close(self) -> None:
        if isinstance(self._iterator, Generator):
            self._iterator.close()
