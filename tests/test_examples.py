"""Every example runs as it stands: the daemons in processes of their own, the notebooks cell by cell, as in a kernel.

The heavy tests run the notebooks in a kernel of their own.
"""

import contextlib
import json
import re
import runpy
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from look import free_port, until
from notebooks import (
    ENVIRONMENT,
    EXAMPLES,
    HOME,
    IN_CELLS,
    IN_KERNEL,
    Outputs,
    bare,
    kept_outputs,
    run_notebook,
    shape,
    texts,
)

MESSAGE = b"Subject: example\r\n\r\n.leading dot\r\n8 bit \xc3\xa9\r\n"
BIG_MAIL = b"Subject: big\r\n\r\n" + b".a line that begins with a dot\r\n" * 100_000
BIG = bytes(range(256)) * 8192  # 2 MiB


class Daemon:
    """A running example: its process, and where it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        host, port = process.stdout.readline().split()
        self.address = (host, int(port))

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """End it, and return its exit code and what it has said on stderr."""
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr


@contextlib.contextmanager
def daemon(name: str, maildir: Path, port: int = 0) -> Iterator[Daemon]:
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / name, str(port), maildir],
        env=ENVIRONMENT | {"PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Daemon(process)
        finally:
            process.kill()


def stored(maildir: Path) -> list[bytes]:
    assert list((maildir / "tmp").iterdir()) == []
    return sorted(path.read_bytes() for path in (maildir / "new").iterdir())


def answer(client: socket.socket) -> bytes | None:
    """Return all that the daemon says; None if its connection was reset, as TCP does over bytes left unread."""
    said = b""
    try:
        while received := client.recv(1000):
            said += received
    except ConnectionError:
        return None
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_tcp_daemon_stores_what_clients_stream_to_it(number: signal.Signals, tmp_path: Path) -> None:
    """Two clients send at once, are told 250 after the end of their messages, and both messages are there whole."""
    with daemon("tcp_daemon.py", tmp_path / "m") as server:
        with socket.create_connection(server.address) as one, socket.create_connection(server.address) as two:
            one.sendall(BIG)
            two.sendall(MESSAGE)
            for client in (two, one):
                client.shutdown(socket.SHUT_WR)
                assert answer(client) == b"250 2.0.0 Stored\r\n"
        assert stored(tmp_path / "m") == sorted([BIG, MESSAGE])
        assert server.stop(number) == (0, "")


def test_the_tcp_daemon_refuses_too_much_in_smtp_s_words(tmp_path: Path) -> None:
    """A client that goes past the limit is told 552, and nothing of its message is left."""
    with daemon("tcp_daemon.py", tmp_path / "m") as server:
        with socket.create_connection(server.address) as client:
            with contextlib.suppress(ConnectionError):
                for _ in range(51):
                    client.sendall(bytes(2**20))
            assert answer(client) in (b"552 5.3.4 Message too large\r\n", None)
        until(lambda: not any((tmp_path / "m/tmp").iterdir()))
        assert stored(tmp_path / "m") == []
        assert server.stop(signal.SIGTERM) == (0, "")


def test_the_tcp_daemon_ends_cleanly_in_the_middle_of_a_message(tmp_path: Path) -> None:
    """SIGTERM aborts what is being received: the client is told 421, and tmp/ is empty when the process has ended."""
    with daemon("tcp_daemon.py", tmp_path / "m") as server, socket.create_connection(server.address) as client:
        client.sendall(BIG)
        until(lambda: (tmp_path / "m/tmp").is_dir() and any((tmp_path / "m/tmp").iterdir()))
        assert server.stop(signal.SIGTERM) == (0, "")
        assert answer(client) in (b"421 4.3.2 Shutting down\r\n", None)
    assert stored(tmp_path / "m") == []


def test_the_aiosmtpd_handler_stores_the_envelope_s_bytes(tmp_path: Path) -> None:
    """After 250 the message is there, after its trace headers: dots unstuffed, 8-bit bytes kept, LF line ends."""
    with daemon("aiosmtpd_handler.py", tmp_path / "m") as server:
        with smtplib.SMTP(*server.address) as client:
            assert client.sendmail("a@example.com", ["b@example.com"], MESSAGE) == {}
        (message,) = stored(tmp_path / "m")
        assert message.startswith(b"Return-Path: <a@example.com>\nDelivered-To: b@example.com\nReceived: from ")
        assert message.endswith(b"\n" + MESSAGE.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_controller_streams_to_the_maildir(number: signal.Signals, tmp_path: Path) -> None:
    """What a client of the Controller is told 250 for is there, and a signal ends it in good order."""
    with daemon("controller.py", tmp_path / "m", free_port()) as server:
        with smtplib.SMTP(*server.address) as client:
            assert "chunking" in client.ehlo()[1].decode().lower()  # StreamingSMTP, and not aiosmtpd's own
            assert client.sendmail("a@example.com", ["b@example.com"], BIG_MAIL) == {}
        (message,) = stored(tmp_path / "m")
        assert message.endswith(b"\n" + BIG_MAIL.replace(b"\r\n", b"\n"))
        assert server.stop(number) == (0, "")


PROGRAMS: Final = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
@pytest.mark.parametrize("arguments", [[], ["no-port", "Maildir"]], ids=["nothing", "no port"])
def test_a_program_that_is_called_wrongly_says_how(
    program: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without arguments, and with a port that is none, each exits with 2 and says how it is called."""
    monkeypatch.setattr(sys, "argv", [str(program), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: {program.name} [-h] port ")


def test_the_aiosmtpd_handler_answers_with_the_error_s_reply(tmp_path: Path) -> None:
    """Where there can be no maildir the client is told so with a temporary code, and no path."""
    (tmp_path / "m").write_bytes(b"a file")
    with daemon("aiosmtpd_handler.py", tmp_path / "m") as server:
        with smtplib.SMTP(*server.address) as client, pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            client.sendmail("a@example.com", ["b@example.com"], MESSAGE)
        assert caught.value.recipients == {"b@example.com": (451, b"4.3.5 Mailbox temporarily unavailable")}


def test_the_lmtp_daemon_streams_to_the_recipients_maildirs(tmp_path: Path) -> None:
    """A large message for two recipients is one file, with a reply for each."""
    with daemon("lmtp_daemon.py", tmp_path / "{user}") as server:
        with smtplib.LMTP(*server.address) as client:
            client.ehlo_or_helo_if_needed()
            assert client.mail("a@example.com")[0] == 250
            recipients = ["b@example.com", "c+x@example.com", "../d@example.com"]
            assert [client.rcpt(recipient)[0] for recipient in recipients] == [250, 250, 550]
            assert client.data(BIG_MAIL)[0] == 250
            assert client.getreply()[0] == 250  # the second recipient's, which smtplib does not expect
        code, log = server.stop(signal.SIGTERM)
        assert code == 0
        assert [line.split()[2] for line in log.splitlines()] == ["550", "250", "250"]
    for user in ("b", "c"):
        (path,) = (tmp_path / user / "new").iterdir()
        assert path.read_bytes().endswith(b"\n" + BIG_MAIL.replace(b"\r\n", b"\n"))
        assert path.stat().st_nlink == 2


in_both: Final = pytest.mark.parametrize(
    "how", [IN_CELLS, pytest.param(IN_KERNEL, marks=pytest.mark.heavy)], ids=["cells", "kernel"]
)


def run_as_kept(how: str, path: Path, directory: Path) -> Outputs:
    """Run a notebook, and return what it shows: what is in its file too, but for names, numbers and times."""
    now, kept, home = run_notebook(how, path, directory), kept_outputs(path), str(directory)
    if how == IN_KERNEL:
        assert shape(now, home) == shape(kept, HOME), "python tests/notebooks.py runs it and keeps what it shows"
    else:
        for kind in ("execute_result", "stream"):
            shown = [bare(text, home) for text in texts(now, kind, "text/html")]
            assert shown == [bare(text, HOME) for text in texts(kept, kind, "text/html")]
    return now


@in_both
def test_the_quickstart_runs_from_top_to_bottom(tmp_path: Path, how: str) -> None:
    """Every cell runs, and shows what is kept of it: results as HTML, failures as SMTP replies. The mail is there."""
    outputs = run_as_kept(how, EXAMPLES / "quickstart.ipynb", tmp_path)
    shown, printed = texts(outputs, "execute_result", "text/html"), "".join(texts(outputs, "stream"))
    assert [">Delivered</caption>" in html for html in shown[:3]] == [True] * 3
    assert ">500 delivered, " in shown[3]
    assert "451 4.3.0" in printed
    assert "552 5.3.4 Message too large" in printed
    assert "503 messages; the last one: number 499" in printed
    assert len(texts(outputs, "display_data")) == (how == IN_KERNEL)  # progress, one line
    assert (tmp_path / "Maildir/tmp").is_dir()
    assert not any((tmp_path / "Maildir/tmp").iterdir())


@in_both
def test_the_notebook_that_pulls_runs_from_top_to_bottom(tmp_path: Path, how: str) -> None:
    """Every cell shows what is kept of it. What the source has is in the archive, and the large message is one file in
    three maildirs.
    """
    run_as_kept(how, EXAMPLES / "pull.ipynb", tmp_path)
    assert len(list((tmp_path / "Archive/new").iterdir())) == 301
    inodes = {path.stat().st_ino for path in tmp_path.glob("Team/*/new/*")}
    assert len(list(tmp_path.glob("Team/*/new/*"))) == 3
    assert len(inodes) == 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_the_notebooks_tell_nothing_of_a_machine(path: Path) -> None:
    """No path but the reader's, no host, no kernel's address; each cell has been run, in order, and what it has shown
    is short.
    """
    text = path.read_text()
    book = json.loads(text)
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert re.findall(r"(?<![\w<./])/(?!home/you/)[a-z]+/", text) == []
    assert set(re.findall(r"R[0-9a-f]{16}\.([^,<]*)", text)) == {"example"}
    assert socket.gethostname() not in text
    assert book["metadata"]["language_info"] == {"name": "python"}
    for said in kept_outputs(path):
        assert sum(len(json.dumps(output)) for output in said) < 10_000


def test_every_example_has_a_test() -> None:
    """Nothing lies in examples/ that is not run here, and each program is no longer than a page."""
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    programs = {"tcp_daemon.py", "aiosmtpd_handler.py", "controller.py", "lmtp_daemon.py"}
    assert names == programs | {"quickstart.ipynb", "pull.ipynb"}
    for program in PROGRAMS:
        code = [line for line in program.read_text().splitlines() if line.strip()]
        assert 10 <= len(code) <= 30, program
