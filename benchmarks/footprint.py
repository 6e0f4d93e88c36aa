"""What the library costs that delivers nothing: its import, a `Maildir` object, an idle process."""

import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.run import CHECKOUT

__all__ = ["ROWS", "footprint"]

#: Processes to take the median of.
IMPORTS: Final = 15

#: Maildir objects to take the mean of.
OBJECTS: Final = 100_000

#: Seconds without a delivery: longer than an idle worker thread waits for work.
QUIET_S: Final = 7

IMPORT: Final = """
import asyncio, time
started = time.perf_counter()
import aiofiles, anyio, anyio.to_thread
between = time.perf_counter()
import maildir_async
print((between - started) * 1e3, (time.perf_counter() - between) * 1e3)
"""

OBJECT: Final = f"""
import tracemalloc
from maildir_async import Maildir
Maildir("warm-up")
paths = [f"{{number:08}}" for number in range({OBJECTS})]
tracemalloc.start()
maildirs = [Maildir(path) for path in paths]
print(tracemalloc.get_traced_memory()[0] / {OBJECTS})
"""

IDLE: Final = f"""
import asyncio, os, sys, threading
from maildir_async import Maildir
def count():
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
async def main():
    before = count()
    maildir = Maildir(sys.argv[1])
    await asyncio.gather(*(maildir.append(b"x") for _ in range(200)))
    await asyncio.sleep({QUIET_S})
    after = count()
    print(after[0] - before[0], after[1] - before[1])
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: what it is called in JSON, and in the report."""

    name: str
    text: str


ROWS: Final = (
    Row("dependencies_ms", f"import of the dependencies, ms (median of {IMPORTS} processes)"),
    Row("import_ms", "import of maildir_async after that, ms"),
    Row("object_bytes", f"a Maildir object that was never used, bytes (mean of {OBJECTS:,})"),
    Row("idle_threads", f"threads left after 200 deliveries and {QUIET_S} s of quiet"),
    Row("idle_descriptors", "descriptors left then"),
)


def footprint(directory: Path) -> dict[str, float]:
    """Return the figures; *directory* is where some mail may be left."""
    with ThreadPoolExecutor(1) as pool:  # it is quiet for nearly all of its time
        idle = pool.submit(_numbers, IDLE, str(directory / "footprint"))
        imports = [_numbers(IMPORT) for _ in range(IMPORTS + 1)][1:]  # the first one may compile
    threads, descriptors = idle.result()
    return {
        "dependencies_ms": statistics.median(each[0] for each in imports),
        "import_ms": statistics.median(each[1] for each in imports),
        "object_bytes": _numbers(OBJECT)[0],
        "idle_threads": threads,
        "idle_descriptors": descriptors,
    }


def _numbers(program: str, *arguments: str) -> list[float]:
    command: list[Any] = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT, timeout=120)
    return [float(number) for number in done.stdout.split()]
