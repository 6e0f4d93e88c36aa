"""The sockets that mail comes in by: their addresses, made, taken over from systemd, removed.

A Unix socket is made beside its place and renamed into it: clients find the old one or the new, which listens already
and has its mode. Whether anybody listens at the old one is asked with a lock held, so that of two daemons started at
once one gives way.

``[::]:PORT`` is for IPv4 too, as Postfix and systemd have it, unless an IPv4 address with that port is listened at
beside it.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from maildir_async.daemon.locking import InUseError, locked
from maildir_async.daemon.log import Log
from maildir_async.disk.paths import absolute

__all__ = [
    "BACKLOG",
    "Address",
    "Listener",
    "PassedAddress",
    "TcpAddress",
    "UnixAddress",
    "all_shown",
    "bind",
    "parse_address",
    "parse_listening",
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


#: What an address of a host name may fail with where others of the same name do not: this machine lacks it.
_NOT_HERE: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

#: Seconds that the end waits to remove the socket from its place.
REMOVE_S: Final = 0.5


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
class PassedAddress:
    """``systemd:NAME``: what systemd has opened under that name (FileDescriptorName= in systemd.socket(5))."""

    name: str

    def __str__(self) -> str:
        return f"systemd:{self.name}"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens.

    Attributes:
        socket: itself; it does not block.
        path: where it is to be removed from in the end; None for TCP, and for what systemd has made.
        inode: device and inode of what was put there.
        passed: whether systemd has made it, and goes on listening when we are gone.
        name: what systemd calls it then.
        number: which of the settings' listeners it is of.

    """

    socket: socket.socket
    path: str | None = None
    inode: tuple[int, int] | None = None
    passed: bool = False
    name: str = ""
    number: int = 0


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
    try:
        if "\0" in host:
            raise ValueError(f"not the name of a host: {host!r}")
        host.encode("idna")  # as getaddrinfo does, for which a label that is empty or too long is no name
    except UnicodeError:
        raise ValueError(f"not the name of a host: {host!r}") from None
    return TcpAddress(host, int(port))


def parse_listening(text: str) -> Address | PassedAddress:
    """Return the address that mail is to come in at. ValueError if *text* is none."""
    if text.startswith("systemd:") and text != "systemd:":
        return PassedAddress(text.removeprefix("systemd:"))
    return parse_address(text)


def bind(
    address: Address,
    mode: int,
    *,
    owner: tuple[int, int] | None = None,
    beside: Sequence[Address] = (),
    log: Log | None = None,
) -> list[Listener]:
    """Listen at *address*. Blocks; a host name is looked up, and every address it has on this machine is listened at.

    Args:
        address: where.
        mode: permission bits of a Unix socket; who may write to it may connect.
        owner: uid and gid of a Unix socket, if they are to be others than this process's.
        beside: all that the daemon listens at. If an IPv4 address with the same port is among it, ``[::]`` is for IPv6
            alone: the system does not let both have it.
        log: told of an address of a host name that this machine does not have.

    Raises:
        InUseError: somebody else listens there.
        OSError: it cannot be done: no such directory, no right to it, a file in the way.

    """
    if isinstance(address, UnixAddress):
        return [_bind_unix(address.path, mode, owner)]
    listeners: list[Listener] = []
    missing: OSError | None = None
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, sockaddr in dict.fromkeys(found):
            is_dual = family == socket.AF_INET6 and sockaddr[0] == "::" and not _has_ipv4(beside, address.port)
            try:
                made = _listen(family, sockaddr, is_dual=is_dual)
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
                missing = exc
                if log is not None:
                    log.event("warning", "cannot_listen", address=_shown(sockaddr), error=str(exc))
                continue
            listeners.append(Listener(made))
        if missing is not None and not listeners:
            raise missing
    except OSError as exc:
        for listener in listeners:
            listener.socket.close()
        if exc.errno == errno.EADDRINUSE:
            raise InUseError(f"somebody listens at {address} already") from exc
        raise
    return listeners


def _listen(family: int, sockaddr: tuple[Any, ...], *, is_dual: bool) -> socket.socket:
    is_dual = is_dual and socket.has_dualstack_ipv6()
    # All of the address: that of IPv6 has the zone at its end.
    made = socket.create_server(sockaddr, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
    made.setblocking(False)
    return made


def _has_ipv4(addresses: Sequence[Address], port: int) -> bool:
    return any(isinstance(other, TcpAddress) and other.port == port and _is_ipv4(other.host) for other in addresses)


def _is_ipv4(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return host == "localhost"


def _bind_unix(path: str, mode: int, owner: tuple[int, int] | None) -> Listener:
    with locked(path):
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
            if owner is not None:
                os.chown(new, *owner, follow_symlinks=False)
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
    with contextlib.suppress(OSError, InUseError), locked(listener.path, REMOVE_S):
        there = os.lstat(listener.path)
        if (there.st_dev, there.st_ino) == listener.inode:
            os.unlink(listener.path)


def passed(environment: MutableMapping[str, str]) -> list[Listener]:
    """Return the sockets that systemd has opened for this process (sd_listen_fds(3)); none without activation.

    What tells of them is taken out of *environment*. Raises OSError for one that mail cannot come in by.
    """
    pid, count = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not (count.isascii() and count.isdecimal()):
        return []
    listeners: list[Listener] = []
    for index in range(int(count)):
        descriptor = FIRST_PASSED + index
        os.set_inheritable(descriptor, False)
        given = socket.socket(fileno=descriptor)
        is_stream = given.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        is_stream = is_stream and given.type == socket.SOCK_STREAM
        if not is_stream or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, f"descriptor {descriptor} is not a stream socket that listens (Accept=no)")
        given.setblocking(False)
        listeners.append(Listener(given, passed=True, name=names[index] if index < len(names) else ""))
    return listeners


def shown(listener: Listener) -> str:
    """Return the address for people and scripts, with the port that was free."""
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        path = listener.path or (os.fsdecode(name) if isinstance(name, bytes) else str(name))
        return f"unix:{path.replace(chr(0), '@')}"
    return _shown(name)


def all_shown(listener: Listener) -> list[str]:
    """Return the addresses that *listener* is at: two for ``[::]`` where that is for IPv4 too."""
    first = shown(listener)
    given = listener.socket
    if given.family == socket.AF_INET6 and not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        name = given.getsockname()
        if name[0] == "::":
            return [first, f"0.0.0.0:{name[1]}"]
    return [first]


def _shown(name: tuple[Any, ...]) -> str:
    host, port = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)  # with the zone
    return str(TcpAddress(host, int(port)))
