"""What the file system of a maildir can do, found out without changing anything, or by files in ``tmp/``. Blocks."""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from maildir_async.disk.calls import UNLINKABLE, UNSUPPORTED, Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.threads import Crew

__all__ = ["ABILITIES", "Abilities", "probe"]

#: In the order in which they are told.
ABILITIES: Final = (
    *("directory_sync", "kernel_aio_fsync", "hard_links", "rename_noreplace", "case_sensitive", "colon_in_names"),
)

#: Bytes of proc(5)'s list of mounts that are read.
_MOST_READ: Final = 1 << 20


@dataclass
class Abilities:
    """What a file system can do.

    Attributes:
        type: ``ext4`` or the like; None where the system does not tell.
        works: each of `ABILITIES`: True, False, or None where it is not known.
        reasons: why something does not work, or is not known.

    """

    type: str | None
    works: dict[str, bool | None] = field(default_factory=lambda: dict[str, bool | None](dict.fromkeys(ABILITIES)))
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def found(self, ability: str, works: bool | None, reason: str = "") -> None:
        """Tell that it works or not, and why not."""
        self.works[ability] = works
        self.reasons.pop(ability, None)
        if reason:
            self.reasons[ability] = reason


def probe(directories: Directories, *, by_files: bool, has_colon: bool) -> Abilities:
    """Return what the file system of ``tmp/`` can do.

    Args:
        directories: of the maildir.
        by_files: make files in ``tmp/`` for what cannot be seen otherwise. They are gone on return, whatever comes.
            Without that nothing is changed: a directory is opened and synced, names are looked up.
        has_colon: whether a name with a colon has been seen in the maildir.

    """
    disk, tmp = directories.disk, directories.tmp
    abilities = Abilities(None)
    if has_colon:
        abilities.found("colon_in_names", True)
    try:
        fd = disk.open_directory(tmp)
    except OSError as exc:
        for ability in ABILITIES:
            if abilities.works[ability] is None:
                abilities.found(ability, None, f"tmp/ cannot be opened: {exc.strerror}")
        return abilities
    try:
        found = disk.stat(fd)
        abilities.type = _type_of(disk, found.st_dev)
        _probe_sync(abilities, disk, fd)
        _probe_kernel(abilities, disk, fd, found.st_dev)
        _probe_case(abilities, disk, directories)
        if by_files:
            _probe_by_files(abilities, disk, tmp, fd)
    finally:
        disk.close(fd)
    for ability in ABILITIES:
        if abilities.works[ability] is None and ability not in abilities.reasons:
            abilities.found(ability, None, "only files in tmp/ can show it: --probe")
    return abilities


def _probe_sync(abilities: Abilities, disk: Disk, fd: int) -> None:
    try:
        disk.sync(fd)
    except OSError as exc:
        abilities.found("directory_sync", False if exc.errno in UNSUPPORTED else None, exc.strerror or str(exc))
    else:
        abilities.found("directory_sync", True)


def _probe_kernel(abilities: Abilities, disk: Disk, fd: int, device: int) -> None:
    name = "kernel_aio_fsync"
    if not disk.syncs_by_kernel(device):
        abilities.found(name, False, "it is not used here: a server behind it may never answer")
        return
    refused: list[int] = []
    crew = _CountingCrew(refused)
    syncs = disk.kernel_syncs([fd], crew)
    if syncs is None:
        abilities.found(name, False, "this kernel, or a sandbox, has none")
        return
    while not syncs.wait(1.0):
        pass
    abilities.found(name, not refused, "the file system leaves it to threads" if refused else "")


class _CountingCrew(Crew):
    """Threads for what the kernel refuses, and whether it has refused anything."""

    def __init__(self, refused: list[int]) -> None:
        super().__init__(1, "maildir-probe")
        self._refused = refused

    def run(self, job: Callable[[], object]) -> None:
        self._refused.append(1)
        super().run(job)


def _probe_case(abilities: Abilities, disk: Disk, directories: Directories) -> None:
    """See whether ``TMP`` is ``tmp``. Nobody has made that, where it is another name."""
    name = "case_sensitive"
    try:
        here = disk.stat(f"{directories.tmp}/.")
        there = disk.stat(f"{directories.path}/TMP/.")
    except (FileNotFoundError, NotADirectoryError):
        abilities.found(name, True)
    except OSError as exc:
        abilities.found(name, None, exc.strerror or str(exc))
    else:
        abilities.found(name, (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino))


def _probe_by_files(abilities: Abilities, disk: Disk, tmp: str, fd: int) -> None:
    """Make a file in ``tmp/``, link it, rename it; all of them are removed in the end."""
    name = f"probe.{os.getpid()}.{secrets.token_hex(8)}"
    first, second, colon = name, f"{name}.2", f"{name}:2,S"
    wanted = ("hard_links", "rename_noreplace", "colon_in_names")
    try:
        disk.close(disk.create(f"{tmp}/{first}", 0o600))
    except OSError as exc:
        for ability in wanted:
            if abilities.works[ability] is None:
                abilities.found(ability, None, f"tmp/ takes no file: {exc.strerror}")
        return
    try:
        try:
            disk.link(first, second, fd, fd)
        except OSError as exc:
            abilities.found("hard_links", False if exc.errno in UNLINKABLE else None, exc.strerror or str(exc))
            with contextlib.suppress(OSError):
                disk.close(disk.create(f"{tmp}/{second}", 0o600))
        else:
            abilities.found("hard_links", True)
        _probe_rename(abilities, disk, (first, second), fd)
        try:
            disk.close(disk.create(f"{tmp}/{colon}", 0o600))
        except OSError as exc:
            abilities.found("colon_in_names", False, exc.strerror or str(exc))
        else:
            abilities.found("colon_in_names", True)
    finally:
        for each in (first, second, f"{second}.3", colon):
            with contextlib.suppress(OSError):
                disk.unlink(each, fd)


def _probe_rename(abilities: Abilities, disk: Disk, names: tuple[str, str], fd: int) -> None:
    """See whether a name that exists is kept, and one that does not is given."""
    first, second = names
    name = "rename_noreplace"
    try:
        try:
            disk.rename_noreplace(first, second, fd, fd)
        except FileExistsError:
            pass
        else:
            abilities.found(name, False, "it has replaced a file")
            return
        disk.rename_noreplace(second, f"{second}.3", fd, fd)
    except OSError as exc:
        is_absent = exc.errno in UNSUPPORTED or exc.errno == errno.ENOSYS
        abilities.found(name, False if is_absent else None, exc.strerror or str(exc))
    else:
        abilities.found(name, True)


def _type_of(disk: Disk, device: int) -> str | None:
    """Return the type of the file system with that number, as proc(5) has it."""
    data = b""
    with contextlib.suppress(OSError):  # there is none, on another system or in a sandbox
        fd = disk.open_file(f"/proc/{os.getpid()}/mountinfo")
        try:
            while len(data) < _MOST_READ and (piece := disk.read(fd, _MOST_READ, len(data))):
                data += piece
        finally:
            disk.close(fd)
    return _type_in(data, f"{os.major(device)}:{os.minor(device)}".encode())


def _type_in(mountinfo: bytes, device: bytes) -> str | None:
    """Return the type of the file system with that *device* number; a last line may be cut off."""
    for line in mountinfo.split(b"\n"):
        before, _, after = line.partition(b" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) > 2 and fields[2] == device and kinds:
            return kinds[0].decode(errors="replace")
    return None
