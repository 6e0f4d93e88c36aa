"""A program that delivers to all maildirs of a mount until its standard input ends: ``writer NAME MOUNT NOTES``.

A line ``pause`` on it has the writer finish what is under way, and say ``paused``; ``go`` has it go on. With a fourth
argument, ``alone``, it delivers one message, with a quota.
"""

import asyncio
import itertools
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Final

from maildir_async import AppendError, Delivered, GroupCommit, Maildir, Quota, UncertainAppendError, deliver

from .mail import FAN_OUT, FOLDER, HOSTNAME, INBOX, KINDS, LIMITED, Kind, Note, message

#: Messages that one writer has under way.
CONCURRENCY: Final = 6

STREAMED: Final = 1_500_000
SHORT: Final = (100, 4_000, 30_000)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """Give *data* in pieces, as a network does."""
    for start in range(0, len(data), 60_000):
        yield data[start : start + 60_000]
        await asyncio.sleep(0)


class Writer:
    """Delivers to the maildirs below a mount, and notes what it was told."""

    def __init__(self, name: str, mount: str, notes: int) -> None:
        self._name = name
        self._notes = notes
        self._count = itertools.count()
        commit = GroupCommit()
        self._maildirs = {
            name: Maildir(f"{mount}/{name}", hostname=HOSTNAME, commit=commit, quota=quota)
            for name, quota in ((INBOX, None), (LIMITED, Quota(bytes=2**40)), *((name, None) for name in FAN_OUT))
        }
        self._over = False
        self._at_work = 0
        self._may_go = asyncio.Event()
        self._may_go.set()

    async def work(self, turn: int) -> None:
        """Deliver one message of each kind after another."""
        for kind in itertools.islice(itertools.cycle(KINDS), turn, None):
            await self._may_go.wait()
            if self._over:
                return
            self._at_work += 1
            await self.one(kind)
            self._at_work -= 1
            self._tell_if_paused()

    def command(self, line: bytes) -> None:
        """Do what a line of standard input says; an empty one is its end."""
        self._over = not line
        if line == b"pause\n":
            self._may_go.clear()
            self._tell_if_paused()
        else:
            self._may_go.set()

    def _tell_if_paused(self) -> None:
        if not self._may_go.is_set() and not self._at_work:
            print("paused", flush=True)

    async def one(self, kind: Kind) -> None:
        """Deliver one message, and note what became of it."""
        number = next(self._count)
        name = f"{self._name}-{number}"
        data = message(name, STREAMED if kind == "stream" else SHORT[number % len(SHORT)])
        targets = {"quota": (LIMITED,), "fan-out": FAN_OUT}.get(kind, (INBOX,))
        folder = FOLDER if kind == "folder" else ""
        keywords = (f"of-{self._name}", "$Forwarded") if kind == "keywords" else ()
        began = time.monotonic()
        told: list[Delivered | BaseException]
        if kind == "fan-out":
            outcomes = await deliver(data, [self._maildirs[target] for target in targets])
            told = [each.delivered or each.error or AssertionError("neither") for each in outcomes]
        else:
            try:
                told = [
                    await self._maildirs[targets[0]].append(
                        chunks(data) if kind == "stream" else data, folder=folder, keywords=keywords
                    )
                ]
            except AppendError as exc:
                told = [exc]
        ended = time.monotonic()
        for target, each in zip(targets, told, strict=True):
            key, reason = (each.key, "") if isinstance(each, Delivered) else ("", f"{type(each).__name__}: {each}")
            outcome = "acknowledged" if key else "uncertain" if isinstance(each, UncertainAppendError) else "refused"
            note = Note(name, kind, target, folder, keywords, outcome, key, reason, began, ended)  # type: ignore[arg-type]
            os.write(self._notes, note.line())
        if not all(isinstance(each, Delivered) for each in told):
            await asyncio.sleep(0.05)  # a store that is away is not to fill the notes


async def main(name: str, mount: str, notes: str, alone: str = "") -> None:
    """Deliver until standard input ends."""
    writer = Writer(name, mount, os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    if alone:
        await writer.one("quota")
        return
    loop = asyncio.get_running_loop()

    def listen() -> None:
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(writer.command, line)
        loop.call_soon_threadsafe(writer.command, b"")

    threading.Thread(target=listen, daemon=True).start()
    async with asyncio.TaskGroup() as group:
        for turn in range(CONCURRENCY):
            group.create_task(writer.work(turn))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
