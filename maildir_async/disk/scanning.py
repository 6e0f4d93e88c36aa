"""A directory of messages, a name at a time: in the memory of one, however many there are. Everything here blocks."""

import contextlib
import os
import stat
from collections.abc import Callable, Generator, Iterator

from maildir_async.disk.calls import Disk

__all__ = ["Scanned", "oldest_file", "scan"]


class Scanned:
    """A directory that is open, whose names are read as they are asked for.

    Attributes:
        fd: its descriptor, by which what is in it can be looked at.
        path: how it was gone to.

    """

    def __init__(self, disk: Disk, path: str, fd: int) -> None:
        self.fd = fd
        self.path = path
        self._disk = disk

    def names(self) -> Iterator[str]:
        """Yield each name in it, from the first on. One that is changed meanwhile may come twice, or not at all.

        Not `Disk.listdir`: that has all of them in memory, which is 130 MB for a million messages.
        """
        # It begins where the descriptor stands, which those of one open file have in common (os.scandir(3) of a
        # descriptor duplicates it, and rewinds it in the end).
        with os.scandir(self.fd) as entries:
            for entry in entries:
                yield entry.name

    def stat(self, name: str) -> os.stat_result | None:
        """Return what *name* is, of a symbolic link that; None if it is gone."""
        try:
            return self._disk.stat(name, self.fd)
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def scan(disk: Disk, path: str) -> Generator[Scanned]:
    """Have the directory at *path* open within the block. OSError as the system says; as root by `as_root`'s rules."""
    fd = disk.open_directory(path)
    try:
        yield Scanned(disk, path, fd)
    finally:
        disk.close(fd)


def oldest_file(scanned: Scanned, is_wanted: Callable[[], None]) -> tuple[int, str, float] | None:
    """Return how many regular files a ``tmp/`` has, and name and ctime of the oldest; None if there are none.

    By ctime, as those that sweep it do. *is_wanted* is called for each, and may raise.
    """
    count, oldest = 0, ("", 0.0)
    for name in scanned.names():
        is_wanted()
        found = scanned.stat(name)
        if found is None or not stat.S_ISREG(found.st_mode):
            continue
        count += 1
        if count == 1 or found.st_ctime < oldest[1]:
            oldest = name, found.st_ctime
    return (count, *oldest) if count else None
