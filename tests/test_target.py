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
from maildir_async import GroupCommit, Maildir, UncertainAppendError, deliver, target
from maildir_async.testing import Fault, FaultDisk

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


def test_a_thousand_maildirs_with_few_descriptors(tmp_path: Path) -> None:
    """A message for a thousand maildirs, and a message for each, are delivered with 400 descriptors."""
    subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, tmp_path], check=True, timeout=100)
    assert all(len(os.listdir(tmp_path / f"{number}" / "new")) == 3 for number in range(1000))


@pytest.fixture(params=[0, 256], ids=["looked at", "open"])
def held_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether directories are held open until they are synced."""
    most: int = request.param
    monkeypatch.setattr(target, "MOST_OPEN", most)
    return most > 0


def test_each_directory_is_synced(tmp_path: Path, held_open: bool) -> None:
    """Each new/ is synced once, whether it has been held open or not."""

    async def main() -> None:
        disk = FaultDisk()
        maildirs = [Maildir(tmp_path / f"{number}", disk=disk) for number in range(5)]
        await deliver(b"which makes them", maildirs)
        disk.calls.clear()
        outcomes = await deliver(b"a message", maildirs)
        assert all(outcome.delivered for outcome in outcomes)
        synced = sorted(call.path for call in disk.calls if call.operation == "sync" and "/tmp/" not in call.path[-60:])
        assert synced == [f"{maildir.path}/new" for maildir in maildirs]

    asyncio.run(main())


def test_a_sync_that_fails_is_told(tmp_path: Path, held_open: bool) -> None:
    """A directory that cannot be synced makes its own messages uncertain, and nobody else's."""

    async def main() -> None:
        disk = FaultDisk(Fault("sync", error=errno.EIO, path="1/new"))
        outcomes = await deliver(b"x", [Maildir(tmp_path / f"{number}", disk=disk) for number in range(3)])
        assert [type(outcome.error) for outcome in outcomes] == [type(None), UncertainAppendError, type(None)]

    asyncio.run(main())


def test_a_directory_that_is_replaced(tmp_path: Path, held_open: bool) -> None:
    """A new/ that is another one when it is to be synced was not synced: what went into the old one is uncertain.

    If it has been held open it is the old one that is synced, and that is where the message is.
    """
    maildir = Maildir(tmp_path / "0")

    def replace() -> None:
        shutil.move(f"{maildir.path}/new", tmp_path / "away")
        os.mkdir(f"{maildir.path}/new")

    async def main() -> None:
        await maildir.append(b"which makes it")
        at_the_sync = Fault(
            "sync" if held_open else "open_directory", path="0/new", gate=replace, nth=1 + (not held_open)
        )
        disk = FaultDisk(at_the_sync)
        again = Maildir(maildir.path, disk=disk)
        if held_open:
            await again.append(b"a message")
        else:
            with pytest.raises(UncertainAppendError) as caught:
                await again.append(b"a message")
            assert caught.value.errno == errno.ESTALE
        assert len(os.listdir(tmp_path / "away")) == 2

    asyncio.run(main())


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
    assert not target._open_targets
    assert not descriptors(tmp_path)
