"""The daemon's limits, its signals and what it tells: descriptors, connections of one client, places for messages."""

import argparse
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from look import until
from maildir_async import GroupCommit
from maildir_async.daemon import descriptors
from maildir_async.daemon.descriptors import connections_of_one, fitted
from maildir_async.daemon.log import Log
from maildir_async.daemon.options import add_options, settings_of
from maildir_async.daemon.peers import Peers, key_of
from maildir_async.daemon.settings import Settings
from maildir_async.smtp import MaildirHandler
from test_serve import refused, serving


def settings(*options: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return settings_of(parser.parse_args(["--lmtp", "unix:/s", "--layout", "/{user}", "--hostname", "x", *options]))


@pytest.mark.parametrize(
    ("limit", "options", "connections", "in_flight"),
    [
        (65536, (), 1000, 256),
        (2000, ("--max-connections", "5000"), 2000 - 64 - 3 * 256, 256),
        (2000, ("--max-connections", "9000", "--workers", "2"), 2 * (2000 - 64 - 3 * 128), 256),
        (256, (), 256 - 64 - 3 * 32, 32),
        (70, (), 3, 1),
    ],
)
def test_connections_and_messages_have_their_descriptors(
    limit: int, options: tuple[str, ...], connections: int, in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more are taken on than there are descriptors for, one a connection and three a message; a line tells so."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        cut = fitted(settings(*options), Log(writer))
        os.set_blocking(reader, False)
        try:
            told = json.loads(os.read(reader, 4096))
        except BlockingIOError:
            told = None
    assert (cut.max_connections, cut.max_in_flight) == (connections, in_flight)
    assert (told is None) == (cut == settings(*options))
    if told is not None:
        assert (told["event"], told["max_connections"]) == ("too_few_descriptors", connections)
    assert connections_of_one(cut) * cut.workers >= cut.max_connections
    assert descriptors.BASE + connections_of_one(cut) + 3 * -(-in_flight // cut.workers) <= max(limit, 68)


def test_messages_under_way_keep_their_descriptors(tmp_path: Path) -> None:
    """With few descriptors and more clients than there are, those that are served deliver; the others are told 421."""
    few = 150

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))

    with serving(tmp_path, "--create", preexec_fn=limited) as daemon, ExitStack() as stack:
        told = daemon.wait_for("too_few_descriptors")
        clients = [stack.enter_context(daemon.client()) for _ in range(few)]
        greeted = [client for client in clients if client.reply().startswith("220 ")]
        assert len(greeted) == told["max_connections"]
        under_way = greeted[: told["max_in_flight"]]
        for number, client in enumerate(under_way):
            client.say("LHLO x")
            client.say("MAIL FROM:<>")
            assert client.say(f"RCPT TO:<u{number}@example.com>").startswith("250 ")
            assert client.say("DATA").startswith("354 ")
            client.send((b"x" * 70 + b"\r\n") * 10_000)  # long enough to need a file while it comes
        for client in under_way:
            client.send(b".\r\n")
        assert [client.reply()[:4] for client in under_way] == ["250 "] * len(under_way)
        assert daemon.events("cannot_accept") == []


def test_places_of_a_client() -> None:
    """Connections count by client in all workers; what has ended makes room, and so does a worker's death."""
    peers, other = Peers(2, 4, 2), Peers(2, 4, 2)
    other._map, other._cells = peers._map, peers._cells  # as after a fork
    peers.enter(0)
    other.enter(1)
    first = peers.take(7)
    assert first is not None
    assert other.take(7) is not None
    assert peers.take(7) is None
    assert other.take(8) is not None
    peers.give_back(first)
    assert peers.take(7) is not None
    assert other.take(7) is None
    peers.leave(1)
    assert peers.take(7) is not None
    assert [peers.take(key) is not None for key in (1, 2, 3)] == [True, True, False]  # it has four places


class Peer:
    """A socket with this other end."""

    def __init__(self, name: Any) -> None:
        self._name = name

    def getpeername(self) -> Any:
        if self._name is None:
            raise OSError("it has gone")
        return self._name


def test_who_is_one_client() -> None:
    """An IPv4 address is, also mapped; a /64 of IPv6 is; Unix sockets and who has gone are nobody."""

    def key(name: Any) -> int:
        peer: Any = Peer(name)
        return key_of(peer)

    assert key(("192.0.2.1", 1)) == key(("::ffff:192.0.2.1", 2, 0, 0)) != key(("192.0.2.2", 1))
    assert key(("2001:db8::1", 1, 0, 0)) == key(("2001:db8::2:3", 1, 0, 0)) != key(("2001:db8:0:1::1", 1, 0, 0))
    assert key(("fe80::1%lo", 1, 0, 1)) == key(("fe80::2", 1, 0, 1))
    assert key("") == key(b"") == key(None) == 0


def test_too_many_connections_of_one_client(tmp_path: Path) -> None:
    """Past the limit, over all workers, a client is told 421 4.7.0 (RFC 3463 §3.8); with an end there is room again."""
    options = ("--create", "--workers", "2", "--max-connections-per-address", "3")
    with serving(tmp_path, *options, address="127.0.0.1:0") as daemon, ExitStack() as stack:
        clients = [stack.enter_context(daemon.client()) for _ in range(3)]
        assert [client.reply()[:4] for client in clients] == ["220 "] * 3
        with daemon.client() as one_more:
            assert one_more.reply() == "421 4.7.0 Too many connections from your address"
            assert one_more.reply() == ""
        assert daemon.wait_for("too_many_connections")["of_one_address"] == 1
        assert clients[0].say("QUIT").startswith("221 ")

        def served() -> bool:
            with daemon.client() as client:
                return client.reply().startswith("220 ")

        until(served)


@pytest.mark.parametrize("seconds", ["0.05", "30"])
def test_a_message_waits_for_its_place(seconds: str, tmp_path: Path) -> None:
    """One that has no place waits as long as it may, and then is refused for now; with a place, it is taken."""
    with (
        serving(tmp_path, "--create", "--max-in-flight", "1", "--busy-wait", seconds) as daemon,
        daemon.client() as first,
        daemon.client() as second,
    ):
        first.envelope("alice@example.com")
        second.envelope("bob@example.com")
        assert first.say("DATA").startswith("354 ")
        second.send(b"DATA\r\n")
        if seconds == "0.05":
            assert second.reply().startswith("451 4.3.2 ")
        first.send(b"x\r\n.\r\n")
        assert first.reply().startswith("250 ")
        if seconds == "30":
            assert second.reply().startswith("354 ")
            second.send(b"x\r\n.\r\n")
            assert second.reply().startswith("250 ")


@pytest.mark.parametrize(
    ("value", "error"), [(1, TypeError), (timedelta(-1), ValueError), (timedelta(1), ValueError)], ids=str
)
def test_what_is_no_busy_wait(value: Any, error: type[Exception]) -> None:
    """It is a timedelta, not negative, and goes with a GroupCommit that waits."""
    with pytest.raises(error, match="busy_wait"):
        MaildirHandler("/srv/mail", busy_wait=value, commit=GroupCommit(wait=False))


def test_signals_that_end_nobody(tmp_path: Path) -> None:
    """SIGUSR1 has the main process write a line; what else nobody ends a daemon by, ends none of its processes."""
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE, signal.SIGVTALRM, signal.SIGPROF]
    numbers += [signal.SIGIO, signal.SIGPWR, signal.SIGSTKFLT, signal.SIGRTMIN]
    with serving(tmp_path, "--create", "--workers", "2", "--metrics", f"unix:{tmp_path}/metrics") as daemon:
        daemon.wait_for("ready")
        assert stat.S_IMODE((tmp_path / "metrics").stat().st_mode) == 0o660
        pids = daemon.workers
        for number in numbers:
            for pid in (daemon.process.pid, *pids):
                os.kill(pid, number)
        told = daemon.wait_for("statistics")
        assert (told["workers"], told["connections"], told["delivered"]) == (2, 0, 0)
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
        assert daemon.workers == pids
        assert daemon.stop() == 0
        assert daemon.events("worker_died") == daemon.events("metrics_died") == []
    assert not (tmp_path / "metrics").exists()


def test_a_second_daemon_with_the_pidfile(tmp_path: Path) -> None:
    """While one lives a second ends with 75 and a line that says why, and takes nothing from the first."""
    pidfile = tmp_path / "pid"
    with serving(tmp_path, "--create", "--pidfile", str(pidfile)) as daemon:
        daemon.wait_for("ready")
        arguments = ("--lmtp", f"unix:{tmp_path}/second", "--layout", "/srv/{user}", "--pidfile", str(pidfile))
        second = refused(*arguments)
        assert second.returncode == os.EX_TEMPFAIL
        assert "pidfile" in second.stderr
        assert int(pidfile.read_text()) == daemon.process.pid
        daemon.signal(signal.SIGKILL)
        daemon.process.wait(30)
    with serving(tmp_path, "--create", "--pidfile", str(pidfile)) as daemon:
        daemon.wait_for("ready")
        assert int(pidfile.read_text()) == daemon.process.pid
        assert daemon.stop() == 0
    assert not pidfile.exists()


def test_connects_and_disconnects_are_told_at_debug(tmp_path: Path) -> None:
    """With --log-level debug there is a line for each; with error there is none of a delivery."""
    with serving(tmp_path, "--create", "--log-level", "debug", address="127.0.0.1:0") as daemon:
        with daemon.client() as client:
            client.envelope("alice@example.com")
            client.data()
            assert daemon.wait_for("connected")["peer"] == "127.0.0.1"
            client.say("QUIT")
        assert daemon.wait_for("disconnected")["level"] == "debug"


def test_the_journal_is_told_priorities(tmp_path: Path) -> None:
    """Where JOURNAL_STREAM names stderr each line begins with its priority, as sd-daemon(3) has it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        for stream, begins in ((f"{found.st_dev}:{found.st_ino}", ["<6>{", "<4>{", "<3>{"]), ("1:1", ["{"] * 3)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("JOURNAL_STREAM", stream)
                log = Log(theirs.fileno())
                for level in ("info", "warning", "error", "debug"):
                    log.event(level, "x")
            lines = ours.recv(4096).decode().splitlines()
            assert [line.partition('"')[0] for line in lines] == begins


def test_a_pipe_that_fills_meanwhile_holds_nobody_up() -> None:
    """The main process writes without waiting, though another process has taken the room since it looked."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0), pytest.MonkeyPatch.context() as patch:
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)

        class Ready:
            def register(self, *_: object) -> None: ...

            def poll(self, _: int) -> list[int]:
                return [1]

        patch.setattr("select.poll", Ready)
        Log(writer).event("info", "x")


def test_who_holds_locks_holds_up_no_daemon(tmp_path: Path) -> None:
    """With its directory locked it starts; at SIGTERM clients are told at once, though the socket cannot be removed."""
    directory = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    with serving(tmp_path, "--create") as daemon, daemon.client() as client:
        client.envelope("alice@example.com")
        lock = os.open(tmp_path / "socket.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon.signal(signal.SIGTERM)
        assert client.reply().startswith("421 4.3.2 ")
        assert daemon.process.wait(30) == 0
        os.close(lock)
    os.close(directory)


def test_systemd_hears_of_a_daemon_that_works(tmp_path: Path) -> None:
    """It is told when all workers serve, with a status, and then again and again that they do."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        with serving(tmp_path, "--create", environment=environment) as daemon:
            told = [systemd.recv(100) for _ in range(5)]
            assert b"READY=1\nSTATUS=1 workers serve" in told
            assert b"WATCHDOG=1" in told[3:]
            assert daemon.stop() == 0


def test_a_worker_that_dies_young_is_not_healthy(tmp_path: Path) -> None:
    """While a worker dies again and again /healthz is 503, and says which."""
    with serving(tmp_path, "--create", "--metrics", "127.0.0.1:0") as daemon:
        url = f"http://{daemon.wait_for('ready')['metrics']}/healthz"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200
        os.kill(min(daemon.workers), signal.SIGKILL)
        daemon.wait_for("worker_died")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url, timeout=30)
        with caught.value as error:
            assert (error.status, error.read()) == (503, b"worker 0 dies again and again\n")
