"""What is looked for in a header: the Message-ID, what marks junk. In any chunking."""

import re

from maildir_async.format.junk import HEADER_MAX, JunkHeader
from maildir_async.format.message_id import HEAD_SIZE, Head, message_id_of

from .cutting import chunked, each_way

__all__ = ["target"]

PIECES = (
    b"Message-ID: ",
    b"<a@b>",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"X-Spam-Flag: ",
    b"YES",
    b"yes\n",
    b"\n\n",
    b":",
    b"x",
)

HEADERS = tuple(map(JunkHeader, ("X-Spam-Flag: YES", "x-spam-flag:a*", "X-Spam-Flag: y e s")))


def target(data: bytes) -> None:
    """Take what follows the first ``|`` for a message, and for a field that marks junk."""
    lengths, message = chunked(data)
    _check_field(message.decode("utf-8", "replace"))
    found = message_id_of(message)
    assert found is None or (found and b"\n" not in found and found.strip(b" \t\r\n") == found)
    assert found == _first_of(b"message-id", message[:HEAD_SIZE]) or len(message) >= HEAD_SIZE
    marked = [header.marks(message) for header in HEADERS]
    value = _first_of(b"x-spam-flag", message)
    if value is not None and value.lower() == b"yes" and len(message) < HEADER_MAX:
        assert marked[0]
    for chunks in each_way(message, lengths):
        head, seen, known = Head(), bytearray(), False
        for chunk in chunks:
            head.observe(chunk)
            if not known:  # as Sorted does
                before = max(0, len(seen) - 2)
                seen += chunk
                known = HEADERS[0].can_tell(seen, before)
                assert known == HEADERS[0].can_tell(seen)
        assert head.message_id() == found
        assert [header.marks(bytes(seen)) for header in HEADERS] == marked


def _first_of(name: bytes, message: bytes) -> bytes | None:
    """Return the value of the first field of that name, unfolded, line by line; None where there is none."""
    value: bytes | None = None
    for line in message.split(b"\n"):
        if line in (b"", b"\r"):
            break
        if value is not None:
            if line[:1] not in (b" ", b"\t"):
                break
            value = value.removesuffix(b"\r") + line
        else:
            field, colon, rest = line.partition(b":")
            if colon and re.fullmatch(re.escape(name) + rb"[ \t]*", field, re.IGNORECASE):
                value = rest
    return value.strip(b" \t\r\n") or None if value is not None else None


def _check_field(text: str) -> None:
    try:
        header = JunkHeader(text)
    except ValueError:
        return
    name, _, value = text.partition(":")
    if len(text) > HEADER_MAX // 2:
        return
    assert header.marks(f"{name}: {value}\n\n".encode())
    assert not header.marks(f"\n{name}: {value}\n\n".encode())
