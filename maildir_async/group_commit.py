"""`GroupCommit`: the queue, the streams and the helper process of the maildirs that share their syncs."""

import asyncio
import atexit
import os
import threading
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio

from maildir_async.commit.admission import Admission, Place
from maildir_async.commit.donation import Donation
from maildir_async.commit.entry import Entry
from maildir_async.commit.queue import PATIENCE_S, Queue
from maildir_async.commit.streams import Streams, Unfinished, Watch
from maildir_async.commit.waiting import run_in_thread
from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import syncfs_tells_errors
from maildir_async.disk.streamfile import discard_all
from maildir_async.disk.threads import Crew
from maildir_async.format.html import fields_of, table
from maildir_async.format.options import check_bool, check_count
from maildir_async.helper.channel import Channel
from maildir_async.helper.delegation import Delegation

__all__ = ["CommitStatistics", "GroupCommit", "default_commit"]

#: Threads that read callers' files, which may block for as long as they like (a pipe, a terminal).
READERS: Final = 64

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
        sync_s: seconds that the batches have waited for the disk to sync, without those of the helper process.

    """

    pending: int
    pending_bytes: int
    waiting: int
    queued: int
    batches: int
    messages: int
    threads: int
    helper_pid: int | None = None
    sync_s: float = 0.0

    def _repr_html_(self) -> str:
        return table("Statistics of a GroupCommit", fields_of(self))


class GroupCommit:
    """The queue and the worker threads that maildirs share. Without one of your own, a process uses one for all.

    Give maildirs on a file system that may hang (NFS) one of their own, and the others need not wait for it: all
    threads that can hang with it are its own. Usable from any number of loops and threads at once; a forked child finds
    it empty and working.

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
        self.admission = Admission(
            check_count("max_pending", max_pending, least=1),
            check_count("max_pending_bytes", max_pending_bytes, least=1),
        )
        for name, value in (("wait", wait), ("syncfs", syncfs), ("helper_process", helper_process)):
            check_bool(name, value)
        if syncfs and not syncfs_tells_errors():
            raise ValueError("syncfs=True needs Linux 5.8 or later: before, syncfs(2) hides what could not be written")
        self.waits = wait
        self.donation = Donation(self._needs_time)
        self._watch = Watch(self._look, PATIENCE_S)
        self.queue = Queue(self.admission, self.donation, self._watch, syncfs=syncfs)
        self.streams = Streams()
        self.readers = Crew(READERS, "maildir-read")
        self._seen: object = None
        self._delegation: Delegation | None = None
        if helper_process:
            self._delegation = Delegation(self.queue, syncfs=syncfs)
        _commits.add(self)

    def statistics(self) -> CommitStatistics:
        """Return the numbers as they are now. Never waits."""
        return CommitStatistics(
            pending=self.admission.pending,
            pending_bytes=self.admission.pending_bytes,
            waiting=self.admission.waiting,
            queued=len(self.queue),
            batches=self.queue.batches,
            messages=self.queue.messages,
            threads=sum(crew.threads for crew in self._crews),
            helper_pid=self._delegation.pid if self._delegation is not None else None,
            sync_s=self.queue.sync_s,
        )

    @property
    def is_full(self) -> bool:
        """Whether a delivery that begins now would have to wait for a place, or be refused."""
        return self.admission.is_full

    async def aclose(self) -> None:
        """End the helper process, if there is one, when what it has in hand is settled. The next use starts another."""
        if self._delegation is None:
            return
        gone = run_in_thread(asyncio.get_running_loop(), self.queue.committers, self._delegation.close)
        with anyio.CancelScope(shield=True):
            await gone

    # What deliveries need.

    def request_place(
        self,
        cost: int,
        loop: AbstractEventLoop,
        on_granted: Callable[[], object],
        on_lost: Callable[[], object] | None = None,
    ) -> Place | None:
        """Return a place for a delivery of *cost* bytes in memory; None if it is full and this may not wait."""
        return self.admission.request(cost, loop, on_granted, wait=self.waits, on_lost=on_lost)

    def submit(self, entry: Entry) -> None:
        """Queue *entry*, with all that is submitted in this turn of its loop (which must be the running one)."""
        # Who has begun with its file goes on with it: where a helper has come since, it would have but the rest.
        is_ours = entry.file is not None or entry.links or entry.plan.held or entry.mailbox.quota
        if self._delegation is not None and not is_ours:
            channel = self.channel(entry.loop, entry.mailbox.directories.disk)
            if channel is not None:
                channel.submit(entry)
                return
        self.queue.turns.submit(entry)

    def withdraw(self, entry: Entry) -> bool:
        """Take *entry* back, and its place, if no round has begun with it; return whether that is so."""
        return self.queue.withdraw(entry)

    def stream_opened(self, file: Unfinished, loop: AbstractEventLoop) -> None:
        """Keep an eye on a message being received on *loop*: if that vanishes, the message is discarded."""
        self.streams.opened(file, loop)
        self._watch.keep()
        self.donation.watch(loop)

    def channel(self, loop: AbstractEventLoop, disk: Disk) -> Channel | None:
        """Return what takes messages of *loop*, the running one, to the helper process; None if this one does them."""
        if self._delegation is None:
            return None
        channel = self._delegation.channel(loop, disk)
        if channel is not None:
            self._watch.keep()
        if self._delegation.starting:
            self.donation.watch(loop)
        return channel

    # Its threads.

    @property
    def _crews(self) -> tuple[Crew, ...]:
        return self.queue.committers, self.queue.syncers, self.streams.crew, self.readers

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no worker thread has anything to do for a message; return whether that came to pass in time."""
        deadline = time.monotonic() + timeout_s
        crews = (self.streams.crew, self.queue.committers, self.queue.syncers)
        return sum(not crew.wait_idle(deadline - time.monotonic()) for crew in crews) == 0  # each has to be waited for

    def _needs_time(self) -> bool:
        """Whether worker threads have something to do."""
        starting = self._delegation is not None and self._delegation.starting
        return self.queue.leading or bool(len(self.streams)) or starting

    def _look(self) -> bool:
        """Look after all that may hang or be left alone; return whether there is any."""
        delegation = self._delegation
        if not self.queue.leading and not len(self.streams) and (delegation is None or not delegation.has_channels):
            self._seen = None
            return False
        self.streams.discard_orphans()
        if delegation is not None:
            delegation.close_orphans()
        self._seen = self.queue.look(self._seen)
        return True

    def start_afresh(self) -> None:
        """In a forked child: the parent's deliveries, and the threads at work on them, are not here."""
        self.admission.reset()
        self.queue.reset()
        self.streams.reset()
        self._watch.reset()
        self.donation.reset()
        if self._delegation is not None:
            self._delegation.reset()

    def end(self, deadline: float) -> bool:
        """See the deliveries in flight through until *deadline* (`time.monotonic`). Return False if some hang."""
        if self._delegation is not None:
            self._delegation.end()
        return self.wait_idle(deadline - time.monotonic())

    def end_helper(self, deadline: float) -> None:
        """Block until there is no helper process, or *deadline*."""
        if self._delegation is not None:
            self._delegation.wait_gone(deadline - time.monotonic())


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
    global _default_lock
    _default_lock = threading.Lock()
    for commit in list(_commits):
        commit.start_afresh()


def _finish() -> None:
    """At the end of the interpreter: see deliveries in flight through, and discard what was still being received."""
    deadline = time.monotonic() + EXIT_S
    commits = list(_commits)
    hanging = [commit for commit in commits if not commit.end(deadline)]
    for commit in commits:
        commit.end_helper(deadline)
    if not hanging:  # or discarding would wait for what hangs
        discard_all()


os.register_at_fork(after_in_child=_start_afresh)
atexit.register(_finish)
