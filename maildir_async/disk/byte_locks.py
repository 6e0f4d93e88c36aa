"""Locks on single bytes of a file, between processes: the kernel lets go of those of a process that dies."""

import contextlib
import errno
import fcntl
import os
import struct
import sys
from typing import Final

from maildir_async.disk.calls import Disk

__all__ = ["ByteLocks"]

# Not the locks of F_SETLK: they are the process's, and gone when it closes any descriptor of the file. Those of an open
# file description (fcntl_locking(2)) also keep two objects of one process apart.
_SETLK: Final[int | None] = getattr(fcntl, "F_OFD_SETLK", None) if sys.platform == "linux" else None

#: struct flock of Linux: l_type, l_whence, l_start, l_len, l_pid. The last has to be 0.
_FLOCK: Final = "hhqqi0q"


class ByteLocks:
    """Locks on bytes of the file at *path*, which is made, and need not hold any. Blocks; nothing waits for a lock.

    Where the system has no locks of this kind, each is granted. All methods are for one thread at a time.
    """

    def __init__(self, path: str, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._fd = -1

    def lock(self, offset: int) -> bool:
        """Lock the byte at *offset*; return whether that could be done: no other has it. OSError for all else."""
        if _SETLK is None:
            return True
        if self._fd < 0:
            self._fd = self._open()
        try:
            fcntl.fcntl(self._fd, _SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def unlock(self, offset: int) -> None:
        """Let go of the byte at *offset*."""
        if _SETLK is not None and self._fd >= 0:
            with contextlib.suppress(OSError):  # by what fails here nothing is locked
                fcntl.fcntl(self._fd, _SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))

    def disown(self) -> None:
        """In a forked child: close what is the parent's too, whose locks that leaves alone, and begin anew."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1

    close = disown

    def _open(self) -> int:
        try:
            return self._disk.open_file(self._path, append=True)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another has made it just now
                return self._disk.create(self._path, 0o600)
        return self._disk.open_file(self._path, append=True)
