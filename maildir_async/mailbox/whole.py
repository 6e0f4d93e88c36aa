"""A whole message in memory, which is nearly all mail: one record, one future, and nothing else to wait on."""

import asyncio
from functools import partial

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import TOLD, Chunks, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.waiting import UncancellableFuture, until_done
from maildir_async.errors import busy_error, closed_error
from maildir_async.format.delivered import Delivered
from maildir_async.group_commit import GroupCommit

__all__ = ["append_whole", "until_settled"]


async def append_whole(mailbox: Mailbox, commit: GroupCommit, plan: Plan, chunks: Chunks, size: int) -> Delivered:
    """Deliver a message of *size* bytes, which do not change any more. See `maildir_async.Maildir.append`."""
    loop = asyncio.get_running_loop()
    if not mailbox.begin():
        raise closed_error(mailbox.directories.path)
    entry = Entry(mailbox, plan, chunks, loop, loop.create_future())
    admission = commit.admission
    if admission.admit(size):
        entry.cost = size
    else:
        entry.place = await _place(commit, mailbox, size, loop)
    entry.generation = admission.generation
    commit.submit(entry)
    interrupted: asyncio.CancelledError | None = None
    try:
        await entry.future
    except asyncio.CancelledError as exc:
        interrupted = exc
    except GeneratorExit:  # thrown away, with its loop
        commit.withdraw(entry)
        raise
    # Not in the except clause: a second cancellation must not have the first as its context, by which anyio would take
    # it for its own.
    if interrupted is not None:
        if not commit.withdraw(entry):
            await until_settled(entry)
        raise interrupted
    if entry.delivered is None:
        assert entry.error is not None
        raise entry.error
    return entry.delivered


async def until_settled(entry: Entry) -> None:
    """Return when *entry* has its outcome, through cancellation of every kind. On its loop."""
    if entry.state != TOLD:
        entry.future = over = UncancellableFuture[None](loop=entry.loop)
        await until_done(over)


async def _place(commit: GroupCommit, mailbox: Mailbox, size: int, loop: asyncio.AbstractEventLoop) -> Place:
    """Wait for a place among the pending deliveries; `BusyError` if there is none, and nobody is to wait."""
    granted: asyncio.Future[None] = loop.create_future()
    place = commit.request_place(size, loop, partial(_resolve, granted))
    try:
        if place is None:
            raise busy_error()
        if not place.granted:
            await granted
    except BaseException:
        if place is not None:
            place.release()
        mailbox.withdrawn()
        raise
    return place


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
