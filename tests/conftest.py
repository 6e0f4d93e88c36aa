"""The bench every test runs on: an event loop in debug mode, and no blocking call on it.

A test marked `every_loop` runs on the other kinds of loop too. A test marked `heavy` runs only if it is asked for.
"""

import asyncio
import gc
import linecache
import os
import signal
import ssl
import sys
import time
import traceback
from asyncio import constants
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosmtpd
import pytest
from blockbuster import BlockBusterFunction

import maildir_async
from maildir_async.commit.batch import names_in_use
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.streamfile import streams_in_use


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]  # 3.12+
    return loop


# A shell has what it runs in the background ignore SIGINT, and nohup SIGHUP: so would what the tests start.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts: one more than there are cores, as tests wait for disks and peers."""
    return min(len(os.sched_getaffinity(0)) + 1, 5)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the garbage collector from looking at what is there for as long as the tests run: it is most of the heap."""
    if sys.version_info < (
        3,
        14,
    ):  # where Hypothesis asks the collector who refers to what, and takes silence for nobody
        gc.collect()
        gc.freeze()


def _nothing_has_changed(filename: str | None = None) -> None:
    """For `linecache.checkcache`."""


# Debug mode keeps a stack of ten frames for every call, future and task, and asks for the date of each frame's file:
# half of the time of many a test. No source file changes while the tests run, and three frames show who it was.
linecache.checkcache = _nothing_has_changed
constants.DEBUG_STACK_DEPTH = 3  # type: ignore[misc]  # final for those who read it
traceback.extract_stack.__defaults__ = (None, 3)  # which is what asyncio's C code calls, with no argument

#: Asyncio's debug mode also checks what plain asyncio takes on trust, so a test that runs on one runs on that.
LOOPS: dict[str, dict[str, Any]] = {"debug": {"debug": True}, "uvloop": {"use_uvloop": True}}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = {"loop_factory": _eager_loop}


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ("asyncio", request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give an async test the debug loop, or every kind of loop if it is marked so, unless it names its own."""
    if "anyio_backend" not in metafunc.fixturenames or any(
        "anyio_backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        return
    names = list(LOOPS) if metafunc.definition.get_closest_marker("every_loop") else ["debug"]
    metafunc.parametrize("anyio_backend", [LOOPS[name] for name in names], ids=names, indirect=True)


OS_CALLS = ["open", "read", "write", "fsync", "close", "rename", "link", "unlink", "mkdir", "listdir", "scandir"]
OS_CALLS += ["stat", "fstat", "utime", "fchmod", "posix_fadvise"]
DISK_CALLS = [name for name in vars(PosixDisk) if not name.startswith("_")]  # renameat2 goes past the os module
DETECTORS = [
    BlockBusterFunction(
        module,
        name,
        scanned_modules=maildir_async,
        # asyncio's debug mode keeps the source line of every call, which is Python's own doing.
        can_block_functions=[("/linecache.py", {"checkcache", "updatecache"})],
    )
    for module, names in ((os, OS_CALLS), (PosixDisk, DISK_CALLS))
    for name in names
]


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_loop() -> Iterator[None]:
    """Any such call by the package, on a thread whose loop is running, raises there and fails the test."""
    for detector in DETECTORS:
        detector.activate()
    yield
    for detector in DETECTORS:
        detector.deactivate()


@pytest.fixture(autouse=True)
def no_tmp_file_forgotten() -> Iterator[None]:
    """When a test is over, this process has no file left in any tmp/: at most a thread is just forgetting one."""
    yield
    deadline = time.monotonic() + 5
    while (names_in_use() or streams_in_use()) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert names_in_use() | streams_in_use() == set()


@pytest.fixture(scope="session")
def certificate() -> ssl.SSLContext:
    """The one that aiosmtpd's own tests have; its packages have them too."""
    directory = Path(aiosmtpd.__file__).parent / "tests" / "certs"
    if not directory.is_dir():
        pytest.skip(f"no certificate: this aiosmtpd has no {directory.name}")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    return context
