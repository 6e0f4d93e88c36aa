"""What is published, and what the repository says of itself: what pyproject.toml claims, and what CI tries."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: Final[dict[str, Any]] = PYPROJECT["project"]
EXTRAS: Final[dict[str, list[str]]] = PROJECT["optional-dependencies"]
GROUPS: Final[dict[str, list[Any]]] = PYPROJECT["dependency-groups"]

#: Extras that a README command of a developer installs; the others are for users.
FOR_DEVELOPERS: Final = {"benchmarks", "test"}


def names(requirements: list[str]) -> set[str]:
    """Return the names of the distributions that these require."""
    return {re.split(r"[^A-Za-z0-9._-]", one)[0].lower() for one in requirements}


def test_all_is_every_extra_for_users() -> None:
    """``maildir-async[all]`` brings what each extra brings, and nothing that only developers use."""
    (reference,) = EXTRAS["all"]
    extras = re.fullmatch(r"maildir-async\[(.*)\]", reference)
    assert extras is not None
    assert set(extras[1].split(",")) == EXTRAS.keys() - FOR_DEVELOPERS - {"all"}


def test_the_tests_have_what_every_extra_brings() -> None:
    """No test is skipped for want of a dependency of the package, so what is claimed is tried."""
    for extra in EXTRAS.keys() - FOR_DEVELOPERS - {"all"}:
        assert names(EXTRAS[extra]) <= names(EXTRAS["test"]), extra


def test_the_oldest_versions_are_claimed_once() -> None:
    """CI's lowest versions are those of pyproject.toml: each dependency for users has one, the same in each extra."""
    command = [sys.executable, str(ROOT / ".ci/lowest.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    pinned = dict(one.split("==") for one in printed if "==" in one and one not in EXTRAS["test"])
    claimed = [*PROJECT["dependencies"], *(one for e in EXTRAS.keys() - FOR_DEVELOPERS - {"all"} for one in EXTRAS[e])]
    assert {f"{name}>={version}" for name, version in pinned.items()} == set(claimed)
    assert names(EXTRAS["test"]) <= names([re.sub("==", ">=", one) for one in printed])


def test_the_lowest_versions_are_tried_with_tests_that_exist() -> None:
    """What .ci/lowest.txt names is there."""
    for line in (ROOT / ".ci/lowest.txt").read_text().splitlines():
        assert (ROOT / line).is_file(), line


def test_what_only_developers_need_is_in_no_extra_for_users() -> None:
    """The groups bring nothing that such an extra brings, so whoever has all extras has no tool too many."""
    for extra in EXTRAS.keys() - FOR_DEVELOPERS - {"all"}:
        for group, members in GROUPS.items():
            assert not names(EXTRAS[extra]) & names([one for one in members if isinstance(one, str)]), (extra, group)


def test_every_python_is_tried() -> None:
    """Each Python of the classifiers is one that .ci/run looks for, from the oldest that may install the package."""
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    loop = re.search(r"^for version in (.*); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert loop is not None
    assert loop[1].split() == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_contributing_names_every_session() -> None:
    """Each session of noxfile.py is in CONTRIBUTING.md, and no other."""
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    told = re.findall(r"^\| `nox -s (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert told == sessions


@pytest.mark.parametrize("hook", ["ruff check", "ruff format", "mypy"])
def test_a_commit_is_checked_with_what_is_installed(hook: str) -> None:
    """Each hook is a program of .venv, so that a commit needs no network."""
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.search(rf"^ *entry: \.venv/bin/{hook}\b", text, re.MULTILINE)
    assert text.count("- repo: local\n") == text.count("- repo:")
