"""The standard library's `mailbox.Maildir`. It syncs the file, never the directory."""

import asyncio
import io
import mailbox
from collections.abc import Sequence
from typing import Any

from benchmarks.workload import Workload


class InThreads:
    """`add` in `asyncio.to_thread`, so in the loop's default executor (at most 4 threads more than there are CPUs)."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._maildirs = [mailbox.Maildir(path, create=False) for path in paths]

    async def start(self) -> None:
        """Nothing."""

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        await asyncio.to_thread(self._maildirs[maildir].add, message)

    async def stream(self, maildir: int, workload: Workload, number: int) -> None:
        """Deliver one message from a file, which `add` reads by lines. From bytes it would hold the message twice."""
        file: Any = io.BufferedReader(_Reader(workload, number))
        await asyncio.to_thread(self._maildirs[maildir].add, file)

    async def aclose(self) -> None:
        """Nothing."""


class OnTheLoop(InThreads):
    """`add` called by the coroutine itself: the loop stands still meanwhile."""

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        self._maildirs[maildir].add(message)
        await asyncio.sleep(0)  # or no other coroutine would ever run


class _Reader(io.RawIOBase):
    def __init__(self, workload: Workload, number: int) -> None:
        self._chunks = workload.chunks(number)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
