"""What can go wrong, what it leaves on disk, and what to tell an SMTP client.

::

    MaildirError                      base; every error below carries the same four facts
    ├── NotAMaildirError              the path is not a maildir, and may not be made one; nothing was written
    └── AppendError                   new/ and cur/ are unchanged, tmp/ is empty
        ├── BusyError                 the queue is full and the caller asked not to wait
        ├── KeywordsFullError         the folder has 26 keywords, and these are others; a ValueError too
        ├── MessageTooLargeError      the message passed its size limit
        ├── QuotaExceededError        the maildir's quota has no room for it
        └── UncertainAppendError      the message IS visible; a power cut may still lose it
"""

import errno as _errno
from collections.abc import MutableMapping
from typing import Literal

__all__ = [
    "SMTP_REPLIES",
    "AppendError",
    "BusyError",
    "KeywordsFullError",
    "MaildirError",
    "MessageTooLargeError",
    "NotAMaildirError",
    "NotTrustedError",
    "QuotaExceededError",
    "Stage",
    "UncertainAppendError",
    "append_error",
    "busy_error",
    "closed_error",
    "keywords_full_error",
    "too_large_error",
]

Stage = Literal[
    "queue",  # waiting for a place among the pending deliveries
    "receive",  # reading from the source
    "create",  # making the maildir or the file in tmp/, with its mode
    "write",  # its bytes and times
    "sync",
    "close",
    "publish",  # becoming visible in new/ or cur/
    "sync_directory",
]
"""Where a delivery stood when it failed."""

_STORAGE = "452 4.3.1 Insufficient system storage"
_CONFIGURATION = "451 4.3.5 Mailbox temporarily unavailable"
_MAILBOX = "451 4.2.0 Mailbox temporarily unavailable"
_MAILBOX_FULL = "452 4.2.2 Mailbox full"
_TOO_LARGE = "552 5.3.4 Message too large"

#: The reply where the cause has none of its own in `SMTP_REPLIES`. A wrong 4xx costs a retry, a wrong 5xx loses mail.
DEFAULT_SMTP_REPLY = "451 4.3.0 Message not stored, try again later"

SMTP_REPLIES: MutableMapping[int, str] = {
    _errno.ENOSPC: _STORAGE,
    _errno.EMFILE: _STORAGE,
    _errno.ENFILE: _STORAGE,
    _errno.ENOMEM: _STORAGE,
    _errno.EDQUOT: _MAILBOX_FULL,
    _errno.EACCES: _CONFIGURATION,
    _errno.EPERM: _CONFIGURATION,
    _errno.EROFS: _CONFIGURATION,
    _errno.ENOENT: _CONFIGURATION,
    _errno.ENOTDIR: _CONFIGURATION,
    _errno.EAGAIN: _MAILBOX,
    _errno.ESTALE: _MAILBOX,
    # Only these two cannot heal by waiting.
    _errno.EFBIG: _TOO_LARGE,
    _errno.ENAMETOOLONG: "554 5.3.5 Mailbox name too long",
}
"""errno → reply (RFC 5321 §4.2, RFC 3463). Read when `MaildirError.smtp_reply` is, so a site may change an
entry once, at start: ``SMTP_REPLIES[errno.EDQUOT] = "552 5.2.2 Mailbox full"``."""


class MaildirError(Exception):
    """Base of every error raised by this package for a reason outside the calling code.

    Attributes:
        errno: the system's error number, or None where no system call failed.
        stage: where the delivery stood, see `Stage`.

    """

    _smtp_reply: str | None = None

    def __init__(self, message: str, *, errno: int | None = None, stage: Stage | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.stage = stage

    @property
    def smtp_reply(self) -> str:
        """Code, enhanced code and text for the client: one line, without a path, host or errno in it."""
        if self._smtp_reply is not None:
            return self._smtp_reply
        return SMTP_REPLIES.get(self.errno or 0, DEFAULT_SMTP_REPLY)

    @property
    def temporary(self) -> bool:
        """Whether trying again later may succeed. True for everything not known to be permanent."""
        return not self.smtp_reply.startswith("5")


class NotAMaildirError(MaildirError):
    """The path is not a maildir: a file, or missing (or half made) with ``create=False``. Nothing was written."""

    _smtp_reply = _CONFIGURATION


class NotTrustedError(NotADirectoryError):
    """What root does not follow or enter, since another can have put it there. It becomes a `NotAMaildirError`."""


class AppendError(MaildirError):
    """The message was not delivered: ``new/`` and ``cur/`` are unchanged and ``tmp/`` is empty."""


class UncertainAppendError(AppendError):
    """The whole message is visible at `path`, but syncing its directory failed: a power cut may still lose it.

    Its reply is temporary: a client that sends again makes a duplicate at worst, never a loss.
    """

    _smtp_reply = DEFAULT_SMTP_REPLY

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        errno: int | None = None,
        stage: Stage | None = "sync_directory",
    ) -> None:
        super().__init__(message, errno=errno, stage=stage)
        self.path = path


class BusyError(AppendError):
    """As many deliveries are pending as the `GroupCommit` allows, and it was built with ``wait=False``."""

    _smtp_reply = "451 4.3.2 System busy, try again later"


class KeywordsFullError(AppendError, ValueError):
    """The folder has 26 keywords already, all that there are letters for, and the message has another."""

    _smtp_reply = "554 5.3.0 Message cannot be stored with these keywords"


class QuotaExceededError(AppendError):
    """The message is more than the maildir's quota has room for. `smtp_reply` is the quota's *over*."""

    def __init__(self, message: str, *, reply: str = _MAILBOX_FULL, stage: Stage | None = "create") -> None:
        super().__init__(message, errno=_errno.EDQUOT, stage=stage)
        self._smtp_reply = reply


class MessageTooLargeError(AppendError):
    """The message is larger than its ``size_limit`` (bytes as given, without the prefix)."""

    _smtp_reply = _TOO_LARGE


def append_error(exc: BaseException, *, path: str, stage: Stage) -> MaildirError:
    """Return what a delivery to *path* that met *exc* at *stage* fails with; *exc* is its cause."""
    if isinstance(exc, MaildirError):
        return exc
    if isinstance(exc, NotTrustedError):
        refused = NotAMaildirError(f"{path} is not delivered to: {exc.strerror}", errno=exc.errno, stage=stage)
        refused.__cause__ = exc
        return refused
    number = exc.errno if isinstance(exc, OSError) else None
    reason = (exc.strerror if isinstance(exc, OSError) else None) or f"{type(exc).__name__}: {exc}"
    error = AppendError(f"{path}: {stage} failed: {reason}", errno=number, stage=stage)
    error.__cause__ = exc
    return error


def busy_error() -> BusyError:
    """Return what a delivery fails with that has no place among the pending ones."""
    return BusyError("too many deliveries are pending", errno=_errno.EAGAIN, stage="queue")


def closed_error(path: str) -> MaildirError:
    """Return what a delivery fails with to the maildir at *path*, which has been closed."""
    return MaildirError(f"{path} has been closed", errno=_errno.ESHUTDOWN, stage="queue")


def keywords_full_error(path: str, keyword: str) -> KeywordsFullError:
    """Return what a delivery to *path* fails with whose *keyword* there is no letter for."""
    text = f"{path}: all letters for keywords are taken by others than {keyword!r}"
    return KeywordsFullError(text, errno=_errno.ENOSPC, stage="create")


def too_large_error(size_limit: int) -> MessageTooLargeError:
    """Return what a delivery fails with whose message is past *size_limit*."""
    text = f"the message has more than {size_limit} bytes"
    return MessageTooLargeError(text, errno=_errno.EFBIG, stage="receive")
