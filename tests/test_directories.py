import errno
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.disk import directories as directories_module
from maildir_async.disk.directories import Directories, identity_of, sync_directory
from maildir_async.disk.posix import Disk, PosixDisk
from maildir_async.errors import NotAMaildirError
from maildir_async.testing import Fault, FaultDisk
from support import reproducible, tree, umask

SUBDIRECTORIES = ("cur", "new", "tmp")
HOUR = 3600.0


def directories(path: Path, disk: Disk | None = None, *, create: bool = True) -> Directories:
    return Directories(str(path), disk=disk or PosixDisk(), create=create)


def calls(disk: FaultDisk, operation: str) -> list[str]:
    return [call.path for call in disk.calls if call.operation == operation]


def is_whole(path: Path) -> bool:
    return all((path / name).is_dir() for name in SUBDIRECTORIES)


# Making.


def test_make_order_and_mode(tmp_path: Path) -> None:
    """Directories are made from the outside in, tmp/ last, with mode 0700 whatever the umask."""
    disk, box = FaultDisk(), tmp_path / "a" / "b" / "box"
    with umask(0):
        directories(box, disk).make()
    paths = [tmp_path / "a", tmp_path / "a" / "b", box, box / "cur", box / "new", box / "tmp"]
    assert calls(disk, "mkdir") == list(map(str, paths))
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o700}


def test_make_syncs_what_it_made_innermost_first(tmp_path: Path) -> None:
    """After everything is made, each directory that got an entry is synced, up to the first one that existed."""
    disk, box = FaultDisk(), tmp_path / "a" / "b" / "box"
    directories(box, disk).make()
    assert calls(disk, "sync") == list(map(str, [box, tmp_path / "a" / "b", tmp_path / "a", tmp_path]))
    operations = [call.operation for call in disk.calls]
    assert operations.index("sync") > max(at for at, name in enumerate(operations) if name == "mkdir")


@pytest.mark.parametrize("present", [c for n in range(4) for c in itertools.combinations(SUBDIRECTORIES, n)], ids=str)
def test_make_repairs(tmp_path: Path, present: tuple[str, ...]) -> None:
    """A half-made maildir, whatever is missing, is made whole and synced; what it holds stays."""
    box, disk = tmp_path / "box", FaultDisk()
    box.mkdir()
    for name in present:
        (box / name).mkdir()
        (box / name / "message").write_bytes(b"kept")
    directories(box, disk).make()
    assert is_whole(box)
    kept: dict[str, bytes | None] = {f"{name}/message": b"kept" for name in present}
    assert tree(box) == {**dict.fromkeys(SUBDIRECTORIES), **kept}
    assert str(box) in calls(disk, "sync")


@pytest.mark.parametrize("name", ["a", "a/box", "a/box/cur", "a/box/new", "a/box/tmp"])
def test_make_races_with_another_maker(tmp_path: Path, name: str) -> None:
    """Whichever directory another process makes just before us, the maildir is whole, and all is synced by us too."""
    box = tmp_path / "a" / "box"
    disk = FaultDisk(Fault("mkdir", gate=lambda: os.mkdir(tmp_path / name), path=str(tmp_path / name)))
    directories(box, disk).make()
    assert is_whole(box)
    assert calls(disk, "sync") == list(map(str, [box, tmp_path / "a", tmp_path]))


def test_make_races_with_a_file(tmp_path: Path) -> None:
    """A file that another process puts where a directory was to be made is a NotAMaildirError, and stays."""
    box = tmp_path / "box"
    disk = FaultDisk(Fault("mkdir", gate=box.touch, path=str(box)))
    with pytest.raises(NotAMaildirError):
        directories(box, disk).make()
    assert tree(tmp_path) == {"box": b""}


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_make_refuses_a_file_on_the_way(tmp_path: Path, below: str) -> None:
    """A path that is a file, or leads through one, is a NotAMaildirError with its errno, and nothing is made."""
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(NotAMaildirError, match="is not a directory") as caught:
        directories(Path(f"{tmp_path}/file{below}")).make()
    assert (caught.value.errno, caught.value.stage) == (errno.ENOTDIR, "create")
    assert tree(tmp_path) == {"file": b"kept"}


@pytest.mark.parametrize("name", SUBDIRECTORIES)
def test_make_refuses_a_file_for_a_subdirectory(tmp_path: Path, name: str) -> None:
    """A directory with a file where cur, new or tmp should be is a NotAMaildirError, and nothing is made in it."""
    (tmp_path / name).write_bytes(b"kept")
    with pytest.raises(NotAMaildirError, match=f"{name} is not a directory"):
        directories(tmp_path).make()
    assert tree(tmp_path) == {name: b"kept"}


@pytest.mark.parametrize("below", ["", "/box"])
def test_make_refuses_a_dangling_link(tmp_path: Path, below: str) -> None:
    """A dangling symbolic link is a NotAMaildirError: nothing is made where it points to."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotAMaildirError, match="link is not a directory"):
        directories(Path(f"{tmp_path}/link{below}")).make()
    assert os.listdir(tmp_path) == ["link"]


def test_make_follows_a_link_to_a_directory(tmp_path: Path) -> None:
    """A maildir may be a symbolic link, and so may what is in it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "cur").symlink_to(tmp_path / "elsewhere")
    directories(tmp_path / "link").make()
    assert is_whole(tmp_path / "real")


def test_make_that_fails_says_what_the_system_says(tmp_path: Path) -> None:
    """A mkdir or sync that fails is the system's OSError, and no descriptor stays open."""
    for fault in (Fault("mkdir", errno.ENOSPC, nth=3), Fault("sync", errno.EIO, nth=2), Fault("open_directory", 13)):
        before = os.listdir("/dev/fd")
        with pytest.raises(OSError, match=os.strerror(fault.error or 0)):
            directories(tmp_path / fault.operation / "box", FaultDisk(fault)).make()
        assert os.listdir("/dev/fd") == before


def test_sync_directory_closes(tmp_path: Path) -> None:
    """A directory is closed again when its sync fails."""
    disk = FaultDisk(Fault("sync", errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_directory(disk, str(tmp_path))
    assert [call.operation for call in disk.calls] == ["open_directory", "sync", "close"]


# Not to be made.


@pytest.mark.parametrize("absent", [c for n in (1, 2, 3) for c in itertools.combinations(SUBDIRECTORIES, n)], ids=str)
def test_create_false_refuses(tmp_path: Path, absent: tuple[str, ...]) -> None:
    """With create=False what lacks any of the three is a NotAMaildirError that names one, and is left as it is."""
    for name in set(SUBDIRECTORIES) - set(absent):
        (tmp_path / name).mkdir()
    before = tree(tmp_path)
    with pytest.raises(NotAMaildirError, match=f"{absent[0]}/ is missing") as caught:
        directories(tmp_path, create=False).make_missing()
    assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "create")
    assert tree(tmp_path) == before


def test_create_false_makes_no_parent(tmp_path: Path) -> None:
    """With create=False nothing is made on the way to a maildir that does not exist."""
    with pytest.raises(NotAMaildirError):
        directories(tmp_path / "a" / "box", create=False).make_missing()
    assert tree(tmp_path) == {}


def test_create_false_takes_a_whole_one(tmp_path: Path) -> None:
    """With create=False a whole maildir is a maildir."""
    directories(tmp_path).make()
    found = directories(tmp_path, create=False)
    found.make_missing()
    assert found.missing() == []


def test_create_true_makes_what_is_missing(tmp_path: Path) -> None:
    """With create=True what a delivery finds missing is made."""
    found = directories(tmp_path / "box")
    assert found.missing() == list(SUBDIRECTORIES)
    found.make_missing()
    assert found.missing() == []


# What must be synced with a delivery.


def identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def made(path: Path) -> tuple[Directories, str]:
    """Make a maildir, and return it with its new/."""
    found = directories(path)
    found.make()
    return found, found.subdirectory("new")


def test_above_is_synced_at_first_use(tmp_path: Path) -> None:
    """To exist is not to be durable: a process's first delivery syncs the maildir and its parent, later ones do not."""
    found, new = made(tmp_path / "box")
    assert found.above(new, identity(new)) == [found.path, f"{found.path}/.."]
    found.found_durable(new, identity(new))
    assert found.above(new, identity(new)) == []
    other = directories(tmp_path / "box")  # through another disk
    assert other.above(new, identity(new)) != []


def test_above_is_synced_for_each_target(tmp_path: Path) -> None:
    """That new/ has been found durable says nothing of cur/, which somebody may have made later."""
    found, new = made(tmp_path / "box")
    found.found_durable(new, identity(new))
    cur = found.subdirectory("cur")
    assert found.above(cur, identity(cur)) != []
    found.found_durable(cur, identity(cur))
    assert [found.above(path, identity(path)) for path in (new, cur)] == [[], []]


def test_above_is_synced_again_for_another_directory(tmp_path: Path) -> None:
    """A maildir that has been replaced, or whose directories were missing, is not durable because the old one was."""
    found, new = made(tmp_path / "box")
    found.found_durable(new, identity(new))
    (tmp_path / "box").rename(tmp_path / "old")
    found.make()
    assert found.above(new, identity(new)) != []
    found.found_durable(new, identity(new))
    shutil.rmtree(found.subdirectory("tmp"))
    found.make_missing()
    assert found.above(new, identity(new)) != []


def test_above_of_a_link_is_the_real_parent(tmp_path: Path) -> None:
    """The parent to sync is that of the directory a link points to: there its entry is."""
    (tmp_path / "a" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "real")
    found, new = made(tmp_path / "link")
    assert os.path.samefile(found.above(new, identity(new))[1], tmp_path / "a")


def test_identity(tmp_path: Path) -> None:
    """An open directory is known by device and inode."""
    disk = PosixDisk()
    fd = disk.open_directory(str(tmp_path))
    try:
        assert identity_of(disk, fd) == identity(str(tmp_path))
    finally:
        disk.close(fd)


def test_durable_maildirs_remembered_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that delivers to ever more maildirs does not grow: the oldest is forgotten, and synced anew."""
    monkeypatch.setattr(directories_module, "_durable", {})
    monkeypatch.setattr(directories_module, "_DURABLE_MAX", 2)
    disk = PosixDisk()
    boxes = [directories(tmp_path / name, disk) for name in "abc"]
    for box in boxes:
        box.found_durable(box.subdirectory("new"), (1, 1))
    assert [bool(box.above(box.subdirectory("new"), (1, 1))) for box in boxes] == [True, False, False]


# Listing.


class Listed(PosixDisk):
    """Shows these names in new/, and none in cur/."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def listdir(self, path: str) -> list[str]:
        return self.names if path.endswith("/new") else []


def test_messages_in_the_order_of_arrival(tmp_path: Path) -> None:
    """Messages of new/ and cur/ are listed in the one order in which Dovecot would number them."""
    names = [
        "9.M999999P1Q1.h",
        "10.M5P1Q2.h",  # an unpadded M is still a number
        "10.M000006P1Q1.h:2,S",
        "10.M40P1Q1.h",
        "10.M123456P1Q9R00000000deadbeef.h,S=1,W=1",
        "11.P5.h",
        "100.M000000P1.h",
    ]
    directories(tmp_path).make()
    for at, name in enumerate(reversed(names)):
        (tmp_path / ("cur" if at % 2 else "new") / name).touch()
    (tmp_path / "new" / ".hidden").touch()
    assert [os.path.basename(path) for path in directories(tmp_path).messages()] == names
    assert all(Path(path).is_file() for path in directories(tmp_path).messages())


@reproducible
@given(st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=80)))
def test_any_names_are_listed(names: list[str]) -> None:
    """Names that no Maildir writer makes are listed too, each once, but for those that begin with a dot."""
    found = Directories("/box", disk=Listed(names), create=False).messages()
    assert sorted(found) == sorted(f"/box/new/{name}" for name in names if not name.startswith("."))


def test_no_messages_yet(tmp_path: Path) -> None:
    """A maildir that is yet to be made has no messages, and listing does not make it."""
    assert directories(tmp_path / "box").messages() == []
    assert tree(tmp_path) == {}


def test_no_messages_without_a_maildir(tmp_path: Path) -> None:
    """Where none may be made, listing what is not a maildir is a NotAMaildirError."""
    with pytest.raises(NotAMaildirError):
        directories(tmp_path / "box", create=False).messages()
    (tmp_path / "new").touch()
    with pytest.raises(NotAMaildirError):
        directories(tmp_path, create=False).messages()


@pytest.mark.parametrize("present", ["new", "cur"])
def test_messages_of_a_half_made_maildir(tmp_path: Path, present: str) -> None:
    """A maildir that may be completed at the next delivery lists the messages it has."""
    (tmp_path / present).mkdir()
    (tmp_path / present / "1.M1P1.h").touch()
    assert directories(tmp_path).messages() == [f"{tmp_path}/{present}/1.M1P1.h"]


# Sweeping.


class Aged(PosixDisk):
    """Shows files of tmp/ with a ctime so many seconds ago, by name."""

    def __init__(self, ages: dict[str, float]) -> None:
        self.ages = ages

    def stat(self, path: str | int) -> os.stat_result:
        found = super().stat(path)
        changed = time.time() - self.ages.get(os.path.basename(str(path)), 0.0)
        return os.stat_result((*found[:9], round(changed)))


def littered(path: Path, *names: str) -> Path:
    directories(path).make()
    for name in names:
        (path / "tmp" / name).write_bytes(b"litter")
    return path / "tmp"


def test_clean_tmp_by_age(tmp_path: Path) -> None:
    """Only files in tmp/ that have not changed for longer than the age are removed, and their paths are returned."""
    tmp = littered(tmp_path, "old", "young", "new")
    (tmp_path / "new" / "old").touch()
    disk = Aged({"old": 36 * HOUR + 60, "young": 36 * HOUR - 60, "new": 0})
    assert directories(tmp_path, disk).clean_tmp(36 * HOUR, in_use=()) == [str(tmp / "old")]
    assert sorted(os.listdir(tmp)) == ["new", "young"]
    assert os.listdir(tmp_path / "new") == ["old"]


def test_clean_tmp_goes_by_ctime(tmp_path: Path) -> None:
    """A file whose atime and mtime lie years back is not old: those can be set at will."""
    tmp = littered(tmp_path, "set-back")
    os.utime(tmp / "set-back", (1, 1))
    assert directories(tmp_path).clean_tmp(HOUR, in_use=()) == []
    assert os.listdir(tmp) == ["set-back"]


def test_clean_tmp_spares_what_is_in_use(tmp_path: Path) -> None:
    """A file that this process is writing to is never removed, however old."""
    tmp = littered(tmp_path, "ours", "theirs")
    disk = Aged({"ours": 100 * HOUR, "theirs": 100 * HOUR})
    assert directories(tmp_path, disk).clean_tmp(HOUR, in_use={str(tmp / "ours")}) == [str(tmp / "theirs")]
    assert os.listdir(tmp) == ["ours"]


def test_clean_tmp_removes_regular_files_only(tmp_path: Path) -> None:
    """Directories and symbolic links are nothing that a delivery leaves, and stay, with what they hold or point to."""
    tmp = littered(tmp_path)
    (tmp / "directory").mkdir()
    (tmp / "directory" / "file").touch()
    (tmp_path / "precious").touch()
    (tmp / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp / "fifo")
    disk = Aged(dict.fromkeys(("directory", "link", "fifo", "precious"), 100 * HOUR))
    assert directories(tmp_path, disk).clean_tmp(0, in_use=()) == []
    assert sorted(os.listdir(tmp)) == ["directory", "fifo", "link"]
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("operation", ["stat", "unlink"])
def test_clean_tmp_tolerates_others(tmp_path: Path, operation: str) -> None:
    """A file that somebody else removes between listing, looking and removing is no error, and not returned."""
    tmp = littered(tmp_path, "1", "2")
    gone = tmp / "1"
    disk = FaultDisk(Fault(operation, gate=gone.unlink, path=str(gone)), disk=Aged({"1": 2 * HOUR, "2": 2 * HOUR}))
    assert directories(tmp_path, disk).clean_tmp(HOUR, in_use=()) == [str(tmp / "2")]
    assert os.listdir(tmp) == []


@pytest.mark.parametrize("spoil", [lambda tmp: tmp.rmdir(), lambda tmp: (tmp.rmdir(), tmp.touch())])
def test_clean_tmp_of_what_is_none(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """Where there is no tmp/, or a file in its place, sweeping is a NotAMaildirError and makes nothing."""
    spoil(littered(tmp_path))
    with pytest.raises(NotAMaildirError):
        directories(tmp_path).clean_tmp(HOUR, in_use=())
    assert not (tmp_path / "tmp").is_dir()
