"""Directories that get messages: however many there are, each is synced, and descriptors do not run out."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from look import descriptors
from maildir_async import GroupCommit, Maildir, UncertainAppendError, deliver
from maildir_async.commit import publishing, target
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.testing import Fault, FaultDisk
from support import forked

FEW_DESCRIPTORS = """
import asyncio, resource, sys
from maildir_async import Maildir, deliver

async def main():
    maildirs = [Maildir(f"{sys.argv[1]}/{number}") for number in range(1000)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
    for _ in range(2):  # when they are made, and when they are known
        outcomes = await deliver(b"Subject: to all\\n\\n", maildirs)
        failed = [outcome.error for outcome in outcomes if not outcome.delivered]
        assert not failed, (len(failed), failed[0])
    await asyncio.gather(*(maildir.append(b"one each") for maildir in maildirs))

asyncio.run(main())
"""


@pytest.mark.heavy
def test_a_thousand_maildirs_with_few_descriptors(tmp_path: Path) -> None:
    """A message for a thousand maildirs, and a message for each, are delivered with 400 descriptors."""
    subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, tmp_path], check=True, timeout=100)
    assert all(len(os.listdir(tmp_path / f"{number}" / "new")) == 3 for number in range(1000))


@pytest.fixture(params=[1, 2, 128], ids=["one open", "two open", "all open"])
def most_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many directories are held open before they are synced."""
    most: int = request.param
    monkeypatch.setattr(publishing, "MOST_OPEN", most)
    return most


def test_each_directory_is_synced(tmp_path: Path, most_open: int) -> None:
    """Each new/ is synced once, whether all are held open until then or not."""

    async def main() -> None:
        disk = FaultDisk()
        maildirs = [Maildir(tmp_path / f"{number}", disk=disk) for number in range(5)]
        await deliver(b"which makes them", maildirs)
        disk.calls.clear()
        outcomes = await deliver(b"a message", maildirs)
        assert all(outcome.delivered for outcome in outcomes)
        synced = sorted(call.path for call in disk.calls if call.operation == "sync" and call.path.endswith("/new"))
        assert synced == [f"{maildir.path}/new" for maildir in maildirs]

    asyncio.run(main())


def test_a_sync_that_fails_is_told(tmp_path: Path, most_open: int) -> None:
    """A directory that cannot be synced makes its own messages uncertain, and nobody else's."""

    async def main() -> None:
        disk = FaultDisk(Fault("sync", error=errno.EIO, path="1/new"))
        outcomes = await deliver(b"x", [Maildir(tmp_path / f"{number}", disk=disk) for number in range(3)])
        assert [type(outcome.error) for outcome in outcomes] == [type(None), UncertainAppendError, type(None)]

    asyncio.run(main())


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_directory_that_is_replaced(tmp_path: Path, how: str) -> None:
    """It is the directory in which the message is that is synced, whatever stands in its place by then.

    One that is moved away takes the message along, if it has been opened before; one that is gone is made anew.
    """
    maildir = Maildir(tmp_path / "0")

    def replace() -> None:
        if how == "moved":
            shutil.move(f"{maildir.path}/new", tmp_path / "away")
            os.mkdir(f"{maildir.path}/new")
        else:
            shutil.rmtree(f"{maildir.path}/new")

    async def main() -> None:
        await maildir.append(b"which makes it")
        disk = FaultDisk(Fault("rename_noreplace", path="0/new", gate=replace))
        delivered = await Maildir(maildir.path, disk=disk).append(b"a message")
        synced = [call.path for call in disk.calls if call.operation == "sync" and call.path.endswith("/new")]
        assert f"{maildir.path}/new" in synced
        if how == "moved":
            assert len(os.listdir(tmp_path / "away")) == 2
        else:
            assert os.listdir(tmp_path / "0" / "new") == [os.path.basename(delivered.path)]
            opened = [call.path for call in disk.calls if call.operation == "open_directory"]
            assert opened.count(f"{maildir.path}/new") >= 2

    asyncio.run(main())
    assert not descriptors(tmp_path)


def test_one_that_takes_the_place_of_another_in_the_middle(tmp_path: Path) -> None:
    """What one message finds gone does not concern those before it: theirs is synced all the same."""

    async def main() -> None:
        await Maildir(tmp_path / "m").create()
        disk = FaultDisk(Fault("rename_noreplace", nth=3, path="m/new", gate=replace))
        maildir = Maildir(tmp_path / "m", disk=disk)
        outcomes = await asyncio.gather(*(maildir.append(b"%d" % number) for number in range(5)))
        synced = [call for call in disk.calls if call.operation == "sync" and call.path == f"{maildir.path}/new"]
        assert len(synced) == 2, "the one that is gone by now, and the one that took its place"
        assert all(os.path.exists(one.path) for one in outcomes[2:])

    def replace() -> None:
        shutil.rmtree(tmp_path / "m" / "new")

    asyncio.run(main())
    assert not descriptors(tmp_path)


def test_a_directory_that_cannot_be_closed_is_a_warning(tmp_path: Path) -> None:
    """It has been synced by then: the message is delivered."""

    async def main() -> None:
        await Maildir(tmp_path / "m").create()
        disk = FaultDisk(Fault("close", errno.EIO, path="m/new"))
        delivered = await Maildir(tmp_path / "m", disk=disk).append(b"x")
        assert [warning.partition(" failed")[0] for warning in delivered.warnings] == [f"closing {tmp_path}/m/new"]

    asyncio.run(main())


def test_a_forked_child_has_none_of_them_open(tmp_path: Path) -> None:
    """A child that is forked while a round has directories open closes them, and the parent's stay open."""
    box = Directories(str(tmp_path / "m"), disk=PosixDisk(), create=True)
    box.make()
    opened = target.Target(box, box.new)
    assert forked(lambda: (len(descriptors(tmp_path)), opened.fd, len(list(target._open)))) == [(0, -1, 0)]
    assert len(descriptors(tmp_path)) == 1
    opened.sync()
    opened.close()
    opened.close()
    assert not descriptors(tmp_path)


def test_links_that_are_left_behind_leave_no_directory_open(tmp_path: Path) -> None:
    """A message whose links hang is finished alone, and whatever directories were opened for it are closed."""
    go_on = threading.Event()

    async def main() -> None:
        disk = FaultDisk()
        maildirs = [Maildir(tmp_path / f"{number}", disk=disk, commit=commit) for number in range(4)]
        await deliver(b"which makes them", maildirs)
        disk.faults.append(Fault("link", path="/2/new", gate=lambda: go_on.wait(30)))
        hanging = asyncio.ensure_future(deliver(b"a message", maildirs))
        while not disk.faults[-1].seen:
            await asyncio.sleep(0.001)
        await Maildir(tmp_path / "another", commit=commit).append(b"which goes on without it")
        assert not hanging.done()
        go_on.set()
        assert all(outcome.delivered for outcome in await hanging)

    commit = GroupCommit()
    asyncio.run(main())
    assert commit.wait_idle(30)
    assert not list(target._open)
    assert not descriptors(tmp_path)
