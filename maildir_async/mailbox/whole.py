"""A whole message in memory, which is nearly all mail: one record, one future, and nothing else to wait on."""

import asyncio
from functools import partial

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import TOLD, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.waiting import UncancellableFuture, until_done
from maildir_async.errors import busy_error, closed_error, too_large_error
from maildir_async.format.delivered import Delivered
from maildir_async.group_commit import GroupCommit

__all__ = ["append_whole", "begin_whole", "refuse_large", "settle"]


async def append_whole(mailbox: Mailbox, commit: GroupCommit, plan: Plan, message: bytes, size: int) -> Delivered:
    """Deliver *message*, of *size* bytes. See `maildir_async.Maildir.append`."""
    loop = asyncio.get_running_loop()
    if not mailbox.begin():
        raise closed_error(mailbox.directories.path)
    entry = Entry(mailbox, plan, message, loop, loop.create_future())
    if commit.admission.admit(size):
        entry.cost = size
    else:
        entry.place = await _place(commit, mailbox, size, loop)
    entry.generation = commit.admission.generation
    commit.submit(entry)
    await settle(commit, entry)
    if entry.delivered is None:
        assert entry.error is not None
        raise entry.error
    return entry.delivered


def begin_whole(mailbox: Mailbox, commit: GroupCommit, plan: Plan, message: bytes, place: Place) -> Entry:
    """Hand *message* over, which has a *place* among the pending deliveries by now. To be awaited with `settle`.

    MaildirError if the maildir has been closed; the place is given back then.
    """
    loop = asyncio.get_running_loop()
    if not mailbox.begin():
        place.release()
        raise closed_error(mailbox.directories.path)
    entry = Entry(mailbox, plan, message, loop, loop.create_future(), place=place)
    entry.generation = commit.admission.generation
    commit.submit(entry)
    return entry


def refuse_large(mailbox: Mailbox, size: int, size_limit: int | None) -> None:
    """Raise MessageTooLargeError, and count that, for a message of *size* bytes that is past *size_limit*."""
    if size_limit is not None and size > size_limit:
        if not mailbox.begin():
            raise closed_error(mailbox.directories.path)
        mailbox.withdrawn()
        raise too_large_error(size_limit)


async def settle(commit: GroupCommit, entry: Entry) -> None:
    """Return when *entry*, which has been submitted, has its outcome.

    A cancellation of any kind withdraws it, if that can still be done, and is raised when the outcome stands.
    """
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
            await _until_settled(entry)
            if entry.error is not None:  # what has been left behind, perhaps
                for note in getattr(entry.error, "__notes__", ()):
                    interrupted.add_note(note)
        raise interrupted


async def _until_settled(entry: Entry) -> None:
    """Return when *entry* has its outcome, through cancellation of every kind. On its loop."""
    if entry.state != TOLD:
        entry.future = over = UncancellableFuture[None](loop=entry.loop)
        await until_done(over)


async def _place(commit: GroupCommit, mailbox: Mailbox, size: int, loop: asyncio.AbstractEventLoop) -> Place:
    """Wait for a place among the pending deliveries; `BusyError` if there is none, and nobody is to wait."""
    granted: asyncio.Future[None] = loop.create_future()
    place = commit.request_place(size, loop, partial(_resolve, granted), mailbox.withdrawn)
    try:
        if place is None:
            raise busy_error()
        if not place.granted:
            await granted
    except BaseException:
        if place is None or place.release():
            mailbox.withdrawn()
        raise
    return place


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
