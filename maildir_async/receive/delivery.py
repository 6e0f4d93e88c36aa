"""One message's delivery from its start to its outcome, whoever gives it and however it comes.

Everything here runs on the loop's thread and blocks nowhere. Its life is `maildir_async.format.states`. While its
message comes, a `Reception` receives it; when it is whole, a `Submission` is the message in group commit; how it ends
is the `Ending`. `verdict` says why it is given up, if it is: from then on all that is waited for is that nothing acts
for it any more.
"""

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Chunks, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.errors import AppendError, UncertainAppendError, busy_error, closed_error
from maildir_async.format.delivered import Delivered
from maildir_async.format.states import Event, State, event_of_abort, next_state
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.ending import Ending
from maildir_async.receive.messages import BytesLike
from maildir_async.receive.producers import Consumer, as_producer
from maildir_async.receive.reception import Reception
from maildir_async.receive.sources import cost_of
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.submission import Maildir, Submission
from maildir_async.receive.user_code import CallersContext, failure_of, fit_for_future, goes_on

__all__ = ["Delivery"]


class Delivery:
    """Carries one message into group commit.

    Args:
        maildir: where to.
        mailbox: where in that.
        plan: what is asked for.
        size_limit: bytes of the largest message taken.
        on_progress: called with the bytes stored so far.
        deadline: how long the message may take to come.

    Attributes:
        state: where it stands. `State.ABORTED` only once ``tmp/`` is empty.
        verdict: why it is given up, once that is decided; its end may be still to come.
        ending: how it ends; from the start on.
        submission: the message in group commit, when it is whole.
        place: among the pending deliveries, which is given back in the end.
        unread: the message, if it is to be read and is not yet, and what takes it.

    """

    def __init__(
        self,
        maildir: Maildir,
        mailbox: Mailbox,
        plan: Plan,
        *,
        size_limit: int | None,
        on_progress: Callable[[int], object] | None,
        deadline: timedelta,
    ) -> None:
        self._maildir = maildir
        self._size_limit = size_limit
        self._on_progress = on_progress
        self._deadline = deadline
        self.state = State.IDLE
        self.verdict: BaseException | None = None
        self.ending: Ending | None = None
        self.reception: Reception | None = None  # while a message comes that is not whole at once
        self.unread: tuple[Any, Consumer] | None = None
        self.submission = Submission(mailbox, plan)
        self.place: Place | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Made by the start:
        self._loop: asyncio.AbstractEventLoop
        self._commit: GroupCommit
        self._context: CallersContext

    @property
    def is_orphan(self) -> bool:
        """Whether its loop has been closed: it will not be settled, whatever becomes of its message."""
        return self._loop.is_closed()

    @property
    def is_whole(self) -> bool:
        """Whether its message is in group commit, or has been."""
        return self.submission.is_made

    @property
    def is_admitted(self) -> bool:
        """Whether it has a place among the pending deliveries: nothing is read or written before."""
        return self.place is not None and self.place.granted

    @property
    def is_fed_by_hand(self) -> bool:
        """Whether it takes more, and from no producer."""
        is_receiving = self.state is State.RECEIVING and self.verdict is None
        return is_receiving and (self.reception is None or self.reception.feed.producer is None)

    # Its beginning.

    def begin(self, message: Any, consumer: Consumer) -> None:
        """Begin on the running loop, and have *message*, unless it is None, read into *consumer*.

        MaildirError if the maildir takes no more, which is the outcome then. What else goes wrong is the outcome too.
        """
        loop = asyncio.get_running_loop()
        state, self._loop = next_state(self.state, Event.START), loop
        self._commit = self._maildir.commit
        self._context = CallersContext()
        self.ending = Ending(self, loop)
        try:
            mailbox = self.submission.mailbox
            if not mailbox.begin_task(self):
                raise closed_error(mailbox.directories.path)
            self.state = state
            self._begin(loop, message, consumer)
        except BaseException as exc:
            self.ending.tell()
            if self.state is State.IDLE:  # refused
                self.state, self.verdict = next_state(self.state, Event.FAIL), exc
                if self.place is not None:
                    self.place.release()
                self.ending.settle(exc)
            else:
                self._abort(failure_of(exc))
            raise

    def _begin(self, loop: asyncio.AbstractEventLoop, message: Any, consumer: Consumer) -> None:
        cost = cost_of(message)
        if self.place is None:
            self.place = self._commit.request_place(cost, loop, self._admitted)
        if self.place is None:
            self._abort(busy_error())
            return
        if type(message) is bytes and self.place.granted and cost <= CHUNK_SIZE:
            self._take_whole(message)
            return
        self.unread = None if message is None else (message, consumer)
        # The timer also keeps the delivery while nobody else does: a loop forgets its timers when it is closed.
        self._timer = loop.call_later(self._deadline.total_seconds(), self._expired)
        if self.place.granted:
            self._admitted()

    def _take_whole(self, message: bytes) -> None:
        """Commit a message that is short, in memory and whole: there is nothing to wait for, nor to be asked."""
        if self._size_limit is None or not self.receiving().is_too_large(len(message)):
            self.state = next_state(self.state, Event.END)
            self._submit(message)

    def _admitted(self) -> None:
        """Begin to read, and to write: there is a place among the pending deliveries."""
        if self.verdict is not None:
            return
        unread, self.unread = self.unread, None
        reception = self.receiving()
        if unread is None:
            reception.admitted()
            self._commit_if_written()
            return
        try:
            producer = self._context.run(as_producer, *unread)
        except BaseException as exc:  # by its __iter__ or __aiter__
            self._abort(failure_of(exc))
            if goes_on(exc):
                raise
        else:
            reception.feed.register(producer, streaming=False)

    def _expired(self) -> None:
        text = f"the message was not whole after {self._deadline}"
        self._abort(AppendError(text, errno=errno.ETIMEDOUT, stage="receive"))

    # Its message.

    def receiving(self) -> Reception:
        """Return what receives the message; after the end, something to stop a producer that comes too late."""
        if self.reception is not None:
            return self.reception
        submission, file = self.submission, self.submission.file or self.submission.open_file()
        reception = Reception(self, self._loop, submission, file, self._commit, self._context, self._size_limit)
        if self.ending is not None and not self.ending.done():
            self.reception = reception
        return reception

    def take(self, chunk: BytesLike) -> None:
        """Take a chunk. Ignored after the end or an abort."""
        if self.state is State.RECEIVING and self.verdict is None:
            self.state = next_state(self.state, Event.DATA)
            self.receiving().take(chunk)

    def end_message(self) -> None:
        """Called when the message is whole. Ignored after an abort; RuntimeError if it has ended before."""
        if self.reception is not None:
            self.reception.feed.unregister()
        if self.verdict is None:
            self.state = next_state(self.state, Event.END)
            if self._timer is not None:
                self._timer.cancel()
            self._commit_if_written()

    def tell_progress(self) -> None:
        """Tell how much is stored."""
        if self._on_progress is not None:
            self._context.show(self._loop, self._on_progress, self.submission.bytes_written)

    # Its commit.

    def go_on(self) -> None:
        """Commit if the message is whole, or end if it is given up, once nothing acts for it any more."""
        if self.verdict is None:
            self._commit_if_written()
        else:
            self._end_if_quiet()

    def _commit_if_written(self) -> None:
        if self.state is State.COMMITTING and not self.submission.is_made and self.is_admitted:
            chunks = self.receiving().take_rest()
            if chunks is not None:
                self._submit(chunks)

    def _submit(self, chunks: Chunks) -> None:
        self.submission.make(
            chunks,
            loop=self._loop,
            commit=self._commit,
            place=self.place,
            settled=self._settled,
            to=self._commit if self.reception is None else self.reception.spool,
        )

    def _settled(self, entry: Entry) -> None:
        """Take the outcome of *entry*, with which group commit has done."""
        error = entry.error
        if self.verdict is not None:  # it has been withdrawn
            return
        if error is None:
            assert entry.delivered is not None
            if self._on_progress is not None:
                # In a turn of its own, so that what it raises is nobody else's; before whoever awaits the outcome.
                self._loop.call_soon(self.tell_progress)
            self._end(Event.COMMIT, entry.delivered)
        elif isinstance(error, UncertainAppendError):
            self._end(Event.SYNC_FAIL, error)
        else:
            self.verdict = error
            self._end(Event.FAIL, error)

    # Giving it up, and its end.

    def cancel(self) -> bool:
        """Abort, if that can still be done; return whether it is. What has been written is removed."""
        return self._abort(asyncio.CancelledError())

    def fail(self, exc: BaseException) -> bool:
        """Abort with *exc*, or what is fit for it, if that can still be done; return whether it is."""
        return self._abort(fit_for_future(exc))

    def _abort(self, verdict: BaseException) -> bool:
        """Have it end with *verdict*, unless that is decided already or group commit has begun with it."""
        if self.verdict is not None or self.state in (State.DELIVERED, State.UNCERTAIN):
            return False
        if self.submission.is_made and not self.submission.withdraw(self._commit):
            return False
        self.verdict = verdict
        self.unread = None
        if self.place is not None:
            self.place.release()
        if self.state is State.IDLE:
            self.state = next_state(self.state, Event.CANCEL)
            return True
        try:
            if self.reception is not None:
                self.reception.give_up()
        finally:  # a KeyboardInterrupt in a stop_producing
            with suppress(RuntimeError):  # a closed loop, on which a coroutine is being thrown away
                self._end_if_quiet()
        return True

    def _end_if_quiet(self) -> None:
        """End what is given up once nothing acts for it any more."""
        if self.verdict is None or self.ending is None or self.ending.done():
            return
        if self.reception is not None:
            if self.reception.busy:
                return
            if self.reception.spool.leftover is not None:
                self.verdict.add_note(self.reception.spool.leftover)
        is_cancelled = isinstance(self.verdict, asyncio.CancelledError)
        self._end(event_of_abort(self.state, is_cancelled=is_cancelled), self.verdict)

    def _end(self, event: Event, outcome: Delivered | BaseException) -> None:
        self.state = next_state(self.state, event)
        if self._timer is not None:
            self._timer.cancel()
        self.submission.mailbox.end_task(self, failed=not (self.submission.is_made or isinstance(outcome, Delivered)))
        reception, self.reception = self.reception, None
        if reception is not None:
            reception.let_go()
        assert self.ending is not None
        self.ending.settle(outcome)
