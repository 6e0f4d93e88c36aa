"""Deliver mail into a Maildir from asyncio.

When ``await maildir.append(message)`` returns, the message survives a power cut; the event loop never waits for the
disk; and concurrent deliveries share their disk syncs.
"""

from maildir_async.append import AppendTask
from maildir_async.commit import GroupCommit
from maildir_async.delivered import Delivered, Durability
from maildir_async.errors import (
    AppendError,
    BusyError,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    UncertainAppendError,
)
from maildir_async.fan_out import Outcome, deliver
from maildir_async.maildir import Maildir
from maildir_async.producers import Consumer, PullProducer, PushProducer, as_producer

__all__ = [
    "AppendError",
    "AppendTask",
    "BusyError",
    "Consumer",
    "Delivered",
    "Durability",
    "GroupCommit",
    "Maildir",
    "MaildirError",
    "MessageTooLargeError",
    "NotAMaildirError",
    "Outcome",
    "PullProducer",
    "PushProducer",
    "UncertainAppendError",
    "as_producer",
    "deliver",
]
