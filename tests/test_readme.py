"""What the README says is true: its code runs, its commands are those of CI, its figures are those of a report."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import maildir_async
from maildir_async.command.main import main
from pages import ENVIRONMENT, PAGES, README, ROOT

SHELL = [block.text for block in README.blocks if block.language == "sh"]


def test_it_is_short() -> None:
    """It can be read at a sitting; the rest is in docs/."""
    assert len(README.text.splitlines()) <= 130


def test_the_first_example_is_a_program(tmp_path: Path) -> None:
    """The first block runs as it stands, and prints the path of the message it says it delivers."""
    program = README.code("python")[0].text
    assert 5 <= len([line for line in program.splitlines() if line]) <= 10

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )

    path = Path(done.stdout.strip())
    assert path.parent == tmp_path / "Maildir/new"
    assert path.read_bytes() == b"Subject: hello\n\nIt works.\n"


def test_every_piece_of_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs after those before it, and leaves the messages that the text speaks of."""
    monkeypatch.chdir(tmp_path)
    README.run_python(tmp_path)

    stored = sorted(path for path in tmp_path.glob("**/???/*") if path.parent.name in ("new", "cur"))
    maildir = tmp_path / "maildir"
    assert len([path for path in stored if path.parent == maildir / "new"]) == 100
    team = [path for path in stored if path.parents[1].name in ("alice", "carol", "dave")]
    assert len(team) == 3
    assert len({path.stat().st_ino for path in team}) == 1
    (fed,) = (maildir / ".Archive.2024/new").iterdir()
    assert fed.read_bytes() == b"Subject: by hand\n\nline\n"
    assert len(stored) == 1 + 100 + 3 + 1


def test_a_taste_is_short() -> None:
    """There are five tasters, of four lines each, that can be read at a glance."""
    tasters = [block.text for block in README.code("python")[1:]]
    assert len(tasters) == 5
    assert max(len([line for line in text.splitlines() if line]) for text in tasters) <= 4


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


def test_both_commands_are_one_line() -> None:
    """A newcomer copies one line for each."""
    assert [len(text.splitlines()) for text in SHELL] == [1, 1]


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


def test_nothing_is_claimed_that_is_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    """What does not work yet is named under "Not yet" and nowhere else, and what works is not named there."""
    lines = [line for line in README.text.splitlines() if line.startswith("* **Not yet:**")]
    with pytest.raises(SystemExit):
        main(["--help"])
    subcommands = capsys.readouterr().out
    everywhere = "".join(page.text for page in (README, *PAGES))
    for name in re.findall(r"`([^`]+)`", lines[0]) if lines else []:
        assert not hasattr(maildir_async, name), name
        assert not re.search(rf"\b{name}\b", subcommands.partition("{")[2].partition("}")[0]), name
        assert f"{name}(" not in everywhere
        assert f"maildir-async {name} " not in everywhere
