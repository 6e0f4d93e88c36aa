"""What a helper process has been given and has not answered yet."""

import errno
from typing import Protocol

from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.errors import AppendError, MaildirError

__all__ = ["InFlight", "Stream", "gone_error"]


def gone_error(text: str = "the helper process died") -> AppendError:
    """Return what a message fails with that was being received when the helper went."""
    return AppendError(text, errno=errno.EPIPE, stage="receive")


class Stream(Protocol):
    """A message that goes to the helper chunk by chunk: `maildir_async.helper.spool.HelperSpool`."""

    mailbox: Mailbox
    plan: Plan

    def acknowledged(self, size: int) -> None:
        """Called when *size* bytes are stored, and there is room for more."""
        ...

    def failed(self, error: MaildirError) -> None:
        """Called when it has come to nothing, by *error*: the helper has nothing of it any more."""
        ...

    def discarded(self, leftover: str | None) -> None:
        """Called when it is discarded, but for a *leftover*: as was asked, or since the helper ends."""
        ...


class InFlight:
    """What the helper has been given and not answered yet.

    Attributes:
        mailbox: where it goes.
        tmp_name: the name of its file in ``tmp/``; of a whole message the part before any comma.
        name: the unique part of the name it is published under, once it is whole.
        entry: the message, once it is whole.
        stream: its stream, if it is one.

    """

    __slots__ = ("entry", "mailbox", "name", "stream", "tmp_name")

    def __init__(
        self,
        mailbox: Mailbox,
        tmp_name: str,
        name: str = "",
        entry: Entry | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.mailbox = mailbox
        self.tmp_name = tmp_name
        self.name = name
        self.entry = entry
        self.stream = stream
