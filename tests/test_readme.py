"""What the README says is true: its code runs, its commands are those of CI, its tables agree with the code."""

import ast
import asyncio
import errno
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any, Final

import pytest

import maildir_async
from maildir_async import AppendError, AppendTask, Delivered, Maildir
from maildir_async.errors import DEFAULT_SMTP_REPLY, SMTP_REPLIES

ROOT: Final = Path(__file__).parents[1]
README: Final = (ROOT / "README.md").read_text()
BLOCKS: Final[list[tuple[str, str]]] = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON: Final = [text for language, text in BLOCKS if language == "python"]
SHELL: Final = [text for language, text in BLOCKS if language == "sh"]
ENVIRONMENT: Final = os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1])}


def section(title: str) -> str:
    """Return the text below a heading, to the next of any level."""
    found = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.M | re.S
    )
    assert found is not None, title
    return found[1]


def table(title: str) -> list[list[str]]:
    """Return the rows of the (last) table below a heading, without its head."""
    rows = [line.strip("| ").split(" | ") for line in section(title).splitlines() if line.startswith("| ")]
    return rows[1:]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture
def replies() -> Any:
    """Undo what the README does to the table of replies."""
    before = dict(SMTP_REPLIES)
    yield
    SMTP_REPLIES.clear()
    SMTP_REPLIES.update(before)


def test_the_first_example_is_a_program(tmp_path: Path) -> None:
    """The first block runs as it stands, and prints the path of the message it says it delivers."""
    assert 5 <= len([line for line in PYTHON[0].splitlines() if line]) <= 10

    done = subprocess.run(
        [sys.executable, "-c", PYTHON[0]], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )

    path = Path(done.stdout.strip())
    assert path.parent == tmp_path / "Maildir/new"
    assert path.read_bytes() == b"Subject: hello\n\nIt works.\n"


def test_every_piece_of_code_runs(tmp_path: Path, replies: None) -> None:
    """Each further block runs in a coroutine where `maildir` and `message` are what the text says."""

    async def run() -> list[dict[str, Any]]:
        namespaces = []
        for number, text in enumerate(PYTHON[1:]):
            namespace: dict[str, Any] = {name: getattr(maildir_async, name) for name in maildir_async.__all__}
            namespace |= {"maildir": Maildir(tmp_path / str(number)), "message": b"Subject: x\n\nbody\n"}
            code = compile(text, f"README block {number + 2}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            assert isinstance(code, CodeType)
            if (coroutine := eval(code, namespace)) is not None:
                await coroutine
            namespaces.append(namespace)
        return namespaces

    namespaces = asyncio.run(run())

    stored = [sorted(Path(tmp_path, str(number)).glob("**/???/*")) for number in range(len(namespaces))]
    assert [len(paths) for paths in stored] == [1, 101, 3, 1, 1, 1, 1, 0, 0, 1]
    assert all(path.parent.name in ("new", "cur") for paths in stored for path in paths)
    assert isinstance(namespaces[4]["delivered"], Delivered)
    assert stored[5][0].read_bytes() == b"Subject: pulled\n\nbody\n"
    assert namespaces[6]["reply"].startswith("250 ")
    assert SMTP_REPLIES[errno.EDQUOT].startswith("552 ")


def test_the_names_are_those_of_the_package() -> None:
    """The table of names lists `maildir_async.__all__`, and every member it mentions is there."""
    rows = table("The names")

    assert sorted(name for row in rows for name in quoted(row[0])) == list(maildir_async.__all__)
    for first, second in rows:
        (owner,) = quoted(first)[:1]
        if owner in ("Maildir", "AppendTask", "Delivered", "Durability"):
            value = getattr(maildir_async, owner)
            assert [name for name in quoted(second) if not hasattr(value, name) and name != "append"] == []


def test_the_options_are_those_of_append() -> None:
    """The block on options names every option of `append` but those told of elsewhere."""
    (block,) = [text for text in PYTHON if "received_at" in text]
    named = {keyword.arg for keyword in ast.walk(ast.parse(block, mode="exec")) if isinstance(keyword, ast.keyword)}
    assert named | {"self", "message", "durability", "deadline", "duplicate_key"} == set(
        inspect.signature(Maildir.append).parameters
    )


def test_the_replies_are_those_given() -> None:
    """The table of errors has each reply that the code gives for that errno or exception, and no other."""
    told: dict[str, str] = {}
    for cause, _, reply in table("Errors, and what to tell an SMTP client"):
        for name in re.findall(r"\b(E[A-Z]{3,}|[A-Z]\w+Error)\b", cause):
            if name != "AppendError":
                told[name] = quoted(reply)[0]
        if "anything else" in cause:
            told["else"] = quoted(reply)[0]

    assert told.pop("else") == AppendError("", errno=errno.EIO).smtp_reply == DEFAULT_SMTP_REPLY
    assert {name: reply for name, reply in told.items() if name.startswith("E")} == {
        errno.errorcode[number]: reply for number, reply in SMTP_REPLIES.items()
    }
    raised = {name: getattr(maildir_async, name)("").smtp_reply for name in told if name.endswith("Error")}
    assert {name: told[name] for name in raised} == raised
    assert set(raised) == {name for name in maildir_async.__all__ if name.endswith("Error")} - {
        "MaildirError",
        "AppendError",
    }


def test_twisted_s_members_have_what_the_table_says() -> None:
    """The names on the right of the Twisted table exist."""
    tasks = re.findall(r"`(?:await )?task\.(\w+)", section("For those who come from Twisted"))
    assert len(tasks) >= 8
    assert [name for name in tasks if not hasattr(AppendTask, name)] == []
    maildirs = re.findall(r"`(?:await )?maildir\.(\w+)", section("For those who come from Twisted"))
    assert [name for name in maildirs if not hasattr(Maildir, name)] == []


def test_the_exit_codes_are_those_of_sysexits() -> None:
    """The command's exit codes are the ones its source names, and the daemon's, but for that of a worker's crash."""
    package = Path(maildir_async.__file__).parent
    source = "".join(path.read_text() for part in ("command", "daemon") for path in (package / part).glob("*.py"))
    named = {getattr(os, name) for name in re.findall(r"\bos\.(EX_\w+)", source)}
    assert {int(code) for code, _ in table("The command")} == named - {os.EX_SOFTWARE}


def test_the_options_of_the_command_are_there() -> None:
    """Every option that the README mentions is in the command's help, and the other way round."""
    mentioned = set(quoted(section("The command")))
    options: set[str] = set()
    for command in ("deliver", "clean"):
        done = subprocess.run(
            [sys.executable, "-m", "maildir_async", command, "--help"], env=ENVIRONMENT, capture_output=True, text=True
        )
        options |= set(re.findall(r"(?<![\w-])--[a-z-]+", done.stdout))
    assert {name for name in mentioned if name.startswith("--")} == options - {"--help"}


def test_the_delivering_command_shows_the_mail(tmp_path: Path) -> None:
    """What follows the installation in the first command delivers a mail, and shows its path and its content."""
    head, _, rest = SHELL[0].strip().partition(" && printf ")
    assert head == "python3 -m venv .venv && .venv/bin/pip install --quiet ."
    command = f"printf {rest}".replace(".venv/bin/maildir-async", f"{shlex.quote(sys.executable)} -m maildir_async")

    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )

    (path,) = (tmp_path / "Maildir/new").iterdir()
    assert done.stdout == f"{path}\nFrom: me@example.com\nSubject: hello\n\nIt works.\n"


def test_the_mailbox_module_reads_it_back(tmp_path: Path) -> None:
    """The line of Python that reads the mail back prints its subject."""
    (line,) = [line for line in SHELL[2].splitlines() if line.startswith("python3 ")]
    message = "From: me@example.com\nSubject: hello\n\nIt works.\n"
    command = [sys.executable, "-m", "maildir_async", "deliver", "Maildir"]
    subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, input=message, text=True, check=True, capture_output=True)

    done = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout == "hello\n"


def test_both_commands_are_one_line() -> None:
    """A newcomer copies one line for each."""
    assert [len(text.splitlines()) for text in SHELL[:2]] == [1, 1]


def test_ci_runs_the_readme_s_command() -> None:
    """The tests are run in CI by the command that the README gives."""
    assert SHELL[1].strip() in [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]


def test_ci_runs_the_heavy_tests_too() -> None:
    """What the README's command leaves out, CI runs by the same interpreter, and CONTRIBUTING.md says how one does."""
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    command = SHELL[1].strip().rpartition(" && ")[2] + " -m heavy"
    (heavy,) = (number for number, line in enumerate(lines) if command in line)
    assert heavy > lines.index(SHELL[1].strip())
    assert not lines[heavy].startswith(("#", "if ", "["))
    assert "`-m heavy`" in (ROOT / "CONTRIBUTING.md").read_text()


def test_nothing_is_claimed_that_is_not_built() -> None:
    """What does not work yet is named under "Not yet" and nowhere else; every file linked to is there."""
    rest = "".join(line for line in README.splitlines(keepends=True) if not line.startswith("* **Not yet:**"))
    assert rest != README
    unbuilt = ("import_mail(",)
    assert [word for word in unbuilt if word in rest] == []
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "//" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
