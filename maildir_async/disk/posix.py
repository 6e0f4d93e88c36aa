"""The system calls of a delivery, each carried through. The only module that changes the file system.

Everything here blocks and belongs in a worker thread. `Disk` is the seam: pass another one to `Maildir` to fail,
delay or crash any call (`maildir_async.testing` has two).
"""

import contextlib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, Protocol

from maildir_async.disk.identity import identity
from maildir_async.disk.syncs import Syncs, call_side_by_side

__all__ = ["UNLINKABLE", "Disk", "PosixDisk", "link_new", "publish", "syncfs_tells_errors", "write_all"]


class Disk(Protocol):
    """One method per system call. Each raises OSError as the call does, or has done all of its work."""

    def create(self, path: str, mode: int) -> int:
        """Create a file that does not exist, open it for writing and return its descriptor."""
        ...

    def chmod(self, fd: int, mode: int) -> None: ...

    def open_to_read(self, path: str) -> BinaryIO:
        """Open a file that this process has written."""
        ...

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of *data*, at least one byte of it, and return how many."""
        ...

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        """Hint that these bytes will be synced soon. May do nothing."""
        ...

    def utime(self, fd: int, atime_ns: int, mtime_ns: int) -> None: ...

    def sync(self, fd: int) -> None:
        """Return when a file's bytes, or a directory's entries, survive a power cut."""
        ...

    def start_syncs(self, fds: Sequence[int]) -> Syncs:
        """Begin to `sync` each of several, which stay open until that is done. Does not wait, and raises nothing."""
        ...

    def sync_file_system(self, fd: int) -> None:
        """Return when all that the file system of *fd* holds survives a power cut, or raise.

        Raises if anything could not be written since *fd* was opened, whatever file it belongs to.
        """
        ...

    def close(self, fd: int) -> None:
        """Close *fd*: whatever is raised, it is no longer open."""
        ...

    def rename_noreplace(self, source: str, target: str) -> None:
        """Rename; FileExistsError if *target* exists, EINVAL or ENOSYS where the file system cannot promise it."""
        ...

    def link(self, source: str, target: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def mkdir(self, path: str, mode: int) -> None: ...

    def open_directory(self, path: str) -> int: ...

    def stat(self, path: str | int) -> os.stat_result:
        """Stat without following a symbolic link in the last component."""
        ...

    def identity(self, fd: int) -> tuple[int, int, int]:
        """Return device, inode number and time of birth (ns; 0 where it is not known) of what is open.

        No other file or directory has, or had, all three the same.
        """
        ...

    def listdir(self, path: str) -> list[str]: ...

    def room(self, path: str) -> int:
        """Return how many bytes the file system of a directory can still take from this process; 0 for no file more.

        Raises PermissionError for a directory that this process may make no file in.
        """
        ...


class PosixDisk:
    """The real one. EINTR is retried by Python itself (PEP 475)."""

    def create(self, path: str, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, mode)

    def open_to_read(self, path: str) -> BinaryIO:
        return open(path, "rb", buffering=0)

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

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
            import fcntl

            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            except OSError as exc:
                if exc.errno not in UNSUPPORTED:
                    raise
            else:
                return
        os.fsync(fd)

    def start_syncs(self, fds: Sequence[int]) -> Syncs:
        # 64 files on a journaled ext4: 26 µs each by the kernel, 44 by 12 threads of Python, 49 by 32.
        if sys.platform == "linux" and type(self).sync is PosixDisk.sync and all(map(_is_on_block_device, fds)):
            from maildir_async.disk.kernel_aio import fsync_all

            if (syncs := fsync_all(fds)) is not None:
                return syncs
        return call_side_by_side([functools.partial(self.sync, fd) for fd in fds])

    def sync_file_system(self, fd: int) -> None:
        _syncfs()(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename_noreplace(self, source: str, target: str) -> None:
        _rename_noreplace()(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def open_directory(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def stat(self, path: str | int) -> os.stat_result:
        return os.stat(path) if isinstance(path, int) else os.stat(path, follow_symlinks=False)

    def identity(self, fd: int) -> tuple[int, int, int]:
        return identity(fd)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def room(self, path: str) -> int:
        if not os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            os.stat(path)  # which says so if it is not there
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        found = os.statvfs(path)
        blocks, files = (found.f_bavail, found.f_favail) if os.geteuid() else (found.f_bfree, found.f_ffree)
        # f_files is 0 where there is no fixed number of files (Btrfs).
        return blocks * found.f_frsize if files or not found.f_files else 0


def _is_on_block_device(fd: int) -> bool:
    """Whether *fd* is on a file system of a disk here: ext4, XFS and the like, not NFS or FUSE.

    A process that is killed cannot end before the kernel's syncs have, and a server may never answer.
    """
    try:
        return os.major(os.fstat(fd).st_dev) != 0
    except OSError:
        return False


#: A file system's ways of saying "not here" rather than "it went wrong".
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

#: The same for hard links, which vfat, Android, some FUSE file systems and kernel hardening refuse.
UNLINKABLE: Final = UNSUPPORTED | {errno.EPERM, errno.EMLINK, errno.EACCES, errno.EXDEV}


@functools.cache
def _rename_noreplace() -> Callable[[str, str], None]:
    """Return renameat2(2) with RENAME_NOREPLACE, or what raises ENOSYS where the C library has none."""
    import ctypes  # here: it costs an import that an idle program need not pay

    rename_noreplace = 1  # linux/fs.h
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):

        def refuse(source: str, target: str) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source, None, target)

        return refuse
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    at_fdcwd = -100  # fcntl.h

    def rename(source: str, target: str) -> None:
        if renameat2(at_fdcwd, os.fsencode(source), at_fdcwd, os.fsencode(target), rename_noreplace):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), source, None, target)

    return rename


@functools.cache
def _syncfs() -> Callable[[int], None]:
    """Return syncfs(2)."""
    import ctypes

    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None

    def sync(fd: int) -> None:
        if syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return sync


def syncfs_tells_errors() -> bool:
    """Return whether syncfs(2) reports what could not be written, as it does since Linux 5.8."""
    if sys.platform != "linux":
        return False
    major, minor = (int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return (major, minor) >= (5, 8)


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    """Write all of *data*: a short write is the file system's right (write(2)), not a failure."""
    rest: bytes | memoryview = data
    while rest:
        written = disk.write(fd, rest)
        if written <= 0:
            raise OSError(errno.EIO, "write made no progress")
        rest = memoryview(rest)[written:]


def publish(disk: Disk, source: str, target: str) -> str | None:
    """Move *source* to *target*, which must not exist, and return a warning if *source* could not be removed.

    Raises FileExistsError if *target* is another file, which is left as it is. After any other OSError *target*
    does not exist, or cannot be seen: an error that hides a success (a reply lost on NFS) is looked into.
    """
    try:
        return _publish(disk, source, target)
    except OSError as exc:
        if not _is_published(disk, source, target):
            raise
        return _unlink_source(disk, source, note=f"published in spite of {exc.strerror or exc}")


def link_new(disk: Disk, source: str, target: str) -> None:
    """Make *target*, which must not exist, another name of *source*. FileExistsError if it is another file."""
    try:
        disk.link(source, target)
    except OSError:
        # A reply lost on NFS, or answered twice: the name has 64 random bits, so if it is this file, this made it.
        if not _is_same(disk, source, target):
            raise


def _publish(disk: Disk, source: str, target: str) -> str | None:
    try:
        disk.rename_noreplace(source, target)
    except OSError as exc:
        if exc.errno not in UNSUPPORTED:
            raise
    else:
        return None
    try:
        disk.link(source, target)
    except OSError as exc:
        if exc.errno not in UNLINKABLE:
            raise
        # Neither works here, so there is a moment between the look and the act. The name has 64 random bits.
        try:
            disk.stat(target)
        except FileNotFoundError:
            disk.rename(source, target)
            return None
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
    # From here on the message is delivered: nothing may be reported as a failure.
    return _unlink_source(disk, source)


def _unlink_source(disk: Disk, source: str, note: str = "") -> str | None:
    try:
        disk.unlink(source)
    except FileNotFoundError:
        return note or None
    except OSError as exc:
        note = f"{note}; " if note else ""
        return f"{note}the file in tmp/ could not be removed: {exc.strerror or exc}"
    return note or None


def _is_same(disk: Disk, source: str, target: str) -> bool:
    try:
        here, there = disk.stat(source), disk.stat(target)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _is_published(disk: Disk, source: str, target: str) -> bool:
    try:
        there = disk.stat(target)
    except OSError:
        return False
    try:
        here = disk.stat(source)
    except FileNotFoundError:
        return True  # a name with 64 random bits exists and the file that was to get it is gone: it is that file
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
