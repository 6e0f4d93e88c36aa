"""The Message-ID of a message, found in its first bytes as they pass. Pure."""

import re
from typing import Final

__all__ = ["HEAD_SIZE", "Head", "message_id_of"]

#: Bytes of a message that are searched. Headers are shorter; what stands behind them is not found.
HEAD_SIZE: Final = 64 * 1024

_HEADER_END: Final = re.compile(rb"(?:\A|\n)\r?\n")
# RFC 5322 §2.2.3: a line that begins with space or tab continues the one before.
_MESSAGE_ID: Final = re.compile(rb"^message-id[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE | re.MULTILINE)
_FOLD: Final = re.compile(rb"\r?\n(?=[ \t])")


class Head:
    """The first `HEAD_SIZE` bytes of a message, gathered while it passes in chunks of any size."""

    __slots__ = ("_head",)

    def __init__(self) -> None:
        self._head = bytearray()

    def observe(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next chunk; what is past the head is not copied."""
        missing = HEAD_SIZE - len(self._head)
        if missing > 0:
            view = memoryview(chunk)
            self._head += (view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes())[:missing]

    def message_id(self) -> bytes | None:
        """Return the Message-ID, once the message or `HEAD_SIZE` bytes of it have passed."""
        return message_id_of(bytes(self._head))


def message_id_of(head: bytes) -> bytes | None:
    """Return the value of the first Message-ID field of the message that begins with *head*; None without one.

    Unfolded (RFC 5322 §2.2.3), without white space around it, its case kept. An empty one is none, and so is one that
    does not end within the first `HEAD_SIZE` bytes: half of it would stand for other messages too.
    """
    head = head[:HEAD_SIZE]
    end = _HEADER_END.search(head)
    header = head if end is None else head[: end.start()]
    found = _MESSAGE_ID.search(header)
    if found is None or (end is None and found.end() == len(head) == HEAD_SIZE):
        return None
    return _FOLD.sub(b"", found[1]).strip(b" \t\r\n") or None
