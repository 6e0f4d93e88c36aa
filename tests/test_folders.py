"""Folders of a Maildir++: made at first use, durable up to the root, and never outside of their maildir."""

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from maildir_async import (
    AppendError,
    Delivered,
    GroupCommit,
    Maildir,
    MaildirError,
    NotAMaildirError,
    deliver,
)
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import contents, some
from test_cancel import Moment

MESSAGE = b"Subject: folders\n\nbody\n"
LONG = b"y" * 600_000  # more than is gathered before it is written to tmp/


def files(root: Path) -> set[str]:
    """Return what lies below *root* that is no directory."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("message", [MESSAGE, LONG], ids=["short", "stream"])
@pytest.mark.parametrize("helper", [False, True], ids=["here", "helper"])
async def test_made_at_first_use(tmp_path: Path, message: bytes, helper: bool) -> None:
    """The first message makes the maildir, the folder, and the empty file that says it is one."""
    commit = GroupCommit(helper_process=helper)
    maildir = Maildir(tmp_path / "m", commit=commit)
    delivered = await maildir.append(message, folder="Entwürfe/2024")
    folder = tmp_path / "m" / ".Entw&APw-rfe.2024"
    assert delivered.folder == "Entwürfe/2024"
    assert Path(delivered.path).parent == folder / "new"
    assert Path(delivered.path).read_bytes() == message
    assert (folder / "maildirfolder").read_bytes() == b""
    assert not (tmp_path / "m" / "maildirfolder").exists()
    assert contents(maildir.path) == {"cur": [], "new": [], "tmp": []}
    assert contents(folder)["tmp"] == []
    await commit.aclose()


@pytest.mark.parametrize("folder", [None, "", "INBOX", "inbox", [], ["INBOX"]])
async def test_the_maildir_itself(tmp_path: Path, folder: "str | list[str] | None") -> None:
    """These names are the maildir."""
    delivered = await Maildir(tmp_path / "m").append(MESSAGE, folder=folder)
    assert delivered.folder is None
    assert Path(delivered.path).parent == tmp_path / "m" / "new"
    assert await Maildir(tmp_path / "m").folders() == []


async def test_every_way_takes_a_folder(tmp_path: Path) -> None:
    """append_many, open_append and deliver go to a folder too, and one index, one count and one end are for all."""
    a, b = Maildir(tmp_path / "a"), Maildir(tmp_path / "b")
    index = await a.index(folder="x")
    await a.append_many([MESSAGE, LONG], folder="x")
    await a.append_many([MESSAGE, LONG], folder=["x", "y z"], atomic=True)
    async with a.open_append(folder="x") as task:
        await task.send(MESSAGE)
    for outcome in await deliver(LONG, [a, b], folder="x"):
        assert outcome.delivered is not None
        assert outcome.delivered.folder == "x"
        assert os.stat(outcome.delivered.path).st_nlink == 2
    await a.append(MESSAGE)
    assert [len(os.listdir(tmp_path / "a" / name / "new")) for name in (".x", ".x.y z", "")] == [4, 2, 1]
    assert len(index) == 4
    assert await a.folders() == ["x", "x/y z"]
    assert await b.folders() == ["x"]
    assert (a.statistics().delivered, a.statistics().in_flight) == (7, 0)
    await a.aclose()
    for folder in (None, "x", "never"):
        with pytest.raises(MaildirError, match="closed"):
            await a.append(MESSAGE, folder=folder)


async def test_closing_waits_for_all_folders(tmp_path: Path) -> None:
    """Aclose returns when what is in flight to any folder is settled."""
    maildir = Maildir(tmp_path / "m")
    task = maildir.open_append(folder="x")
    await task.__aenter__()
    closing = asyncio.ensure_future(maildir.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    await task.send(MESSAGE)
    await task.__aexit__(None, None, None)
    await closing
    assert contents(tmp_path / "m" / ".x")["new"] == [MESSAGE]


@pytest.mark.parametrize("folder", ["a.b", "a//b", "a\0", "\ud800", "x" * 250])
async def test_a_bad_name_touches_nothing(tmp_path: Path, folder: str) -> None:
    """It is refused before anything is read or made, however the message comes."""
    maildir = Maildir(tmp_path / "m")
    for attempt in (
        maildir.append(MESSAGE, folder=folder),
        maildir.append_many([MESSAGE], folder=folder),
        maildir.append_many([MESSAGE], folder=folder, atomic=True),
        deliver(MESSAGE, [maildir], folder=folder),
        maildir.create_folder(folder),
        maildir.index(folder=folder),
    ):
        with pytest.raises(ValueError, match="folder"):
            await attempt
    with pytest.raises(ValueError, match="folder"):
        maildir.open_append(folder=folder)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_made_that_may_not_be(tmp_path: Path) -> None:
    """With create=False a folder has to be there, as the maildir has to."""
    maildir = Maildir(tmp_path / "m", create=False)
    with pytest.raises(NotAMaildirError):
        await maildir.append(MESSAGE, folder="x")
    await maildir.create()
    with pytest.raises(NotAMaildirError):
        await maildir.append(MESSAGE, folder="x")
    assert files(tmp_path) == set()
    await maildir.create_folder("x")
    await maildir.append(MESSAGE, folder="x")


async def test_listed_as_people_write_them(tmp_path: Path) -> None:
    """Folders are decoded and sorted; what others have left beside them is none."""
    maildir = Maildir(tmp_path / "m")
    for folder in ("b", "Archive/2024", "Archive", "日本語", "a&b"):
        await maildir.create_folder(folder)
    (tmp_path / "m" / ".git").mkdir()
    (tmp_path / "m" / "..trash").mkdir()
    (tmp_path / "m" / "plain").mkdir()
    (tmp_path / "m" / ".file").touch()
    (tmp_path / "m" / ".&bad" / "cur").mkdir(parents=True)
    assert await maildir.folders() == ["Archive", "Archive/2024", "a&b", "b", "日本語"]


async def test_couriers_names(tmp_path: Path) -> None:
    """With utf-8 the names on the disk are Courier's, and a part may have a dot."""
    maildir = Maildir(tmp_path / "m", folder_encoding="utf-8")
    await maildir.append(MESSAGE, folder="Entwürfe/v1.2")
    assert (tmp_path / "m" / ".Entwürfe.v1\\0562").is_dir()
    assert await maildir.folders() == ["Entwürfe/v1.2"]
    with pytest.raises(ValueError, match="folder_encoding"):
        Maildir(tmp_path, folder_encoding="latin-1")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"keywords": ["k"]}], ids=["plain", "keywords"])
@pytest.mark.parametrize("message", [MESSAGE, LONG], ids=["short", "stream"])
@pytest.mark.parametrize("helper", [False, pytest.param(True, marks=pytest.mark.heavy)], ids=["here", "helper"])
async def test_a_link_that_leads_out_is_no_folder(
    tmp_path: Path, message: bytes, options: dict[str, Any], helper: bool
) -> None:
    """Nothing is left where a symbolic link leads to, outside of the maildir; one that stays within is followed."""
    other = Maildir(tmp_path / "other")
    await other.create()
    (tmp_path / "empty").mkdir()
    commit = GroupCommit(helper_process=helper)
    maildir = Maildir(tmp_path / "m", commit=commit)
    await maildir.create_folder("real")
    for name in ("other", "empty", "nowhere"):
        (tmp_path / "m" / f".{name}").symlink_to(tmp_path / name)
        with pytest.raises(NotAMaildirError, match="not a directory" if name == "nowhere" else "leads out"):
            await maildir.append(message, folder=name, **options)
    (tmp_path / "m" / ".in").symlink_to(".real")
    assert files(tmp_path / "other") == set()
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()
    delivered = await maildir.append(message, folder="in", **options)
    assert Path(delivered.path).read_bytes() == message
    assert message in contents(tmp_path / "m" / ".real")["cur" if options else "new"]
    await commit.aclose()


async def _stream() -> AsyncIterator[bytes]:
    """Yield `LONG`, which is in ``tmp/`` before it is whole."""
    for start in range(0, len(LONG), 200_000):
        yield LONG[start : start + 200_000]


async def _by_hand(maildir: Maildir) -> None:
    async with maildir.open_append(folder="x") as task:
        async for chunk in _stream():
            await task.send(chunk)


#: Each delivers a message, or two, one after the other, to the folder x, by the same system calls each time.
WAYS: dict[str, Callable[[Maildir], Awaitable[object]]] = {
    "whole": lambda maildir: maildir.append(MESSAGE, folder="x"),
    "stream": lambda maildir: maildir.append(_stream(), folder="x"),
    "by hand": _by_hand,
    "keyword": lambda maildir: maildir.append(MESSAGE, folder="x", keywords=["k"]),
    "atomic": lambda maildir: maildir.append_many([MESSAGE, _stream()], folder="x", atomic=True, concurrency=1),
}

#: For what takes its time: most of the ways are heavy.
SOME_WAYS = some(WAYS, len(WAYS))


@pytest.mark.parametrize("way", some(WAYS, 3))
async def test_swapped_for_a_link_while_we_deliver(tmp_path: Path, way: str) -> None:
    """Whenever a folder becomes a link that leads out of the maildir, nothing is left there.

    What had been published by then is in the folder, wherever that is now; and nothing is published later.
    """
    outcomes = set[type]()
    for number in itertools.count(1):
        root = tmp_path / str(number)
        box, folder = root / "m", root / "m" / ".x"
        await Maildir(root / "other").create()
        disk = FaultDisk()
        maildir = Maildir(box, disk=disk)
        await maildir.append(MESSAGE, folder="x")

        def swap(root: Path = root, box: Path = box, folder: Path = folder) -> None:
            folder.rename(box / ".was")
            folder.symlink_to(root / "other")

        before = len(disk.calls)
        disk.faults.append(Fault("", gate=swap, nth=number))
        try:
            await WAYS[way](maildir)
        except MaildirError as exc:
            outcomes.add(type(exc))
        else:
            outcomes.add(Delivered)
            was = contents(folder if len(disk.calls) - before < number else box / ".was")
            assert len(was["new"] + was["cur"]) == (3 if way == "atomic" else 2)
        await maildir.aclose()
        assert files(root / "other") == set()
        if len(disk.calls) - before < number:
            break
        assert folder.is_symlink()
    # With a keyword, a lock that is lost on the way is told of by an AppendError of its own.
    assert outcomes == {NotAMaildirError, Delivered, *([AppendError] if way == "keyword" else [])}


async def test_a_folder_costs_one_look_more_than_a_maildir(tmp_path: Path) -> None:
    """Many folders in one round: each is looked at once, and the maildir that they lie in once for all of them."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", disk=disk)
    folders = [f"f{number}" for number in range(64)]
    for _ in range(2):  # the first makes them
        before = len(disk.calls)
        await asyncio.gather(*(maildir.append(MESSAGE, folder=folder) for folder in folders))
    looks = Counter(call.path for call in disk.calls[before:] if call.operation == "stat")
    assert looks.pop(f"{maildir.path}/.") <= 3, "once in each round"
    assert looks.pop(f"{maildir.path}/.f0/new/../..") == 1
    assert all(count == 1 for count in looks.values())
    assert sum(path.endswith("/..") for path in looks) == 63


@pytest.mark.parametrize("way", SOME_WAYS)
def test_cancelled_at_every_disk_call(tmp_path: Path, way: str) -> None:
    """Cancelled while the folder is made, or at any call after, a message is there, whole, or nothing of it is."""
    asyncio.run(_cancel_at_every_disk_call(tmp_path, way))


async def _cancel_at_every_disk_call(tmp_path: Path, way: str) -> None:
    whole = {"atomic": [MESSAGE, LONG], "stream": [LONG], "by hand": [LONG]}.get(way, [MESSAGE])
    outcomes = set[int]()
    for number in itertools.count(1):
        moment = Moment()
        disk = FaultDisk(Fault("", nth=number, gate=moment.gate))
        maildir = Maildir(tmp_path / str(number), disk=disk)
        task = asyncio.ensure_future(WAYS[way](maildir))
        cancelling = asyncio.ensure_future(moment.use(task.cancel))
        await asyncio.wait([task])
        if len(disk.calls) < number:
            cancelling.cancel()
            break
        await cancelling
        assert task.cancelled()
        calls = len(disk.calls)
        await maildir.aclose()
        found = contents(tmp_path / str(number) / ".x")
        messages = found.get("new", []) + found.get("cur", [])
        assert messages in ([], whole)
        assert found.get("tmp", []) == []
        assert len(disk.calls) == calls, "a thread went on after the call had ended"
        outcomes.add(len(messages))
        again = Maildir(maildir.path)
        await WAYS[way](again)
        assert again.statistics().delivered == len(whole)
    # What is given whole is in group commit's hands at once, which is too late for taking it back.
    assert outcomes == ({len(whole)} if way in ("whole", "keyword") else {0, len(whole)})


@pytest.mark.parametrize("moment", ["create", "sync", "open_directory", "rename_noreplace"])
async def test_a_folder_that_vanishes_is_made_again_or_fails(tmp_path: Path, moment: str) -> None:
    """Whenever somebody removes the folder, the message is there in the end, or its sender knows that it is not."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", disk=disk)
    await maildir.append(MESSAGE, folder="x")
    disk.faults.append(Fault(moment, gate=lambda: shutil.rmtree(tmp_path / "m" / ".x"), path=".x/"))
    try:
        delivered = await maildir.append(MESSAGE, folder="x")
    except AppendError:
        with contextlib.suppress(FileNotFoundError):
            assert os.listdir(tmp_path / "m" / ".x" / "tmp") == []
    else:
        assert Path(delivered.path).read_bytes() == MESSAGE
    assert (await maildir.append(MESSAGE, folder="x")).folder == "x"


async def test_removed_between_two_messages_of_a_batch(tmp_path: Path) -> None:
    """Of many at once, to a folder that is removed meanwhile, each is there, or its sender knows that it is not."""
    disk, count = FaultDisk(), itertools.count()
    maildir = Maildir(tmp_path / "m", disk=disk)
    await maildir.create_folder("x")

    def remove() -> None:
        if next(count) == 3:
            shutil.rmtree(tmp_path / "m" / ".x")

    disk.faults.append(Fault("rename_noreplace", gate=remove, nth=0))
    tasks = [maildir.append(b"%d" % number, folder="x") for number in range(8)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, (Delivered, AppendError)) for outcome in outcomes)
    assert isinstance(await maildir.append(MESSAGE, folder="x"), Delivered)
    later = [outcome for outcome in outcomes[3:] if isinstance(outcome, Delivered)]
    found = contents(tmp_path / "m" / ".x")
    assert len(found["new"]) == len(later) + 1
    assert found["tmp"] == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: MESSAGE, MESSAGE, id="whole"),
        pytest.param(_stream, LONG, id="stream", marks=pytest.mark.heavy),
    ],
)
def test_a_power_cut_at_every_call(make: Callable[[], Any], message: bytes) -> None:
    """What append has returned for is there after it: the folder is durable up to the parent of the maildir."""
    for cut_at in itertools.count(1):
        disk = CrashDisk(cut_at=cut_at)
        stored: list[Delivered] = []

        async def fill(disk: CrashDisk = disk, stored: list[Delivered] = stored) -> None:
            maildir = Maildir("/box/m", disk=disk)
            for folder in ("x", "x/y", None):
                stored += [await maildir.append(make(), folder=folder)]

        with contextlib.suppress(MaildirError):
            asyncio.run(fill())
        for left in disk.after_power_cut(range(3)):
            assert all(left.get(delivered.path) == message for delivered in stored)
            assert all(data in (b"", message) or "/tmp/" in path for path, data in left.items())
            assert all(data == message for path, data in left.items() if "/new/" in path)
        if disk.changes < cut_at:
            assert len(stored) == 3
            return


def test_somebody_elses_folder_is_made_durable() -> None:
    """A maildir and a folder that others have made without a sync are synced with the first message to the folder."""
    disk = CrashDisk()
    for path in ("/m", "/m/.x", *(f"{box}/{name}" for box in ("/m", "/m/.x") for name in ("cur", "new", "tmp"))):
        disk.mkdir(path, 0o700)
    delivered = asyncio.run(Maildir("/m", disk=disk).append(MESSAGE, folder="x"))
    assert all(left.get(delivered.path) == MESSAGE for left in disk.after_power_cut())


@pytest.mark.parametrize("way", SOME_WAYS)
async def test_a_fault_at_every_call(tmp_path: Path, way: str) -> None:
    """Whatever call fails, the message is there, whole, or nothing of it is; and the next one is delivered."""
    for number in itertools.count(1):
        root = tmp_path / str(number)
        disk = FaultDisk(Fault("", errno.EIO, nth=number))
        maildir = Maildir(root, disk=disk)
        with contextlib.suppress(MaildirError):
            await WAYS[way](maildir)
        over = len(disk.calls) < number
        disk.faults.clear()
        delivered = await maildir.append(MESSAGE, folder="x")
        assert Path(delivered.path).read_bytes() == MESSAGE
        assert (root / ".x" / "maildirfolder").exists()
        assert os.listdir(root / ".x" / "tmp") == []
        shutil.rmtree(root)
        if over:
            return


async def test_sweeping_is_for_all_folders(tmp_path: Path) -> None:
    """clean_tmp removes what was left in the maildir and in its folders, and nothing behind a link that leads out."""
    maildir = Maildir(tmp_path / "m")
    await maildir.create_folder("x")
    await Maildir(tmp_path / "other").create()
    left = [tmp_path / "m" / "tmp" / "a", tmp_path / "m" / ".x" / "tmp" / "b"]
    for path in (*left, tmp_path / "other" / "tmp" / "c"):
        path.touch()
    (tmp_path / "m" / ".out").symlink_to(tmp_path / "other")
    assert sorted(await maildir.clean_tmp(timedelta(0))) == sorted(map(str, left))
    assert (tmp_path / "other" / "tmp" / "c").exists()
