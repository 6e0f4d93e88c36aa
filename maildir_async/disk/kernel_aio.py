"""fsync(2) of many files by the kernel, all at once: kernel AIO (io_submit(2)), of which this is all that is used.

Imported where it is needed, since ctypes costs an import that an idle program need not pay.
"""

import ctypes
import errno
import functools
import os
import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from maildir_async.disk.syncs import Outcome, Syncs, call_side_by_side

__all__ = ["fsync_all"]

#: Syncs by one context of the kernel's at once. More of them wait in line.
DEPTH: Final = 128

#: Per machine: io_setup, io_getevents, io_submit (asm/unistd.h). The C library has no functions for them.
_CALLS: Final = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2), "riscv64": (0, 4, 2)}

_IOCB_CMD_FSYNC: Final = 2  # linux/aio_abi.h; since Linux 4.18


def fsync_all(fds: Sequence[int]) -> Syncs | None:
    """Begin with fsync(2) for each of *fds*, which stay open until it is done. None if this kernel cannot."""
    context = _context()
    return None if context is None else _Fsyncs(context, fds)


class _Iocb(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key_and_flags", ctypes.c_uint64),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 5),
    )


class _Event(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64), ("iocb", ctypes.c_uint64), ("result", ctypes.c_int64), ("_", ctypes.c_int64))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Context:
    """A context of kernel AIO, and the memory for what passes between it and us. Never given back: it is used again."""

    def __init__(self, calls: tuple[int, int, int]) -> None:
        setup, self._getevents, self._submit = map(ctypes.c_long, calls)
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._id = ctypes.c_ulong()
        self._check(self._call(setup, ctypes.c_long(DEPTH), ctypes.byref(self._id)))
        self._iocbs = (_Iocb * DEPTH)()
        for iocb in self._iocbs:
            iocb.opcode = _IOCB_CMD_FSYNC
        self._pointers = (ctypes.c_void_p * DEPTH)()
        self._events = (_Event * DEPTH)()

    def submit(self, fds: Sequence[int], first: int) -> int:
        """Begin with some of *fds*, `DEPTH` at most, numbered from *first*; return how many."""
        count = min(len(fds), DEPTH)
        address, size = ctypes.addressof(self._iocbs), ctypes.sizeof(_Iocb)
        for place in range(count):
            iocb = self._iocbs[place]  # the kernel has copied it when io_submit returns
            iocb.data, iocb.fd = first + place, fds[place]
            self._pointers[place] = address + place * size
        return self._check(self._call(self._submit, self._id, ctypes.c_long(count), self._pointers))

    def events(self, at_least: int, timeout_s: float | None) -> list[tuple[int, int]]:
        """Return what has ended: numbers, and errnos or 0."""
        timeout = None
        if timeout_s is not None:
            timeout = ctypes.byref(_Timespec(int(timeout_s), int(timeout_s % 1 * 1e9)))
        most = ctypes.c_long(DEPTH)
        found = self._call(self._getevents, self._id, ctypes.c_long(at_least), most, self._events, timeout)
        if found < 0 and ctypes.get_errno() == errno.EINTR:
            return []
        return [(event.data, -event.result) for event in self._events[: self._check(found)]]

    @staticmethod
    def _check(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


class _Fsyncs:
    """Its context is free for others again when the last of *fds* that the kernel took has ended."""

    def __init__(self, context: _Context, fds: Sequence[int]) -> None:
        self._context = context
        self._fds = fds
        self._begun = 0
        self._in_flight = 0
        self._refused: list[tuple[int, Syncs]] = []
        self._submit()

    def _submit(self) -> None:
        while self._begun < len(self._fds) and self._in_flight < DEPTH:
            some = self._fds[self._begun : self._begun + DEPTH - self._in_flight]
            try:
                begun = self._context.submit(some, self._begun)
            except OSError:
                # The first of them: by a kernel too old, or for a file system that syncs nothing. What is true of it
                # is what fsync(2) itself says.
                self._refused.append((self._begun, call_side_by_side([partial(os.fsync, some[0])])))
                self._begun += 1
                continue
            self._begun += begun
            self._in_flight += begun
        if not self._in_flight:
            _contexts.append(self._context)

    def done(self, timeout_s: float | None) -> Sequence[Outcome]:
        found: list[Outcome] = []
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._in_flight:
            left = None if end is None else max(0.0, end - time.monotonic())
            ended = self._context.events(1 if end is None else self._in_flight, left)
            for number, code in ended:
                found.append((number, OSError(code, os.strerror(code)) if code else None))
            self._in_flight -= len(ended)
            self._submit()
            if found if end is None else not left:
                break
        for number, syncs in list(self._refused):
            left = 0.0 if found and end is None else end and max(0.0, end - time.monotonic())
            for _, failure in syncs.done(left):
                found.append((number, failure))
                self._refused.remove((number, syncs))
        return found


_contexts: Final[list[_Context]] = []  # those that nobody uses now


def _context() -> _Context | None:
    try:
        return _contexts.pop()
    except IndexError:
        calls = _calls()
    if calls is None:
        return None
    try:
        return _Context(calls)
    except OSError:  # a kernel without it, a sandbox that forbids it, too many contexts (fs.aio-max-nr)
        return None


@functools.cache
def _calls() -> tuple[int, int, int] | None:
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != "little":
        return None
    return _CALLS.get(platform.machine())


os.register_at_fork(after_in_child=_contexts.clear)
