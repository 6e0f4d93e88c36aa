"""The daemon's lock files and its pidfile: what another user, or another daemon, can do to them."""

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest

from maildir_async.daemon import locking
from maildir_async.daemon.locking import InUseError
from maildir_async.daemon.pidfile import Pidfile
from maildir_async.daemon.sockets import TcpAddress, UnixAddress, all_shown, bind, parse_address, remove


def test_a_lock_on_the_directory_holds_nobody_up(tmp_path: Path) -> None:
    """Any user may flock(2) a directory that he may read: neither start nor end waits for that."""
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    (listener,) = bind(UnixAddress(str(tmp_path / "socket")), 0o600)
    remove(listener)
    listener.socket.close()
    os.close(directory)
    assert os.listdir(tmp_path) == []


def test_a_lock_of_our_own_that_is_held_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that cannot have the lock is told who has it; an end leaves the socket, and goes on."""
    monkeypatch.setattr(locking.locked.__wrapped__, "__defaults__", (0.02,))  # type: ignore[attr-defined]
    path = str(tmp_path / "socket")
    (listener,) = bind(UnixAddress(path), 0o600)
    held = locking.opened(path)
    assert stat.S_IMODE(os.fstat(held).st_mode) == 0o600
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InUseError, match=r"socket\.lock"):
        bind(UnixAddress(path), 0o600)
    remove(listener)
    listener.socket.close()
    assert sorted(os.listdir(tmp_path)) == ["socket", "socket.lock"]
    os.close(held)


@pytest.mark.parametrize("trap", ["link", "fifo", "readable"])
def test_a_trap_where_the_lock_is_to_be_is_told(trap: str, tmp_path: Path) -> None:
    """A symbolic link is not followed, and what another could lock, or wait in, is no lock."""
    lock = tmp_path / "socket.lock"
    if trap == "link":
        lock.symlink_to(tmp_path / "elsewhere")
    elif trap == "fifo":
        os.mkfifo(lock, 0o600)
    else:
        lock.touch(0o644)
    with pytest.raises(OSError, match="lock"):
        bind(UnixAddress(str(tmp_path / "socket")), 0o600)
    assert os.listdir(tmp_path) == ["socket.lock"]


def test_a_pidfile_has_one_owner(tmp_path: Path) -> None:
    """While the owner lives nobody else has it, not even by a child of the owner; then it is replaced."""
    path = tmp_path / "pid"
    ready, theirs = os.pipe()
    end, our_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(our_end)
        Pidfile(str(path))
        if os.fork() == 0:  # as the workers, which outlive a main process that is killed
            os.read(end, 1)
            os._exit(0)
        os.write(theirs, b"x")
        os.read(end, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        with pytest.raises(InUseError, match="pid"):
            Pidfile(str(path))
        assert path.read_text() == f"{child}\n"
        os.kill(child, 9)
        os.waitpid(child, 0)
        pidfile = Pidfile(str(path))
    finally:
        os.close(our_end)  # which ends all that there are still
        for descriptor in (ready, theirs, end):
            os.close(descriptor)
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    pidfile.remove()
    assert os.listdir(tmp_path) == []


def test_a_pidfile_follows_no_link(tmp_path: Path) -> None:
    """A link at PATH.new, which anybody may have put there, is replaced; one at PATH is refused."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "pid.new").symlink_to(victim)
    Pidfile(str(tmp_path / "pid")).remove()
    (tmp_path / "pid").symlink_to(victim)
    with pytest.raises(FileExistsError):
        Pidfile(str(tmp_path / "pid"))
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["pid", "victim"]


def test_a_pidfile_of_another_stays(tmp_path: Path) -> None:
    """What has taken its place meanwhile is not removed."""
    path = tmp_path / "pid"
    pidfile = Pidfile(str(path))
    path.unlink()
    path.write_text("1\n")
    pidfile.remove()
    assert path.read_text() == "1\n"


def found(monkeypatch: pytest.MonkeyPatch, *names: tuple[socket.AddressFamily, str]) -> None:
    """Have every host name stand for these."""
    port = {socket.AF_INET: (0,), socket.AF_INET6: (0, 0, 0)}
    answer = [(family, socket.SOCK_STREAM, 6, "", (name, *port[family])) for family, name in names]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)


def test_a_name_is_listened_at_where_this_machine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` also stands for ``::1`` where there is none; one of its addresses is enough, none is an error."""
    gone = (socket.AF_INET, "192.0.2.1")  # RFC 5737: nobody's
    found(monkeypatch, gone, (socket.AF_INET, "127.0.0.1"))
    (listener,) = bind(TcpAddress("mx.example", 0), 0)
    assert listener.socket.getsockname()[0] == "127.0.0.1"
    listener.socket.close()
    found(monkeypatch, gone)
    with pytest.raises(OSError, match="assign"):
        bind(TcpAddress("mx.example", 0), 0)


def link_local() -> str | None:
    """Return a link-local address of this machine, with its zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for digits, *_, scope, _, name in map(str.split, lines):
        if int(scope, 16) & 0x20:
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{name}"
    return None


def test_a_zone_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """``[fe80::1%eth0]:25`` is listened at on that interface (RFC 4007 §11)."""
    bound: list[tuple[object, ...]] = []

    def listening(address: tuple[object, ...], **_: object) -> socket.socket:
        bound.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_server", listening)
    address = parse_address("[fe80::1%lo]:2525")
    for listener in bind(address, 0):
        listener.socket.close()
    assert bound == [("fe80::1", 2525, 0, socket.if_nametoindex("lo"))]


@pytest.mark.skipif(link_local() is None, reason="NOT TESTED: there is no link-local address")
def test_a_zone_is_shown() -> None:
    """What is listened at is shown with its zone."""
    host = link_local() or ""
    (listener,) = bind(TcpAddress(host, 0), 0)
    with listener.socket:
        assert all_shown(listener) == [f"[{host}]:{listener.socket.getsockname()[1]}"]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="NOT TESTED: there is no IPv6")
def test_the_ipv6_wildcard_is_for_ipv4_too() -> None:
    """``[::]:25`` takes IPv4 as well, and says so; not if an IPv4 address with its port is listened at beside it."""
    (listener,) = bind(TcpAddress("::", 0), 0)
    with listener.socket:
        port = listener.socket.getsockname()[1]
        assert all_shown(listener) == [f"[::]:{port}", f"0.0.0.0:{port}"]
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass
    both = [TcpAddress("::", port), TcpAddress("0.0.0.0", port)]
    listeners = [listener for address in both for listener in bind(address, 0, beside=both)]
    assert [text for each in listeners for text in all_shown(each)] == [f"[::]:{port}", f"0.0.0.0:{port}"]
    for each in listeners:
        each.socket.close()
