"""Worker threads: started when there is work, gone when there is none, nobody's in a forked child."""

import contextlib
import ctypes
import os
import queue
import threading
import time
import weakref
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


class Crew(Executor):
    """Up to *size* threads that run jobs in the order given.

    The threads are daemons, since a disk that hangs must not keep a program from ending; `wait_idle` is there to
    let them finish what they have in hand.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._reset()
        _crews.add(self)

    def _reset(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a finalizer may run a job, in a thread that holds it
        self._threads = 0
        self._unfinished = 0  # jobs given and not finished
        self._started = 0

    def run(self, job: Callable[[], object]) -> None:
        """Have a thread run *job*, which must not raise. Never waits for one; any thread may call this.

        Raises RuntimeError where there is no thread and none can be started.
        """
        with self._lock:
            if self._unfinished >= self._threads and self._threads < self._size:
                self._start_thread()
            self._unfinished += 1
            self._jobs.put(job)

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
            if more > 0 and self._unfinished > self._threads and self._threads < self._size:
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

    def _start_thread(self) -> None:
        self._started += 1
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads += 1

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    # A job is counted before it is put, so this cannot overlook one.
                    if self._unfinished < self._threads:
                        self._threads -= 1
                        if self._threads:
                            # SimpleQueue.get() waits without end where another thread takes what has woken it just as
                            # its time is over (seen in Python 3.11 and 3.12). Whoever leaves wakes one that may.
                            self._unfinished += 1
                            self._jobs.put(_look_again)
                        return
                continue
            try:
                job()
            except BaseException as exc:  # a mistake of ours: told, and no reason to be a thread short
                threading.excepthook(threading.ExceptHookArgs((type(exc), exc, None, threading.current_thread())))
            del job  # or an idle thread would keep the last message alive
            with self._lock:
                self._unfinished -= 1


def _look_again() -> None:
    """Be a job, so that an idle thread looks whether it is time to end."""


def _forget_threads() -> None:
    for crew in list(_crews):
        crew._reset()  # pyright: ignore[reportPrivateUsage] this module's own


os.register_at_fork(after_in_child=_forget_threads)
