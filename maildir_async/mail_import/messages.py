"""The messages of a source, one after the other, whatever it is. Blocks."""

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from maildir_async.disk.reading import Unchanged
from maildir_async.format.options import moment_of, nanoseconds
from maildir_async.mail_import.headers import HEAD_MOST, Hash, begin_digest, from_line_date, marks_of
from maildir_async.mail_import.mbox import Dialect, Mbox, Part
from maildir_async.mail_import.places import Place, folder_part, is_keyword, places
from maildir_async.mail_import.reading import MailFile
from maildir_async.mail_import.report import Problems

__all__ = ["LARGE_BYTES", "STDIN", "Found", "Messages", "digest_of", "is_large"]

#: What standard input is called.
STDIN: Final = "-"

#: Bytes of the longest message that is read whole.
WHOLE_MOST: Final = 512 * 1024

#: Bytes of a source, or files in it, from which on a process for it pays: it takes a fifth of a second to start.
LARGE_BYTES: Final = 1 << 26
LARGE_FILES: Final = 20_000


def is_large(source: str) -> bool:
    """Whether a process of its own pays for *source*, as far as that can be seen without reading it. Blocks."""
    size = 0
    for count, size_of_one in enumerate(_sizes(source), 1):
        size += size_of_one
        if size >= LARGE_BYTES or count >= LARGE_FILES:
            return True
    return False


def _sizes(source: str) -> Iterator[int]:
    """Yield how many bytes there are in each of its files; 0 where that is not known."""
    is_directory = os.path.isdir(source)
    for path in (place.path for place in places(source, _ignore, _ignore)) if is_directory else [source]:
        try:
            found = os.fstat(0) if path == STDIN else os.stat(path)
        except OSError:
            yield 0
        else:
            yield found.st_size if stat.S_ISREG(found.st_mode) else 0


class Found:
    """A message of a source. It can be pickled.

    Attributes:
        path: the file that it is in.
        offset: bytes before it in there, if it is one of several.
        folder: parts of the folder that it belongs to.
        flags: as a Maildir has them.
        keywords: IMAP's.
        received_ns: when it came, in nanoseconds since the epoch; None if that is not known.
        first: all of it; or the first bytes, `HEAD_MOST` at least.
        is_long: whether more follows, to be read by `Messages.more` before the next message is.

    """

    __slots__ = ("first", "flags", "folder", "is_long", "keywords", "offset", "path", "received_ns")

    def __init__(
        self,
        path: str,
        offset: int | None,
        folder: tuple[str, ...],
        flags: str,
        keywords: tuple[str, ...],
        received_ns: int | None,
        first: bytes,
        is_long: bool = False,
    ) -> None:
        self.path = path
        self.offset = offset
        self.folder = folder
        self.flags = flags
        self.keywords = keywords
        self.received_ns = received_ns
        self.first = first
        self.is_long = is_long

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it, of which there are many, by what it is made of alone."""
        made_of = (self.path, self.offset, self.folder, self.flags, self.keywords, self.received_ns)
        return Found, (*made_of, self.first, self.is_long)


class Messages:
    """What is in the file or directory *source*, or in standard input.

    Args:
        source: a path, or `STDIN`.
        folder: parts of the folder that all of it belongs to.
        dialect: of an mbox.
        problems: what is odd is told to it.

    """

    def __init__(self, source: str, folder: tuple[str, ...], dialect: Dialect, problems: Problems) -> None:
        self._source = source
        self._folder = folder
        self._dialect: Dialect = dialect
        self._problems = problems
        self._file: Unchanged | None = None
        self._is_stopped = False
        self._rest: Iterator[bytes] = iter(())  # of the message that was found last
        self._hash: Hash = begin_digest(b"")  # of what has been read of it

    def stop(self) -> None:
        """Have reading end with `StoppedError`, also where nothing comes. Any thread may call this."""
        self._is_stopped = True
        file = self._file
        if file is not None:
            file.stop()

    def total(self) -> int | None:
        """Return how many there are, if each is a file of its own."""
        if self._source == STDIN or not os.path.isdir(self._source):
            return None
        count = 0
        for place in places(self._source, _ignore, _ignore):
            if not place.is_message:
                return None
            count += 1
        return count

    def close(self) -> None:
        """Let go of what is open."""
        if self._file is not None:
            self._file.close()

    def each(self) -> Iterator[Found]:
        """Yield them. OSError if the source itself cannot be opened; all else is told."""
        if self._source == STDIN:
            with self._opened(STDIN, 0) as file:
                yield from self._in(Place(STDIN, (), False), file)
        elif os.path.isdir(self._source):
            os.scandir(self._source).close()  # raises if it cannot be
            for place in places(self._source, self._odd, self._lost):
                try:
                    with self._opened(place.path) as file:
                        yield from self._in(place, file)
                except OSError as exc:
                    self._lost(place.path, f"cannot be read: {exc.strerror}")
        else:
            is_message = self._source.removesuffix(".gz").lower().endswith(".eml")
            with self._opened(self._source) as file:
                yield from self._in(Place(self._source, (), is_message), file)

    def more(self) -> bytes:
        """Return the next bytes of the message that was found last; none at its end."""
        piece = next(self._rest, b"")
        self._hash.update(piece)
        return piece

    def digest(self) -> bytes:
        """Return what stands for what has been read of the message that was found last."""
        return self._hash.digest()

    def _odd(self, path: str, reason: str) -> None:
        self._problems.odd(path, None, reason)

    def _lost(self, path: str, reason: str) -> None:
        self._problems.lost(path, None, reason)

    @contextmanager
    def _opened(self, path: str, fd: int | None = None) -> Generator[Unchanged, None, None]:
        file = self._file = Unchanged(path, fd)
        if self._is_stopped:
            file.stop()
        try:
            yield file
        finally:
            self._file = None
            file.close()

    def _in(self, place: Place, file: Unchanged) -> Iterator[Found]:
        path = place.path
        try:
            mail = MailFile(file, lambda offset, reason: self._problems.odd(path, offset, reason))
            is_named = place.is_message or path == self._source
            if mail.is_empty:
                if place.is_message:
                    self._odd(path, "is empty")
                    yield self._message(place, None, iter(()), _time_of(file))
                return
            if mail.is_mbox:
                yield from self._mbox(place, mail, file)
            elif is_named or mail.has_header:
                if not place.is_message and not mail.has_header:
                    self._odd(path, "begins with no header: it is taken as a message")
                yield self._message(place, None, mail.pieces(), _time_of(file))
            else:
                self._odd(path, "is no mail that is known: it is left out")
        except OSError as exc:
            self._lost(path, f"cannot be read on: {exc.strerror}")

    def _mbox(self, place: Place, mail: MailFile, file: Unchanged) -> Iterator[Found]:
        path = place.path
        own = (folder_part(place.stem, path, self._odd),) if place.stem else ()
        inner = Place(path, (*place.folder, *own), False)
        if place.is_message and not place.path.removesuffix(".gz").lower().endswith(".eml"):
            inner = place  # of a Maildir or of MH: it is one message, whatever line it begins with
            yield self._message(inner, None, mail.pieces(), _time_of(file))
            return
        mbox = Mbox(mail, self._dialect, lambda offset, reason: self._problems.odd(path, offset, reason))
        for part in mbox.parts():
            yield self._part(inner, part)

    def _part(self, place: Place, part: Part) -> Found:
        received_at = from_line_date(part.from_line) if part.from_line is not None else None
        found = self._message(place, part.offset, part.pieces, received_at, is_plain=part.is_plain)
        if not part.is_plain:
            marks = marks_of(found.first)
            found.flags = marks.flags
            found.keywords = tuple(filter(is_keyword, marks.keywords))
            if len(found.keywords) < len(marks.keywords):
                self._problems.odd(place.path, part.offset, "has keywords that IMAP does not know, which are left out")
        if part.from_line is not None and received_at is None:
            self._problems.odd(place.path, part.offset, "has no date that there can be in its From line")
        return found

    def _message(
        self,
        place: Place,
        offset: int | None,
        pieces: Iterator[bytes],
        received_at: datetime | None,
        *,
        is_plain: bool = False,
    ) -> Found:
        first, is_long = next(pieces, b""), False
        if (piece := next(pieces, None)) is not None:
            parts, size = [first, piece], len(first) + len(piece)
            while size <= WHOLE_MOST and (piece := next(pieces, None)) is not None:
                parts.append(piece)
                size += len(piece)
            first, is_long = b"".join(parts), size > WHOLE_MOST
        elif len(first) > WHOLE_MOST:
            is_long = True
        if b"\0" in first:
            self._problems.odd(place.path, offset, "has NUL bytes in it, which are kept")
        elif b"\r" in first and b"\n" not in first:
            self._problems.odd(place.path, offset, "has no line ends but CR, which are kept")
        folder = (*self._folder, *place.folder) if place.folder else self._folder
        self._rest, self._hash = pieces, begin_digest(first, is_plain=is_plain)
        received_ns = nanoseconds(received_at)
        return Found(place.path, offset, folder, place.flags, place.keywords, received_ns, first, is_long)


def _time_of(file: Unchanged) -> datetime | None:
    """Return when a regular file was last written to: that is when a message came that nobody has changed."""
    if not file.is_regular:
        return None
    try:
        return moment_of(file.modified_ns)
    except OverflowError:
        return None


def _ignore(path: str, reason: str) -> None:
    pass


def digest_of(path: str) -> bytes:
    """Return what stands for the content of the message in the file at *path*. OSError as the system does."""
    file = Unchanged(path)
    try:
        first = b""
        while len(first) < HEAD_MOST and (piece := file.read(WHOLE_MOST)):
            first += piece
        made = begin_digest(first)
        while piece := file.read(WHOLE_MOST):
            made.update(piece)
        return made.digest()
    finally:
        file.close()
