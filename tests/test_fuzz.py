"""The targets of the fuzzer hold for a few inputs; ``python -m tests.fuzz`` tries others until it is told to stop."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import bdat, data, paths, proxy, session, xclient
from support import reproducible

TARGETS: Final = [bdat.target, data.target, paths.target, proxy.target, xclient.target]

#: What an input is put together from.
PIECES: Final = [
    b"|",
    b"\r\n",
    b".",
    b"\r",
    b"\n",
    b"<",
    b">",
    b"@",
    b'"',
    b"\\",
    b"(",
    b":",
    b"a",
    b"\xff",
    b"=",
    b" ",
    b"N",
    b"PROXY TCP4 ",
    b"ADDR=",
    b"+3",
]
INPUTS: Final = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=30).map(b"".join)


@pytest.fixture(params=TARGETS, ids=["bdat", "data", "paths", "proxy", "xclient"])
def target(request: pytest.FixtureRequest) -> Iterator[Callable[[bytes], None]]:
    session._runner = asyncio.Runner()
    yield request.param
    session._runner.close()


@settings(reproducible, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(INPUTS)
def test_targets(target: Callable[[bytes], None], octets: bytes) -> None:
    """No input makes a target raise."""
    target(octets)
