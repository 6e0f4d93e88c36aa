"""The bytes of one message on their way to its file: its mbox line, prefix, newline policy, two sizes. Pure."""

import re
from typing import Final, Literal

from maildir_async.format.given import given

__all__ = ["Content", "Newline", "check_newline", "check_prefix", "wire_size_of"]

Newline = Literal["keep", "lf", "crlf"]
"""``keep`` stores what was given, ``lf`` turns each CRLF into LF, ``crlf`` turns each LF without a CR into CRLF.
A CR that no LF follows is data, and is left alone by all three."""

#: Bytes of the longest mbox line that is found: what of a message is held back until its end is seen. No system makes
#: a longer one: it has an address (RFC 5321 allows 256 bytes) and a date.
FROM_LINE_MOST: Final = 4096

NEWLINES: Final[tuple[Newline, ...]] = ("keep", "lf", "crlf")

# RFC 5322 §2.2: a field name is printable ASCII without the colon; a line that starts with space or tab continues
# the field before it and has to hold something else, since a reader may take a blank line for the end of the header.
_FIELDS: Final = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\r\n\0]*\r?\n(?:[ \t]+[^ \t\r\n\0][^\r\n\0]*\r?\n)*)*")


def check_newline(newline: Newline) -> Newline:
    """Return *newline*, as an exact str; ValueError unless it is one of the three policies."""
    if not isinstance(newline, str) or newline not in NEWLINES:
        raise ValueError(f"newline must be one of {', '.join(NEWLINES)}, not {given(newline)}")
    return NEWLINES[NEWLINES.index(newline)]


def check_prefix(prefix: bytes) -> bytes:
    """Return *prefix*, as exact bytes, if it is whole header lines; ValueError if not.

    So nothing put into a prefix can add a body. Whether a line in it is a header somebody smuggled in cannot be seen
    here: whoever builds one from an envelope has to refuse addresses with CR or LF.
    """
    if not isinstance(prefix, (bytes, bytearray, memoryview)):
        raise TypeError(f"prefix must be bytes, not {type(prefix).__name__}: {given(prefix)}")
    try:
        prefix = bytes(memoryview(prefix))
    except ValueError as exc:  # a memoryview that has been released
        raise ValueError(f"prefix cannot be read: {exc}") from None
    whole = _FIELDS.match(prefix)
    assert whole is not None  # no line at all is no less than some
    if whole.end() == len(prefix):
        return prefix
    if not prefix.endswith(b"\n"):
        raise ValueError("prefix must end with a line end")
    if b"\0" in prefix:
        raise ValueError("prefix must not contain NUL")
    number = prefix.count(b"\n", 0, whole.end()) + 1
    line = prefix[whole.end() :].partition(b"\n")[0].removesuffix(b"\r")
    if b"\r" in line:
        raise ValueError(f"prefix line {number} has a CR that no LF follows")
    if not line:
        raise ValueError(f"prefix line {number} is empty, which would end the header")
    raise ValueError(f"prefix line {number} is not a header field: {given(line[:40])}")


class Content:
    """Converts and counts the bytes of one message, in any chunking.

    Attributes:
        prefix: what is still to be stored before the first byte of the message.
        newline: the policy.
        head: with *strip_from_line*, what has come while that may be an mbox line; None once it is known.
        size: bytes stored so far, prefix included (the name's ``,S=``).
        wire_size: what `size` would be with every line end a CRLF (``,W=``, IMAP's RFC822.SIZE): one more for
            each LF that no CR precedes.

    """

    __slots__ = ("_after_cr", "_held", "head", "newline", "prefix", "size", "wire_size")

    def __init__(self, *, prefix: bytes = b"", newline: Newline = "keep", strip_from_line: bool = False) -> None:
        self.prefix = prefix
        self.newline: Newline = newline
        self.head: bytes | None = b"" if strip_from_line else None
        self._held = b""  # a CR kept back until the next byte shows whether it belongs to a line end
        self._after_cr = False  # whether the last byte stored is a CR
        self.size = 0
        self.wire_size = 0

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes to store for *chunk*: possibly none yet, possibly a CR kept back before."""
        if self.head is not None:
            chunk = self._without_from_line(self.head, chunk)
        if self.prefix and chunk:
            chunk, self.prefix = _after(self.prefix, chunk), b""
        if self.newline != "keep":
            if self._held:
                chunk = self._held + chunk
                self._held = b""
            if chunk.endswith(b"\r"):
                chunk, self._held = chunk[:-1], b"\r"
            if b"\r" in chunk:
                lines = _with_lf(chunk)
                if lines is None:
                    lines = chunk.replace(b"\r\n", b"\n")
                elif self.newline == "crlf":
                    return self._counted(chunk)
                chunk = lines
            if self.newline == "crlf":
                chunk = chunk.replace(b"\n", b"\r\n")
        return self._counted(chunk)

    def end(self) -> bytes:
        """Return what is still to be stored once no more chunks come."""
        if not self.prefix and not self._held and not self.head:  # nearly always
            return b""
        head, self.head = self.head, None
        rest = self.feed(head) if head else b""  # a beginning that turned out to be no whole line
        prefix, self.prefix = self.prefix, b""
        rest += self.feed(prefix)  # of an empty message
        held, self._held = self._held, b""
        return rest + self._counted(held)

    def _without_from_line(self, head: bytes, chunk: bytes) -> bytes:
        """Return what there is of the message, after *head*, with *chunk*, once it is known where it begins; or b"".

        An mbox file has a line ``From `` before each message (RFC 4155), which is none of its headers. A beginning that
        has no LF is not a line, and is kept.
        """
        head += chunk
        if head[:5] == _FROM[: len(head)]:
            end = head.find(b"\n", 0, FROM_LINE_MOST)
            if end < 0 and len(head) < FROM_LINE_MOST:
                self.head = head
                return b""
            head = head[end + 1 :]  # all of it, if there is no LF
        self.head = None
        return head

    def _counted(self, stored: bytes) -> bytes:
        """Return *stored*, now that it is counted."""
        if not stored:
            return stored
        self.size += len(stored)
        bare = 0
        # Most mail on disk has no CR at all, and the search for one byte is far cheaper than for two.
        if b"\r" not in stored:
            bare = _count_lf(stored)
        elif _with_lf(stored) is None:
            bare = stored.count(b"\n") - stored.count(b"\r\n")
        if self._after_cr and stored.startswith(b"\n"):
            bare -= 1
        self._after_cr = stored.endswith(b"\r")
        self.wire_size += len(stored) + bare
        return stored


_FROM: Final = b"From "


def _after(prefix: bytes, chunk: bytes) -> bytes:
    """Return *prefix* and, after it, the message that begins with *chunk*.

    A line that begins with space or tab continues the header field before it (RFC 5322 §2.2.3). The message must not
    continue a field of ours, so an empty line ends the header first, with the line end that the prefix has.
    """
    if chunk[:1] in (b" ", b"\t"):
        return prefix + (b"\r\n" if prefix.endswith(b"\r\n") else b"\n") + chunk
    return prefix + chunk


def wire_size_of(stored: bytes) -> int:
    """Return what the size of a whole message would be with every line end a CRLF: see `Content.wire_size`."""
    if b"\r" not in stored:
        return len(stored) + _count_lf(stored)
    if _with_lf(stored) is not None:
        return len(stored)
    return len(stored) + stored.count(b"\n") - stored.count(b"\r\n")


# CPython searches for one byte with memchr(3) when it replaces, and byte by byte when it counts, or searches for two.


def _count_lf(data: bytes) -> int:
    """Return the number of LFs, in a third of the time that bytes.count takes (3.11 to 3.13)."""
    return len(data) - len(data.replace(b"\n", b""))


def _with_lf(data: bytes) -> bytes | None:
    """Return *data* with LF line ends if all of its line ends are CRLF and it has no other CR; or else None.

    In two fifths of the time that it takes to replace CRLF and count.
    """
    lines = data.replace(b"\r", b"")
    return lines if lines.replace(b"\n", b"\r\n") == data else None
