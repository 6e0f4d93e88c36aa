"""What has become of the messages of one `Maildir`."""

from dataclasses import dataclass

__all__ = ["MaildirStatistics"]


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
