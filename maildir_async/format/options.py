"""What may be asked of one append: the options by name, and what makes each of them valid. Pure."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict

from maildir_async.format.content import Newline
from maildir_async.format.delivered import Durability

__all__ = [
    "DEADLINE",
    "AppendOptions",
    "MessageOptions",
    "check_deadline",
    "check_durability",
    "check_size_limit",
    "nanoseconds",
]

#: The Maildir page gives a delivery 24 hours: sweepers take what has been in tmp/ for 36.
DEADLINE: Final = timedelta(hours=24)


class MessageOptions(TypedDict, total=False):
    """The options of `maildir_async.Maildir.append` that make sense for many messages; they are explained there."""

    flags: str
    received_at: datetime | float | None
    prefix: bytes
    newline: Newline
    durability: Durability | None
    size_limit: int | None
    deadline: timedelta


class AppendOptions(MessageOptions, total=False):
    """All of them."""

    on_progress: Callable[[int], object] | None


def check_deadline(deadline: timedelta) -> timedelta:
    """Return *deadline*; ValueError unless it lies in the future."""
    if deadline <= timedelta():
        raise ValueError(f"deadline must be positive, not {deadline}")
    return deadline


def check_size_limit(size_limit: int | None) -> int | None:
    """Return *size_limit*; ValueError if it is negative."""
    if size_limit is not None and size_limit < 0:
        raise ValueError(f"size_limit must not be negative: {size_limit}")
    return size_limit


def check_durability(durability: Durability) -> Durability:
    """Return *durability*; TypeError for anything but a `Durability`: a misspelt one must not mean a weak one."""
    if not isinstance(durability, Durability):
        raise TypeError(f"durability must be a Durability, not {durability!r}")
    return durability


def nanoseconds(received_at: datetime | float | None) -> int | None:
    """Return a time in nanoseconds since the epoch. A datetime without a zone is local time, as always in Python."""
    if received_at is None:
        return None
    if isinstance(received_at, datetime):
        return (received_at.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 1000
    return round(received_at * 1_000_000) * 1000  # a float of today's seconds holds microseconds, not nanoseconds


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
