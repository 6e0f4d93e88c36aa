"""The program whose disk is recorded: it delivers, and says so. One process for each recording.

    python -m tests.powercut.workload SCENARIO ROOT [--tell SOCKET] [--without PART]

It makes maildirs in ROOT and delivers numbered messages (`messages`). The moment a delivery is acknowledged it writes
a line of JSON to the recording disk, and waits until that is in the log: whatever is not on the disk by then has been
promised too early. ``--without`` takes a part of the protocol out, below the package, by its `Disk`: what the rig must
find. Without ``--tell`` the lines go to standard output, where the trace of system calls has them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from maildir_async import Delivered, Durability, GroupCommit, Maildir, Quota, deliver, import_mail
from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import PosixDisk
from maildir_async.testing import FaultDisk

from .messages import SHORT, STREAMED, message
from .partly import PARTS, PartlyDisk

__all__ = ["LEVELS", "SCENARIOS"]

#: Whose acknowledgement promises less than to survive a power cut.
LEVELS: Final = ("level-file", "level-none")


@dataclass
class Site:
    """Where a scenario delivers.

    Attributes:
        root: a directory that is durable, as a site's own is.
        tell: puts a line where it is seen in the order of things.
        disk: the system calls; None for the package's own.

    """

    root: Path
    tell: Callable[[dict[str, Any]], None]
    disk: Disk | None = None
    number: int = 0
    commit: GroupCommit = field(default_factory=GroupCommit)

    def maildir(self, name: str = "m", **options: Any) -> Maildir:
        if self.disk is not None:
            options["disk"] = self.disk
        return Maildir(self.root / name, commit=self.commit, hostname="rig", **options)

    def made(self, name: str = "m") -> str:
        """Make a maildir as somebody else does who syncs nothing."""
        for sub in ("cur", "new", "tmp"):
            os.makedirs(self.root / name / sub, 0o700)
        return name

    def next(self, size: int = SHORT) -> tuple[int, bytes]:
        self.number += 1
        return self.number, message(self.number, size)

    def acknowledge(self, number: int, delivered: Delivered, *, promised: bool = True) -> None:
        told = {"what": "delivered", "path": delivered.path, "number": number, "promised": promised}
        self.tell(told | {"keywords": sorted(delivered.keywords), "warnings": [*delivered.warnings]})


async def _side_by_side(count: int, width: int, one: Callable[[], Awaitable[None]]) -> None:
    """Have *one* done *count* times, never more than *width* at once."""
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(worker() for _ in range(width)))


async def _append(site: Site, maildir: Maildir, size: int = SHORT, **options: Any) -> None:
    number, content = site.next(size)
    site.acknowledge(number, await maildir.append(content, **options))


def _width(count: int, width: int) -> "Scenario":
    async def scenario(site: Site) -> None:
        maildir = site.maildir(site.made())
        await _side_by_side(count, width, lambda: _append(site, maildir))

    return scenario


async def streams(site: Site) -> None:
    """Long messages, as they come; between them short ones."""
    maildir = site.maildir()

    async def one() -> None:
        number, content = site.next(STREAMED if site.number % 3 else SHORT)

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(content), 70_000):
                yield content[start : start + 70_000]

        site.acknowledge(number, await maildir.append(chunks()))

    await _side_by_side(9, 3, one)


async def maildirs(site: Site) -> None:
    """Each message into a maildir that is not there, some deep below what is not there either."""

    async def one() -> None:
        at = site.number
        await _append(site, site.maildir(f"m{at}" if at % 2 else f"d{at % 3}/deep/m{at}"))

    await _side_by_side(16, 4, one)


async def folders(site: Site) -> None:
    """Folders that are made by their first message."""
    maildir = site.maildir(site.made())
    await _side_by_side(16, 4, lambda: _append(site, maildir, folder=f"Archive/{site.number % 8}"))


async def quota(site: Site) -> None:
    """A maildir that counts, in one file, which nobody syncs."""
    maildir = site.maildir(quota=Quota(bytes=10**8))
    await _side_by_side(24, 4, lambda: _append(site, maildir))


async def keywords(site: Site) -> None:
    """Keywords, whose names are kept in a file of the maildir."""
    maildir = site.maildir()
    await _side_by_side(20, 4, lambda: _append(site, maildir, keywords=[f"word{site.number % 7}", "$Forwarded"]))


async def fan_out(site: Site) -> None:
    """One file in five maildirs; a stream among them."""
    boxes = [site.maildir(f"m{at}") for at in range(5)]

    async def one() -> None:
        number, content = site.next(STREAMED if site.number == 2 else SHORT)
        for outcome in await deliver(content, boxes):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.delivered is not None
            site.acknowledge(number, outcome.delivered)

    await _side_by_side(8, 2, one)


async def transactions(site: Site) -> None:
    """Several messages that become visible together."""
    maildir = site.maildir(site.made())

    async def one() -> None:
        several = [site.next() for _ in range(6)]
        done = await maildir.append_many([content for _, content in several], atomic=True)
        for (number, _), delivered in zip(several, done, strict=True):
            site.acknowledge(number, delivered)

    await _side_by_side(5, 2, one)


async def imported(site: Site) -> None:
    """An mbox. It is known to be imported only when all of it is; checked by another import, too."""
    box = site.root.parent / "box"
    several = [site.next() for _ in range(40)]
    with open(box, "wb") as file:
        for _, content in several:
            file.write(b"From rig@example.org Thu Jan  1 00:00:00 2026\n" + content + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(box.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    maildir = site.maildir()
    site.tell({"what": "importing", "source": str(box), "maildir": maildir.path, "messages": len(several)})
    report = await import_mail(box, maildir)
    assert report.imported == len(several), report
    site.tell({"what": "imported", "numbers": [number for number, _ in several], "maildir": maildir.path})


async def syncfs(site: Site) -> None:
    site.commit = GroupCommit(syncfs=True)
    await _width(32, 16)(site)


async def helper(site: Site) -> None:
    site.commit = GroupCommit(helper_process=True)
    await _width(32, 16)(site)
    assert site.commit.statistics().helper_pid is not None
    await site.commit.aclose()


async def threads(site: Site) -> None:
    """Without kernel AIO: each sync is a thread's fsync(2)."""
    site.disk = FaultDisk()
    await _width(32, 16)(site)


def _level(durability: Durability) -> "Scenario":
    async def scenario(site: Site) -> None:
        """One after another: so the newest are a matter of order. Half-way the system syncs, as it does by itself."""
        maildir = site.maildir(durability=durability)

        async def some() -> None:
            for _ in range(12):
                number, content = site.next(SHORT if site.number % 4 else 9 * SHORT)
                site.acknowledge(number, await maildir.append(content), promised=False)

        await some()
        fd = os.open(site.root, os.O_RDONLY)
        PosixDisk().sync_file_system(fd)
        os.close(fd)
        site.tell({"what": "synced"})
        await some()

    return scenario


Scenario = Callable[[Site], Awaitable[None]]

SCENARIOS: Final[dict[str, Scenario]] = {
    "width-1": _width(16, 1),
    "width-16": _width(48, 16),
    "width-64": _width(128, 64),
    "streams": streams,
    "maildirs": maildirs,
    "folders": folders,
    "quota": quota,
    "keywords": keywords,
    "fan-out": fan_out,
    "transactions": transactions,
    "import": imported,
    "syncfs": syncfs,
    "helper": helper,
    "threads": threads,
    "level-file": _level(Durability.FILE),
    "level-none": _level(Durability.NONE),
}


@contextlib.contextmanager
def _neighbour(root: Path) -> Iterator[None]:
    """Sync a small file over and over, as others do on any machine: the journal is committed at any moment."""
    stop = threading.Event()

    def sync() -> None:
        fd = os.open(root.parent / "neighbour", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not stop.wait(0.003):
                os.pwrite(fd, os.urandom(8), 0)
                os.fsync(fd)
        finally:
            os.close(fd)

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _teller(path: str | None) -> Callable[[dict[str, Any]], None]:
    if path is None:
        return lambda told: print(json.dumps(told), flush=True)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)

    def tell(told: dict[str, Any]) -> None:
        connection.send(json.dumps(told).encode())
        if connection.recv(1) != b"k":
            raise OSError("the recording disk is gone")

    return tell


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--tell")
    parser.add_argument("--without", choices=PARTS)
    parser.add_argument("--neighbour", action="store_true")
    options = parser.parse_args()
    site = Site(options.root, _teller(options.tell), PartlyDisk(options.without) if options.without else None)
    site.tell({"what": "begun", "kernel-aio": PosixDisk().syncs_by_kernel(os.stat(site.root).st_dev)})
    with _neighbour(site.root) if options.neighbour else contextlib.nullcontext():
        asyncio.run(SCENARIOS[options.scenario](site))  # type: ignore[arg-type]
    site.tell({"what": "done"})


if __name__ == "__main__":
    main()
