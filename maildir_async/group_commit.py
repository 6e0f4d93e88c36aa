"""Group commit: messages that are whole wait in one queue, and share their syncs.

Worker threads take everything that is waiting as one batch (a `Round`): what arrives while it is on the disk is the
next. Nothing waits for a timer, and a lone message goes at once. What a loop hands over in one turn goes over
together, and each loop is woken once per batch, for all of its results (`Turns`).
"""

import asyncio
import atexit
import contextlib
import errno
import os
import threading
import time
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio

from maildir_async.commit.admission import Admission, Place
from maildir_async.commit.donation import Donation
from maildir_async.commit.entry import Entry, families
from maildir_async.commit.rounds import Rest, Round
from maildir_async.commit.turns import Turns
from maildir_async.commit.waiting import run_in_thread
from maildir_async.disk.posix import syncfs_tells_errors
from maildir_async.disk.threads import Crew
from maildir_async.disk.tmpfile import TmpFile, discard_all
from maildir_async.errors import AppendError
from maildir_async.format.options import check_bool, check_count
from maildir_async.helper.channel import Channel
from maildir_async.helper.delegation import Delegation

__all__ = ["CommitStatistics", "GroupCommit", "default_commit"]

#: Messages in one batch. Past 64 the gain is small (research: 20 % at 128 on ext4, none on XFS); it bounds the
#: descriptors a batch holds: one for each message and one for each maildir.
MAX_BATCH: Final = 128

#: Threads that drive batches: one does, and each message that hangs takes another until it ends.
COMMITTERS: Final = 128

#: Threads for streams' writes and callers' files, each at most one at a time per message.
STREAM_THREADS: Final = 32

#: Seconds without any progress after which a batch goes on without the messages that hang.
PATIENCE_S: Final = 0.5

#: Seconds that the end of the interpreter waits for deliveries in flight: a hung disk must not hold it for ever.
EXIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class CommitStatistics:
    """A look at a `GroupCommit`.

    Attributes:
        pending: deliveries between start and end.
        pending_bytes: bytes they hold, or may hold, in memory.
        waiting: deliveries that wait for a place among the pending.
        queued: whole messages that no batch has taken yet.
        batches: batches so far.
        messages: messages in them.
        threads: worker threads now.
        helper_pid: process id of the helper process, if there is one.

    """

    pending: int
    pending_bytes: int
    waiting: int
    queued: int
    batches: int
    messages: int
    threads: int
    helper_pid: int | None


class GroupCommit:
    """The queue and the worker threads that maildirs share. Without one of your own, a process uses one for all.

    Give maildirs on a file system that may hang (NFS) one of their own, and the others need not wait for it.
    Usable from any number of loops and threads at once; a forked child finds it empty and working.

    Args:
        max_pending: deliveries that may be between start and end at once.
        max_pending_bytes: bytes they may hold in memory: the length of a message given as bytes, two chunks
            (1 MiB) for a stream. One message larger than this is admitted when it is alone.
        wait: past these bounds, `append` waits before it reads from its source; with False it raises `BusyError`.
        syncfs: sync the whole file system once for each batch (syncfs(2)) instead of each file of it. For a file system
            that holds nothing but mail: a batch then waits for all that anybody else has written there, too, and fails
            if any of that could not be. ValueError where the system does not tell such failures.
        helper_process: have another process do the work, for programs whose loop is always busy: CPython leaves their
            worker threads little time. It is started with the first message, ends with this process however that ends,
            and is replaced when it dies: what it had published by then is delivered, what else it had whole is
            delivered anew, and a message still being received fails. (If it cannot be found out what was published,
            the error says so: then an `AppendError` does not mean that nothing is there.) A message handed to it
            cannot be withdrawn.
            What does not use the system's own disk stays in this process, and so does everything while no helper can
            be started. To end it, `aclose`.

    """

    def __init__(
        self,
        *,
        max_pending: int = 4096,
        max_pending_bytes: int = 256 * 2**20,
        wait: bool = True,
        syncfs: bool = False,
        helper_process: bool = False,
    ) -> None:
        max_pending = check_count("max_pending", max_pending, least=1)
        max_pending_bytes = check_count("max_pending_bytes", max_pending_bytes, least=1)
        for name, value in (("wait", wait), ("syncfs", syncfs), ("helper_process", helper_process)):
            check_bool(name, value)
        if syncfs and not syncfs_tells_errors():
            raise ValueError("syncfs=True needs Linux 5.8 or later: before, syncfs(2) hides what could not be written")
        self._syncfs = syncfs
        self.waits = wait
        self._admission = Admission(max_pending, max_pending_bytes)
        self._committers = Crew(COMMITTERS, "maildir-commit")
        self.stream_crew = Crew(STREAM_THREADS, "maildir-stream")
        self._delegation: Delegation | None = None
        if helper_process:
            self._delegation = Delegation(syncfs=syncfs, crew=self._committers, settled=self._tell, again=self._enqueue)
        self._reset()
        _commits.add(self)

    def _reset(self) -> None:
        # The garbage collector may throw a delivery away whose loop is gone, in a thread that holds this.
        self._lock = threading.RLock()
        self._queue: deque[Entry] = deque()
        self._turns = Turns(self._hand_over)
        self._leading = False
        self._donation = Donation(self._needs_time)
        self._round: Round | None = None
        self._batch: list[Entry] = []  # what has been taken, until the round is there
        self._watching = False
        self._streams: dict[TmpFile, AbstractEventLoop] = {}
        if self._delegation is not None:
            self._delegation.reset()
        self._batches = 0
        self._messages = 0

    def statistics(self) -> CommitStatistics:
        """Return what there is to know now. Never waits."""
        return CommitStatistics(
            pending=self._admission.pending,
            pending_bytes=self._admission.pending_bytes,
            waiting=self._admission.waiting,
            queued=len(self._queue),
            batches=self._batches,
            messages=self._messages,
            threads=self._committers.threads + self.stream_crew.threads,
            helper_pid=self._delegation.pid if self._delegation is not None else None,
        )

    @property
    def is_full(self) -> bool:
        """Whether a delivery that begins now would have to wait for a place, or be refused."""
        return self._admission.is_full

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no worker thread has anything to do; return whether that came to pass in time."""
        deadline = time.monotonic() + timeout_s
        return self.stream_crew.wait_idle(timeout_s) and self._committers.wait_idle(deadline - time.monotonic())

    def request_place(self, cost: int, loop: AbstractEventLoop, on_granted: Callable[[], object]) -> Place | None:
        """Return a place for a delivery of *cost* bytes in memory; None if it is full and this may not wait."""
        return self._admission.request(cost, loop, on_granted, wait=self.waits)

    def submit(self, entry: Entry) -> None:
        """Queue *entry*, with all that is submitted in this turn of its loop (which must be the running one)."""
        if self._delegation is not None and (channel := self.channel(entry.loop, entry.tmpfile)) is not None:
            channel.submit(entry)
            return
        self._turns.submit(entry)

    def withdraw(self, entry: Entry) -> bool:
        """Take *entry* back if no batch has begun with it; return whether that is so."""
        with self._lock:
            entry.withdrawn = not entry.taken
            if entry.withdrawn:
                entry.chunks = ()  # it may stay in the queue for as long as a disk hangs
            return entry.withdrawn

    @property
    def streams(self) -> int:
        """How many messages are being written as they come."""
        return len(self._streams)

    def stream_opened(self, tmpfile: TmpFile, loop: AbstractEventLoop) -> None:
        """Keep an eye on a message being received on *loop*: if that is closed, the message is discarded."""
        with self._lock:
            self._streams[tmpfile] = loop
            self._watch()
        self._donation.watch(loop)

    def stream_over(self, tmpfile: TmpFile) -> None:
        """Keep no more eye on it."""
        self._streams.pop(tmpfile, None)

    def _hand_over(self, entries: list[Entry]) -> None:
        self._donation.watch(entries[0].loop)
        self._enqueue(entries)

    def _enqueue(self, entries: list[Entry]) -> None:
        with self._lock:
            self._queue.extend(entries)
            lead, self._leading = not self._leading, True
        if lead:
            try:
                self._committers.run(self._lead)
            except RuntimeError as exc:
                self._refuse(exc)

    def _refuse(self, exc: RuntimeError) -> None:
        """Fail what is queued: there is no thread, and the system gives none."""
        with self._lock:
            self._leading = False
            entries = [entry for entry in self._queue if not entry.withdrawn]
            self._queue.clear()
            for entry in entries:
                entry.take()
        for entry in entries:
            entry.fail(AppendError(f"no worker thread could be started: {exc}", errno=errno.EAGAIN, stage="queue"))
        self._settle(families(entries))

    def _lead(self, round_: Round | None = None) -> None:
        """Take batches to the disk until none is waiting. Runs in one worker thread at a time."""
        try:
            self._take_rounds(round_)
        except BaseException as exc:  # a mistake of ours, or no memory: all get an answer, and the next one a leader
            with self._lock:
                failed = self._round.entries if self._round is not None else families(self._batch)
                self._round, self._batch = None, []
                self._leading = bool(self._queue)
            for entry in failed:
                entry.give_up(exc)
            self._settle(failed)
            if self._leading:
                self._committers.run(self._lead)
            raise

    def _take_rounds(self, round_: Round | None) -> None:
        while True:
            if round_ is None and (round_ := self._next_round()) is None:
                return
            while (step := round_.step) is not None:
                behind = step.work()
                if behind is not None:  # this thread hung, and another leads now
                    self._settle(round_.finish_alone(behind))
                    return
                round_.advance()
            self._settle(round_.entries)
            round_ = self._round = None

    def _next_round(self) -> Round | None:
        with self._lock:
            batch = self._batch = []
            while self._queue and len(batch) < MAX_BATCH:
                entry = self._queue.popleft()
                if not entry.withdrawn:
                    entry.take()
                    batch.append(entry)
            if not batch:
                self._leading = False
                return None
            self._batches += 1
            self._messages += len(batch)
            self._round = Round(batch, syncfs=self._syncfs, patience_s=PATIENCE_S, left_behind=self._finish_later)
            self._batch = []
            self._watch()
            return self._round

    def _finish_later(self, rest: Rest) -> None:
        """Have a thread wait for syncs that hang, and finish what they are for, one by one."""
        try:
            self._committers.run(partial(self._finish_rest, rest))
        except RuntimeError:  # no other thread to be had
            self._finish_rest(rest)

    def _finish_rest(self, rest: Rest) -> None:
        while rest.items:
            for item, failure in rest.ended(None):
                item.sync_ended(failure)
                self._settle(Round.finish_alone(item))

    def _settle(self, entries: Sequence[Entry]) -> None:
        by_loop: dict[AbstractEventLoop, list[Entry]] = {}
        for entry in entries:
            entry.conclude()
            by_loop.setdefault(entry.loop, []).append(entry)
        self._donation.enough()
        for loop, settled in by_loop.items():
            # A closed loop has nobody left to tell; the messages are where the promises say.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell, settled)

    def _tell(self, entries: list[Entry]) -> None:
        self._turns.tell(entries)

    def channel(self, loop: AbstractEventLoop, tmpfile: TmpFile) -> Channel | None:
        """Return what takes messages of *loop*, the running one, to the helper process; None if this one does them."""
        if self._delegation is None or tmpfile.links:
            return None
        channel = self._delegation.channel(loop, tmpfile)
        if channel is not None and not self._watching:
            with self._lock:
                self._watch()
        if self._delegation.starting:
            self._donation.watch(loop)
        return channel

    def _needs_time(self) -> bool:
        """Whether worker threads have something to do."""
        return self._leading or bool(self._streams) or (self._delegation is not None and self._delegation.starting)

    async def aclose(self) -> None:
        """End the helper process, if there is one, when what it has in hand is settled. The next use starts another."""
        if self._delegation is None:
            return
        gone = run_in_thread(asyncio.get_running_loop(), self._committers, self._delegation.close)
        with anyio.CancelScope(shield=True):
            await gone

    def _watch(self) -> None:
        """Have the watch kept, from now until there is nothing to watch. Called with the lock held."""
        if not self._watching:
            self._watching = True
            # Not one of the crew: the end of the interpreter waits for these, and need not for a watch.
            try:
                threading.Thread(target=self._keep_watch, name="maildir-watch", daemon=True).start()
            except RuntimeError:
                self._watching = False

    def _keep_watch(self) -> None:
        try:
            self._watch_on()
        except BaseException:  # no memory, for one: the next round has it kept again
            self._watching = False
            raise

    def _watch_on(self) -> None:
        seen: tuple[Round | None, object] = (None, None)
        while True:
            time.sleep(PATIENCE_S)
            with self._lock:
                if not self._leading and not self._streams and not self._has_channels:
                    self._watching = False
                    return
            with contextlib.suppress(RuntimeError):  # no thread to be had: at the next look, perhaps
                self._discard_orphans()
                seen = self._replace_hanging_leader(seen)

    def _discard_orphans(self) -> None:
        """Discard what was being received on loops that have been closed."""
        for tmpfile, loop in list(self._streams.items()):
            if loop.is_closed():
                self.stream_crew.run(tmpfile.discard)
                self.stream_over(tmpfile)
        if self._delegation is not None:
            self._delegation.close_orphans()

    @property
    def _has_channels(self) -> bool:
        return self._delegation is not None and self._delegation.has_channels

    def _replace_hanging_leader(self, seen: tuple[Round | None, object]) -> tuple[Round | None, object]:
        """Have another thread lead, if the round and its moves are as *seen* at the last look; return them."""
        round_ = self._round
        now = (round_, round_.moves if round_ else None)
        if round_ is not None and now == seen and round_.depose_hanging_driver():
            self._committers.run(partial(self._lead, round_))
        return now


_commits: "weakref.WeakSet[GroupCommit]" = weakref.WeakSet()
_default: GroupCommit | None = None
_default_lock = threading.Lock()


def default_commit() -> GroupCommit:
    """Return the process's own `GroupCommit`, made at first use."""
    global _default
    if _default is None:
        with _default_lock:
            if _default is None:
                _default = GroupCommit()
    return _default


def _start_afresh() -> None:
    """In a forked child: the parent's deliveries, and the threads at work on them, are not here."""
    global _default_lock
    _default_lock = threading.Lock()
    for commit in list(_commits):
        commit._admission.reset()  # pyright: ignore[reportPrivateUsage] this module's own
        commit._reset()  # pyright: ignore[reportPrivateUsage] likewise


def _finish() -> None:
    """At the end of the interpreter: see deliveries in flight through, and discard what was still being received."""
    deadline = time.monotonic() + EXIT_S
    commits = list(_commits)
    delegations = [commit._delegation for commit in commits if commit._delegation is not None]  # pyright: ignore[reportPrivateUsage] likewise
    for delegation in delegations:
        delegation.end()
    hanging = [commit for commit in commits if not commit.wait_idle(deadline - time.monotonic())]
    for delegation in delegations:
        delegation.wait_gone(deadline - time.monotonic())
    if not hanging:  # or discarding would wait for what hangs
        discard_all()


os.register_at_fork(after_in_child=_start_afresh)
atexit.register(_finish)
