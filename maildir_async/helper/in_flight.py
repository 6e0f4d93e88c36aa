"""What a helper process has been given and has not answered yet."""

from dataclasses import dataclass
from typing import Protocol

from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.errors import MaildirError

__all__ = ["InFlight", "Stream"]


class Stream(Protocol):
    """A message that goes to the helper chunk by chunk: `maildir_async.helper.spool.HelperSpool`."""

    mailbox: Mailbox
    plan: Plan

    def acknowledged(self, size: int) -> None:
        """Learn that so many bytes are stored, and that there is room for more."""
        ...

    def failed(self, error: MaildirError) -> None:
        """Learn that it has come to nothing: the helper has nothing of it any more."""
        ...

    def discarded(self, leftover: str | None) -> None:
        """Learn that it is discarded, as asked, but for a *leftover*."""
        ...


@dataclass(slots=True)
class InFlight:
    """What the helper has been given and not answered yet.

    Attributes:
        mailbox: where it goes.
        tmp_name: the name of its file in ``tmp/``; of a whole message the part before any comma.
        name: the unique part of the name it is published under, once it is whole.
        entry: the message, once it is whole.
        stream: its stream, if it is one.

    """

    mailbox: Mailbox
    tmp_name: str
    name: str = ""
    entry: Entry | None = None
    stream: Stream | None = None
