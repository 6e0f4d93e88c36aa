"""fsync(2) of many files by the kernel, all at once: kernel AIO (io_submit(2)), of which this is all that is used.

What passes between the kernel and us stands in one block of memory for each context, whose unchanging parts are
written once: structures made anew for each file cost twice the processor time.
"""

import ctypes
import errno
import os
import sys
import time
from functools import partial
from typing import Any, Final

from maildir_async.disk.syncs import CallsSideBySide, Syncs
from maildir_async.disk.threads import Crew

__all__ = ["fsync_all"]

#: Syncs by one context of the kernel's at once. More of them wait in line.
DEPTH: Final = 128

#: Per machine: io_setup, io_getevents, io_submit (asm/unistd.h). The C library has no functions for them.
_CALLS: Final = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2), "riscv64": (0, 4, 2)}

_IOCB_CMD_FSYNC: Final = 2  # linux/aio_abi.h; since Linux 4.18

#: Seconds between two looks at what the kernel does and what threads do, where both are at work.
LOOK_S: Final = 0.01

#: struct iocb (linux/aio_abi.h) as numbers of 64 bits: data; key and flags; opcode, priority and descriptor; five more.
_IOCB: Final = 8
_IOCB_FD: Final = 2
#: struct io_event likewise: data; address of the iocb; result; one more.
_EVENT: Final = 4
_EVENT_RESULT: Final = 2


def fsync_all(fds: list[int], crew: Crew) -> Syncs | None:
    """Begin with fsync(2) for each of *fds*, which stay open until it is done. None if this kernel cannot.

    What the kernel refuses is left to threads of *crew*.
    """
    try:
        context = _contexts.pop()
    except IndexError:
        if _machine is None:
            return None
        try:
            context = _Context(_machine)
        except OSError:  # a kernel without it, a sandbox that forbids it, too many contexts (fs.aio-max-nr)
            return None
    return _Fsyncs(context, fds, crew)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Context:
    """A context of kernel AIO, and its block of memory. Never given back: it is used again."""

    def __init__(self, calls: tuple[int, int, int]) -> None:
        setup, self._getevents, self._submit = map(ctypes.c_long, calls)
        self._id = ctypes.c_ulong()
        _check(_syscall(setup, ctypes.c_long(DEPTH), ctypes.byref(self._id)))
        self._iocbs = (ctypes.c_uint64 * (_IOCB * DEPTH))()
        start = ctypes.addressof(self._iocbs)
        self._pointers = (ctypes.c_void_p * DEPTH)(*(start + 8 * _IOCB * place for place in range(DEPTH)))
        self._events = (ctypes.c_int64 * (_EVENT * DEPTH))()
        self._seen = memoryview(self._events).cast("B").cast("q")
        self._depth = ctypes.c_long(DEPTH)

    def submit(self, fds: list[int], first: int) -> int:
        """Begin with *fds*, `DEPTH` at most, numbered from *first*; return how many have been begun.

        OSError if the first of them could not be.
        """
        iocbs, at = self._iocbs, 0
        for number, fd in enumerate(fds, first):
            iocbs[at] = number
            iocbs[at + _IOCB_FD] = _IOCB_CMD_FSYNC | fd << 32
            at += _IOCB
        return _check(_syscall(self._submit, self._id, ctypes.c_long(len(fds)), self._pointers))

    def wait(self, at_least: int, timeout_s: float | None) -> tuple[list[int], list[int]]:
        """Return the numbers of those that have ended, and their results: 0, or a negative errno."""
        timeout: Any = None
        if timeout_s is not None:
            timeout = ctypes.byref(_Timespec(int(timeout_s), int(timeout_s % 1 * 1e9)))
        found: int = _syscall(self._getevents, self._id, ctypes.c_long(at_least), self._depth, self._events, timeout)
        if found < 0 and ctypes.get_errno() == errno.EINTR:
            return [], []
        end = _EVENT * _check(found)
        return self._seen[0:end:_EVENT].tolist(), self._seen[_EVENT_RESULT:end:_EVENT].tolist()


class _Fsyncs:
    """See `Syncs`. Its context is free for others again when the last of *fds* that the kernel took has ended.

    What a kernel is too old for, or a file system does not sync this way, is asked of fsync(2) itself, by threads.
    """

    def __init__(self, context: _Context, fds: list[int], crew: Crew) -> None:
        self._context: _Context | None = context
        self._fds = fds
        self._begun = 0
        self._in_flight = 0
        self.ended: list[int] = []
        self.failures: dict[int, BaseException] = {}
        self._refused: list[int] = []
        self._submit()
        refused = [partial(os.fsync, fds[number]) for number in self._refused]
        self._calls = CallsSideBySide(crew, refused) if refused else None

    def _submit(self) -> None:
        """Begin with as many as the context takes. The number of *fds* is bounded by `DEPTH` where any is refused."""
        context = self._context
        if context is None:
            return
        while self._begun < len(self._fds) and self._in_flight < DEPTH:
            some = self._fds[self._begun : self._begun + DEPTH - self._in_flight]
            try:
                begun = context.submit(some, self._begun)
            except OSError:
                self._refused.append(self._begun)
                begun = 1
            else:
                self._in_flight += begun
            self._begun += begun
        if not self._in_flight:
            self._context = None
            _contexts.append(context)

    def wait(self, timeout_s: float | None) -> bool:
        if self._calls is None:
            self._wait_for_kernel(timeout_s)
        else:
            # Two kinds at once, each looked at by turns.
            before, end = len(self.ended), time.monotonic() + (timeout_s or 0.0)
            while True:
                self._wait_for_kernel(LOOK_S)
                self._calls.wait(LOOK_S)
                self._take_calls(self._calls)
                over = len(self.ended) > before if timeout_s is None else time.monotonic() >= end
                if over or len(self.ended) == len(self._fds):
                    break
        return len(self.ended) == len(self._fds)

    def _wait_for_kernel(self, timeout_s: float | None) -> None:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._context is not None:
            left = None if end is None else max(0.0, end - time.monotonic())
            numbers, results = self._context.wait(1 if end is None else self._in_flight, left)
            self._in_flight -= len(numbers)
            self.ended += numbers
            if any(results):
                for number, result in zip(numbers, results, strict=True):
                    if result:
                        self.failures[number] = OSError(-result, os.strerror(-result))
            self._submit()
            if numbers if end is None else not left:
                return

    def _take_calls(self, calls: CallsSideBySide) -> None:
        refused = self._refused
        have = set(self.ended)
        ended = [refused[at] for at in list(calls.ended) if refused[at] not in have]
        for at in list(calls.failures):  # after what has ended: a failure stands before its call has
            self.failures[refused[at]] = calls.failures.pop(at)
        self.ended += ended

    def leave_behind(self) -> None:
        """The context stays this one's until the last has ended."""
        if self._calls is not None:
            self._calls.leave_behind()


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _find_calls() -> tuple[int, int, int] | None:
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != "little":
        return None
    return _CALLS.get(os.uname().machine)


_syscall: Any = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_machine: Final = _find_calls()
_contexts: Final[list[_Context]] = []  # those that nobody uses now
os.register_at_fork(after_in_child=_contexts.clear)
