"""``maildir-async serve``: the command as a site runs it, with its processes, its sockets and its signals."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import pytest

import maildir_async
from look import until
from support import contents, some, state_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: serve is for Linux")

ENVIRONMENT: Final = os.environ | {
    "PYTHONPATH": str(Path(maildir_async.__file__).parents[1]),
    "PYTHONWARNINGS": "error",
}
MAIL: Final = b"Subject: x\r\n\r\nbody\r\n"


class Client:
    """Says lines to a server, and gets replies."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._socket.settimeout(30)
        self._socket.connect(address)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
        self._socket.close()

    def reset(self) -> None:
        """Go, with a reset for a farewell (linger for no time at all)."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._file.close()
        self._socket.close()

    def reply(self) -> str:
        """Return the next reply's last line; "" at the end of the connection."""
        while True:
            line = self._file.readline().decode()
            if line[3:4] != "-":
                return line.rstrip("\r\n")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def say(self, line: str) -> str:
        self.send(line.encode() + b"\r\n")
        return self.reply()

    def envelope(self, *recipients: str, greeting: str = "LHLO") -> list[str]:
        assert self.reply().startswith("220 ")
        self.say(f"{greeting} client.example")
        return [self.say("MAIL FROM:<a@example.com>"), *(self.say(f"RCPT TO:<{to}>") for to in recipients)]

    def data(self, message: bytes = MAIL, *, replies: int = 1) -> list[str]:
        assert self.say("DATA").startswith("354 ")
        self.send(message + b".\r\n")
        return [self.reply() for _ in range(replies)]


class Daemon:
    """A running ``serve``."""

    def __init__(self, process: subprocess.Popen[Any], log: Path) -> None:
        self.process = process
        self._log = log

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Return what it has logged: each line is a JSON object."""
        lines = self._log.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if name in ("", event["event"])]

    def wait_for(self, name: str, count: int = 1) -> dict[str, Any]:
        """Return the last event of that name, when there are so many."""
        until(lambda: len(self.events(name)) >= count or self.process.poll() is not None)
        return self.events(name)[count - 1]

    @property
    def address(self) -> str | tuple[str, int]:
        shown = self.wait_for("ready")["listening"][0]
        if shown.startswith("unix:"):
            return str(shown.removeprefix("unix:"))
        host, _, port = shown.rpartition(":")
        return host, int(port)

    def client(self) -> Client:
        return Client(self.address)

    @property
    def workers(self) -> set[int]:
        """The children of the main process."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(map(int, path.read_text().split()))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(
    directory: Path,
    *options: str,
    address: str | None = "",
    protocol: str = "--lmtp",
    layout: bool = True,
    environment: dict[str, str] | None = None,
    **popen: Any,
) -> Iterator[Daemon]:
    """Run the command until the block ends, whatever it has become by then."""
    log = directory / "log"
    where = [f"unix:{directory}/socket"] if address == "" else [address] if address else []
    what = ["--layout", f"{directory}/mail/{{user}}"] if layout else []
    (directory / "mail").mkdir(exist_ok=True)  # which is the site's to make
    command = [sys.executable, "-m", "maildir_async", "serve", protocol, *where, *what, "--hostname", "mx.example"]
    command += [] if "--user" in options else ["--allow-root"]
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            [*command, *options], env=ENVIRONMENT | (environment or {}), stderr=stderr, text=True, **popen
        )
    daemon = Daemon(process, log)
    try:
        yield daemon
    finally:
        children = daemon.workers if process.poll() is None else set[int]()
        process.kill()
        process.wait(30)
        for pid in children:
            until(lambda pid=pid: state_of(pid) == "Z")  # type: ignore[misc]  # a lambda with a default


def mail(directory: Path, user: str) -> list[bytes]:
    found = contents(directory / "mail" / user)
    assert found.get("tmp", []) == []
    return found.get("new", [])


def refused(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line that does not come to serve anything."""
    return subprocess.run(
        [sys.executable, "-m", "maildir_async", "serve", "--allow-root", *arguments],
        env=environment or ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_delivers_by_lmtp(tmp_path: Path) -> None:
    """One reply for each recipient, one file for all, one line of log for each; SIGTERM ends it with 0."""
    with serving(tmp_path, "--create") as daemon:
        with daemon.client() as client:
            assert client.envelope("alice@example.com", "bob+x@example.com", "../c@example.com")[1:] == [
                "250 2.1.5 OK",
                "250 2.1.5 OK",
                "550 5.1.1 No such user here",
            ]
            replies = client.data(replies=2)
            assert [reply[:9] for reply in replies] == ["250 2.0.0"] * 2
            assert client.say("QUIT").startswith("221 ")
        assert daemon.stop() == 0
        told = daemon.events("delivered")
        assert [(event["to"], event["reply"]) for event in told] == [
            ("alice@example.com", replies[0]),
            ("bob+x@example.com", replies[1]),
        ]
        assert told[0]["durability"] == "full"
        assert [event["to"] for event in daemon.events("refused")] == ["../c@example.com"]
        assert "body" not in (tmp_path / "log").read_text()
    assert [message.endswith(b"Subject: x\n\nbody\n") for message in mail(tmp_path, "alice")] == [True]
    assert mail(tmp_path, "alice") == mail(tmp_path, "bob")
    assert not (tmp_path / "socket").exists()


def test_delivers_by_smtp_on_a_port(tmp_path: Path) -> None:
    """SMTP on loopback, with one reply for a message, and every switch for what is written in front of it."""
    switches = ("--no-return-path", "--no-delivered-to", "--no-received", "--newline", "keep", "--create")
    with serving(tmp_path, *switches, address="127.0.0.1:0", protocol="--smtp") as daemon:
        with daemon.client() as client:
            client.envelope("alice@example.com", "bob@example.com", greeting="EHLO")
            assert client.data() == [daemon.wait_for("delivered", 2)["reply"]]
        assert daemon.stop() == 0
    assert mail(tmp_path, "alice") == mail(tmp_path, "bob") == [MAIL]


@pytest.mark.parametrize("option", ["", "--per-recipient-headers"])
def test_recipients_are_named_where_there_are_several_only_if_asked_for(option: str, tmp_path: Path) -> None:
    """Each copy names its own recipient and no other with --per-recipient-headers; without, there is one for all."""
    names = ("alice@example.com", "bob@example.com")
    with serving(tmp_path, "--create", "--original-to", *filter(None, [option])) as daemon:
        with daemon.client() as client:
            client.envelope(*names)
            assert [reply[:4] for reply in client.data(replies=2)] == ["250 "] * 2
        daemon.stop()
    for name in names:
        (message,) = mail(tmp_path, name.partition("@")[0])
        header = [f"Delivered-To: {name}", f"X-Original-To: {name}"] if option else []
        assert [line for line in message.decode().splitlines() if "-To: " in line] == header
        assert [other for other in names if other in message.decode()] == ([name] if option else [])


def test_without_create_a_user_exists_if_the_maildir_does(tmp_path: Path) -> None:
    """Whoever has a maildir is a user; nobody else is."""
    for name in ("cur", "new", "tmp"):
        (tmp_path / "mail/alice" / name).mkdir(parents=True)
    with serving(tmp_path) as daemon, daemon.client() as client:
        assert [reply[:3] for reply in client.envelope("alice@example.com", "bob@example.com")] == ["250", "250", "550"]
        assert client.data()[0].startswith("250 ")


def test_sighup_reads_the_users_again(tmp_path: Path) -> None:
    """SIGHUP takes a new list in, in every worker; a bad one is logged, and the old one stays."""
    users = tmp_path / "users"
    users.write_text("alice@example.com\n")
    with serving(tmp_path, "--users", str(users), "--workers", "2") as daemon:

        def known(*names: str) -> list[str]:
            with daemon.client() as client:
                return [reply[:3] for reply in client.envelope(*(f"{name}@example.com" for name in names))[1:]]

        assert known("alice", "bob") == ["250", "550"]
        users.write_text("bob@example.com\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded", 2)
        assert [known("alice", "bob") for _ in range(6)] == [["550", "250"]] * 6
        users.write_text("carol@example.com\nno address\n")
        daemon.signal(signal.SIGHUP)
        assert "line 2" in daemon.wait_for("reload_failed")["error"]
        assert known("alice", "bob", "carol") == ["550", "250", "550"]


def test_a_map(tmp_path: Path) -> None:
    """--map has a maildir for each address."""
    (tmp_path / "map").write_text(f"alice@example.com {tmp_path}/mail/somewhere else\n")
    with serving(tmp_path, "--map", str(tmp_path / "map"), layout=False) as daemon, daemon.client() as client:
        assert [reply[:3] for reply in client.envelope("alice@example.com", "bob@example.com")[1:]] == ["250", "550"]
        assert client.data()[0].startswith("250 ")
    assert len(mail(tmp_path, "somewhere else")) == 1


def test_sigterm_drains(tmp_path: Path) -> None:
    """At SIGTERM idle clients get 421; a message that is being sent is received, stored and answered; then it ends."""
    with serving(tmp_path, "--create", "--workers", "1") as daemon:
        with daemon.client() as idle, daemon.client() as busy:
            idle.envelope("bob@example.com")
            busy.envelope("alice@example.com")
            assert busy.say("DATA").startswith("354 ")
            busy.send(MAIL)
            daemon.signal(signal.SIGTERM)
            assert idle.reply().startswith("421 4.3.2 ")
            assert idle.reply() == ""
            until(lambda: not (tmp_path / "socket").exists())
            assert daemon.process.poll() is None
            busy.send(b".\r\n")
            assert busy.reply().startswith("250 2.0.0 ")
            assert busy.reply().startswith("421 4.3.2 ")
            assert busy.reply() == ""
        assert daemon.process.wait(30) == 0
    assert len(mail(tmp_path, "alice")) == 1


def test_a_worker_that_ends_alone_sends_nobody_away_who_waits(tmp_path: Path) -> None:
    """SIGTERM to one worker drains that one: its idle clients get 421, its messages are finished, and who waits at the
    socket is served by another.
    """
    with serving(tmp_path, "--create", "--workers", "2") as daemon, contextlib.ExitStack() as stack:
        daemon.wait_for("ready")
        workers = daemon.workers

        def served() -> tuple[Client, int]:
            client = stack.enter_context(daemon.client())
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
            return client, daemon.wait_for("delivered", len(mail(tmp_path, "alice")))["pid"]

        idle, ending = served()
        busy, pid = served()
        while pid != ending:
            busy, pid = served()
        assert busy.say("MAIL FROM:<>").startswith("250 ")
        assert busy.say("RCPT TO:<bob@example.com>").startswith("250 ")
        assert busy.say("DATA").startswith("354 ")
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
            until(lambda pid=pid: state_of(pid) == "T")  # type: ignore[misc]  # a lambda with a default
        waiting = [stack.enter_context(daemon.client()) for _ in range(20)]
        os.kill(ending, signal.SIGTERM)
        os.kill(ending, signal.SIGCONT)
        assert idle.reply().startswith("421 4.3.2 ")
        busy.send(MAIL + b".\r\n")
        assert busy.reply().startswith("250 2.0.0 ")
        assert busy.reply().startswith("421 4.3.2 ")
        until(lambda: state_of(ending) == "Z")
        for pid in workers - {ending}:
            os.kill(pid, signal.SIGCONT)
        # The loop may have come to accept one or two of them before it came to the signal.
        assert [client.reply()[:4] for client in waiting].count("220 ") >= 15
    assert len(mail(tmp_path, "bob")) == 1


def test_who_waits_when_all_ends_is_told_so(tmp_path: Path) -> None:
    """SIGTERM to everybody, as systemd sends it: who waits at the socket is told 421, also if no worker is left."""
    with serving(tmp_path, "--create") as daemon, contextlib.ExitStack() as stack:
        daemon.wait_for("ready")
        (worker,) = daemon.workers
        for pid in (daemon.process.pid, worker):
            os.kill(pid, signal.SIGSTOP)
            until(lambda pid=pid: state_of(pid) == "T")  # type: ignore[misc]  # a lambda with a default
        waiting = [stack.enter_context(daemon.client()) for _ in range(20)]
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        until(lambda: state_of(worker) == "Z")
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGCONT)
        assert_sent_away(waiting)
        assert daemon.process.wait(30) == 0


def assert_sent_away(clients: Sequence[Client]) -> None:
    """Each is told 421, though some may have been greeted before."""
    for client in clients:
        reply = client.reply()
        assert (client.reply() if reply.startswith("220 ") else reply).startswith("421 4.3.2 ")


def test_who_waits_when_the_main_process_is_killed_is_told_so(tmp_path: Path) -> None:
    """The workers, which end too, send away who waits at the socket that nobody listens at any more."""
    with serving(tmp_path, "--create") as daemon, contextlib.ExitStack() as stack:
        daemon.wait_for("ready")
        (worker,) = daemon.workers
        os.kill(worker, signal.SIGSTOP)
        until(lambda: state_of(worker) == "T")
        waiting = [stack.enter_context(daemon.client()) for _ in range(20)]
        daemon.signal(signal.SIGKILL)
        daemon.process.wait(30)
        os.kill(worker, signal.SIGCONT)
        assert_sent_away(waiting)
        until(lambda: state_of(worker) == "Z")


def test_draining_ends_in_time(tmp_path: Path) -> None:
    """A client that does not come to an end is told 421 in time (RFC 5321 §3.8); nothing of its message stays."""
    with serving(tmp_path, "--create", "--drain-timeout", "0.2") as daemon:
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(b"x" * 2_000_000)
            until(lambda: any((tmp_path / "mail").glob("alice/tmp/*")))
            daemon.signal(signal.SIGTERM)
            assert client.reply() == "421 4.3.2 Service shutting down"
            daemon.process.wait(30)
        assert mail(tmp_path, "alice") == []


def test_a_second_sigterm_does_not_wait(tmp_path: Path) -> None:
    """Whoever asks twice does not want to wait: workers are killed, and the exit code says so."""
    with serving(tmp_path, "--create") as daemon, daemon.client() as client:
        client.envelope("alice@example.com")
        assert client.say("DATA").startswith("354 ")
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stop")
        daemon.signal(signal.SIGTERM)
        assert daemon.process.wait(30) == os.EX_TEMPFAIL


def test_a_killed_worker_is_replaced_and_loses_nothing(tmp_path: Path) -> None:
    """After SIGKILL of a worker, what was acknowledged is there, and another one serves."""
    acknowledged = Counter[str]()
    with serving(tmp_path, "--create", "--workers", "2") as daemon:
        daemon.wait_for("ready")
        for round_ in range(3):
            for number in range(20):
                with contextlib.suppress(OSError, AssertionError), daemon.client() as client:
                    name = f"u{round_}x{number}"
                    client.envelope(f"{name}@example.com")
                    if client.data()[0].startswith("250 "):
                        acknowledged[name] += 1
                if number == 10:
                    os.kill(min(daemon.workers), signal.SIGKILL)
            assert daemon.wait_for("worker_died", round_ + 1)["signal"] == "SIGKILL"
            until(lambda: len(daemon.workers) == 2)
        with daemon.client() as client:
            client.envelope("last@example.com")
            assert client.data()[0].startswith("250 ")
        assert daemon.stop() == 0
    assert len(acknowledged) >= 50
    assert all(len(contents(tmp_path / "mail" / name)["new"]) == 1 for name in acknowledged)


def test_a_worker_that_dies_young_is_replaced_with_patience(tmp_path: Path) -> None:
    """Each death soon after the start makes the next start later."""
    with serving(tmp_path, "--create") as daemon:
        daemon.wait_for("ready")
        for _ in range(3):
            until(lambda: len(daemon.workers) == 1)
            os.kill(min(daemon.workers), signal.SIGKILL)
            until(lambda: not daemon.workers)
        delays = [event["again_in_s"] for event in daemon.events("worker_died")]
        assert delays == sorted(delays)
        assert 0 < delays[0] < delays[-1] <= 30


def test_no_worker_outlives_the_main_process(tmp_path: Path) -> None:
    """After SIGKILL of the main process its workers end, and what was being sent leaves nothing behind."""
    options = ("--create", "--workers", "2", "--metrics", "127.0.0.1:0", "--helper-process", "--drain-timeout", "0.5")
    with serving(tmp_path, *options) as daemon:
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
            assert client.say("MAIL FROM:<>").startswith("250 ")
            assert client.say("RCPT TO:<bob@example.com>").startswith("250 ")
            assert client.say("DATA").startswith("354 ")
            client.send(b"x" * 2_000_000)
            until(lambda: any((tmp_path / "mail").glob("bob/tmp/*")))
            workers = daemon.workers
            assert len(workers) == 3
            daemon.signal(signal.SIGKILL)
            for pid in workers:
                until(lambda pid=pid: state_of(pid) == "Z")  # type: ignore[misc]  # a lambda with a default
        until(lambda: mail_or_none(tmp_path, "bob") == [])
    assert len(mail(tmp_path, "alice")) == 1


def mail_or_none(directory: Path, user: str) -> list[bytes] | None:
    found = contents(directory / "mail" / user)
    return None if found["tmp"] else found["new"]


def test_sockets(tmp_path: Path) -> None:
    """A socket nobody listens at is replaced, with the mode asked for; a live one is not touched."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving(tmp_path, "--create", "--socket-mode", "0600") as daemon:
        daemon.wait_for("ready")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        second = refused("--lmtp", f"unix:{path}", "--layout", f"{tmp_path}/{{user}}")
        assert second.returncode == os.EX_TEMPFAIL
        assert "Traceback" not in second.stderr
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
    (tmp_path / "file").write_bytes(b"not a socket")
    third = refused("--lmtp", f"unix:{tmp_path}/file", "--layout", f"{tmp_path}/{{user}}")
    assert third.returncode in (os.EX_CANTCREAT, os.EX_TEMPFAIL)
    assert (tmp_path / "file").read_bytes() == b"not a socket"


def test_systemd(tmp_path: Path) -> None:
    """A socket that systemd passes is served, and systemd is told when it is, and when it is not any more."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "passed"))
    listening.listen()
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    notified.settimeout(30)
    # As systemd does: LISTEN_PID is the process that is to be, which only a program in between can know.
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    command = [sys.executable, "-c", script, str(listening.fileno()), "-m", "maildir_async", "serve", "--allow-root"]
    with open(tmp_path / "log", "wb") as stderr:
        process = subprocess.Popen(
            [*command, "--lmtp", "--layout", f"{tmp_path}/{{user}}", "--create", "--hostname", "mx.example"],
            env=ENVIRONMENT | {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=[listening.fileno()],
            stderr=stderr,
        )
    try:
        listening.close()
        assert b"READY=1" in notified.recv(1000)
        with Client(str(tmp_path / "passed")) as client:
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
        process.send_signal(signal.SIGHUP)
        assert b"RELOADING=1" in notified.recv(1000)
        assert b"READY=1" in notified.recv(1000)
        process.send_signal(signal.SIGTERM)
        assert b"STOPPING=1" in notified.recv(1000)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        notified.close()
    assert (tmp_path / "passed").exists(), "it is systemd's"


def test_too_many_connections(tmp_path: Path) -> None:
    """Past the limit a client is told 421 and sent away; when there is room again, one is served."""
    with serving(tmp_path, "--create", "--max-connections", "2") as daemon:
        with daemon.client() as one, daemon.client() as other:
            assert (one.reply()[:3], other.reply()[:3]) == ("220", "220")
            with daemon.client() as third:
                assert third.reply().startswith("421 4.3.2 ")
                assert third.reply() == ""
            one.say("QUIT")
            assert one.reply() == ""

        def served() -> bool:
            with daemon.client() as client:
                return client.reply().startswith("220 ")

        until(served)


def test_limits_on_messages(tmp_path: Path) -> None:
    """Too large a message is refused at MAIL if it says so, else at its end; a line too long is, too."""
    limits = ("--size-limit", "1000", "--line-length-limit", "100")
    with serving(tmp_path, "--create", *limits) as daemon, daemon.client() as client:
        client.envelope()
        client.say("RSET")
        assert client.say("MAIL FROM:<a@example.com> SIZE=1001").startswith("552 5.3.4")
        for message, reply in (
            (b"x\r\n" * 500, "552 5.3.4"),
            (b"x" * 200 + b"\r\n", "500 5.6.0"),
            (MAIL, "250 2.0.0"),
        ):
            assert client.say("MAIL FROM:<a@example.com>").startswith("250 ")
            assert client.say("RCPT TO:<alice@example.com>").startswith("250 ")
            assert client.data(message)[0].startswith(reply)
    assert len(mail(tmp_path, "alice")) == 1


def test_too_many_messages(tmp_path: Path) -> None:
    """A message that there is no place for is refused for now, before it is sent; when there is one, it is taken."""
    with (
        serving(tmp_path, "--create", "--max-in-flight", "1", "--busy-wait", "0") as daemon,
        daemon.client() as first,
        daemon.client() as second,
    ):
        first.envelope("alice@example.com")
        second.envelope("bob@example.com")
        assert first.say("DATA").startswith("354 ")
        assert second.say("DATA").startswith("451 4.3.2 ")
        first.send(b"x" * 2_000_000 + b"\r\n.\r\n")
        assert first.reply().startswith("250 ")
        second.say("RSET")
        second.say("MAIL FROM:<>")
        second.say("RCPT TO:<bob@example.com>")
        assert second.data()[0].startswith("250 ")


def test_a_log_that_nobody_reads_stops_no_mail(tmp_path: Path) -> None:
    """When stderr is a pipe that is full, lines are lost, and messages are not."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "maildir_async", "serve", "--allow-root", "--lmtp", f"unix:{path}", "--create"]
    process = subprocess.Popen([*command, "--layout", f"{tmp_path}/{{user}}"], env=ENVIRONMENT, stderr=writer)
    try:
        os.close(writer)
        until(path.exists)
        with Client(str(path)) as client:
            client.reply()
            client.say("LHLO client.example")
            for _ in range(40):
                client.say("MAIL FROM:<>")
                assert client.say("RCPT TO:<alice@example.com>").startswith("250 ")
                assert client.data()[0].startswith("250 ")
        (worker,) = Daemon(process, tmp_path).workers
        os.kill(worker, signal.SIGKILL)
        until(lambda: Daemon(process, tmp_path).workers not in (set(), {worker}))
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    assert len(contents(tmp_path / "alice")["new"]) == 40


def test_a_client_that_has_gone_is_no_reason_not_to_tell(tmp_path: Path) -> None:
    """Each message that is stored has its line in the log and is counted, also if nobody was left to hear of it."""
    options = ("--create", "--metrics", "127.0.0.1:0")
    with serving(tmp_path, *options, address="127.0.0.1:0") as daemon:
        for number in range(30):
            with daemon.client() as client:
                client.envelope(f"u{number}@example.com")
                assert client.say("DATA").startswith("354 ")
                client.send(MAIL + b".\r\n")
                client.reset()
        url = f"http://{daemon.wait_for('ready')['metrics']}/metrics"

        def is_counted() -> bool:
            stored = len(list(tmp_path.glob("mail/*/new/*")))
            with urllib.request.urlopen(url, timeout=30) as answer:
                counted = answer.read().decode()
            return stored > 0 and f'maildir_async_deliveries_total{{reply="2xx"}} {stored}.0\n' in counted

        until(is_counted)
        assert daemon.stop() == 0
        told = daemon.events("delivered")
        assert daemon.events("log") == []
    stored = {path.name.partition(",")[0] for path in tmp_path.glob("mail/*/new/*")}
    assert {event["key"].partition(",")[0] for event in told} == stored
    assert all("reply" not in event or event["reply"].startswith("250 ") for event in told)


def test_smtp_tells_one_reply_and_counts_each_recipient(tmp_path: Path) -> None:
    """With one recipient's trouble the client is told 451; who has the message all the same is logged as such."""
    options = ("--create", "--metrics", "127.0.0.1:0")
    with serving(tmp_path, *options, address="127.0.0.1:0", protocol="--smtp") as daemon, daemon.client() as client:
        client.envelope("alice@example.com", "bob@example.com", greeting="EHLO")
        assert client.say("DATA").startswith("354 ")
        (tmp_path / "mail/bob").mkdir(parents=True)
        (tmp_path / "mail/bob/new").write_bytes(b"not a directory")
        client.send(MAIL + b".\r\n")
        reply = client.reply()
        assert reply.startswith("451 4.3.5 ")
        told = [daemon.wait_for(event) for event in ("delivered", "deferred")]
        assert [(event["to"], event["reply"]) for event in told] == [
            ("alice@example.com", reply),
            ("bob@example.com", reply),
        ]
        with urllib.request.urlopen(f"http://{daemon.wait_for('ready')['metrics']}/metrics", timeout=30) as answer:
            counted = answer.read().decode()
    for class_ in ("2xx", "4xx"):
        assert f'maildir_async_deliveries_total{{reply="{class_}"}} 1.0\n' in counted
    assert len(mail(tmp_path, "alice")) == 1


def test_workers_share_connections(tmp_path: Path) -> None:
    """Connections that stay are shared out among the workers, also when they come one by one."""
    with serving(tmp_path, "--create", "--workers", "2") as daemon, contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(daemon.client())
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
        daemon.wait_for("delivered", 20)
        served = Counter(event["worker"] for event in daemon.events("delivered"))
    assert served.keys() == {0, 1}


def test_silence_is_sent_away(tmp_path: Path) -> None:
    """A client that says nothing for too long is told 421, and nothing of its message stays."""
    with serving(tmp_path, "--create", "--timeout", "0.2") as daemon:
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(MAIL)
            assert client.reply().startswith("421 4.4.2 ")
            assert client.reply() == ""
        assert daemon.stop() == 0
    assert not (tmp_path / "mail/alice/new").exists() or mail(tmp_path, "alice") == []


def test_a_message_that_never_ends_is_sent_away(tmp_path: Path) -> None:
    """A client is told 421 when its message has had its time, and nothing of it stays."""
    with serving(tmp_path, "--create", "--message-timeout", "0.2") as daemon:
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.say("DATA").startswith("354 ")
            client.send(b"x" * 2_000_000)
            assert client.reply().startswith("421 4.4.2 ")
            assert client.reply() == ""
        assert daemon.stop() == 0
        assert mail(tmp_path, "alice") == []


def test_metrics(tmp_path: Path) -> None:
    """Prometheus finds what there is to know of all workers, on loopback, and after a worker's death."""
    with serving(tmp_path, "--create", "--workers", "2", "--metrics", "127.0.0.1:0") as daemon:
        address = daemon.wait_for("ready")["metrics"]

        def deliver(user: str) -> None:
            with daemon.client() as client:
                client.envelope(f"{user}@example.com")
                client.data()
                client.say("QUIT")

        def metrics() -> dict[str, float]:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
                lines = answer.read().decode().splitlines()
            return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

        for number in range(10):
            deliver(f"u{number}")
        assert metrics()['maildir_async_deliveries_total{reply="2xx"}'] == 10
        victim = max(daemon.workers)
        os.kill(victim, signal.SIGKILL)
        until(lambda: state_of(victim) == "Z")
        until(lambda: len(daemon.workers) == 3)
        for number in range(10):
            deliver(f"v{number}")
        found = metrics()
        assert found['maildir_async_deliveries_total{reply="2xx"}'] == 20
        assert found["maildir_async_delivery_seconds_count"] == 20
        assert found["maildir_async_connections_total"] == 20
        assert found["maildir_async_stored_bytes_total"] > 20 * len(MAIL)
        until(lambda: metrics()["maildir_async_in_flight"] == 0)  # the reply goes out first


def test_what_a_dead_worker_had_in_hand_is_not_shown_for_ever(tmp_path: Path) -> None:
    """The gauges of a worker that was killed are its successor's, and so are its counters."""
    with serving(tmp_path, "--create", "--metrics", "127.0.0.1:0") as daemon:
        url = f"http://{daemon.wait_for('ready')['metrics']}/metrics"

        def metrics() -> str:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())

        worker = min(daemon.workers)
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
            assert "maildir_async_open_connections 1.0\n" in metrics()
            os.kill(worker, signal.SIGKILL)
            assert client.reply() == ""
        until(lambda: "maildir_async_open_connections 0.0\n" in metrics())
        assert "maildir_async_connections_total 1.0\n" in metrics()


def test_metrics_are_in_no_file(tmp_path: Path) -> None:
    """What is counted is in memory without a name: nothing is left of it, whichever processes are killed at once."""
    with serving(tmp_path, "--create", "--workers", "2", "--metrics", "127.0.0.1:0") as daemon:
        url = f"http://{daemon.wait_for('ready')['metrics']}/metrics"
        with daemon.client() as client:
            client.envelope("alice@example.com")
            assert client.data()[0].startswith("250 ")
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert b"maildir_async_connections_total 1.0\n" in answer.read()
        for pid in {daemon.process.pid, *daemon.workers}:
            maps = [line.split(None, 5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
            shared = {fields[5] for fields in maps if fields[1] == "rw-s"}
            assert shared == {"/dev/zero (deleted)"}  # what proc(5) calls it


def test_the_pidfile(tmp_path: Path) -> None:
    """It holds the main process's id while that runs."""
    pidfile = tmp_path / "pid"
    with serving(tmp_path, "--create", "--pidfile", str(pidfile)) as daemon:
        daemon.wait_for("ready")
        assert int(pidfile.read_text()) == daemon.process.pid
        daemon.stop()
        assert not pidfile.exists()


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    """Where somebody listens already, the command says so, and that it may be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = refused("--smtp", address, "--layout", f"{tmp_path}/{{user}}")
        metrics = refused("--smtp", "127.0.0.1:0", "--layout", f"{tmp_path}/{{user}}", "--metrics", address)
    assert (done.returncode, metrics.returncode) == (os.EX_TEMPFAIL, os.EX_TEMPFAIL)
    assert f"somebody listens at {address}" in done.stderr


def test_bad_users_are_told_at_the_start(tmp_path: Path) -> None:
    """A list of users that cannot be read is no list: 78 (EX_CONFIG), with the number of the line."""
    (tmp_path / "users").write_text("alice@example.com\nno address\n")
    done = refused("--lmtp", f"unix:{tmp_path}/s", "--layout", "/srv/{user}", "--users", str(tmp_path / "users"))
    assert done.returncode == os.EX_CONFIG
    assert "line 2" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("module", "extra"), [("aiosmtpd", "smtp"), ("prometheus_client", "metrics")])
def test_a_missing_extra_is_told(module: str, extra: str) -> None:
    """Without aiosmtpd, or for metrics prometheus_client, one line says what to install; the exit code is 69."""
    patch = f"import sys; sys.modules[{module!r}] = None; from maildir_async.command.main import main; sys.exit(main())"
    arguments = ["serve", "--lmtp", "127.0.0.1:0", "--layout", "/srv/{user}", "--metrics", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-c", patch, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == os.EX_UNAVAILABLE
    assert f"maildir-async[{extra}]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    some(
        [
            (["unix:socket"], os.EX_USAGE),
            (["--lmtp", "--smtp", "unix:socket", "--layout", "/srv/{user}"], os.EX_USAGE),
            (["--lmtp", "nonsense", "--layout", "/srv/{user}"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/all"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "relative/{user}"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--map", "/m", "--users", "/u"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--workers", "0"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--timeout", "0"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--message-timeout", "0"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--socket-mode", "999"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--line-length-limit", "2"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--metrics", "192.0.2.1:1"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--metrics-mode", "0o7"], os.EX_USAGE),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--max-connections-per-address", "0"], os.EX_USAGE),
            (["--lmtp", "unix:/nonexistent/socket", "--layout", "/srv/{user}"], os.EX_CANTCREAT),
            (["--lmtp", "127.0.0.1:0", "--layout", "/srv/{user}", "--pidfile", "/nonexistent/pid"], os.EX_CANTCREAT),
            (["--lmtp", "127.0.0.1:0", "--layout", "/srv/{user}", "--workers", str(10**15)], os.EX_TEMPFAIL),
            (["--lmtp", "unix:socket", "--layout", "/srv/{user}", "--users", "/nonexistent"], os.EX_NOINPUT),
            (["--lmtp", "unix:socket", "--layout", "/all", "--users", "/nonexistent"], os.EX_USAGE),
        ],
        4,
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served(arguments: Sequence[str], code: int) -> None:
    """What makes no sense, or cannot be, is told at once, in a line, with an exit code that says which."""
    done = refused(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
