"""Messages that say of themselves what they have to be, and the notes on what became of them."""

import hashlib
import os
import re
from typing import Final

__all__ = ["MARK", "Notes", "is_whole", "message", "number_of"]

MARK: Final = b"X-Soak: "
_HEAD: Final = re.compile(rb"^X-Soak: (\d+) (\d+)$", re.MULTILINE)


def message(number: int, lines: int = 50) -> bytes:
    """Return the message of that *number*: it is told from any other, and so is each part of it."""
    line = hashlib.sha256(b"%d" % number).hexdigest().encode() + b"\n"
    return MARK + b"%d %d\nSubject: soak\n\n" % (number, lines) + line * lines


def number_of(stored: bytes) -> tuple[int, int]:
    """Return the number of a stored message and how many lines it has; (-1, 0) where it does not say."""
    found = _HEAD.search(stored[:4096].replace(b"\r\n", b"\n"))
    return (int(found[1]), int(found[2])) if found else (-1, 0)


def is_whole(stored: bytes) -> bool:
    """Return whether *stored* is its message, byte for byte, below what a mail server has put before it."""
    number, lines = number_of(stored)
    text = stored.replace(b"\r\n", b"\n")
    return number >= 0 and text[text.index(MARK) :] == message(number, lines)


class Notes:
    """What the program tells the reader, a line each: an outcome, the maildir, the message's number.

    ``A`` is acknowledged, ``R`` refused, ``U`` uncertain (it is visible), ``C`` cancelled (it is there once, or not).

    Args:
        path: their file; several processes may append to it.

    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def tell(self, outcome: str, maildir: str, number: int) -> None:
        """Write one. It goes to the page cache of another file system than the mail's."""
        os.write(self._fd, b"%s %s %d\n" % (outcome.encode(), maildir.encode(), number))
