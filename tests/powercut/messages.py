"""The messages of the rig: each is known by its number and its size, so that whoever finds a file can tell it whole."""

import base64
import functools
import random
import re
from typing import Final

__all__ = ["SHORT", "STREAMED", "message", "number_of"]

#: Bytes, about. The second is received in several chunks.
SHORT: Final = 3_000
STREAMED: Final = 1_100_000

_LINE: Final = re.compile(rb"Subject: message (\d+) of (\d+)\n")


@functools.lru_cache(512)
def message(number: int, size: int = SHORT) -> bytes:
    """Return message *number*, of about *size* bytes. No line of it begins with ``From``."""
    head = b"Subject: message %d of %d\nFrom: rig@example.org\n\n" % (number, size)
    body = base64.encodebytes(random.Random(number).randbytes(max(0, size - len(head)) * 3 // 4))
    return head + body.replace(b"\nFrom", b"\nfrom") + b"the end\n"


def number_of(content: bytes) -> int | None:
    """Return which message *content* is, from its first byte to its last; None for anything else."""
    found = _LINE.match(content)
    if found is None:
        return None
    number, size = int(found[1]), int(found[2])
    return number if size <= 8 * STREAMED and content == message(number, size) else None
