"""A disk in memory that loses power, and shows what may be left."""

import errno
import io
import itertools
import os
import posixpath
import random
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

__all__ = ["CrashDisk"]


class _Inode:
    """A file or directory: as the system shows it, and as the platter has it."""

    def __init__(self, number: int, mode: int) -> None:
        self.number = number
        self.mode = mode
        self.data = b""
        self.synced_data: bytes | None = b""  # None: written to since, so nobody knows
        self.entries: dict[str, _Inode] = {}
        self.synced_entries: dict[str, _Inode] = {}
        self.ctime = time.time()
        self.is_removed = False  # of a directory: it may be open, and takes nothing more

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class CrashDisk:
    """A disk in memory that can lose power at any call.

    Its model: a file's bytes are safe once the file has been synced, and before that any prefix of them may be there.
    A directory's entries are safe once the directory has been synced; before that each entry added, removed or replaced
    may or may not be there, one independently of the other. Nothing else is promised, least of all an order.

    Args:
        cut_at: the call (of those that change something, the first being 1) at which power is lost: that one and all
            later ones fail with EIO and have no effect. None: never.

    """

    def __init__(self, *, cut_at: int | None = None) -> None:
        self.changes = 0
        self._cut_at = cut_at
        self._numbers = itertools.count(2)
        self._fds = itertools.count(1000)
        self._open: dict[int, _Inode] = {}
        self._lock = threading.RLock()
        self._root = _Inode(1, stat.S_IFDIR | 0o755)

    # What tests ask.

    def files(self) -> dict[str, bytes]:
        """Return every file by path, as the system shows it."""
        with self._lock:
            return dict(_walk(self._root, "", lambda inode: inode.entries, lambda inode: inode.data))

    def after_power_cut(self, seeds: Iterable[int] = range(20)) -> Iterator[dict[str, bytes]]:
        """Yield what may be there when power returns: nothing that was not synced, all of it, and some at random."""

        def surviving(chance: float, dice: random.Random) -> dict[str, bytes]:
            def entries(inode: _Inode) -> dict[str, _Inode]:
                kept: dict[str, _Inode] = {}
                for name in sorted(inode.entries.keys() | inode.synced_entries.keys()):
                    now, synced = inode.entries.get(name), inode.synced_entries.get(name)
                    found = now if now is not synced and dice.random() < chance else synced
                    if found is not None:
                        kept[name] = found
                return kept

            def data(inode: _Inode) -> bytes:
                if inode.synced_data is not None:
                    return inode.synced_data
                length = dice.randint(0, len(inode.data)) if 0 < chance < 1 else round(chance * len(inode.data))
                return inode.data[:length]

            return dict(_walk(self._root, "", entries, data))

        with self._lock:
            for chance in (0.0, 1.0):
                yield surviving(chance, random.Random(0))
            for seed in seeds:
                yield surviving(0.5, random.Random(seed))

    def rmdir(self, path: str) -> None:
        """Remove an empty directory, as somebody else would."""
        with self._changing():
            parent, name = self._parent(path)
            if parent.entries[name].entries:
                raise _error(errno.ENOTEMPTY, path)
            parent.entries.pop(name).is_removed = True

    @property
    def open_files(self) -> int:
        """How many descriptors are open."""
        return len(self._open)

    # The Disk.

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        with self._changing():
            inode = _Inode(next(self._numbers), stat.S_IFREG | mode)
            self._name(inode, path, directory)
            return self._descriptor(inode)

    def create_unnamed(self, path: str, mode: int) -> int:
        with self._changing():
            self._get(path)
            return self._descriptor(_Inode(next(self._numbers), stat.S_IFREG | mode))

    def open_file(self, path: str, *, append: bool = False) -> int:
        with self._lock:
            inode = self._get(path)
            if inode.is_directory:
                raise _error(errno.EISDIR if append else errno.EINVAL, path)
            return self._descriptor(inode)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        with self._lock:
            return self._open[fd].data[offset : offset + size]

    def chown(self, fd: int, uid: int, gid: int) -> None:
        with self._changing():
            pass

    def room(self, path: str) -> int:
        with self._lock:
            if self._find(path) is None:
                raise _error(errno.ENOENT, path)
            return 2**40

    def duplicate(self, fd: int) -> int:
        with self._lock:
            return self._descriptor(self._open[fd])

    def reader(self, fd: int) -> BinaryIO:
        with self._lock:
            return io.BytesIO(self._open.pop(fd).data)

    def chmod(self, fd: int, mode: int) -> None:
        with self._changing():
            self._open[fd].mode = stat.S_IFREG | mode

    def write(self, fd: int, data: bytes | memoryview) -> int:
        with self._changing():
            inode, some = self._open[fd], bytes(data)[: max(1, len(data) // 2)]  # always short: that is allowed
            inode.data += some
            inode.synced_data = None
            return len(some)

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        pass

    def utime(self, fd: int, atime_ns: int, mtime_ns: int) -> None:
        with self._changing():
            pass

    def sync(self, fd: int) -> None:
        with self._changing():
            inode = self._open[fd]
            inode.synced_data = inode.data
            inode.synced_entries = dict(inode.entries)

    def syncs_by_kernel(self, device: int) -> bool:
        return False

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        return None

    def sync_file_system(self, fd: int) -> None:
        with self._changing():
            waiting = [self._root]
            while waiting:
                inode = waiting.pop()
                inode.synced_data = inode.data
                inode.synced_entries = dict(inode.entries)
                waiting.extend(inode.entries.values())

    def close(self, fd: int) -> None:
        with self._lock:
            del self._open[fd]

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        with self._changing():
            if self._find(target, target_directory) is not None:
                raise _error(errno.EEXIST, target)
            self._move(source, target, source_directory, target_directory)

    def link(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        with self._changing():
            self._name(self._get(source, source_directory), target, target_directory)

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        with self._changing():
            self._name(self._open[fd], target, target_directory)

    def _name(self, inode: _Inode, path: str, directory: int | None) -> None:
        parent, name = self._parent(path, directory)
        if name in parent.entries:
            raise _error(errno.EEXIST, path)
        parent.entries[name] = inode

    def rename(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        with self._changing():
            self._move(source, target, source_directory, target_directory)

    def unlink(self, path: str, directory: int | None = None) -> None:
        with self._changing():
            parent, name = self._parent(path, directory)
            if parent.entries.pop(name, None) is None:
                raise _error(errno.ENOENT, path)

    def mkdir(self, path: str, mode: int) -> None:
        with self._changing():
            directory, name = self._parent(path)
            if name in directory.entries:
                raise _error(errno.EEXIST, path)
            directory.entries[name] = _Inode(next(self._numbers), stat.S_IFDIR | mode)

    def share(self, path: str, mode: int, gid: int) -> None:
        with self._changing():
            self._get(path).mode = stat.S_IFDIR | mode

    def open_directory(self, path: str) -> int:
        with self._lock:
            inode = self._get(path)
            if not inode.is_directory:
                raise _error(errno.ENOTDIR, path)
            return self._descriptor(inode)

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        with self._lock:
            inode = self._open[path] if isinstance(path, int) else self._get(path, directory)
            return os.stat_result((inode.mode, inode.number, 1, 1, 0, 0, len(inode.data), *[int(inode.ctime)] * 3))

    def identity(self, fd: int) -> tuple[int, int, int]:
        with self._lock:
            return 1, self._open[fd].number, 0  # no number is given twice

    def listdir(self, path: str) -> list[str]:
        with self._lock:
            return list(self._get(path).entries)

    def _changing(self) -> threading.RLock:  # type: ignore[valid-type, unused-ignore]  # a function until 3.13
        with self._lock:
            self.changes += 1
            if self._cut_at is not None and self.changes >= self._cut_at:
                raise OSError(errno.EIO, "the power is off")
            return self._lock

    def _descriptor(self, inode: _Inode) -> int:
        fd = next(self._fds)
        self._open[fd] = inode
        return fd

    def _move(self, source: str, target: str, source_directory: int | None, target_directory: int | None) -> None:
        inode = self._get(source, source_directory)
        directory, name = self._parent(target, target_directory)
        directory.entries[name] = inode
        directory, name = self._parent(source, source_directory)
        del directory.entries[name]

    def _parent(self, path: str, begin: int | None = None) -> tuple[_Inode, str]:
        parent, name = posixpath.split(path.rstrip("/"))
        directory = self._get(parent, begin)
        if not directory.is_directory:
            raise _error(errno.ENOTDIR, path)
        if directory.is_removed:
            raise _error(errno.ENOENT, path)
        return directory, name

    def _get(self, path: str, begin: int | None = None) -> _Inode:
        found = self._find(path, begin)
        if found is None:
            raise _error(errno.ENOENT, path)
        return found

    def _find(self, path: str, begin: int | None = None) -> _Inode | None:
        way = [self._root if begin is None else self._open[begin]]
        for name in path.split("/"):
            if not name:
                continue
            if not way[-1].is_directory:
                raise _error(errno.ENOTDIR, path)
            if name == "..":  # of what is there: a directory that is missing has no parent
                way[1:] = way[1:-1]
            elif name != ".":
                found = way[-1].entries.get(name)
                if found is None:
                    return None
                way.append(found)
        return way[-1]


def _walk(
    directory: _Inode,
    path: str,
    entries: Callable[[_Inode], dict[str, _Inode]],
    data: Callable[[_Inode], bytes],
) -> Iterator[tuple[str, bytes]]:
    for name, inode in entries(directory).items():
        if inode.is_directory:
            yield from _walk(inode, f"{path}/{name}", entries, data)
        else:
            yield f"{path}/{name}", data(inode)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
