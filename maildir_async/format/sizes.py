"""Sizes as people write them: 52428800, 50M, 1.5G, 64KiB. Pure."""

import re
from typing import Final

__all__ = ["LARGEST_SIZE", "size_of"]

#: No size is larger: a float holds each up to there, and so does every off_t.
LARGEST_SIZE: Final = 2**53 - 1

_WRITTEN: Final = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,16})?) ?(?:([KMGT])(IB|B)?|B)?")
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_of(text: str) -> int:
    """Return a number of bytes: digits, perhaps with a fraction, and K, M, G or T, or KiB, MiB, GiB or TiB.

    A unit is binary, as those of Postfix's neighbours (Dovecot's ``quota_rule``, ``ls -h``) are; capital or small. A
    fraction of a byte is left out. ValueError, which names *text*, for what is no such size: negative, too large, a
    fraction of bytes, or MB, which is a million to some, and 2**20 to others.
    """
    found = _WRITTEN.fullmatch(text.upper()) if text.isascii() else None
    if found is None:
        raise ValueError(f"a size in bytes, such as 52428800, 50M or 1.5GiB, is wanted, not {text!r}")
    number, unit, suffix = found[1], found[2] or "", found[3]
    if suffix == "B":
        raise ValueError(f"{text!r} is ambiguous: {number}{unit} or {number}{unit}iB is in powers of 1024")
    if not unit and "." in number:
        raise ValueError(f"a size in bytes is a whole number, or has a unit such as 1.5M, not {text!r}")
    whole, _, part = number.partition(".")
    size: int = int(whole + part) * _UNITS[unit] // 10 ** len(part)
    if size > LARGEST_SIZE:
        raise ValueError(f"a size in bytes of at most 8191T is wanted, not {text!r}")
    return size
