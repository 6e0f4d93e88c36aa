"""``maildir-async import``: what it says, what it answers, and that it converges when it is killed at any moment."""

import asyncio
import os
import pty
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from maildir_async import Maildir, import_mail
from maildir_async.disk.imported import Imported
from maildir_async.testing import Fault, FaultDisk
from test_import import LINE, bodies, mbox_of, stored

COMMAND = [sys.executable, "-m", "maildir_async", "import"]


def run(*arguments: object, data: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run the command to its end."""
    return subprocess.run([*COMMAND, *map(str, arguments)], input=data, capture_output=True, check=False)


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    """Several sources, with standard input, come in one go; what is odd is named, and the worst is answered."""
    (tmp_path / "a").write_bytes(mbox_of(b"a"))
    (tmp_path / "b").write_bytes(mbox_of(b"b\n\nFrom nobody"))
    done = run(
        "--folder", "In", tmp_path / "a", tmp_path / "b", "-", tmp_path / "no", tmp_path / "Mail", data=mbox_of(b"c")
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == os.EX_NOINPUT
    assert lines == [
        f"maildir-async: {tmp_path}/b, byte 63: a line that begins with 'From ' has no date: it is kept as text",
        f"maildir-async: {tmp_path}/no cannot be read: No such file or directory",
        "maildir-async: 3 imported (55 bytes), 0 already there, 0 failed, 1 odd; 1 of 4 sources not read at all",
    ]
    assert bodies(tmp_path / "Mail") == {b"a\n": 1, b"b\n\nFrom nobody\n": 1, b"c\n": 1}
    assert {folder for folder, _, _ in stored(tmp_path / "Mail")} == {".In"}
    again = run("--folder", "In", "--dry-run", tmp_path / "a", "-", tmp_path / "Mail", data=mbox_of(b"c", b"d"))
    assert again.returncode == os.EX_OK
    assert again.stderr.decode().endswith(": 1 to be imported (14 bytes), 2 already there, 0 failed\n")


def test_a_bar_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    """On a terminal there is a bar, and then the same line as elsewhere."""
    (tmp_path / "mbox").write_bytes(mbox_of(b"a"))
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, tmp_path / "mbox", tmp_path / "Mail"], stderr=theirs) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:  # the end of a terminal
            pass
        os.close(ours)
    assert process.returncode == os.EX_OK
    assert b"mbox" in said.partition(b"1 imported")[0]
    assert b"\x1b[" in said
    assert b"1 imported" in said


#: The same import, read by a process of its own.
IN_TWO = [
    *(sys.executable, "-c"),
    "import asyncio, sys; from maildir_async import import_mail; "
    "asyncio.run(import_mail(*sys.argv[1:], reading_process=True))",
]


def killed_after(seconds: float, command: list[str]) -> bool:
    """Run the command, and kill it after so many seconds; return whether it had ended before."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return False
        return True


def converges(tmp_path: Path, messages: int, kills: int, command: list[str]) -> None:
    """Import an mbox, killed so often at moments drawn at random; check that all is there, once, as in the source."""
    chosen = random.Random(12)
    data, expected = list[bytes](), Counter[tuple[str, str, bytes]]()
    for number in range(messages):
        size = chosen.choice([10, 1000, 5000])
        if number % 400 == 399:
            size = 700_000
        text = b"%d\n" % chosen.randrange(messages // 2) + chosen.choice([b"a", b"b"]) * size + b"\n"
        content = chosen.choice([b"", b"Status: RO\n"]) + b"Subject: x\n\n" + text
        data.append(LINE + content + b"\n")
        expected["", "S" if content.startswith(b"Status") else "", content] += 1
    (tmp_path / "mbox").write_bytes(b"".join(data))
    arguments: list[object] = [tmp_path / "mbox", tmp_path / "Mail"]
    began = time.monotonic()
    run("--dry-run", *arguments)
    least = time.monotonic() - began
    for _ in range(kills):
        killed_after(chosen.uniform(least * 0.3, least * 2), [*command, *map(str, arguments)])
        for path in list((tmp_path / "Mail").glob("new/*"))[::7]:  # a reader is at work meanwhile
            path.rename(tmp_path / "Mail/cur" / f"{path.name}:2,")
    done = run(*arguments)
    assert done.returncode == os.EX_OK, done.stderr
    assert stored(tmp_path / "Mail") == expected
    assert f" 0 imported (0 bytes), {messages} already" in run(*arguments).stderr.decode()
    assert (
        len({path.stat().st_mtime for where in ("new", "cur") for path in (tmp_path / "Mail" / where).iterdir()}) == 1
    )


@pytest.mark.parametrize(
    ("operation", "nth"), [("rename_noreplace", 1), ("rename_noreplace", 8), ("sync", 1), ("create", 30), ("write", 61)]
)
@pytest.mark.parametrize("journal_is_kept", [False, True])
def test_killed_at_a_call_it_converges(
    tmp_path: Path, operation: str, nth: int, journal_is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at a system call, also with all lost that the journal had not got durably, it converges."""
    texts = [b"%d" % (number // 2) for number in range(60)] + [b"x" * 600_000] * 2
    (tmp_path / "mbox").write_bytes(mbox_of(*texts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads
        pid = os.fork()
    if pid == 0:
        try:
            if not journal_is_kept:  # as a power cut may have it
                monkeypatch.setattr(Imported, "commit", lambda _: None)
            disk = FaultDisk(Fault(operation, nth=nth, gate=lambda: os.kill(os.getpid(), signal.SIGKILL)))
            asyncio.run(import_mail(tmp_path / "mbox", Maildir(tmp_path / "Mail", disk=disk)))
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL

    report = asyncio.run(import_mail(tmp_path / "mbox", tmp_path / "Mail"))

    assert report.imported + report.already_there == len(texts)
    assert bodies(tmp_path / "Mail") == Counter(text + b"\n" for text in texts)
    assert asyncio.run(import_mail(tmp_path / "mbox", tmp_path / "Mail")).already_there == len(texts)


@pytest.mark.heavy
@pytest.mark.parametrize("command", [COMMAND, IN_TWO], ids=["one process", "two processes"])
def test_killed_once_it_converges(tmp_path: Path, command: list[str]) -> None:
    """After a SIGKILL in the midst the same command has the maildir be what the source is: nothing twice or missing."""
    converges(tmp_path, 300, 2, command)


@pytest.mark.heavy
@pytest.mark.parametrize(("command", "kills"), [(COMMAND, 12), (IN_TWO, 6)], ids=["one process", "two processes"])
def test_killed_often_it_converges(tmp_path: Path, command: list[str], kills: int) -> None:
    """The same with many kills, at moments that come out differently each time."""
    converges(tmp_path, 6000, kills, command)


def test_a_source_without_mail_is_told_plainly(tmp_path: Path) -> None:
    """An empty mbox or directory is no failure, and is said to be empty; one that cannot be read is counted."""
    (tmp_path / "empty").mkdir()
    done = subprocess.run([*COMMAND, "empty", "m"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "empty: there is no mail in it" in done.stderr) == (os.EX_OK, True)
    done = subprocess.run([*COMMAND, "empty", "nowhere", "m"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == os.EX_NOINPUT
    assert "0 failed; 1 of 2 sources not read at all" in done.stderr


def test_a_journal_in_no_directory_is_told_by_that_directory(tmp_path: Path) -> None:
    """What is blamed is the directory that is not there; not the maildir, nor a lock file of ours."""
    (tmp_path / "one.eml").write_bytes(b"Subject: x\n\n")
    arguments = ["one.eml", "m", "--journal", "nowhere/journal"]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "m: create" in done.stderr) == (os.EX_TEMPFAIL, False)
    assert f"{tmp_path}/nowhere: create failed: No such file or directory" in done.stderr
