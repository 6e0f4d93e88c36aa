"""The daemon's sockets, and what it tells systemd: without a daemon."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from maildir_async.daemon.locking import InUseError
from maildir_async.daemon.notify import READY, notify, reloading
from maildir_async.daemon.sockets import (
    Listener,
    TcpAddress,
    UnixAddress,
    bind,
    parse_address,
    passed,
    remove,
    shown,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/lmtp", UnixAddress("/run/lmtp")),
        ("unix:/run//./x/../lmtp", UnixAddress("/run/x/../lmtp")),  # x may be a link
        ("127.0.0.1:24", TcpAddress("127.0.0.1", 24)),
        ("mx.example:0", TcpAddress("mx.example", 0)),
        ("[::1]:24", TcpAddress("::1", 24)),
    ],
)
def test_addresses(text: str, address: object) -> None:
    """unix:PATH, HOST:PORT and [IPv6]:PORT are addresses, and are shown so."""
    assert parse_address(text) == address
    assert parse_address(str(parse_address(text))) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:a\0b",
        "unix:/" + "x" * 107,
        "host",
        ":24",
        "host:",
        "::1:24",
        "[::1]",
        "h:65536",
        "h:-1",
        "h:²",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match=r"unix:PATH|socket|brackets"):
        parse_address(text)


def test_of_several_that_bind_one_wins(tmp_path: Path) -> None:
    """Any number of daemons that start at once at a stale socket: one has it, the others are told."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    barrier = threading.Barrier(8)
    bound: list[Listener] = []
    failed: list[Exception] = []

    def start() -> None:
        barrier.wait(10)
        try:
            bound.extend(bind(UnixAddress(str(path)), 0o600))
        except InUseError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert (len(bound), len(failed)) == (1, 7)
    assert os.listdir(tmp_path) == ["socket"]
    remove(bound[0])
    bound[0].socket.close()
    assert os.listdir(tmp_path) == []


def test_there_is_a_socket_all_the_time(tmp_path: Path) -> None:
    """While a stale socket is replaced, what has its name is a socket, at any moment; in the end with its mode."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    gone: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            if not path.exists():
                gone.append("gone")

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for mode in (0o600, 0o660) * 50:
            (listener,) = bind(UnixAddress(str(path)), mode)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            listener.socket.close()  # stale again
    finally:
        over.set()
        looker.join(10)
    assert gone == []


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    """Who ends late leaves alone the socket that another has put there meanwhile."""
    path = tmp_path / "socket"
    (old,) = bind(UnixAddress(str(path)), 0o600)
    old.socket.close()
    (new,) = bind(UnixAddress(str(path)), 0o600)
    remove(old)
    assert path.exists()
    remove(new)
    new.socket.close()
    assert not path.exists()


def test_what_is_not_a_socket_stays(tmp_path: Path) -> None:
    """A file, a directory or a symbolic link in the way is an error, and stays."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("elsewhere")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path):
        with pytest.raises(FileExistsError):
            bind(UnixAddress(str(path)), 0o600)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_ports() -> None:
    """A free port is found and shown; one in use is told."""
    (listener,) = bind(TcpAddress("127.0.0.1", 0), 0)
    with listener.socket:
        host, _, port = shown(listener).rpartition(":")
        assert host == "127.0.0.1"
        with pytest.raises(InUseError):
            bind(TcpAddress(host, int(port)), 0)


def test_activation_is_for_the_process_it_names() -> None:
    """LISTEN_FDS with somebody else's LISTEN_PID, as a child inherits it, means nothing; and is not passed on."""
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "x", "HOME": "/"}
    assert passed(environment) == []
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket of systemd gets the state, be it a file or in the abstract name space."""
    name = f"@maildir-async-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0") if abstract else name)
        receiver.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify(READY)
        notify(reloading())
        assert receiver.recv(1000) == b"READY=1"
        assert receiver.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notify(READY)  # nobody listens any more


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY_SOCKET, or with one of another kind, nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY)
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    notify(READY)
