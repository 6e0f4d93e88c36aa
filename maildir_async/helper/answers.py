"""Outcomes as plain values: what a helper process answers, and what is made of that on the other side. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from maildir_async.errors import (
    AppendError,
    BusyError,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    Stage,
    UncertainAppendError,
)
from maildir_async.format.delivered import Delivered, Durability

__all__ = ["delivered_from", "delivered_to", "error_from", "error_to"]

_ERRORS: Final[dict[str, type[MaildirError]]] = {
    error.__name__: error for error in (MaildirError, NotAMaildirError, AppendError, BusyError, MessageTooLargeError)
}


def delivered_to(delivered: Delivered) -> tuple[Any, ...]:
    """Return *delivered* as plain values."""
    return (
        delivered.path,
        delivered.key,
        delivered.flags,
        delivered.size,
        delivered.wire_size,
        delivered.durability.value,
        delivered.queued_s,
        delivered.commit_s,
        delivered.warnings,
    )


def delivered_from(
    path: str,
    key: str,
    flags: str,
    size: int,
    wire_size: int,
    durability: str,
    queued_s: float,
    commit_s: float,
    warnings: tuple[str, ...],
    *,
    folder: str | None = None,
    keywords: tuple[str, ...] = (),
) -> Delivered:
    """Return what `delivered_to` was given: *folder* and *keywords* do not travel, since both sides know them."""
    level = Durability(durability)
    return Delivered(path, key, folder, flags, keywords, size, wire_size, level, False, queued_s, commit_s, warnings)


def error_to(error: MaildirError) -> tuple[Any, ...]:
    """Return *error* as plain values, with its cause if the system has said that."""
    cause = error.__cause__
    return (
        type(error).__name__,
        str(error),
        error.errno,
        error.stage,
        error.path if isinstance(error, UncertainAppendError) else None,
        tuple(getattr(error, "__notes__", ())),
        (cause.errno, str(cause.strerror)) if isinstance(cause, OSError) and cause.errno is not None else None,
    )


def error_from(
    kind: str,
    text: str,
    number: int | None,
    stage: Stage | None,
    path: str | None,
    notes: Iterable[str],
    cause: tuple[int, str] | None,
) -> MaildirError:
    """Return the error that `error_to` was given."""
    error: MaildirError
    if path is not None:
        error = UncertainAppendError(text, path=path, errno=number, stage=stage)
    else:
        error = _ERRORS[kind](text, errno=number, stage=stage)
    for note in notes:
        error.add_note(note)
    if cause is not None:
        error.__cause__ = OSError(*cause)
    return error
