"""A file that mail is in: decompressed, and looked at to see what it is. Blocks."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from maildir_async.disk.reading import Unchanged
from maildir_async.mail_import.mbox import CHUNK, LINE_MOST

__all__ = ["MailFile"]

_GZIP: Final = b"\x1f\x8b\x08"

#: Compressed bytes that zlib is given at a time. What it does not take it copies: a file of ten thousand compressed
#: nothings after one another would be copied ten thousand times.
_SLICE: Final = 1 << 14


class MailFile:
    """What mail is read from.

    Args:
        file: the file.
        odd: called with an offset in the file as it lies there, and what is odd there.

    """

    def __init__(self, file: Unchanged, odd: Callable[[int, str], object]) -> None:
        self._file = file
        self._odd = odd
        self._first = self._begin(file.read)
        self._is_plain = not self._first.startswith(_GZIP)
        if not self._is_plain:
            self._failure: OSError | None = None
            self._compressed = iter(self._decompressed(self._first))
            self._first = self._begin(self._next)

    def _begin(self, read: Callable[[int], bytes]) -> bytes:
        """Return the first bytes: a chunk, or as many as tell what this is."""
        first = b""
        while len(first) < LINE_MOST and (piece := read(CHUNK)):
            first += piece
        return first

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not self._first

    @property
    def is_mbox(self) -> bool:
        """Whether it begins as an mbox does."""
        first = self._first[:LINE_MOST].lstrip(b"\r\n")
        return first.startswith(b"From ") and b"\n" in first

    @property
    def has_header(self) -> bool:
        """Whether it begins as a message does: with a name and a colon."""
        name, colon, _ = self._first[:LINE_MOST].partition(b":")
        return bool(colon) and bool(name) and all(33 <= byte <= 126 for byte in name.rstrip(b" \t"))

    def read(self, size: int) -> bytes:
        """Return the next bytes, none at the end. OSError as the system does."""
        if self._first:
            piece, self._first = self._first, b""
            return piece
        return self._file.read(size) if self._is_plain else self._next(size)

    def peek(self, offset: int, size: int) -> bytes | None:
        """Return bytes from a place on; None where that cannot be."""
        return self._file.read_at(offset, size) if self._is_plain else None

    def pieces(self) -> Iterator[bytes]:
        """Yield all of it."""
        while piece := self.read(CHUNK):
            yield piece

    def _next(self, _: int) -> bytes:
        """Return the next bytes: a chunk or more, however little each piece of the file comes to."""
        if self._failure is not None:
            raise self._failure
        pieces, size = list[bytes](), 0
        try:
            while size < CHUNK and (piece := next(self._compressed, b"")):
                pieces.append(piece)
                size += len(piece)
        except OSError as exc:
            if not pieces:
                raise
            self._failure = exc  # what came before it is not lost
        return b"".join(pieces)

    def _decompressed(self, data: bytes) -> Iterator[bytes]:
        import zlib  # here, since few programs import mail, and little of it is compressed

        at = start = 0  # in the file, of `data`; and in there, of what has not been taken yet
        made: Any = zlib.decompressobj(31)
        while start < len(data):
            part = data[start : start + _SLICE]
            try:
                piece = made.decompress(part, CHUNK)
            except zlib.error as exc:
                self._odd(at + start, f"the compressed data are damaged, and what follows cannot be read: {exc}")
                return
            if piece:
                yield piece
            start += len(part) - len(made.unused_data if made.eof else made.unconsumed_tail)
            if start == len(data):
                at += start
                data, start = self._file.read(CHUNK), 0
            if made.eof:
                # The last bytes of a chunk may be the beginning of what goes on in the next.
                if not data.startswith(_GZIP[: len(data) - start], start):
                    if data[start:].strip(b"\0"):
                        self._odd(at + start, "what follows the compressed data is not compressed, and is not read")
                    return
                if start < len(data):
                    made = zlib.decompressobj(31)
        at += start
        if not made.eof:
            if piece := made.flush():
                yield piece
            if not made.eof:
                self._odd(at, "the compressed data end early: the file has been cut off")
