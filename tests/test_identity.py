"""What tells a directory from every other one, and how a path is made absolute without asking what it means."""

import ctypes
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from maildir_async.disk import identity as identity_module
from maildir_async.disk.calls import Disk
from maildir_async.disk.identity import identity
from maildir_async.disk.paths import absolute
from maildir_async.disk.posix import PosixDisk
from maildir_async.testing import CrashDisk, Fault, FaultDisk


def of(path: Path) -> tuple[int, int, int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return identity(fd)
    finally:
        os.close(fd)


def test_device_inode_and_birth(tmp_path: Path) -> None:
    """Device and inode number are those of stat(2); the birth lies in the past, and stays when all else changes."""
    found, before = os.stat(tmp_path), of(tmp_path)
    (tmp_path / "file").touch()
    os.utime(tmp_path, (1, 1))
    assert of(tmp_path) == before
    assert before[:2] == (found.st_dev, found.st_ino)
    assert before[2] <= os.stat(tmp_path / "file").st_mtime_ns


def test_a_reused_inode_is_another_directory(tmp_path: Path) -> None:
    """A directory that is removed and made again is another one, although ext4 gives it the same number."""
    seen = set[tuple[int, int, int]]()
    numbers = set[int]()
    for _ in range(20):
        (tmp_path / "box").mkdir()
        found = of(tmp_path / "box")
        if not found[2]:
            pytest.skip("this file system does not tell when a directory was made")
        assert found not in seen
        seen.add(found)
        numbers.add(found[1])
        # The kernel's clock for this is as coarse as its tick: what is made within one may be born at the same time.
        while _born(tmp_path / "clock") == found[2]:
            pass
        shutil.rmtree(tmp_path / "box")
    assert len(seen) == 20 >= len(numbers)


def _born(path: Path) -> int:
    path.mkdir()
    found = of(path)[2]
    path.rmdir()
    return found


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_without_statx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where there is no statx(2), or a sandbox refuses it, device and inode number have to do."""
    before = of(tmp_path)

    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    for statx in (None, refuse):
        monkeypatch.setattr(identity_module, "_statx", statx)
        assert of(tmp_path) == (*before[:2], 0)


def test_what_is_not_open_has_none(tmp_path: Path) -> None:
    """A descriptor that is closed is the system's EBADF."""
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        identity(fd)


def test_many_threads_at_once(tmp_path: Path) -> None:
    """Threads that ask at the same time get each its own answer."""
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        path.mkdir()
    expected = [of(path) for path in paths]
    wrong: list[Path] = []

    def ask(path: Path, right: tuple[int, int, int]) -> None:
        if any(of(path) != right for _ in range(500)):
            wrong.append(path)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(paths, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_every_disk_tells(tmp_path: Path) -> None:
    """Each disk has it, and it fails as told by a `FaultDisk`."""
    crash = CrashDisk()
    crash.mkdir("/box", 0o700)
    crash.mkdir("/other", 0o700)
    disk: Disk
    for disk, here, there in (
        (PosixDisk(), str(tmp_path), "/"),
        (FaultDisk(), str(tmp_path), "/"),
        (crash, "/box", "/other"),
    ):
        fds = [disk.open_directory(path) for path in (here, here, there)]
        one, same, other = map(disk.identity, fds)
        assert one == same != other
        for fd in fds:
            disk.close(fd)
    broken = FaultDisk(Fault("identity", errno.EIO))
    fd = broken.open_directory(str(tmp_path))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        broken.identity(fd)
    broken.close(fd)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a//b/./c/", "/a/b/c"),
        ("/", "/"),
        ("//a", "/a"),
        ("/a/../b", "/a/../b"),
        ("/a/b/..", "/a/b/.."),
        ("box", "{cwd}/box"),
        ("../box", "{cwd}/../box"),
        ("", "{cwd}"),
    ],
)
def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    """A path is taken from where the process stands; dots and slashes too many go, ``..`` stays."""
    monkeypatch.chdir(tmp_path)
    assert absolute(path) == expected.format(cwd=tmp_path)


def test_absolute_is_an_exact_str() -> None:
    """A path of a class of its own becomes a plain str."""

    class Named(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    assert (absolute(Named("/box")), type(absolute(Named("/box")))) == ("/box", str)


def test_a_crash_disk_finds_parents_of_what_is_there() -> None:
    """``..`` is the parent of a directory that exists; of one that does not, it is ENOENT, as the system has it."""
    disk = CrashDisk()
    disk.mkdir("/a", 0o700)
    disk.mkdir("/a/../b", 0o700)
    assert sorted(disk.listdir("/a/..")) == ["a", "b"]
    assert sorted(disk.listdir("/../../.")) == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        disk.listdir("/missing/..")
