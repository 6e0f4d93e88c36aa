"""Power cuts, by a disk in memory that knows what was synced: acknowledged means there, and whole, afterwards.

The last tests break the protocol on purpose, to show that this one would notice.
"""

import asyncio
import contextlib
import errno
import functools
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from maildir_async import AppendError, Delivered, Durability, GroupCommit, Maildir, MaildirError, UncertainAppendError
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.testing import CrashDisk, Fault, FaultDisk

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


# Who makes directories may die on the way, or be slow: what he has made and not synced is not to be built upon.

DEEP = "/k/example.org/alice/Maildir"


class Killed(BaseException):
    """The process is gone."""


def _kill() -> None:
    raise Killed


def _deliver(disk: Disk, path: str = DEEP) -> Delivered:
    """Deliver as a process does that knows nothing of the others: by a disk of its own."""

    async def append() -> Delivered:
        return await Maildir(path, disk=FaultDisk(disk=disk), commit=GroupCommit()).append(b"one\n")

    return asyncio.run(append())


def _make(disk: CrashDisk, fault: Fault, path: str = DEEP) -> bool:
    """Make the maildir, and return whether *fault* has come to pass."""
    with contextlib.suppress(Killed):
        Directories(path, disk=FaultDisk(fault, disk=disk), create=True).make()
    return fault.seen >= fault.nth


def _every(happens: Callable[[int], bool]) -> int:
    return next(nth for nth in itertools.count(1) if not happens(nth))


@pytest.mark.parametrize("operation", ["sync", "mkdir", ""])
def test_another_maker_was_killed(operation: str) -> None:
    """Whenever who made the directories was killed: what another process then delivers there survives a power cut."""

    def happens(nth: int) -> bool:
        disk = CrashDisk()
        was_killed = _make(disk, Fault(operation, nth=nth, gate=_kill))
        _check(disk, [_deliver(disk)])
        return was_killed

    assert _every(happens) > 5


def test_two_makers_were_killed() -> None:
    """The same where a second one was killed too, at whatever he did with what the first had left."""

    def happens(first: int, second: int) -> bool:
        disk = CrashDisk()
        _make(disk, Fault("sync", nth=first, gate=_kill))
        was_killed = _make(disk, Fault("", nth=second, gate=_kill))
        _check(disk, [_deliver(disk)])
        return was_killed

    for first in range(1, 6):
        assert _every(functools.partial(happens, first)) > 5


@pytest.mark.parametrize("other", [DEEP, "/k/example.org/bob/Maildir", "/k/example.net/alice/Maildir"])
def test_another_maker_is_slow(other: str) -> None:
    """While one process makes directories, wherever it stands, what another delivers beside it survives a power cut."""

    def happens(nth: int) -> bool:
        disk = CrashDisk()
        delivered: list[Delivered] = []

        def meanwhile() -> None:
            delivered.append(_deliver(disk, other))
            _check(disk, delivered)

        has_come = _make(disk, Fault("", nth=nth, gate=meanwhile))
        _check(disk, [*delivered, _deliver(disk)])
        return has_come

    assert _every(happens) > 20


def test_another_maker_was_killed_with_a_message_of_ours_in_hand() -> None:
    """Whenever a process is killed that makes the directories for a message, the next one's message survives."""

    def happens(nth: int) -> bool:
        disk = CrashDisk()
        fault = Fault("sync", errno.EIO, nth=nth)  # a thread cannot be killed: what follows a failure is the cleanup
        with contextlib.suppress(AppendError):
            asyncio.run(Maildir(DEEP, disk=FaultDisk(fault, disk=disk), commit=GroupCommit()).append(b"one\n"))
        _check(disk, [_deliver(disk)])
        return fault.seen >= nth

    assert _every(happens) > 5


def test_what_somebody_left_half_made() -> None:
    """A maildir that somebody made and never synced, in one that is durable, is durable after the first delivery."""
    for absent in ("cur", "new", "tmp"):
        disk = CrashDisk()
        Directories("/var/mail", disk=FaultDisk(disk=disk), create=True).make()
        disk.mkdir(PATH, 0o700)
        for name in {"cur", "new", "tmp"} - {absent}:
            disk.mkdir(f"{PATH}/{name}", 0o700)
        _check(disk, [_deliver(disk, PATH)])


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
    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        pass


@pytest.mark.parametrize("broken", [NoFileSync, NoDirectorySync, NoSyncOfNewDirectories, ShortWriteIgnored, NoRename])
def test_the_rig_notices(broken: type[CrashDisk]) -> None:
    """A protocol with one step left out does not pass the test above."""
    with pytest.raises(AssertionError):
        _cut_everywhere(broken)
