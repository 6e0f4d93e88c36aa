"""File systems that are really full, over quota, read-only, or on a disk that errs. It takes root."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["MissingError", "bad_disk", "mounted", "read_only_by_force", "remounted"]

MIB: Final = 2**20


class MissingError(Exception):
    """Something this machine does not have; the text says what."""


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise MissingError(f"no {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise MissingError(f"{' '.join(command)}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _patiently(*command: str) -> None:
    """Run *command* until it works: what has used a file system may not have quite let go of it."""
    for attempt in range(40):
        if subprocess.run(command, capture_output=True).returncode == 0:
            return
        time.sleep(0.02 * attempt)
    print(f"NOT CLEANED UP: {' '.join(command)}", flush=True)


@contextlib.contextmanager
def _loop(image: Path) -> Iterator[str]:
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        yield device
    finally:
        _patiently("losetup", "-d", device)


@contextlib.contextmanager
def mounted(
    work: Path,
    kind: str,
    *,
    size: int = 64 * MIB,
    make: tuple[str, ...] = (),
    options: str = "",
    on: Path | None = None,
) -> Iterator[tuple[Path, str]]:
    """Have a fresh file system of *kind* mounted within the block; return where, and its device."""
    if os.geteuid():
        raise MissingError("it takes root")
    image = on
    if image is None:
        image = work / "image"
        image.unlink(missing_ok=True)
        with open(image, "wb") as file:
            file.truncate(size)
    where = work / "mounted"
    where.mkdir(exist_ok=True)
    with _loop(image) as device:
        _run(f"mkfs.{kind}", "-q", *make, device)
        _run("mount", *(("-o", options) if options else ()), device, str(where))
        try:
            yield where, device
        finally:
            _patiently("umount", str(where))


def remounted(where: Path, device: str, *, check: bool = False) -> None:
    """Take the file system away, mend it with its own tool if *check* is set, and mount it anew."""
    _patiently("umount", str(where))
    if check:
        subprocess.run(["fsck.ext4", "-p", "-f", device], capture_output=True)
        done = subprocess.run(["fsck.ext4", "-n", "-f", device], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"fsck: {done.stdout[-300:]}")
    _run("mount", device, str(where))


def read_only_by_force(device: str) -> None:
    """Have ext4 find an error, by which it makes itself read-only (mounted with ``errors=remount-ro``), under load."""
    trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    if not trigger.exists():
        raise MissingError(f"no {trigger}")
    trigger.write_text("by the rig of faults\n")


@contextlib.contextmanager
def bad_disk(work: Path) -> Iterator[tuple[Path, Path]]:
    """Have a disk that errs, by ``baddisk.c``: its file, for `mounted`, and the file that says which writes fail."""
    if os.geteuid():
        raise MissingError("it takes root")
    if not Path("/dev/fuse").exists():
        raise MissingError("no FUSE here (/dev/fuse)")
    program = work / "baddisk"
    try:
        flags = _run("pkg-config", "--cflags", "--libs", "fuse3").split()
    except MissingError:
        raise MissingError("apt-get install pkg-config libfuse3-dev fuse3") from None
    _run("cc", "-O2", "-o", str(program), str(Path(__file__).with_name("baddisk.c")), *flags)
    image, control, where = work / "backing", work / "control", work / "fuse"
    control.write_text("")
    where.mkdir(exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    process = subprocess.Popen([program, image, where, control], start_new_session=True)
    try:
        until = time.monotonic() + 5
        while not (where / "disk").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise MissingError(f"the bad disk did not come up: {process.poll()}")
            time.sleep(0.01)
        yield where / "disk", control
    finally:
        control.write_text("")
        _patiently("umount", str(where))
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
