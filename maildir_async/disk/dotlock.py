"""Lock files as Dovecot makes, honours and breaks them (its file-dotlock.c). Everything here blocks."""

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from maildir_async.disk.calls import UNLINKABLE, UNSUPPORTED, Disk, write_all

__all__ = ["Dotlock", "Waiting", "take"]

#: A lock file younger than this may be without its process id yet, and most likely has a live owner.
_YOUNG_S: Final = 2.0

#: What a lock file holds at most that is looked at: a process id, a colon and a host name.
_MOST_READ: Final = 512

#: Seconds between looks at a lock that another has: the first wait, and the longest.
_FIRST_WAIT_S: Final = 0.002
_LONGEST_WAIT_S: Final = 0.2

#: By which there is no file without a name: the file system has none, or there is no directory, which is told later.
_NO_UNNAMED: Final = UNSUPPORTED | {errno.EISDIR, errno.ENOENT}

#: By which it cannot get its name: there is no ``/proc``, or the directory has gone, which is told later.
_NO_LINK: Final = UNLINKABLE | {errno.ENOENT}

#: Lock files that this process has: by (device, inode). A child has none of its parent's.
_held: Final[set[tuple[int, int]]] = set()

os.register_at_fork(after_in_child=_held.clear)


class Waiting(NamedTuple):
    """How long another's lock is waited for.

    Args:
        patience_s: so long in all.
        stale_s: one that has not changed for so long is broken.
        clock: the time of day, as files have it.
        elapsed: seconds from some moment on.
        sleep: waits.

    """

    patience_s: float = 10.0
    stale_s: float = 120.0
    clock: Callable[[], float] = time.time
    elapsed: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


class Dotlock:
    """A lock file that this process has made, from `take` on until `release` or `replace`.

    Attributes:
        path: its own.
        fd: its descriptor, or -1 once it has been closed.

    """

    def __init__(self, disk: Disk, path: str, fd: int, identity: tuple[int, int]) -> None:
        self.path = path
        self.fd = fd
        self._disk = disk
        self._identity = identity
        self._is_there = True
        _held.add(identity)

    def close(self) -> None:
        """Close its descriptor, if that is open. Raises OSError if what was written is lost."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._disk.close(fd)

    def check(self) -> None:
        """Raise OSError (EAGAIN) if it has been broken: whoever has the lock now may be at work."""
        with contextlib.suppress(FileNotFoundError):
            found = self._disk.stat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                return
        raise OSError(errno.EAGAIN, "another has broken the lock", self.path)

    def replace(self, target: str) -> None:
        """Rename the file, closed, to *target*, if it is still the lock: it is one no more.

        Raises OSError if it is not, or cannot be renamed, and then it is still to be released.
        """
        self.check()
        self._disk.rename(self.path, target)
        self._is_there = False

    def release(self) -> None:
        """Remove the file, unless it has been replaced, or broken by another. Never raises.

        What cannot be removed is broken by the next who comes: its process does not have it any more.
        """
        with contextlib.suppress(OSError):
            self.close()
        for _ in range(2 if self._is_there else 0):
            try:
                self.check()
                self._disk.unlink(self.path)
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.ENOENT):  # by which there is nothing to remove
                    continue
            break
        _held.discard(self._identity)


def take(disk: Disk, path: str, mode: int, waiting: Waiting, *, protects: str, with_pid: bool = True) -> Dotlock:
    """Make the lock file *path*, and return it open; wait while another has it, and break it if it is stale.

    Stale is a lock that has not changed for a time, nor has the file that it *protects*; or one whose process, by the
    id in it, is of this host and does not exist; or is this one, and does not have it.

    Raises OSError: EAGAIN, with the path as its file name, if another still has it after as much patience as there is;
    FileNotFoundError if there is no directory; and whatever the system says. Nothing is left behind.
    """
    watched = _Watched(disk, path, protects, waiting)
    deadline, wait_s = waiting.elapsed() + waiting.patience_s, _FIRST_WAIT_S
    while True:
        with contextlib.suppress(FileExistsError):
            lock = _with_pid(disk, path, mode) if with_pid else None
            return lock or _made(disk, path, disk.create(path, mode), mode, with_pid=with_pid)
        if watched.is_stale():
            with contextlib.suppress(FileNotFoundError):
                disk.unlink(path)
            # Another may have found the same at the same time, and must not break the lock that is made next.
            waiting.sleep(0.1 + random.random() / 10)
            continue
        if waiting.elapsed() >= deadline:
            raise OSError(errno.EAGAIN, "another has the lock", path)
        waiting.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _with_pid(disk: Disk, path: str, mode: int) -> Dotlock | None:
    """Make a lock file that has its process id from the first moment on, or return None where that cannot be.

    One without would be kept for as long as a stale one (Dovecot's file-dotlock.c waits for 120 s): killed between
    open(2) and write(2), a process would hold all others up. A file gets its name here when it has been written.
    Raises FileExistsError if there is a lock.
    """
    with contextlib.suppress(FileNotFoundError):
        disk.stat(path)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    try:
        fd = disk.create_unnamed(os.path.dirname(path), mode)
    except OSError as exc:
        if exc.errno in _NO_UNNAMED:
            return None
        raise
    try:
        if mode & 0o077:  # what the umask may have taken away
            disk.chmod(fd, mode)
        write_all(disk, fd, f"{os.getpid()}:{os.uname().nodename}".encode())
        found = disk.stat(fd)
        lock = Dotlock(disk, path, fd, (found.st_dev, found.st_ino))  # held before anybody can see it, and break it
    except BaseException:
        with contextlib.suppress(OSError):
            disk.close(fd)
        raise
    try:
        disk.link_open(fd, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            lock.check()
            return lock  # the reply was lost, as on NFS
        lock.release()
        if exc.errno in _NO_LINK:
            return None
        raise
    except BaseException:
        lock.release()
        raise
    return lock


def _made(disk: Disk, path: str, fd: int, mode: int, *, with_pid: bool) -> Dotlock:
    try:
        found = disk.stat(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.close(fd)
        with contextlib.suppress(OSError):
            disk.unlink(path)
        raise
    lock = Dotlock(disk, path, fd, (found.st_dev, found.st_ino))
    try:
        if mode & 0o077:  # what the umask may have taken away
            disk.chmod(fd, mode)
        if with_pid:
            write_all(disk, fd, f"{os.getpid()}:{os.uname().nodename}".encode())
    except BaseException:
        lock.release()
        raise
    return lock


class _Watched:
    """Another's lock file, looked at from time to time."""

    def __init__(self, disk: Disk, path: str, protects: str, waiting: Waiting) -> None:
        self._disk = disk
        self._path = path
        self._protects = protects
        self._waiting = waiting
        self._seen: tuple[object, ...] | None = None
        self._changed_at = 0.0
        self._pid: int | None = None
        self._has_read = False

    def is_stale(self) -> bool:
        """Look at it, and return whether it may be broken."""
        now = self._waiting.clock()
        try:
            found = self._disk.stat(self._path)
        except FileNotFoundError:
            return False
        seen = (found.st_dev, found.st_ino, found.st_ctime, found.st_mtime, found.st_size)
        if seen != self._seen:
            self._changed_at = _changed(found, now) if self._seen is None else now
            self._seen, self._has_read = seen, False
        if not self._has_read and abs(now - found.st_mtime) > _YOUNG_S:  # far in the future too: a clock was wrong
            self._pid, self._has_read = self._read_pid(), True
        if self._has_read and self._pid is not None:
            # The process that has it lives, and may take its time, whatever that is.
            return not _has(self._pid, (found.st_dev, found.st_ino)) and self._is_the_same(seen)
        if now <= self._changed_at + self._waiting.stale_s:
            return False
        with contextlib.suppress(FileNotFoundError):
            self._changed_at = max(self._changed_at, _changed(self._disk.stat(self._protects), now))
        return now > self._changed_at + self._waiting.stale_s and self._is_the_same(seen)

    def _is_the_same(self, seen: tuple[object, ...]) -> bool:
        try:
            found = self._disk.stat(self._path)
        except FileNotFoundError:
            return False
        return seen == (found.st_dev, found.st_ino, found.st_ctime, found.st_mtime, found.st_size)

    def _read_pid(self) -> int | None:
        """Return the process id in it, or None if it has none of this host."""
        try:
            fd = self._disk.open_file(self._path)
            try:
                text = self._disk.read(fd, _MOST_READ, 0)
            finally:
                self._disk.close(fd)
        except OSError:
            return None
        pid, colon, host = text.removesuffix(b"\n").partition(b":")
        if not colon or host != os.uname().nodename.encode() or not pid.isdigit() or len(pid) > 9:
            return None
        return int(pid) or None


def _changed(found: os.stat_result, now: float) -> float:
    """Return when a file has changed: by its mtime where that is later, and not in the future, since it can be set."""
    return found.st_mtime if found.st_ctime < found.st_mtime <= now else found.st_ctime


def _has(pid: int, identity: tuple[int, int]) -> bool:
    """Whether the process *pid* exists and, if it is this one, has that lock."""
    if pid == os.getpid():
        return identity in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True
