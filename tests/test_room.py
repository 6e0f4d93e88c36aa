"""What RCPT asks of a maildir: `Maildir.check_room` meets what a delivery would, and neither makes a thing there."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import GroupCommit, Maildir, MaildirError, NotAMaildirError
from maildir_async.testing import Fault, FaultDisk
from support import contents, tree

MESSAGE: Final = b"Subject: x\n\n.\n"


def made(box: Path) -> None:
    for name in ("cur", "new", "tmp"):
        (box / name).mkdir(parents=True)


def nothing(box: Path) -> None:
    box.parent.mkdir(parents=True)


def whole(box: Path) -> None:
    made(box)


def half(box: Path) -> None:
    (box / "cur").mkdir(parents=True)


def dangling(box: Path) -> None:
    box.parent.mkdir(parents=True)
    box.symlink_to("nowhere")


def dangling_above(box: Path) -> None:
    box.parent.parent.mkdir(parents=True)
    box.parent.symlink_to("nowhere")


def looping(box: Path) -> None:
    box.parent.mkdir(parents=True)
    box.symlink_to(box.name)


def plain_file(box: Path) -> None:
    box.parent.mkdir(parents=True)
    box.write_bytes(b"mine")


def file_above(box: Path) -> None:
    box.parent.parent.mkdir(parents=True)
    box.parent.write_bytes(b"mine")


def within(name: str, *, is_link: bool, is_whole: bool) -> Callable[[Path], None]:
    def make(box: Path) -> None:
        if is_whole:
            made(box)
            (box / name).rmdir()
        else:
            box.mkdir(parents=True)
        if is_link:
            (box / name).symlink_to("nowhere")
        else:
            (box / name).write_bytes(b"mine")
            (box / name).chmod(0o700)  # access(2) finds it fit to be searched

    return make


def all_dangling(box: Path) -> None:
    box.mkdir(parents=True)
    for name in ("cur", "new", "tmp"):
        (box / name).symlink_to("nowhere")


ODD: Final[dict[str, Callable[[Path], None]]] = {
    **{make.__name__: make for make in (dangling, dangling_above, looping, plain_file, file_above, all_dangling)},
    **{
        f"{name} {'link' if is_link else 'file'}{'' if is_whole else ' alone'}": within(
            name, is_link=is_link, is_whole=is_whole
        )
        for name in ("tmp", "new", "cur")
        for is_link in (True, False)
        for is_whole in (True, False)
    },
}
IN_ORDER: Final = {make.__name__: make for make in (nothing, whole, half)}


async def told(attempt: Any) -> MaildirError | None:
    try:
        await attempt
    except MaildirError as exc:
        return exc
    return None


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
async def test_what_a_delivery_would_meet_is_told_before(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Each oddity on the way is a temporary error, the same before and during a delivery, and stays as it is."""
    box = tmp_path / "root" / "user" / "Maildir"
    make(box)
    before = tree(tmp_path)
    asked = await told(Maildir(box).check_room())
    assert tree(tmp_path) == before
    appended = await told(Maildir(box).append(MESSAGE))
    assert asked is not None
    assert asked.temporary
    assert appended is not None
    assert (asked.errno, asked.smtp_reply) == (appended.errno, appended.smtp_reply)
    assert not (tmp_path / "root" / "user" / "nowhere").exists()
    assert not any(contents(box).values() if box.is_dir() else ())


@pytest.mark.parametrize("make", IN_ORDER.values(), ids=IN_ORDER)
async def test_what_a_delivery_may_make_is_in_order(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """What is missing, and can be made, is nothing to tell; it is not made by the look."""
    box = tmp_path / "root" / "user" / "Maildir"
    make(box)
    before = tree(tmp_path)
    await Maildir(box).check_room()
    assert tree(tmp_path) == before
    await Maildir(box).append(MESSAGE)


@pytest.mark.parametrize("make", [nothing, half], ids=lambda make: make.__name__)
async def test_what_may_not_be_made_is_told(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """With create=False what is missing is told too."""
    box = tmp_path / "root" / "user" / "Maildir"
    make(box)
    assert isinstance(await told(Maildir(box, create=False).check_room()), NotAMaildirError)


async def test_a_full_disk_is_told_where_all_is_missing(tmp_path: Path) -> None:
    """A maildir that is yet to be made has no room on a full disk either."""

    class Full(FaultDisk):
        def room(self, path: str) -> int:
            return super().room(path) * 0

    asked = await told(Maildir(tmp_path / "user" / "Maildir", disk=Full()).check_room())
    assert asked is not None
    assert asked.errno == errno.ENOSPC


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOTCONN, errno.ELOOP])
@pytest.mark.parametrize("operation", ["room", "open_directory", "stat"])
async def test_a_store_that_fails_is_told(tmp_path: Path, operation: str, number: int) -> None:
    """A stale mount, a server that has gone, a disk that cannot be read: temporary, with the system's number."""
    disk = FaultDisk(Fault(operation, error=number, nth=0))
    box = Maildir(tmp_path / "user" / "Maildir", disk=disk, create_below=tmp_path)
    if operation == "room":
        await Maildir(tmp_path / "user" / "Maildir").create()
    asked = await told(box.check_room())
    assert asked is not None
    assert asked.errno == number
    assert asked.temporary


# What is not made without something to make it in.


@pytest.mark.parametrize("is_helper", [False, True])
async def test_nothing_is_made_where_the_base_is_missing(tmp_path: Path, is_helper: bool) -> None:
    """Only what is below create_below is made: where that is missing, or leads nowhere, the store is away."""
    root = tmp_path / "root"
    async with contextlib.AsyncExitStack() as leaving:
        commit = GroupCommit(helper_process=True) if is_helper else GroupCommit()
        if is_helper:
            leaving.push_async_callback(commit.aclose)
        for _ in range(2):
            box = Maildir(root / "example.org" / "alice", create_below=root, commit=commit)
            before = sorted(os.listdir(tmp_path))
            for attempt in (box.check_room(), box.append(MESSAGE), box.create()):
                error = await told(attempt)
                assert isinstance(error, NotAMaildirError)
                assert (error.smtp_reply[:9], error.stage) == ("451 4.3.5", "create")
                assert str(root) in str(error)
            assert sorted(os.listdir(tmp_path)) == before
            if not root.is_symlink():
                root.symlink_to("nowhere")
        root.unlink()
        root.mkdir()
        box = Maildir(root / "example.org" / "alice", create_below=root, commit=commit)
        await box.check_room()
        await box.append(MESSAGE)


async def test_nothing_is_made_where_the_mount_is_missing(tmp_path: Path) -> None:
    """A directory that has to be a mount point and is none has nothing made below it; what is there is not seen."""
    mount = tmp_path / "mount"
    mount.mkdir()
    box = Maildir(mount / "example.org" / "alice", require_mount=mount)
    for attempt in (box.check_room(), box.append(MESSAGE)):
        error = await told(attempt)
        assert isinstance(error, NotAMaildirError)
        assert "is not a mount point" in str(error)
    assert os.listdir(mount) == []
    made(mount / "example.org" / "alice")  # by a mistake of the past
    assert isinstance(await told(box.check_room()), NotAMaildirError)
    mount.joinpath("example.org").rename(tmp_path / "elsewhere")
    mount.rmdir()
    assert "is not there" in str(await told(box.check_room()))


async def test_a_mount_point_is_one(tmp_path: Path) -> None:
    """What has another device than its parent is mounted, and so is the root."""
    await Maildir(tmp_path / "a", require_mount="/").append(MESSAGE)
    (tmp_path / "link").symlink_to("/proc")
    box = Maildir(tmp_path / "b", require_mount=tmp_path / "link")
    await box.check_room()
    await box.append(MESSAGE)
