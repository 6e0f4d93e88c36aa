"""Faults made behind Dovecot's back, one kind after the other: the checks have to find each."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .mailboxes import Copy


def plant(copies: Sequence[Copy], maildirs: Mapping[str, Path], look: Callable[[], list[str]]) -> tuple[int, list[str]]:
    """Do harm to some messages; return how much of it *look* tells of, and what it does not.

    Everything is done at once, to different messages, so that one look suffices.
    """
    # Small ones, sent to one person each, whose mailbox has others; no two of the same person.
    chosen: dict[str, Copy] = {}
    for copy in copies:
        if copy.queue_id and not copy.refusals and copy.octets < 2**16:
            chosen.setdefault(copy.user, copy)
    bounce = next(copy for copy in copies if copy.refusals)
    chosen.pop(bounce.user, None)
    removed, altered, doubled, renamed, strange, left = list(chosen.values())[:6]

    expected: dict[str, tuple[str, ...]] = {}

    def expect(what: str, *parts: str) -> None:
        expected[what] = parts

    _path(removed, maildirs).unlink()
    expect("removed", removed.queue_id, "LOST")

    path = _path(altered, maildirs)
    content = path.read_bytes()
    _write(path, content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    expect("altered", altered.queue_id, altered.user, "bytes are not those")

    path = _path(doubled, maildirs)
    _copy(path, path.parent.parent / "new" / ("1" + path.name.partition(":")[0]))
    expect("doubled", doubled.queue_id, "2 copies")

    # A reader that has not seen the message yet compares it with its name.
    path = _path(renamed, maildirs)
    name = "1" + path.name.partition(":")[0].replace(",W=", ",W=1")
    _copy(path, path.parent.parent / "new" / name)
    expect("a wrong size in a name", renamed.user, "with CRLF")
    expect("Dovecot's complaint of it", "Dovecot: ", "wrong W value")

    path = maildirs[strange.user] / "new/1000000000.M1P1.host"
    path.write_bytes(b"Subject: from nowhere\n\nhello\n")
    os.chown(path, path.parent.stat().st_uid, path.parent.stat().st_gid)
    expect("a stranger", strange.user, "does not know")

    (maildirs[left.user] / "tmp/left").write_bytes(b"Subj")
    expect("left in tmp/", left.user, "left in tmp/")

    _path(bounce, maildirs).unlink()
    expect("a bounce removed", bounce.refusals[0].queue_id, "no bounce")

    faults = look()
    missed = [
        f"planted, and not found: {what}"
        for what, parts in expected.items()
        if not any(all(part in fault for part in parts) for fault in faults)
    ]
    return len(expected) - len(missed), missed


def _path(copy: Copy, maildirs: Mapping[str, Path]) -> Path:
    """Return the file that has a message."""
    wanted = f"id {copy.queue_id}".encode()
    for path in [*maildirs[copy.user].glob("cur/*"), *maildirs[copy.user].glob("new/*")]:
        with open(path, "rb") as file:
            if wanted in file.read(4096):
                return path
    raise FileNotFoundError(copy)


def _write(path: Path, content: bytes) -> None:
    """Write a file anew, as old as it was."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy(path: Path, to: Path) -> None:
    shutil.copy2(path, to)
    os.chown(to, path.stat().st_uid, path.stat().st_gid)
