"""A message given to several maildirs at once."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from maildir_async.errors import BusyError, MaildirError
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Durability
from maildir_async.format.given import given
from maildir_async.format.keywords import check_keywords
from maildir_async.format.options import DEADLINE, MessageOptions
from maildir_async.mailbox.fan_out import FanOut, Outcome
from maildir_async.mailbox.fan_out_gates import key_for
from maildir_async.mailbox.maildir import Maildir
from maildir_async.receive.messages import Message, check_message
from maildir_async.receive.producers import read_all
from maildir_async.receive.sources import cost_of
from maildir_async.receive.task import AppendTask
from maildir_async.receive.user_code import in_own_task

__all__ = ["deliver"]


async def deliver(  # noqa: D417 the options are explained at append
    message: Message,
    maildirs: Iterable[Maildir],
    *,
    folder: str | Sequence[str] | None = None,
    flags: str = "",
    keywords: Iterable[str] = (),
    received_at: datetime | float | None = None,
    prefix: bytes = b"",
    newline: Newline = "keep",
    strip_from_line: bool = False,
    durability: Durability | None = None,
    size_limit: int | None = None,
    deadline: timedelta = DEADLINE,
    duplicate_key: bytes | str | bool | None = None,
) -> list[Outcome]:
    """Deliver *message* to each of *maildirs*, and return one outcome for each, in their order.

    On each file system it is written and synced once, and hard-linked into the other maildirs there: one file, with
    the mode of the first of them. A thousand maildirs cost one write, a thousand links, and one batch of directory
    syncs; among what a `GroupCommit` may have pending they are one delivery. Each outcome is as `Maildir.append` would
    have it, independent of the others; if the source fails, all do.

    A directory that is given twice, by whatever path, gets the message once: all that stand for it have one outcome. On
    cancellation each has the message whole or not at all, and nothing acts for it any more when this raises.

    Args:
        message: any that `Maildir.append` takes. It is read once.
        maildirs: where to.
        folder: this and the further ones are the options of `Maildir.append`, for all of them; a *size_limit* or
            *durability* not given is the smallest or the strongest of theirs. With a *duplicate_key* each is asked for
            by its own filter, where it has one, when the first 512 KiB have come; others with that key wait from then
            on.

    Raises:
        TypeError: *message*, or a chunk of it, is not bytes.
        ValueError: an option is not valid.

    """
    check_message(message)
    if isinstance(maildirs, str) or not isinstance(maildirs, Iterable):
        raise TypeError(f"maildirs must be an iterable of Maildir, not {given(maildirs)}")
    maildirs = list(maildirs)
    for maildir in maildirs:
        if not isinstance(maildir, Maildir):
            raise TypeError(f"maildirs must be of Maildir, not {given(maildir)}")
    if not maildirs:
        return []
    options = MessageOptions(
        folder=folder,
        flags=flags,
        keywords=check_keywords(keywords),
        received_at=received_at,
        prefix=prefix,
        newline=newline,
        strip_from_line=strip_from_line,
        durability=durability,
        size_limit=size_limit,
        deadline=deadline,
        duplicate_key=duplicate_key,
    )
    checked: MessageOptions = {**options, "duplicate_key": None}  # each has its own filter, or none
    AppendTask(maildirs[0], **checked)  # raises what is wrong with the options
    if duplicate_key is not None:
        key_for(maildirs, duplicate_key)
    async with FanOut(maildirs, **options) as fan_out:
        try:
            await fan_out.open(cost_of(message))
        except BusyError:
            return await fan_out.finish()
        try:
            await in_own_task(read_all(message, maildirs[0].commit.readers, fan_out.send))
        except MaildirError as exc:
            fan_out.fail(exc)
        return await fan_out.finish()
