"""How a process with euid 0 goes to a directory that somebody else may control: step by step, as its owner's. Blocks.

Root may do everything, so a link that a user has put in the way would let him write and delete anywhere. Here a path is
walked from ``/`` by descriptors, one name at a time, and a name that is looked up again may have been replaced only by
what the same user could have put there. DESIGN.md, "As root", has the rule and the attacks.
"""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from maildir_async.disk.rights import UNCHANGEABLE, without_group
from maildir_async.errors import NotTrustedError

__all__ = ["Owner", "Step", "create_as", "enter", "is_roots", "mkdir_as", "parent_of", "share_made", "unlink_as"]

#: A uid and a gid; None is root: nothing has to be changed.
Owner = tuple[int, int] | None

_WALK: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_MOST_LINKS: Final = 40  # path_resolution(7)

#: Seconds for which a way that only root can change is taken to be that: he may give a directory on it to another.
_KNOWN_S: Final = 1.0
_KNOWN_MAX: Final = 4096  # directories

#: Directories that only root can change: until when that is known, and what each was then.
_roots: Final[dict[str, tuple[float, tuple[int, ...]]]] = {}


class Step:
    """A directory on the way, open.

    Attributes:
        fd: its descriptor, by which things in it can be named, and no more.
        path: where it is, without links.
        owner: to whom belongs what is made in it: the user whose directory it is, or lies in. None for root.
        is_fixed: whether root alone can replace it, or any directory above it.
        follows: whether root alone can put a name into it, so that a link in it which is root's can be followed.
        is_lent: whether it is root's and lies in a directory of its *owner*, who can have moved it there.
        identity: what it is by now.

    """

    __slots__ = ("fd", "follows", "identity", "is_fixed", "is_lent", "owner", "path")

    def __init__(self, fd: int, path: str, above: "Step | None") -> None:
        self.fd = fd
        self.path = path
        found = os.fstat(fd)
        owner = None if above is None else above.owner
        if owner is not None and found.st_uid not in (0, owner[0]):
            raise not_trusted(path, f"belongs to uid {found.st_uid} and lies in a directory of uid {owner[0]}")
        self.is_lent = owner is not None and not found.st_uid
        self.owner: Owner = (found.st_uid, found.st_gid) if found.st_uid else owner
        is_shared = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))  # an ACL's mask is the group's bits: acl(5)
        is_sticky = bool(found.st_mode & stat.S_ISVTX)  # what is root's in it can be replaced by root alone
        self.is_fixed: bool = (above is None or above.is_fixed) and not found.st_uid and (is_sticky or not is_shared)
        self.follows = self.is_fixed and not is_shared
        self.identity = _identity(found)

    def open(self) -> int:
        """Return a descriptor of it that can be listed and synced."""
        return os.open(".", _OPEN, dir_fd=self.fd)


def not_trusted(path: str, why: str) -> NotTrustedError:
    """Return the error of a *path* that root does not go."""
    return NotTrustedError(errno.ENOTDIR, f"{path} {why}, and this process is root", path)


def is_roots(directory: str) -> bool:
    """Whether it has been found of late that only root can change *directory*, an absolute path, or any above it.

    It is looked at again each time: root may have given it away, or removed it from where another can make one.
    """
    known = _roots.get(directory)
    if known is None or time.monotonic() > known[0]:
        return False
    try:
        return _identity(os.stat(directory)) == known[1]
    except OSError:
        return False


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_uid, found.st_mode


@contextmanager
def enter(path: str) -> Generator[Step]:
    """Have the directory at *path*, which is absolute, open within the block.

    A symbolic link is followed only if it is root's and only root can put a name where it is. ``..`` is the directory
    by which the last one was entered, which nobody can change meanwhile. Raises `NotTrustedError` for what another than
    root, or than the owner of the directory that it lies in, may have put in the way.
    """
    way: list[Step] = []
    names = [name for name in reversed(path.split("/")) if name not in ("", ".")]
    links = 0
    try:
        way.append(_step("/", None))
        while names:
            name = names.pop()
            if name == "..":
                if len(way) > 1:
                    _close([way.pop()])
                continue
            here = way[-1]
            try:
                way.append(_step(name, here))
            except OSError as exc:
                # A link is ENOTDIR here on Linux, ELOOP or EMLINK elsewhere.
                if isinstance(exc, NotTrustedError) or exc.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
                    raise
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                target = _target(name, here)
                if target.startswith("/"):
                    _close(way[1:])
                    del way[1:]
                names += [name for name in reversed(target.split("/")) if name not in ("", ".")]
        last = way[-1]
        if last.is_fixed:
            if len(_roots) >= _KNOWN_MAX:
                _roots.clear()
            _roots[path] = time.monotonic() + _KNOWN_S, last.identity
        else:
            _roots.pop(path, None)
        yield last
    finally:
        _close(way)


@contextmanager
def parent_of(path: str) -> Generator[tuple[Step, str]]:
    """Have the directory that *path* lies in open within the block, and the last name of it."""
    directory, _, name = path.rstrip("/").rpartition("/")
    with enter(directory) as where:
        yield where, name


def _step(name: str, above: Step | None) -> Step:
    fd = os.open(name, _WALK, dir_fd=None if above is None else above.fd)
    try:
        return Step(fd, "" if above is None else f"{above.path}/{name}", above)
    except BaseException:
        os.close(fd)
        raise


def _target(name: str, here: Step) -> str:
    """Return where the link *name* leads to, if it can be followed."""
    found = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
    path = f"{here.path}/{name}"
    if not stat.S_ISLNK(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    if found.st_uid or not here.follows:
        raise not_trusted(path, "is a symbolic link that another than root can have made")
    return os.readlink(name, dir_fd=here.fd)


def _close(steps: list[Step]) -> None:
    for step in steps:
        # Nothing was written by it, and what has been done in that directory is not to be told as failed.
        with contextlib.suppress(OSError):
            os.close(step.fd)


def create_as(owner: Owner, name: str, mode: int, directory: int) -> int:
    """Create a file of *owner*'s in an open directory. It is his before anything is written; if not, it is not there.

    Killed in between, root's file is left in ``tmp/``.
    """
    fd = os.open(name, _CREATE, mode, dir_fd=directory)
    if owner is not None:
        try:
            os.fchown(fd, *owner)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=directory)
            raise
    return fd


def create_unnamed_as(owner: Owner, mode: int, directory: int) -> int:
    """Create a file of *owner*'s without a name in an open directory."""
    fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=directory)
    if owner is not None:
        try:
            os.fchown(fd, *owner)
        except BaseException:
            os.close(fd)
            raise
    return fd


def mkdir_as(owner: Owner, name: str, mode: int, directory: int) -> int:
    """Make a directory of *owner*'s in another that is open, and return its descriptor.

    He can have put another in its place before it is opened. Only an empty one that is root's is given to him: that he
    could have removed, and made himself.
    """
    os.mkdir(name, mode, dir_fd=directory)
    fd = os.open(name, _OPEN, dir_fd=directory)
    try:
        if owner is not None:
            found = os.fstat(fd)
            if found.st_uid or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or os.listdir(fd):
                raise not_trusted(name, "was replaced while it was made")
            try:
                os.fchown(fd, *owner)
            except BaseException:
                os.rmdir(name, dir_fd=directory)
                raise
    except BaseException:
        os.close(fd)
        raise
    return fd


def share_made(name: str, mode: int, gid: int, directory: int | None, uid: int) -> None:
    """Give a directory that *uid* has just had made these bits and this group, as `Disk.share` has it.

    Whoever else can write to what it lies in can have put another directory of *uid*'s in its place, which is not meant
    for a group. So only an empty one is shared, of which nothing is to be seen.
    """
    fd = os.open(name, _OPEN, dir_fd=directory)
    try:
        found = os.fstat(fd)
        if found.st_uid != uid or os.listdir(fd):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
        refused: OSError | None = None
        if gid not in (-1, found.st_gid):
            try:
                os.fchown(fd, -1, gid)
            except OSError as exc:
                if exc.errno not in UNCHANGEABLE:
                    raise
                refused = exc
                mode = without_group(mode)
        if stat.S_IMODE(found.st_mode) & 0o777 != mode:
            os.fchmod(fd, mode | found.st_mode & stat.S_ISGID)
        os.fsync(fd)  # its rights; what holds it is synced by the caller
        if refused is not None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), name)
    finally:
        os.close(fd)


def unlink_as(where: Step, name: str) -> None:
    """Remove a file; not one of root's from a directory of root's that a user can have moved to where it is."""
    if where.is_lent:
        found = os.stat(name, dir_fd=where.fd, follow_symlinks=False)
        if where.owner is None or found.st_uid != where.owner[0]:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), f"{where.path}/{name}")
    os.unlink(name, dir_fd=where.fd)
