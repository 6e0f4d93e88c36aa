import errno
import itertools
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.disk import directories as directories_module
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories, sync_directory
from maildir_async.disk.listing import clean_tmp, messages
from maildir_async.disk.posix import PosixDisk
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


def test_make_syncs_each_parent_before_it_makes_the_child(tmp_path: Path) -> None:
    """Nothing is made in a directory before its own entry is synced, that of the one that existed already included."""
    disk, box = FaultDisk(), tmp_path / "a" / "b" / "box"
    directories(box, disk).make()
    done = [(call.operation, call.path) for call in disk.calls if call.operation in ("mkdir", "sync")]
    assert done == [
        ("sync", f"{tmp_path}/.."),
        ("mkdir", str(tmp_path / "a")),
        ("sync", str(tmp_path)),
        ("mkdir", str(tmp_path / "a" / "b")),
        ("sync", str(tmp_path / "a")),
        ("mkdir", str(box)),
        ("sync", str(tmp_path / "a" / "b")),
        *(("mkdir", str(box / name)) for name in SUBDIRECTORIES),
        ("sync", str(box)),
    ]


def test_make_syncs_only_what_it_does_not_know(tmp_path: Path) -> None:
    """A hundred maildirs beside each other, and their first messages, sync what they share once."""
    disk = FaultDisk()
    boxes = [directories(tmp_path / "users" / str(number), disk) for number in range(100)]
    for box in boxes:
        box.make()
    synced = Counter(calls(disk, "sync"))
    assert synced.pop(f"{tmp_path}/..") == synced.pop(str(tmp_path)) == 1
    assert synced.pop(str(tmp_path / "users")) == 100
    assert synced == {box.path: 1 for box in boxes}
    for box in boxes:
        for target in (box.new, box.cur):
            assert box.above(target, identity(target)) == []


def test_a_parent_that_is_closed_to_us(tmp_path: Path) -> None:
    """A parent of what existed that may not be opened is a warning, of the maker or else of the first delivery."""
    home = tmp_path / "home"
    home.mkdir()
    disk = FaultDisk(Fault("open_directory", errno.EACCES, nth=0, path=f"{home}/.."))
    box = directories(home / "Maildir", disk)
    (warning,) = box.make()
    assert f"{home}/.." in warning
    assert is_whole(home / "Maildir")
    assert box.above(box.new, identity(box.new)) == []

    disk = FaultDisk(Fault("open_directory", errno.EACCES, nth=0, path=f"{home}/.."))
    box = directories(home, disk)
    assert box.make() == []
    assert is_whole(home)
    assert box.above(box.new, identity(box.new)) == [str(home), f"{home}/.."]


def test_a_file_system_that_syncs_no_directories(tmp_path: Path) -> None:
    """There a maildir is made all the same; each directory that could not be synced is a warning, and not durable."""
    disk = FaultDisk(Fault("sync", errno.EINVAL, nth=0))
    box = directories(tmp_path / "a" / "box", disk)
    warnings = box.make()
    assert [warning.partition(" ")[0] for warning in warnings] == [
        f"{tmp_path}/..",
        str(tmp_path),
        str(tmp_path / "a"),
        box.path,
    ]
    assert is_whole(tmp_path / "a" / "box")
    assert box.above(box.new, identity(box.new)) != []


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
    synced = calls(disk, "sync")
    assert synced[-1] == str(box)
    assert synced.count(str(tmp_path / "a")) == synced.count(str(tmp_path)) == 1


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
    with pytest.raises(NotAMaildirError, match=f"it has no {absent[0]}/") as caught:
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


def identity(path: str, disk: Disk | None = None) -> tuple[int, int, int]:
    disk = disk or PosixDisk()
    fd = disk.open_directory(path)
    try:
        return disk.identity(fd)
    finally:
        disk.close(fd)


def found(path: Path) -> tuple[Directories, str]:
    """Have somebody else make a maildir, and return it with its new/."""
    directories(path).make()
    here = directories(path)
    return here, here.new


def test_above_is_synced_at_first_use(tmp_path: Path) -> None:
    """To exist is not to be durable: a process's first delivery syncs the maildir and its parent, later ones do not."""
    here, new = found(tmp_path / "box")
    assert here.above(new, identity(new)) == [here.path, f"{here.path}/.."]
    here.found_durable(new, identity(new))
    assert here.above(new, identity(new)) == []
    other = directories(tmp_path / "box")  # through another disk
    assert other.above(new, identity(new)) != []


def test_above_is_nothing_where_this_process_made_it(tmp_path: Path) -> None:
    """What a process has made and synced it knows to be durable: the first delivery has only new/ to sync."""
    here = directories(tmp_path / "box")
    here.make()
    assert [here.above(path, identity(path)) for path in (here.new, here.cur)] == [[], []]


def test_what_failed_to_be_made_is_not_durable(tmp_path: Path) -> None:
    """A maildir whose last sync failed is synced by the first delivery."""
    here = directories(tmp_path / "box", FaultDisk(Fault("sync", errno.EIO, path=str(tmp_path / "box"))))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        here.make()
    assert is_whole(tmp_path / "box")
    assert here.above(here.new, identity(here.new)) == [here.path, f"{here.path}/.."]


def test_above_is_synced_for_each_target(tmp_path: Path) -> None:
    """That new/ has been found durable says nothing of cur/, which somebody may have made later."""
    here, new = found(tmp_path / "box")
    here.found_durable(new, identity(new))
    cur = here.cur
    assert here.above(cur, identity(cur)) != []
    here.found_durable(cur, identity(cur))
    assert [here.above(path, identity(path)) for path in (new, cur)] == [[], []]


def test_above_is_synced_again_for_another_directory(tmp_path: Path) -> None:
    """A maildir that has been replaced, or whose directories were missing, is not durable because the old one was."""
    here, new = found(tmp_path / "box")
    here.found_durable(new, identity(new))
    (tmp_path / "box").rename(tmp_path / "old")
    directories(tmp_path / "box").make()
    assert here.above(new, identity(new)) != []
    here.found_durable(new, identity(new))
    shutil.rmtree(here.tmp)
    lost = directories(tmp_path / "box", here.disk, create=False)
    with pytest.raises(NotAMaildirError):
        lost.make_missing()
    assert here.above(new, identity(new)) != []


class SameInode(PosixDisk):
    """Gives every directory one inode number, as ext4 does for those that follow each other."""

    def identity(self, fd: int) -> tuple[int, int, int]:
        device, _, born = super().identity(fd)
        return device, 1, born


def test_a_reused_inode_number_is_not_durable(tmp_path: Path) -> None:
    """A maildir that another process has removed and made again is not durable, though its number is the old one's."""
    disk = SameInode()
    here = directories(tmp_path / "box", disk)
    here.make()
    born = identity(here.new, disk)
    if not born[2]:
        pytest.skip("this file system does not tell when a directory was made")
    while identity(here.new, disk) == born:  # the clock of births is as coarse as the kernel's tick
        shutil.rmtree(tmp_path / "box")
        directories(tmp_path / "box").make()
    assert here.above(here.new, identity(here.new, disk)) != []


def test_above_of_a_link_is_the_real_parent(tmp_path: Path) -> None:
    """The parent to sync is that of the directory a link points to: there its entry is."""
    (tmp_path / "a" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "real")
    here, new = found(tmp_path / "link")
    assert os.path.samefile(here.above(new, identity(new))[1], tmp_path / "a")


def test_identity_of_a_maildir(tmp_path: Path) -> None:
    """Two paths to one maildir are known for one, made or yet to be made; others, and what cannot be seen, are not."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        ways = [
            directories(Path(f"{tmp_path}/{way}")).identity()
            for way in ("real/a/box", "link/a/box", "real/../link/a/box")
        ]
        assert len(set(ways)) == 1
        other = directories(tmp_path / "real" / "b" / "box").identity()
        assert other != ways[0]
        directories(tmp_path / "real" / "a" / "box").make()
    blind = FaultDisk(Fault("stat", errno.EIO, nth=0))
    assert directories(tmp_path / "link", blind).identity() == (str(tmp_path / "link"),)


# What is half made.


@pytest.mark.parametrize("absent", SUBDIRECTORIES)
def test_check_whole(tmp_path: Path, absent: str) -> None:
    """What lacks one of the three is made whole, durably; or it is a NotAMaildirError, if nothing may be made."""
    directories(tmp_path / "box").make()
    (tmp_path / "box" / absent).rmdir()
    with pytest.raises(NotAMaildirError, match=f"it has no {absent}/"):
        directories(tmp_path / "box", create=False).check_whole()
    disk = FaultDisk()
    here = directories(tmp_path / "box", disk)
    assert (here.check_whole(), here.is_whole) == ([], True)
    assert is_whole(tmp_path / "box")
    assert calls(disk, "sync") == [f"{here.path}/..", here.path]
    again = FaultDisk()
    assert directories(tmp_path / "box", again, create=False).check_whole() == []
    assert {call.operation for call in again.calls} == {"stat"}


def test_check_whole_asks_for_no_right_to_read(tmp_path: Path) -> None:
    """A directory that is there, and closed to this process, is there."""
    directories(tmp_path).make()
    disk = FaultDisk(Fault("stat", errno.EACCES, path="/cur", nth=0))
    assert directories(tmp_path, disk, create=False).check_whole() == []


def test_check_whole_sees_links(tmp_path: Path) -> None:
    """A link to a directory will do; one that leads nowhere is no part of a maildir, and nothing is made there."""
    directories(tmp_path / "box").make()
    (tmp_path / "box" / "cur").rename(tmp_path / "elsewhere")
    (tmp_path / "box" / "cur").symlink_to(tmp_path / "elsewhere")
    here = directories(tmp_path / "box")
    assert here.check_whole() == []
    (tmp_path / "elsewhere").rmdir()
    with pytest.raises(NotAMaildirError, match="cur is not a directory"):
        here.check_whole()
    assert not (tmp_path / "elsewhere").exists()


def test_durable_maildirs_remembered_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that delivers to ever more maildirs does not grow: the oldest is forgotten, and synced anew."""
    monkeypatch.setattr(directories_module, "_durable", {})
    monkeypatch.setattr(directories_module, "_DURABLE_MAX", 2)
    disk = PosixDisk()
    boxes = [directories(tmp_path / name, disk) for name in "abc"]
    for box in boxes:
        box.found_durable(box.new, (1, 1, 1))
    assert [bool(box.above(box.new, (1, 1, 1))) for box in boxes] == [True, False, False]


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
    assert [os.path.basename(path) for path in messages(directories(tmp_path))] == names
    assert all(Path(path).is_file() for path in messages(directories(tmp_path)))


@reproducible
@given(st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=80)))
def test_any_names_are_listed(names: list[str]) -> None:
    """Names that no Maildir writer makes are listed too, each once, but for those that begin with a dot."""
    found = messages(Directories("/box", disk=Listed(names), create=False))
    assert sorted(found) == sorted(f"/box/new/{name}" for name in names if not name.startswith("."))


def test_no_messages_yet(tmp_path: Path) -> None:
    """A maildir that is yet to be made has no messages, and listing does not make it."""
    assert messages(directories(tmp_path / "box")) == []
    assert tree(tmp_path) == {}


def test_no_messages_without_a_maildir(tmp_path: Path) -> None:
    """Where none may be made, listing what is not a maildir is a NotAMaildirError."""
    with pytest.raises(NotAMaildirError):
        messages(directories(tmp_path / "box", create=False))
    (tmp_path / "new").touch()
    with pytest.raises(NotAMaildirError):
        messages(directories(tmp_path, create=False))


@pytest.mark.parametrize("present", ["new", "cur"])
def test_messages_of_a_half_made_maildir(tmp_path: Path, present: str) -> None:
    """A maildir that may be completed at the next delivery lists the messages it has."""
    (tmp_path / present).mkdir()
    (tmp_path / present / "1.M1P1.h").touch()
    assert messages(directories(tmp_path)) == [f"{tmp_path}/{present}/1.M1P1.h"]


# Sweeping.


class Aged(PosixDisk):
    """Shows files of tmp/ with a ctime so many seconds ago, by name."""

    def __init__(self, ages: dict[str, float]) -> None:
        self.ages = ages

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        found = super().stat(path, directory)
        changed = time.time() - self.ages.get(os.path.basename(str(path)), 0.0)
        return os.stat_result((*found[:9], round(changed)))


def nothing(name: str) -> bool:
    """Nothing is in use."""
    return not name


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
    assert clean_tmp(directories(tmp_path, disk), 36 * HOUR, nothing) == [str(tmp / "old")]
    assert sorted(os.listdir(tmp)) == ["new", "young"]
    assert os.listdir(tmp_path / "new") == ["old"]


def test_clean_tmp_goes_by_ctime(tmp_path: Path) -> None:
    """A file whose atime and mtime lie years back is not old: those can be set at will."""
    tmp = littered(tmp_path, "set-back")
    os.utime(tmp / "set-back", (1, 1))
    assert clean_tmp(directories(tmp_path), HOUR, nothing) == []
    assert os.listdir(tmp) == ["set-back"]


def test_clean_tmp_spares_what_is_in_use(tmp_path: Path) -> None:
    """A file that this process is writing to is never removed, however old."""
    tmp = littered(tmp_path, "ours", "theirs")
    disk = Aged({"ours": 100 * HOUR, "theirs": 100 * HOUR})
    assert clean_tmp(directories(tmp_path, disk), HOUR, "ours".__eq__) == [str(tmp / "theirs")]
    assert os.listdir(tmp) == ["ours"]


def test_clean_tmp_asks_last(tmp_path: Path) -> None:
    """Whether a file is in use is asked when all else is known, right before it is removed."""
    tmp = littered(tmp_path, "1", "2")
    disk = FaultDisk(disk=Aged({"1": HOUR, "2": HOUR}))
    asked: list[tuple[str, str]] = []

    def is_in_use(name: str) -> bool:
        asked.append((name, disk.calls[-1].operation))
        return name == "2"

    assert clean_tmp(directories(tmp_path, disk), 0, is_in_use) == [str(tmp / "1")]
    assert sorted(asked) == [("1", "stat"), ("2", "stat")]


def test_clean_tmp_removes_regular_files_only(tmp_path: Path) -> None:
    """Directories and symbolic links are nothing that a delivery leaves, and stay, with what they hold or point to."""
    tmp = littered(tmp_path)
    (tmp / "directory").mkdir()
    (tmp / "directory" / "file").touch()
    (tmp_path / "precious").touch()
    (tmp / "link").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp / "fifo")
    disk = Aged(dict.fromkeys(("directory", "link", "fifo", "precious"), 100 * HOUR))
    assert clean_tmp(directories(tmp_path, disk), 0, nothing) == []
    assert sorted(os.listdir(tmp)) == ["directory", "fifo", "link"]
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize("operation", ["stat", "unlink"])
def test_clean_tmp_tolerates_others(tmp_path: Path, operation: str) -> None:
    """A file that somebody else removes between listing, looking and removing is no error, and not returned."""
    tmp = littered(tmp_path, "1", "2")
    gone = tmp / "1"
    disk = FaultDisk(Fault(operation, gate=gone.unlink, path=str(gone)), disk=Aged({"1": 2 * HOUR, "2": 2 * HOUR}))
    assert clean_tmp(directories(tmp_path, disk), HOUR, nothing) == [str(tmp / "2")]
    assert os.listdir(tmp) == []


@pytest.mark.parametrize("spoil", [lambda tmp: tmp.rmdir(), lambda tmp: (tmp.rmdir(), tmp.touch())])
def test_clean_tmp_of_what_is_none(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    """Where there is no tmp/, or a file in its place, sweeping is a NotAMaildirError and makes nothing."""
    spoil(littered(tmp_path))
    with pytest.raises(NotAMaildirError):
        clean_tmp(directories(tmp_path), HOUR, nothing)
    assert not (tmp_path / "tmp").is_dir()
