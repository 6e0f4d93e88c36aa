"""What the system tells, and other programs on this host: mountinfo, sockets handed over, lock files, the watchdog."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from maildir_async.daemon.notify import watchdog_s
from maildir_async.daemon.sockets import passed
from maildir_async.disk.dotlock import Waiting, _Watched
from maildir_async.disk.probing import _type_in

from .cutting import decoded

__all__ = ["target"]

HOST = os.uname().nodename.encode()

PIECES = (
    *(b"36 35 98:0 / /mnt rw - ext4 /dev/x rw\n", b"1 2 98:0 ", b" - ", b"- ", b"\n", b" ", b"98:0", b"btrfs"),
    *(HOST, b":", b"1", b"99999999", b"\xb2", b"\0", b"-", b"\xd9\xa1"),
)


class Disk:
    """One whose every file has the same in it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open_file(self, path: str) -> int:
        return 3

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]

    def close(self, fd: int) -> None:
        pass


def target(data: bytes) -> None:
    """Read *data* as each of these."""
    kind = _type_in(data, b"98:0")
    assert kind is None or kind.encode() in data or "\ufffd" in kind
    disk: Any = Disk(data)
    pid = _Watched(disk, "x.lock", "x", Waiting())._read_pid()
    found = re.fullmatch(rb"([0-9]{1,9}):%s\n?" % re.escape(HOST), data)
    assert pid == (int(found[1]) or None if found is not None else None)
    text = decoded(data).replace("\0", "")
    with _environment(WATCHDOG_USEC=text, WATCHDOG_PID=""):
        seconds = watchdog_s()
        assert seconds is None or seconds > 0
    # None is opened, since there is no such process; but all is taken away that a child could take for its own.
    told = {"LISTEN_PID": f"0{text}", "LISTEN_FDS": text, "LISTEN_FDNAMES": text, "else": ""}
    assert passed(told) == []
    assert told == {"else": ""}
    count = "".join(char for char in text if not char.isdecimal() or not char.isascii())
    assert passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}) == []


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
