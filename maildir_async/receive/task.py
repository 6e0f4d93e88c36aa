"""The append task: carries one message from whoever gives it into group commit, and tells the outcome.

Everything here runs on the loop's thread and blocks nowhere. The life of a task is `maildir_async.format.states`. While
its message comes, a `Reception` receives it; when it is whole, `_entry` is the message in group commit; how it ends is
the `Ending`. `_verdict` says why it is given up, if it is: from then on all that is waited for is that nothing acts for
it any more.
"""

import asyncio
import errno
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Chunks, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.disk.streamfile import StreamFile
from maildir_async.disk.threads import Crew
from maildir_async.errors import AppendError, BusyError, UncertainAppendError, busy_error, closed_error
from maildir_async.format.content import Content, Newline, check_newline, check_prefix
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.names import check_flags
from maildir_async.format.options import (
    DEADLINE,
    check_callback,
    check_deadline,
    check_durability,
    check_size_limit,
    nanoseconds,
)
from maildir_async.format.states import Event, State, next_state
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.ending import Ending
from maildir_async.receive.producers import as_producer
from maildir_async.receive.reception import Reception
from maildir_async.receive.sources import BytesLike, check_chunk, check_message, cost_of
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.user_code import CallersContext, failure_of, goes_on

__all__ = ["AppendTask", "Maildir", "cost_of"]


class Maildir(Protocol):
    """What an append needs of its `maildir_async.Maildir`."""

    mailbox: Mailbox
    durability: Durability
    size_limit: int | None

    @property
    def commit(self) -> GroupCommit:
        """Where its deliveries share syncs."""
        ...


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

    __slots__ = (
        "__weakref__",
        "_commit",
        "_context",
        "_deadline",
        "_ending",
        "_entry",
        "_file",
        "_linked",
        "_loop",
        "_maildir",
        "_message",
        "_on_progress",
        "_place",
        "_plan",
        "_reception",
        "_size_limit",
        "_state",
        "_timer",
        "_verdict",
        "links",
    )

    def __init__(
        self,
        maildir: Maildir,
        message: Any = None,
        *,
        flags: str = "",
        received_at: datetime | float | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        durability: Durability | None = None,
        size_limit: int | None = None,
        on_progress: Callable[[int], object] | None = None,
        deadline: timedelta = DEADLINE,
    ) -> None:
        if message is not None and type(message) is not bytes:
            check_message(message)
        self._maildir = maildir
        self._message = message
        self._size_limit = maildir.size_limit if size_limit is None else check_size_limit(size_limit)
        self._on_progress = check_callback("on_progress", on_progress)
        self._deadline = check_deadline(deadline)
        self._plan = Plan(
            check_durability(maildir.durability if durability is None else durability),
            check_flags(flags),
            nanoseconds(received_at),
            check_prefix(prefix),
            check_newline(newline),
        )
        self._file: StreamFile | None = None  # once a message begins to come that is not whole at once
        self._state = State.IDLE
        self._verdict: BaseException | None = None
        self._reception: Reception | None = None  # while a message comes that is not whole at once
        self._entry: Entry | None = None
        self._ending: Ending | None = None  # from the start on
        self._place: Place | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._linked: Sequence[Mailbox] = ()
        self.links: Sequence[Entry] = ()  # made when the message is whole; they outlive the task
        # Made by the start:
        self._loop: asyncio.AbstractEventLoop
        self._commit: GroupCommit
        self._context: CallersContext

    # What it is.

    @property
    def state(self) -> State:
        """Where it stands. `State.ABORTED` only once ``tmp/`` is empty."""
        return self._state

    @property
    def future(self) -> "asyncio.Future[Delivered]":
        """The outcome, made by `start`: a `Delivered`, an exception, or cancelled if the delivery was.

        It is set truthfully even where whoever awaited the task was cancelled. To cancel it is to cancel the task.
        """
        if self._ending is None:
            raise RuntimeError("the append has not been started")
        return self._ending

    @property
    def tmp_path(self) -> str | None:
        """Its file in ``tmp/``, once there has been one: a short message gets one only in group commit."""
        if self._file is not None and self._file.path:
            return self._file.path
        name = "" if self._entry is None else self._entry.tmp_name
        return f"{self._maildir.mailbox.directories.tmp}/{name}" if name else None

    @property
    def bytes_written(self) -> int:
        """Bytes written to its file so far, prefix included."""
        if self._entry is not None and self._entry.size:
            return self._entry.size
        return 0 if self._file is None else self._file.content.size

    @property
    def copy(self) -> BinaryIO | None:
        """The message's file, for links that could not be: whoever copies them closes it."""
        return self._entry.copy if self._entry is not None else None

    @property
    def is_orphan(self) -> bool:
        """Whether its loop has been closed: it will not be settled, whatever becomes of its message."""
        return self._loop.is_closed()

    @property
    def is_admitted(self) -> bool:
        """Whether it has a place among the pending deliveries: it reads and writes nothing before."""
        return self._place is not None and self._place.granted

    @property
    def is_given_up(self) -> bool:
        """Whether it is decided that it fails, or is cancelled; its end may be still to come."""
        return self._verdict is not None

    @property
    def reader_crew(self) -> Crew:
        """The threads that read for it what blocks (see `as_producer`)."""
        return self._maildir.commit.readers

    def __repr__(self) -> str:
        size = self.bytes_written if self._reception is None else self._reception.received
        return f"<AppendTask {self._state.name} {size} bytes to {self._maildir.mailbox.directories.path}>"

    # Its beginning.

    def start(self) -> "asyncio.Future[Delivered]":
        """Begin on the running loop, and return `future`. RuntimeError if it was started before: it adds one message.

        MaildirError if the maildir has been closed, which is the outcome then. All else that goes wrong from here on is
        told through the future.
        """
        self.begin()
        return self.future

    def begin(self) -> None:
        """As `start`, for those who await the task itself."""
        loop = asyncio.get_running_loop()
        state, self._loop = next_state(self._state, Event.START), loop
        self._ending = Ending(self, loop)
        try:
            mailbox = self._maildir.mailbox
            if not mailbox.begin_task(self):
                raise closed_error(mailbox.directories.path)
            self._state = state
            self._begin(loop)
        except BaseException as exc:
            self._ending.tell()
            if self._state is State.IDLE:  # refused
                self._state, self._verdict = next_state(self._state, Event.FAIL), exc
                self._release_place()
                self._ending.settle(exc)
            raise

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._context = CallersContext()
        self._commit = self._maildir.commit
        message = self._message
        cost = cost_of(message)
        if self._place is None:
            self._place = self._commit.request_place(cost, loop, self._admitted)
        if self._place is None:
            self._abort(busy_error())
            return
        if type(message) is bytes and self._place.granted and cost <= CHUNK_SIZE:
            self._take_whole(message)
            return
        # The timer also keeps the task while nobody else does: a loop forgets its timers when it is closed.
        self._timer = loop.call_later(self._deadline.total_seconds(), self._expired)
        if self._place.granted:
            self._admitted()

    def _take_whole(self, message: bytes) -> None:
        """Commit a message that is short, in memory and whole: there is nothing to wait for, nor to be asked."""
        self._message = None
        if self._size_limit is None or not self._receiving().is_too_large(len(message)):
            self._state = next_state(self._state, Event.END)
            self._submit(message)

    def _admitted(self) -> None:
        """Begin to read, and to write: there is a place among the pending deliveries."""
        if self._verdict is not None:
            return
        message, self._message = self._message, None
        reception = self._receiving()
        if message is None:
            reception.admitted()
            self._commit_if_written()
            return
        try:
            producer = self._context.run(as_producer, message, self)
        except BaseException as exc:  # by its __iter__ or __aiter__
            self._abort(failure_of(exc))
            if goes_on(exc):
                raise
        else:
            reception.feed.register(producer, streaming=False)

    def _expired(self) -> None:
        text = f"the message was not whole after {self._deadline}"
        self._abort(AppendError(text, errno=errno.ETIMEDOUT, stage="receive"))

    def take_place(self, place: Place) -> None:
        """Go by *place*, which has been granted, and give it back in the end. To be called before the start."""
        self._place = place

    def link_into(self, mailboxes: Sequence[Mailbox]) -> None:
        """Have the message published in *mailboxes* too, as hard links to its file. To be called before the start.

        The outcome of each of `links` is its own; there are none unless the message has become whole.
        """
        self._linked = mailboxes

    # Awaiting it.

    def __await__(self) -> Generator[Any, None, Delivered]:
        return self._until_settled().__await__()

    async def _until_settled(self) -> Delivered:
        if self._state is State.IDLE:
            self.begin()
        if self._ending is None:  # given up before its start
            assert self._verdict is not None
            raise self._verdict
        return await self._ending.outcome()

    async def __aenter__(self) -> Self:
        if self._state is State.IDLE:
            self.begin()
        if isinstance(self._verdict, BusyError):
            await self
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            if self._state is State.RECEIVING and self._verdict is None and self._receiving().feed.producer is None:
                self.unregister_producer()
            await self
            return
        self.cancel()
        if self._ending is not None:
            await self._ending.settled()
            self._ending.tell()

    # Being given a message: the consumer.

    async def send(self, data: BytesLike) -> None:
        """Take a chunk, and wait while the disk is behind.

        Raises what the delivery has failed with; RuntimeError if the message has ended.
        """
        self._check_receiving()
        self.write(data)
        while (reception := self._reception) is not None and not reception.has_room:
            await reception.change()
        self._check_receiving()

    async def until_file(self) -> None:
        """Return when a file has what has come, of which there must be a chunk to write (512 KiB).

        Raises what the delivery has failed with.
        """
        while self.tmp_path is None and self._verdict is None and self._reception is not None:
            await self._reception.change()
        self._check_receiving()

    def write(self, data: BytesLike) -> None:
        """Take a chunk. Never waits; pauses a push producer if the disk is behind.

        Ignored after the end or an abort. A chunk that is not bytes-like fails the delivery and raises TypeError.
        """
        try:
            check_chunk(data)
        except TypeError as exc:
            if self._state in (State.IDLE, State.RECEIVING):
                self._abort(exc)
            raise
        self._start_if_idle()
        self._check_unread()
        if self._state is State.RECEIVING and self._verdict is None and self._receiving().take(data):
            self._state = next_state(self._state, Event.DATA)

    def expect_size(self, size: int) -> None:
        """Learn the size of the whole message: one that is too large is refused before anything of it is written."""
        self._receiving().is_too_large(size)

    def register_producer(self, producer: Any, streaming: bool) -> None:
        """Take the message from *producer*: one that pushes, if *streaming*; or else one that is asked for its first
        chunk here and now, and for each further one when there is room.

        RuntimeError if one is registered, or the message has ended. If the delivery has failed, *producer* is stopped.
        """
        self._start_if_idle()
        self._check_unread()
        if self._verdict is not None:
            self._receiving().feed.stop_other(producer)
        elif self._state is State.RECEIVING:
            self._receiving().feed.register(producer, streaming)
        else:
            raise RuntimeError(f"an append that is {self._state.value} takes no producer")

    def unregister_producer(self) -> None:
        """End the message. Ignored after an abort; RuntimeError if it has ended before."""
        self._start_if_idle()
        self._check_unread()
        if self._reception is not None:
            self._reception.feed.unregister()
        if self._verdict is None:
            self._state = next_state(self._state, Event.END)
            if self._timer is not None:
                self._timer.cancel()
            self._commit_if_written()

    def _receiving(self) -> Reception:
        """Return what receives the message; for a task that has ended, something for a producer that comes too late."""
        if self._reception is not None:
            return self._reception
        mailbox, plan = self._maildir.mailbox, self._plan
        file = StreamFile(
            mailbox.directories,
            mailbox.names,
            Content(prefix=plan.prefix, newline=plan.newline),
            mode=mailbox.mode,
            is_synced=plan.durability is not Durability.NONE,
        )
        commit, context = self._commit, self._context
        stays = bool(self._linked)  # the links are this process's
        reception = Reception(self, self._loop, mailbox, plan, file, commit, context, self._size_limit, stays=stays)
        if self._ending is not None and not self._ending.done():
            self._reception, self._file = reception, file
        return reception

    def _start_if_idle(self) -> None:
        if self._state is State.IDLE:
            self.begin()

    def _check_unread(self) -> None:
        if self._message is not None:
            raise RuntimeError("this append has a message, which it reads itself")

    def _check_receiving(self) -> None:
        self._start_if_idle()
        if isinstance(self._verdict, asyncio.CancelledError):
            raise AppendError("the append was cancelled", errno=errno.ECANCELED, stage="receive")
        if self._verdict is not None:
            if self._ending is not None:
                self._ending.tell()
            raise self._verdict
        if self._state is not State.RECEIVING:
            raise RuntimeError(f"an append that is {self._state.value} takes no more bytes")

    def tell_progress(self) -> None:
        """Call *on_progress*. A display must cost nobody his mail, whatever it raises."""
        if self._on_progress is None:
            return
        try:
            self._context.run(self._on_progress, self.bytes_written)
        except BaseException as exc:
            if goes_on(exc):
                raise
            self._loop.call_exception_handler({"message": "on_progress raised", "exception": exc})

    # Committing it.

    def go_on(self) -> None:
        """Commit if the message is whole, or end if it is given up, once nothing acts for it any more."""
        if self._verdict is None:
            self._commit_if_written()
        else:
            self._end_if_quiet()

    def _commit_if_written(self) -> None:
        if self._state is State.COMMITTING and self._entry is None and self.is_admitted:
            chunks = self._receiving().take_rest()
            if chunks is not None:
                self._submit(chunks)

    def _submit(self, chunks: Chunks) -> None:
        """Hand the message over to group commit: *chunks* are what its file does not have yet."""
        mailbox, file = self._maildir.mailbox, self._file
        self._entry = entry = self._entry_for(mailbox)
        entry.chunks = chunks
        entry.place = self._place
        entry.file = file if file is not None and file.name else None
        if self._linked:
            self.links = entry.links = [self._entry_for(linked) for linked in self._linked]
            for link in self.links:
                link.source = entry
        entry.future.add_done_callback(self._settled)
        mailbox.end_task(self, failed=False)
        (self._commit if self._reception is None else self._reception.spool).submit(entry)

    def _entry_for(self, mailbox: Mailbox) -> Entry:
        entry = Entry(mailbox, self._plan, b"", self._loop, UncancellableFuture(loop=self._loop))
        entry.generation = self._commit.admission.generation
        mailbox.enter()
        return entry

    def _settled(self, _: object) -> None:
        """Take the outcome of the entry, with which group commit has done."""
        entry = self._entry
        if entry is None or self._verdict is not None:  # it has been withdrawn
            return
        error = entry.error
        if error is None:
            assert entry.delivered is not None
            # In a turn of its own, so that what it raises is nobody else's; before that of whoever awaits the outcome.
            self._loop.call_soon(self.tell_progress)
            self._end(Event.COMMIT, entry.delivered)
        elif isinstance(error, UncertainAppendError):
            self._end(Event.SYNC_FAIL, error)
        else:
            self._verdict = error
            self._end(Event.FAIL, error)

    # Giving it up, and its end.

    def cancel(self) -> bool:
        """Abort the delivery, if that can still be done; return whether it is. What it has written is removed."""
        return self._abort(asyncio.CancelledError())

    def fail(self, exc: BaseException) -> bool:
        """Abort the delivery with *exc* (Twisted's ``fail``), if that can still be done; return whether it is.

        What no future takes, and what a loop takes for its own, becomes the cause of an AppendError.
        """
        if not isinstance(exc, BaseException):
            raise TypeError(f"an append fails with an exception, not {type(exc).__name__}")
        is_fit = isinstance(exc, (Exception, asyncio.CancelledError))
        return self._abort(
            exc if is_fit and not isinstance(exc, StopIteration | StopAsyncIteration) else failure_of(exc)
        )

    def _abort(self, verdict: BaseException) -> bool:
        """Have the delivery end with *verdict*, unless that is decided already or group commit has begun with it."""
        if self._verdict is not None or self._state in (State.DELIVERED, State.UNCERTAIN):
            return False
        if self._entry is not None and not self._commit.withdraw(self._entry):
            return False
        self._verdict = verdict
        self._message = None
        self._release_place()
        if self._state is State.IDLE:
            self._state = next_state(self._state, Event.CANCEL)
            return True
        try:
            if self._reception is not None:
                self._reception.give_up()
        finally:  # a KeyboardInterrupt in a stop_producing
            with suppress(RuntimeError):  # a closed loop, on which a coroutine is being thrown away
                self._end_if_quiet()
        return True

    def _release_place(self) -> None:
        if self._place is not None:
            self._place.release()

    def _end_if_quiet(self) -> None:
        """End an aborted delivery once nothing acts for it any more."""
        if self._verdict is None or self._ending is None or self._ending.done():
            return
        if self._reception is not None:
            if self._reception.busy:
                return
            if self._reception.spool.leftover is not None:
                self._verdict.add_note(self._reception.spool.leftover)
        if not isinstance(self._verdict, asyncio.CancelledError):
            event = Event.FAIL
        else:
            event = Event.CANCEL if self._state is State.RECEIVING else Event.WITHDRAW
        self._end(event, self._verdict)

    def _end(self, event: Event, outcome: Delivered | BaseException) -> None:
        self._state = next_state(self._state, event)
        if self._timer is not None:
            self._timer.cancel()
        if self._entry is None:
            self._maildir.mailbox.end_task(self, failed=True)
        reception, self._reception = self._reception, None
        if reception is not None:
            reception.let_go()
        assert self._ending is not None
        self._ending.settle(outcome)
