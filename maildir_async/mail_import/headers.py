"""What mail readers write into messages of an mbox: flags, keywords; and what a message is without it. Pure."""

import contextlib
import hashlib
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final, NamedTuple, Protocol

__all__ = ["HEAD_MOST", "READERS_FIELD", "Hash", "Marks", "begin_digest", "from_line_date", "marks_of"]

#: Bytes in which a header has to end for what readers write into it to be looked at.
HEAD_MOST: Final = 1 << 16

# Each of these begins with a line end, which is found fast: most messages have none of these fields.

_MARK: Final = re.compile(rb"\n(?i:(Status|X-Status|X-Keywords|X-Mozilla-Status))[ \t]*:[ \t]*([^\r\n]*)")

#: What readers change in place, so that it does not make another message of one.
_CHANGED: Final = re.compile(
    rb"\n(?i:(?:X-)?Status|X-Keywords|X-UID|X-IMAP(?:base)?|Content-Length|Lines|X-Mozilla-(?:Status2?|Keys))[ \t]*:"
    rb"[^\n]*(?:\n[ \t]+[^\r\n][^\n]*)*"
)

#: Where a field of either kind may begin, in a header with a line end before it.
READERS_FIELD: Final = re.compile(rb"\n(?i:(?:X-)?Status|X-Keywords|X-UID|X-IMAP|Content-Length|Lines|X-Mozilla-)")

#: Letters of Status and X-Status (mutt, c-client), and bits of X-Mozilla-Status, as flags of a Maildir.
_STATUS: Final = {"R": "S"}
_X_STATUS: Final = {"A": "R", "F": "F", "T": "D", "D": "T"}
_MOZILLA: Final = {0x1: "S", 0x2: "R", 0x4: "F", 0x8: "T", 0x1000: "P"}

_DATE: Final = re.compile(
    r"(?:(?P<month>[A-Z][a-z]{2})\s+(?P<day>\d{1,2})|(?P<day2>\d{1,2})\s+(?P<month2>[A-Z][a-z]{2})\s+(?P<year2>\d{4}))"
    r"\s+(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?P<rest>.*)",
    re.DOTALL,
)
_PLAIN_DATE: Final = re.compile(rb"([A-Z][a-z][a-z]) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ZONE: Final = re.compile(r"([+-])(\d\d)(\d\d)")
_NAMED_ZONES: Final = {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7}


class Hash(Protocol):
    """A hash being made."""

    def update(self, data: bytes, /) -> None:
        """Take more."""
        ...

    def digest(self) -> bytes:
        """Return it."""
        ...


class Marks(NamedTuple):
    """Flags and keywords of a message."""

    flags: str
    keywords: tuple[str, ...]


NO_MARKS: Final = Marks("", ())


def _head_of(first: bytes) -> bytes:
    """Return the header in *first*, with a line end before each line; nothing if its end cannot be seen."""
    if first.startswith((b"\n", b"\r\n")):  # it has none, and what looks like one is text
        return b""
    end = first.find(b"\n\n", 0, HEAD_MOST)
    if (other := first.find(b"\n\r\n", 0, end if end >= 0 else HEAD_MOST)) >= 0:
        end = other
    return b"\n" + first[:end] if end >= 0 else b""


def marks_of(first: bytes) -> Marks:
    """Return the flags and keywords that the header at the beginning of *first* tells of, if its end can be seen."""
    flags, keywords = "", list[str]()
    for match in _MARK.finditer(_head_of(first)):
        name, value = match[1].lower(), match[2].decode("latin-1").strip()
        if name == b"status":
            flags += "".join(_STATUS.get(letter, "") for letter in value)
        elif name == b"x-status":
            flags += "".join(_X_STATUS.get(letter, "") for letter in value)
        elif name == b"x-keywords":
            keywords += value.split()
        elif re.fullmatch(r"[0-9a-fA-F]{4}", value):
            flags += "".join(flag for bit, flag in _MOZILLA.items() if int(value, 16) & bit)
    if not flags and not keywords:
        return NO_MARKS
    return Marks("".join(sorted(set(flags))), tuple(dict.fromkeys(keywords)))


def begin_digest(first: bytes, *, is_plain: bool = False) -> "Hash":
    """Return the hash of a message that begins with *first*: all of it, or `HEAD_MOST` bytes at least.

    What readers write into a header is left out: a message that has been read since is the same message. With
    *is_plain* it is known that there is nothing of it.
    """
    if is_plain or not _CHANGED.search(head := _head_of(first)):
        return hashlib.sha256(first)  # the fastest there is, where the processor has it
    made = hashlib.sha256(_CHANGED.sub(b"", head)[1:])
    made.update(memoryview(first)[len(head) - 1 :])
    return made


def from_line_date(line: bytes) -> datetime | None:
    """Return the date of a From line, in UTC where it tells no zone; None if it has none that there can be."""
    if plain := _PLAIN_DATE.fullmatch(line, len(line) - 20):  # as nearly all are
        with contextlib.suppress(ValueError):
            day, hour, minute, second, year = map(int, plain.groups()[1:])
            return datetime(year, _MONTHS.index(plain[1].decode()) + 1, day, hour, minute, second, tzinfo=UTC)
    text = line.decode("latin-1")
    found = None
    for found in _DATE.finditer(text):  # noqa: B007 the last one: a sender may look like one
        pass
    if found is None:
        return None
    rest = found["rest"]
    told = found["year2"] or (re.search(r"\b\d{4}\b(?!.*\b\d{4}\b)", re.sub(r"[+-]\d{4}", "", rest)) or [""])[0]
    zone = _ZONE.search(rest)
    named = next((hours for name, hours in _NAMED_ZONES.items() if re.search(rf"\b{name}\b", rest)), 0)
    offset = timedelta(hours=named)
    if zone is not None:
        offset = timedelta(hours=int(zone[2]), minutes=int(zone[3])) * (-1 if zone[1] == "-" else 1)
    try:
        return datetime(
            int(told),
            _MONTHS.index(found["month"] or found["month2"]) + 1,
            int(found["day"] or found["day2"]),
            int(found["hour"]),
            int(found["minute"]),
            min(int(found["second"] or 0), 59),  # a leap second
            tzinfo=timezone(offset),
        ).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
