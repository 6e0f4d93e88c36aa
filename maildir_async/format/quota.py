"""The Maildir++ quota: what a maildir may hold, and the file ``maildirsize`` that says what it does hold. Pure.

The file's first line has the limits, such as ``10000000S,1000C`` for bytes and messages. Each other line has signed
numbers of bytes and of messages, whose sum is what the maildir holds (Courier's README.maildirquota).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from maildir_async.format.given import given
from maildir_async.format.options import check_callback, check_count
from maildir_async.format.sizes import LARGEST_SIZE, size_of

T = TypeVar("T")

__all__ = [
    "LARGEST",
    "OVER",
    "OVER_FOR_GOOD",
    "Held",
    "Limits",
    "Quota",
    "QuotaUsage",
    "format_held",
    "limits_of",
    "parse_held",
    "parse_limits",
    "quota_of",
]

#: Bytes of the file from which on it is counted anew, and is a single line again.
LARGEST: Final = 5120

OVER: Final = "452 4.2.2 Mailbox full"
OVER_FOR_GOOD: Final = "552 5.2.2 Mailbox full"

_REPLY: Final = re.compile(r"([45])\d\d \1\.\d{1,3}\.\d{1,3} [!-~][ -~]*")
_LIMIT: Final = re.compile(r"(\d{1,18})([SC])")
_WRITTEN: Final = re.compile(r"([0-9]{1,16})([SC])")
_HEAD: Final = re.compile(r"(?:[0-9]{1,18}[A-Z],?)*")
_LINE: Final = re.compile(r"[ \t]*([+-]?\d{1,18})[ \t]+([+-]?\d{1,18})[ \t]*")


class Limits(NamedTuple):
    """What a maildir may hold; 0 is no limit.

    Attributes:
        bytes: of all its messages.
        messages: how many.

    """

    bytes: int = 0
    messages: int = 0

    def refuse(self, size: int, count: int) -> bool:
        """Whether so much is more than it may hold. Exactly as much fits."""
        return 0 < self.bytes < size or 0 < self.messages < count


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """What a maildir holds of what it may.

    Attributes:
        path: of the maildir.
        bytes: in all its messages.
        messages: how many.
        byte_limit, message_limit: what it may hold; 0 is no limit.

    """

    path: str
    bytes: int
    messages: int
    byte_limit: int
    message_limit: int

    @property
    def fraction(self) -> float:
        """The part of the limit that is taken, of the one that is nearer; 0 where there is none."""
        used = ((self.bytes, self.byte_limit), (self.messages, self.message_limit))
        return max((held / limit for held, limit in used if limit), default=0.0)


class Quota:
    """What a maildir may hold, its folders together (Maildir++). `Maildir(quota=…)` keeps it.

    The file ``maildirsize`` in the maildir says what it holds; Dovecot and Courier keep it likewise. A message is
    refused before anything of it is written, if its size is known, and else before it becomes visible; equal to the
    limit fits. Deliveries under way in this process count, so that many at once cannot all pass. Those of other
    processes count once they are recorded, as the protocol has it: it has no lock.

    Args:
        bytes: of all messages, or None for no limit.
        messages: how many, or None for no limit. With neither the limits are those that the file says.
        ignore: folders, and those below them, that do not count: Courier's Trash.
        over: what a client is told, a reply that begins with 4 or 5 and an enhanced code (RFC 3463). One that
            begins with 5 has the sender told at once; one with 4 has him told after days, unless there is room before.
        on_warning: called on the loop with a `QuotaUsage` when a delivery passes one of *warn_at*. What it raises is
            told to the loop's exception handler.
        warn_at: parts of the limit, between 0 and 1.

    """

    __slots__ = ("ignore", "limits", "on_warning", "over", "warn_at")

    def __init__(
        self,
        bytes: int | None = None,  # noqa: A002 the unit is its name
        messages: int | None = None,
        *,
        ignore: Iterable[str] = ("Trash",),
        over: str = OVER,
        on_warning: Callable[[QuotaUsage], object] | None = None,
        warn_at: Iterable[float] = (0.8, 0.95),
    ) -> None:
        #: None: the file says them.
        self.limits: Limits | None = None
        if bytes is not None or messages is not None:
            self.limits = Limits(
                0 if bytes is None else check_count("bytes", bytes, least=1),
                0 if messages is None else check_count("messages", messages, least=1),
            )
        if isinstance(ignore, str):
            raise TypeError(f"ignore must be an iterable of folders, not the str {given(ignore)}")
        self.ignore = _items("ignore", ignore, "folders")
        for folder in self.ignore:
            if not isinstance(folder, str):
                raise TypeError(f"ignore must be folders' names, not {given(folder)}")
        if not isinstance(over, str):
            raise TypeError(f"over must be a str, not {given(over)}")
        if not _REPLY.fullmatch(over):
            raise ValueError(f"over must be a reply such as {OVER!r}, not {given(over)}")
        self.over = over
        self.on_warning = check_callback("on_warning", on_warning)
        parts = _items("warn_at", warn_at, "parts")
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, int | float):
                raise TypeError(f"warn_at must be numbers, not {given(part)}")
            if not 0 < part <= 1:
                raise ValueError(f"warn_at must be parts between 0 and 1, not {given(part)}")
        self.warn_at = tuple(sorted(parts))

    def ignores(self, folder: str | None) -> bool:
        """Whether what is in *folder* does not count."""
        return folder is not None and any(folder == name or folder.startswith(f"{name}/") for name in self.ignore)


def _items(name: str, values: Iterable[T], kind: str) -> tuple[T, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name} must be an iterable of {kind}, not {given(values)}") from None


def limits_of(text: str) -> Limits | None:
    """Return the limits that a person has written: ``2G``, ``1.5G,10000C``, ``10000C``; None for ``file``.

    A number is bytes, as `size_of` takes them or with an S as in maildirsize, or messages with a C. ValueError for
    anything else, and for 0.
    """
    if text == "file":
        return None
    limits = {"S": 0, "C": 0}
    for piece in map(str.strip, text.split(",")):
        found = _WRITTEN.fullmatch(piece.upper()) if piece.isascii() else None  # a long s is an S in capitals
        try:
            number = size_of(piece) if found is None else int(found[1])
        except ValueError as exc:
            raise ValueError(f"a quota such as 2G,10000C is wanted, or file, not {given(text)}: {exc}") from None
        if not 0 < number <= LARGEST_SIZE:
            raise ValueError(f"a quota such as 2G,10000C is wanted, or file, not {given(text)}")
        if limits[kind := "S" if found is None else found[2]]:
            raise ValueError(f"a quota has one limit of each kind, not {given(text)}")
        limits[kind] = number
    return Limits(limits["S"], limits["C"])


def quota_of(text: str | None, *, is_permanent: bool) -> Quota | None:
    """Return the quota that a person has written, as `limits_of` takes it; None where there is none."""
    if text is None:
        return None
    limits = limits_of(text)
    size, count = (None, None) if limits is None else (limits.bytes or None, limits.messages or None)
    return Quota(size, count, over=OVER_FOR_GOOD if is_permanent else OVER)


class Held(NamedTuple):
    """What the file says.

    Attributes:
        limits: of its first line.
        bytes, messages: the sums.
        lines: how many were added up.

    """

    limits: Limits
    bytes: int
    messages: int
    lines: int


def parse_held(data: bytes) -> Held | None:
    """Return what *data*, the whole file, says; None for what has to be counted anew.

    That is a file of `LARGEST` bytes and more, one with a line that is none, and one whose sum is below zero: programs
    that moved messages have left such. A last line without its end is another's, who is just writing it.
    """
    if len(data) >= LARGEST or b"\0" in data:
        return None
    try:
        head, *lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        return None
    lines = lines[:-1]
    if not lines or not _HEAD.fullmatch(head.strip()):
        return None
    size = count = 0
    for line in lines:
        numbers = _LINE.fullmatch(line.rstrip("\r"))
        if numbers is None:
            return None
        size += int(numbers[1])
        count += int(numbers[2])
    if size < 0 or count < 0:
        return None
    return Held(parse_limits(data), size, count, len(lines))


def parse_limits(data: bytes) -> Limits:
    """Return the limits in the first line of *data*; those that no line says are none."""
    head = data.partition(b"\n")[0].decode("ascii", "replace")
    given = {letter: int(number) for number, letter in _LIMIT.findall(head)}
    return Limits(given.get("S", 0), given.get("C", 0))


def format_held(limits: Limits, size: int, count: int) -> bytes:
    """Return the file after a count. A limit that there is not is left out, as Courier does, but for one of the two."""
    head = ",".join(f"{limit}{letter}" for limit, letter in zip(limits, "SC", strict=True) if limit)
    return f"{head or '0S'}\n{size} {count}\n".encode()
