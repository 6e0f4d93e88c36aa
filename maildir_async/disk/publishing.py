"""A file gets its name in ``new/`` or ``cur/``, and replaces nothing there. Blocks."""

import errno
import os

from maildir_async.disk.calls import UNLINKABLE, UNSUPPORTED, Disk

__all__ = ["move", "put_link"]


def move(
    disk: Disk, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
) -> str | None:
    """Move *source* to *target*, which must not exist, and return a warning if *source* could not be removed.

    ``renameat2(RENAME_NOREPLACE)``; where the file system or the C library has none, ``link`` and ``unlink``; where
    there are no hard links either, ``rename``.

    Raises FileExistsError if *target* is another file, which is left as it is. After any other OSError *target*
    does not exist, or cannot be seen: an error that hides a success (a reply lost on NFS) is looked into.
    """
    try:
        disk.rename_noreplace(source, target, source_directory, target_directory)
    except OSError as exc:
        try:
            if exc.errno not in UNSUPPORTED:
                raise
            return _link_and_unlink(disk, source, target, source_directory, target_directory)
        except OSError as exc:
            if not _is_published(disk, source, target, source_directory, target_directory):
                raise
            note = f"published in spite of {exc.strerror or exc}"
            return _unlink_source(disk, source, source_directory, note)
    return None


def _link_and_unlink(
    disk: Disk, source: str, target: str, source_directory: int | None, target_directory: int | None
) -> str | None:
    try:
        disk.link(source, target, source_directory, target_directory)
    except OSError as exc:
        if exc.errno not in UNLINKABLE:
            raise
        # Neither works here, so there is a moment between the look and the act. The name has 64 random bits.
        try:
            disk.stat(target, target_directory)
        except FileNotFoundError:
            disk.rename(source, target, source_directory, target_directory)
            return None
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
    # From here on the message is delivered: nothing may be reported as a failure.
    return _unlink_source(disk, source, source_directory)


def put_link(disk: Disk, source: str, target: str, target_directory: int, fd: int) -> None:
    """Have *target*, which must not exist, be another name of *source*, a path, which is open as *fd* too.

    FileExistsError if it is another file. A file whose directory has been moved meanwhile is found by *fd*.
    """
    try:
        try:
            disk.link(source, target, None, target_directory)
        except FileNotFoundError:
            disk.stat(target_directory)  # raises if it is this that has gone
            disk.link_open(fd, target, target_directory)
    except OSError:
        # A reply lost on NFS, or answered twice: the name has 64 random bits, so if it is this file, this made it.
        if not _is_same(disk, fd, target, None, target_directory):
            raise


def _unlink_source(disk: Disk, source: str, directory: int | None, note: str = "") -> str | None:
    try:
        disk.unlink(source, directory)
    except FileNotFoundError:
        return note or None
    except OSError as exc:
        note = f"{note}; " if note else ""
        return f"{note}the file in tmp/ could not be removed: {exc.strerror or exc}"
    return note or None


def _is_same(
    disk: Disk, source: str | int, target: str, source_directory: int | None, target_directory: int | None
) -> bool:
    try:
        here, there = disk.stat(source, source_directory), disk.stat(target, target_directory)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _is_published(
    disk: Disk, source: str, target: str, source_directory: int | None, target_directory: int | None
) -> bool:
    try:
        there = disk.stat(target, target_directory)
    except OSError:
        return False
    try:
        here = disk.stat(source, source_directory)
    except FileNotFoundError:
        return True  # a name with 64 random bits exists and the file that was to get it is gone: it is that file
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
