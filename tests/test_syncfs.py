"""One sync for a whole file system: who shares it, who is told when it fails, whom it delays."""

import asyncio
import errno
import itertools
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from look import Look, chunks_of, descriptors
from maildir_async import AppendError, AppendTask, Delivered, Durability, GroupCommit, Maildir, UncertainAppendError
from maildir_async.disk.posix import PosixDisk
from maildir_async.testing import Call, CrashDisk, Fault, FaultDisk
from support import Gate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="syncfs(2) is Linux's")

LONG = b"0123456789abcdef" * 65536


def _syncs(disk: FaultDisk) -> Counter[str]:
    """Return how often files, directories and file systems have been synced."""

    def what(call: Call) -> str:
        if call.operation == "sync_file_system":
            return "file system"
        return "file" if Path(call.path).parent.name == "tmp" else "directory"

    return Counter(what(call) for call in disk.calls if call.operation in ("sync", "sync_file_system"))


async def _ready(path: Path, disk: FaultDisk | None = None) -> tuple[Maildir, FaultDisk]:
    """Return a maildir that is known to be durable, with a group commit of its own that uses syncfs."""
    disk = disk or FaultDisk()
    maildir = Maildir(path, disk=disk, commit=GroupCommit(syncfs=True))
    await maildir.append(b"first use")
    disk.calls.clear()
    return maildir, disk


@pytest.mark.every_loop
async def test_one_sync_for_a_batch(tmp_path: Path) -> None:
    """A batch of any messages makes one sync of their file system, none of a file, and one of the directory."""
    maildir, disk = await _ready(tmp_path / "m")
    results = await asyncio.gather(*(maildir.append(b"%d" % number) for number in range(64)))
    assert _syncs(disk) == {"file system": 1, "directory": 1}
    assert {result.durability for result in results} == {Durability.FULL}
    calls = [call.operation for call in disk.calls]
    written = max(at for at, call in enumerate(calls) if call == "write")
    published = calls.index("rename_noreplace")
    assert written < calls.index("sync_file_system") < published, "not between the writing and the publishing of all"
    Look(maildir.path).assert_tmp_empty()
    assert not descriptors(tmp_path)


@pytest.mark.parametrize("kind", ["short", "stream"])
async def test_a_lone_message_is_synced_alone(tmp_path: Path, kind: str) -> None:
    """Without company a message does not wait for what others have written on its file system."""
    maildir, disk = await _ready(tmp_path / "m")
    await maildir.append(b"short" if kind == "short" else chunks_of(LONG, 100_000)())
    assert _syncs(disk) == {"file": 1, "directory": 1}


async def test_messages_that_need_no_sync_are_no_company(tmp_path: Path) -> None:
    """One durable message among some that are not is synced alone, and a batch of such not at all."""
    maildir, disk = await _ready(tmp_path / "m")
    levels = [Durability.NONE, Durability.FULL, Durability.NONE]
    await asyncio.gather(*(maildir.append(b"message", durability=level) for level in levels))
    assert _syncs(disk) == {"file": 1, "directory": 1}
    disk.calls.clear()
    await asyncio.gather(*(maildir.append(b"message", durability=Durability.NONE) for _ in range(3)))
    assert _syncs(disk) == {}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
async def test_a_failed_sync_fails_those_it_was_for(tmp_path: Path, number: int) -> None:
    """Each durable message of the batch fails at "sync", once and for all; a weaker one, and the next, is delivered."""
    maildir, disk = await _ready(tmp_path / "m")
    disk.faults.append(Fault("sync_file_system", number))
    levels = [Durability.FULL, Durability.FILE, Durability.NONE, Durability.FULL]
    appends = (maildir.append(b"%d" % at, durability=level) for at, level in enumerate(levels))
    results = await asyncio.gather(*appends, return_exceptions=True)
    for level, result in zip(levels, results, strict=True):
        if level is Durability.NONE:
            assert isinstance(result, Delivered)
            assert (result.durability, result.warnings) == (Durability.NONE, ())
        else:
            assert type(result) is AppendError
            assert (result.errno, result.stage) == (number, "sync")
            assert result.temporary
    assert _syncs(disk) == {"file system": 1}, "nothing is synced again, nor a directory nobody durable is in"
    assert Look(maildir.path).messages() == [b"first use", b"2"]
    Look(maildir.path).assert_tmp_empty()
    assert not descriptors(tmp_path)
    assert all(isinstance(one, Delivered) for one in await maildir.append_many([b"a", b"b"]))


class TwoFileSystems(PosixDisk):
    """Pretends that maildirs whose name begins with "other" are on a file system of their own."""

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        found = super().stat(path, directory)
        where = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        return os.stat_result((*found[:2], found.st_dev + ("/other" in where), *found[3:])) if found else found


async def test_each_file_system_is_synced_by_itself(tmp_path: Path) -> None:
    """Two file systems in a batch get a sync each; what fails on one is not the other's failure."""
    disk = FaultDisk(disk=TwoFileSystems())
    commit = GroupCommit(syncfs=True)
    maildirs = [Maildir(tmp_path / name, disk=disk, commit=commit) for name in ("one", "two", "other", "other2")]
    for maildir in maildirs:
        await maildir.append(b"first use")
    disk.calls.clear()
    await asyncio.gather(*(maildir.append(b"message") for maildir in maildirs for _ in range(3)))
    assert _syncs(disk) == {"file system": 2, "directory": 4}
    disk.faults.append(Fault("sync_file_system", errno.EIO, path="/other"))
    results = await asyncio.gather(*(maildir.append(b"message") for maildir in maildirs), return_exceptions=True)
    assert [type(result) for result in results] == [Delivered, Delivered, AppendError, AppendError]


async def test_the_first_descriptor_is_the_one_that_knows(tmp_path: Path) -> None:
    """The sync goes by the file opened first: it alone has been told of all that failed since any was opened."""
    maildir, disk = await _ready(tmp_path / "m")
    streams: list[AppendTask] = []
    for letter in b"12":
        streams.append(stream := maildir.open_append())
        await stream.send(bytes([letter]) * 1_300_000)
        async with asyncio.timeout(30):
            while not stream.bytes_written or (of := stream._delivery.reception) is None or of.spool.busy:
                await asyncio.sleep(0.001)
    first, second = streams
    second.unregister_producer()
    short = asyncio.ensure_future(maildir.append(b"short"))
    first.unregister_producer()
    await asyncio.gather(second, short, first)
    synced = [call.path for call in disk.calls if call.operation == "sync_file_system"]
    assert synced == [first.tmp_path]


HANGING = ["sync_file_system", "rename_noreplace", "close"]


@pytest.mark.parametrize("operation", HANGING)
def test_a_hanging_call_delays_only_its_own(tmp_path: Path, operation: str) -> None:
    """What comes later, here or elsewhere, is delivered while a call hangs; what hung is delivered when that ends."""

    async def main() -> None:
        gate = Gate()
        maildir, disk = await _ready(tmp_path / "m")
        own = Maildir(tmp_path / "own", disk=disk, commit=GroupCommit(syncfs=True))
        where = "m/new/" if operation == "rename_noreplace" else "m/tmp/"
        disk.faults.append(Fault(operation, path=where, nth=1 if operation == "sync_file_system" else 5, gate=gate))
        appends = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(16)]
        await gate.reached()
        waiting = 16 if operation == "sync_file_system" else 1
        while sum(not append.done() for append in appends) > waiting:
            await asyncio.wait([append for append in appends if not append.done()], timeout=0.01)
        assert len(await own.append_many([b"own 1", b"own 2"])) == 2
        assert len(await maildir.append_many([b"later 1", b"later 2"])) == 2
        assert sum(not append.done() for append in appends) == waiting
        gate.open()
        for result in await asyncio.gather(*appends, return_exceptions=True):
            assert isinstance(result, Delivered), result
        look = Look(maildir.path)
        assert sorted(look.messages()) == sorted(
            [b"first use", b"later 1", b"later 2", *(b"%d" % number for number in range(16))]
        )
        look.assert_tmp_empty()
        assert not descriptors(tmp_path)

    asyncio.run(main())


def test_a_sync_that_hangs_and_then_fails(tmp_path: Path) -> None:
    """A failure is told, and nothing left, also where the round has gone on without the sync that failed."""

    async def main() -> None:
        gate = Gate()
        maildir, disk = await _ready(tmp_path / "m")
        disk.faults.append(Fault("sync_file_system", errno.EIO, gate=gate))
        appends = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(4)]
        await gate.reached()
        await maildir.append(b"later")
        gate.open()
        for result in await asyncio.gather(*appends, return_exceptions=True):
            assert type(result) is AppendError
            assert (result.errno, result.stage) == (errno.EIO, "sync")
        assert Look(maildir.path).messages() == [b"first use", b"later"]
        Look(maildir.path).assert_tmp_empty()
        assert not descriptors(tmp_path)

    asyncio.run(main())


PATH = "/var/mail/alice"


async def _run(disk: CrashDisk) -> list[Delivered]:
    maildir = Maildir(PATH, disk=disk, commit=GroupCommit(syncfs=True))
    messages: list[Any] = [b"one\n", b"two\n" * 1000, chunks_of(LONG, 300_000)(), b"", b"five"]
    results: list[Any] = await asyncio.gather(*map(maildir.append, messages), return_exceptions=True)
    results += await asyncio.gather(maildir.append(b"later"), return_exceptions=True)
    for result in results:
        assert isinstance(result, Delivered | AppendError | UncertainAppendError), result
    return [result for result in results if isinstance(result, Delivered)]


def _cut_everywhere(make: type[CrashDisk]) -> int:
    whole = {b"one\n", b"two\n" * 1000, LONG, b"", b"five", b"later"}
    for cut_at in itertools.count(1):
        disk = make(cut_at=cut_at)
        acknowledged = asyncio.run(_run(disk))
        for found in disk.after_power_cut():
            for delivered in acknowledged:
                assert len(found.get(delivered.path, b"")) == delivered.size, "an acknowledged message is lost or torn"
            for path, content in found.items():
                assert "/tmp/" in path or content in whole, "a torn message is visible"
        assert disk.open_files == 0
        if disk.changes < cut_at:
            assert len(acknowledged) == 6
            assert not any("/tmp/" in path for path in disk.files())
            return cut_at
    raise AssertionError


def test_power_cut_at_every_call() -> None:
    """Whenever the power goes, acknowledged messages survive it and no visible one is torn."""
    assert _cut_everywhere(CrashDisk) > 30


class NoSync(CrashDisk):
    def sync_file_system(self, fd: int) -> None:
        pass


def test_the_rig_notices() -> None:
    """Without the sync of the file system the test above does not pass."""
    with pytest.raises(AssertionError):
        _cut_everywhere(NoSync)


RELEASES = {
    "4.19.0": False,
    "5.7.19": False,
    "5.8.0": True,
    "5.10.0-8-amd64": True,
    "6.1.0-13-amd64": True,
    "10.0": True,
}


@pytest.mark.parametrize("release", RELEASES)
def test_where_the_system_hides_failures_it_is_refused(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """Before Linux 5.8 syncfs(2) succeeds whatever was lost: ValueError, unless nobody asks for it."""
    real = os.uname()
    uname = type(real)((real.sysname, real.nodename, release, real.version, real.machine))
    monkeypatch.setattr(os, "uname", lambda: uname)
    if RELEASES[release]:
        GroupCommit(syncfs=True)
    else:
        with pytest.raises(ValueError, match=r"5\.8"):
            GroupCommit(syncfs=True)
    GroupCommit()


def test_not_on_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems have no such call."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="Linux"):
        GroupCommit(syncfs=True)


def test_the_real_call(tmp_path: Path) -> None:
    """syncfs(2) is called with the descriptor given, and its failure is an OSError."""
    disk = PosixDisk()
    fd = os.open(tmp_path, os.O_RDONLY)
    disk.sync_file_system(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        disk.sync_file_system(fd)
    assert caught.value.errno == errno.EBADF


async def test_on_the_real_disk(tmp_path: Path) -> None:
    """A batch is delivered by way of the system's own syncfs."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit(syncfs=True))
    delivered = await maildir.append_many([b"%d" % number for number in range(20)])
    assert [Path(one.path).read_bytes() for one in delivered] == [b"%d" % number for number in range(20)]
