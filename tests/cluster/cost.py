"""What a delivery costs on a file system: ``cost DIRECTORY`` prints milliseconds and messages a second, as JSON."""

import asyncio
import json
import os
import sys
import time
from typing import Final

from maildir_async import Maildir

#: Messages of the part that delivers 64 at a time.
TOGETHER: Final = 320


async def measure(directory: str) -> dict[str, float]:
    """Deliver 4 KiB one after another, and 64 at a time; then create, write, sync, and move without the library."""
    maildir = Maildir(f"{directory}/cost")
    message = os.urandom(2048).hex().encode()
    await maildir.append(message)  # makes the maildir
    singles = list[float]()
    for _ in range(100):
        began = time.perf_counter()
        await maildir.append(message)
        singles.append(time.perf_counter() - began)
    began = time.perf_counter()
    await maildir.append_many([message] * TOGETHER, concurrency=64)
    together = time.perf_counter() - began
    await maildir.aclose()
    syncs = await asyncio.to_thread(_syncs, directory, message)
    return {
        "alone_ms": sorted(singles)[50] * 1000,
        "alone_p99_ms": sorted(singles)[98] * 1000,
        "together_per_s": TOGETHER / together,
        "sync_ms": sorted(syncs)[50] * 1000,
    }


def _syncs(directory: str, message: bytes) -> list[float]:
    """Return the seconds of fsync alone, of files with so much in them."""
    seconds = list[float]()
    for _ in range(100):
        path = os.path.join(directory, "cost.file")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, message)
        began = time.perf_counter()
        os.fsync(fd)
        seconds.append(time.perf_counter() - began)
        os.close(fd)
        os.unlink(path)
    return seconds


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1]))))
