"""The file by which Dovecot keeps what is subscribed to: pure."""

from collections.abc import Sequence
from typing import Final

__all__ = ["with_subscription"]

#: How the file begins whose lines have the parts of a name between TABs.
_VERSION_2: Final = b"V\t2\n\n"


def with_subscription(data: bytes | None, parts: Sequence[str]) -> bytes | None:
    """Return the file *data* (None if there is none) with a folder added, or None if it has that already.

    Args:
        data: with a version line, or as old Dovecots write it, with a dot between the parts: it stays what it is.
        parts: of the folder's name, as they are on the disk: without dots and control characters.

    """
    is_new = data is None or data.startswith(_VERSION_2)
    found = (data or b"").removeprefix(_VERSION_2)
    lines = [line.removesuffix(b"\r") for line in found.split(b"\n")]
    line = (b"\t" if is_new else b".").join(part.encode() for part in parts)
    if line in lines:
        return None
    end = b"\n" if found and not found.endswith(b"\n") else b""
    return (_VERSION_2 if is_new else b"") + found + end + line + b"\n"
