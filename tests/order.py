"""A disk that knows in which order files and directories have been synced and published, by what they are."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from maildir_async import Delivered
from maildir_async.testing import Fault, FaultDisk

__all__ = ["OrderDisk"]

#: Device and inode number.
Identity = tuple[int, int]


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


class OrderDisk(FaultDisk):
    """As `FaultDisk`; `check` says whether what has been promised of the messages delivered has been done for them."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.events: Final[list[tuple[str, Identity, Identity]]] = []  # what, which file, in which directory

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
        try:
            call(source, target, *directories)
        finally:  # also where an error hides that it has been done
            with suppress(FileNotFoundError):
                where = os.stat(os.path.dirname(target)) if directory is None else os.fstat(directory)
                self.events.append(("publish", _identity(os.stat(target, dir_fd=directory)), _identity(where)))

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        super().link_open(fd, target, target_directory)
        assert target_directory is not None
        where = _identity(os.fstat(target_directory))
        self.events.append(("publish", _identity(os.stat(target, dir_fd=target_directory)), where))

    def check(self, messages: Iterable[Delivered]) -> None:
        """Each of *messages*, all `Durability.FULL`, was synced before it was published, and its directory after it."""
        for delivered in messages:
            file, directory = _identity(os.stat(delivered.path)), _identity(Path(delivered.path).parent.stat())
            at = self.events.index(("publish", file, directory))
            before, after = self.events[:at], self.events[at:]
            assert any(what == "syncfs" or (what == "sync" and synced == file) for what, synced, _ in before), (
                f"{delivered.path} was published before it was synced"
            )
            assert ("sync", directory, directory) in after, f"{delivered.path}: its directory was not synced afterwards"
