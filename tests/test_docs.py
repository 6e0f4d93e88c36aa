"""What docs/serve.md says of ``serve`` is true: its options, and its examples of a configuration."""

import argparse
import os
import re
from pathlib import Path
from typing import Final

import pytest

from maildir_async.command.main import main
from maildir_async.daemon.options import add_options

SERVE: Final = (Path(__file__).parents[1] / "docs/serve.md").read_text()
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
