"""The real disk: POSIX calls, and those that Linux and macOS add. The only module that changes the file system."""

import contextlib
import ctypes
import errno
import os
import re
import sys
from typing import Any, BinaryIO, Final

from maildir_async.disk.calls import UNSUPPORTED
from maildir_async.disk.identity import identity
from maildir_async.disk.kernel_aio import fsync_all
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

if sys.platform == "darwin":
    import fcntl

__all__ = ["PosixDisk", "syncfs_tells_errors"]

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: What os.fsencode does, which is three calls more.
_ENCODING: Final = sys.getfilesystemencoding()
_ERRORS: Final = sys.getfilesystemencodeerrors()

_AT_FDCWD: Final = -100  # fcntl.h
_RENAME_NOREPLACE: Final = 1  # linux/fs.h


class PosixDisk:
    """The system's calls. EINTR is retried by Python itself (PEP 475)."""

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        return os.open(path, _CREATE, mode, dir_fd=directory)

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

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
        os.close(fd)

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source, None, target)
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

    def rename(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        os.rename(source, target, src_dir_fd=source_directory, dst_dir_fd=target_directory)

    def link(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        os.link(source, target, src_dir_fd=source_directory, dst_dir_fd=target_directory, follow_symlinks=False)

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        os.link(f"/proc/self/fd/{fd}", target, dst_dir_fd=target_directory, follow_symlinks=True)  # open(2), O_TMPFILE

    def unlink(self, path: str, directory: int | None = None) -> None:
        os.unlink(path, dir_fd=directory)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def open_directory(self, path: str) -> int:
        return os.open(path, _OPEN_DIRECTORY)

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        return os.stat(path) if isinstance(path, int) else os.stat(path, dir_fd=directory, follow_symlinks=False)

    def identity(self, fd: int) -> tuple[int, int, int]:
        return identity(fd)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def room(self, path: str) -> int:
        path = f"{path}/."  # a file in its place may be executable, and has a file system too
        if not os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            os.stat(path)  # which says so if it is not there
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        found = os.statvfs(path)
        blocks, files = (found.f_bavail, found.f_favail) if os.geteuid() else (found.f_bfree, found.f_ffree)
        # f_files is 0 where there is no fixed number of files (Btrfs).
        return blocks * found.f_frsize if files or not found.f_files else 0


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
