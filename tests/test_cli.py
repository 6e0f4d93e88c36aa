"""The command, run as other programs run it: a real process, its exit code, its output, and the maildir after it."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import maildir_async
from look import until
from maildir_async.command.main import SUBCOMMANDS, main
from maildir_async.command.signals import SIGNALS
from support import some

MESSAGE = b"From: alice@example.com\r\nSubject: command\n\nbody \xff\x00\r\nno line end"
BIG = bytes(range(256)) * 8192  # 2 MiB: several chunks, so there is a file in tmp/ long before the end

#: The package under test, wherever this process has it from; and what Python warns of is said on stderr.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1]), "PYTHONWARNINGS": "error"}
COMMAND = [sys.executable, "-m", "maildir_async"]


def run(
    *arguments: str | Path, stdin: bytes | IO[bytes] | None = None, command: list[str] = COMMAND, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
    return subprocess.run(
        [*command, *map(str, arguments)],
        **(given | {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRONMENT} | options),
        timeout=60,
    )


@contextlib.contextmanager
def running(*arguments: str | Path, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command; it is gone when this is left."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        bufsize=0,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def catches_signals(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a signal finds it prepared (Python by itself lets SIGTERM kill it)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return bool(caught & 1 << signal.SIGTERM - 1)


def messages(maildir: Path, where: str = "new") -> list[bytes]:
    return sorted(path.read_bytes() for path in (maildir / where).iterdir())


def assert_nothing_there(maildir: Path) -> None:
    assert [path for path in maildir.rglob("*") if not path.is_dir()] == []


def one_line(stderr: bytes) -> str:
    """Return what was said on stderr, which is one line."""
    (line,) = stderr.decode().splitlines()
    assert line.startswith("maildir-async")
    return line


# Where the message comes from.


def test_a_message_from_a_pipe_is_stored_as_it_is(tmp_path: Path) -> None:
    """`deliver MAILDIR < message` stores standard input byte by byte, prints the path and exits with 0."""
    done = run("deliver", tmp_path / "m", stdin=MESSAGE)

    assert (done.returncode, done.stderr) == (0, b"")
    path = Path(done.stdout.decode().removesuffix("\n"))
    assert path.parent == tmp_path / "m/new"
    assert path.read_bytes() == MESSAGE


def test_a_message_from_a_file_on_standard_input_is_read_from_where_it_stands(tmp_path: Path) -> None:
    """A regular file on standard input is read from its offset, as a shell that has read a line leaves it."""
    (tmp_path / "message").write_bytes(b"From old mbox line\n" + MESSAGE)

    with open(tmp_path / "message", "rb", buffering=0) as file:
        file.seek(len(b"From old mbox line\n"))
        done = run("deliver", tmp_path / "m", stdin=file)

    assert (done.returncode, done.stderr) == (0, b"")
    assert messages(tmp_path / "m") == [MESSAGE]


def test_a_message_from_a_socket_is_stored(tmp_path: Path) -> None:
    """A socket on standard input, as inetd gives it, is read to its end."""
    ours, theirs = socket.socketpair()
    with ours, theirs, running("deliver", tmp_path / "m", stdin=theirs.fileno()) as process:
        theirs.close()
        ours.sendall(BIG)
        ours.shutdown(socket.SHUT_WR)
        stdout, stderr = process.communicate(timeout=60)

    assert (process.returncode, stderr) == (0, b"")
    assert Path(stdout.decode().strip()).read_bytes() == BIG


def test_a_message_typed_at_a_terminal_is_stored(tmp_path: Path) -> None:
    """A terminal on standard input is read until its end-of-file character, and is left in blocking mode."""
    master, terminal = pty.openpty()
    with open(master, "wb", buffering=0), open(terminal, "rb", buffering=0):
        with running("deliver", tmp_path / "m", stdin=terminal) as process:
            os.write(master, b"Subject: typed\n\nhello\n\x04")
            _, stderr = process.communicate(timeout=60)

        assert (process.returncode, stderr) == (0, b"")
        assert messages(tmp_path / "m") == [b"Subject: typed\n\nhello\n"]
        assert os.get_blocking(terminal)


def test_a_message_fed_in_pieces_is_written_as_it_comes(tmp_path: Path) -> None:
    """Standard input is read as a stream: there is a file in tmp/ before its end, and nothing in new/ until then."""
    with running("deliver", tmp_path / "m") as process:
        assert process.stdin is not None
        for start in range(0, len(BIG), 100_000):
            process.stdin.write(BIG[start : start + 100_000])
        until(lambda: (tmp_path / "m/tmp").is_dir() and messages(tmp_path / "m", "tmp"))
        assert messages(tmp_path / "m") == []
        process.stdin.close()
        assert process.wait(60) == 0

    assert messages(tmp_path / "m") == [BIG]
    assert messages(tmp_path / "m", "tmp") == []


def test_a_pipe_closed_before_the_first_byte_is_an_empty_message(tmp_path: Path) -> None:
    """Standard input without a byte is delivered as an empty message: what it should have been, we cannot know."""
    done = run("deliver", tmp_path / "m", stdin=b"")

    assert (done.returncode, done.stderr) == (0, b"")
    assert messages(tmp_path / "m") == [b""]


def test_only_what_is_missing_is_asked_for() -> None:
    """Without arguments the command asks for MAILDIR, and not for FILE, which may be left out."""
    done = run("deliver")

    assert done.returncode == os.EX_USAGE
    assert "required: MAILDIR (" in one_line(done.stderr)


def test_a_closed_standard_input_is_told(tmp_path: Path) -> None:
    """Without a standard input the command exits with 75 and touches nothing."""
    done = run("deliver", tmp_path / "m", command=["sh", "-c", '"$@" <&-', "sh", *COMMAND])

    assert done.returncode == os.EX_TEMPFAIL
    assert "cannot be read" in one_line(done.stderr)
    assert not (tmp_path / "m").exists()


def test_several_files_are_stored_in_their_order(tmp_path: Path) -> None:
    """Each FILE is a message; their paths are printed in the order given, - standing for standard input."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)

    done = run("deliver", tmp_path / "m", tmp_path / "one", "-", tmp_path / "two", stdin=b"stdin")

    assert done.returncode == 0
    assert one_line(done.stderr).startswith("maildir-async: 3 delivered, 0 failed; 11 bytes in ")
    assert [Path(line).read_bytes() for line in done.stdout.decode().splitlines()] == [b"one", b"stdin", b"two"]


def test_one_unreadable_file_stops_no_other(tmp_path: Path) -> None:
    """All FILEs are tried, each failure is a line, and the worst exit code is the answer: 66 for one unreadable."""
    (tmp_path / "good").write_bytes(MESSAGE)

    done = run("deliver", tmp_path / "m", tmp_path / "missing", tmp_path, tmp_path / "good")

    assert done.returncode == os.EX_NOINPUT
    assert [str(tmp_path / "missing") in line for line in done.stderr.decode().splitlines()] == [True, False, False]
    assert messages(tmp_path / "m") == [MESSAGE]


# Options.


def test_options_reach_the_delivery(tmp_path: Path) -> None:
    """--flags, --newline and --durability do what append's options do."""
    done = run("deliver", tmp_path / "m", "--flags=SF", "--newline=crlf", "--durability=none", stdin=b"a\nb\r\n")

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip().endswith(b",S=6,W=6:2,FS")
    assert messages(tmp_path / "m", "cur") == [b"a\r\nb\r\n"]


def test_what_a_filter_knows_of_a_message_reaches_the_delivery(tmp_path: Path) -> None:
    """--folder, --keyword, --received-at, --prefix, --strip-from-line and --inherit-mode do what the options do."""
    box = tmp_path / "m"
    box.mkdir()
    box.chmod(0o2770)
    done = run(
        *("deliver", box, "--folder=Entw\u00fcrfe/x", "--keyword=$Junk", "--keyword=later", "--inherit-mode"),
        *("--received-at=2001-02-03T04:05:06+01:00", "--prefix=X-Spam: no", "--prefix=X-By: me", "--strip-from-line"),
        stdin=b"From a Thu Jan  1 00:00:00 1970\nSubject: x\n\n",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    path = Path(os.fsdecode(done.stdout.strip()))
    folder = box / ".Entw&APw-rfe.x"
    assert path.parent == folder / "cur"
    assert path.name.endswith(":2,ab")
    assert path.read_bytes() == b"X-Spam: no\nX-By: me\nSubject: x\n\n"
    assert (folder / "dovecot-keywords").read_text() == "0 $Junk\n1 later\n"
    found = path.stat()
    assert (found.st_mtime, found.st_mode & 0o7777) == (981169506, 0o660)
    assert folder.stat().st_mode & 0o7777 == 0o2770


@pytest.mark.parametrize(("option", "code"), [([], os.EX_TEMPFAIL), (["--quota-permanent"], os.EX_NOPERM)])
def test_a_full_maildir_exits_with_75_or_77(tmp_path: Path, option: list[str], code: int) -> None:
    """A message past --quota is refused for a while, or for good if that is asked for; nothing of it is left."""
    limits = f"--quota={len(MESSAGE)},1C"
    assert run("deliver", tmp_path / "m", limits, stdin=MESSAGE).returncode == 0
    done = run("deliver", tmp_path / "m", limits, *option, stdin=MESSAGE)
    assert done.returncode == code
    assert "over its quota" in one_line(done.stderr)
    assert messages(tmp_path / "m") == [MESSAGE]
    assert (tmp_path / "m" / "maildirsize").read_text().startswith(f"{len(MESSAGE)}S,1C\n")


USAGE_ERRORS: dict[str, list[str]] = {
    "unknown command": ["fetch"],
    "no maildir": ["deliver"],
    "empty maildir": ["deliver", ""],
    "unknown option": ["deliver", "m", "--fast"],
    "flag": ["deliver", "m", "--flags=X"],
    "folder": ["deliver", "m", "--folder=a//b"],
    "keyword": ["deliver", "m", "--keyword=a b"],
    "time": ["deliver", "m", "--received-at=yesterday"],
    "prefix": ["deliver", "m", "--prefix=no header"],
    "quota": ["deliver", "m", "--quota=much"],
    "durability": ["deliver", "m", "--durability=some"],
    "newline": ["deliver", "m", "--newline=cr"],
    "negative limit": ["deliver", "m", "--size-limit=-1"],
    "limit without a number": ["deliver", "m", "--size-limit=big"],
    "ambiguous limit": ["deliver", "m", "--size-limit=50MB"],
    "negative age": ["clean", "m", "--older-than=-1"],
    "infinite age": ["clean", "m", "--older-than=inf"],
    "no age": ["clean", "m", "--older-than=nan"],
}


@pytest.mark.parametrize("arguments", some(USAGE_ERRORS.values(), 4), ids=USAGE_ERRORS)
def test_a_usage_error_exits_with_64_and_touches_nothing(arguments: list[str], tmp_path: Path) -> None:
    """A wrong command line is one line on stderr and exit code 64 (EX_USAGE), before anything is read or written."""
    done = run(*arguments, stdin=MESSAGE, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (os.EX_USAGE, b"")
    one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


MEANT: dict[str, tuple[list[str], str]] = {
    "command": (["dliver", "m"], "'dliver'; did you mean deliver?"),
    "option": (["deliver", "m", "--fodler", "x"], "there is no option --fodler; did you mean --folder?"),
    "choice": (["deliver", "m", "--durability=ful"], "argument --durability: one of full, file, none is wanted"),
    "age": (
        ["check", "m", "--older-than=2d"],
        "--older-than: a number of hours, such as 36 or 0.5, is wanted",
    ),
    "flags": (["deliver", "m", "--flags=X"], "deliver: --flags: 'X' is not a Maildir flag"),
    "keyword": (["deliver", "m", "--keyword=a b"], "deliver: --keyword: 'a b' is no IMAP keyword"),
    "prefix": (["deliver", "m", "--prefix=x"], "deliver: --prefix line 1 is not a header field"),
    "folder": (["deliver", "m", "--folder=a//b"], "deliver: --folder has an empty part: 'a//b'"),
    "quota": (["deliver", "m", "--quota=x"], "deliver: --quota: a quota such as 2G,10000C is wanted"),
    "time": (["deliver", "m", "--received-at=0001-01-01"], "deliver: --received-at is no time"),
    "path": (["deliver", ""], "deliver: MAILDIR is not a path: ''"),
    "imported folder": (["import", "--folder=a//b", "x", "m"], "import: --folder has an empty part"),
    "journal": (["import", "--journal=", "x", "m"], "import: --journal is not a path: ''"),
    "not a number": (["clean", "m", "--older-than=nan"], "--older-than: a number of hours"),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_usage_error_says_what_is_wanted(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The option or the word, what it takes, and what may have been meant; by the subcommand that was asked."""
    arguments, said = MEANT[name]
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capfd.readouterr().err


def test_without_a_subcommand_they_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    """`maildir-async` alone is a usage error that says what there is, a line each."""
    assert main([]) == os.EX_USAGE
    first, *lines = capfd.readouterr().err.splitlines()
    assert first.startswith("maildir-async: a COMMAND is wanted")
    assert [line.split()[0] for line in lines] == list(SUBCOMMANDS)
    assert "store standard input, or files" in lines[0]


def test_files_may_come_behind_an_option(tmp_path: Path) -> None:
    """As in the help's own example: argparse by itself knows no FILE there."""
    (tmp_path / "one.eml").write_bytes(MESSAGE)
    (tmp_path / "two.eml").write_bytes(MESSAGE)
    done = run("deliver", "m", "one.eml", "--flags", "S", "two.eml", cwd=tmp_path)
    assert done.returncode == 0
    assert messages(tmp_path / "m", "cur") == [MESSAGE] * 2


NO_MAILDIR: dict[str, list[str]] = {
    "info": ["info", "m"],
    "check": ["check", "m"],
    "clean": ["clean", "m"],
    "deliver": ["deliver", "--no-create", "m", "file"],
    "import": ["import", "--no-create", "file", "m"],
}


@pytest.mark.parametrize("name", NO_MAILDIR)
def test_a_maildir_that_is_not_there_is_told_in_one_way(name: str, tmp_path: Path) -> None:
    """Whatever the command, in the same words, with what to do."""
    (tmp_path / "file").write_bytes(MESSAGE)
    done = run(*NO_MAILDIR[name], cwd=tmp_path)
    assert done.returncode in (os.EX_NOINPUT, os.EX_TEMPFAIL)
    assert f"{tmp_path}/m is not a maildir: it does not exist (look at the path; " in one_line(done.stderr)


def test_what_is_made_above_a_maildir_is_told(tmp_path: Path) -> None:
    """A mistyped path is not a silent success: the outermost directory that was made is named; once."""
    (tmp_path / "file").write_bytes(MESSAGE)
    for arguments in (["deliver", "a/b/m", "file"], ["deliver", "c/d/m", "file", "file"], ["import", "file", "e/f/m"]):
        made = next(word for word in arguments if word.endswith("/m"))
        done = run(*arguments, cwd=tmp_path)
        top = f"{tmp_path}/{made[0]}"
        told = f"maildir-async: {top} was not there, and has been made, for the maildir {tmp_path}/{made}\n"
        assert done.returncode == 0
        assert told in done.stderr.decode()
    assert run("deliver", "a/b/m", "file", cwd=tmp_path).stderr == b""
    assert run("deliver", "a/b/n", "file", cwd=tmp_path).stderr == b""


# What goes wrong.


@pytest.mark.parametrize("through_a_pipe", [True, False])
def test_a_message_past_the_limit_exits_with_65(through_a_pipe: bool, tmp_path: Path) -> None:
    """A message larger than --size-limit is refused for good: 65 (EX_DATAERR), and the maildir is as it was."""
    (tmp_path / "message").write_bytes(BIG)
    with open(tmp_path / "message", "rb") as file:
        stdin = BIG if through_a_pipe else file
        done = run("deliver", tmp_path / "m", "--size-limit", str(len(BIG) - 1), stdin=stdin)
    exact = run("deliver", tmp_path / "exact", "--size-limit", str(len(BIG)), stdin=BIG)

    assert (done.returncode, done.stdout) == (os.EX_DATAERR, b"")
    assert "more than" in one_line(done.stderr)
    assert_nothing_there(tmp_path / "m")
    assert exact.returncode == 0


def test_what_is_not_a_maildir_exits_with_75(tmp_path: Path) -> None:
    """Where the store may be away for a while the code is 75 (EX_TEMPFAIL): after 73 Postfix would bounce the message.

    A path that is a file, a link that leads nowhere, a missing maildir with --no-create. Nothing is made.
    """
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    file = run("deliver", tmp_path / "file", stdin=MESSAGE)
    missing = run("deliver", tmp_path / "missing", "--no-create", stdin=MESSAGE)
    below = run("deliver", tmp_path / "file/line 1\nline 2", stdin=MESSAGE)
    clean = run("clean", tmp_path / "missing")
    link = run("deliver", tmp_path / "link", stdin=MESSAGE)
    above = run("deliver", tmp_path / "link" / "box", stdin=MESSAGE)

    told = (file, missing, below, clean, link, above)
    assert [done.returncode for done in told] == [os.EX_TEMPFAIL] * 6
    assert all("is not a maildir" in one_line(done.stderr) for done in told)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert not (tmp_path / "missing").exists()


def test_a_path_too_long_exits_with_73(tmp_path: Path) -> None:
    """A maildir whose name no file system takes is refused for good."""
    done = run("deliver", tmp_path / ("x" * 300), stdin=MESSAGE)

    assert done.returncode == os.EX_CANTCREAT
    assert "File name too long" in one_line(done.stderr)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount]).returncode:
        pytest.skip("a full disk needs root, and the right to mount")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("size", [100_000, len(BIG)], ids=["in group commit", "while it is received"])
def test_a_full_disk_exits_with_75(size: int, tiny_disk: Path) -> None:
    """A full disk is worth another try: 75 (EX_TEMPFAIL), nothing in new/, and nothing left in tmp/ to keep it full."""
    done = run("deliver", tiny_disk / "m", stdin=BIG[:size])

    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, b"")
    assert "No space left on device" in one_line(done.stderr)
    assert_nothing_there(tiny_disk / "m")


def patched(patch: str) -> list[str]:
    """Return the command with some of its parts replaced."""
    imports = "import errno, os, signal, stat, sys, maildir_async.command.main, maildir_async.command.deliver\n"
    imports += "from maildir_async.disk.posix import PosixDisk\n"
    return [sys.executable, "-c", f"{imports}{patch}\nsys.exit(maildir_async.command.main.main())"]


FAILING_DIRECTORY_SYNC = """
def sync(self, fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode) and os.readlink(f"/proc/self/fd/{fd}").endswith("/new"):
        raise OSError(errno.EIO, "Input/output error")
    os.fsync(fd)
PosixDisk.sync = sync
"""


def test_an_uncertain_delivery_exits_with_75_and_names_the_file(tmp_path: Path) -> None:
    """If the directory cannot be synced, the message is there, its path is told on stderr, and the code is 75."""
    done = run("deliver", tmp_path / "m", stdin=MESSAGE, command=patched(FAILING_DIRECTORY_SYNC))
    weaker = run("deliver", tmp_path / "n", "--durability=file", command=patched(FAILING_DIRECTORY_SYNC))

    assert weaker.returncode == 0, "which syncs no directory"
    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, b"")
    (path,) = (tmp_path / "m/new").iterdir()
    assert str(path) in one_line(done.stderr)
    assert path.read_bytes() == MESSAGE


def test_an_unforeseen_exception_exits_with_75(tmp_path: Path) -> None:
    """A defect of ours is one line and 75 too, never Python's own exit code 1, after which the mail is bounced."""
    patch = (
        "def broken(*a, **k): raise ZeroDivisionError('a defect')\nmaildir_async.command.deliver.AppendTask = broken"
    )
    done = run("deliver", tmp_path / "m", command=patched(patch))

    assert done.returncode == os.EX_TEMPFAIL
    assert "ZeroDivisionError: a defect" in one_line(done.stderr)


def test_a_path_that_cannot_be_printed_is_still_delivered(tmp_path: Path) -> None:
    """The exit code is 0 when only the printing of the path failed: any other would have the message sent again."""
    with open("/dev/full", "wb") as full:
        done = run("deliver", tmp_path / "m", stdin=MESSAGE, stdout=full)
    closed = run("deliver", tmp_path / "m", stdin=MESSAGE, command=["sh", "-c", '"$@" >&-', "sh", *COMMAND])

    assert (done.returncode, done.stderr) == (0, b"")
    assert (closed.returncode, closed.stderr) == (0, b"")
    assert messages(tmp_path / "m") == [MESSAGE, MESSAGE]


# Signals.


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_receiving_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """SIGHUP, SIGINT and SIGTERM in the middle of a message abort it: exit code 75, tmp/ and new/ empty."""
    with running("deliver", tmp_path / "m") as process:
        assert process.stdin is not None
        process.stdin.write(BIG)
        until(lambda: (tmp_path / "m/tmp").is_dir() and any(messages(tmp_path / "m", "tmp")))
        process.send_signal(number)
        assert process.wait(60) == os.EX_TEMPFAIL
        assert process.stderr is not None
        assert "interrupted" in one_line(process.stderr.read())

    assert_nothing_there(tmp_path / "m")


def test_a_signal_ends_a_command_that_waits_for_its_input(tmp_path: Path) -> None:
    """Nothing keeps the command from ending: no terminal nobody types at, no silent socket, no FIFO nobody opens."""
    os.mkfifo(tmp_path / "fifo")
    master, terminal = pty.openpty()
    ours, theirs = socket.socketpair()
    with (
        open(master, "wb", buffering=0),
        open(terminal, "rb", buffering=0),
        ours,
        theirs,
        running("deliver", tmp_path / "m", stdin=terminal) as at_terminal,
        running("deliver", tmp_path / "m", stdin=theirs.fileno()) as at_socket,
        running("deliver", tmp_path / "m", tmp_path / "fifo") as at_fifo,
    ):
        # Only the loop makes them so; and so it reads from them now.
        until(lambda: not os.get_blocking(terminal) and not os.get_blocking(theirs.fileno()))
        until(lambda: catches_signals(at_fifo))
        for process in (at_terminal, at_socket, at_fifo):
            process.terminate()
            assert process.wait(60) == os.EX_TEMPFAIL

    assert not (tmp_path / "m").exists()


LATE_SIGNAL = """
def rename_noreplace(self, source, target, *directories, rename=PosixDisk.rename_noreplace):
    rename(self, source, target, *directories)
    os.kill(os.getpid(), signal.SIGTERM)
PosixDisk.rename_noreplace = rename_noreplace
"""


def test_a_signal_after_publication_says_what_was_delivered(tmp_path: Path) -> None:
    """A signal that comes when a message is visible finds it delivered: it is told, and the next FILE is not begun."""
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "two").write_bytes(b"two")

    single = run("deliver", tmp_path / "m", tmp_path / "one", command=patched(LATE_SIGNAL))
    several = run("deliver", tmp_path / "n", tmp_path / "one", tmp_path / "two", command=patched(LATE_SIGNAL))

    assert (single.returncode, single.stderr) == (0, b"")
    assert Path(single.stdout.decode().strip()).read_bytes() == b"one"
    assert several.returncode == os.EX_TEMPFAIL
    assert Path(several.stdout.decode().strip()).read_bytes() == b"one"
    assert messages(tmp_path / "n") == [b"one"]


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """What nohup has it ignore does not abort a delivery."""
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *COMMAND]
    process = subprocess.Popen([*command, "deliver", tmp_path / "m"], stdin=subprocess.PIPE, env=ENVIRONMENT, bufsize=0)
    with process:
        assert process.stdin is not None
        process.stdin.write(BIG)
        until(lambda: (tmp_path / "m/tmp").is_dir() and any(messages(tmp_path / "m", "tmp")))
        process.send_signal(signal.SIGHUP)
        process.stdin.close()
        assert process.wait(60) == 0

    assert messages(tmp_path / "m") == [BIG]


# clean


def test_clean_removes_old_litter_only(tmp_path: Path) -> None:
    """`clean` removes what is in tmp/ for longer than it is told, prints its path, and leaves the mail alone."""
    run("deliver", tmp_path / "m", stdin=MESSAGE)
    (tmp_path / "m/tmp/litter").write_bytes(b"half a mess")

    young = run("clean", tmp_path / "m")
    old = run("clean", tmp_path / "m", "--older-than=0")

    assert (young.returncode, young.stdout, young.stderr) == (0, b"", b"")
    assert (old.returncode, old.stdout, old.stderr) == (0, os.fsencode(tmp_path / "m/tmp/litter") + b"\n", b"")
    assert messages(tmp_path / "m", "tmp") == []
    assert messages(tmp_path / "m") == [MESSAGE]


@pytest.mark.parametrize("value", ["50MB", "-1"])
def test_what_is_no_size_is_told_with_its_argument(value: str) -> None:
    """A size that is ambiguous or negative is refused by a line with the option's name and what it got."""
    line = one_line(run("deliver", "m", f"--size-limit={value}").stderr)
    assert "argument --size-limit: " in line
    assert repr(value) in line


def test_the_version() -> None:
    """--version prints the version of the package that is installed, and of Python."""
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    own = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    python = sys.version.partition(" ")[0]
    assert re.fullmatch(
        rf"maildir-async ({re.escape(own)}|\(not installed\)), Python {re.escape(python)}\n", done.stdout.decode()
    )


def test_the_installed_command_is_the_module(tmp_path: Path) -> None:
    """`maildir-async` and `python -m maildir_async` are one program, whose --help names both of its commands."""
    script = Path(sys.executable).with_name("maildir-async")
    by_module = run("--help")
    assert by_module.returncode == 0
    assert b"deliver" in by_module.stdout
    assert b"clean" in by_module.stdout
    if not script.exists():
        pytest.skip("the package is not installed here, so there is no script")
    assert run("--help", command=[str(script)]).stdout == by_module.stdout
