"""An import of an mbox beside 64 appends in flight of the same messages, in turns, in one directory.

``python -m benchmarks.importing DIRECTORY`` prints the ratios of the rates. Each maildir is counted, and removed.
"""

import argparse
import asyncio
import shutil
import statistics
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from maildir_async import Maildir, import_mail

__all__ = ["main"]

SIZE: Final = 4096
IN_FLIGHT: Final = 64
BODY: Final = (b"z" * 69 + b"\n") * (SIZE // 70)
FROM: Final = b"From a@example.org Sat Jan  3 01:05:34 2015\n"


def message(number: int) -> bytes:
    """Return a message of 4 KiB and a few, in lines of 70 characters."""
    head = b"From: a@example.org\nSubject: %d\nMessage-ID: <%d@example.org>\n\n" % (number, number)
    return head + BODY


def main() -> None:
    """Run it with the arguments of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importing", description=__doc__)
    parser.add_argument("directory", type=Path, help="where mbox and maildirs are made: on the disk that is meant")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    mbox = asked.directory / "importing.mbox"
    with mbox.open("wb") as file:
        for number in range(asked.messages):
            file.write(FROM + message(number) + b"\n")
    ratios, rates = list[float](), list[tuple[float, float]]()
    try:
        for turn in range(asked.rounds):
            pair = [_measure(way, mbox, asked.messages) for way in (_import, _append)[:: -1 if turn % 2 else 1]]
            imported, appended = pair[:: -1 if turn % 2 else 1]
            rates.append((imported, appended))
            ratios.append(imported / appended)
    finally:
        mbox.unlink()
    imported, appended = (statistics.median(rate) for rate in zip(*rates, strict=True))
    print(f"import: {imported:.0f} messages a second; {IN_FLIGHT} appends in flight: {appended:.0f}")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) in {asked.rounds} rounds")


def _measure(way: Callable[[Path, Path, int], Coroutine[Any, Any, None]], mbox: Path, messages: int) -> float:
    """Return messages a second, into a maildir of its own."""
    target = mbox.with_name("importing.maildir")
    try:
        began = time.perf_counter()
        asyncio.run(way(mbox, target, messages))
        took = time.perf_counter() - began
        found = sum(1 for where in ("new", "cur") for _ in (target / where).iterdir())
    finally:
        shutil.rmtree(target, ignore_errors=True)
    assert found == messages
    return messages / took


async def _import(mbox: Path, target: Path, messages: int) -> None:
    report = await import_mail(mbox, target)
    assert report.imported == messages


async def _append(mbox: Path, target: Path, messages: int) -> None:
    maildir, numbers = Maildir(target), iter(range(messages))

    async def work() -> None:
        for number in numbers:
            await maildir.append(message(number))

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


if __name__ == "__main__":
    main()
