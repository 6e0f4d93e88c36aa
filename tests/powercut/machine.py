"""Mounts, loop devices and the recording disk: in a mount namespace of this process's own, on a tmpfs of its own.

Whatever happens to this process, SIGKILL included, the kernel then takes all of it away: the recorder dies with its
parent, the mounts with the last process of the namespace, a loop device with its mount (``LO_FLAGS_AUTOCLEAR``), and
the files with the tmpfs. After a SIGKILL an empty directory stays, on which that was mounted.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["FILE_SYSTEMS", "FileSystem", "Recorder", "copy_sparse", "mounted", "own_machine", "reason_not_to"]

_libc: Final = ctypes.CDLL(None, use_errno=True)

# linux/sched.h, linux/mount.h, linux/loop.h
CLONE_NEWNS: Final = 0x20000
MS_PRIVATE, MS_REC, MNT_DETACH = 1 << 18, 1 << 14, 2
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO = 4, 16


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How a file system is made and mounted.

    Attributes:
        name: as mount(2) has it.
        make: the command, without the file's name.
        size: of its disk, in bytes: the smallest that the command will have.
        options: for mount(2). Nothing is discarded: what that leaves on a disk is not defined.
        kernel_aio: whether the package has the kernel sync its files side by side.
        whole: bytes that its disk writes whole or not at all, where it writes at a multiple of them. What a file system
            counts on: the first of its superblock has no second one that a mount would look at.

    """

    name: str
    make: tuple[str, ...]
    size: int
    options: str
    whole: int
    kernel_aio: bool


_EXT4: Final = (
    "mkfs.ext4",
    "-q",
    "-F",
    "-b",
    "4096",
    "-J",
    "size=4",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
)

FILE_SYSTEMS: Final = {
    # The superblocks of ext4 and of its journal have 1,024 bytes, under one checksum.
    "ext4": FileSystem("ext4", _EXT4, 96 << 20, "nodiscard", 1024, kernel_aio=True),
    "xfs": FileSystem("xfs", ("mkfs.xfs", "-q", "-K"), 304 << 20, "nodiscard", 512, kernel_aio=True),
    # Its device is no disk's number, so the package cannot tell it from a network's file system, and uses threads.
    "btrfs": FileSystem("btrfs", ("mkfs.btrfs", "-q", "-K"), 128 << 20, "nodiscard", 4096, kernel_aio=False),
}


def reason_not_to(file_system: FileSystem | None = None) -> str | None:
    """Return why nothing can be recorded here, or why not with *file_system*; None if it can."""
    if file_system is not None:
        if shutil.which(file_system.make[0]) is None:
            return f"no {file_system.make[0]}"
        subprocess.run(["modprobe", "-q", file_system.name], check=False) if shutil.which("modprobe") else None
        if file_system.name not in Path("/proc/filesystems").read_text().split():
            return f"the kernel has no {file_system.name}"
        return None
    if sys.platform != "linux" or os.geteuid():
        return "mounting takes root, on Linux"
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(path):
            return f"no {path}"
    for program, package in (("cc", "gcc"), ("pkg-config", "pkg-config"), ("fusermount3", "fuse3")):
        if shutil.which(program) is None:
            return f"no {program} (apt-get install {package})"
    if subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode:
        return "no headers of FUSE (apt-get install libfuse3-dev)"
    return None


def _must(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    _must(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()), f"mount {target}")


def _unmount(target: str) -> None:
    """Unmount; what used it a moment ago may not have quite let go of it."""
    for attempt in range(40):
        if not _libc.umount2(target.encode(), 0):
            return
        if ctypes.get_errno() != errno.EBUSY:
            break
        time.sleep(0.005 * attempt)
    _must(-1, f"umount {target}")


@contextlib.contextmanager
def own_machine() -> Iterator[Path]:
    """Go into a mount namespace of this process's own, for good; within the block have an empty tmpfs there.

    The process must not have started a thread.
    """
    _must(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    # The copies of others' mounts must not keep their loop devices busy.
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, kind = line.split()[:3]
        if source.startswith("/dev/loop") or kind.startswith("fuse"):
            _libc.umount2(target.encode().decode("unicode_escape").encode("latin-1"), MNT_DETACH)
    work = tempfile.mkdtemp(prefix="powercut-")
    try:
        _mount("powercut", work, "tmpfs", 0, "mode=700,size=75%")
        try:
            yield Path(work)
        finally:
            _must(_libc.umount2(work.encode(), MNT_DETACH), f"umount {work}")
    finally:
        os.rmdir(work)


@contextlib.contextmanager
def mounted(image: Path, target: Path, file_system: FileSystem, *, direct: bool = False) -> Iterator[None]:
    """Have *image* mounted at *target*, by a loop device.

    OSError where the file system cannot be mounted. With *direct* nothing is cached below the file system: each of its
    writes and flushes goes to the file at once.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
    try:
        device, fd = _loop_device(backing, file_system, LO_FLAGS_DIRECT_IO if direct else 0)
    finally:
        os.close(backing)
    try:
        if direct and Path("/sys/block", Path(device).name, "loop/dio").read_text().strip() != "1":
            raise OSError(
                errno.EOPNOTSUPP, "no direct I/O from a loop device to FUSE: writes would not be seen in time"
            )
        _mount(device, str(target), file_system.name, 0, file_system.options)
    finally:
        os.close(fd)  # from now on the mount holds it, or nothing
    try:
        yield
    finally:
        _unmount(str(target))


def _loop_device(backing: int, file_system: FileSystem, flags: int) -> tuple[str, int]:
    # struct loop_config: fd, block size, struct loop_info64 (232 bytes, lo_flags at 52), 8 words reserved.
    info = struct.pack("52xI176x", LO_FLAGS_AUTOCLEAR | flags)
    config = struct.pack("II", backing, file_system.whole) + info + bytes(64)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(100):  # another process may take it first
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = f"/dev/loop{number}"
            if not os.path.exists(device):
                os.mknod(device, 0o600 | 0o060000, os.makedev(7, number))
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, LOOP_CONFIGURE, config)
            except OSError as exc:
                os.close(fd)
                if exc.errno != errno.EBUSY:
                    raise
            else:
                return device, fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free")


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, but not its holes."""
    with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        here, there = reader.fileno(), writer.fileno()
        size = os.fstat(here).st_size
        os.truncate(there, size)
        end = 0
        while end < size:
            try:
                start = os.lseek(here, end, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                break
            end = os.lseek(here, start, os.SEEK_HOLE)
            os.lseek(here, start, os.SEEK_SET)
            os.lseek(there, start, os.SEEK_SET)
            left = end - start
            while left:
                left -= os.sendfile(there, here, None, left)


class Recorder:
    """The disk that remembers (recorder.c): a file system is mounted on it, and *log* gets what that does.

    Args:
        program: compiled.
        image: what is on the disk at first; changed.
        directory: for its log, its mount and its socket; must be empty.

    """

    def __init__(self, program: Path, image: Path, directory: Path) -> None:
        self.log = directory / "log"
        self.socket = directory / "socket"
        self.disk = directory / "recorder" / "disk"
        self.disk.parent.mkdir()
        self._process = subprocess.Popen([program, image, self.log, self.disk.parent, self.socket])
        deadline = time.monotonic() + 10
        while not self.socket.exists() or not os.path.exists(self.disk):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise OSError(errno.EIO, f"the recording disk did not come up: {self._process.returncode}")
            time.sleep(0.005)

    def tell(self, packet: str) -> None:
        """Put *packet* into the log; ``END`` closes that."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(self.socket))
            connection.send(packet.encode())
            if connection.recv(1) != b"k":
                raise OSError(errno.EIO, "the recording disk is gone")

    def close(self) -> None:
        """Take the disk away."""
        with contextlib.suppress(OSError):
            _unmount(str(self.disk.parent))
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
