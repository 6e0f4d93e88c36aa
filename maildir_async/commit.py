"""Group commit: messages that are whole wait in one queue, and share their syncs.

Worker threads take everything that is waiting as one batch (a `Round`): what arrives while it is on the disk is the
next. Nothing waits for a timer, and a lone message goes at once. What a loop hands over in one turn goes over
together, and each loop is woken once per batch, with all of its results.
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from maildir_async.admission import Admission, Place
from maildir_async.crew import Crew
from maildir_async.donation import Donation
from maildir_async.errors import AppendError
from maildir_async.rounds import Entry, Round
from maildir_async.tmpfile import TmpFile, discard_all

__all__ = ["CommitStatistics", "GroupCommit", "default_commit"]

#: Messages in one batch. Past 64 the gain is small (research: 20 % at 128 on ext4, none on XFS); it bounds the
#: descriptors a batch holds: one for each message and one for each maildir.
MAX_BATCH: Final = 128

#: Threads that sync files beside the one that drives a batch. With writeback started first, 12 do what 32 do without.
HELPERS: Final = 12

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

    """

    pending: int
    pending_bytes: int
    waiting: int
    queued: int
    batches: int
    messages: int
    threads: int


class GroupCommit:
    """The queue and the worker threads that maildirs share. Without one of your own, a process uses one for all.

    Give maildirs on a file system that may hang (NFS) one of their own, and the others need not wait for it.
    Usable from any number of loops and threads at once; a forked child finds it empty and working.

    Args:
        max_pending: deliveries that may be between start and end at once.
        max_pending_bytes: bytes they may hold in memory: the length of a message given as bytes, two chunks
            (1 MiB) for a stream. One message larger than this is admitted when it is alone.
        wait: past these bounds, `append` waits before it reads from its source; with False it raises `BusyError`.

    """

    def __init__(self, *, max_pending: int = 4096, max_pending_bytes: int = 256 * 2**20, wait: bool = True) -> None:
        if max_pending < 1 or max_pending_bytes < 1:
            raise ValueError("max_pending and max_pending_bytes must be at least 1")
        self._wait = wait
        self._admission = Admission(max_pending, max_pending_bytes)
        self._committers = Crew(HELPERS + 64, "maildir-commit")  # 64: each hang takes a thread until it ends
        self.stream_crew = Crew(STREAM_THREADS, "maildir-stream")
        self._reset()
        _commits.add(self)

    def _reset(self) -> None:
        # The garbage collector may throw a delivery away whose loop is gone, in a thread that holds this.
        self._lock = threading.RLock()
        self._queue: deque[Entry] = deque()
        self._turns: weakref.WeakValueDictionary[int, _Turn] = weakref.WeakValueDictionary()
        self._leading = False
        self._donation = Donation(lambda: self._leading or bool(self._streams))
        self._round: Round | None = None
        self._watching = False
        self._streams: dict[TmpFile, AbstractEventLoop] = {}
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
        )

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no worker thread has anything to do; return whether that came to pass in time."""
        deadline = time.monotonic() + timeout_s
        return self.stream_crew.wait_idle(timeout_s) and self._committers.wait_idle(deadline - time.monotonic())

    def request_place(self, cost: int, on_granted: Callable[[], object]) -> Place | None:
        """Return a place for a delivery of *cost* bytes in memory; None if it is full and this may not wait."""
        return self._admission.request(cost, asyncio.get_running_loop(), on_granted, wait=self._wait)

    def submit(self, entry: Entry) -> None:
        """Queue *entry*, with all that is submitted in this turn of its loop (which must be the running one)."""
        loop = entry.loop
        turn = self._turns.get(id(loop))
        if turn is None:
            turn = self._turns[id(loop)] = _Turn()
            loop.call_soon(self._hand_over, turn)
        turn.entries.append(entry)

    def withdraw(self, entry: Entry) -> bool:
        """Take *entry* back if no batch has begun with it; return whether that is so."""
        with self._lock:
            entry.withdrawn = not entry.taken
            if entry.withdrawn:
                entry.chunks = ()  # it may stay in the queue for as long as a disk hangs
            return entry.withdrawn

    def stream_opened(self, tmpfile: TmpFile, loop: AbstractEventLoop) -> None:
        """Keep an eye on a message being received on *loop*: if that is closed, the message is discarded."""
        with self._lock:
            self._streams[tmpfile] = loop
            self._watch()
        self._donation.watch(loop)

    def stream_over(self, tmpfile: TmpFile) -> None:
        """Keep no more eye on it."""
        self._streams.pop(tmpfile, None)

    def _hand_over(self, turn: "_Turn") -> None:
        entries, turn.entries = turn.entries, []
        self._turns.pop(id(entries[0].loop), None)
        with self._lock:
            self._queue.extend(entries)
            lead, self._leading = not self._leading, True
        self._donation.watch(entries[0].loop)
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
        self._settle(entries)

    def _lead(self, round_: Round | None = None) -> None:
        """Take batches to the disk until none is waiting. Runs in one worker thread at a time."""
        try:
            self._take_rounds(round_)
        except BaseException as exc:  # a mistake of ours, or no memory: all get an answer, and the next one a leader
            with self._lock:
                failed, self._round = self._round, None
                self._leading = bool(self._queue)
            if failed is not None:
                for entry in failed.entries:
                    entry.give_up(exc)
                self._settle(failed.entries)
            if self._leading:
                self._committers.run(self._lead)
            raise

    def _take_rounds(self, round_: Round | None) -> None:
        while True:
            if round_ is None and (round_ := self._next_round()) is None:
                return
            while not round_.over:
                for _ in range(min(HELPERS, round_.helpers_wanted)):
                    with contextlib.suppress(RuntimeError):  # no thread to be had: fewer will do
                        self._committers.run(partial(self._help, round_, round_.step))
                straggler = round_.work(round_.step, driving=True)
                if straggler is not None:  # this thread hung, and another leads now
                    self._settle(straggler)
                    return
                round_.advance(PATIENCE_S)
            self._settle(round_.entries)
            round_ = self._round = None

    def _next_round(self) -> Round | None:
        with self._lock:
            batch: list[Entry] = []
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
            self._round = Round(batch)
            self._watch()
            return self._round

    def _help(self, round_: Round, step: int) -> None:
        straggler = round_.work(step)
        if straggler is not None:
            self._settle(straggler)

    def _settle(self, entries: list[Entry]) -> None:
        by_loop: dict[AbstractEventLoop, list[Entry]] = {}
        for entry in entries:
            entry.conclude()
            by_loop.setdefault(entry.loop, []).append(entry)
        self._donation.enough()
        for loop, settled in by_loop.items():
            # A closed loop has nobody left to tell; the messages are where the promises say.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_tell, settled)

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
        seen: tuple[Round | None, int] = (None, 0)
        while True:
            time.sleep(PATIENCE_S)
            with self._lock:
                if not self._leading and not self._streams:
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

    def _replace_hanging_leader(self, seen: tuple[Round | None, int]) -> tuple[Round | None, int]:
        """Have another thread lead, if the round and its moves are as *seen* at the last look; return them."""
        round_ = self._round
        now = (round_, round_.moves if round_ else 0)
        if round_ is not None and now == seen and round_.depose_hanging_driver():
            self._committers.run(partial(self._lead, round_))
        return now


class _Turn:
    """What one loop has submitted in this turn. Its pending callback alone keeps it, and so nothing keeps the loop."""

    __slots__ = ("__weakref__", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []


def _tell(entries: list[Entry]) -> None:
    for number, entry in enumerate(entries, 1):
        try:
            entry.settle(entry)
        except BaseException:  # a KeyboardInterrupt in an on_progress: the others get their answers
            entry.loop.call_soon(_tell, entries[number:])
            raise


_commits: "weakref.WeakSet[GroupCommit]" = weakref.WeakSet()
_default: GroupCommit | None = None
_default_lock = threading.Lock()


def default_commit() -> GroupCommit:
    """Return the process's own `GroupCommit`, made at first use."""
    global _default
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
        commit._reset()  # pyright: ignore[reportPrivateUsage]


def _finish() -> None:
    """At the end of the interpreter: see deliveries in flight through, and discard what was still being received."""
    deadline = time.monotonic() + EXIT_S
    hanging = [commit for commit in list(_commits) if not commit.wait_idle(deadline - time.monotonic())]
    if not hanging:  # or discarding would wait for what hangs
        discard_all()


os.register_at_fork(after_in_child=_start_afresh)
atexit.register(_finish)
