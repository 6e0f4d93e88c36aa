"""The manual page and the shell completions: as fresh as the options, and of use."""

import argparse
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

from maildir_async.command.main import SUBCOMMANDS, make_parser
from maildir_async.command.manual import FILES, completion, main, manual

ROOT: Final = Path(__file__).parents[1]
SHARE: Final = ROOT / "share"
REMAKE: Final = "make it anew: .venv/bin/python -m maildir_async.command.manual share"


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def test_the_manual_page_is_fresh() -> None:
    """The page that is checked in is the one that the options make."""
    assert (SHARE / FILES["man"]).read_text() == manual(), REMAKE


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completions_are_fresh(shell: str) -> None:
    """The completions that are checked in are those that the options make, by the shtab that the tests ask for."""
    shtab = pytest.importorskip("shtab")
    wanted = re.search(r'"shtab==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    if wanted is None or shtab.__version__ != wanted[1]:
        pytest.skip("another version of shtab writes something else")
    assert (SHARE / FILES[shell]).read_text() == completion(shell), REMAKE


@pytest.mark.parametrize("name", sorted(SUBCOMMANDS))
def test_help_explains_each_option(name: str) -> None:
    """Each option of each subcommand has a help text; there are examples, and the exit codes that it has."""
    parser = subcommands()[name]
    assert [action.dest for action in parser._actions if not (action.help or "").strip()] == []
    text = parser.format_help()
    assert "\nexamples:\n" in text
    assert f"maildir-async {name} " in text.partition("\nexamples:\n")[2]
    assert re.search(r"^exit codes\b.*:\n  0 ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man")
def test_the_manual_page_can_be_read() -> None:
    """`man` shows the page without a complaint, with every option of every subcommand."""
    done = subprocess.run(
        ["man", "--warnings", "-E", "ascii", "-l", SHARE / FILES["man"]],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MANWIDTH": "200", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C"},
    )
    assert done.stderr == ""
    shown = re.sub(r".\x08|\x1b\[[\d;]*m", "", done.stdout)
    for name, parser in subcommands().items():
        section = re.split(
            r"^[A-Z][A-Z ]*$", shown.partition(f"\n{name.upper()}\n")[2], maxsplit=1, flags=re.MULTILINE
        )[0]
        assert options(parser) - {"--help"} - set(re.findall(r"--[a-z][a-z-]*", section)) == set()
        for line in (parser.epilog or "").splitlines():
            assert " ".join(line.removesuffix(":").split()) in " ".join(section.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path) -> None:
    """bash, with the file sourced, completes subcommands, options, their values, and directories."""
    (tmp_path / "Maildir").mkdir()
    script = f"""
        set -e
        source {SHARE / FILES["bash"]}
        function_of=$(complete -p maildir-async | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        try() {{
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=()
            "$function_of" "$1" "${{@: -1}}" "${{@: -2:1}}" || true
            echo "${{COMPREPLY[@]}}"
        }}
        try maildir-async del
        try maildir-async deliver --dur
        try maildir-async deliver --durability ""
        try maildir-async clean M
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "deliver",
        "--durability",
        "full file none",
        "Maildir",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_read_the_completions(shell: str) -> None:
    """Each shell takes its file without a complaint."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    path = SHARE / FILES[shell]
    program = f"source {path}"
    if shell == "zsh":  # which loads it when it is needed; its first line says for which command
        program = f"fpath=({path.parent} $fpath); autoload -Uz compinit; compinit -u -D; autoload +X {path.name};"
        program += f"[[ $_comps[maildir-async] == {path.name} ]]"
    quiet = "--norc" if shell == "bash" else "-f"
    done = subprocess.run([shell, quiet, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_wheel_has_them() -> None:
    """The build takes all of share/ into the wheel, where it is installed beside the command, and into the sdist."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["shared-data"] == {"share": "share"}
    assert "/share" in build["sdist"]["include"]
    assert {str(path.relative_to(SHARE)) for path in SHARE.rglob("*") if path.is_file()} == set(FILES.values())


def test_they_can_be_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a failing test names writes the manual page and the completions, and prints their paths."""
    pytest.importorskip("shtab")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in FILES.values()]
    assert (tmp_path / FILES["man"]).read_text() == manual()
