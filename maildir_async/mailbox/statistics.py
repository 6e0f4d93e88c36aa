"""What has become of the messages of one `Maildir`."""

from dataclasses import dataclass

from maildir_async.commit.mailbox import Mailbox

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


def statistics_of(mailbox: Mailbox) -> MaildirStatistics:
    """Return what has become of the messages of *mailbox* by now."""
    return MaildirStatistics(
        in_flight=mailbox.in_flight + sum(not task.is_whole for task in mailbox.live_tasks()),
        delivered=mailbox.delivered,
        uncertain=mailbox.uncertain,
        failed=mailbox.failed,
        bytes_stored=mailbox.bytes_stored,
    )
