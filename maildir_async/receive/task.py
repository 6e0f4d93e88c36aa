"""The append task: what a program gives one message to, and awaits. What it does is its `Delivery`'s."""

import asyncio
import errno
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, BinaryIO, Self

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Entry
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.threads import Crew
from maildir_async.errors import AppendError, BusyError
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.options import (
    DEADLINE,
    check_callback,
    check_deadline,
    check_size_limit,
)
from maildir_async.format.states import State
from maildir_async.receive.delivery import Delivery
from maildir_async.receive.feed import check_producer
from maildir_async.receive.gated import gated
from maildir_async.receive.messages import BytesLike, Message, check_chunk, check_message
from maildir_async.receive.submission import Maildir, check_maildir, plan_of

__all__ = ["AppendTask"]


class AppendTask:
    """Adds one message to a maildir: the consumer of a pull or push producer, or of what the caller writes to it.

    With *message*, it is read through the adapter of `as_producer`. Without, the caller registers a producer or feeds
    it by hand with `send` or `write`, and ends the message with `unregister_producer`. As an async context manager it
    starts on entry, commits when the block is left, and aborts when the block raises.

    ``await task`` returns `Delivered` when the message is in ``new/`` (or ``cur/``) and as durable as asked for. When
    it raises an `AppendError` (other than `UncertainAppendError`), a `NotAMaildirError`, or TypeError for a chunk that
    is not bytes, the maildir is as if it had never been called. Cancelling whoever awaits it, in any way and any
    number of times, aborts the delivery unless group commit has begun with it, waits until nothing acts for it any
    more, and raises the cancellation in any case; `future` says what became of the message.

    A task belongs to the loop it was started on; all methods are to be called on that loop's thread.

    Args: see `maildir_async.Maildir.append`. ValueError and TypeError for a wrong one come from the constructor.
    """

    __slots__ = ("__weakref__", "_delivery", "_maildir", "_message")

    def __init__(
        self,
        maildir: Maildir,
        message: Message | None = None,
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
        on_progress: Callable[[int], object] | None = None,
        deadline: timedelta = DEADLINE,
        duplicate_key: bytes | str | bool | None = None,
    ) -> None:
        if message is not None and type(message) is not bytes:
            check_message(message)
        self._maildir = check_maildir(maildir)
        self._message = message  # until the start
        level = maildir.durability if durability is None else durability
        plan = plan_of(
            level,
            flags=flags,
            received_at=received_at,
            prefix=prefix,
            newline=newline,
            keywords=keywords,
            strip_from_line=strip_from_line,
        )
        mailbox = maildir.mailbox_of(folder)
        delivery = Delivery if duplicate_key is None else gated(maildir, mailbox, duplicate_key)
        limit = maildir.size_limit if size_limit is None else check_size_limit(size_limit)
        told, deadline = check_callback("on_progress", on_progress), check_deadline(deadline)
        self._delivery = delivery(maildir, mailbox, plan, size_limit=limit, on_progress=told, deadline=deadline)

    # What it is.

    @property
    def state(self) -> State:
        """Where it stands. `State.ABORTED` only once ``tmp/`` is empty."""
        return self._delivery.state

    @property
    def future(self) -> "asyncio.Future[Delivered]":
        """The outcome, made by `start`: a `Delivered`, an exception, or cancelled if the delivery was.

        It is set truthfully even where whoever awaited the task was cancelled. To cancel it is to cancel the task.
        """
        if self._delivery.ending is None:
            raise RuntimeError("the append has not been started")
        return self._delivery.ending

    @property
    def tmp_path(self) -> str | None:
        """Its file in ``tmp/``, once there has been one: a short message gets one only in group commit."""
        return self._delivery.submission.tmp_path

    @property
    def bytes_written(self) -> int:
        """Bytes written to its file so far, prefix included."""
        return self._delivery.submission.bytes_written

    @property
    def readers(self) -> Crew:
        """The threads that read for it what blocks (see `as_producer`)."""
        return self._maildir.commit.readers

    def __repr__(self) -> str:
        size = self.bytes_written if self._delivery.reception is None else self._delivery.reception.received
        path = self._delivery.submission.mailbox.directories.path
        return f"<AppendTask {self._delivery.state.name} {size} bytes to {path}>"

    # Its beginning, and its end.

    def start(self) -> "asyncio.Future[Delivered]":
        """Begin on the running loop, and return `future`. RuntimeError if it was started before: it adds one message.

        MaildirError if the maildir has been closed, which is the outcome then. All else that goes wrong from here on is
        told through the future.
        """
        self.begin()
        return self.future

    def begin(self) -> None:
        """As `start`, for those who await the task itself."""
        self._delivery.begin(self._message, self)
        self._message = None

    def cancel(self) -> bool:
        """Abort the delivery, if that can still be done; return whether it is. What it has written is removed."""
        return self._delivery.cancel()

    def fail(self, exc: BaseException) -> bool:
        """Abort the delivery with *exc* (Twisted's ``fail``), if that can still be done; return whether it is.

        What no future takes, and what a loop takes for its own, becomes the cause of an AppendError.
        """
        return self._delivery.fail(exc)

    def take_place(self, place: Place) -> None:
        """Go by *place*, which has been granted, and give it back in the end. To be called before the start."""
        self._delivery.place = place

    def link_into(self, mailboxes: Sequence[Mailbox]) -> None:
        """Have the message published in *mailboxes* too, as hard links to its file. To be called before the start.

        The outcome of each of `links` is its own; there are none unless the message has become whole.
        """
        self._delivery.submission.link_into(mailboxes)

    def hold(self) -> None:
        """Have the message written and synced, and not published. To be called before the start.

        Awaited, the task returns when that is done, and `entry` is what can be published.
        """
        self._delivery.submission.plan.held = True

    @property
    def entry(self) -> Entry | None:
        """The message in group commit, once it is whole."""
        return self._delivery.submission.entry

    @property
    def copy(self) -> BinaryIO | None:
        """The message's file, for links that could not be: whoever copies them closes it."""
        return self._delivery.submission.copy

    @property
    def links(self) -> Sequence[Entry]:
        """The message in those, once it is whole. They outlive the task."""
        return self._delivery.submission.links

    # Awaiting it.

    def __await__(self) -> Generator[Any, None, Delivered]:
        return self._until_settled().__await__()

    async def _until_settled(self) -> Delivered:
        self._start_if_idle()
        if self._delivery.ending is None:  # given up before its start
            assert self._delivery.verdict is not None
            raise self._delivery.verdict
        return await self._delivery.ending.outcome()

    async def __aenter__(self) -> Self:
        self._start_if_idle()
        if isinstance(self._delivery.verdict, BusyError):
            await self
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            if self._delivery.is_fed_by_hand:
                self.unregister_producer()
            await self
            return
        self.cancel()
        if self._delivery.ending is not None:
            await self._delivery.ending.settled()
            self._delivery.ending.tell()

    # Being given a message: the consumer.

    async def send(self, data: BytesLike) -> None:
        """Take a chunk, and wait while the disk is behind.

        Raises what the delivery has failed with; RuntimeError if the message has ended.
        """
        self._check_receiving()
        self.write(data)
        while (reception := self._delivery.reception) is not None and not reception.has_room:
            await reception.change()
        self._check_receiving()

    async def until_file(self) -> None:
        """Return when a file has what has come, of which there must be a chunk to write (512 KiB).

        Raises what the delivery has failed with.
        """
        while self.tmp_path is None and self._delivery.verdict is None and self._delivery.reception is not None:
            await self._delivery.reception.change()
        self._check_receiving()

    def write(self, data: BytesLike) -> None:
        """Take a chunk. Never waits; pauses a push producer if the disk is behind.

        Ignored after the end or an abort. A chunk that is not bytes-like fails the delivery and raises TypeError.
        """
        try:
            check_chunk(data, "data")
        except TypeError as exc:
            if self._delivery.is_fed_by_hand and self._delivery.ending is not None:
                self._delivery.ending.tell()  # by raising it here; a producer's may be raised to nobody who tells of it
            if self._delivery.state in (State.IDLE, State.RECEIVING):
                self._delivery.fail(exc)
            raise
        self._check_fed_by_hand()
        self._delivery.take(data)

    def expect_size(self, size: int) -> None:
        """Called with the size of the whole message: one too large is refused before anything of it is written."""
        self._start_if_idle()
        self._delivery.receiving().is_too_large(size)

    def register_producer(self, producer: Any, streaming: bool) -> None:
        """Take the message from *producer*: one that pushes, if *streaming*; or else one that is asked for its first
        chunk here and now, and for each further one when there is room.

        RuntimeError if one is registered, or the message has ended. If the delivery has failed, *producer* is stopped.
        """
        check_producer(producer, streaming)
        self._check_fed_by_hand()
        if self._delivery.verdict is not None:
            self._delivery.receiving().feed.stop_other(producer)
        elif self._delivery.state is State.RECEIVING:
            self._delivery.receiving().feed.register(producer, streaming)
        else:
            raise RuntimeError(f"an append that is {self._delivery.state.value} takes no producer")

    def unregister_producer(self) -> None:
        """End the message. Ignored after an abort; RuntimeError if it has ended before."""
        self._check_fed_by_hand()
        self._delivery.end_message()

    def _start_if_idle(self) -> None:
        if self._delivery.state is State.IDLE:
            self.begin()

    def _check_fed_by_hand(self) -> None:
        self._start_if_idle()
        if self._delivery.unread is not None:
            raise RuntimeError("this append has a message, which it reads itself")

    def _check_receiving(self) -> None:
        self._start_if_idle()
        if isinstance(self._delivery.verdict, asyncio.CancelledError):
            raise AppendError("the append was cancelled", errno=errno.ECANCELED, stage="receive")
        if self._delivery.verdict is not None:
            if self._delivery.ending is not None:
                self._delivery.ending.tell()
            raise self._delivery.verdict
        if self._delivery.state is not State.RECEIVING:
            raise RuntimeError(f"an append that is {self._delivery.state.value} takes no more bytes")
