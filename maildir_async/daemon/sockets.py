"""The sockets that mail comes in by: their addresses, made, taken over from systemd, removed.

A Unix socket is made beside its place and renamed into it: clients find the old one or the new, which listens already
and has its mode. Whether anybody listens at the old one is asked with the directory locked, so that of two daemons
started at once one gives way.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Generator, MutableMapping
from dataclasses import dataclass
from typing import Final

from maildir_async.disk.paths import absolute

__all__ = [
    "BACKLOG",
    "Address",
    "InUseError",
    "Listener",
    "TcpAddress",
    "UnixAddress",
    "bind",
    "parse_address",
    "passed",
    "remove",
    "shown",
]

#: Connections that wait to be accepted. The kernel cuts it to net.core.somaxconn (4,096 since Linux 5.4).
BACKLOG: Final = 1024

#: The first descriptor that systemd passes: SD_LISTEN_FDS_START of sd-daemon.h.
FIRST_PASSED: Final = 3

#: Bytes of a Unix socket's path, without the zero at its end: unix(7).
MAX_PATH: Final = 107

#: What a socket is called until it is renamed to its place. Under the lock, so one name will do.
NEW: Final = ".new"


class InUseError(Exception):
    """Somebody else listens at this address. Its text says so."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """``unix:PATH``."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """``HOST:PORT``, or ``[IPv6]:PORT``. Port 0 stands for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens.

    Attributes:
        socket: itself; it does not block.
        path: where it is to be removed from in the end; None for TCP, and for what systemd has made.
        inode: device and inode of what was put there.
        passed: whether systemd has made it, and goes on listening when we are gone.

    """

    socket: socket.socket
    path: str | None = None
    inode: tuple[int, int] | None = None
    passed: bool = False


def parse_address(text: str) -> Address:
    """Return the address that *text* is. ValueError if it is none."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise ValueError(f"not the path of a socket: {text!r}")
        path = absolute(path)
        if len(os.fsencode(path + NEW)) > MAX_PATH:
            raise ValueError(f"a socket's path may have {MAX_PATH - len(NEW)} bytes at most: {text!r}")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets, as in [::1]:24: {text!r}")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"neither unix:PATH nor HOST:PORT: {text!r}")
    return TcpAddress(host, int(port))


def bind(address: Address, mode: int) -> list[Listener]:
    """Listen at *address*. Blocks; a host name is looked up, and every address it has is listened at.

    Args:
        address: where.
        mode: permission bits of a Unix socket; who may write to it may connect.

    Raises:
        InUseError: somebody else listens there.
        OSError: it cannot be done: no such directory, no right to it, a file in the way.

    """
    if isinstance(address, UnixAddress):
        return [_bind_unix(address.path, mode)]
    listeners: list[Listener] = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, sockaddr in dict.fromkeys(found):
            listeners.append(Listener(socket.create_server(sockaddr[:2], family=family, backlog=BACKLOG)))
            listeners[-1].socket.setblocking(False)
    except OSError as exc:
        for listener in listeners:
            listener.socket.close()
        if exc.errno == errno.EADDRINUSE:
            raise InUseError(f"somebody listens at {address} already") from exc
        raise
    return listeners


def _bind_unix(path: str, mode: int) -> Listener:
    with _directory_locked(path):
        if _is_live(path):
            raise InUseError(f"somebody listens at {path} already")
        new = path + NEW
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            before = os.umask(0o777)  # nobody gets in before the mode is right
            try:
                made.bind(new)
            finally:
                os.umask(before)
            os.chmod(new, mode)
            made.listen(BACKLOG)
            there = os.lstat(new)
            os.rename(new, path)
        except BaseException:
            made.close()
            raise
        return Listener(made, path, (there.st_dev, there.st_ino))


def _is_live(path: str) -> bool:
    """Return whether somebody listens at *path*. FileExistsError for what is not a socket, and not ours to replace."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is something that is not a socket", path)
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        code = client.connect_ex(path)
    # EAGAIN: its queue is full. EPROTOTYPE: it is of another type. EACCES: we may not know, and must not guess.
    return code not in (errno.ECONNREFUSED, errno.ENOENT)


def remove(listener: Listener) -> None:
    """Remove the socket from its place, unless another has taken that. Connections that there are go on."""
    if listener.path is None:
        return
    with contextlib.suppress(OSError), _directory_locked(listener.path):
        there = os.lstat(listener.path)
        if (there.st_dev, there.st_ino) == listener.inode:
            os.unlink(listener.path)


@contextlib.contextmanager
def _directory_locked(path: str) -> Generator[None]:
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # and so no file is left to lock
        yield
    finally:
        os.close(directory)


def passed(environment: MutableMapping[str, str]) -> list[Listener]:
    """Return the sockets that systemd has opened for this process (sd_listen_fds(3)); none without activation.

    What tells of them is taken out of *environment*. Raises OSError for one that mail cannot come in by.
    """
    pid, count = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    listeners: list[Listener] = []
    for descriptor in range(FIRST_PASSED, FIRST_PASSED + int(count)):
        os.set_inheritable(descriptor, False)
        given = socket.socket(fileno=descriptor)
        is_stream = given.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        is_stream = is_stream and given.type == socket.SOCK_STREAM
        if not is_stream or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, f"descriptor {descriptor} is not a stream socket that listens (Accept=no)")
        given.setblocking(False)
        listeners.append(Listener(given, passed=True))
    return listeners


def shown(listener: Listener) -> str:
    """Return the address for people and scripts, with the port that was free."""
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        path = listener.path or (os.fsdecode(name) if isinstance(name, bytes) else str(name))
        return f"unix:{path.replace(chr(0), '@')}"
    return str(TcpAddress(name[0], name[1]))
