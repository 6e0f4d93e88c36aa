"""The disk of a storm: it fails, hangs, is slow or falls short as told, and remembers what was synced when."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew
from maildir_async.testing import FaultDisk

__all__ = ["Gate", "StormDisk"]

#: Device and inode number.
Identity = tuple[int, int]


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


class Gate:
    """Holds the threads that come to it until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.held = 0

    def __call__(self) -> None:
        self.held += 1
        self._opened.wait(60)
        self.held -= 1

    def open(self) -> None:
        """Let everybody pass, now and later."""
        self._opened.set()


class StormDisk(FaultDisk):
    """As `FaultDisk`. With *kernel* files are synced by the kernel where it does that: those syncs are not seen."""

    def __init__(self, *, kernel: bool = False) -> None:
        self._posix = PosixDisk()
        super().__init__(disk=self._posix)
        self.is_kernel: Final = kernel
        self.events: list[tuple[str, Identity, Identity]] = []  # what, which file, in which directory
        self.published: dict[str, tuple[int, Identity, Identity]] = {}  # name: which event, file, directory

    def start_afresh(self) -> None:
        """In a forked child: a thread of the parent may have had the lock, and faults are the parent's."""
        self._lock = threading.Lock()
        self.faults = []

    def syncs_by_kernel(self, device: int) -> bool:
        return self.is_kernel and self._posix.syncs_by_kernel(device)

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        return self._posix.kernel_syncs(fds, crew) if self.is_kernel else None

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._synced("sync", fd)

    def sync_file_system(self, fd: int) -> None:
        super().sync_file_system(fd)
        self._synced("syncfs", fd)

    def _synced(self, what: str, fd: int) -> None:
        found = _identity(os.fstat(fd))
        self.events.append((what, found, found))

    def rename_noreplace(self, source: str, target: str, *directories: Any) -> None:
        self._publish(super().rename_noreplace, source, target, *directories)

    def rename(self, source: str, target: str, *directories: Any) -> None:
        self._publish(super().rename, source, target, *directories)

    def link(self, source: str, target: str, *directories: Any) -> None:
        self._publish(super().link, source, target, *directories)

    def _publish(self, call: Callable[..., None], source: str, target: str, *directories: Any) -> None:
        directory = directories[1] if directories else None
        done = True
        try:
            call(source, target, *directories)
        except FileExistsError:
            done = False
            raise
        finally:  # also where an error hides that it has been done
            if done:
                self._is_there(target, directory)

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        super().link_open(fd, target, target_directory)
        self._is_there(target, target_directory)

    def _is_there(self, target: str, directory: int | None) -> None:
        with suppress(FileNotFoundError):
            found = _identity(os.stat(target, dir_fd=directory))
            where = _identity(os.stat(os.path.dirname(target)) if directory is None else os.fstat(directory))
            self.published[os.path.basename(target).partition(":")[0]] = (len(self.events), found, where)

    def is_durable(self, key: str) -> str:
        """Return what is missing for a message of that key to be durable; "" if nothing is, or it is not known here."""
        if key not in self.published:
            return ""
        at, file, directory = self.published[key]
        before, after = self.events[:at], self.events[at:]
        if not any(what == "syncfs" or synced == file for what, synced, _ in before):
            return "it was published before it was synced"
        if not any(synced == directory for _, synced, _ in after):
            return "its directory was not synced after it was published"
        return ""
