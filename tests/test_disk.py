import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from maildir_async.disk import posix as disk_module
from maildir_async.disk.calls import UNLINKABLE, UNSUPPORTED, Disk, write_all
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.publishing import move
from maildir_async.testing import Fault, FaultDisk
from support import umask

#: What a file system has to refuse for each way of publishing to be used.
REFUSED = {"rename_noreplace": (), "link": ("rename_noreplace",), "rename": ("rename_noreplace", "link")}
PRIMITIVES = pytest.mark.parametrize("primitive", REFUSED)


def refusing(primitive: str) -> FaultDisk:
    """A file system where *primitive* is the first that works."""
    return FaultDisk(*(Fault(name, errno.EINVAL, nth=0) for name in REFUSED[primitive]))


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "source").write_bytes(b"message")
    return str(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "target")


# Publishing.


@PRIMITIVES
def test_publish_moves(source: str, target: str, primitive: str) -> None:
    """A published file has its content at the target, under the one name only, and no warning."""
    disk = refusing(primitive)
    assert move(disk, source, target) is None
    assert Path(target).read_bytes() == b"message"
    assert os.stat(target).st_nlink == 1
    assert not os.path.exists(source)
    tried = [call.operation for call in disk.calls if call.operation in REFUSED]
    assert tried == [*REFUSED[primitive], primitive]


@PRIMITIVES
def test_publish_never_overwrites(source: str, target: str, primitive: str) -> None:
    """Publishing onto an existing file is a FileExistsError, and both files survive as they were."""
    Path(target).write_bytes(b"planted")
    with pytest.raises(FileExistsError):
        move(refusing(primitive), source, target)
    assert Path(target).read_bytes() == b"planted"
    assert Path(source).read_bytes() == b"message"


@pytest.mark.parametrize("number", sorted(UNSUPPORTED), ids=errno.errorcode.get)
def test_link_where_renameat2_is_refused(source: str, target: str, number: int) -> None:
    """Each way of a file system to say that it has no RENAME_NOREPLACE leads to link and unlink."""
    disk = FaultDisk(Fault("rename_noreplace", number))
    assert move(disk, source, target) is None
    assert [call.operation for call in disk.calls] == ["rename_noreplace", "link", "unlink"]


@pytest.mark.parametrize("number", sorted(UNLINKABLE), ids=errno.errorcode.get)
def test_rename_where_links_are_refused_too(source: str, target: str, number: int) -> None:
    """Each way to refuse hard links as well leads to a plain rename."""
    disk = FaultDisk(Fault("rename_noreplace", errno.ENOSYS), Fault("link", number))
    assert move(disk, source, target) is None
    assert Path(target).read_bytes() == b"message"
    assert not os.path.exists(source)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
@PRIMITIVES
def test_publish_that_fails(source: str, target: str, primitive: str, number: int) -> None:
    """A real error is raised as it is, no other way is tried, and nothing is at the target."""
    disk = refusing(primitive)
    disk.faults.append(Fault(primitive, number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        move(disk, source, target)
    assert caught.value.errno == number
    assert not os.path.exists(target)
    assert Path(source).read_bytes() == b"message"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.EEXIST, errno.ESTALE], ids=errno.errorcode.get)
@PRIMITIVES
def test_an_error_that_hides_a_success_is_a_success(source: str, target: str, primitive: str, number: int) -> None:
    """A call that has done its work and then fails, as on NFS when a reply is lost, has published, with a warning."""
    disk = refusing(primitive)
    disk.faults.append(Fault(primitive, number, late=True))
    warning = move(disk, source, target)
    assert warning is not None
    assert "published in spite of" in warning
    assert Path(target).read_bytes() == b"message"
    assert not os.path.exists(source)


def test_a_file_that_is_not_ours_is_no_success(source: str, target: str) -> None:
    """An error while another file stands at the target, and ours is still in tmp/, stays an error."""
    Path(target).write_bytes(b"planted")
    with pytest.raises(OSError, match="Input/output"):
        move(FaultDisk(Fault("rename_noreplace", errno.EIO)), source, target)
    assert Path(source).exists()


@pytest.mark.parametrize("failing_stat", [1, 2])
def test_an_error_that_cannot_be_looked_into_is_an_error(source: str, target: str, failing_stat: int) -> None:
    """Where nothing can be seen after an error, the error is raised: what is not known to be there is not promised."""
    Path(target).write_bytes(b"planted")
    disk = FaultDisk(Fault("rename_noreplace", errno.EIO), Fault("stat", errno.EACCES, nth=failing_stat))
    with pytest.raises(OSError, match="Input/output"):
        move(disk, source, target)


def test_a_source_that_cannot_be_removed_is_a_warning(source: str, target: str) -> None:
    """An unlink that fails after the link is a warning and no error: the message is delivered."""
    disk = refusing("link")
    disk.faults.append(Fault("unlink", errno.EIO))
    warning = move(disk, source, target)
    assert warning is not None
    assert "tmp/" in warning
    assert os.strerror(errno.EIO) in warning
    assert Path(target).read_bytes() == b"message"


def test_a_source_that_is_gone_already_needs_no_warning(source: str, target: str) -> None:
    """A sweeper that is faster with tmp/ than we are is no error, and no warning."""
    disk = refusing("link")
    disk.faults.append(Fault("unlink", gate=lambda: os.unlink(source)))
    assert move(disk, source, target) is None


def test_both_warnings_are_told(source: str, target: str) -> None:
    """A link that hides its success, and an unlink that fails, are both in the warning."""
    disk = refusing("link")
    disk.faults += [Fault("link", errno.EIO, late=True), Fault("unlink", errno.EROFS)]
    warning = move(disk, source, target)
    assert warning is not None
    assert "in spite of" in warning
    assert os.strerror(errno.EROFS) in warning


def test_source_swept_before_publishing(source: str, target: str) -> None:
    """A file that a sweeper has taken from tmp/ is a FileNotFoundError, and nothing is published."""
    os.unlink(source)
    for primitive in REFUSED:
        with pytest.raises(FileNotFoundError):
            move(refusing(primitive), source, target)
    assert not os.path.exists(target)


@pytest.fixture
def no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C library without the function, as macOS has."""

    class Library:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda *args, **options: Library())
        assert disk_module._function("renameat2") is None
    monkeypatch.setattr(disk_module, "_renameat2", None)


@pytest.mark.usefixtures("no_renameat2")
def test_without_renameat2_in_the_c_library(source: str, target: str) -> None:
    """Where the C library has no renameat2, link and unlink publish, and do not overwrite either."""
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        PosixDisk().rename_noreplace(source, target)
    assert move(PosixDisk(), source, target) is None
    Path(source).write_bytes(b"second")
    with pytest.raises(FileExistsError):
        move(PosixDisk(), source, target)
    assert Path(target).read_bytes() == b"message"


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Paths may hold any bytes a file system takes."""
    source, target = (os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/s\xff", b"/t\xfe"))
    Path(source).write_bytes(b"message")
    assert move(PosixDisk(), source, target) is None
    assert Path(target).exists()


# Writing.


class Counting(PosixDisk):
    """Writes at most so many bytes at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.writes = 0

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self.writes += 1
        return super().write(fd, memoryview(data)[: self.most])


def written(disk: Disk, path: Path, data: bytes) -> bytes:
    fd = disk.create(str(path), 0o600)
    try:
        write_all(disk, fd, data)
    finally:
        disk.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_short_writes_are_continued(tmp_path: Path, most: int) -> None:
    """A write that takes only some bytes is followed by one for the rest, until all are there, in order."""
    data = bytes(range(256)) * 3
    disk = Counting(most)
    assert written(disk, tmp_path / "f", data) == data
    assert disk.writes == -(-len(data) // most)


def test_writing_nothing_makes_no_call(tmp_path: Path) -> None:
    """No bytes need no system call."""
    disk = Counting(1)
    assert written(disk, tmp_path / "f", b"") == b""
    assert disk.writes == 0


@pytest.mark.parametrize("progress", [0, -1])
def test_a_write_without_progress_is_an_error(tmp_path: Path, progress: int) -> None:
    """A file system that takes no byte and reports no error is EIO, not an endless loop."""

    class Stuck(PosixDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            return progress

    with pytest.raises(OSError, match="no progress") as caught:
        written(Stuck(), tmp_path / "f", b"x")
    assert caught.value.errno == errno.EIO


def test_an_error_after_a_short_write_is_raised(tmp_path: Path) -> None:
    """A disk that is full after some bytes raises what the second write says."""
    disk = FaultDisk(Fault("write", shorten=3, nth=0), Fault("write", errno.ENOSPC, nth=2))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        written(disk, tmp_path / "f", b"12345678")
    assert (tmp_path / "f").read_bytes() == b"123"


# The calls.


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_create_mode(tmp_path: Path, mode: int) -> None:
    """A new file has the mode asked for, less the umask, and is not inherited by programs started."""
    for mask in (0, 0o077):
        with umask(mask):
            fd = PosixDisk().create(str(tmp_path / f"{mask}"), mode)
        try:
            assert stat.S_IMODE(os.fstat(fd).st_mode) == mode & ~mask
            assert not os.get_inheritable(fd)
            PosixDisk().chmod(fd, mode)
            assert stat.S_IMODE(os.fstat(fd).st_mode) == mode
        finally:
            os.close(fd)


def test_create_takes_no_existing_file(tmp_path: Path) -> None:
    """A file that exists is a FileExistsError, and keeps its content."""
    (tmp_path / "f").write_bytes(b"planted")
    with pytest.raises(FileExistsError):
        PosixDisk().create(str(tmp_path / "f"), 0o600)
    assert (tmp_path / "f").read_bytes() == b"planted"


@pytest.mark.parametrize("exists", [True, False])
def test_create_follows_no_symbolic_link(tmp_path: Path, exists: bool) -> None:
    """A symbolic link planted at the name, dangling or not, is not written through."""
    elsewhere = tmp_path / "elsewhere"
    if exists:
        elsewhere.write_bytes(b"secret")
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        PosixDisk().create(str(tmp_path / "link"), 0o600)
    assert elsewhere.exists() is exists
    assert not exists or elsewhere.read_bytes() == b"secret"


def test_stat_does_not_follow(tmp_path: Path) -> None:
    """A link is seen as a link, a descriptor as what it was opened for."""
    (tmp_path / "link").symlink_to(tmp_path)
    disk = PosixDisk()
    assert stat.S_ISLNK(disk.stat(str(tmp_path / "link")).st_mode)
    fd = disk.open_directory(str(tmp_path / "link"))
    try:
        assert disk.stat(fd).st_ino == tmp_path.stat().st_ino
        disk.sync(fd)
    finally:
        disk.close(fd)


def test_open_directory_opens_directories_only(tmp_path: Path) -> None:
    """A file is a NotADirectoryError."""
    (tmp_path / "f").touch()
    with pytest.raises(NotADirectoryError):
        PosixDisk().open_directory(str(tmp_path / "f"))


def test_a_sync_is_asked_of_the_system() -> None:
    """What it has no file for, and what it cannot sync, it refuses; a sync that was not made would be no error."""
    disk = PosixDisk()
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Invalid argument"):
        disk.sync(writer)
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.sync(writer)


def test_writeback_is_a_hint() -> None:
    """What cannot be hinted at (a pipe has no pages to write back) is no error."""
    reader, writer = os.pipe()
    try:
        PosixDisk().start_writeback(writer, 0, 10)
    finally:
        os.close(reader)
        os.close(writer)


def test_utime_has_nanoseconds(tmp_path: Path) -> None:
    """Times are set to the nanosecond."""
    fd = PosixDisk().create(str(tmp_path / "f"), 0o600)
    try:
        PosixDisk().utime(fd, 1_000_000_001, 2_000_000_003)
        assert (os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) == (1_000_000_001, 2_000_000_003)
    finally:
        PosixDisk().close(fd)
