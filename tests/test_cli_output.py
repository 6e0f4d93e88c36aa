"""The command where its output cannot go: a pipe that nobody reads, a full disk, closed descriptors."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import test_cli
from support import some
from test_cli import COMMAND, messages, one_line

MESSAGE = b"Subject: output\n\nbody\n"
MBOX = (b"From a Sat Jan 01 00:00:00 2022\n" + MESSAGE + b"\n") * 2

#: With its own buffers, as a person's Python has them: what is left in them is written at the very end.
BUFFERED = {key: value for key, value in test_cli.ENVIRONMENT.items() if key != "PYTHONUNBUFFERED"}


def run(*arguments: str | Path, to: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command with its output as a shell's *to* says; ``|`` is a pipe whose reader has gone."""
    command = COMMAND
    if to == "|":
        reader, writer = os.pipe()
        os.close(reader)
        options["stdout"] = writer
    else:
        command = ["sh", "-c", f'"$@" {to}', "sh", *COMMAND]
    try:
        return test_cli.run(*arguments, command=command, env=BUFFERED, **options)
    finally:
        if to == "|":
            os.close(options["stdout"])


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """Return a maildir with one message, whose name is wrong."""
    for name in ("tmp", "new", "cur"):
        (tmp_path / "m" / name).mkdir(parents=True, mode=0o700)
    (tmp_path / "m/new/1.M2P3.host,S=99").write_bytes(MESSAGE)
    return tmp_path / "m"


#: What is to be written is the work of these, and no more is to be done when it cannot be.
TELLING = {
    "help": ["--help"],
    "a command's help": ["serve", "--help"],
    "version": ["--version"],
    "info": ["info", "m"],
    "info as JSON": ["info", "--json", "m"],
    "check": ["check", "m"],
    "check as JSON": ["check", "--json", "m"],
}


@pytest.mark.parametrize("name", some(TELLING, 5))
def test_whose_reader_has_gone_ends_without_a_word(name: str, maildir: Path) -> None:
    """`info | head -1` ends as SIGPIPE ends other programs, and Python says nothing of its own."""
    done = run(*TELLING[name], to="|", cwd=maildir.parent)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("name", some(TELLING, 7))
def test_what_could_not_be_told_is_a_failure(name: str, maildir: Path) -> None:
    """A report on a full disk is not there, and so the exit code is not 0, nor 1, which says something of mail."""
    done = run(*TELLING[name], to=">/dev/full", cwd=maildir.parent)
    said = "maildir-async: standard output cannot be written: No space left on device"
    assert (done.returncode, one_line(done.stderr)) == (os.EX_TEMPFAIL, said)


@pytest.mark.heavy
def test_what_has_nowhere_to_go_is_a_failure(maildir: Path) -> None:
    """A standard output that is closed is not taken for one that has been written."""
    done = run("info", "m", to=">&-", cwd=maildir.parent)
    assert done.returncode == os.EX_TEMPFAIL
    assert "standard output cannot be written: it is closed" in one_line(done.stderr)


@pytest.mark.parametrize("to", some(["|", ">/dev/full"], 2))
def test_a_repair_goes_on(to: str, maildir: Path) -> None:
    """Half a repair is worse than one that nobody has read of: the exit code is the repair's."""
    done = run("check", "--repair", "m", to=to, cwd=maildir.parent)
    assert done.returncode == 0
    assert (done.stderr == b"") is (to == "|")
    assert f",S={len(MESSAGE)}," in os.listdir(maildir / "new")[0]


@pytest.mark.parametrize("to", some(["|", ">&- 2>&-", ">/dev/full", "2>/dev/full", "<&- >&- 2>&-"], 5))
@pytest.mark.parametrize("name", ["deliver", "import"])
def test_mail_is_more_than_its_telling(name: str, to: str, tmp_path: Path) -> None:
    """All is delivered or imported, and the exit code says so, whoever reads of it."""
    (tmp_path / "one").write_bytes(MESSAGE)
    (tmp_path / "two").write_bytes(MESSAGE)
    (tmp_path / "mbox").write_bytes(MBOX)
    arguments = ["deliver", "m", "one", "two"] if name == "deliver" else ["import", "mbox", "m"]
    done = run(*arguments, to=to, cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(rb"Exception|Traceback", done.stderr) is None
    assert messages(tmp_path / "m") + messages(tmp_path / "m", "cur") == [MESSAGE] * 2
    assert messages(tmp_path / "m", "tmp") == []


@pytest.mark.heavy
@pytest.mark.parametrize("to", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_hears_is_in_the_exit_code(to: str, tmp_path: Path) -> None:
    """So it is for a wrong command line, and for what is no maildir."""
    assert run("deliver", to=to).returncode == os.EX_USAGE
    assert run("info", tmp_path / "m", to=to).returncode == os.EX_NOINPUT


#: Python takes file names for ASCII, in which others' bytes are surrogates, and what it prints too.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}


@pytest.mark.parametrize(
    "arguments",
    some(
        [
            ["info", "mü\udcff"],
            ["deliver", "mü\udcff", "é\udcff"],
            ["check", "mü\udcff"],
            ["info", "nö\udcff"],
            ["deliver", "mü\udcff", "nö\udcff"],
            ["import", "é\udcff", "mü\udcff"],
            ["import", "nö\udcff", "mü\udcff"],
            ["deliver", "mü\udcff", "--kwürd=x"],
        ],
        8,
    ),
)
def test_a_locale_without_the_letters_is_no_failure(arguments: list[str], tmp_path: Path) -> None:
    """Names with letters and bytes that the locale has not are told somehow, and the exit code is as it would be."""
    (tmp_path / "é\udcff").write_bytes(MESSAGE)
    for name in ("tmp", "new", "cur", ".Entw&APw-rfe/cur"):
        (tmp_path / "mü\udcff" / name).mkdir(parents=True, mode=0o700)
    done, usual = (
        test_cli.run(*arguments, cwd=tmp_path, env=test_cli.ENVIRONMENT | more, stdin=b"") for more in (ASCII, {})
    )
    assert done.returncode == usual.returncode
    assert len(done.stdout.splitlines()) == len(usual.stdout.splitlines())
    assert len(done.stderr.splitlines()) == len(usual.stderr.splitlines())
    assert b"Unicode" not in done.stderr
    if arguments[0] == "deliver" and done.stdout:
        assert os.path.exists(done.stdout.removesuffix(b"\n"))
    if arguments[0] == "info" and done.stdout:
        assert rb"Entw\xfcrfe" in done.stdout
