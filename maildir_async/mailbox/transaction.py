"""Many appends, all or none.

Each message is written to ``tmp/``, synced and closed by a round like any other, which does not publish it: it is
*held*. When all are, one more round begins with publishing them, and one sync of the directory makes them durable.
A held message has no descriptor and no place among the pending: any number of them fits into any bounds.

The `Ledger` is the mailbox that group commit sees: what it is told there, in its own threads, decides what becomes of
the whole. So nothing is left undone by a loop that vanishes.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import partial

from maildir_async.commit.batch import PUBLISH, let_go
from maildir_async.commit.entry import SETTLED, TAKEN, Entry
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.rounds import Round
from maildir_async.commit.usage import Asking
from maildir_async.commit.waiting import UncancellableFuture, run_in_thread, until_done
from maildir_async.disk.calls import remove
from maildir_async.errors import AppendError, MaildirError, UncertainAppendError, closed_error
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.options import MessageOptions
from maildir_async.group_commit import GroupCommit
from maildir_async.mailbox.many import settle_many
from maildir_async.receive.messages import Message, check_message
from maildir_async.receive.submission import Maildir
from maildir_async.receive.task import AppendTask
from maildir_async.receive.user_code import failure_of, is_foreign

__all__ = ["append_atomically"]


class _Failed(BaseException):
    """A message has failed, so that no other need be begun."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.failure = failure


async def append_atomically(
    maildir: Maildir,
    messages: Iterable[Message] | AsyncIterable[Message],
    options: MessageOptions,
    *,
    concurrency: int,
    on_progress: Callable[[int, int | None, int], object] | None,
) -> list[Delivered]:
    """Deliver *messages*, all or none. See `maildir_async.Maildir.append_many`."""
    ledger = Ledger(maildir, maildir.mailbox_of(options.get("folder")))

    async def append(message: Message) -> Entry:
        try:
            return await _hold(ledger, message, options)
        except Exception as exc:
            raise _Failed(exc) from exc
        except asyncio.CancelledError as exc:
            if not is_foreign(exc):
                raise
            raise _Failed(failure_of(exc)) from exc

    try:
        settled = await settle_many(append, messages, concurrency=concurrency, on_progress=on_progress)
        entries = [entry for entry in settled if isinstance(entry, Entry)]
    except BaseException as exc:
        failure = exc.failure if isinstance(exc, _Failed) else exc
        await ledger.give_up(failure)
        raise failure from failure.__cause__
    if not entries:
        return []
    await ledger.publish(entries)
    return [entry.delivered for entry in entries if entry.delivered is not None]


async def _hold(ledger: "Ledger", message: Message, options: MessageOptions) -> Entry:
    """Have *message* written and synced, and return what is to be published."""
    check_message(message)
    task = AppendTask(ledger.maildir, message, **options)
    task.hold()
    ledger.begin_message()
    await task
    entry = task.entry
    assert entry is not None
    return entry


class _Shown:
    """A `maildir_async.Maildir` as far as a delivery needs one, with another mailbox."""

    def __init__(self, maildir: Maildir, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self.durability: Durability = maildir.durability
        self.size_limit = maildir.size_limit
        self.duplicates = maildir.duplicates
        self.commit: GroupCommit = maildir.commit

    def mailbox_of(self, folder: str | Sequence[str] | None) -> Mailbox:
        """Return the one, which stands for the folder that was asked for."""
        return self._mailbox


class Ledger(Mailbox):
    """The messages of one transaction, from the first that is begun until all are there, or none.

    Args:
        maildir: where they go.
        real: its mailbox, or that of one of its folders.

    Attributes:
        maildir: the same, with this for its mailbox.

    """

    __slots__ = (
        *("_begun", "_commit", "_failure", "_generation", "_held", "_is_given_up", "_is_over", "_notes"),
        *("_publishing", "_real", "_unsettled", "_waiter", "maildir"),
    )

    def __init__(self, maildir: Maildir, real: Mailbox) -> None:
        super().__init__(real.directories, real.names, real.mode, folder=real.folder)
        self._real = real
        self.quota = real.quota
        self._commit = maildir.commit
        self._generation = self._commit.admission.generation
        self._begun = 0
        self._held: list[Entry] = []
        self._is_given_up = False
        self._publishing: Sequence[Entry] = ()
        self._unsettled = 0  # of those
        self._is_over = False
        self._waiter: asyncio.Future[None] | None = None
        self._failure: MaildirError | None = None
        self._notes: list[str] = []  # of what could not be removed
        self.maildir = _Shown(maildir, self)

    def begin_message(self) -> None:
        """Count a message in; MaildirError if the maildir has been closed."""
        if not self._real.begin():
            raise closed_error(self.directories.path)
        if not self._begun:
            self._commit.stream_opened(self, asyncio.get_running_loop())
        self._begun += 1

    # Giving it up.

    async def give_up(self, exc: BaseException) -> None:
        """Remove what is held, and return when that is done; notes of *exc* say what could not be.

        Where this is thrown away with its loop nothing waits, and a thread does the same. In a forked child the
        messages are the parent's.
        """
        if self._generation != self._commit.admission.generation:
            return
        self._commit.streams.over(self)
        try:
            removing = run_in_thread(asyncio.get_running_loop(), self._commit.streams.crew, self.discard)
        except RuntimeError:  # there is no loop any more, or no thread to be had
            with contextlib.suppress(RuntimeError):
                self._commit.streams.crew.run(self.discard)
            return
        if isinstance(exc, GeneratorExit):
            return
        interrupted: asyncio.CancelledError | None = None
        try:
            await until_done(removing)
        except asyncio.CancelledError as cancelled:
            interrupted = cancelled
        for note in self._notes:
            (interrupted or exc).add_note(note)
        if interrupted is not None:
            raise interrupted

    def discard(self) -> None:
        """Remove what is held, now and from now on, unless it is being published. Blocks."""
        with self._lock:
            if self._publishing:
                return
            self._is_given_up = True
            held, self._held = self._held, []
        self._remove(held)
        begun, self._begun = self._begun, 0
        for _ in range(begun):
            self._real.withdrawn()

    def _remove(self, held: Iterable[Entry]) -> None:
        for entry in held:
            entry.delivered = None
            entry.fail(AppendError("the transaction was given up", errno=errno.ECANCELED, stage="queue"))
            self._notes += getattr(entry.error, "__notes__", ())
            let_go([entry])

    # Publishing.

    async def publish(self, entries: Sequence[Entry]) -> None:
        """Publish *entries*, in this order; return when all are as durable as asked for, or raise when none is there.

        A cancellation is raised after that.
        """
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        self._publishing, self._unsettled = entries, len(entries)
        self._commit.streams.over(self)
        for entry in entries:
            entry.delivered, entry.plan.held, entry.state = None, False, TAKEN
        interrupted: asyncio.CancelledError | None = None
        try:
            self._commit.queue.committers.run(partial(self._publish, loop))
        except RuntimeError as exc:
            failure = AppendError(f"no worker thread could be started: {exc}", errno=errno.EAGAIN, stage="publish")
            self._held, self._publishing = list(entries), ()
            await self.give_up(failure)
            raise failure from exc
        try:
            await waiter
        except asyncio.CancelledError as exc:
            interrupted = exc
        if interrupted is not None:  # see `maildir_async.mailbox.whole.settle`
            if not self._is_over:
                self._waiter = over = UncancellableFuture[None](loop=loop)
                await until_done(over)
            if self._failure is not None:
                for note in (f"none was published: {self._failure}", *self._notes):
                    interrupted.add_note(note)
            raise interrupted
        if self._failure is not None:
            raise self._failure

    def _publish(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take all of them through the last steps. In a thread of its own, which may hang alone."""
        queue, entries = self._commit.queue, list(self._publishing)
        round_: Round | None = None
        try:
            for entry, name in zip(entries, self.names.take(len(entries)), strict=True):
                entry.name = f"{name},S={entry.size},W={entry.wire_size}"  # names sort by time of publication
            round_ = Round(entries, queue, step=PUBLISH)
            let_go(entries)
            round_.drive()
            queue.settle(round_.entries)
        except BaseException as exc:
            let_go(entries)
            left = [entry for entry in (entries if round_ is None else round_.entries) if entry.state < SETTLED]
            for entry in left:
                entry.give_up(exc)
            if round_ is not None:
                round_.close()
            queue.settle(left)
        finally:
            with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
                loop.call_soon_threadsafe(self._look)

    def record(self, entries: Sequence[Asking]) -> None:
        """Record nothing yet: what is held, or is published, may be taken back. The real mailbox does in the end."""

    def settled(self, entries: Sequence[Asking]) -> None:
        """Called by group commit, in its threads: they are held, or published, or have failed.

        Where the transaction has been given up meanwhile, they are removed. Whoever brings the last of those that are
        being published decides on all.
        """
        ours = [entry for entry in entries if isinstance(entry, Entry)]
        if not self._publishing:
            super().settled(entries)
            held = [entry for entry in ours if entry.error is None]
            with self._lock:
                is_late = self._is_given_up
                if not is_late:
                    self._held += held
            if is_late:  # nobody waits for that, and the thread that leads must not
                try:
                    self._commit.streams.crew.run(partial(self._remove, held))
                except RuntimeError:  # no other thread to be had
                    self._remove(held)
            return
        with self._lock:
            self._unsettled -= len(ours)
            if self._unsettled:
                return
        try:
            self._decide(self._publishing)
        finally:
            try:
                self._real.settled(self._publishing)
            finally:  # and not before, or a cancellation would be raised while this records what they take
                self._is_over = True
            self._real.tell_if_drained()
            with contextlib.suppress(RuntimeError):
                ours[0].loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """On the loop: let whoever waits go on if it is over."""
        if self._is_over and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _decide(self, entries: Sequence[Entry]) -> None:
        """All have their outcomes: if one has failed, take back what has been published. Blocks."""
        failed = next((entry for entry in entries if entry.error is not None), None)
        if failed is None or failed.error is None:
            return
        self._failure = failure = failed.error
        for entry in entries:
            self._notes += getattr(entry.error, "__notes__", ()) if entry is not failed else ()
        gone = [entry for entry in entries if entry.path and self._take_back(entry)]
        self._sync_directories(gone)
        if isinstance(failure, UncertainAppendError) and failed in gone:  # it is not visible any more
            self._failure = AppendError(
                f"{self.directories.path}: publishing failed: {failure}", errno=failure.errno, stage="publish"
            )
            self._failure.__cause__ = failure
        for entry in gone:
            entry.delivered, entry.error, entry.path = None, self._failure, ""
        for note in self._notes:
            self._failure.add_note(note)

    def _take_back(self, entry: Entry) -> bool:
        """Remove a message that has been published; return whether it has been, or note that not."""
        try:
            remove(self.directories.disk, entry.path)
        except OSError as exc:
            why = "a reader has moved or removed it" if isinstance(exc, FileNotFoundError) else exc.strerror or str(exc)
            self._notes.append(f"{entry.path} could not be taken back: {why}")
            return False
        return True

    def _sync_directories(self, gone: Iterable[Entry]) -> None:
        disk = self.directories.disk
        for path in sorted({os.path.dirname(entry.path) for entry in gone}):
            try:
                fd = disk.open_directory(path)
                try:
                    disk.sync(fd)
                finally:
                    disk.close(fd)
            except OSError as exc:
                self._notes.append(f"a power cut may bring back what was removed from {path}: {exc.strerror or exc}")
