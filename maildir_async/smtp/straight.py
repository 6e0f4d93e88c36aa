"""The straight way of a message to one maildir: what `FanOut` is for several."""

import asyncio
import errno
from datetime import timedelta
from typing import Final

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Entry, Plan
from maildir_async.errors import AppendError, MaildirError, busy_error
from maildir_async.format.content import Newline, check_prefix
from maildir_async.format.delivered import Delivered
from maildir_async.format.states import State
from maildir_async.mailbox.fan_out import Outcome
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.whole import begin_whole, refuse_large, settle
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.task import AppendTask

__all__ = ["Straight"]

#: Bytes that a message holds in memory at most while it comes: one chunk being written, one being received.
COST: Final = 2 * CHUNK_SIZE


class Straight:
    """A message on its way to one maildir: fed with `send`, ended with `finish`, or given up with `abort`.

    From `open` on until it is settled or given up it has its place among the pending deliveries. Until it is longer
    than a chunk it is gathered, and then it is delivered at once: nothing is begun for it before. Only a longer one is
    written while it comes.

    Args:
        maildir: where to.
        prefix: what is stored before the message.
        newline: as `Maildir.append` has it.
        deadline: likewise.
        folder: to which of its folders; None for itself.

    """

    __slots__ = (
        "_chunks",
        "_deadline",
        "_entry",
        "_error",
        "_folder",
        "_is_over",
        "_maildir",
        "_newline",
        "_place",
        "_prefix",
        "_size",
        "_task",
        "_waiting",
    )

    def __init__(
        self, maildir: Maildir, prefix: bytes, *, newline: Newline, deadline: timedelta, folder: str | None = None
    ) -> None:
        self._maildir = maildir
        self._folder = folder
        self._prefix = prefix
        self._newline: Newline = newline
        self._deadline = deadline
        self._chunks: list[bytes] = []  # what has come, until that is more than a chunk
        self._size = 0
        self._place: Place | None = None  # until the task has it
        self._waiting: asyncio.Future[None] | None = None  # for that
        self._entry: Entry | None = None  # of a message that was whole before it was longer than a chunk
        self._task: AppendTask | None = None  # for a longer one
        self._error: MaildirError | None = None
        self._is_over = False

    async def open(self) -> None:
        """Wait for a place among the pending deliveries.

        `BusyError` if there is none and the `GroupCommit` does not wait. When this raises, it has none.
        """
        loop = asyncio.get_running_loop()
        place = self._place = self._maildir.commit.request_place(COST, loop, self._wake)
        if place is None:
            self._error = busy_error()
            self.abort()
            raise self._error
        if place.granted:
            return
        self._waiting = loop.create_future()
        try:
            await self._waiting
        except BaseException:
            self.abort()
            raise

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def send(self, chunk: bytes) -> None:
        """Take a chunk, and wait while the disk is behind. What fails is told by `finish`, and the rest is ignored."""
        if self._is_over:
            return
        if self._task is None:
            self._chunks.append(chunk)
            self._size += len(chunk)
            if self._size <= CHUNK_SIZE:
                return
        try:
            if self._task is None:
                chunk = self._begin_stream()
            if self._task is not None:
                await self._task.send(chunk)
        except MaildirError as exc:
            self._lose(exc)

    def put_into(self, number: int, folder: str) -> None:
        """Have the message go to that folder. Before it is sent."""
        self._folder = folder

    def _begin_stream(self) -> bytes:
        """Write what has come, but the last chunk, which is returned."""
        *chunks, last = self._chunks
        self._chunks = []
        task = AppendTask(
            self._maildir,
            folder=self._folder,
            prefix=self._prefix,
            newline=self._newline,
            deadline=self._deadline,
        )
        assert self._place is not None
        task.take_place(self._place)
        task.begin()  # MaildirError if it has been closed
        self._task, self._place = task, None  # which has the place from now on
        for chunk in chunks:
            task.write(chunk)
        return last

    async def _append_whole(self) -> None:
        """Have a message delivered that is whole, and no longer than a chunk. MaildirError if it has been closed."""
        chunks, self._chunks = self._chunks, []
        message = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        place, self._place = self._place, None
        assert place is not None
        maildir = self._maildir
        mailbox = maildir.mailbox if self._folder is None else maildir.mailbox_of(self._folder)
        plan = Plan(maildir.durability, prefix=check_prefix(self._prefix), newline=self._newline)
        if maildir.size_limit is not None:
            refuse_large(mailbox, len(message), maildir.size_limit)
        self._entry = begin_whole(mailbox, maildir.commit, plan, message, place)
        await settle(maildir.commit, self._entry)

    def _lose(self, error: MaildirError) -> None:
        self._error = error
        self.abort()

    def abort(self) -> None:
        """Give up. Never waits: what has been written is removed by worker threads. Too late after `finish`."""
        self._is_over = True
        self._chunks = []
        if self._task is not None:
            self._task.cancel()
        place, self._place = self._place, None
        if place is not None:
            place.release()

    async def finish(self) -> list[Outcome]:
        """The message is whole: return when the maildir has its outcome: an error, if it has been given up.

        When this is cancelled, it is given up if it still can be, and `outcomes` tells what has become of the message
        by the time that the cancellation is raised: it may have been too late.
        """
        try:
            if self._task is None and not self._is_over:
                await self._append_whole()
            task = self._task
            if task is not None and not self._is_over:
                if task.state is State.RECEIVING:
                    task.unregister_producer()
                return [Outcome(self._maildir, await task, None)]
            if task is not None:
                await task.__aexit__(None, asyncio.CancelledError(), None)  # nothing acts for it any more
        except MaildirError as exc:
            self._error = self._error or exc
        finally:
            self.abort()
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """Return what has become of the message, when `finish` has returned or raised."""
        delivered: Delivered | None = None
        error = self._error
        if self._entry is not None:
            delivered, error = self._entry.delivered, self._entry.error
        try:
            if self._task is not None and self._task.future.done():
                delivered = self._task.future.result()
        except MaildirError as exc:
            error = exc
        except asyncio.CancelledError:
            pass
        return [Outcome(self._maildir, delivered, None if delivered is not None else error or self._given_up())]

    def _given_up(self) -> MaildirError:
        text = f"{self._maildir.path}: the delivery was given up"
        return AppendError(text, errno=errno.ECANCELED, stage="receive")
