"""How the daemon is: beats, health, metrics by HTTP, the watchdog. Without a daemon."""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from look import until
from maildir_async.daemon import board as boards
from maildir_async.daemon import health, watch
from maildir_async.daemon.board import Board
from maildir_async.daemon.children import Child
from maildir_async.daemon.health import serve_metrics
from maildir_async.daemon.log import Log
from maildir_async.daemon.metrics import Counts, Metrics
from maildir_async.daemon.notify import watchdog_s
from maildir_async.daemon.sockets import UnixAddress, bind
from maildir_async.daemon.watch import Watch

pytest.importorskip("prometheus_client")


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def asked(path: Path, what: str, method: str = "GET") -> tuple[int, bytes, str]:
    """Return status, body, and length that is announced."""
    connection = Connection(path)
    try:
        connection.request(method, what)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Content-Length", "")
    finally:
        connection.close()


@contextmanager
def answering(path: Path, board: Board, counts: Counts) -> Iterator[None]:
    (listener,) = bind(UnixAddress(str(path)), 0o600)
    listener.socket.setblocking(True)
    life, our_end = os.pipe()
    thread = threading.Thread(target=serve_metrics, args=(listener.socket, counts, board, life))
    thread.start()
    try:
        yield
    finally:
        os.close(our_end)
        thread.join(30)
        os.close(life)


@pytest.fixture
def board() -> Board:
    """One worker, which is there and answers."""
    made = Board(1)
    made.born(0, is_failing=False)
    made.enter(0)
    made.beat(0)
    made.ready()
    return made


def test_what_is_answered(tmp_path: Path, board: Board) -> None:
    """Three paths there are, any other is 404; HEAD has no body, and anything but it and GET is 405."""
    path = tmp_path / "metrics"
    with answering(path, board, Counts(1)):
        assert asked(path, "/healthz")[:2] == asked(path, "/readyz")[:2] == (200, b"ok\n")
        status, body, _ = asked(path, "/metrics")
        assert status == 200
        assert b"maildir_async_build_info" in body
        assert [asked(path, other)[0] for other in ("/", "/favicon.ico", "/healthz/", "/metricsx")] == [404] * 4
        assert asked(path, "/healthz", "HEAD") == (200, b"", "3")
        assert asked(path, "/metrics", "HEAD")[:2] == (200, b"")
        assert asked(path, "/metrics", "POST")[0] == 405
        board.failing(0)
        status, body, _ = asked(path, "/healthz")
        assert (status, body) == (503, b"worker 0 dies again and again\n")
        assert asked(path, "/readyz")[0] == 200
        board.end()
        assert asked(path, "/readyz")[0] == 503


def test_who_is_idle_costs_no_thread_for_long(tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections say nothing, there are a few threads, and who asks is answered."""
    monkeypatch.setattr(health, "MAX_REQUESTS", 4)
    path, before = tmp_path / "metrics", threading.active_count()
    with answering(path, board, Counts(1)):
        idle = [Connection(path) for _ in range(40)]
        for connection in idle:
            connection.connect()
        assert asked(path, "/healthz")[0] == 200
        until(lambda: threading.active_count() - before <= 2 + 4, 5)  # before they have had their time
        for connection in idle:
            connection.close()


def test_a_request_that_trickles_ends(tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has its time in all, not for each of its bytes."""
    monkeypatch.setattr(health, "REQUEST_S", 0.1)
    path = tmp_path / "metrics"
    with answering(path, board, Counts(1)), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        with pytest.raises(OSError):  # noqa: PT011 which one depends on the moment
            while True:
                client.send(b"x")
                time.sleep(0.01)


def test_a_loop_that_stands_still_is_not_healthy(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a beat of late a worker ails, and alone makes the daemon not ready; one just forked has its time."""
    assert board.ailing() == []
    assert board.is_ready
    monkeypatch.setattr(boards, "HUNG_S", 0.0)
    assert board.ailing() == ["worker 0 does not answer"]
    assert not board.is_ready


def test_a_worker_that_lives_on_has_not_failed(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash loop, health comes back with a worker that lives for a while."""
    board.failing(0)
    monkeypatch.setattr(boards, "YOUNG_S", 0.0)
    assert board.ailing() == ["worker 0 dies again and again"]  # for as long as there is none
    monkeypatch.undo()
    board.born(0, is_failing=True)
    assert board.ailing() == ["worker 0 dies again and again"]
    monkeypatch.setattr(boards, "YOUNG_S", 0.0)
    assert board.ailing() == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the main process reads, to be set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def looked(watching: Watch, clock: list[float], child: Child, seconds: float, step: float = watch.LOOK_S) -> None:
    for _ in range(round(seconds / step)):
        clock[0] += step
        watching.look([child])


def events(reader: int) -> list[str]:
    os.set_blocking(reader, False)
    try:
        lines = os.read(reader, 2**20).decode().splitlines()
    except BlockingIOError:
        return []
    return [line.partition('"event": "')[2].partition('"')[0] for line in lines]


def test_a_worker_that_hangs_is_told_and_then_killed(
    board: Board, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once told after ten seconds, killed after a minute; not if it beats, and not for a time in which nothing ran."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *told: killed.append(told))
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0), open(writer, "wb", buffering=0):
        watching = Watch(board, Log(writer))
        child = Child("worker", lambda: 0, 0, pid=12345, fields={"worker": 0})
        looked(watching, clock, child, 8)
        board.beat(0)
        looked(watching, clock, child, 8)
        looked(watching, clock, child, 1000, step=500)  # asleep
        looked(watching, clock, child, 8)
        assert events(reader) == []
        looked(watching, clock, child, 40)
        assert events(reader) == ["worker_hangs"]
        assert killed == []
        looked(watching, clock, child, 12)
        assert killed == [(12345, signal.SIGKILL)]
        assert events(reader) == ["worker_killed"]


def test_the_watchdog_is_fed_while_loops_come_round(
    board: Board, clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At half the time that systemd gives it hears of us; nothing while a loop hangs (sd_watchdog_enabled(3))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "8000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        watching = Watch(board, Log(2, level="critical"))
        child = Child("worker", lambda: 0, 0, pid=12345)
        looked(watching, clock, child, 8)
        assert [systemd.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
        looked(watching, clock, child, 12)
        while True:
            try:
                systemd.recv(100)
            except BlockingIOError:
                break
        looked(watching, clock, child, 16)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        board.beat(0)
        looked(watching, clock, child, 8)
        assert systemd.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(("time_us", "pid"), [("", ""), ("0", ""), ("x", ""), ("1000000", "1")])
def test_no_watchdog(time_us: str, pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time, or if it is meant for another process, there is none."""
    monkeypatch.setenv("WATCHDOG_USEC", time_us)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_s() is None


def test_replies_are_counted_by_class(tmp_path: Path, board: Board) -> None:
    """A reply of several lines is one, several replies in one piece are several."""
    counts = Counts(1)
    tally = Metrics(counts, 0)
    for reply in ("250-SIZE", "250 HELP", b"354 go on", "250 2.0.0 a\r\n451 4.3.0 b", "550-no\r\n550 no", ""):
        tally.replied(reply)
    counts.restarted(0)
    with answering(tmp_path / "metrics", board, counts):
        lines = asked(tmp_path / "metrics", "/metrics")[1].decode().splitlines()
    replies = [line.partition("{")[2] for line in lines if line.startswith("maildir_async_replies_total")]
    assert replies == ['reply="2xx"} 2.0', 'reply="3xx"} 1.0', 'reply="4xx"} 1.0', 'reply="5xx"} 1.0']
    assert "maildir_async_worker_restarts_total 1.0" in lines
