"""What tells one file or directory from every other, also from one that had the same inode number before it."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any, Final

__all__ = ["identity"]

# statx(2), linux/stat.h, linux/fcntl.h
AT_EMPTY_PATH: Final = 0x1000
STATX_INO: Final = 0x100
STATX_BTIME: Final = 0x800

_Buffer = ctypes.c_char * 256  # sizeof(struct statx)

#: Of struct statx: stx_mask, stx_ino, stx_btime (seconds, nanoseconds), stx_dev_major, stx_dev_minor.
_FIELDS: Final = struct.Struct("=I28xQ40xqI44xII")

#: What a kernel or a sandbox says that has no such call.
UNKNOWN: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL})


def identity(fd: int) -> tuple[int, int, int]:
    """Return device, inode number, and time of birth (in ns; 0 where it is not known) of an open file or directory.

    ext4 and others give the number of a directory that has been removed to the next one that is made.
    """
    if _statx is None:
        return _without_statx(fd)
    buffer = _Buffer()  # one for each call: any number of threads are here at once, without the interpreter lock
    if _statx(fd, b"", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, buffer):
        number = ctypes.get_errno()
        if number in UNKNOWN:
            return _without_statx(fd)
        raise OSError(number, os.strerror(number))
    mask, inode, seconds, nanoseconds, major, minor = _FIELDS.unpack_from(buffer)
    born = seconds * 1_000_000_000 + nanoseconds if mask & STATX_BTIME else 0
    return os.makedev(major, minor), inode, born


def _without_statx(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, int(getattr(found, "st_birthtime", 0) * 1_000_000_000)  # macOS has it


def _find_statx() -> Callable[..., Any] | None:
    """Return statx(2); None where the C library has none (glibc before 2.28, macOS)."""
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (AttributeError, OSError):
        return None
    statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, _Buffer)
    statx.restype = ctypes.c_int
    return statx


_statx: Final = _find_statx()
