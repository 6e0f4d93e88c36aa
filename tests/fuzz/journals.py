"""SQLite files that are damaged anywhere: what has been imported, and what has been delivered already."""

import functools
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path

from maildir_async.disk.imported import Imported, Orphan, Wanted
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.seen import Seen
from maildir_async.errors import MaildirError

__all__ = ["target"]

PIECES = (b"\0", b"\xff", b"\x01", b"\x80", b"|", b"SQLite format 3", b"\x0d", b"\x05", b"a", b"1")

IDS = [bytes([number]) * 32 for number in range(20)]


def target(data: bytes) -> None:
    """Damage both as *data* says: four octets for a place and what stands there then. Or take it for the whole file."""
    with tempfile.TemporaryDirectory(dir=_memory()) as directory:
        path = Path(directory, "imported")
        path.write_bytes(_damaged(_good("imported"), data))
        _import(str(path))
        path = Path(directory, "seen")
        path.write_bytes(_damaged(_good("seen"), data))
        _deliver(str(path))


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _damaged(good: bytes, data: bytes) -> bytes:
    if data.startswith(b"|"):
        return data[1:]
    octets = bytearray(good)
    for at in range(0, len(data) - 3, 4):
        place = int.from_bytes(data[at : at + 3]) % len(octets)
        octets[place] = data[at + 3]
    return bytes(octets)


def _import(path: str) -> None:
    journal = Imported(path, PosixDisk())
    try:
        assert all(isinstance(tag, str) for tag in journal.open())
        assert all(isinstance(number, int) for number in journal.numbers("tag"))
        journal.begin("again", [Orphan(IDS[0], "tag", 1)])
        found = journal.find([Wanted(each, each) for each in IDS])
        assert len(found) == len(IDS)
        journal.record([(IDS[19], 7)])
        journal.commit()
    except MaildirError:
        pass
    finally:
        with suppress(MaildirError):
            journal.close(is_finished=False)


def _deliver(path: str) -> None:
    seen = Seen(path, 1000.0, lambda: 10_000.0, PosixDisk())
    try:
        found, _ = seen.find(IDS)
        assert found.keys() <= set(IDS)
        assert all(isinstance(each, str) for each in found.values())
        seen.remember([(IDS[19], "/x")])
        assert IDS[19] in seen.find(IDS)[0]
    except (sqlite3.Error, OSError):
        pass
    finally:
        seen.close_all()


@functools.cache
def _good(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        if name == "seen":
            seen = Seen(str(path), 1000.0, lambda: 10_000.0, PosixDisk())
            seen.remember([(each, "/x") for each in IDS[:9]])
            seen.close_all()
        else:
            journal = Imported(str(path), PosixDisk())
            journal.open()
            journal.begin("tag", [Orphan(IDS[1], "tag", 2)])
            journal.record([(each, number) for number, each in enumerate(IDS[:9])])
            journal.commit()
            journal.close(is_finished=False)
        return path.read_bytes()
