"""Files of others, which are only read: opened without waiting, and read in a way that can be ended. Blocks."""

import contextlib
import errno
import os
import select
import stat
from typing import Final

__all__ = ["StoppedError", "Unchanged"]

#: Milliseconds between two looks whether to go on, while nothing comes.
LOOK_MS: Final = 50


class StoppedError(Exception):
    """Reading was to end."""


class Unchanged:
    """An open file, FIFO or terminal that is read from its beginning.

    Args:
        path: its path. A FIFO that nobody writes to yet is waited for by `read`, not here.
        fd: or its descriptor, which stays open.

    Attributes:
        is_regular: whether any part of it can be read at any time.
        modified_ns: when it was written to last.
        size: bytes, of a regular file.

    Raises OSError: EISDIR for a directory, EINVAL for a device that is no terminal, and as open(2) does.

    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        self._owns = fd is None
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY) if fd is None else fd
        self._is_stopped = False
        try:
            found = os.fstat(self.fd)
            kind = stat.S_IFMT(found.st_mode)
            if kind == stat.S_IFDIR:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR):
                raise OSError(errno.EINVAL, "is no file that can be read", path)
        except BaseException:
            self.close()
            raise
        self.is_regular = kind == stat.S_IFREG
        self.modified_ns = found.st_mtime_ns
        self.size = found.st_size

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most so many; none at the end. `StoppedError` once `stop` has been called."""
        if self.is_regular:
            if self._is_stopped:
                raise StoppedError
            return os.read(self.fd, size)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            if self._is_stopped:
                raise StoppedError
            if poll.poll(LOOK_MS):
                with contextlib.suppress(BlockingIOError):
                    return os.read(self.fd, size)

    def read_at(self, offset: int, size: int) -> bytes | None:
        """Return bytes from a place on; None where that cannot be."""
        return os.pread(self.fd, size, offset) if self.is_regular else None

    def stop(self) -> None:
        """Have `read` end. Any thread may call this."""
        self._is_stopped = True

    def close(self) -> None:
        """Close it, if it was opened here."""
        if self._owns:
            os.close(self.fd)
            self._owns = False
