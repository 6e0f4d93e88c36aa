"""The file that holds the main process's id, and says by a lock beside it that this process lives."""

import contextlib
import errno
import fcntl
import os
import stat

from maildir_async.daemon.locking import LOCK, InUseError, is_in_place, opened
from maildir_async.disk.paths import absolute

__all__ = ["Pidfile"]


class Pidfile:
    """The file at *path*, from now on until `remove` or the end of this process, which its children do not delay.

    The lock is one of fcntl(2): a child has no part in it. Its file is not the pidfile, which others may read, and so
    lock. A pidfile that is there and has no living owner is replaced, by a rename: whoever reads it finds a number.

    Raises:
        InUseError: a daemon that lives has it.
        OSError: it cannot be written.

    """

    def __init__(self, path: str) -> None:
        self._path = path = absolute(path)
        self._lock = _lock(path)
        try:
            self._written = _write(path)  # open, so that its inode is nobody else's
        except BaseException:
            self._give_back()
            raise

    def remove(self) -> None:
        """Remove it, if it is still the one that this process has written."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self._path), os.fstat(self._written)):
                os.unlink(self._path)
        os.close(self._written)
        self._give_back()

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path + LOCK)
        os.close(self._lock)


def _lock(path: str) -> int:
    while True:
        lock = opened(path)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            if exc.errno not in (errno.EACCES, errno.EAGAIN):  # fcntl(2): either
                raise
            raise InUseError(f"a daemon that runs has the pidfile {path}") from exc
        if is_in_place(path, lock):
            return lock
        os.close(lock)  # its owner has ended, and removed it


def _write(path: str) -> int:
    """Write this process's id; return a descriptor of the file. A link at either name is not followed."""
    new = f"{path}.new"
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "there is something that is not a file", path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of a daemon that was killed: the lock is ours
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, f"{os.getpid()}\n".encode())
        os.rename(new, path)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    return descriptor
