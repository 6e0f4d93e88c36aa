"""Folders that IMAP clients are to show: Dovecot's file ``subscriptions``, in the root of a maildir. Blocks."""

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Final

from maildir_async.disk.calls import UNSUPPORTED, write_all
from maildir_async.disk.directories import Directories, sync_directory
from maildir_async.disk.dotlock import Waiting, take
from maildir_async.disk.rights import files_rights, give
from maildir_async.format.subscriptions import with_subscription

__all__ = ["subscribe", "subscribe_to"]

#: Bytes of the file that are read: a hundred thousand folders.
_LARGEST: Final = 1 << 24

#: A lock that has not changed for so long is broken: so does Dovecot.
_WAITING: Final = Waiting(stale_s=30.0)


def subscribe_to(directories: Directories, mode: int) -> None:
    """Add the folder at *directories*, or the maildir itself, to the subscriptions of its maildir: see `subscribe`."""
    if directories.root is None:
        subscribe(directories, ["INBOX"], mode)
    else:
        subscribe(directories.root, os.path.basename(directories.path)[1:].split("."), mode)


def subscribe(directories: Directories, parts: Sequence[str], mode: int = 0o600, waiting: Waiting = _WAITING) -> bool:
    """Add a folder to the subscriptions of the maildir whose root is at *directories*; return False if it was there.

    Durable when this returns. The file is replaced as a whole under Dovecot's lock. Raises OSError with EAGAIN if
    another has the lock for too long, and OSError as the system does; the file is as it was then, or has the folder,
    and the lock is gone.

    Args:
        directories: the root.
        parts: of the folder's name, encoded as they are on the disk, without dots.
        mode: of the file.
        waiting: for another's lock.

    """
    disk, path = directories.disk, f"{directories.path}/subscriptions"
    lock = take(disk, f"{path}.lock", mode, waiting, protects=path, with_pid=False)
    try:
        data: bytes | None = None
        with contextlib.suppress(FileNotFoundError):
            fd = disk.open_file(path)
            try:
                data = b""
                while piece := disk.read(fd, _LARGEST, len(data)):
                    data += piece
                    if len(data) > _LARGEST:
                        raise OSError(errno.EINVAL, "it is too large for a file of subscriptions", path)
            finally:
                disk.close(fd)
        changed = with_subscription(data, parts)
        if changed is None:
            return False
        if directories.inherit_mode:
            give(disk, lock.fd, files_rights(disk, directories.path))
        write_all(disk, lock.fd, changed)
        disk.sync(lock.fd)
        lock.close()
        lock.replace(path)
    finally:
        lock.release()
    try:
        sync_directory(disk, directories.path)
    except OSError as exc:
        if exc.errno not in UNSUPPORTED:
            raise
    return True
