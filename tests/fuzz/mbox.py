"""An mbox in each dialect, cut anyhow: the same messages, with nothing lost but what the dialect takes away."""

import re
from collections.abc import Sequence

from maildir_async.mail_import.headers import begin_digest, from_line_date, marks_of
from maildir_async.mail_import.mbox import DIALECTS, Dialect, Mbox, is_from_line

from .cutting import chunked, each_way

__all__ = ["target"]

PIECES = (
    *(b"From a@b.example Thu Jan  1 00:00:00 1970\n", b"From x Mon, 1 Feb 2024 10:11 +0100\n", b"From ", b">From "),
    *(b"\n", b"\r\n", b"\n\n", b"A: b\n", b"Content-Length: 4\n", b"Content-Length: 1\r\n", b">", b"text", b"|"),
    *(b"Status: RO\n", b"X-Status: AF\n", b"X-Keywords: a b\n", b"X-Mozilla-Status: 0005\n", b" 2024", b"Jan 31 "),
)


class Pieces:
    """An mbox that comes in pieces, and can perhaps be looked at anywhere."""

    def __init__(self, pieces: Sequence[bytes], *, peeks: bool) -> None:
        self._rest = iter(pieces)
        self._whole = b"".join(pieces)
        self._peeks = peeks

    def read(self, size: int) -> bytes:
        return next(self._rest, b"")

    def peek(self, offset: int, size: int) -> bytes | None:
        return self._whole[offset : offset + size] if self._peeks else None


def target(data: bytes) -> None:
    """Read what follows the first ``|`` in each dialect; and each of its lines as a From line."""
    lengths, octets = chunked(data)
    for dialect in DIALECTS:
        first: object = None
        for chunks in each_way(octets, lengths):
            for peeks in (True, False):
                read = _read(dialect, chunks, octets, peeks=peeks)
                assert first in (None, read)
                first = read
    for line in octets.split(b"\n"):
        date = from_line_date(line)
        assert date is None or (date.utcoffset() is not None and date.year >= 1)
        assert not is_from_line(line) or line.startswith(b"From ")
    marks = marks_of(octets)
    assert set(marks.flags) <= set("DFPRST")
    assert all(keyword and keyword == keyword.strip() for keyword in marks.keywords)
    if not octets.startswith((b"\n", b"\r\n")):
        read_since = b"Status: RO\nX-Keywords: a\n  b\n" + octets
        if re.match(rb"[!-9;-~]+:", octets) and b"\n\n" in octets:
            assert begin_digest(read_since).digest() == begin_digest(octets).digest()


def _read(dialect: Dialect, chunks: list[bytes], octets: bytes, *, peeks: bool) -> object:
    odd: set[tuple[int, str]] = set()
    found: list[tuple[int, bytes | None, bytes]] = []
    mbox = Mbox(Pieces(chunks, peeks=peeks), dialect, lambda offset, reason: odd.add((offset, reason)))
    for part in mbox.parts():
        message = b"".join(part.pieces)
        found.append((part.offset, part.from_line, message))
        if part.is_plain:
            assert marks_of(message) == ("", ())
            assert begin_digest(message, is_plain=True).digest() == begin_digest(message).digest()
    _check_nothing_lost(dialect, found, octets)
    return found, odd


def _check_nothing_lost(dialect: Dialect, found: list[tuple[int, bytes | None, bytes]], octets: bytes) -> None:
    """Each message begins where it is told to; between two there is nothing but an empty line."""
    at = len(octets) - len(re.sub(rb"\A(?:\r?\n)+", b"", octets)) if octets else 0
    for number, (offset, line, message) in enumerate(found):
        end = found[number + 1][0] if number + 1 < len(found) else len(octets)
        assert offset == at
        start = offset
        if line is not None:
            assert octets.startswith(line, offset)
            start = octets.index(b"\n", offset) + 1
        stored = octets[start:end]
        candidates = {stored}
        if dialect in ("auto", "mboxrd"):
            candidates.add(re.sub(rb"(?m)^>(?=>*From )", b"", stored))
        assert any(each in (message, message + b"\n", message + b"\r\n") for each in candidates), (message, stored)
        at = end
    assert at == len(octets)
