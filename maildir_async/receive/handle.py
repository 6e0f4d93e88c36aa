"""The worker-thread file handle of a stream."""

import asyncio
import io
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

from aiofiles.threadpool.binary import AsyncFileIO

from maildir_async.commit.waiting import run_in_thread
from maildir_async.disk.streamfile import StreamFile
from maildir_async.disk.threads import Crew

__all__ = ["open_handle"]


class _Raw(io.RawIOBase):
    """The file below the handle: its writes go through the `Disk`, and are complete."""

    def __init__(self, file: StreamFile) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def writelines(self, lines: Iterable[Any], /) -> None:
        for chunks in lines:
            self._file.write(chunks)


async def open_handle(file: StreamFile, crew: Crew) -> AsyncFileIO:
    """Create the file in ``tmp/`` and return an aiofiles handle to it, whose ``writelines`` is to be used: it takes
    sequences of chunks from an iterable, in its thread, and writes each.

    The handle owns neither file nor descriptor: `StreamFile.discard` or group commit ends them, and waits for a write
    that is still running in its thread when the task that awaited it is gone.
    """
    loop = asyncio.get_running_loop()
    await run_in_thread(loop, crew, file.create)
    return AsyncFileIO(cast("BinaryIO", _Raw(file)), loop, crew)
