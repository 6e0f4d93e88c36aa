"""Signals before the command has begun, while it is at it, and when it is done."""

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from look import until
from support import some
from test_cli import COMMAND, ENVIRONMENT, messages, run, running

#: The whole process; SIGINT is what a shell gives a program in the foreground.
IMPORTS = """
import atexit, os, signal, sys
import maildir_async.command.deliver, maildir_async.command.main as main
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def patched(patch: str) -> list[str]:
    """Return the command with some of its parts replaced, from its first line to its end."""
    return [sys.executable, "-c", f"{IMPORTS}{patch}\nmain.run()"]


def test_before_there_is_a_loop_a_signal_ends_it_without_a_word(tmp_path: Path) -> None:
    """Ctrl-C while the options are read: the process is ended by SIGINT, 130 to a shell, and there is no traceback."""
    patch = "maildir_async.command.deliver.add_parser = lambda _: os.kill(os.getpid(), signal.SIGINT)"
    done = run("deliver", tmp_path / "m", stdin=b"x", command=patched(patch))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("number", some([signal.SIGINT, signal.SIGTERM], 2))
def test_what_is_delivered_is_not_undone_by_a_signal_at_the_end(number: signal.Signals, tmp_path: Path) -> None:
    """A signal while Python ends leaves the exit code 0: after another the message would be sent again."""
    patch = f"atexit.register(lambda: os.kill(os.getpid(), {int(number)}))"
    done = run("deliver", tmp_path / "m", stdin=b"x", command=patched(patch))
    assert (done.returncode, done.stderr) == (0, b"")
    assert messages(tmp_path / "m") == [b"x"]


def test_who_does_not_read_does_not_keep_it(tmp_path: Path) -> None:
    """A pipe that is full, as before a pager, keeps no signal from ending the command; what is delivered is counted."""
    (tmp_path / "given").mkdir()
    given = [tmp_path / "given" / str(number) for number in range(200)]
    for path in given:
        path.write_bytes(b"x")
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as output:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        command = [*COMMAND, "deliver", str(tmp_path / "m"), *map(str, given)]
        with subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
            until(lambda: select.select([], [writer], [], 0)[1] == [])
            process.terminate()
            assert process.wait(60) == os.EX_TEMPFAIL
            assert process.stderr is not None
            said = process.stderr.read().decode()
    assert re.match(rf"maildir-async: {len(messages(tmp_path / 'm'))} delivered, 0 failed, \d+ not delivered; ", said)
    assert messages(tmp_path / "m", "tmp") == []


def test_an_import_that_is_interrupted_says_how_far_it_came(tmp_path: Path) -> None:
    """What has been imported is counted, tmp/ is empty, and what to do is said."""
    with running("import", "-", tmp_path / "m") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        for number in range(3):
            process.stdin.write(b"From a Sat Jan 01 00:00:00 2022\nSubject: %d\n\n%s\n" % (number, b"x" * 2**20))
        until(lambda: (tmp_path / "m/cur").is_dir() and any(os.listdir(tmp_path / "m/new")))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == os.EX_TEMPFAIL
        said, interrupted = process.stderr.read().decode().splitlines()
    found = re.fullmatch(r"maildir-async: -: (\d+) messages gone through; the same command goes on from there", said)
    assert found is not None
    assert int(found[1]) <= len(messages(tmp_path / "m"))  # what is becoming durable is not gone through yet
    assert interrupted == "maildir-async: interrupted"
    assert messages(tmp_path / "m", "tmp") == []
