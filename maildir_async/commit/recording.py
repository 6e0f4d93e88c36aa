"""RECORD, the last step of a round: what its messages take is written down, where a maildir has a quota. Blocks.

It is a step since that file, too, may be on a disk that hangs. The messages of that maildir are then left behind, as
those are whose directory hangs, and nobody else waits for them.
"""

from maildir_async.commit.batch import Batch, Hand, Record
from maildir_async.commit.entry import Entry
from maildir_async.commit.mailbox import Mailbox

__all__ = ["Recording"]


class Recording:
    """The step, for one batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._todo: list[Record] | None = None

    def work(self, hand: Hand) -> None:
        """Have it recorded for each maildir, from where another driver has left off."""
        todo = self._todo
        if todo is None:
            by_mailbox: dict[Mailbox, list[Entry]] = {}
            for entry in [entry for entry in self._batch.entries if entry.reserved >= 0]:
                by_mailbox.setdefault(entry.mailbox, []).append(entry)
            todo = self._todo = [Record(mailbox, entries) for mailbox, entries in by_mailbox.items()]
        while todo:
            record = todo.pop()
            self._batch.do(hand, record, record.make)
