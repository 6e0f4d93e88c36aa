"""The append task: carries one message from its producer through ``tmp/`` into group commit, and tells the outcome.

Everything here runs on the loop's thread and blocks nowhere. The life of a task is
`maildir_async.format.states`. What is under way beside it is told by its `Feed` (code of the producer), its `Spool` (writes to ``tmp/``) and `_entry` (the
message in group commit); `_verdict` says why it is being aborted, if it is.
"""

import asyncio
import errno
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

import anyio

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Entry
from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.disk.directories import Directories
from maildir_async.disk.tmpfile import TmpFile
from maildir_async.errors import (
    AppendError,
    BusyError,
    MaildirError,
    MessageTooLargeError,
    UncertainAppendError,
    append_error,
)
from maildir_async.format.content import Content, Newline, check_newline, check_prefix
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.names import UniqueNames, check_flags
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
from maildir_async.helper.spool import HelperSpool
from maildir_async.receive.buffer import frozen
from maildir_async.receive.feed import Feed
from maildir_async.receive.producers import as_producer, source_error
from maildir_async.receive.sources import BytesLike, check_chunk, check_message
from maildir_async.receive.spool import CHUNK_SIZE, Spool

__all__ = ["AppendTask", "Mailbox", "busy_error", "cost_of"]

#: Bytes buffered past which a producer that ignores its pause is given up.
HARD_LIMIT: Final = 16 * 2**20


def cost_of(message: Any) -> int:
    """Return the bytes that *message* may hold in memory: two chunks, if they come as they are asked for."""
    return len(message) if isinstance(message, (bytes, bytearray)) else 2 * CHUNK_SIZE


def busy_error() -> BusyError:
    """Return what a delivery fails with that has no place among the pending ones."""
    return BusyError("too many deliveries are pending", errno=errno.EAGAIN, stage="queue")


class Mailbox(Protocol):
    """What an append needs of its `maildir_async.Maildir`."""

    directories: Directories
    names: UniqueNames
    file_mode: int
    durability: Durability
    size_limit: int | None

    @property
    def commit(self) -> GroupCommit:
        """Where its deliveries share syncs."""
        ...

    def begun(self, task: "AppendTask") -> None:
        """Learn of a task that starts; raise MaildirError if none may."""
        ...

    def ended(self, task: "AppendTask") -> None:
        """Learn of a task that is settled."""
        ...

    def record(self, entry: Entry) -> None:
        """Learn of an outcome, in a worker thread, in the order of publication."""
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
        "_deadline",
        "_entry",
        "_feed",
        "_future",
        "_link_settled",
        "_linked",
        "_loop",
        "_maildir",
        "_message",
        "_on_progress",
        "_over",
        "_place",
        "_received",
        "_result",
        "_size_limit",
        "_spool",
        "_state",
        "_timer",
        "_tmpfile",
        "_told",
        "_verdict",
        "_waiters",
        "links",
    )

    def __init__(
        self,
        maildir: Mailbox,
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
        self._tmpfile = TmpFile(
            maildir.directories,
            maildir.names,
            Content(prefix=check_prefix(prefix), newline=check_newline(newline)),
            mode=maildir.file_mode,
            flags=check_flags(flags),
            mtime_ns=nanoseconds(received_at),
            durability=check_durability(maildir.durability if durability is None else durability),
        )
        self._state = State.IDLE
        self._verdict: BaseException | None = None
        self._told = False  # send() has raised the verdict: the future need not be asked for it
        self._received = 0
        self._entry: Entry | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []  # send() that waits for room, and all that await the outcome
        self._feed: Feed | None = None  # these two are made when a message begins to come that is not whole at once
        self._spool: Spool | HelperSpool | None = None
        self._future: _DeliveryFuture | None = None
        self._over: UncancellableFuture[None] | None = None
        self._place: Place | None = None
        self._result: Delivered | BaseException | None = None
        self._linked: Sequence[Mailbox] = ()
        self.links: Sequence[Entry] = ()  # made for those when the message is whole; they outlive the task
        self._link_settled: Callable[[Entry], object] = id
        # Made by start():
        self._loop: asyncio.AbstractEventLoop
        self._commit: GroupCommit

    @property
    def state(self) -> State:
        """Where it stands. `State.ABORTED` only once ``tmp/`` is empty."""
        return self._state

    @property
    def future(self) -> "asyncio.Future[Delivered]":
        """The outcome, made by `start`: a `Delivered`, an exception, or cancelled if the delivery was.

        It is set truthfully even where whoever awaited the task was cancelled. To cancel it is to cancel the task.
        """
        if self._future is None:
            if not hasattr(self, "_loop"):
                raise RuntimeError("the append has not been started")
            self._future = _DeliveryFuture(self, self._loop)
            if self._result is not None:
                self._future.settle(self._result)
        return self._future

    @property
    def tmp_path(self) -> str | None:
        """Its file in ``tmp/``, once there has been one: a short message gets one only in group commit."""
        return self._tmpfile.path or None

    @property
    def bytes_written(self) -> int:
        """Bytes written to its file so far, prefix included."""
        return self._tmpfile.content.size

    @property
    def is_orphan(self) -> bool:
        """Whether its loop has been closed: it will not be settled, whatever becomes of its message."""
        return self._loop.is_closed()

    def __repr__(self) -> str:
        return f"<AppendTask {self._state.name} {self._received} bytes to {self._maildir.directories.path}>"

    def start(self) -> "asyncio.Future[Delivered]":
        """Begin on the running loop, and return `future`. RuntimeError if it was started before: it adds one message.

        What goes wrong from here on is told through the future.
        """
        self.begin()
        return self.future

    def begin(self) -> None:
        """As `start`, without making a `future` of it: for those who await the task itself."""
        loop = asyncio.get_running_loop()
        state, self._loop = next_state(self._state, Event.START), loop
        self._maildir.begun(self)
        self._state = state
        self._commit = self._maildir.commit
        message = self._message
        cost = cost_of(message)
        if self._place is None:
            self._place = self._commit.request_place(cost, loop, self._admitted)
        if self._place is None:
            self._abort(busy_error())
        elif self._place.granted and type(message) is bytes and cost <= CHUNK_SIZE:
            self._take_whole(message)
        else:
            # The timer also keeps the task while nobody else does: a loop forgets its timers when it is closed.
            self._timer = self._loop.call_later(self._deadline.total_seconds(), self._expired)
            if self._place.granted:
                self._admitted()

    def _take_whole(self, message: bytes) -> None:
        """Nearly all messages: short, in memory and whole. There is nothing to wait for, nor to be asked."""
        self._message = None
        if not self._is_too_large(len(message)):
            self._received = len(message)
            self._state = next_state(self._state, Event.END)
            self._submit((message,))

    def __await__(self) -> Generator[Any, None, Delivered]:
        return self._until_settled().__await__()

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
            if self._state is State.RECEIVING and self._verdict is None and self._reception[0].producer is None:
                self.unregister_producer()
            await self
        else:
            self.cancel()
            await self._until_over()

    def cancel(self) -> bool:
        """Abort the delivery, if that can still be done; return whether it is. What it has written is removed."""
        return self._abort(asyncio.CancelledError())

    def fail(self, exc: BaseException) -> bool:
        """Abort the delivery with *exc* (Twisted's ``fail``), if that can still be done; return whether it is."""
        return self._abort(exc)

    async def send(self, data: BytesLike) -> None:
        """Take a chunk, and wait while the disk is behind.

        Raises what the delivery has failed with; RuntimeError if the message has ended.
        """
        self._check_receiving()
        self.write(data)
        while not self._has_room():
            await self._change()
        self._check_receiving()

    async def until_file(self) -> None:
        """Return when a file has what has come, of which there must be a chunk to write (512 KiB).

        Raises what the delivery has failed with.
        """
        while self.tmp_path is None and self._verdict is None:
            await self._change()
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
        if self._state is not State.RECEIVING or self._verdict is not None:
            return
        chunk = frozen(data)
        if self._is_too_large(self._received + len(chunk)):
            return
        feed, spool = self._reception
        if spool.size >= HARD_LIMIT:
            text = f"{spool.size} bytes are waiting for the disk, and more come without a pause"
            self._abort(AppendError(text, errno=errno.ENOBUFS, stage="receive"))
            return
        self._state = next_state(self._state, Event.DATA)
        self._received += len(chunk)
        spool.add(chunk)
        if self._is_admitted:
            spool.write_out()
        feed.brake()

    def register_producer(self, producer: Any, streaming: bool) -> None:
        """Take the message from *producer*: one that pushes, if *streaming*; or else one that is asked for its first
        chunk here and now, and for each further one when there is room.

        RuntimeError if one is registered, or the message has ended. If the delivery has failed, *producer* is stopped.
        """
        self._start_if_idle()
        self._check_unread()
        if self._verdict is not None:
            self._reception[0].stop_other(producer)
        elif self._state is State.RECEIVING:
            self._reception[0].register(producer, streaming)
        else:
            raise RuntimeError(f"an append that is {self._state.value} takes no producer")

    def unregister_producer(self) -> None:
        """End the message. Ignored after an abort; RuntimeError if it has ended before."""
        self._start_if_idle()
        self._check_unread()
        if self._feed is not None:
            self._feed.unregister()
        if self._verdict is None:
            self._state = next_state(self._state, Event.END)
            if self._timer is not None:
                self._timer.cancel()
            self._commit_if_written()

    def take_place(self, place: Place) -> None:
        """Go by *place*, which has been granted, and give it back in the end. To be called before the start."""
        self._place = place

    def link_into(self, mailboxes: Sequence[Mailbox], settled: Callable[[Entry], object]) -> None:
        """Have the message published in *mailboxes* too, as hard links to its file. To be called before the start.

        *settled* is called on the loop with each of `links`, whose outcome is its own; with none unless group commit
        has begun with the message, by which they are all `taken`.
        """
        self._linked, self._link_settled = mailboxes, settled
        self._tmpfile.links = True

    def expect_size(self, size: int) -> None:
        """Learn the size of the whole message: one that is too large is refused before anything of it is written."""
        self._is_too_large(size)

    # Receiving.

    @property
    def _reception(self) -> tuple[Feed, Spool | HelperSpool]:
        """What a message needs that is not whole at once."""
        if self._feed is None:
            self._feed = Feed(
                self._loop,
                has_room=self._has_room,
                received=lambda: self._received,
                failed=lambda exc: self._abort(exc if isinstance(exc, asyncio.CancelledError) else source_error(exc)),
                quiet=self._quiet,
            )
        if self._spool is None:
            commit, tmpfile = self._commit, self._tmpfile
            told = (self._written, self._write_failed, self._quiet)
            if commit.channel(self._loop, tmpfile) is None:
                self._spool = Spool(self._loop, tmpfile, commit, *told)
            else:
                channel = partial(commit.channel, self._loop, tmpfile)
                self._spool = HelperSpool(channel, tmpfile, commit.submit, *told)
        return self._feed, self._spool

    def _start_if_idle(self) -> None:
        if self._state is State.IDLE:
            self.start()

    def _check_unread(self) -> None:
        if self._message is not None:
            raise RuntimeError("this append has a message, which it reads itself")

    def _admitted(self) -> None:
        """There is a place among the pending deliveries: reading may begin, and writing."""
        if self._verdict is not None:
            return
        message, self._message = self._message, None
        if message is not None:
            try:
                producer = as_producer(message, self)
            except Exception as exc:  # by its __iter__ or __aiter__
                self._abort(source_error(exc))
            else:
                self._reception[0].register(producer, streaming=False)
            return
        self._reception[1].write_out()
        self._made_room()
        self._commit_if_written()

    @property
    def _is_admitted(self) -> bool:
        return self._place is not None and self._place.granted

    def _has_room(self) -> bool:
        """Whether more may come. After an abort it may, so that nobody waits any longer."""
        if self._verdict is not None:
            return True
        return self._is_admitted and self._reception[1].has_room

    def _made_room(self) -> None:
        self._changed()
        self._reception[0].prompt()

    def _changed(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _is_too_large(self, size: int) -> bool:
        if self._size_limit is None or size <= self._size_limit:
            return False
        text = f"the message has more than {self._size_limit} bytes"
        self._abort(MessageTooLargeError(text, errno=errno.EFBIG, stage="receive"))
        return True

    def _check_receiving(self) -> None:
        self._start_if_idle()
        if isinstance(self._verdict, asyncio.CancelledError):
            raise AppendError("the append was cancelled", errno=errno.ECANCELED, stage="receive")
        if self._verdict is not None:
            self._told = True
            raise self._verdict
        if self._state is not State.RECEIVING:
            raise RuntimeError(f"an append that is {self._state.value} takes no more bytes")

    def _expired(self) -> None:
        text = f"the message was not whole after {self._deadline}"
        self._abort(AppendError(text, errno=errno.ETIMEDOUT, stage="receive"))

    # Writing to tmp/, and committing.

    def _written(self) -> None:
        self._tell_progress()
        self._made_room()

    def _write_failed(self, exc: BaseException) -> None:
        if not isinstance(exc, (asyncio.CancelledError, MaildirError)):
            exc = append_error(exc, path=self._maildir.directories.path, stage=self._tmpfile.stage)
        self._abort(exc)

    def _quiet(self) -> None:
        """Something that acted for this has ended."""
        if self._verdict is None:
            self._commit_if_written()
        else:
            self._end_if_quiet()

    def _commit_if_written(self) -> None:
        if self._state is not State.COMMITTING or self._entry is not None or self._place is None:
            return
        spool = self._reception[1]
        if self._place.granted and not spool.busy:
            self._submit(spool.take_rest())

    def _submit(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        assert self._place is not None
        if self._linked:
            self.links = [self._link(mailbox) for mailbox in self._linked]
        self._entry = Entry(
            self._tmpfile,
            chunks,
            loop=self._loop,
            place=self._place,
            settle=self._settled,
            record=self._maildir.record,
            links=self.links,
        )
        (self._spool or self._commit).submit(self._entry)

    def _link(self, mailbox: Mailbox) -> Entry:
        file = self._tmpfile
        link = TmpFile(
            mailbox.directories,
            mailbox.names,
            file.content,
            mode=file.mode,
            flags=file.flags,
            mtime_ns=file.mtime_ns,
            durability=file.durability,
            source=file,
        )
        return Entry(link, (), loop=self._loop, place=None, settle=self._link_settled, record=mailbox.record)

    def _settled(self, entry: Entry) -> None:
        """Group commit has done with it."""
        error = entry.error
        if error is None:
            self._end(Event.COMMIT, entry.delivered)
            self._tell_progress()  # whoever awaits the outcome has not had a turn yet
        elif isinstance(error, UncertainAppendError):
            self._end(Event.SYNC_FAIL, error)
        else:
            self._verdict = error
            self._end(Event.FAIL, error)

    def _tell_progress(self) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(self._tmpfile.content.size)
        except Exception as exc:
            # A display must cost nobody his mail.
            self._loop.call_exception_handler({"message": "on_progress raised", "exception": exc})

    # Ending.

    def _abort(self, verdict: BaseException) -> bool:
        """Have the delivery end with *verdict*, unless that is decided already or group commit has begun with it."""
        if self._verdict is not None or self._state in (State.DELIVERED, State.UNCERTAIN):
            return False
        if self._entry is not None and not self._commit.withdraw(self._entry):
            return False
        self._verdict = verdict
        self._message = None
        if self._state is State.IDLE:
            self._state = next_state(self._state, Event.CANCEL)
            self._result = verdict
            return True
        # What does not need the loop comes first: it may be closed, and a coroutine on it being thrown away.
        if self._place is not None:
            self._place.release()
        ends = (self._spool.discard, self._feed.stop) if self._spool and self._feed else ()
        for step in (*ends, self._changed, self._end_if_quiet):
            with suppress(RuntimeError):
                step()
        return True

    def _end_if_quiet(self) -> None:
        """End an aborted delivery once nothing acts for it any more."""
        if self._verdict is None or self._result is not None:
            return
        if self._feed and self._spool:
            if self._feed.busy or self._spool.busy:
                return
            if self._spool.leftover is not None:
                self._verdict.add_note(self._spool.leftover)
        if not isinstance(self._verdict, asyncio.CancelledError):
            event = Event.FAIL
        else:
            event = Event.CANCEL if self._state is State.RECEIVING else Event.WITHDRAW
        self._end(event, self._verdict)

    def _end(self, event: Event, outcome: Delivered | BaseException | None) -> None:
        self._state = next_state(self._state, event)
        self._result = outcome
        if self._timer is not None:
            self._timer.cancel()
        if self._future is not None and outcome is not None:
            self._future.settle(outcome)
            if self._told:
                self._future.exception()
        self._entry = None
        if self._feed and self._spool:
            self._feed.forget()
            self._spool.forget()
        if self._over is not None:
            self._over.set_result(None)
        self._changed()
        self._maildir.ended(self)

    async def _until_settled(self) -> Delivered:
        if self._state is State.IDLE:
            self.begin()
        interrupted: asyncio.CancelledError | None = None
        try:
            while self._result is None:
                await self._change()
        except asyncio.CancelledError as exc:
            interrupted = exc
        except GeneratorExit:  # thrown away, with its loop
            self.cancel()
            raise
        if interrupted is None:
            if self._future is not None:
                return self._future.result()
            result = self._result
            if isinstance(result, Delivered):
                return result
            assert result is not None
            raise result
        # Not in the except clause: a second cancellation must not have the first as its context, by which anyio
        # would take it for its own.
        self.cancel()
        await self._until_over()
        if self._future is not None and not self._future.cancelled():
            self._future.exception()  # seen: it is not to be reported as never retrieved
        raise interrupted

    async def _until_over(self) -> None:
        """Wait until nothing acts for the delivery any more, through cancellation of every kind.

        The shield keeps an anyio scope from cancelling anew in every turn of the loop; the future does not let a
        native `asyncio.Task.cancel` through before it is done.
        """
        if self._state is not State.ABORTED and self._result is None:
            if self._over is None:
                self._over = UncancellableFuture(loop=self._loop)
            with anyio.CancelScope(shield=True):
                await self._over


class _DeliveryFuture(asyncio.Future[Delivered]):
    """The outcome of a task. Cancelling it cancels the task, which sets it when that is done, or too late."""

    def __init__(self, task: AppendTask, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._task: AppendTask | None = task

    def cancel(self, msg: Any = None) -> bool:
        if self._task is not None:
            self._task.cancel()
        return False

    def settle(self, outcome: Delivered | BaseException) -> None:
        self._task = None
        if isinstance(outcome, Delivered):
            self.set_result(outcome)
        elif isinstance(outcome, asyncio.CancelledError):
            super().cancel()
        else:
            self.set_exception(outcome)
