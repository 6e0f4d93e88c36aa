"""Names of messages read as they are found, whoever gave them. Pure."""

import functools
import re
from typing import Final, NamedTuple

from maildir_async.format.names import FLAGS

__all__ = ["Info", "info_of", "letters_of", "said_size", "said_sizes", "sizes_of", "with_sizes"]

#: An attribute of a name. Whoever reads one takes the digits up to the next comma, or to the end (Dovecot's
#: ``maildir_filename_get_size``).
_ATTRIBUTE: Final = re.compile(r",([SW])=([^,]*)")
_DIGITS: Final = re.compile(r"[0-9]{1,18}")

#: Letters that stand for keywords, as Dovecot has them.
KEYWORD_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


class Info(NamedTuple):
    """What follows the colon of a name.

    Attributes:
        flags: the letters that are flags, as they stand there.
        keywords: the letters that stand for keywords.
        others: characters that are neither.
        right: the info as it should be: ``2,`` and the letters in order, each once.
        is_right: whether it is that.

    """

    flags: str
    keywords: str
    others: str
    right: str
    is_right: bool


@functools.lru_cache(1024)
def info_of(info: str) -> Info:
    """Return what *info*, all that follows the colon, says. One that does not begin with ``2,`` says nothing.

    What follows a second comma is not of the flags, and is kept as it is: Dovecot leaves such fields alone.
    """
    if not info.startswith("2,"):
        return Info("", "", info, "2,", False)
    letters, comma, rest = info[2:].partition(",")
    flags = "".join(letter for letter in letters if letter in FLAGS)
    keywords = "".join(letter for letter in letters if letter in KEYWORD_LETTERS)
    others = "".join(letter for letter in letters if letter not in FLAGS and letter not in KEYWORD_LETTERS)
    right = f"2,{''.join(sorted(set(flags + keywords)))}{comma}{rest}"
    return Info(flags, keywords, others, right, right == info)


def letters_of(name: str) -> str:
    """Return the letters of a whole name, flags and keywords, as they stand there: `Info` says which are which.

    They follow the first colon, as Dovecot reads a name (``maildir_filename_flags_get``): a later one is none.
    """
    info = name.partition(":")[2]
    return info[2:].partition(",")[0] if info.startswith("2,") else ""


def said_size(key: str) -> int | None:
    """Return what a name says by ``,S=``, as a quota counts it (Courier takes the last); None if it says nothing.

    *key* is the name before any colon.
    """
    if ",S=" not in key:
        return None
    digits = key.rpartition(",S=")[2].partition(",")[0]
    return int(digits) if _DIGITS.fullmatch(digits) else None


def said_sizes(key: str) -> dict[str, list[int | None]]:
    """Return what a name says by ``,S=`` and ``,W=``: each number in its order, None for what is none."""
    said: dict[str, list[int | None]] = {}
    if "=" in key:
        for letter, digits in _ATTRIBUTE.findall(key):
            said.setdefault(letter, []).append(int(digits) if _DIGITS.fullmatch(digits) else None)
    return said


def sizes_of(key: str) -> str:
    """Return the sizes that *key* says, as they stand there: for another key of the same message."""
    return "".join(f",{letter}={digits}" for letter, digits in _ATTRIBUTE.findall(key))


def with_sizes(key: str, size: int, wire_size: int | None) -> str:
    """Return *key* with the right sizes, once each, where the first of them stood.

    Without *wire_size*, a name has none: a reader then counts it. Other attributes stay.
    """
    right = f",S={size}" + (f",W={wire_size}" if wire_size is not None else "")
    first = _ATTRIBUTE.search(key)
    assert first is not None  # a name without sizes is never given any: a reader knows the message by its name
    return key[: first.start()] + right + _ATTRIBUTE.sub("", key[first.end() :])
