"""Unique file names, and the attributes and flags that follow them.

``<sec>.M<µs>P<pid>Q<n>R<16 hex>.<host>,S=<size>,W=<wire size>`` and, in ``cur/`` only, ``:2,<flags>``. The part
before the first comma is unique by itself, since some readers cut the key there.
"""

import functools
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from maildir_async.format.given import given

__all__ = ["UniqueNames", "check_flags", "file_name", "key_of", "names_for", "number_of", "process_tag"]

NAME_MAX: Final = 255  # bytes in one path component, on every usual Linux file system
#: Longest host kept. The rest of a name (seconds, M, P, Q, R, two sizes, info) is at most 150 bytes.
HOST_MAX: Final = 100

FLAGS: Final = "DFPRST"  # draft, flagged, passed, replied, seen, trashed (cr.yp.to/proto/maildir.html)


class _Process:
    """What makes this process's names its own: drawn at start, and again in a forked child."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.lock = threading.Lock()  # a fork may have copied a locked one
        self.random = os.urandom(8).hex()
        self.deliveries = 1


_process = _Process()
os.register_at_fork(after_in_child=_process.renew)


class UniqueNames:
    r"""Makes names no other call, thread, process, fork or container makes.

    Args:
        clock: nanoseconds since the epoch.
        hostname: what follows the last dot; this machine's name by default. ``/`` and ``:`` become ``\057``
            and ``\072``, as the Maildir page asks, and so does all else that a reader could trip over.
        pid: the process id, read for every name since a fork changes it.

    """

    __slots__ = ("_clock", "_host", "_last", "_pid")

    def __init__(
        self,
        *,
        clock: Callable[[], int] = time.time_ns,
        hostname: str | None = None,
        pid: Callable[[], int] = os.getpid,
    ) -> None:
        self._clock = clock
        self._host = _escape(hostname or socket.gethostname() or "localhost")
        self._pid = pid
        self._last = 0

    def next(self) -> str:
        """Return a new unique name. Any thread may call this."""
        return self.take(1)[0]

    def take(self, count: int) -> list[str]:
        """Return *count* new unique names, in their order. Any thread may call this."""
        with _process.lock:
            # Never the same or an earlier microsecond twice, as Dovecot does: it hands out UIDs in the order
            # of seconds, then of M as an integer, so M must be true microseconds and time must not go back.
            first = max(self._clock() // 1000, self._last + 1)
            self._last = first + count - 1
            number = _process.deliveries
            _process.deliveries = number + count
        maker, end = f"P{self._pid()}Q", f"R{_process.random}.{self._host}"
        return [
            f"{micros // 1_000_000}.M{micros % 1_000_000:06}{maker}{number + micros - first}{end}"
            for micros in range(first, first + count)
        ]


@functools.cache
def names_for(hostname: str | None) -> UniqueNames:
    """Return this process's names for one host name: mailboxes share them, and so one forced-forward clock."""
    return UniqueNames(hostname=hostname)


def process_tag() -> str:
    """Return what is the same in all names that this process makes, and in no other's: 64 bits in hexadecimal."""
    return _process.random


def number_of(name: str, tag: str) -> int | None:
    """Return which of the names of the process with that *tag* a file's *name* is; None if it is none of them."""
    middle, found, _ = name.partition(f"R{tag}.")
    number = middle.rpartition("Q")[2]
    return int(number) if found and number.isascii() and number.isdecimal() and len(number) < 13 else None


def _escape(host: str) -> str:
    r"""Octal-escape what must not or should not stand in a name, and cut to `HOST_MAX` between characters."""
    escaped = ""
    for byte in os.fsencode(host):
        character = chr(byte)
        # A comma would end the unique part, a backslash would be read as an escape.
        safe = character.isascii() and character.isprintable() and character not in "/:,\\ "
        piece = character if safe else f"\\{byte:03o}"
        if len(escaped) + len(piece) > HOST_MAX:
            break
        escaped += piece
    return escaped


def file_name(unique: str, size: int, wire_size: int, flags: str) -> str:
    """Return the published name: ``,S=`` bytes stored, ``,W=`` bytes with CRLF line ends, and flags if any.

    Dovecot and Courier read the sizes from the name and trust them; S comes first, each appears once.
    """
    name = f"{unique},S={size},W={wire_size}"
    return f"{name}:2,{flags}" if flags else name


def key_of(name: str) -> str:
    """Return what identifies a message whatever its flags: the name before any ``:``, as stdlib and Dovecot do."""
    return name.partition(":")[0]


def check_flags(flags: str) -> str:
    """Return *flags* sorted and without repeats, as an exact str; raise ValueError naming the letter that is not one.

    TypeError unless it is a str.
    """
    if not isinstance(flags, str):
        raise TypeError(f"flags must be a str, not {given(flags)}")
    if not flags:
        return ""
    for flag in flags:
        if flag not in FLAGS:
            raise ValueError(f"flags: {given(flag)} is not a Maildir flag; the flags are {FLAGS}")
    return "".join(sorted(set(flags)))
