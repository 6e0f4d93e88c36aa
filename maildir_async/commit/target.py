"""A directory that gets messages in one round: opened before the first, and synced once for all of them. Blocks."""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from maildir_async.commit.entry import Entry
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories, unsyncable

__all__ = ["Above", "FileSystem", "Roots", "Target"]

#: What the maildirs are that folders have to lie in, by disk and path: device and inode number.
Roots = dict[tuple[Disk, str], tuple[int, int]]


class Target:
    """A ``new/`` or ``cur/`` that has been found. What is synced is what was changed: it is never opened again.

    Where it turns out to have been removed meanwhile, whoever was about to publish in it opens another in its place,
    and what has been published in this one by then is synced with this one.
    """

    __slots__ = ("above", "close_all", "directories", "entries", "fd", "holds", "identity", "path", "warnings")

    def __init__(self, directories: Directories, path: str, roots: Roots | None = None) -> None:
        self.directories = directories
        self.path = path
        self.entries: list[Entry] = []
        self.warnings: list[str] = []
        self.holds: list[None] = []  # one for each further directory above it that has been left behind
        #: Where it has been left behind: what closes it, once no thread of its round can be about to use it.
        self.close_all: Callable[[Sequence[Target]], None] = _close_all
        disk = directories.disk
        self.fd = disk.open_directory(path)
        _open.add(self)
        try:
            self.identity = disk.identity(self.fd)
            if directories.root is not None:
                self._check_inside(directories.root, {} if roots is None else roots)
            #: Directories above it that have to be synced before a message in it is durable, by what they are.
            self.above: dict[object, str] = {_key(disk, path): path for path in directories.above(path, self.identity)}
            if self.above:
                self.warnings += directories.check_whole()
        except BaseException:
            self.close()
            raise

    @classmethod
    def found(cls, directories: Directories, path: str, roots: Roots) -> "Target":
        """Return the directory at *path*; what is missing of the maildir is made first. *roots* are those known."""
        try:
            return cls(directories, path, roots)
        except FileNotFoundError:
            warnings = directories.make_missing()
            target = cls(directories, path)
            target.warnings += warnings
            return target

    def _check_inside(self, root: Directories, roots: Roots) -> None:
        """Raise `NotAMaildirError` unless it is open in a folder of *root*, which is looked at once for all folders."""
        above = self.disk.stat("../..", self.fd)  # of what is open, whatever has come in its way since
        known = roots.get((self.disk, root.path))
        if known is None:
            found = self.disk.stat(f"{root.path}/.")
            known = roots[self.disk, root.path] = found.st_dev, found.st_ino
        if (above.st_dev, above.st_ino) != known:
            self.directories.check_inside()  # the maildir may be another by now, or new/ a link itself

    @property
    def disk(self) -> Disk:
        """The disk it is on."""
        return self.directories.disk

    def sync(self) -> None:
        """Sync it, or raise."""
        self.disk.sync(self.fd)

    def sync_ended(self, failure: BaseException | None) -> None:
        """Called when its sync has ended, or one above it, with the *failure* of that, if it failed. Never raises."""
        warnings, self.warnings = self.warnings, []
        for warning in warnings:
            self._warn(warning)
        if failure is not None:
            self.above = {}  # which is not found durable
            for entry in self.entries:
                entry.directory_failed(failure)

    def _warn(self, warning: str) -> None:
        for entry in self.entries:
            entry.warn(warning)

    def sync_above(self) -> None:
        """Sync what is above it too, by itself. Never raises."""
        for path in list(self.above.values()):
            above = Above(path)
            above.targets.append(self)
            try:
                above.sync()
            except BaseException as exc:
                self.sync_ended(exc)
        self.found_durable()

    def found_durable(self) -> None:
        """Remember that what is above it has been synced, unless that failed."""
        if self.above:
            self.directories.found_durable(self.path, self.identity)

    def let_go(self) -> bool:
        """One directory above it that was left behind has been synced, or failed: return whether it was the last."""
        try:
            self.holds.pop()  # by which alone it is decided who is the last, whatever other threads do
        except IndexError:
            return True
        return False

    def close(self) -> None:
        """Close it. Never raises."""
        fd, self.fd = self.fd, -1
        _open.discard(self)
        if fd >= 0:
            try:
                self.disk.close(fd)
            except OSError as exc:
                self._warn(f"closing {self.path} failed: {exc.strerror}")

    def disown(self) -> None:
        """In a forked child: close it and do nothing else, it is the parent's."""
        with contextlib.suppress(OSError):
            os.close(self.fd)
        self.fd = -1


class Above:
    """A directory to be synced for the sake of several targets below it."""

    __slots__ = ("path", "targets")

    def __init__(self, path: str) -> None:
        self.path = path
        self.targets: list[Target] = []

    @property
    def entries(self) -> list[Entry]:
        """What is published below it."""
        return [entry for target in self.targets for entry in target.entries]

    def sync(self) -> None:
        """Sync it, or raise."""
        disk = self.targets[0].disk
        try:
            fd = disk.open_directory(self.path)
        except PermissionError as exc:
            for entry in self.entries:
                entry.warn(unsyncable(self.path, exc))
            return
        try:
            disk.sync(fd)
        finally:
            disk.close(fd)

    def sync_ended(self, failure: BaseException | None) -> None:
        """Called when its sync has ended, with the *failure* of that, if it failed. Never raises."""
        for target in self.targets:
            target.sync_ended(failure)


class FileSystem:
    """Files on one file system, to be synced by one syncfs(2) for all of them."""

    __slots__ = ("entries",)

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)

    def sync(self) -> None:
        """Sync them, or raise."""
        # A descriptor learns of what failed since it was opened: the eldest of failures that concern any of these.
        eldest = min(self.entries, key=_opened_at)
        eldest.mailbox.directories.disk.sync_file_system(eldest.fd)

    def sync_ended(self, failure: BaseException | None) -> None:
        """Called when its sync has ended, with the *failure* of that, if it failed. Never raises."""
        if failure is not None:
            for entry in self.entries:
                entry.stage = "sync"
                entry.fail(failure)


def _key(disk: Disk, path: str) -> object:
    """Return what tells a directory from others, by whatever path; where the system does not tell, its path."""
    try:
        found = disk.stat(f"{path}/.")
    except OSError:
        return path
    return found.st_dev, found.st_ino


def _opened_at(entry: Entry) -> float:
    return entry.taken_at if entry.file is None else entry.file.opened_at


def _close_all(targets: Sequence[Target]) -> None:
    for target in targets:
        target.close()


_open: Final[set[Target]] = set()


def _close_parents_directories() -> None:
    """In a forked child: close what the parent's rounds have open."""
    for target in list(_open):
        target.disown()
    _open.clear()


os.register_at_fork(after_in_child=_close_parents_directories)
