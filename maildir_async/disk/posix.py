"""The real disk: POSIX calls, and those that Linux and macOS add. The only module that changes the file system."""

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
from collections.abc import Generator
from typing import Any, BinaryIO, Final

from maildir_async.disk.as_root import (
    Owner,
    create_as,
    create_unnamed_as,
    enter,
    is_roots,
    mkdir_as,
    not_trusted,
    parent_of,
    share_made,
    unlink_as,
)
from maildir_async.disk.calls import UNSUPPORTED
from maildir_async.disk.identity import identity
from maildir_async.disk.kernel_aio import fsync_all
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

if sys.platform == "darwin":
    import fcntl

__all__ = ["PosixDisk", "syncfs_tells_errors"]

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TMPFILE: Final[int | None] = getattr(os, "O_TMPFILE", None)  # Linux has it
# O_NONBLOCK: a FIFO in the file's place holds nobody up.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_APPEND: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: What os.fsencode does, which is three calls more.
_ENCODING: Final = sys.getfilesystemencoding()
_ERRORS: Final = sys.getfilesystemencodeerrors()

_AT_FDCWD: Final = -100  # fcntl.h
_RENAME_NOREPLACE: Final = 1  # linux/fs.h

#: Directories that this process has open as root, and that are a user's: whose, by descriptor.
_owners: Final[dict[int, Owner]] = {}

#: In a forked child what was open is closed without this being told.
os.register_at_fork(after_in_child=_owners.clear)


class PosixDisk:
    """The system's calls. EINTR is retried by Python itself (PEP 475).

    For a process with euid 0 a path that another can change is gone as `maildir_async.disk.as_root` does, and what is
    made there is that user's. Which euid it is, is asked with each path: it may be dropped at any time.
    """

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        if directory is None:
            if _is_guarded(path):
                with parent_of(path) as (where, name):
                    return create_as(where.owner, name, mode, where.fd)
        elif _owners:
            return create_as(_owners.get(directory), path, mode, directory)
        return os.open(path, _CREATE, mode, dir_fd=directory)

    def create_unnamed(self, path: str, mode: int) -> int:
        if _TMPFILE is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)
        if os.geteuid() or is_roots(path):
            return os.open(path, os.O_RDWR | _TMPFILE | os.O_CLOEXEC, mode)
        with enter(path) as where:
            return create_unnamed_as(where.owner, mode, where.fd)

    def open_file(self, path: str, *, append: bool = False) -> int:
        if _is_guarded(path):
            with parent_of(path) as (where, name):
                fd = os.open(name, _APPEND if append else _READ, dir_fd=where.fd)
                return _regular(fd, path, where.owner)
        return _regular(os.open(path, _APPEND if append else _READ), path, None)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        os.fchown(fd, uid, gid)

    def duplicate(self, fd: int) -> int:
        return os.dup(fd)

    def reader(self, fd: int) -> BinaryIO:
        return open(fd, "rb", buffering=0)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        if sys.platform == "linux":
            # Starts writing dirty pages out, so that many files' syncs find their data on its way already.
            # A hint: what it cannot do, sync() does, and reports.
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def utime(self, fd: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(fd, ns=(atime_ns, mtime_ns))

    def sync(self, fd: int) -> None:
        if sys.platform == "darwin":
            # There fsync stops at the drive's cache: fcntl(2), F_FULLFSYNC.
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            except OSError as exc:
                if exc.errno not in UNSUPPORTED:
                    raise
            else:
                return
        os.fsync(fd)

    def syncs_by_kernel(self, device: int) -> bool:
        # A file system of a disk here, ext4, XFS and the like, has a device with a number; NFS and FUSE have none. A
        # process that is killed cannot end before the kernel's syncs have, and a server may never answer.
        return os.major(device) != 0 and sys.platform == "linux" and type(self).sync is PosixDisk.sync

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        # 64 files on a journaled ext4: 26 µs each by the kernel, 44 by 12 threads of Python, 49 by 32.
        return fsync_all(fds, crew)

    def sync_file_system(self, fd: int) -> None:
        if _syncfs is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if _syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self, fd: int) -> None:
        if _owners:
            _owners.pop(fd, None)
        os.close(fd)

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source, None, target)
        if (source_directory is None or target_directory is None or _owners) and (
            _is_guarded(source, source_directory) or _is_guarded(target, target_directory)
        ):
            with _placed(source, source_directory) as here, _placed(target, target_directory) as there:
                _check_owner(here, there, target)
                _rename_noreplace(here[1], there[1], here[0], there[0])
        else:
            _rename_noreplace(source, target, source_directory, target_directory)

    def rename(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        if _is_guarded(source, source_directory) or _is_guarded(target, target_directory):
            with _placed(source, source_directory) as here, _placed(target, target_directory) as there:
                _check_owner(here, there, target)
                os.rename(here[1], there[1], src_dir_fd=here[0], dst_dir_fd=there[0])
        else:
            os.rename(source, target, src_dir_fd=source_directory, dst_dir_fd=target_directory)

    def link(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        if _is_guarded(source, source_directory) or _is_guarded(target, target_directory):
            with _placed(source, source_directory) as here, _placed(target, target_directory) as there:
                if _uid(here[2]) != _uid(there[2]):  # whoever is the one may have replaced the file that is linked
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
                os.link(here[1], there[1], src_dir_fd=here[0], dst_dir_fd=there[0], follow_symlinks=False)
        else:
            os.link(source, target, src_dir_fd=source_directory, dst_dir_fd=target_directory, follow_symlinks=False)

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        if not os.geteuid():
            with _placed(target, target_directory) as (target_directory, name, owner):
                if os.fstat(fd).st_uid != _uid(owner):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), target)
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=target_directory, follow_symlinks=True)
        else:  # open(2), O_TMPFILE
            os.link(f"/proc/self/fd/{fd}", target, dst_dir_fd=target_directory, follow_symlinks=True)

    def unlink(self, path: str, directory: int | None = None) -> None:
        if directory is None and _is_guarded(path):
            with parent_of(path) as (where, name):
                unlink_as(where, name)
        else:
            os.unlink(path, dir_fd=directory)

    def mkdir(self, path: str, mode: int) -> None:
        if _is_guarded(path):
            with parent_of(path) as (where, name):
                fd = mkdir_as(where.owner, name, mode, where.fd)
                try:
                    if where.owner is not None:
                        self.sync(fd)  # to whom it belongs; what holds it is synced by the caller
                finally:
                    os.close(fd)
        else:
            os.mkdir(path, mode)

    def share(self, path: str, mode: int, gid: int) -> None:
        if _is_guarded(path):
            with parent_of(path) as (where, name):
                share_made(name, mode, gid, where.fd, _uid(where.owner))
        else:
            share_made(path, mode, gid, None, os.geteuid())

    def open_directory(self, path: str) -> int:
        if not os.geteuid() and not is_roots(path):
            with enter(path) as where:
                fd = where.open()
                if where.owner is None:
                    _owners.pop(fd, None)
                else:
                    _owners[fd] = where.owner
                return fd
        fd = os.open(path, _OPEN_DIRECTORY)
        if _owners:
            _owners.pop(fd, None)
        return fd

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        if directory is None and not isinstance(path, int) and _is_guarded(path):
            with parent_of(path) as (where, name):
                return os.fstat(where.fd) if name == "." else os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        return os.stat(path) if isinstance(path, int) else os.stat(path, dir_fd=directory, follow_symlinks=False)

    def identity(self, fd: int) -> tuple[int, int, int]:
        return identity(fd)

    def listdir(self, path: str) -> list[str]:
        if not os.geteuid() and not is_roots(path):
            with enter(path) as where:
                fd = where.open()
                try:
                    return os.listdir(fd)
                finally:
                    os.close(fd)
        return os.listdir(path)

    def room(self, path: str) -> int:
        if not os.geteuid() and not is_roots(path):
            with enter(path) as where:
                fd = where.open()
                try:
                    return _room(os.fstatvfs(fd))
                finally:
                    os.close(fd)
        path = f"{path}/."  # a file in its place may be executable, and has a file system too
        if not os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            os.stat(path)  # which says so if it is not there
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return _room(os.statvfs(path))


def _regular(fd: int, path: str, owner: Owner) -> int:
    """Return *fd* if it is of a regular file, and not of one that *owner*, in whose directory it lies, has linked."""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        if owner is not None and found.st_uid != owner[0] and (found.st_uid or found.st_nlink > 1):
            raise not_trusted(path, f"belongs to uid {found.st_uid} and lies in a directory of uid {owner[0]}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _room(found: os.statvfs_result) -> int:
    """Return what `PosixDisk.room` does for a file system."""
    blocks, files = (found.f_bavail, found.f_favail) if os.geteuid() else (found.f_bfree, found.f_ffree)
    # f_files is 0 where there is no fixed number of files (Btrfs).
    return blocks * found.f_frsize if files or not found.f_files else 0


def _is_guarded(path: str, directory: int | None = None) -> bool:
    """Whether a name has to be gone to as `as_root` does: another can change the way, or owns the open directory."""
    if directory is not None:
        return directory in _owners
    return not os.geteuid() and not is_roots(path.rpartition("/")[0])


@contextlib.contextmanager
def _placed(path: str, directory: int | None) -> Generator[tuple[int | None, str, Owner]]:
    """Have the directory that *path* lies in open within the block: its descriptor, the name in it, its owner."""
    if directory is not None:
        yield directory, path, _owners.get(directory)
    else:
        with parent_of(path) as (where, name):
            yield where.fd, name, where.owner


def _uid(owner: Owner) -> int:
    return 0 if owner is None else owner[0]


def _check_owner(here: tuple[object, str, Owner], there: tuple[object, str, Owner], target: str) -> None:
    """Refuse to move what one user can have put there into the directory of another."""
    if _uid(here[2]) != _uid(there[2]):
        raise not_trusted(target, f"would be moved from uid {_uid(here[2])} to uid {_uid(there[2])}")


def _rename_noreplace(source: str, target: str, source_directory: int | None, target_directory: int | None) -> None:
    new_name = target.encode(_ENCODING, _ERRORS)
    if _renameat2(
        _AT_FDCWD if source_directory is None else source_directory,
        new_name if source is target else source.encode(_ENCODING, _ERRORS),
        _AT_FDCWD if target_directory is None else target_directory,
        new_name,
        _RENAME_NOREPLACE,
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def _function(name: str) -> Any:
    """Return a function of the C library, or None where it has none of that name."""
    return getattr(ctypes.CDLL(None, use_errno=True), name, None)


_renameat2: Final[Any] = _function("renameat2")
if _renameat2 is not None:
    _renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_syncfs: Final[Any] = _function("syncfs")


def syncfs_tells_errors() -> bool:
    """Return whether syncfs(2) reports what could not be written, as it does since Linux 5.8."""
    if sys.platform != "linux":
        return False
    major, minor = (int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return (major, minor) >= (5, 8)
