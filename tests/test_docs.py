"""What docs/ says is true: its code runs, its tables agree with the code, its figures are those of a report.

The heavy tests run its shell commands. CI builds the site, strictly; docs/_site.py has what is checked there.
"""

import argparse
import ast
import contextlib
import errno
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import maildir_async
import maildir_async.smtp
import maildir_async.testing
from maildir_async import AppendError, AppendTask, Maildir
from maildir_async.command.answers import SIGPIPE_CODE
from maildir_async.command.check import PROBLEMS
from maildir_async.command.main import main
from maildir_async.daemon.options import add_options
from maildir_async.errors import DEFAULT_SMTP_REPLY, SMTP_REPLIES
from maildir_async.format.problems import KINDS
from maildir_async.smtp import MapFile
from pages import ENVIRONMENT, PAGES, README, ROOT, Page, page, quoted

by_name: Final[Any] = {"ids": lambda value: value.name if isinstance(value, Page) else None}
with_python: Final = pytest.mark.parametrize("page", [each for each in PAGES if each.code("python")], **by_name)
with_shell: Final = pytest.mark.parametrize(
    "page",
    [each for each in PAGES if any(not block.is_daemon for block in each.code("sh"))],
    **by_name,
)
all_pages: Final = pytest.mark.parametrize("page", [README, *PAGES], **by_name)

#: Languages of blocks that are no code of ours, with where that is tested: the daemon's configuration below, and
#: Postfix's by tests/servers.
NOT_OURS: Final = {"text", "toml", "cf"}

REPORTS: Final = {"README.md": ["quick"], "docs/performance.md": ["quick", "mail-servers"]}


@pytest.fixture
def replies() -> Iterator[None]:
    """Undo what a page does to the table of replies."""
    before = dict(SMTP_REPLIES)
    yield
    SMTP_REPLIES.clear()
    SMTP_REPLIES.update(before)


@with_python
def test_every_piece_of_python_runs(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replies: None) -> None:
    """The blocks of a page run one after the other, print what the page says, and leave nothing in tmp/."""
    monkeypatch.chdir(tmp_path)
    page.run_python(tmp_path)
    assert list(tmp_path.glob("**/tmp/*")) == []


@pytest.mark.heavy
@with_shell
def test_every_shell_command_runs(page: Page, tmp_path: Path) -> None:
    """The commands of a page run one after the other in one directory, and print what the page says."""
    (tmp_path / "bin").mkdir()
    for name, command in [("python3", ""), ("python", ""), ("maildir-async", "-m maildir_async")]:
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command} "$@"\n')
        path.chmod(0o755)
    environment = ENVIRONMENT | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    (tmp_path / "work").mkdir()
    for block in page.code("sh"):
        if block.is_daemon:
            continue  # looked at below
        with (tmp_path / "printed").open("w+") as printed, (tmp_path / "errors").open("w+") as errors:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=tmp_path / "work",
                env=environment,
                stdout=printed,
                stderr=errors,
                process_group=0,
            )
            try:
                returncode = process.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what a block that failed has left running
                process.wait()
        assert returncode == 0, f"{block.text}\n{(tmp_path / 'errors').read_text()}"
        block.check((tmp_path / "printed").read_text())


SERVE_COMMANDS: Final = [block.text for each in PAGES for block in each.code("sh") if block.is_daemon]


@pytest.mark.parametrize("command", SERVE_COMMANDS)
def test_the_commands_of_the_daemon_are_right(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--check-config finds no mistake in a command that starts the daemon."""
    (tmp_path / "users").write_text("alice@example.org\n")
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command)[1:], "--check-config"]) == os.EX_OK


@pytest.mark.parametrize("text", [block.text for block in page("serve").code("toml")])
def test_the_configurations_are_right(text: str, tmp_path: Path) -> None:
    """--check-config finds no mistake in an example."""
    (tmp_path / "config.toml").write_text(text)
    assert main(["serve", "--check-config", "--config", str(tmp_path / "config.toml")]) == os.EX_OK


def test_the_map_is_one(tmp_path: Path) -> None:
    """The daemon can read the example of a map, in front of a layout."""
    (text,) = [block.text for block in page("serve").blocks if block.language == "text"]
    (tmp_path / "map").write_text(text)
    MapFile(tmp_path / "map", is_partial=True).load()


@all_pages
def test_no_code_is_left_out(page: Page) -> None:
    """All code stands between fences, in a language that is run; what is not run says why."""
    if page is not README:  # tests/test_readme.py looks at its commands
        assert {block.language for block in page.blocks} <= {"python", "sh"} | NOT_OURS
        assert page.text.count("<!--") == len([block for block in page.blocks if block.reason])
    assert len(re.findall(r"^```", page.text, re.MULTILINE)) == 2 * (
        len(page.blocks) + sum(block.printed is not None for block in page.blocks)
    )
    prose = re.sub(r"^(\* |:::).*\n( +.*\n|\n(?= ))*", "", page.prose, flags=re.MULTILINE)
    assert re.findall(r"^ {4}.*$", prose, re.MULTILINE) == []


@all_pages
def test_links_lead_somewhere(page: Page) -> None:
    """Each file that is linked to is there, and each heading."""
    for path, anchor in page.links():
        target = os.path.normpath(ROOT / os.path.dirname(page.name) / path) if path else str(ROOT / page.name)
        assert os.path.exists(target), path
        if anchor:
            assert anchor in Page(os.path.relpath(target, ROOT)).anchors(), f"{path}#{anchor}"


def test_the_site_has_every_page() -> None:
    """mkdocs.yml lists each page of docs/, once, and no other."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"[\w/-]+\.md$", nav, re.MULTILINE)) == [each.name[len("docs/") :] for each in PAGES]


@pytest.mark.parametrize("page", [README, page("performance")], **by_name)
def test_the_figures_are_those_of_a_report(page: Page) -> None:
    """Each row of a table of figures names its case, and the case has these figures in a report."""
    reports = [(ROOT / f"benchmarks/results/{name}/report.md").read_text() for name in REPORTS[page.name]]
    rows = [row for row in page.tables() if re.fullmatch(r"`'?\^?[a-z0-9-]+\$?'?`", row[-1])]
    assert len(rows) >= 5
    for row in rows:
        case = re.sub(r"[^a-z0-9-]", "", row[-1])
        figures = set(re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(row[1:-1])))
        assert figures
        there = []
        for report in reports:
            targets = report.partition("## Targets")[2].partition("## Cases")[0]
            told = targets + report.partition(f"### {case}:")[2].partition("\n### ")[0]
            there.append(set(re.findall(r"\d[\d,]*(?:\.\d+)?", told)) if f"### {case}:" in report else set())
        assert any(figures <= told for told in there), (row, [figures - told for told in there])


def test_the_names_are_those_of_the_package() -> None:
    """The table of names lists `maildir_async.__all__`, and every member it mentions is there."""
    rows = [row for row in page("reference/index").tables() if row[0].startswith("`")]

    assert sorted(name for row in rows for name in quoted(row[0])) == list(maildir_async.__all__)
    for first, second in rows:
        owner = quoted(first)[0]
        if owner in ("Maildir", "AppendTask", "Delivered", "Durability"):
            value = getattr(maildir_async, owner)
            assert [name for name in quoted(second) if not hasattr(value, name) and name != "append"] == []


def test_the_reference_has_every_name() -> None:
    """Each public name of the package, of `smtp` and of `testing` has its docstring in the reference."""
    objects = {
        name for each in PAGES for name in re.findall(r"^::: maildir_async\.(?:\w+\.)*(\w+)$", each.text, re.MULTILINE)
    }
    public = {*maildir_async.__all__, *maildir_async.smtp.__all__, *maildir_async.testing.__all__}
    assert public - objects == set()


def test_the_options_are_those_of_append() -> None:
    """The block on options names every option of `append` but those told of elsewhere."""
    (block,) = [block.text for block in page("delivering").code("python") if "received_at" in block.text]
    named = {keyword.arg for keyword in ast.walk(ast.parse(block, mode="exec")) if isinstance(keyword, ast.keyword)}
    assert named | {"self", "message", "durability", "deadline", "duplicate_key"} == set(
        inspect.signature(Maildir.append).parameters
    )


def test_the_replies_are_those_given() -> None:
    """The table of errors has each reply that the code gives for that errno or exception, and no other."""
    told: dict[str, str] = {}
    for cause, _, reply in page("errors").table("The replies"):
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
    tasks = re.findall(r"`(?:await )?task\.(\w+)", page("twisted").prose)
    assert len(tasks) >= 8
    assert [name for name in tasks if not hasattr(AppendTask, name)] == []
    maildirs = re.findall(r"`(?:await )?maildir\.(\w+)", page("twisted").prose)
    assert [name for name in maildirs if not hasattr(Maildir, name)] == []


def test_the_exit_codes_are_those_of_sysexits() -> None:
    """The command's exit codes are the ones its source names, and the daemon's, but for that of a worker's crash."""
    package = Path(maildir_async.__file__).parent
    source = "".join(path.read_text() for part in ("command", "daemon") for path in (package / part).glob("*.py"))
    named = {getattr(os, name) for name in re.findall(r"\bos\.(EX_\w+)", source)}
    told = named - {os.EX_SOFTWARE} | {PROBLEMS, SIGPIPE_CODE}
    assert {int(code) for code, _ in page("command").table("Exit codes")} == told
    assert {int(code) for code, _ in page("serve").table("Exit codes")} <= named


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help"}


def test_the_options_of_serve_are_there() -> None:
    """The table has every option of `serve`, and no other."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert options_in(page("serve").section("Options")) == options_in(parser.format_help())


@pytest.mark.parametrize(
    ("command", "where", "title"),
    [
        ("deliver", "command", "Delivering"),
        ("clean", "command", "Sweeping"),
        ("import", "import", "Options"),
        ("info", "info-and-check", "Options of info"),
        ("check", "info-and-check", "Options of check"),
    ],
)
def test_the_options_of_the_command_are_there(
    command: str, where: str, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of a subcommand has every option in its help, and no other."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = {name for first, _ in page(where).table(title) for name in options_in(first)}
    assert told == options_in(capsys.readouterr().out)


def test_each_kind_of_problem_is_told_of() -> None:
    """docs/info-and-check.md has a row for each kind that `check` finds, or calls it a note."""
    told = page("info-and-check").section("What is wrong, and what a repair does")
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", told, re.MULTILINE))
    notes = set(re.findall(r"`([a-z-]+)`", told.partition("Two kinds are notes")[2].partition(". So")[0]))
    assert rows | notes == set(KINDS)


def test_each_name_of_the_json_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """docs/info-and-check.md names all that `info --json` and `check --json` print, but for flags and kinds."""
    for name in ("cur", "new", "tmp"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m/tmp/link").symlink_to("nowhere")
    (tmp_path / "m/maildirsize").write_bytes(b"10S\n0 0\n")
    told: list[dict[str, Any]] = []
    for command in ("info", "check"):
        main([command, "--json", str(tmp_path / "m")])
        told.append(json.loads(capfd.readouterr().out))
    names = {
        name
        for code in re.findall(r"`([^`\n]+)`", page("info-and-check").prose)
        for name in code.replace("[]", "").split(".")
    }
    dicts: list[Any] = [*told]
    while dicts:
        each = dicts.pop()
        if isinstance(each, dict):
            assert set(each) <= names
            dicts += [value for name, value in each.items() if name not in ("reasons", "kinds")]
        elif isinstance(each, list):
            dicts += each
