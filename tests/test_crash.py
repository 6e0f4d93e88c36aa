"""Power cuts, by a disk in memory that knows what was synced: acknowledged means there, and whole, afterwards.

The last tests break the protocol on purpose, to show that this one would notice.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from maildir_async import AppendError, Delivered, Durability, GroupCommit, Maildir, MaildirError, UncertainAppendError
from maildir_async.testing import CrashDisk

PATH = "/var/mail/alice"
LONG = b"long " * 120_000


def _messages() -> list[Any]:
    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(LONG), 60_000):
            yield LONG[start : start + 60_000]

    return [b"one\n", b"two\n" * 1000, stream(), b"", b"five"]


WHOLE = {b"one\n", b"two\n" * 1000, LONG, b"", b"five", b"later"}


async def _run(disk: CrashDisk, durability: Durability) -> tuple[list[Delivered], list[UncertainAppendError]]:
    """Deliver at once, then one more; return what was acknowledged."""
    maildir = Maildir(PATH, disk=disk, durability=durability, commit=GroupCommit())
    results: list[Any] = await asyncio.gather(*map(maildir.append, _messages()), return_exceptions=True)
    results += await asyncio.gather(maildir.append(b"later"), return_exceptions=True)
    for result in results:
        assert isinstance(result, Delivered | AppendError | MaildirError), result
    return (
        [result for result in results if isinstance(result, Delivered)],
        [result for result in results if isinstance(result, UncertainAppendError)],
    )


def _check(disk: CrashDisk, acknowledged: list[Delivered]) -> None:
    """In every state the disk may be in, what was acknowledged is there, and what is visible is whole."""
    for found in disk.after_power_cut():
        for delivered in acknowledged:
            assert delivered.path in found, "an acknowledged message is lost"
            assert len(found[delivered.path]) == delivered.size, "an acknowledged message is torn"
        for path, content in found.items():
            if "/tmp/" not in path:
                assert content in WHOLE, "a torn message is visible"


def _cut_everywhere(make: type[CrashDisk], durability: Durability = Durability.FULL) -> int:
    for cut_at in itertools.count(1):
        disk = make(cut_at=cut_at)
        acknowledged, uncertain = asyncio.run(_run(disk, durability))
        _check(disk, acknowledged if durability is Durability.FULL else [])
        assert disk.open_files == 0
        files = disk.files()
        assert all(error.path in files for error in uncertain)
        if disk.changes < cut_at:
            assert len(acknowledged) == len(_messages()) + 1
            assert not any("/tmp/" in path for path in files)
            return cut_at
    raise AssertionError


def test_power_cut_at_every_call() -> None:
    """Whenever the power goes, acknowledged messages survive it and no visible one is torn."""
    assert _cut_everywhere(CrashDisk) > 50


def test_weaker_level_file_loses_messages_but_tears_none() -> None:
    """Without the directory sync the newest messages may be gone, but what is visible is whole."""
    _cut_everywhere(CrashDisk, Durability.FILE)


def test_directories_somebody_else_made_are_made_durable_too() -> None:
    """A maildir that exists, but was never synced, does not take acknowledged messages with it."""
    disk = CrashDisk()
    for path in ("/var", "/var/mail", PATH, f"{PATH}/cur", f"{PATH}/new", f"{PATH}/tmp"):
        disk.mkdir(path, 0o700)
        if path == "/var":
            for fd in (disk.open_directory("/"), disk.open_directory("/var")):
                disk.sync(fd)
                disk.close(fd)
    fd = disk.open_directory("/var")  # the site's own: /var/mail itself is durable
    disk.sync(fd)
    disk.close(fd)
    acknowledged, _ = asyncio.run(_run(disk, Durability.FULL))
    _check(disk, acknowledged)


class NoFileSync(CrashDisk):
    def sync(self, fd: int) -> None:
        if self._open[fd].is_directory:
            super().sync(fd)


class NoDirectorySync(CrashDisk):
    def sync(self, fd: int) -> None:
        if not self._open[fd].is_directory:
            super().sync(fd)


class NoSyncOfNewDirectories(CrashDisk):
    def sync(self, fd: int) -> None:
        if not self._open[fd].is_directory or "new" not in self._open[fd].entries:
            super().sync(fd)


class ShortWriteIgnored(CrashDisk):
    def write(self, fd: int, data: bytes | memoryview) -> int:
        super().write(fd, data)
        return len(data)


class NoRename(CrashDisk):
    def rename_noreplace(self, source: str, target: str) -> None:
        pass


@pytest.mark.parametrize("broken", [NoFileSync, NoDirectorySync, NoSyncOfNewDirectories, ShortWriteIgnored, NoRename])
def test_the_rig_notices(broken: type[CrashDisk]) -> None:
    """A protocol with one step left out does not pass the test above."""
    with pytest.raises(AssertionError):
        _cut_everywhere(broken)
