"""The system calls of a delivery, as a protocol: the seam at which a test fails, delays or crashes any of them.

Everything here blocks and belongs in a worker thread. Pass another `Disk` to `Maildir` to change what a call does
(`maildir_async.testing` has two).
"""

import errno
import os
import time
from typing import BinaryIO, Final, Protocol

from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew
from maildir_async.format.given import given

__all__ = ["OUT_OF_DESCRIPTORS", "UNLINKABLE", "UNSUPPORTED", "Disk", "check_disk", "remove", "write_all"]

#: A file system's ways of saying "not here" rather than "it went wrong".
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

#: The same for hard links, which vfat, Android, some FUSE file systems and kernel hardening refuse.
UNLINKABLE: Final = UNSUPPORTED | {errno.EPERM, errno.EMLINK, errno.EACCES, errno.EXDEV}

#: There are too many open files, in this process or in the system: closing some helps.
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


#: Seconds between two tries to remove a file where there are no descriptors, and how many there are.
_REMOVE_AGAIN_S: Final = 0.02
_REMOVE_TRIES: Final = 500


class Disk(Protocol):
    """One method per system call. Each raises OSError as the call does, or has done all of its work.

    Where a method takes a *directory*, that is the descriptor of an open directory in which a relative path begins;
    None for a path that is absolute.
    """

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        """Create a file that does not exist, open it for reading and writing, and return its descriptor."""
        ...

    def create_unnamed(self, path: str, mode: int) -> int:
        """Create a file without a name in the directory *path*, for `link_open`, and return its descriptor.

        OSError, with an errno of `UNSUPPORTED` or EISDIR, where the system or the file system has no such files.
        """
        ...

    def open_file(self, path: str, *, append: bool = False) -> int:
        """Open a regular file that exists, for reading, or for reading and for appending to; return its descriptor.

        A symbolic link in the last component is not followed: OSError, with ELOOP. What is no regular file is EINVAL.
        """
        ...

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Return at most *size* bytes from *offset* on; less than that at the end of the file, or before."""
        ...

    def chmod(self, fd: int, mode: int) -> None: ...

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """Give a file to a user and a group; -1 leaves the one or the other."""
        ...

    def duplicate(self, fd: int) -> int:
        """Return another descriptor of the same open file."""
        ...

    def reader(self, fd: int) -> BinaryIO:
        """Return a file object that reads from *fd*, which it closes in the end."""
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

    def syncs_by_kernel(self, device: int) -> bool:
        """Whether `kernel_syncs` is for files on *device* (``st_dev``). Does not wait for the device."""
        ...

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        """Have the kernel `sync` each of several, which stay open until that is done. None if it cannot.

        What it refuses is left to threads of *crew*. Does not wait, and raises nothing.
        """
        ...

    def sync_file_system(self, fd: int) -> None:
        """Return when all that the file system of *fd* holds survives a power cut, or raise.

        Raises if anything could not be written since *fd* was opened, whatever file it belongs to.
        """
        ...

    def close(self, fd: int) -> None:
        """Close *fd*: whatever is raised, it is no longer open."""
        ...

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        """Rename; FileExistsError if *target* exists, EINVAL or ENOSYS where the file system cannot promise it."""
        ...

    def rename(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None: ...

    def link(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None: ...

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        """Link an open file that has a name somewhere, or was never to have one.

        FileNotFoundError where it has lost its last name, or none can be found (which takes ``/proc``).
        """
        ...

    def unlink(self, path: str, directory: int | None = None) -> None: ...

    def mkdir(self, path: str, mode: int) -> None: ...

    def share(self, path: str, mode: int, gid: int) -> None:
        """Give a directory that this process has just made these bits, whatever the umask, and this group.

        Durable on return. PermissionError if it may not have the group: then it has no more rights for the group it
        has than for others. ENOTEMPTY if it is another directory by now, or others may have put something into it:
        nothing has been done.
        """
        ...

    def open_directory(self, path: str) -> int: ...

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
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


def check_disk(disk: Disk) -> Disk:
    """Return *disk*; TypeError unless it is one, as far as a look can tell."""
    if not callable(getattr(disk, "identity", None)):
        raise TypeError(f"disk must be a Disk, not {given(disk)}")
    return disk


def write_all(disk: Disk, fd: int, data: bytes) -> None:
    """Write all of *data*: a short write is the file system's right (write(2)), not a failure."""
    rest: bytes | memoryview = data
    while rest:
        written = disk.write(fd, rest)
        if written <= 0:
            raise OSError(errno.EIO, "write made no progress")
        rest = memoryview(rest)[written:]


def remove(disk: Disk, path: str) -> None:
    """Unlink *path*. Where there are no descriptors, wait for some, for ten seconds.

    unlink(2) takes none, but as root the way to a user's file does, which is gone step by step (`as_root`). Others
    give theirs back all the time, and a file that should be gone would lie there for good.
    """
    for _ in range(_REMOVE_TRIES):
        try:
            disk.unlink(path)
        except OSError as exc:
            if exc.errno not in OUT_OF_DESCRIPTORS:
                raise
            time.sleep(_REMOVE_AGAIN_S)
        else:
            return
    disk.unlink(path)
