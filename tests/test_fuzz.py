"""The targets of the fuzzer hold for a few inputs, and each parser has one; ``python -m tests.fuzz`` does more."""

import asyncio
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maildir_async
from fuzz import NO_PARSERS, TARGETS, session
from fuzz.inputs import pieces_of, target_of
from fuzz.running import run_by_chance, run_patterns
from support import reproducible

PACKAGE: Final = Path(maildir_async.__file__).parent  # which may be installed elsewhere

#: Of those that need a session, which cost more and have no other property test, three times as many inputs.
IN_SESSIONS: Final = ("bdat", "data", "paths")

#: Methods of texts and octets, and functions, by which something is taken apart.
TAKES_APART: Final = re.compile(
    r"\.(?:split|rsplit|partition|rpartition|splitlines|match|fullmatch|finditer|findall|unpack|unpack_from|loads"
    r"|from_bytes|fromhex|fromisoformat)\("
)


@pytest.fixture
def _runner() -> Iterator[None]:
    session._runner = asyncio.Runner()
    yield
    session._runner.close()


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.usefixtures("_runner")
def test_targets(name: str) -> None:
    """No input makes a target raise."""
    target = target_of(name)
    inputs = st.lists(st.sampled_from(pieces_of(name)) | st.binary(max_size=3), max_size=30).map(b"".join)
    chunks = st.one_of(st.just(b""), st.binary(max_size=5).map(lambda lengths: lengths + b"|"))

    @settings(
        reproducible, max_examples=60 if name in IN_SESSIONS else 20, suppress_health_check=[HealthCheck.nested_given]
    )
    @given(chunks, inputs)
    def holds(lengths: bytes, octets: bytes) -> None:
        target(lengths + octets)

    holds()


def test_each_function_exists() -> None:
    """Each target is a module of the rig, and each function that it is said to test is one of the package."""
    modules = {path.stem for path in Path(__file__).with_name("fuzz").glob("*.py")}
    assert modules - {"__init__", "__main__", "cutting", "inputs", "running", "session"} == set(TARGETS)
    for _, functions in TARGETS.values():
        assert functions
        for function in functions:
            module, _, path = function.partition(":")
            found: object = importlib.import_module(f"maildir_async.{module}")
            for name in path.split("."):
                found = getattr(found, name)
            assert callable(found), function


def test_no_parser_is_left_out() -> None:
    """A module that takes texts or octets apart has a target, or it is said why it needs none."""
    tested = {function.partition(":")[0] for _, functions in TARGETS.values() for function in functions}
    apart = set[str]()
    for path in PACKAGE.rglob("*.py"):
        if TAKES_APART.search(path.read_text()):
            apart.add(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    assert apart - tested == set(NO_PARSERS)


def test_what_fails_is_told_with_its_input() -> None:
    """A target that raises is a fault, in inputs by chance and in patterns, and the input is told."""

    def target(data: bytes) -> None:
        assert b"ab" not in data

    ran = run_by_chance(target, [b"a", b"b"], seconds=60, seed=1)
    assert "ab" in ran.fault
    assert "AssertionError" in ran.fault
    assert "ab" in run_patterns(target, [b"a", b"ab"], 1000).fault
    assert run_patterns(target, [b"a"], 1000).fault == ""


def test_time_that_grows_faster_than_the_input_is_told() -> None:
    """A target that takes quadratic time is a fault; one that takes as much time in a straight line is none."""
    taken = 0.0

    def quadratic(data: bytes) -> None:
        nonlocal taken
        taken += (len(data) / 1000) ** 2

    def linear(data: bytes) -> None:
        nonlocal taken
        taken += len(data) / 1000

    assert "four times as much" in run_patterns(quadratic, [b"a"], 4000, lambda: taken).fault
    assert run_patterns(linear, [b"a"], 4000, lambda: taken).fault == ""
