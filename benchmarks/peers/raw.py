"""The system calls of a delivery, made by `os` in Python, and nothing else: what the library adds shows against it."""

import asyncio
import itertools
import os
import time
from collections.abc import Sequence

from benchmarks.peers.kinds import WholeMessagesOnly
from benchmarks.workload import Workload


class Raw:
    """Delivers in a plain loop: one at a time, with no event loop in the process."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._directories = [(f"{path}/tmp/", f"{path}/new/") for path in paths]
        self._durability = workload.durability
        self._numbers = itertools.count()
        self._suffix = f"P{os.getpid()}Q%d.raw"

    def deliver_now(self, maildir: int, message: bytes) -> None:
        """Write, sync, publish, sync."""
        tmp, new = self._directories[maildir]
        name = f"{time.time():.6f}".replace(".", ".M") + self._suffix % next(self._numbers)
        fd = os.open(tmp + name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(message)
            while view:
                view = view[os.write(fd, view) :]
            if self._durability != "none":
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(tmp + name, new + name)
        if self._durability == "full":
            sync_directory(new)


class OneHop(WholeMessagesOnly):
    """The same calls in one `asyncio.to_thread` per message: the shortest careful asyncio program."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._raw = Raw(paths, workload)

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        await asyncio.to_thread(self._raw.deliver_now, maildir, message)


def sync_directory(path: str) -> None:
    """Open, sync and close a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
