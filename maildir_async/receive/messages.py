"""What a message may be, for type checkers and at run time, and what a chunk of one may be."""

import email.message
import io
import os
from collections.abc import AsyncIterable, Awaitable, Iterable
from typing import Protocol, TypeAlias, TypeGuard

from anyio.abc import ByteReceiveStream

__all__ = ["AsyncReader", "BinaryFile", "BytesLike", "Message", "check_chunk", "check_message", "is_nothing"]

BytesLike: TypeAlias = bytes | bytearray | memoryview


class BinaryFile(Protocol):
    """A file of bytes, whose ``read`` blocks: what ``open(path, "rb")`` returns, `io.BytesIO`, a `gzip.GzipFile`."""

    def read(self, n: int, /) -> BytesLike | None:
        """Return *n* bytes, or fewer; none at the end. None, which a non-blocking file has, fails the delivery."""
        ...


class AsyncReader(Protocol):
    """What bytes are awaited of: an `asyncio.StreamReader`, an aiofiles handle, an anyio file."""

    def read(self, n: int, /) -> Awaitable[BytesLike]:
        """Return *n* bytes, or fewer; none at the end."""
        ...


# A str is an iterable of str, and so none of these; nor is a file of text.
Message: TypeAlias = (
    bytes
    | bytearray
    | memoryview
    | email.message.Message
    | BinaryFile
    | AsyncReader
    | ByteReceiveStream
    | AsyncIterable[BytesLike]
    | Iterable[BytesLike]
)
"""All that `maildir_async.Maildir.append` takes."""


def check_message(message: object) -> None:
    """Raise TypeError, naming the type, unless `maildir_async.as_producer` takes *message*. Touches nothing."""
    if isinstance(message, (bytes, bytearray, memoryview, email.message.Message)):
        return
    if isinstance(message, str | io.TextIOBase | os.PathLike) or not (
        callable(getattr(message, "read", None)) or isinstance(message, (ByteReceiveStream, AsyncIterable, Iterable))
    ):
        raise TypeError(
            "message must be bytes, an email.message.Message, a binary file, a byte stream or an iterable of bytes, "
            f"not {type(message).__name__}"
        )


def check_chunk(chunk: object, name: str = "a chunk of a message") -> TypeGuard[BytesLike]:
    """Return True for a bytes-like *chunk*; raise TypeError, naming it and its type, for anything else."""
    if isinstance(chunk, (bytes, bytearray, memoryview)):
        return True
    raise TypeError(f"{name} must be bytes, not {type(chunk).__name__}")


def is_nothing(chunk: object) -> bool:
    """Whether *chunk* is bytes-like and empty."""
    return isinstance(chunk, (bytes, bytearray, memoryview)) and not len(chunk)
