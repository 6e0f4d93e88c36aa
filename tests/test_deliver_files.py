"""``deliver FILE...``: many at once, told in their order; what waits, what is long, what cannot be read, signals."""

import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from look import until
from maildir_async.command.several import LONG, SHORT
from maildir_async.receive.spool import CHUNK_SIZE
from support import some
from test_cli import COMMAND, ENVIRONMENT, messages, one_line, patched, run, running


def files(directory: Path, count: int, size: int = 0) -> list[Path]:
    """Make that many messages of at least *size* bytes, no two the same."""
    directory.mkdir()
    made = [directory / f"{number:04}" for number in range(count)]
    for path in made:
        path.write_bytes(b"Subject: %s\n\n" % path.name.encode() + b"x" * size)
    return made


def told(stdout: bytes) -> list[bytes]:
    """Return the messages whose paths have been printed, in that order."""
    return [Path(os.fsdecode(line)).read_bytes() for line in stdout.splitlines()]


def test_many_files_share_their_syncs(tmp_path: Path) -> None:
    """All are delivered, their paths are printed in their order, and far fewer syncs are made than there are files."""
    given = files(tmp_path / "given", 4 * SHORT)
    counting = (
        "def sync(self, fd, real=PosixDisk.sync): print('sync', file=sys.stderr); return real(self, fd)\n"
        "PosixDisk.sync = sync\n"
    )
    done = run("deliver", tmp_path / "m", *given, command=patched(counting))

    assert done.returncode == 0
    assert told(done.stdout) == [path.read_bytes() for path in given]
    *synced, summary = done.stderr.decode().splitlines()
    directories = len(synced)  # the kernel syncs the files of a round by itself, or they are here too
    assert directories < len(given)
    size = sum(path.stat().st_size for path in given)
    assert re.fullmatch(rf"maildir-async: {len(given)} delivered, 0 failed; .*[\d.]+ (bytes|KiB) in [\d.]+ s", summary)
    assert f"{size / 1024:.1f} KiB" in summary


def test_long_files_and_short_ones_keep_their_order(tmp_path: Path) -> None:
    """A FILE of more than a chunk goes beside the short ones, and its path is printed where its turn is.

    One of exactly a chunk is whole, and so is one of /proc, which says it is empty, and is not.
    """
    given = files(tmp_path / "given", 2 * LONG + 3)
    for path in given[1::2]:
        path.write_bytes(path.read_bytes() + b"y" * CHUNK_SIZE)
    given[4].write_bytes(b"z" * CHUNK_SIZE)
    given[6] = Path("/proc/version")

    done = run("deliver", tmp_path / "m", *given)

    assert done.returncode == 0
    assert told(done.stdout) == [path.read_bytes() for path in given]
    assert len(messages(tmp_path / "m")) == len(given)


def test_failures_are_told_in_their_order(tmp_path: Path) -> None:
    """What cannot be read, and what is too large, are lines in the order of FILEs; the greatest code is the answer."""
    given = files(tmp_path / "given", 40)
    given[11].write_bytes(b"x" * 600)
    given[31].unlink()
    given[21].write_bytes(b"x" * 2 * CHUNK_SIZE)

    done = run("deliver", "--size-limit=0.5K", tmp_path / "m", *given, tmp_path)

    assert done.returncode == os.EX_NOINPUT
    first, second, third, fourth, summary = done.stderr.decode().splitlines()
    assert f"{given[11]}: " in first
    assert f"{given[21]}: " in second
    assert third.endswith(f"{given[31]} cannot be read: No such file or directory")
    assert fourth.endswith(f"{tmp_path} cannot be read: Is a directory (MAILDIR comes first, then each FILE)")
    assert summary.startswith("maildir-async: 37 delivered, 4 failed; ")
    good = [path for number, path in enumerate(given) if number not in (11, 21, 31)]
    assert told(done.stdout) == [path.read_bytes() for path in good]


def test_fifos_terminals_and_standard_input_are_read_in_their_turn(tmp_path: Path) -> None:
    """A FIFO, a terminal and standard input among FILEs are each read to their end; standard input twice is once."""
    one, two = files(tmp_path / "given", 2)
    os.mkfifo(fifo := tmp_path / "fifo")
    master, terminal = pty.openpty()
    writer = threading.Thread(target=fifo.write_bytes, args=(b"from a FIFO",))
    writer.start()
    with open(master, "wb", buffering=0) as keyboard, open(terminal, "rb", buffering=0):
        keyboard.write(b"typed\n\x04")
        done = run("deliver", tmp_path / "m", one, fifo, "-", os.ttyname(terminal), two, "-", stdin=b"standard")
    writer.join()

    assert done.returncode == 0
    expected = [one.read_bytes(), b"from a FIFO", b"standard", b"typed\n", two.read_bytes(), b""]
    assert told(done.stdout) == expected


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    """However many FILEs there are, long or short, a few dozen open files do."""
    given = files(tmp_path / "given", 3 * SHORT)
    for path in given[::6]:
        path.write_bytes(b"z" * CHUNK_SIZE * 2)

    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (48, 48))
    done = run("deliver", "--durability=none", tmp_path / "m", *given, preexec_fn=few)

    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1)
    assert told(done.stdout) == [path.read_bytes() for path in given]


# Signals.


LATE_SIGNAL = """
import itertools
count = itertools.count()
def rename_noreplace(self, *arguments, rename=PosixDisk.rename_noreplace):
    rename(self, *arguments)
    if next(count) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
PosixDisk.rename_noreplace = rename_noreplace
"""


def test_a_signal_tells_all_that_was_delivered(tmp_path: Path) -> None:
    """A signal in the midst: each message in new/ is told and no other is, no further FILE is begun, tmp/ is empty."""
    given = files(tmp_path / "given", 10 * SHORT)

    done = run("deliver", tmp_path / "m", *given, command=patched(LATE_SIGNAL))

    assert done.returncode == os.EX_TEMPFAIL
    found = told(done.stdout)
    assert sorted(found) == messages(tmp_path / "m")
    assert messages(tmp_path / "m", "tmp") == []
    assert 6 <= len(found) < len(given)
    assert found == [path.read_bytes() for path in given if path.read_bytes() in set(found)]
    summary, end = done.stderr.decode().splitlines()
    assert summary.startswith(f"maildir-async: {len(found)} delivered, 0 failed, {len(given) - len(found)} not deliv")
    assert end == "maildir-async: interrupted"


def test_a_signal_that_comes_too_late_for_all_changes_nothing(tmp_path: Path) -> None:
    """When the last message is visible all are delivered, and told: the exit code is 0, or they would be sent again."""
    given = files(tmp_path / "given", 6)

    done = run("deliver", tmp_path / "m", *given, command=patched(LATE_SIGNAL))

    assert done.returncode == 0
    assert told(done.stdout) == [path.read_bytes() for path in given]
    assert one_line(done.stderr).startswith("maildir-async: 6 delivered, 0 failed; ")


def test_a_signal_ends_a_command_that_waits_in_the_midst_of_files(tmp_path: Path) -> None:
    """A FIFO that nobody writes to, between FILEs, does not keep it from ending; those before it are delivered."""
    one, two, three = files(tmp_path / "given", 3)
    os.mkfifo(fifo := tmp_path / "fifo")
    with running("deliver", tmp_path / "m", one, two, fifo, three) as process:
        until(lambda: (tmp_path / "m/new").is_dir() and len(messages(tmp_path / "m")) == 2)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == os.EX_TEMPFAIL
    assert told(stdout) == [one.read_bytes(), two.read_bytes()]
    assert b"2 delivered, 0 failed, 2 not delivered" in stderr


# The bar.


def at_a_terminal(
    command: list[str], *arguments: str | Path, stdout: int | None = None, columns: str = "500"
) -> tuple[str, bytes]:
    """Run it with a terminal as standard error (and output, unless told otherwise); return what both have got."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=terminal if stdout is None else stdout,
        stderr=terminal,
        env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": columns},
    )
    os.close(terminal)
    shown = b""
    with process, open(master, "rb", buffering=0) as screen:
        output = process.stdout.read() if process.stdout is not None else b""
        while True:
            try:
                part = screen.read(65536)
            except OSError:  # the other end has been closed
                part = b""
            if not part:
                break
            shown += part
    assert process.returncode == 0
    return shown.decode(), output


NO_RICH = "sys.modules['rich'] = None; sys.modules['rich.console'] = None"


def test_a_bar_on_a_terminal_only(tmp_path: Path) -> None:
    """With rich, and standard error a terminal, several FILEs have a bar; paths go to standard output as ever."""
    pytest.importorskip("rich")
    given = files(tmp_path / "given", 20)

    shown, output = at_a_terminal(COMMAND, "deliver", tmp_path / "m", *given, stdout=subprocess.PIPE)
    single, _ = at_a_terminal(COMMAND, "deliver", tmp_path / "m", given[0], stdout=subprocess.PIPE)
    without, listed = at_a_terminal(patched(NO_RICH), "deliver", tmp_path / "n", *given, stdout=subprocess.PIPE)

    assert told(output) == told(listed) == [path.read_bytes() for path in given]
    assert "20/20" in shown
    assert "20 delivered, 0 failed" in shown
    assert single == ""
    assert one_line(without.encode()).startswith("maildir-async: 20 delivered")


@pytest.mark.parametrize("columns", some(["0", "500", "20", "-5", "many", ""], 6))
def test_paths_are_not_written_into_the_bar(columns: str, tmp_path: Path) -> None:
    """Where standard output is the terminal too, each path has a line of its own, whole, whatever COLUMNS says."""
    pytest.importorskip("rich")
    given = files(tmp_path / "given", 20)

    shown, _ = at_a_terminal(COMMAND, "deliver", tmp_path / "m", *given, columns=columns)

    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.replace("\r", "\n")).split("\n")
    paths = [line for line in lines if line.startswith(str(tmp_path / "m/new"))]
    assert [Path(path).read_bytes() for path in paths] == [path.read_bytes() for path in given]


# What is imported.


#: Packages and modules that a delivery by the command has no use for, and waits for if they are imported.
HEAVY = {
    *("aiosmtpd", "asyncinotify", "html", "http", "idna", "importlib.metadata", "json", "mailbox", "multiprocessing"),
    *("platform", "prometheus_client", "rich", "secrets", "shtab", "statistics", "tomllib", "unittest", "uuid"),
    *("maildir_async.smtp", "maildir_async.daemon", "maildir_async.testing", "maildir_async.command.serve"),
    *("maildir_async.command.clean", "maildir_async.command.manual", "maildir_async.helper.program"),
}


def test_a_delivery_imports_nothing_heavy(tmp_path: Path) -> None:
    """`deliver` imports no module that it has no use for: Postfix's pipe runs it once a mail."""
    program = (
        "import sys; there = {*sys.modules}  # with what measures coverage, if anything does\n"
        "from maildir_async.command.main import main\ntry: main()\nfinally: print(*{*sys.modules} - there)"
    )
    done = run("deliver", tmp_path / "m", stdin=b"Subject: x\n\n", command=[sys.executable, "-c", program])

    path, imported = done.stdout.decode().splitlines()
    assert Path(path).read_bytes() == b"Subject: x\n\n"
    assert HEAVY & set(imported.split()) == set()
    assert "maildir_async.command.deliver" in imported.split()


def test_the_end_of_a_delivery_is_in_order() -> None:
    """The process ends without taking the interpreter apart, but calls what is registered for its end, and flushes."""
    program = "import atexit, sys; from maildir_async.command.main import run\n"
    program += (
        "atexit.register(lambda: print('registered'))\nsys.argv[1:] = ['deliver', '/dev/null', '/dev/null']\nrun()"
    )
    done = run(command=[sys.executable, "-c", program])
    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, b"registered\n")
    assert "is not a maildir" in one_line(done.stderr)
