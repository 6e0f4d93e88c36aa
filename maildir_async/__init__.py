"""Deliver mail into a Maildir from asyncio.

When ``await maildir.append(message)`` returns, the message survives a power cut; the event loop never waits for the
disk; and concurrent deliveries share their disk syncs.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from maildir_async.errors import (
    AppendError,
    BusyError,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    QuotaExceededError,
    UncertainAppendError,
)
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.quota import Quota
from maildir_async.group_commit import CommitStatistics, GroupCommit
from maildir_async.mailbox.deliver import deliver
from maildir_async.mailbox.duplicates import DuplicateFilter
from maildir_async.mailbox.fan_out import Outcome
from maildir_async.mailbox.index import Index
from maildir_async.mailbox.lookout import WatchedMessage
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.statistics import MaildirStatistics
from maildir_async.receive.messages import Message
from maildir_async.receive.producers import Consumer, PullProducer, PushProducer, as_producer
from maildir_async.receive.task import AppendTask

if TYPE_CHECKING:
    from maildir_async.mail_import.importer import import_mail
    from maildir_async.mail_import.report import ImportProblem, ImportReport

__all__ = [
    "AppendError",
    "AppendTask",
    "BusyError",
    "CommitStatistics",
    "Consumer",
    "Delivered",
    "DuplicateFilter",
    "Durability",
    "GroupCommit",
    "ImportProblem",
    "ImportReport",
    "Index",
    "Maildir",
    "MaildirError",
    "MaildirStatistics",
    "Message",
    "MessageTooLargeError",
    "Newline",
    "NotAMaildirError",
    "Outcome",
    "PullProducer",
    "PushProducer",
    "Quota",
    "QuotaExceededError",
    "UncertainAppendError",
    "WatchedMessage",
    "as_producer",
    "deliver",
    "import_mail",
]

#: What is imported when it is first asked for: few programs import mail, and each mail that Postfix pipes to a command
#: waits for this package to be imported.
_LATER: Final = {
    "import_mail": "maildir_async.mail_import.importer",
    "ImportProblem": "maildir_async.mail_import.report",
    "ImportReport": "maildir_async.mail_import.report",
}


def __getattr__(name: str) -> Any:
    """See PEP 562."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
