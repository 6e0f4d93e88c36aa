"""What messages share a sync of: a directory, or with syncfs a whole file system. Blocks."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterable
from typing import Final

from maildir_async.commit.entry import Entry
from maildir_async.disk.directories import sync_directory, unsyncable
from maildir_async.disk.posix import Disk

__all__ = ["Files", "Target", "by_file_system", "sync_now"]

#: Directories that are held open at once, over the process: a quarter of the usual limit of descriptors.
MOST_OPEN: Final = 256


class Files:
    """Files on one file system, to be synced by one syncfs(2) for all of them."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def sync(self) -> None:
        """Sync them, or raise."""
        # A descriptor learns of what failed since it was opened: the eldest of failures that concern any of these.
        for entry in self.entries:
            entry.synced = True
        min(self.entries, key=lambda entry: entry.tmpfile.opened_at).tmpfile.sync_file_system()

    def sync_ended(self, failure: BaseException | None) -> None:
        """Tell them what their sync came to."""
        if failure is not None:
            for entry in self.entries:
                entry.tmpfile.stage = "sync"
                entry.fail(failure)


def by_file_system(entries: Iterable[Entry]) -> list[Files]:
    """Return *entries* in groups: those whose files are on the same file system."""
    groups: dict[tuple[Disk, int], Files] = {}
    for entry in entries:
        groups.setdefault((entry.tmpfile.directories.disk, entry.device), Files()).entries.append(entry)
    return list(groups.values())


class Target:
    """A directory that gets messages, to be synced once for all of them.

    It is opened before anything is published in it, so that what is synced is what was changed. When many are open it
    is only looked at, and opened when it is to be synced: then it is an error if it is another one by that time.
    """

    __slots__ = ("_directories", "_fd", "_identity", "_lock", "_over", "_path", "_warnings", "entries")

    def __init__(self, entry: Entry) -> None:
        self._directories = entry.tmpfile.directories
        self._path = entry.tmpfile.target
        self._fd = -1
        self._identity: tuple[int, int, int] | None = None  # once it has been found
        self._over = False  # synced: whoever opens it only now has been left behind, and has another of its own
        self._lock = threading.Lock()
        self._warnings: list[str] = []
        self.entries: list[Entry] = []

    def open(self) -> None:
        """Have it found, if it is not yet."""
        if self._identity is None:
            with self._lock:
                if self._identity is None:
                    self._identity = self._open()
                    if self._over or len(_open_targets) > MOST_OPEN:
                        with contextlib.suppress(OSError):  # nothing has been done by this descriptor
                            self._close()

    def _open(self) -> tuple[int, int, int]:
        fd = self.disk.open_directory(self._path)
        try:
            identity = self.disk.identity(fd)
            if self._directories.above(self._path, identity):
                self._warnings += self._directories.check_whole()
        except BaseException:
            self.disk.close(fd)
            raise
        self._fd = fd
        _open_targets.add(self)
        return identity

    def close(self) -> None:
        """Have it found anew."""
        with self._lock, contextlib.suppress(OSError):  # nothing has been synced by this descriptor
            self._identity = None
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _open_targets.discard(self)
            self.disk.close(fd)

    def disown(self) -> None:
        """Close it and do nothing else: it belongs to the process this forked from."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def full(self) -> bool:
        """Nothing more is published in it. Return whether anything may have been: it has been found."""
        self._over = True
        return self._identity is not None

    @property
    def disk(self) -> Disk:
        """The disk it is on."""
        return self._directories.disk

    @property
    def is_known(self) -> bool:
        """Whether the sync of its descriptor is all that is to be done: what is above it is durable."""
        identity = self._identity
        return self._fd >= 0 and identity is not None and not self._directories.above(self._path, identity)

    def begin_sync(self) -> int:
        """Return the descriptor to sync."""
        return self._fd

    def sync(self) -> None:
        """Sync it, and above it what may not be durable; or raise."""
        self.full()
        identity = self._identity
        if identity is None:
            return
        if self._fd >= 0:
            self._sync(identity)
            return
        try:
            if self._open() != identity:
                raise OSError(errno.ESTALE, "it has been replaced since it was looked at", self._path)
            self._sync(identity)
        finally:
            self._close_or_warn()  # at once: there are many of its kind

    def _sync(self, identity: tuple[int, int, int]) -> None:
        self.disk.sync(self._fd)
        above = self._directories.above(self._path, identity)
        for path in above:
            try:
                sync_directory(self.disk, path)
            except PermissionError as exc:
                self._warnings.append(unsyncable(path, exc))
        if above:
            self._directories.found_durable(self._path, identity)

    def _close_or_warn(self) -> None:
        try:
            self._close()
        except OSError as exc:
            self._warnings.append(f"closing {self._path} failed: {exc.strerror}")

    def sync_ended(self, failure: BaseException | None) -> None:
        """Close it, and tell its entries what its sync came to. Never raises."""
        if failure is not None and not isinstance(failure, OSError):
            failure = OSError(errno.EIO, f"{type(failure).__name__}: {failure}")
        self._close_or_warn()
        if failure is not None or self._warnings:
            for entry in self.entries:
                if entry.error is None:
                    entry.directory_synced(failure, self._warnings)


def sync_now(item: Entry | Files | Target) -> None:
    """Sync it, and tell it what that came to. Never raises."""
    failure: BaseException | None = None
    try:
        item.sync()
    except BaseException as exc:
        failure = exc
    item.sync_ended(failure)


_open_targets: Final[set[Target]] = set()


def _close_parents_directories() -> None:
    """In a forked child: close what the parent's batches have open."""
    for target in list(_open_targets):
        target.disown()
    _open_targets.clear()


os.register_at_fork(after_in_child=_close_parents_directories)
