"""The list of lines that are broken on purpose is about this tree: ``python -m tests.mutations`` breaks them."""

import ast
from pathlib import Path

import pytest

import maildir_async
from mutations.lines import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(maildir_async.__file__).parent  # which may be installed elsewhere


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_the_line_is_there_and_its_test(mutation: Mutation) -> None:
    """Its text occurs once in its file, what takes its place is Python, and the test that it names exists."""
    before = (PACKAGE / mutation.file).read_text()
    assert before.count(mutation.text) == 1
    ast.parse(before.replace(mutation.text, mutation.broken))
    file, _, name = mutation.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_each_has_a_name() -> None:
    """None is listed twice, by name or by text."""
    assert len({each.name for each in MUTATIONS}) == len(MUTATIONS) >= 40
    assert len({(each.file, each.text) for each in MUTATIONS}) == len(MUTATIONS)
