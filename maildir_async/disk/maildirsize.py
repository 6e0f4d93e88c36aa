"""The file ``maildirsize`` of one maildir: read, counted anew, added to. Everything here blocks.

The protocol is that of Courier's README.maildirquota. It has no lock: a record is one write to the end of the file, and
a file that may be wrong is counted anew.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from maildir_async.disk.calls import Disk, write_all
from maildir_async.disk.directories import MARKER, Directories
from maildir_async.disk.listing import folders
from maildir_async.disk.rights import files_rights, give
from maildir_async.errors import NotAMaildirError
from maildir_async.format.names import key_of
from maildir_async.format.quota import LARGEST, Held, Limits, format_held, parse_held, parse_limits
from maildir_async.format.read_names import letters_of, said_size

__all__ = [
    "FILE",
    "Counted",
    "Found",
    "Tallied",
    "Version",
    "count",
    "read",
    "record",
    "remove",
    "root_of",
    "tally",
    "version_of",
]

FILE = "maildirsize"

#: What tells one state of the file from another: device, inode, size, and mtime in nanoseconds.
Version = tuple[int, int, int, int]


class Found(NamedTuple):
    """The file as it was read.

    Attributes:
        held: what it says; None if it has to be counted anew.
        limits: of its first line, whatever the others are.
        version: see `Version`.
        mtime: seconds since the epoch.

    """

    held: Held | None
    limits: Limits
    version: Version
    mtime: float


class Counted(NamedTuple):
    """What a count has found.

    Attributes:
        bytes, messages: in all messages that count.
        is_kept: whether the file says so now. It does not if the maildir changed meanwhile, or has no room for it.
        failure: what came in the way of the file, if anything did.
        is_wrong: whether it says so, though the maildir changed meanwhile: it could not be removed.

    """

    bytes: int
    messages: int
    is_kept: bool
    failure: OSError | None
    is_wrong: bool


class Tallied(NamedTuple):
    """What a count has found, before anything is made of it.

    Attributes:
        bytes, messages: in all messages that count.
        seen: the directories, and the mtime of each before it was listed.
        maildir: the maildir that has the file.
        folders: what the directories of its folders were called, before any was listed.

    """

    bytes: int
    messages: int
    seen: dict[str, int]
    maildir: Directories
    folders: list[str]

    def has_changed(self) -> bool:
        """Whether any of the directories is another by now, or there is a folder more or less."""
        disk = self.maildir.disk
        if any(_changed(disk, path, was) for path, was in self.seen.items()):
            return True
        try:
            return set(folders(self.maildir)) != set(self.folders)
        except (OSError, NotAMaildirError):
            return True


def root_of(directories: Directories) -> str:
    """Return the maildir that has the file: the one above, for a folder."""
    if directories.root is not None:
        return directories.root.path
    with contextlib.suppress(OSError):
        directories.disk.stat(f"{directories.path}/{MARKER}")
        return os.path.dirname(directories.path)
    return directories.path


def version_of(disk: Disk, root: str) -> Version:
    """Return which state the file is in now. FileNotFoundError if there is none."""
    return _version(disk.stat(f"{root}/{FILE}"))


def read(disk: Disk, root: str) -> Found:
    """Read the file. FileNotFoundError if there is none; OSError for one that cannot be read, or is no file.

    ESTALE: other machines have replaced it twice while it was read.
    """
    try:
        return _read_once(disk, root)
    except OSError as exc:
        if exc.errno != errno.ESTALE:
            raise
    return _read_once(disk, root)


def _read_once(disk: Disk, root: str) -> Found:
    fd = disk.open_file(f"{root}/{FILE}")
    try:
        found = disk.stat(fd)  # first: what is added while it is read makes it another than this
        data = b""
        while len(data) < LARGEST and (piece := disk.read(fd, LARGEST - len(data), len(data))):
            data += piece
    finally:
        disk.close(fd)
    return Found(parse_held(data), parse_limits(data), _version(found), found.st_mtime)


def count(
    directories: Directories, root: str, limits: Limits, *, name: str, mode: int, ignores: Callable[[str], bool]
) -> Counted:
    """Count what the maildir holds, and put a file that says so in the place of the one that is there.

    Names of messages tell their sizes (``,S=``); where one does not, its file is asked. What goes meanwhile is not
    counted, and if a directory has changed in the end the file is left out: the next delivery counts again.

    Args:
        directories: of the maildir, or of a folder in it.
        root: the maildir.
        limits: for its first line.
        name: of the file while it is in ``tmp/``, like no other.
        mode: its permission bits.
        ignores: whether a folder, by the name of its directory, does not count.

    """
    disk = directories.disk
    tallied = tally(directories, root, ignores)
    size, number = tallied.bytes, tallied.messages
    failure = None
    try:
        _replace(directories, root, format_held(limits, size, number), name, mode)
    except OSError as exc:
        failure = exc
    is_kept, is_wrong = failure is None, False
    if is_kept and tallied.has_changed():
        is_kept = False
        try:
            remove(disk, root)
        except OSError as exc:
            failure, is_wrong = exc, True
    return Counted(size, number, is_kept, failure, is_wrong)


def remove(disk: Disk, root: str) -> None:
    """Remove the file, so that whoever comes next counts. OSError as the system does, but for one that is gone."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(f"{root}/{FILE}")


def tally(
    directories: Directories, root: str, ignores: Callable[[str], bool], *, without_trashed: bool = False
) -> Tallied:
    """Count what the maildir holds, as `count` does, and leave the file alone.

    Courier leaves out messages with the flag T, which are about to be removed: *without_trashed* does so.
    """
    disk, size, number = directories.disk, 0, 0
    own = directories.root if directories.root is not None else directories
    maildir = Directories(root, disk=disk, create=True, base=own.base)
    names = folders(maildir)
    seen: dict[str, int] = {}
    for box in (root, *(f"{root}/{each}" for each in names if not ignores(each))):
        for path in (f"{box}/new", f"{box}/cur"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                seen[path] = disk.stat(f"{path}/.").st_mtime_ns
                for message in disk.listdir(path):
                    if not message.startswith(".") and not (without_trashed and _is_trashed(message)):
                        with contextlib.suppress(FileNotFoundError):
                            size += _size_of(disk, path, message)
                            number += 1
    return Tallied(size, number, seen, maildir, names)


def record(
    disk: Disk, root: str, size: int, number: int, is_in_doubt: Callable[[int], bool]
) -> tuple[Version, Version] | None:
    """Add that so many bytes, and messages, have come; return the states before and after. One write.

    None if the file is gone: where it may have counted them already it is removed, and whoever comes next counts. So it
    is where another machine has put its count in the place of what is open here (GlusterFS and NFS say ESTALE).
    FileNotFoundError where there is no file.

    Args:
        disk: where it is.
        root: the maildir.
        size: how many bytes.
        number: how many messages.
        is_in_doubt: whether the file of that inode may have counted them. It is the inode of what is open, for a name
            may be answered from a cache for as long as a second after it has been replaced.

    """
    path = f"{root}/{FILE}"
    try:
        fd = disk.open_file(path, append=True)
        try:
            before = _version(disk.stat(fd))
            if not is_in_doubt(before[1]):
                write_all(disk, fd, f"{size} {number}\n".encode())
                return before, _version(disk.stat(fd))
        finally:
            disk.close(fd)
    except OSError as exc:
        if exc.errno != errno.ESTALE:
            raise
    disk.unlink(path)
    return None


def _version(found: os.stat_result) -> Version:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _replace(directories: Directories, root: str, data: bytes, name: str, mode: int) -> None:
    disk, path = directories.disk, f"{root}/tmp/{name}"
    fd = disk.create(path, 0o600)
    try:
        try:
            if directories.inherit_mode:
                give(disk, fd, files_rights(disk, root))
            elif mode != 0o600:
                disk.chmod(fd, mode)
            write_all(disk, fd, data)
        finally:
            disk.close(fd)
        disk.rename(path, f"{root}/{FILE}")
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(path)
        raise


def _size_of(disk: Disk, path: str, message: str) -> int:
    """Return the size of a message: the last ``,S=`` before any ``:``, as Courier takes it, or what its file has."""
    if (said := said_size(key_of(message))) is not None:
        return said
    found = disk.stat(f"{path}/{message}")
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no message", message)
    return found.st_size


def _is_trashed(message: str) -> bool:
    return "T" in letters_of(message)


def _changed(disk: Disk, path: str, was: int) -> bool:
    try:
        return disk.stat(f"{path}/.").st_mtime_ns != was
    except (OSError, NotAMaildirError):
        return True
