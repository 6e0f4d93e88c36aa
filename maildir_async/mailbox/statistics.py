"""What has become of the messages of one `Maildir`."""

from collections.abc import Sequence
from dataclasses import dataclass

from maildir_async.commit.mailbox import Mailbox
from maildir_async.format.html import fields_of, table

__all__ = ["MaildirStatistics", "statistics_of"]


@dataclass(frozen=True, slots=True)
class MaildirStatistics:
    """What has become of the messages given to one `Maildir` object.

    Attributes:
        in_flight: started, not settled.
        delivered: delivered as durably as asked for.
        uncertain: visible, but their directory could not be synced.
        failed: refused or failed before they were visible; cancelled ones too.
        bytes_stored: bytes of the delivered ones.

    """

    in_flight: int
    delivered: int
    uncertain: int
    failed: int
    bytes_stored: int

    def _repr_html_(self) -> str:
        return table("Statistics of a Maildir", fields_of(self))


def statistics_of(mailboxes: Sequence[Mailbox]) -> MaildirStatistics:
    """Return what has become of the messages of *mailboxes* by now."""
    return MaildirStatistics(
        in_flight=sum(each.in_flight + sum(not task.is_whole for task in each.live_tasks()) for each in mailboxes),
        delivered=sum(each.delivered for each in mailboxes),
        uncertain=sum(each.uncertain for each in mailboxes),
        failed=sum(each.failed for each in mailboxes),
        bytes_stored=sum(each.bytes_stored for each in mailboxes),
    )
