"""Keys that are under way, and those that have been: asked for by loops, answered by one thread in batches."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import weakref
from asyncio import AbstractEventLoop
from functools import partial
from typing import Any, Final

from maildir_async.commit.waiting import UncancellableFuture, until_done
from maildir_async.disk.seen import BUSY_S, Seen
from maildir_async.disk.threads import Crew

__all__ = ["BUSY", "Claim", "Claims", "Failed", "Looked"]

#: Seconds after which a database that does not answer, on a disk that hangs, is done without.
HUNG_S: Final = 10.0


class Claims:
    """Which keys deliveries of this process have in hand, and what a thread does with the files for them.

    Args:
        seen: the files.

    """

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._crew = Crew(1, "maildir-duplicates")
        self._forking = 0  # the thread that forks, and has `_io`
        self._reset()
        _all.add(self)
        # What is thrown away has nothing in hand. At the end of the process the kernel does it.
        weakref.finalize(self, _close_later, self._crew, seen).atexit = False

    def _reset(self) -> None:
        # The garbage collector may throw away a gate in a thread that has this.
        self._lock = threading.RLock()  # for what follows
        self._claims: dict[bytes, Claim] = {}
        self._jobs: list[_Job] = []
        self._is_working = False
        self._io = threading.Lock()  # for the files

    def claim(self, ident: bytes, loop: AbstractEventLoop) -> "Claim | asyncio.Future[Any]":
        """Return a claim to *ident*, or what is resolved when the one who has it lets go of it.

        It comes to the path of the first if that is known, to `Failed` if the files could not be used, or to None.
        """
        with self._lock:
            other = self._claims.get(ident)
            if other is None or other.loop.is_closed():  # what is under way there is not told to anybody any more
                self._claims[ident] = claim = Claim(ident, loop)
                return claim
            waiter: asyncio.Future[Any] = loop.create_future()
            other.waiters.append((loop, waiter))
            return waiter

    def let_go(self, claim: "Claim", answer: "str | Failed | None" = None) -> None:
        """End *claim*, and tell those who wait for it. In any thread; of no account the second time."""
        with self._lock:
            if self._claims.get(claim.ident) is claim:
                del self._claims[claim.ident]
                if claim.is_locked:
                    claim.is_locked = False
                    with contextlib.suppress(RuntimeError):  # no thread to be had: it is let go of with the next job
                        self._give(_Job(claim, None, None))
            waiters, claim.waiters = claim.waiters, []
        for loop, waiter in waiters:
            with contextlib.suppress(RuntimeError):  # a closed loop has nobody who waits
                loop.call_soon_threadsafe(_resolve, waiter, answer)

    # What a thread does with the files.

    async def ask(self, claim: "Claim", path: str | None = None) -> Any:
        """Have *claim* locked and looked up, or its message remembered at *path*; return what comes of it.

        The path of the first, `BUSY` if another process has the key, `Failed`, or the warning, if there is one.
        Cancellation waits for that.
        """
        loop = asyncio.get_running_loop()
        answer: UncancellableFuture[Any] = UncancellableFuture(loop=loop)
        job = _Job(claim, path, answer)
        try:
            with self._lock:
                self._give(job)
        except RuntimeError as exc:  # no thread to be had
            job.is_abandoned = True
            return Failed(str(exc))
        timer = loop.call_later(HUNG_S, self._abandon, job)
        try:
            return await until_done(answer)
        finally:
            timer.cancel()

    def _give(self, job: "_Job") -> None:
        self._jobs.append(job)
        if not self._is_working:
            self._crew.run(self._work)
            self._is_working = True

    def _abandon(self, job: "_Job") -> None:
        with self._lock:
            job.is_abandoned = True
        if job.answer is not None:
            _resolve(job.answer, Failed("the disk does not answer"))

    def _work(self) -> None:
        while True:
            with self._lock:
                jobs, self._jobs = self._jobs, []
                if not jobs:
                    self._is_working = False
                    return
            answers = dict[_Job, Any]()
            try:
                with self._io:
                    self._do(jobs, answers)
            except BaseException as exc:  # no memory, for one
                answers = {job: answers.get(job, Failed(f"{type(exc).__name__}: {exc}")) for job in jobs}
            for job, answer in answers.items():
                self._answer(job, answer)

    def _do(self, jobs: "list[_Job]", answers: "dict[_Job, Any]") -> None:
        """Do *jobs* in one go: what is to be remembered, then what is let go of, then what is asked for."""
        seen, locks = self._seen, self._seen.locks
        asked = [job for job in jobs if job.answer is not None and job.path is None]
        if rows := [(job.claim.ident, job.path) for job in jobs if job.path is not None]:
            try:
                answer: Any = seen.remember(rows)
            except (sqlite3.Error, OSError) as exc:
                answer = Failed(str(exc))
            answers.update((job, answer) for job in jobs if job.path is not None)
        for job in jobs:
            if job.answer is None:
                locks.unlock(job.claim.offset)
        claimed = list[_Job]()
        try:
            for job in asked:
                answers[job] = BUSY
                if locks.lock(job.claim.offset):
                    claimed.append(job)
            if claimed:
                found, warning = seen.find([job.claim.ident for job in claimed])
                answers.update((job, Looked(found.get(job.claim.ident), warning)) for job in claimed)
        except (sqlite3.Error, OSError) as exc:
            for job in claimed:
                locks.unlock(job.claim.offset)
            answers.update((job, Failed(str(exc))) for job in asked)
        else:
            for job in claimed:
                if answers[job].first is not None:
                    locks.unlock(job.claim.offset)

    def _answer(self, job: "_Job", answer: Any) -> None:
        if job.answer is None:
            return
        with self._lock:
            if isinstance(answer, Looked) and answer.first is None:
                job.claim.is_locked = True
                if job.is_abandoned or self._claims.get(job.claim.ident) is not job.claim:
                    job.claim.is_locked = False
                    if job.claim.ident not in self._claims:
                        self._give(_Job(job.claim, None, None))
        with contextlib.suppress(RuntimeError):  # a closed loop
            job.claim.loop.call_soon_threadsafe(_resolve, job.answer, answer)

    # A fork.

    def before_fork(self) -> None:
        """Wait for what is in hand, and close the database. Blocks."""
        if self._io.acquire(timeout=BUSY_S + 1):
            self._forking = threading.get_ident()
            self._seen.close()

    def after_fork(self, *, in_child: bool) -> None:
        """Go on, or begin anew in a child, which has none of the claims."""
        is_ours, io = self._forking == threading.get_ident(), self._io
        if is_ours:
            self._forking = 0
        if in_child:
            self._seen.disown(is_closed=is_ours)
            self._reset()
        elif is_ours:
            io.release()


class Claim:
    """That a delivery of *loop* has a key in this process.

    Attributes:
        ident: what stands for the key.
        offset: of the byte that is locked for it.
        waiters: what is resolved when it ends, each with its loop.
        is_locked: whether that byte is locked.

    """

    __slots__ = ("ident", "is_locked", "loop", "offset", "waiters")

    def __init__(self, ident: bytes, loop: AbstractEventLoop) -> None:
        self.ident = ident
        self.loop = loop
        self.offset = int.from_bytes(ident[:8], "big") & (2**62 - 1)
        self.waiters: list[tuple[AbstractEventLoop, asyncio.Future[Any]]] = []
        self.is_locked = False


class _Job:
    """To look *claim* up, to remember it at *path*, or, without an *answer*, to unlock its byte."""

    __slots__ = ("answer", "claim", "is_abandoned", "path")

    def __init__(self, claim: Claim, path: str | None, answer: asyncio.Future[Any] | None) -> None:
        self.claim = claim
        self.path = path
        self.answer = answer
        self.is_abandoned = False


class Looked:
    """A key is claimed, or the path of the *first* is known."""

    def __init__(self, first: str | None, warning: str | None) -> None:
        self.first = first
        self.warning = warning


class Failed:
    """The files could not be used."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


#: Another process has the key.
BUSY: Final = object()


def _close_later(crew: Crew, seen: Seen) -> None:
    with contextlib.suppress(RuntimeError):  # no thread to be had: the end of the interpreter
        crew.run(partial(_close, seen))


def _close(seen: Seen) -> None:
    with _closing:
        seen.close_all()


def _resolve(future: "asyncio.Future[Any]", answer: object) -> None:
    if not future.done():
        future.set_result(answer)


_all: Final["weakref.WeakSet[Claims]"] = weakref.WeakSet()

#: Held while the files of what has been thrown away are closed. SQLite has locks of its own in this process: a child
#: that is forked while a thread has one of them waits for it for ever.
_closing = threading.Lock()
_forking = 0  # the thread that forks, and has that


def _before_fork() -> None:
    global _forking
    if _closing.acquire(timeout=BUSY_S + 1):
        _forking = threading.get_ident()
    for each in list(_all):
        each.before_fork()


def _in_parent() -> None:
    global _forking
    for each in list(_all):
        each.after_fork(in_child=False)
    if _forking == threading.get_ident():
        _forking = 0
        _closing.release()


def _in_child() -> None:
    global _closing, _forking
    _closing, _forking = threading.Lock(), 0
    for each in list(_all):
        each.after_fork(in_child=True)


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
