"""Worker threads: started when there is work, gone when there is none, nobody's in a forked child."""

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Final, ParamSpec, TypeVar

__all__ = ["Crew"]

# glibc opens it when a thread is ended by pthread_exit(3), as the interpreter's end does with daemons: that is too late
# after a chroot, and aborts the process.
with contextlib.suppress(OSError):
    ctypes.CDLL("libgcc_s.so.1")

P = ParamSpec("P")
T = TypeVar("T")

IDLE_S: Final = 5.0  # seconds an idle thread waits for work before it ends; a new one costs about 100 µs

_crews: "weakref.WeakSet[Crew]" = weakref.WeakSet()


class _Idler:
    """A thread that has nothing to do: who gives it a job releases `wake`."""

    __slots__ = ("job", "wake")

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.job: Callable[[], object] = _nothing


class Crew(Executor):
    """Up to *size* threads that run jobs in the order given.

    Of idle threads the one that became so last has the next job. If they took turns, a few jobs a second would keep
    all of them from ever being idle for `IDLE_S`: those that a disk took while it hung would stay for good.

    The threads are daemons, since a disk that hangs must not keep a program from ending; `wait_idle` is there to
    let them finish what they have in hand.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._reset()
        _crews.add(self)

    def _reset(self) -> None:
        # A finalizer may run a job in a thread that holds this: wherever something is called or made.
        self._lock = threading.RLock()
        self._jobs: deque[Callable[[], object]] = deque()  # none where a thread is idle
        self._idle: list[_Idler] = []  # the last has the next job
        self._threads = 0
        self._unfinished = 0  # jobs given and not finished
        self._started = 0

    def run(self, job: Callable[[], object]) -> None:
        """Have a thread run *job*, which must not raise. Never waits for one; any thread may call this.

        Raises RuntimeError where there is no thread and none can be started.
        """
        with self._lock:
            self._unfinished += 1
            if idle := self._idle:
                idler = idle[-1]
                del idle[-1]  # which calls nothing, as pop() would: no finalizer or signal comes before the release
                idler.job = job
                idler.wake.release()
                return
            self._jobs.append(job)
            if not self._is_short_of_threads():
                return
            self._threads += 1
        try:
            self._start_thread()
        except RuntimeError:
            with self._lock:
                if self._threads or job not in self._jobs:
                    return  # another has it, or will
                self._jobs.remove(job)
                self._unfinished -= 1
            raise

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread call *fn* (the interface of `concurrent.futures`, for asyncio and aiofiles)."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)

        self.run(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: idle threads end by themselves, and the crew can be used again at any time."""

    def widen(self, more: int) -> None:
        """Allow *more* threads: as many hang, and are to hold up nobody. Negative: fewer again."""
        with self._lock:
            self._size += more
            if more < 0 or not self._is_short_of_threads():
                return
            self._threads += 1
        with contextlib.suppress(RuntimeError):  # no thread to be had: those there are go on
            self._start_thread()

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return self._threads

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no job is waiting or running; return whether that came to pass in time."""
        deadline = time.monotonic() + timeout_s
        while self._unfinished:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)  # only ever at the end of the interpreter and in tests
        return True

    def _is_short_of_threads(self) -> bool:
        return self._unfinished > self._threads and self._threads < self._size

    def _start_thread(self) -> None:
        """Start a thread that has been counted; RuntimeError, and it is counted no more, where none can be had.

        Not to be called with the lock: before `threading.Thread.start` goes on, the new thread may run a finalizer, and
        that a job.
        """
        self._started += 1
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
            raise

    def _work(self) -> None:
        me = _Idler()
        mine = [me]  # made now: memory that is asked for below may run a finalizer, and that a job
        finished = 0  # none before the first
        while True:
            with self._lock:
                self._unfinished -= finished
                if self._jobs:
                    job = self._jobs.popleft()
                else:
                    job = None
                    self._idle += mine
            if job is None:
                if not me.wake.acquire(True, IDLE_S) and self._is_over(me):
                    return
                job, me.job = me.job, _nothing
            try:
                job()
            except BaseException as exc:  # a mistake of ours: told, and no reason to be a thread short
                threading.excepthook(threading.ExceptHookArgs((type(exc), exc, None, threading.current_thread())))
            del job  # or an idle thread would keep the last message alive
            finished = 1

    def _is_over(self, idler: _Idler) -> bool:
        """Count out a thread that was idle for long enough. Return False if it has been given a job just now."""
        with self._lock:
            self._threads -= 1  # before anything is called: a job that a finalizer gives cannot rely on this thread
            try:
                self._idle.remove(idler)
            except ValueError:
                self._threads += 1
                idler.wake.acquire()  # its release has been, under the lock
                return False
            return True


def _nothing() -> None:
    """Be the job of a thread that has none."""


def _forget_threads() -> None:
    for crew in list(_crews):
        crew._reset()  # pyright: ignore[reportPrivateUsage] this module's own


os.register_at_fork(after_in_child=_forget_threads)
