"""Processes that make the same directories, and are killed on the way: what each acknowledges stands on synced ones.

Real processes on real directories. Each tells what it has done with them in one log, and a pessimist reads it: an entry
is on the disk only if its directory has been synced after it was made, whoever did either.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from maildir_async import GroupCommit, Maildir
from maildir_async.disk.posix import PosixDisk
from support import forked

BOX = "k/example.org/alice/Maildir"


class Logging(PosixDisk):
    """Tells what it does in a log that processes share. Nobody else does anything between the deed and the word."""

    def __init__(self, log: Path, *, killed_at: tuple[str, int] = ("", 0)) -> None:
        self._log = log
        self._killed_at = killed_at
        self._count = itertools.count(1)

    @contextlib.contextmanager
    def told(self, operation: str, path: str) -> Iterator[None]:
        """Have what is done in this block in the log, unless it raises."""
        if operation == self._killed_at[0] and next(self._count) == self._killed_at[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self._log, "a") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            yield
            log.write(f"{operation} {os.path.realpath(path)}\n")

    def mkdir(self, path: str, mode: int) -> None:
        with self.told("mkdir", path):
            super().mkdir(path, mode)

    def sync(self, fd: int) -> None:
        with self.told("sync", f"/proc/self/fd/{fd}"):
            super().sync(fd)

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        where = target if target_directory is None else f"/proc/self/fd/{target_directory}/{target}"
        with self.told("rename", where):
            super().rename_noreplace(source, target, source_directory, target_directory)


def durable(log: Path, message: str) -> set[str]:
    """Return what was on the disk when *message* was acknowledged, if the log tells all that was done."""
    entries, kept = set[str](), set[str]()
    for line in log.read_text().splitlines():
        operation, path = line.split(" ", 1)
        if (operation, path) == ("acknowledged", message):
            return kept
        if operation == "sync":
            kept |= {entry for entry in entries if os.path.dirname(entry) == path}
        else:
            entries.add(path)
    raise AssertionError("it was not acknowledged")


def deliver(path: Path, log: Path) -> str:
    disk = Logging(log)

    async def append() -> str:
        delivered = await Maildir(path, disk=disk, commit=GroupCommit()).append(b"x\n")
        with disk.told("acknowledged", delivered.path):
            return delivered.path

    return asyncio.run(append())


def stands(root: Path, message: str, log: Path) -> bool:
    """Whether *message*, and each directory above it that was made, is on the disk."""
    ways = [message, *map(str, Path(message).parents)]
    return set(ways[: ways.index(str(root))]) <= durable(log, message)


@pytest.mark.parametrize("operation", ["sync", "mkdir"])
def test_after_a_maker_that_was_killed(tmp_path: Path, operation: str) -> None:
    """Killed at whichever sync or mkdir: what another process delivers there then stands on synced directories."""
    for nth in itertools.count(1):
        root, log = tmp_path / str(nth), tmp_path / f"{nth}.log"
        root.mkdir()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                disk = Logging(log, killed_at=(operation, nth))
                asyncio.run(Maildir(root / BOX, disk=disk).create())
            os._exit(0)
        was_killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        (message,) = forked(partial(deliver, root / BOX, log))
        assert stands(root, message, log)
        if not was_killed:
            assert nth > 5
            return


def test_makers_side_by_side(tmp_path: Path) -> None:
    """Processes that deliver to the same new maildir at once, as workers of a daemon do: each stands on its own."""
    for number in range(5):
        root, log = tmp_path / str(number), tmp_path / f"{number}.log"
        root.mkdir()
        messages = forked(partial(deliver, root / BOX, log), children=4)
        assert [stands(root, message, log) for message in messages] == [True] * 4
