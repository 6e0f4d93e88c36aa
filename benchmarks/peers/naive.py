"""What a careful person writes with aiofiles or anyio: the same steps and syncs as ours, one thread hop for each."""

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from functools import partial

import aiofiles
import aiofiles.os
import anyio
import anyio.to_thread

from benchmarks.peers.raw import sync_directory
from benchmarks.workload import Workload


class Aiofiles:
    """Open, write, flush, fsync, close, rename, sync of new/: each in the loop's default executor."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._paths = paths
        self._durability = workload.durability
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Nothing."""

    async def aclose(self) -> None:
        """Nothing."""

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        tmp, new = self._names(maildir)
        async with aiofiles.open(tmp, "xb") as file:
            await file.write(message)
            await file.flush()
            if self._durability != "none":
                await asyncio.to_thread(os.fsync, file.fileno())
        await self._publish(tmp, new)

    async def stream(self, maildir: int, workload: Workload, number: int) -> None:
        """Deliver one message that comes in chunks."""
        tmp, new = self._names(maildir)
        async with aiofiles.open(tmp, "xb") as file:
            async for chunk in workload.async_chunks(number):
                await file.write(chunk)
            await file.flush()
            if self._durability != "none":
                await asyncio.to_thread(os.fsync, file.fileno())
        await self._publish(tmp, new)

    async def _publish(self, tmp: str, new: str) -> None:
        await aiofiles.os.rename(tmp, new)
        if self._durability == "full":
            await asyncio.to_thread(sync_directory, os.path.dirname(new))

    def _names(self, maildir: int) -> tuple[str, str]:
        name = f"{time.time():.6f}".replace(".", ".M") + f"P{os.getpid()}Q{next(self._numbers)}.naive"
        return f"{self._paths[maildir]}/tmp/{name}", f"{self._paths[maildir]}/new/{name}"


class Anyio(Aiofiles):
    """The same with anyio's files and threads."""

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        tmp, new = self._names(maildir)
        async with await anyio.open_file(tmp, "xb") as file:
            await file.write(message)
            await file.flush()
            if self._durability != "none":
                await anyio.to_thread.run_sync(partial(os.fsync, file.wrapped.fileno()))
        await self._publish(tmp, new)

    async def stream(self, maildir: int, workload: Workload, number: int) -> None:
        """Deliver one message that comes in chunks."""
        tmp, new = self._names(maildir)
        async with await anyio.open_file(tmp, "xb") as file:
            async for chunk in workload.async_chunks(number):
                await file.write(chunk)
            await file.flush()
            if self._durability != "none":
                await anyio.to_thread.run_sync(partial(os.fsync, file.wrapped.fileno()))
        await self._publish(tmp, new)

    async def _publish(self, tmp: str, new: str) -> None:
        await anyio.Path(tmp).rename(new)
        if self._durability == "full":
            await anyio.to_thread.run_sync(sync_directory, os.path.dirname(new))
