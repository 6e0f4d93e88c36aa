"""What decides whether a message is stored, as a delivery knows it."""

from typing import Protocol

from maildir_async.commit.mailbox import Mailbox
from maildir_async.format.delivered import Delivered

__all__ = ["Duplicates", "Gate"]


class Gate(Protocol):
    """What one message has to pass: a `maildir_async.mailbox.duplicates.Gate`."""

    def observe(self, chunk: bytes | bytearray | memoryview) -> None:
        """Look at the next chunk of the message."""
        ...

    async def enter(self) -> str | None:
        """Return the path of the one delivered before; None if this is to be: others with its key wait from then on.

        Fails only by a cancellation; nobody waits for this one then.
        """
        ...

    async def remember(self, delivered: Delivered) -> Delivered:
        """Have it remembered, and let the others go; return it with what could not be done among its warnings."""
        ...

    def leave(self) -> None:
        """Let the others go: this one has not been delivered. Of no account after `remember`."""
        ...


class Duplicates(Protocol):
    """What knows the messages delivered before: a `maildir_async.DuplicateFilter`."""

    def gate(self, mailbox: Mailbox, key: bytes | None) -> Gate:
        """Return the gate for one message to *mailbox*; by its Message-ID if *key* is None."""
        ...
