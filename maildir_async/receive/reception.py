"""What receives one message that is not whole at once: counts it, bounds it, and has it fed and written.

It is made when such a message begins to come, and let go of when the delivery is over. It holds the delivery, a `Feed`
for the producer and a `Spool` for the bytes; these two hold it, and call it. On the loop's thread only.
"""

import asyncio
import errno
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from maildir_async.disk.streamfile import StreamFile
from maildir_async.errors import AppendError, MaildirError, append_error, too_large_error
from maildir_async.group_commit import GroupCommit
from maildir_async.helper.spool import HelperSpool
from maildir_async.receive.buffer import Buffer, Chunk, frozen
from maildir_async.receive.feed import Feed
from maildir_async.receive.messages import BytesLike
from maildir_async.receive.spool import CHUNK_SIZE, Spool
from maildir_async.receive.submission import Submission
from maildir_async.receive.user_code import CallersContext, failure_of

__all__ = ["Owner", "Reception"]

#: Bytes buffered past which a producer that ignores its pause is given up.
HARD_LIMIT: Final = 16 * 2**20


class Owner(Protocol):
    """Whose message it is: a `maildir_async.receive.delivery.Delivery`.

    Attributes:
        verdict: why it is given up, once that is decided.

    """

    verdict: BaseException | None

    @property
    def is_admitted(self) -> bool:
        """Whether it has a place among the pending deliveries: nothing is written before."""
        ...

    def fail(self, exc: BaseException) -> bool:
        """Give it up, with *exc*."""
        ...

    def tell_progress(self) -> None:
        """Tell whoever wants to know how much is stored."""
        ...

    def go_on(self) -> None:
        """Commit if it is whole, or end if it is given up, once nothing is at work on it any more."""
        ...


class Reception:
    """Receives one message.

    Args:
        delivery: whose.
        loop: the delivery's.
        submission: what it becomes.
        file: where it is to be written.
        commit: whose threads write.
        context: what code of the caller is to run in.
        size_limit: bytes of the largest message taken.

    Attributes:
        received: bytes so far.

    """

    def __init__(
        self,
        delivery: Owner,
        loop: asyncio.AbstractEventLoop,
        submission: Submission,
        file: StreamFile,
        commit: GroupCommit,
        context: CallersContext,
        size_limit: int | None,
    ) -> None:
        self._delivery = delivery
        self._loop = loop
        self._directories = submission.mailbox.directories
        self._file = file
        self._size_limit = size_limit
        self._waiters: list[asyncio.Future[None]] = []
        self.received = 0
        self.feed = Feed(self, loop, context)
        self.spool: Spool | HelperSpool
        disk = self._directories.disk
        is_ours = submission.is_linked or submission.plan.held or submission.mailbox.quota is not None
        if is_ours or commit.channel(loop, disk) is None:
            self.spool = Spool(self, loop, file, commit)
        else:
            channel, plan = partial(commit.channel, loop, disk), submission.plan
            self.spool = HelperSpool(
                self, channel, submission.mailbox, plan, file, commit.submit, buffer=Buffer(), chunk_size=CHUNK_SIZE
            )

    # What comes.

    def take(self, data: BytesLike) -> None:
        """Take a chunk, and slow a push producer down if the disk is behind.

        The delivery fails if the message is too large, or more comes than can be kept.
        """
        chunk = frozen(data)
        if self.is_too_large(self.received + len(chunk)):
            return
        if self.spool.size >= HARD_LIMIT:
            text = f"{self.spool.size} bytes are waiting for the disk, and more come without a pause"
            self._delivery.fail(AppendError(text, errno=errno.ENOBUFS, stage="receive"))
            return
        self.received += len(chunk)
        self.spool.add(chunk)
        if self._delivery.is_admitted:
            self.spool.write_out()
        if self._delivery.verdict is None:  # there was no helper process to write it
            self.feed.brake()

    def is_too_large(self, size: int) -> bool:
        """Whether a message of *size* bytes is past the limit: then the delivery has failed."""
        if self._size_limit is None or size <= self._size_limit:
            return False
        self._delivery.fail(too_large_error(self._size_limit))
        return True

    @property
    def has_room(self) -> bool:
        """Whether more may come. After an abort it may, so that nobody waits any longer."""
        return self._delivery.verdict is not None or (self._delivery.is_admitted and self.spool.has_room)

    async def change(self) -> None:
        """Return when there may be room, or a file, or the delivery has ended."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def admitted(self) -> None:
        """Begin to write: there is a place."""
        self.spool.write_out()
        self._made_room()

    # What comes of it.

    @property
    def busy(self) -> bool:
        """Whether code of the producer runs, or anything is at work on the file."""
        return self.feed.busy or self.spool.busy

    def take_rest(self) -> list[Chunk] | None:
        """Return what is not in the file yet, for group commit; None while the file is being written."""
        return None if self.spool.busy else self.spool.take_rest()

    def give_up(self) -> None:
        """Have the producer stopped and what is written removed: the delivery is given up."""
        # What does not need the loop comes first: it may be closed, and a coroutine on it being thrown away.
        for step in (self.spool.discard, self._changed, self.feed.stop):
            with suppress(RuntimeError):
                step()

    def let_go(self) -> None:
        """Let go of feed and spool, since the delivery is over: with this, they would keep each other."""
        self.spool.forget()
        self._changed()
        del self.feed, self.spool

    # What feed and spool tell.

    def source_failed(self, exc: BaseException) -> None:
        """End the delivery: by a cancellation, or with what its source has raised."""
        self._delivery.fail(exc if isinstance(exc, asyncio.CancelledError) else failure_of(exc))

    def written(self) -> None:
        """Tell the progress and have the producer go on: a chunk has been written."""
        try:
            self._delivery.tell_progress()
        finally:  # a KeyboardInterrupt goes on to the loop, and costs nobody his mail
            self._made_room()

    def write_failed(self, exc: BaseException) -> None:
        """End the delivery: *exc* went wrong, or is the cancellation of the task that writes."""
        if not isinstance(exc, (asyncio.CancelledError, MaildirError)):
            exc = append_error(exc, path=self._directories.path, stage=self._file.stage)
        self._delivery.fail(exc)

    def quiet(self) -> None:
        """Have the delivery commit or end, if it can now: something has ended that was at work for it."""
        self._delivery.go_on()

    def _made_room(self) -> None:
        self._changed()
        if self._delivery.verdict is None:
            self.feed.prompt()

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
