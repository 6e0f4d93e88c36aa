"""A disk whose calls fail, are slow, or fall short, as told."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

__all__ = ["Call", "Fault", "FaultDisk"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: the name of the `Disk` method, and the path it is about (for a descriptor, the opened one)."""

    operation: str
    path: str


@dataclass(slots=True)
class Fault:
    """What is to happen to one call.

    Args:
        operation: the name of a `Disk` method; "" for any of them.
        error: the errno it fails with; None to let it through (after *gate*).
        nth: which of the calls that match fails, the first being 1; 0 for all of them.
        path: only calls whose path contains this.
        shorten: for ``write``, write only so many bytes, and do not fail.
        gate: a function called first, in the worker thread, which may wait for as long as it likes.
        late: fail after the call has done its work.

    """

    operation: str
    error: int | None = None
    nth: int = 1
    path: str = ""
    shorten: int | None = None
    gate: Callable[[], object] | None = None
    late: bool = False
    seen: int = field(default=0, init=False)

    def matches(self, call: Call) -> bool:
        """Count *call*, and return whether this is the one."""
        if self.operation not in ("", call.operation) or self.path not in call.path:
            return False
        self.seen += 1
        return self.nth in (0, self.seen)


class FaultDisk:
    """A disk whose calls are recorded, and fail as told. A ``close`` that fails has closed, as on Linux."""

    def __init__(self, *faults: Fault, disk: Disk | None = None) -> None:
        self.faults = list(faults)
        self.calls: list[Call] = []
        self._disk: Disk = disk or PosixDisk()
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    def _call(self, operation: str, path: str | int, call: Callable[[], T]) -> T:
        with self._lock:
            this = Call(operation, self._paths.get(path, "") if isinstance(path, int) else path)
            self.calls.append(this)
            faults = [fault for fault in self.faults if fault.shorten is None and fault.matches(this)]
        for fault in faults:
            if fault.gate is not None:
                fault.gate()
            if fault.error is not None and not fault.late and operation != "close":
                raise OSError(fault.error, os.strerror(fault.error), this.path)
        result = call()
        for fault in faults:
            if fault.error is not None:
                raise OSError(fault.error, os.strerror(fault.error), this.path)
        return result

    def _opened(self, fd: int, path: str) -> int:
        with self._lock:
            self._paths[fd] = path
        return fd

    def _path(self, path: str | int, directory: int | None = None) -> str | int:
        """Return the whole path of what a call is about; a descriptor as it is."""
        return path if directory is None else f"{self._paths.get(directory, '')}/{path}"

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        whole = str(self._path(path, directory))
        return self._call("create", whole, lambda: self._opened(self._disk.create(path, mode, directory), whole))

    def create_unnamed(self, path: str, mode: int) -> int:
        return self._call("create_unnamed", path, lambda: self._opened(self._disk.create_unnamed(path, mode), path))

    def open_file(self, path: str, *, append: bool = False) -> int:
        return self._call("open_file", path, lambda: self._opened(self._disk.open_file(path, append=append), path))

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return self._call("read", fd, lambda: self._disk.read(fd, size, offset))

    def chown(self, fd: int, uid: int, gid: int) -> None:
        self._call("chown", fd, lambda: self._disk.chown(fd, uid, gid))

    def room(self, path: str) -> int:
        return self._call("room", path, lambda: self._disk.room(path))

    def duplicate(self, fd: int) -> int:
        return self._call("duplicate", fd, lambda: self._opened(self._disk.duplicate(fd), self._paths.get(fd, "")))

    def reader(self, fd: int) -> BinaryIO:
        return self._call("reader", fd, lambda: self._disk.reader(fd))

    def chmod(self, fd: int, mode: int) -> None:
        self._call("chmod", fd, lambda: self._disk.chmod(fd, mode))

    def write(self, fd: int, data: bytes | memoryview) -> int:
        with self._lock:
            this = Call("write", self._paths.get(fd, ""))
            for fault in self.faults:
                if fault.shorten is not None and fault.matches(this):
                    data = memoryview(data)[: fault.shorten]
        return self._call("write", fd, lambda: self._disk.write(fd, data))

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        self._call("start_writeback", fd, lambda: self._disk.start_writeback(fd, offset, length))

    def utime(self, fd: int, atime_ns: int, mtime_ns: int) -> None:
        self._call("utime", fd, lambda: self._disk.utime(fd, atime_ns, mtime_ns))

    def sync(self, fd: int) -> None:
        self._call("sync", fd, lambda: self._disk.sync(fd))

    def syncs_by_kernel(self, device: int) -> bool:
        return False

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        return None

    def sync_file_system(self, fd: int) -> None:
        self._call("sync_file_system", fd, lambda: self._disk.sync_file_system(fd))

    def close(self, fd: int) -> None:
        self._call("close", fd, lambda: self._disk.close(fd))

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        self._call(
            "rename_noreplace",
            self._path(target, target_directory),
            lambda: self._disk.rename_noreplace(source, target, source_directory, target_directory),
        )

    def rename(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        self._call(
            "rename",
            self._path(target, target_directory),
            lambda: self._disk.rename(source, target, source_directory, target_directory),
        )

    def link(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        self._call(
            "link",
            self._path(target, target_directory),
            lambda: self._disk.link(source, target, source_directory, target_directory),
        )

    def link_open(self, fd: int, target: str, target_directory: int | None = None) -> None:
        self._call(
            "link_open",
            self._path(target, target_directory),
            lambda: self._disk.link_open(fd, target, target_directory),
        )

    def unlink(self, path: str, directory: int | None = None) -> None:
        self._call("unlink", self._path(path, directory), lambda: self._disk.unlink(path, directory))

    def mkdir(self, path: str, mode: int) -> None:
        self._call("mkdir", path, lambda: self._disk.mkdir(path, mode))

    def share(self, path: str, mode: int, gid: int) -> None:
        self._call("share", path, lambda: self._disk.share(path, mode, gid))

    def open_directory(self, path: str) -> int:
        return self._call("open_directory", path, lambda: self._opened(self._disk.open_directory(path), path))

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        return self._call("stat", self._path(path, directory), lambda: self._disk.stat(path, directory))

    def identity(self, fd: int) -> tuple[int, int, int]:
        return self._call("identity", fd, lambda: self._disk.identity(fd))

    def listdir(self, path: str) -> list[str]:
        return self._call("listdir", path, lambda: self._disk.listdir(path))
