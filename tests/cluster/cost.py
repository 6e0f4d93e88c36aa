"""What a delivery costs on a file system: ``cost DIRECTORY`` prints milliseconds and messages a second, as JSON."""

import asyncio
import json
import os
import sys
import time
from typing import Final

from maildir_async import Maildir

#: Seconds that each part goes on, at least.
SECONDS: Final = 1.0


async def measure(directory: str) -> dict[str, float]:
    """Deliver 4 KiB one after another, and 64 at a time; then create, write, sync, and move without the library."""
    maildir = Maildir(f"{directory}/cost")
    message = os.urandom(2048).hex().encode()
    await maildir.append(message)  # makes the maildir
    singles = list[float]()
    while sum(singles) < SECONDS:
        began = time.perf_counter()
        await maildir.append(message)
        singles.append(time.perf_counter() - began)
    count, began = 0, time.perf_counter()
    while (together := time.perf_counter() - began) < SECONDS:
        count += len(await maildir.append_many([message] * 128, concurrency=64))
    await maildir.aclose()
    syncs = await asyncio.to_thread(_syncs, directory, message)
    return {
        "alone_ms": sorted(singles)[len(singles) // 2] * 1000,
        "alone_p99_ms": sorted(singles)[len(singles) * 99 // 100] * 1000,
        "together_per_s": count / together,
        "sync_ms": sorted(syncs)[len(syncs) // 2] * 1000,
    }


def _syncs(directory: str, message: bytes) -> list[float]:
    """Return the seconds of fsync alone, of files with so much in them."""
    seconds = list[float]()
    while sum(seconds) < SECONDS:
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
