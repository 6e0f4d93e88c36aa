"""The file systems that are measured on, made for the purpose and always removed again.

Not the machine's own disk: whether that has a journal, what else is on it and how full it is decides the figures. As
an ordinary user there is no choice, and one directory takes the place of them all.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.build import UnavailableError, compiled, run

__all__ = ["FILE_SYSTEMS", "FileSystems", "Place", "describe_directory"]

#: Bytes of a disk image. It is sparse: it takes what is written to it. Large enough for the inodes of 1,000,000
#: messages with mkfs.ext4's own ratio.
IMAGE_SIZE: Final = 24 * 2**30

#: Microseconds for which the slow disk holds each flush up.
SLOW_FLUSH_US: Final = 2000

FILE_SYSTEMS: Final = {
    "jext4": "ext4 with its journal (data=ordered, barriers) on a direct-I/O loop device",
    "xfs": "XFS on a direct-I/O loop device",
    "slow": f"ext4 with its journal on a disk (FUSE) whose every flush takes {SLOW_FLUSH_US / 1000:g} ms more",
    "tmpfs": "tmpfs: memory only, so a sync costs nothing",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A directory to measure in.

    Attributes:
        path: the directory.
        description: what it is on, for the report.
        flush_ms: the median of a hundred flushes with nothing to write: `fdatasync` after a change of one byte.
        made: whether the file system was made for this, and has nothing else on it.

    """

    path: Path
    description: str
    flush_ms: float
    made: bool = True


class FileSystems:
    """Makes each file system when it is first asked for; leaving the context removes them all.

    Args:
        directory: measure there instead of making any, for those without the right to.

    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self._places: dict[str, Place | UnavailableError] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "FileSystems":
        self.work = Path(tempfile.mkdtemp(prefix="maildir-benchmarks-"))
        self.work.chmod(0o755)  # Dovecot enters as another user
        self._undo.callback(shutil.rmtree, self.work, ignore_errors=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._undo.close()

    def place(self, name: str) -> Place:
        """Return the place called *name*; raise `UnavailableError` where it cannot be made."""
        if name not in self._places:
            try:
                self._places[name] = self._make(name)
            except UnavailableError as exc:
                self._places[name] = exc
        found = self._places[name]
        if isinstance(found, UnavailableError):
            raise found
        return found

    def _make(self, name: str) -> Place:
        if self.directory is not None:
            if name != "jext4":
                raise UnavailableError("one directory was given, and stands for jext4 alone")
            path = Path(tempfile.mkdtemp(prefix="maildir-benchmarks-", dir=self.directory))
            path.chmod(0o755)
            self._undo.callback(shutil.rmtree, path, ignore_errors=True)
            return Place(path, describe_directory(path), _flush_ms(path), made=False)
        if os.geteuid() != 0:
            raise UnavailableError("making file systems takes root; give a directory instead (--directory)")
        mounted = self.work / name
        mounted.mkdir()
        if name == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", "size=50%,nr_inodes=0", "tmpfs", str(mounted))
            self._undo.callback(_unmount, mounted)
            return Place(mounted, FILE_SYSTEMS[name], _flush_ms(mounted))
        image = self.work / f"{name}.image"
        with open(image, "wb") as file:
            os.truncate(file.fileno(), IMAGE_SIZE)
        if name == "slow":
            image = self._slow_disk(image)
        device, direct = self._loop(image)
        if name == "xfs":
            run("mkfs.xfs", "-q", device)
        else:
            # As mkfs.ext4 would, but at once: the kernel is not to write inode tables while something is measured.
            run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
        run("mount", device, str(mounted))
        self._undo.callback(_unmount, mounted)
        mounted.chmod(0o755)
        note = (
            "" if direct else " - BUT NO DIRECT I/O: what holds the image cannot do it, so its page cache is measured"
        )
        return Place(mounted, FILE_SYSTEMS[name] + note, _flush_ms(mounted))

    def _loop(self, image: Path) -> tuple[str, bool]:
        try:
            device = run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
        except UnavailableError:
            device = run("losetup", "--find", "--show", str(image)).strip()
        self._undo.callback(_patiently, "losetup", "-d", device)
        return device, run("losetup", "-n", "-O", "DIO", device).strip() == "1"

    def _slow_disk(self, image: Path) -> Path:
        program = compiled("slowdisk.c", self.work, "fuse3")
        if not Path("/dev/fuse").exists():
            raise UnavailableError("no FUSE here (/dev/fuse)")
        mounted = self.work / "slowdisk.mount"
        mounted.mkdir()
        process = subprocess.Popen([program, image, mounted, str(SLOW_FLUSH_US)], start_new_session=True)
        self._undo.callback(_end, process)
        self._undo.callback(_unmount, mounted)
        for _ in range(500):
            if (mounted / "disk").exists():
                return mounted / "disk"
            if process.poll() is not None:
                raise UnavailableError(f"the slow disk ended with status {process.returncode}")
            time.sleep(0.01)
        raise UnavailableError("the slow disk did not come up in 5 s")


def settle(place: Place, *gone: Path) -> None:
    """Delete *gone* and let the file system come to rest, between measurements: never while one runs."""
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    fd = os.open(place.path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def trim(place: Place) -> None:
    """Give blocks that are free again back to what holds the image, where it is an image."""
    if os.path.ismount(place.path):
        subprocess.run(["fstrim", str(place.path)], capture_output=True)


def describe_directory(path: Path) -> str:
    """Return what a directory is on, as far as an ordinary user can know."""
    device, best = os.stat(path).st_dev, ""
    kind = options = source = "unknown"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields = left.split()
            major, _, minor = fields[2].partition(":")
            if os.makedev(int(major), int(minor)) == device and len(fields[4]) >= len(best):
                best, options = fields[4], fields[5]
                kind, source = right.split()[:2]
    journal = ""
    if kind == "ext4":
        name = re.sub(r"^/dev/", "", os.path.realpath(source)).replace("/", "!")
        with contextlib.suppress(OSError):  # the process that commits, or none
            task = Path("/sys/fs/ext4", name, "journal_task").read_text().strip()
            journal = ", WITHOUT A JOURNAL: its syncs are cheap" if task == "<none>" else ", with a journal"
    return f"a directory on {kind} ({options}{journal})"


def _flush_ms(path: Path) -> float:
    probe = path / "flush-probe"
    fd = os.open(probe, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, bytes(4096), 0)
        os.fsync(fd)
        taken = []
        for number in range(100):
            os.pwrite(fd, bytes([number]), 0)
            began = time.perf_counter()
            os.fdatasync(fd)
            taken.append(time.perf_counter() - began)
    finally:
        os.close(fd)
        probe.unlink()
    return sorted(taken)[50] * 1e3


def _unmount(path: Path) -> None:
    _patiently("umount", str(path))


def _patiently(*command: str) -> None:
    """Run *command* until it works: what used a file system a moment ago may not have quite let go of it."""
    for attempt in range(50):
        if subprocess.run(command, capture_output=True).returncode == 0:
            return
        time.sleep(0.02 * attempt)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"NOT CLEANED UP: {' '.join(command)}: {done.stderr.strip()}", flush=True)


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
