"""The one thing that the tests take from a newer anyio than the package needs: its `anyio_mode` (4.13), as a plugin.

Without it an `async def test_` would have to be marked. Used with the oldest anyio that pyproject.toml claims:
``PYTHONPATH=.ci python -m pytest -p anyio_mode``.
"""

import inspect
from collections.abc import Generator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the setting known, which --strict-config insists on."""
    parser.addini("anyio_mode", "taken to be auto")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class, name: str, obj: object
) -> Generator[None, object, object]:
    """Mark an async test before any plugin looks at it: anyio's takes what is marked."""
    if collector.istestfunction(obj, name) and inspect.iscoroutinefunction(getattr(obj, "hypothesis", obj)):
        pytest.mark.anyio(obj)
    return (yield)
