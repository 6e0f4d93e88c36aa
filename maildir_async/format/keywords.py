"""IMAP keywords, and the file by which Dovecot keeps them as letters: pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from maildir_async.format.given import given

__all__ = ["LONGEST_LINE", "MOST", "check_keywords", "format_keywords", "key", "parse_keywords"]

#: Keywords that a folder can have: one for each of the letters ``a`` to ``z``.
MOST: Final = 26

#: Characters of a keyword that Dovecot takes over IMAP: its mail_max_keyword_length.
_LONGEST: Final = 50

#: A flag-keyword is an atom (RFC 9051, section 9): no SP, no control, none of ``(){%*"\\]``; ASCII.
_KEYWORD: Final = re.compile(r"[!#$&'+\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+")

#: Dovecot reads the file through a buffer of so many bytes, and stops at a line that it cannot hold.
LONGEST_LINE: Final = 1024


def check_keywords(keywords: Iterable[str]) -> tuple[str, ...]:
    """Return *keywords* without those that differ from an earlier one in case only.

    Raises TypeError for what is no sequence of strings (a string is none), and ValueError for what is no IMAP
    keyword, for one of more than 50 characters, and for more than 26 keywords.
    """
    if isinstance(keywords, str | bytes):
        raise TypeError(f"keywords must be a sequence of strings, not one: {given(keywords)}")
    try:
        names = tuple(keywords)
    except TypeError:
        raise TypeError(f"keywords must be a sequence of strings, not {given(keywords)}") from None
    found = dict[bytes, str]()
    for keyword in names:
        if not isinstance(keyword, str):
            raise TypeError(f"keywords must be strings, not {type(keyword).__name__}: {given(keyword)}")
        if not _KEYWORD.fullmatch(keyword):
            raise ValueError(f"keywords: {given(keyword)} is no IMAP keyword")
        if len(keyword) > _LONGEST:
            raise ValueError(f"keywords: {given(keyword)} has more than {_LONGEST} characters")
        found.setdefault(key(keyword), str.__str__(keyword))
    if len(found) > MOST:
        raise ValueError(f"keywords: a folder has at most {MOST}, and these are {len(found)}")
    return tuple(found.values())


def key(name: str) -> bytes:
    """Return what is the same for names that differ in the case of ASCII letters only, as Dovecot compares them."""
    return name.encode("latin-1").lower()


def parse_keywords(data: bytes) -> dict[int, str]:
    """Return the names of a ``dovecot-keywords`` file by index, as Dovecot understands it.

    Lines that it skips are skipped: without a space, with an index that is no number or more than 25, without a name,
    or with one that a line before has. Of two names with one index the later one has it. A last line without its line
    end does not count. Names are decoded as Latin-1, so that `format_keywords` gives back any bytes.
    """
    names, seen = dict[int, str](), set[bytes]()
    for line in data.split(b"\n")[:-1]:
        if len(line) >= LONGEST_LINE:
            break
        # CRs before a NUL too: they are gone once the file has been written, by anyone, and read again.
        number, _, name = line.removesuffix(b"\r").partition(b"\0")[0].rstrip(b"\r").partition(b" ")
        # "isdigit" of bytes is ASCII's. More digits than that are no index, whatever they are.
        if not number.isdigit() or len(number) > LONGEST_LINE or int(number) >= MOST:
            continue
        if not name or name.lower() in seen:
            continue
        seen.add(name.lower())
        names[int(number)] = name.decode("latin-1")
    return names


def format_keywords(names: Mapping[int, str]) -> bytes:
    """Return the file that has these *names* by index."""
    return b"".join(b"%d %s\n" % (index, names[index].encode("latin-1")) for index in sorted(names))
