"""What docs/serve.md says of ``serve``, and docs/info-and-check.md of ``info`` and ``check``, is true."""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async.command.main import main
from maildir_async.daemon.options import add_options
from maildir_async.format.problems import KINDS

SERVE: Final = (Path(__file__).parents[1] / "docs/serve.md").read_text()
INFO_AND_CHECK: Final = (Path(__file__).parents[1] / "docs/info-and-check.md").read_text()
CONFIGURATIONS: Final[list[str]] = re.findall(r"^```toml\n(.*?)^```$", SERVE, re.MULTILINE | re.DOTALL)


def test_the_options_are_there() -> None:
    """The table has every option of `serve`, and no other."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    there = {name for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", parser.format_help()) if name != "--help"}
    table = SERVE.partition("## Options\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", table)) == there


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_the_configurations_are_right(text: str, tmp_path: Path) -> None:
    """--check-config finds no mistake in an example."""
    (tmp_path / "config.toml").write_text(text)
    assert main(["serve", "--check-config", "--config", str(tmp_path / "config.toml")]) == os.EX_OK


def test_each_kind_of_problem_is_told_of() -> None:
    """docs/info-and-check.md has a row for each kind that `check` finds, or calls it a note."""
    table = INFO_AND_CHECK.partition("## `check`\n")[2]
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    notes = set(re.findall(r"`([a-z-]+)`", table.partition("Two kinds are notes")[2].partition(". So")[0]))
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
    names = {name for code in re.findall(r"`([^`\n]+)`", INFO_AND_CHECK) for name in code.replace("[]", "").split(".")}
    dicts: list[Any] = [*told]
    while dicts:
        each = dicts.pop()
        if isinstance(each, dict):
            assert set(each) <= names
            dicts += [value for name, value in each.items() if name not in ("reasons", "kinds")]
        elif isinstance(each, list):
            dicts += each
