"""Lock files of the daemon's own: mode 0600 beside what they are for, so that no other user can hold the lock.

Any user who may open a file may flock(2) it, a directory too. So what others can read is never what is locked.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Generator

__all__ = ["InUseError", "locked", "opened"]

#: What a lock file is called after what it is for.
LOCK = ".lock"

#: Seconds that a start waits for another daemon to be done with the same socket, which takes it milliseconds.
WAIT_S = 5.0

#: Seconds between tries.
TRY_S = 0.01


class InUseError(Exception):
    """Another process has what this one wants. Its text says what."""


def opened(path: str) -> int:
    """Return a descriptor of the lock file of *path*, which is made if it is not there.

    OSError if that is a symbolic link, no regular file, or somebody else's: it may be a trap.
    """
    path += LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "not a lock file that only this user can open", path)
    return descriptor


@contextlib.contextmanager
def locked(path: str, wait_s: float = WAIT_S) -> Generator[None]:
    """Hold the lock of *path*, and remove its file in the end. `InUseError` if it is not to be had within *wait_s*."""
    deadline = time.monotonic() + wait_s
    while True:
        descriptor = opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_in_place(path, descriptor):
                break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise InUseError(f"another process holds {path}{LOCK}: it starts or ends there") from None
            time.sleep(TRY_S)
        os.close(descriptor)  # and its holder may have removed it meanwhile
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path + LOCK)  # while it is held: who waits for it then finds it gone, and makes another
        os.close(descriptor)


def is_in_place(path: str, descriptor: int) -> bool:
    """Return whether the lock file of *path* is still the one that *descriptor* is open on."""
    try:
        there = os.lstat(path + LOCK)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
