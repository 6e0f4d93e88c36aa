"""What may be asked of one append: the options by name, and what makes each of them valid. Pure."""

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypedDict, TypeVar

from maildir_async.format.content import Newline
from maildir_async.format.delivered import Durability
from maildir_async.format.given import given

__all__ = [
    "DEADLINE",
    "MessageOptions",
    "check_age",
    "check_bool",
    "check_callback",
    "check_count",
    "check_deadline",
    "check_detail_folder",
    "check_duplicate_key",
    "check_durability",
    "check_file_mode",
    "check_hostname",
    "check_keep",
    "check_path",
    "check_size_limit",
    "check_wait",
    "moment_of",
    "nanoseconds",
]

F = TypeVar("F", bound=Callable[..., object])

#: The Maildir page gives a delivery 24 hours: sweepers take what has been in tmp/ for 36.
DEADLINE: Final = timedelta(hours=24)

DetailFolder = Literal["existing", "create"]
"""``existing``: the folder that a detail names, where there is one. ``create``: that folder, which is made."""

DETAIL_FOLDERS: Final[tuple[DetailFolder, ...]] = ("existing", "create")


class MessageOptions(TypedDict, total=False):
    """The options of `maildir_async.Maildir.append` that make sense for many messages; they are explained there."""

    folder: str | Sequence[str] | None
    flags: str
    keywords: Iterable[str]
    received_at: datetime | float | None
    prefix: bytes
    newline: Newline
    strip_from_line: bool
    durability: Durability | None
    size_limit: int | None
    deadline: timedelta
    duplicate_key: bytes | str | bool | None


# Each returns what it was given as an exact str, int or bool, so that nothing further down (marshal, for one, which
# speaks to the helper process) meets a class derived from one; and each error names the argument and what it was.


def check_path(path: "str | os.PathLike[str]", name: str = "path") -> str:
    """Return *path* as a str. TypeError for anything but a path of text, ValueError for what no file can be called."""
    found: object = path.__fspath__() if isinstance(path, os.PathLike) else path
    if not isinstance(found, str):
        raise TypeError(f"{name} must be str or os.PathLike[str], not {type(found).__name__}: {given(found)}")
    found = str.__str__(found)
    if not found or "\0" in found:
        raise ValueError(f"{name} is not a path: {given(found)}")
    try:
        os.fsencode(found)
    except UnicodeEncodeError as exc:  # a lone surrogate that stands for no byte
        raise ValueError(f"{name} cannot be encoded: {given(found)}: {exc.reason}") from None
    return found


def check_hostname(hostname: str | None) -> str | None:
    """Return *hostname*. TypeError unless it is a str or None, ValueError if it cannot be encoded."""
    if hostname is None:
        return None
    if not isinstance(hostname, str):
        raise TypeError(f"hostname must be a str or None, not {given(hostname)}")
    hostname = str.__str__(hostname)
    try:
        os.fsencode(hostname)
    except UnicodeEncodeError as exc:
        raise ValueError(f"hostname cannot be encoded: {given(hostname)}: {exc.reason}") from None
    return hostname


def check_bool(name: str, value: bool) -> bool:
    """Return *value*; TypeError for anything but True and False: the word "no" must not mean yes."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {given(value)}")
    return value


def check_count(name: str, value: int, *, least: int) -> int:
    """Return *value*. TypeError unless it is an integer, ValueError if it is less than *least*."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an int, not {given(value)}")
    value = operator.index(value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {given(value)}")
    return value


def check_callback(name: str, value: F | None) -> F | None:
    """Return *value*; TypeError unless it can be called, or is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, not {given(value)}")
    return value


def check_file_mode(file_mode: int) -> int:
    """Return *file_mode*. TypeError unless it is an integer, ValueError for more than read and write bits."""
    file_mode = check_count("file_mode", file_mode, least=0)
    if file_mode & ~0o666:
        raise ValueError(f"file_mode must be read and write bits only, not {file_mode:#o}")
    return file_mode


def check_age(older_than: timedelta) -> float:
    """Return *older_than* in seconds. TypeError unless it is a timedelta, ValueError if it is negative."""
    if not isinstance(older_than, timedelta):
        raise TypeError(f"older_than must be a timedelta, not {given(older_than)}")
    if older_than < timedelta():
        raise ValueError(f"older_than must not be negative: {older_than}")
    return older_than.total_seconds()


def check_deadline(deadline: timedelta) -> timedelta:
    """Return *deadline*. TypeError unless it is a timedelta, ValueError unless it lies in the future."""
    if not isinstance(deadline, timedelta):
        raise TypeError(f"deadline must be a timedelta, not {given(deadline)}")
    if deadline <= timedelta():
        raise ValueError(f"deadline must be positive, not {deadline}")
    return deadline


def check_detail_folder(value: Any) -> DetailFolder | None:
    """Return *value*; ValueError for what is neither None nor one of `DETAIL_FOLDERS`."""
    for kind in DETAIL_FOLDERS:
        if value == kind:
            return kind
    if value is not None:
        raise ValueError(f"detail_folder must be one of {', '.join(DETAIL_FOLDERS)} or None, not {value!r}")
    return None


def check_wait(name: str, wait: timedelta) -> float:
    """Return the seconds that the option *name* says. TypeError unless it is a timedelta, ValueError if negative."""
    if not isinstance(wait, timedelta):
        raise TypeError(f"{name} must be a timedelta, not {wait!r}")
    if wait < timedelta():
        raise ValueError(f"{name} must not be negative: {wait}")
    return wait.total_seconds()


def check_size_limit(size_limit: int | None) -> int | None:
    """Return *size_limit*. TypeError unless it is an integer or None, ValueError if it is negative."""
    return None if size_limit is None else check_count("size_limit", size_limit, least=0)


def check_durability(durability: Durability) -> Durability:
    """Return *durability*; TypeError for anything but a `Durability`: a misspelt one must not mean a weak one."""
    if not isinstance(durability, Durability):
        raise TypeError(f"durability must be a Durability, not {given(durability)}")
    return durability


def check_duplicate_key(duplicate_key: bytes | str | bool) -> bytes | None:
    """Return *duplicate_key*, text as UTF-8; None for True, which stands for the Message-ID.

    TypeError unless it is bytes, a str or True. ValueError for an empty one, or text that cannot be encoded.
    """
    if duplicate_key is True:
        return None
    if isinstance(duplicate_key, str):
        try:
            key = duplicate_key.encode(errors="surrogateescape")
        except UnicodeEncodeError as exc:  # a lone surrogate that stands for no byte
            raise ValueError(f"duplicate_key cannot be encoded: {given(duplicate_key)}: {exc.reason}") from None
    elif isinstance(duplicate_key, bytes):
        key = bytes(duplicate_key)
    else:
        raise TypeError(f"duplicate_key must be bytes, a str, True or None, not {given(duplicate_key)}")
    if not key:
        raise ValueError("duplicate_key must not be empty: all messages would be one")
    return key


def check_keep(keep: timedelta) -> float:
    """Return *keep* in seconds. TypeError unless it is a timedelta, ValueError unless it is positive."""
    if not isinstance(keep, timedelta):
        raise TypeError(f"keep must be a timedelta, not {given(keep)}")
    if keep <= timedelta():
        raise ValueError(f"keep must be positive, not {keep}")
    return keep.total_seconds()


def nanoseconds(received_at: datetime | float | None) -> int | None:
    """Return a time in nanoseconds since the epoch. A datetime without a zone is local time, as always in Python.

    TypeError unless it is a datetime, a number or None; ValueError for what lies outside the years 1 to 9999.
    """
    if received_at is None:
        return None
    try:
        micros = _microseconds(received_at)
    except (OverflowError, ValueError, OSError) as exc:  # NaN, infinity; what astimezone() does near both ends
        raise ValueError(f"received_at is no time that can be told: {given(received_at)}: {exc}") from None
    if not _FIRST <= micros <= _LAST:
        raise ValueError(f"received_at lies outside the years 1 to 9999: {given(received_at)}")
    return micros * 1000


def moment_of(ns: int) -> datetime:
    """Return the time that is so many nanoseconds after the epoch, to the microsecond, in UTC.

    OverflowError for what lies outside the years 1 to 9999.
    """
    return _EPOCH + timedelta(microseconds=ns // 1000)


def _microseconds(received_at: datetime | float) -> int:
    if isinstance(received_at, datetime):
        return int((received_at.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1))
    kind = type(received_at)
    if not isinstance(received_at, bool):
        if hasattr(kind, "__index__"):
            return operator.index(received_at) * 1_000_000  # type: ignore[arg-type, unused-ignore]  # it has one
        if hasattr(kind, "__float__"):
            seconds = float(received_at)
            # A float of today's seconds holds microseconds, not nanoseconds.
            return round(seconds * 1_000_000) if math.isfinite(seconds) else round(seconds)  # which raises
    raise TypeError(f"received_at must be a datetime, a number of seconds or None, not {given(received_at)}")


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
