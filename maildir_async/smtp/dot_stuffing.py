"""What follows DATA on the wire: where a message ends, its doubled dots, its longest line. Pure.

RFC 5321 §4.1.1.4: a message ends with CRLF, a dot, CRLF, of which the first CRLF is the message's own last line end,
or that of the DATA command. Nothing else ends it: a bare CR or LF is data (RFC 5321 §2.3.8), since two servers that
disagree on that let a client smuggle a second message into the first.
"""

from typing import Final

__all__ = ["TERMINATOR", "LineLimit", "Unstuffer", "begun"]

TERMINATOR: Final = b"\r\n.\r\n"


def begun(seen: bytes) -> int:
    """Return how many bytes at the end of *seen* may be the beginning of a terminator; 5 if they are all of it."""
    if not seen.endswith((b"\r", b"\n", b".")):
        return 0
    return next(length for length in range(5, -1, -1) if seen.endswith(TERMINATOR[:length]))


class Unstuffer:
    """Takes away the first dot of each line (RFC 5321 §4.5.2), in any chunking. A line begins after CRLF only."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before = b"\r\n"  # what of a CRLF the last chunk ended with: at first, that of the DATA command

    def feed(self, chunk: bytes) -> bytes:
        """Return *chunk* without those dots."""
        before = self._before
        stuffed = before + chunk if before else chunk
        self._before = b"\r\n" if stuffed.endswith(b"\r\n") else b"\r" if stuffed.endswith(b"\r") else b""
        # What is large is mostly base64, which has no dots; to see that is far cheaper than to look for three bytes.
        plain = stuffed.replace(b"\r\n.", b"\r\n") if b"." in stuffed else stuffed
        return plain[len(before) :] if before else plain


class LineLimit:
    """Finds a line that is too long, in any chunking, without splitting anything into lines.

    Args:
        limit: octets of a line, the CRLF at its end among them, and no doubled dot (RFC 5321 §4.5.3.1.6: 1000).
            ValueError if it is less than 3.

    """

    __slots__ = ("_after_cr", "_length", "_limit")

    def __init__(self, limit: int) -> None:
        if limit < 3:
            raise ValueError(f"a line has more than {limit} octets")
        self._limit = limit
        self._length = 0  # octets of the last line that has not ended
        self._after_cr = False

    def admits(self, chunk: bytes) -> bool:
        """Whether no line is longer so far."""
        begin = -self._length
        if self._after_cr and chunk.startswith(b"\n"):
            if self._length + 1 > self._limit:
                return False
            begin = 1
        while len(chunk) - begin > self._limit:
            # The line has to end within so many octets. The last end there is the one that brings us furthest.
            end = chunk.rfind(b"\r\n", max(begin, 0), begin + self._limit)
            if end < 0:
                return False
            begin = end + 2
        end = chunk.rfind(b"\r\n", max(begin, 0))
        self._length = len(chunk) - (begin if end < 0 else end + 2)
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return True
