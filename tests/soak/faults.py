"""What is made to go wrong while mail flows, a few seconds each, one after the other."""

import asyncio
import contextlib
import ctypes
import errno
import os
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

from maildir_async.testing import Fault

if TYPE_CHECKING:
    from .program import Program

__all__ = ["FAULTS"]

_libc: Final = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT = 1, 32

#: Descriptors that the program may have beyond what it has: fewer than the load needs.
SPARE: Final = 6


@contextlib.asynccontextmanager
async def full(program: "Program") -> AsyncIterator[None]:
    """The file system has no block left: a file has them all."""
    ballast = program.root / "ballast"

    def fill() -> None:
        fd = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            size = 1 << 26
            offset = 0
            while size >= 4096:
                try:
                    os.posix_fallocate(fd, offset, size)
                    offset += size
                except OSError as exc:
                    if exc.errno != errno.ENOSPC:
                        raise
                    size //= 2
        finally:
            os.close(fd)

    try:
        await asyncio.to_thread(fill)
        yield
    finally:
        await asyncio.to_thread(ballast.unlink, missing_ok=True)


@contextlib.asynccontextmanager
async def slow(program: "Program") -> AsyncIterator[None]:
    """Each sync of one maildir takes a fifth of a second more."""
    program.disk.faults = [Fault("sync", nth=0, gate=lambda: time.sleep(0.2))]
    yield
    program.disk.faults = []


@contextlib.asynccontextmanager
async def hangs(program: "Program") -> AsyncIterator[None]:
    """No sync of one maildir comes back, until all do."""
    over = threading.Event()
    program.disk.faults = [Fault("sync", nth=0, gate=over.wait)]
    try:
        yield
    finally:
        program.disk.faults = []
        over.set()


@contextlib.asynccontextmanager
async def fails(program: "Program") -> AsyncIterator[None]:
    """Every other call of some kinds fails in one maildir, each second another."""
    kinds = [("sync", errno.EIO), ("write", errno.ENOSPC), ("create", errno.EIO), ("rename_noreplace", errno.EIO)]
    program.disk.faults = [
        Fault(operation, error, nth=nth) for operation, error in kinds for nth in range(2, 400, len(kinds))
    ]
    yield
    program.disk.faults = []


@contextlib.asynccontextmanager
async def descriptors(program: "Program") -> AsyncIterator[None]:
    """There are a few descriptors, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + SPARE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.asynccontextmanager
async def removed(program: "Program") -> AsyncIterator[None]:
    """A maildir is moved away, again and again: the next message makes it anew. The reader reads what was in it."""

    async def remove() -> None:
        number = 0
        while True:
            number += 1
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(os.rename, program.root / "gone", program.root / f"gone.{time.time_ns()}")
            await asyncio.sleep(0.7)

    task = asyncio.create_task(remove())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def read_only(program: "Program") -> AsyncIterator[None]:
    """The file system is remounted read-only. The kernel does so only while no file is open for writing: in a lull."""

    def remount(flags: int) -> int:
        target = str(program.root).encode()
        return ctypes.get_errno() if _libc.mount(None, target, None, MS_REMOUNT | flags, None) else 0

    program.flows.clear()
    try:
        # What lies in tmp/ when the file system becomes read-only stays there: nobody could remove it.
        await program.until_settled()
        for _ in range(100):
            if not await asyncio.to_thread(remount, MS_RDONLY):
                break
            await asyncio.sleep(0.05)
        else:
            program.journal.count("read-only: not had")
        program.flows.set()
        yield
    finally:
        program.flows.set()
        if failed := await asyncio.to_thread(remount, 0):
            raise OSError(failed, "the file system cannot be written to any more")


@contextlib.asynccontextmanager
async def helper_killed(program: "Program") -> AsyncIterator[None]:
    """The helper process is killed, each second."""

    async def kill() -> None:
        while True:
            pid = program.helper.statistics().helper_pid
            if pid is not None:
                program.journal.count("helper killed")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(1.1)

    task = asyncio.create_task(kill())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


FAULTS: Final[dict[str, Callable[["Program"], AbstractAsyncContextManager[None]]]] = {
    "disk full": full,
    "disk slow": slow,
    "disk hangs": hangs,
    "disk fails": fails,
    "descriptors": descriptors,
    "maildir removed": removed,
    "read-only": read_only,
    "helper killed": helper_killed,
}
