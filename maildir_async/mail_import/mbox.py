"""An mbox file as its messages: where each begins and ends, and what its quoting means. Blocks, and opens nothing.

An mbox is messages one after another, each with a line ``From sender date`` before it and an empty line behind it. Its
dialects differ in what tells a line of a message that begins with ``From `` from such a line (mbox(5) of qmail):

* ``mboxo`` writes ``>From ``. Which of those lines were written so cannot be told, so they are kept as they are.
* ``mboxrd`` writes one more ``>`` before ``From ``, ``>From ``, ``>>From `` and so on. That one is taken away.
* ``mboxcl2`` changes nothing, and gives the length of the body as ``Content-Length``. It is believed where it fits:
  what follows is a From line, or the end of the file.
* ``auto`` takes each message by itself: as mboxcl2 if it has a length that fits, as mboxrd if not.

A From line begins with ``From ``, has a date as asctime(3) writes it, perhaps with a zone, and stands behind an empty
line. One that does not is one all the same if a header follows. All else is part of the message.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol, get_args

from maildir_async.mail_import.headers import HEAD_MOST, READERS_FIELD

__all__ = ["DIALECTS", "Dialect", "Mbox", "Part", "Source", "is_from_line"]

Dialect = Literal["auto", "mboxo", "mboxrd", "mboxcl2"]
"""The dialects of mbox, and ``auto``, which tells them apart."""

DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)

#: Bytes read at a time.
CHUNK: Final = 1 << 18
#: Bytes in which a From line has to end, and then the name of a header.
LINE_MOST: Final = 1000
NAME_MOST: Final = 200
#: Bytes in which a header has to end for its Content-Length to be looked at.
HEADER_MOST: Final = 1 << 16
#: Bytes that are looked ahead in what cannot be read twice, to see whether a Content-Length fits.
AHEAD_MOST: Final = 1 << 22

_FROM_LINE: Final = re.compile(
    rb"From (?:.*[ \t])?(?:"
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[ \t]+\d{1,2}[ \t]+\d{1,2}:\d\d(?::\d\d)?"
    rb"(?:[ \t]+[A-Za-z0-9+-]+){0,2}[ \t]+\d{4}"
    rb"|\d{1,2}[ \t]+(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[ \t]+\d{4}[ \t]+\d{1,2}:\d\d(?::\d\d)?"
    rb")(?:[ \t].*)?",
    re.DOTALL,
)
#: What nearly all From lines are, and all that the fast way takes: what this matches, `_FROM_LINE` does.
_PLAIN_FROM_LINE: Final = re.compile(
    rb"From [^\s]{1,900} [A-Z][a-z][a-z] "
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d \d{4}(?=\n)"
)
_HEADER: Final = re.compile(rb"[!-9;-~]+[ \t]*:")
_LENGTH: Final = re.compile(rb"\n(?i:Content-Length)[ \t]*:[ \t]*(\d{1,18})[ \t]*(?=\r?\n)")
_QUOTED: Final = re.compile(rb"^>(?=>*From )", re.MULTILINE)
_QUOTED_LATER: Final = re.compile(rb"(?<=\n)>(?=>*From )")
_EMPTY_LINE: Final = re.compile(rb"\r?\n")
_LF: Final = ord("\n")


class Source(Protocol):
    """What an mbox is read from."""

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most so many, and none at the end."""
        ...

    def peek(self, offset: int, size: int) -> bytes | None:
        """Return bytes from a place on, without moving on; None if that cannot be."""
        ...


def is_from_line(line: bytes) -> bool:
    """Whether *line*, without its line end, has what a From line has."""
    return line.startswith(b"From ") and _FROM_LINE.fullmatch(line.removesuffix(b"\r")) is not None


class Part:
    """One message of an mbox.

    Attributes:
        offset: where its From line begins.
        from_line: that line without its end. None for what stands before the first.
        pieces: its bytes. To be read to the end before the next part is asked for.
        is_plain: whether they are one piece, whose header has none of the fields that mail readers write.

    """

    __slots__ = ("from_line", "is_plain", "offset", "pieces")

    def __init__(
        self, offset: int, from_line: bytes | None, pieces: Iterator[bytes], *, is_plain: bool = False
    ) -> None:
        self.offset = offset
        self.from_line = from_line
        self.pieces = pieces
        self.is_plain = is_plain


class Mbox:
    """Reads an mbox. At most `AHEAD_MOST` bytes and a few are in memory, however long its messages are.

    Args:
        source: the file.
        dialect: one of `DIALECTS`.
        odd: called with an offset and what is odd there.

    """

    def __init__(self, source: Source, dialect: Dialect, odd: Callable[[int, str], object]) -> None:
        self._source = source
        self._dialect: Dialect = dialect
        self._odd = odd
        self._buffer = b""
        self._at = 0  # in the buffer: where what has not been given yet begins
        self._base = 0  # in the file: where the buffer begins
        self._is_over = False  # the source has no more

    def parts(self) -> Iterator[Part]:
        """Yield each message. What the source raises is passed on."""
        while self._has(2) and (skipped := _EMPTY_LINE.match(self._buffer, self._at)):
            self._at = skipped.end()
        while self._has(1):
            offset = self._base + self._at
            if self._dialect != "mboxcl2" and (plain := _PLAIN_FROM_LINE.match(self._buffer, self._at)):
                message = self._plain(plain.end() + 1)
                if message is not None:
                    yield Part(offset, plain[0], iter((message,)), is_plain=True)
                    continue
            line = self._line()
            if line is None or not line.startswith(b"From "):
                self._odd(offset, "no From line stands before this: it is taken as a message")
                line = None
            else:
                self._at += len(line) + 1
                line = line.removesuffix(b"\r")
            yield Part(offset, line, self._pieces(offset, self._buffer[self._at - 2 : self._at] == b"\r\n"))

    def _plain(self, start: int) -> bytes | None:
        """Take the message that begins at *start* in the buffer if all about it is plain; return None if not.

        That is so if the buffer has all of it and the From line behind it, its line ends are LF, and no mail reader has
        written into it. It is what `_pieces` would yield: nearly all messages go this way, in a third of the time.
        """
        buffer = self._buffer
        end = buffer.find(b"\nFrom ", start - 1)
        if end <= start or buffer[end - 1] != _LF or not _PLAIN_FROM_LINE.match(buffer, end + 1):
            return None
        header = buffer.find(b"\n\n", start - 1, start + HEAD_MOST) + 1
        if not header or READERS_FIELD.search(buffer, start - 1, header):
            return None
        self._at = end + 1
        message = buffer[start:end]
        if self._dialect != "mboxo" and (b"\n>" in message or message.startswith(b">")):
            message = _QUOTED.sub(b"", message)
        return message

    def _pieces(self, offset: int, has_crlf: bool) -> Iterator[bytes]:
        if self._dialect in ("auto", "mboxcl2"):
            end = self._by_length(offset, has_crlf)
            if end is not None:
                yield from self._until(end)
                if self._has(2) and (skipped := _EMPTY_LINE.match(self._buffer, self._at)):
                    self._at = skipped.end()
                return
        is_quoted = self._dialect in ("auto", "mboxrd")
        is_mid_line = False
        scan = self._at - 1  # of the line end before a From line
        while True:
            end, after, scan = self._separator(scan)
            is_last = after is not None
            if is_last:
                stop = end
            elif self._is_over and scan >= len(self._buffer):
                stop = self._last_end()
                after, is_last = len(self._buffer), True
            else:
                # Whole lines, and not the empty line that may stand before a From line; or a part of a very long one.
                stop = self._buffer.rfind(b"\n", self._at, max(self._at, scan - 2)) + 1
                if not stop and scan - self._at > CHUNK:
                    stop = scan - 4
            if stop > self._at:
                piece = self._buffer[self._at : stop]
                if is_quoted and (b"\n>" in piece or piece.startswith(b">")):
                    piece = (_QUOTED_LATER if is_mid_line else _QUOTED).sub(b"", piece)
                is_mid_line = not piece.endswith(b"\n")
                self._at = stop
                yield piece
            if is_last:
                assert after is not None
                self._at = after
                return
            scan -= self._more()

    def _separator(self, scan: int) -> tuple[int, int | None, int]:
        """Return where the message ends, where the From line behind it begins, and from where to look on.

        The second is None if there is none in the buffer, or if more of the file has to be seen to tell.
        """
        buffer, start = self._buffer, self._at
        while (at := buffer.find(b"\nFrom ", max(scan, 0))) >= 0:
            if at + 1 < start:
                scan = at + 1
                continue
            stop = buffer.find(b"\n", at + 1, at + 1 + LINE_MOST)
            known = len(buffer) - at - 1
            if not self._is_over and known < LINE_MOST + NAME_MOST and (stop < 0 or len(buffer) - stop < NAME_MOST):
                return 0, None, at
            is_dated = stop >= 0 and is_from_line(buffer[at + 1 : stop])
            if buffer[at - 1 : at] == b"\n" or buffer[at - 2 : at] == b"\n\r":
                if is_dated:
                    return (max(start, at - (buffer[at - 1 : at] == b"\r")), at + 1, at)
                self._odd(self._base + at + 1, "a line that begins with 'From ' has no date: it is kept as text")
            elif is_dated and _HEADER.match(buffer, stop + 1, stop + 1 + NAME_MOST):
                self._odd(self._base + at + 1, "no empty line stands before the From line")
                return at + 1, at + 1, at
            scan = at + 1
        return 0, None, max(scan, len(buffer) - 6 if not self._is_over else len(buffer))

    def _last_end(self) -> int:
        """Return where the last message ends: before the empty line behind it, if there is one."""
        buffer, end = self._buffer, len(self._buffer)
        if not buffer.endswith(b"\n"):
            self._odd(self._base + end, "the file ends in the middle of a line: it may have been cut off")
            return end
        for empty in (b"\n\n", b"\n\r\n"):
            if buffer.endswith(empty, max(0, self._at - 1)):
                return max(self._at, end - len(empty) + 1)
        return end

    def _by_length(self, offset: int, has_crlf: bool) -> int | None:
        """Return where in the file the message ends by its Content-Length, if that fits."""
        gap = b"\n\r\n" if has_crlf else b"\n\n"
        look = self._at - 1
        while (end := self._buffer.find(gap, max(0, look), self._at + HEADER_MOST)) < 0:
            if self._is_over or len(self._buffer) - self._at >= HEADER_MOST:
                return None
            self._more()
            look = self._at - 1
        match = _LENGTH.search(self._buffer, max(0, self._at - 1), end + len(gap))
        if match is None:
            if self._dialect == "mboxcl2":
                self._odd(offset, "the message has no Content-Length: it ends at the next From line")
            return None
        body = end + len(gap)
        length = int(match[1])
        found = self._base + body + length
        if self._fits(found, length):
            return found
        self._odd(offset, f"a Content-Length of {length} leads to no From line: the message ends at the next one")
        return None

    def _fits(self, offset: int, length: int) -> bool:
        """Whether a From line, or the end, is at *offset* in the file, perhaps behind an empty line."""
        size = LINE_MOST + 4
        while not self._is_over and (lacking := offset - self._base + size - len(self._buffer)) > 0:
            seen = self._source.peek(offset - 1, size)
            if seen is not None:
                return bool(seen) and _is_next(seen[1:], is_start=seen[:1] == b"\n" or length == 0)
            if lacking > AHEAD_MOST:
                return False
            self._more()
        at = offset - self._base
        if at > len(self._buffer):
            return False
        is_start = self._buffer[at - 1 : at] == b"\n" or length == 0
        return _is_next(self._buffer[at : at + size], is_start=is_start)

    def _until(self, offset: int) -> Iterator[bytes]:
        while (left := offset - self._base - self._at) > 0 and self._has(1):
            piece = self._buffer[self._at : self._at + left]
            self._at += len(piece)
            yield piece

    def _line(self) -> bytes | None:
        """Return the line that begins here without its LF; None if it is too long for a From line."""
        self._has(LINE_MOST)
        end = self._buffer.find(b"\n", self._at, self._at + LINE_MOST)
        return self._buffer[self._at : end] if end >= 0 else None

    def _has(self, count: int) -> bool:
        """Read on until there are *count* bytes, or the end; return whether there are any."""
        while len(self._buffer) - self._at < count and not self._is_over:
            self._more()
        return len(self._buffer) > self._at

    def _more(self) -> int:
        """Read on, and return how many bytes have gone from the start of the buffer."""
        gone = max(0, self._at - 4)  # what tells an empty line stays
        read = self._source.read(CHUNK)
        self._is_over = not read
        self._buffer = self._buffer[gone:] + read
        self._base += gone
        self._at -= gone
        return gone


def _is_next(text: bytes, *, is_start: bool) -> bool:
    """Whether *text* is the end of a file, or begins with a From line, perhaps behind an empty line."""
    empty = _EMPTY_LINE.match(text)
    rest = text[empty.end() :] if empty is not None else text
    return not text or (is_start and (not rest or is_from_line(rest.partition(b"\n")[0])))
