"""The directories of one maildir: made, found durable, listed, swept. Everything here blocks."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Container
from typing import Final

from maildir_async.disk.posix import Disk
from maildir_async.errors import NotAMaildirError

__all__ = ["Directories", "identity_of", "sync_directory"]

#: The Maildir page gives no modes; every writer but stdlib keeps strangers out.
DIRECTORY_MODE: Final = 0o700

#: tmp/ comes last: a maildir that has one is whole.
SUBDIRECTORIES: Final = ("cur", "new", "tmp")

#: What this process has found or made durable: (disk, path of a new/ or cur/) → identity of that directory.
_durable: Final[dict[tuple[Disk, str], tuple[int, int]]] = {}
#: Directories that a delivery of this process is making, and has not synced yet.
_fresh: Final[set[tuple[Disk, str]]] = set()

_DURABLE_MAX: Final = 16384  # entries of about 300 bytes; a forgotten one costs two syncs at its next use


def identity_of(disk: Disk, fd: int) -> tuple[int, int]:
    """Return device and inode number of an open directory."""
    found = disk.stat(fd)
    return found.st_dev, found.st_ino


def sync_directory(disk: Disk, path: str) -> None:
    """Make the entries of a directory durable."""
    fd = disk.open_directory(path)
    try:
        disk.sync(fd)
    finally:
        disk.close(fd)


class Directories:
    """``tmp/``, ``new/`` and ``cur/`` of the maildir at *path*."""

    __slots__ = ("create", "cur", "disk", "new", "path", "tmp")

    def __init__(self, path: str, *, disk: Disk, create: bool) -> None:
        self.path = path
        self.cur, self.new, self.tmp = (f"{path}/{name}" for name in SUBDIRECTORIES)
        self.disk = disk
        self.create = create

    def subdirectory(self, name: str) -> str:
        """Return the path of ``tmp``, ``new`` or ``cur``."""
        return f"{self.path}/{name}"

    def device(self) -> int | str:
        """Return what is the same for all maildirs on one file system. Where that cannot be told, only for this one."""
        path = self.tmp
        while True:
            try:
                return self.disk.stat(path).st_dev
            except FileNotFoundError:
                if path == os.path.dirname(path):
                    return self.path
                path = os.path.dirname(path)
            except OSError:
                return self.path

    def check_room(self, size: int) -> None:
        """Raise OSError or `NotAMaildirError` if a message of *size* bytes can be seen to have no place here now.

        What is missing is no reason if a delivery may make it.
        """
        for name in ("tmp", "new"):
            path = self.subdirectory(name)
            try:
                if self.disk.room(path) < max(size, 1):  # nor has an empty one, if there is no room at all
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            except FileNotFoundError:
                if not self.create:
                    raise NotAMaildirError(
                        f"{self.path} is not a maildir: {name}/ is missing", errno=errno.ENOENT, stage="create"
                    ) from None
                return
            except NotADirectoryError:
                raise self._not_a_maildir(path) from None

    def make_missing(self) -> None:
        """Make what a delivery found missing, if that is allowed; `NotAMaildirError` if not."""
        for name in SUBDIRECTORIES:
            _durable.pop((self.disk, self.subdirectory(name)), None)
        if self.create:
            self.make()
        elif missing := self.missing():
            raise NotAMaildirError(
                f"{self.path} is not a maildir: {missing[0]}/ is missing", errno=errno.ENOENT, stage="create"
            )

    def make(self) -> None:
        """Make the maildir, or what is missing of it, durably: everything made is synced before this returns.

        Others may be making it at the same time. `NotAMaildirError` if something on the way is not a directory.
        """
        existing, missing = self.path, list[str]()
        while not self._is_directory(existing):
            missing.append(existing)
            existing = os.path.dirname(existing)
        if not missing:
            self.missing()  # raises before anything is made, if one of them is a file
        for path in reversed(missing):
            self._make_directory(path)
        for name in SUBDIRECTORIES:
            self._make_directory(self.subdirectory(name))
        # Whoever won the race for one of these may not have synced it, so all are synced, innermost first:
        # no directory is durable before what it is to hold.
        for path in (self.path, *map(os.path.dirname, missing), *self._fresh_above(existing)):
            sync_directory(self.disk, path)
        _fresh.difference_update((self.disk, path) for path in (*missing, *map(self.subdirectory, SUBDIRECTORIES)))

    def _is_directory(self, path: str) -> bool:
        try:
            fd = self.disk.open_directory(path)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            raise self._not_a_maildir(path) from None
        self.disk.close(fd)
        return True

    def _make_directory(self, path: str) -> None:
        try:
            _fresh.add((self.disk, path))
            self.disk.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            if not self._is_directory(path):
                raise self._not_a_maildir(path) from None  # a dangling symbolic link
        except NotADirectoryError:
            raise self._not_a_maildir(path) from None

    def _not_a_maildir(self, path: str) -> NotAMaildirError:
        return NotAMaildirError(
            f"{self.path} is not a maildir: {path} is not a directory",
            errno=errno.ENOTDIR,
            stage="create",
        )

    def missing(self) -> list[str]:
        """Return which of the three subdirectories are not there."""
        return [name for name in SUBDIRECTORIES if not self._is_directory(self.subdirectory(name))]

    def above(self, target: str, identity: tuple[int, int]) -> list[str]:
        """Return the directories above *target* (``new/`` or ``cur/``, now *identity*) that must be synced with it.

        To exist is not to be durable: whoever made this maildir may not have synced it. So the first time this
        process delivers to it, and again when it has been replaced, its root and the root's parent are synced too.
        """
        if _durable.get((self.disk, target)) == identity:
            return []
        # "/.." rather than dirname: the path may be a symbolic link, and the entry to sync is the real one's.
        return [self.path, f"{self.path}/..", *self._fresh_above(self.path)[1:]]

    def _fresh_above(self, path: str) -> list[str]:
        """Return the directories to sync because another delivery has made what is in them, and not synced it yet."""
        above: list[str] = []
        while (self.disk, path) in _fresh:
            path = os.path.dirname(path)
            above.append(path)
        return above

    def found_durable(self, target: str, identity: tuple[int, int]) -> None:
        """Remember that what is `above` it has been synced."""
        while len(_durable) >= _DURABLE_MAX:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread has just changed it
                _durable.pop(next(iter(_durable)), None)
        _durable[self.disk, target] = identity

    def messages(self) -> list[str]:
        """Return the paths of all messages, in the order Dovecot would number them.

        What is missing holds none, if a delivery may make it; or else this is not a maildir: `NotAMaildirError`.
        """
        missing = self.missing() if self.create else []
        paths = [
            f"{self.subdirectory(name)}/{entry}"
            for name in ("new", "cur")
            if name not in missing
            for entry in self._listdir(name)
            if not entry.startswith(".")  # every reader skips these
        ]
        return sorted(paths, key=lambda path: _arrival(os.path.basename(path)))

    def clean_tmp(self, older_than_s: float, in_use: Container[str]) -> list[str]:
        """Remove files in ``tmp/`` whose ctime is older than *older_than_s* seconds, and return their paths.

        By ctime, as Dovecot and Courier do: atime is not kept on noatime mounts, and mtime can be set at will.
        Other sweepers, and deliveries that end meanwhile, are no error.
        """
        removed: list[str] = []
        now = time.time()
        for entry in self._listdir("tmp"):
            path = f"{self.subdirectory('tmp')}/{entry}"
            try:
                found = self.disk.stat(path)
                if not stat.S_ISREG(found.st_mode) or now - found.st_ctime <= older_than_s or path in in_use:
                    continue
                self.disk.unlink(path)
            except FileNotFoundError:
                continue
            removed.append(path)
        return removed

    def _listdir(self, name: str) -> list[str]:
        try:
            return self.disk.listdir(self.subdirectory(name))
        except FileNotFoundError:
            raise NotAMaildirError(
                f"{self.path} is not a maildir: {name}/ is missing", errno=errno.ENOENT, stage="create"
            ) from None
        except NotADirectoryError:
            raise self._not_a_maildir(self.subdirectory(name)) from None


def _arrival(name: str) -> tuple[int, int, str]:
    """Return what Dovecot sorts new mail by: the leading seconds, the number after M in the middle field, the name."""
    seconds, _, rest = name.partition(".")
    middle = rest.partition(".")[0]
    micros = middle.partition("M")[2]
    digits = micros[: len(micros) - len(micros.lstrip("0123456789"))]
    return (int(seconds) if seconds.isdecimal() else 0, int(digits) if digits else 0, name)
