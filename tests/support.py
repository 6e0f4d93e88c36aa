"""What several test files need: names that collide, forked children, gates for threads, looks at a maildir."""

import asyncio
import os
import pickle
import re
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import settings

from maildir_async.format.names import UniqueNames

T = TypeVar("T")

#: Seconds after which a test that waits in vain fails.
PATIENCE_S: Final = 120

#: For a property: the same examples in every run, however slow the machine.
reproducible: Final = settings(deadline=None, database=None, derandomize=True)

#: ``<sec>.M<µs>P<pid>Q<n>R<16 hex>.<host>``, where the host has nothing in it that a reader trips over.
UNIQUE: Final = re.compile(
    r"(?P<seconds>\d+)\.M(?P<micros>\d{6})P(?P<pid>\d+)Q(?P<count>\d+)R(?P<random>[0-9a-f]{16})"
    r"\.(?P<host>(?:[!-+\-.0-9;-\[\]-~]|\\[0-7]{3})+)"
)


class ListedNames(UniqueNames):
    """Gives the names of a list, then real ones: for collisions on purpose."""

    def __init__(self, *names: str) -> None:
        super().__init__(hostname="host")
        self._listed = list(names)

    def take(self, count: int) -> list[str]:
        listed, self._listed = self._listed[:count], self._listed[count:]
        return listed + super().take(count - len(listed))


def some(values: Iterable[Any], every: int) -> list[Any]:
    """Return *values* for `parametrize`: the first, and each so-manyth after it, in both tiers, the others heavy."""
    return [value if at % every == 0 else _heavy(value) for at, value in enumerate(values)]


def _heavy(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.heavy)


def tree(root: str | os.PathLike[str]) -> dict[str, bytes | None]:
    """Return what is below *root*: relative path → content of a file, None for anything else."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in Path(root).rglob("*")
    }


def contents(root: str | os.PathLike[str]) -> dict[str, list[bytes]]:
    """Return the files' contents in each of a maildir's three directories, in the order of their names.

    A file that goes, or is moved, while this looks is not there.
    """
    found = dict[str, list[bytes]]()
    for name in ("tmp", "new", "cur"):
        if Path(root, name).is_dir():
            found[name] = []
            for path in sorted(Path(root, name).glob("*")):
                with suppress(FileNotFoundError):
                    found[name].append(path.read_bytes())
    return found


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the process's umask for a while."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def forked(job: Callable[[], T], *, children: int = 1) -> list[T]:
    """Return what *job* returns in each of so many forked children, which run side by side and end before this does."""
    running = list[tuple[int, int]]()
    for _ in range(children):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads, which is the point
            pid = os.fork()
        if pid == 0:
            _run_child(job, writer)
        os.close(writer)
        running.append((pid, reader))
    outcomes = list[tuple[bytes, int]]()
    for pid, reader in running:
        with open(reader, "rb") as stream:
            said = stream.read()
        outcomes.append((said, os.waitpid(pid, 0)[1]))
    assert [status for _, status in outcomes] == [0] * children, "a child failed: see its traceback"
    return [pickle.loads(said) for said, _ in outcomes]


def _run_child(job: Callable[[], object], writer: int) -> None:
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # a child that hangs dies, and fails the test
        with open(writer, "wb") as stream:
            pickle.dump(job(), stream)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Gate:
    """For a `Fault`: holds the worker threads that come to it until it is opened."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._opened.wait(PATIENCE_S), "nobody opened the gate"

    @property
    def is_reached(self) -> bool:
        """Whether a thread has come to it."""
        return self._reached.is_set()

    async def reached(self) -> None:
        """Wait until a thread has come to it. No thread of ours waits, which would go on if this is cancelled."""
        deadline = time.monotonic() + PATIENCE_S
        while not self._reached.is_set():
            assert time.monotonic() < deadline, "nobody came to the gate"
            await asyncio.sleep(0.001)

    def open(self) -> None:
        """Let everybody pass, now and later."""
        self._opened.set()


async def turns(count: int = 50) -> None:
    """Give the loop so many turns: what needs no thread, and does not happen in them, does not happen."""
    for _ in range(count):
        await asyncio.sleep(0)


def wire_size(data: bytes) -> int:
    """Return how long *data* is with every line end a CRLF."""
    return len(data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def children() -> set[int]:
    """Return the processes that this one has started and not waited for, those that are over too."""
    found: set[int] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if int(_stat(int(pid))[1]) == os.getpid():
                found.add(int(pid))
    return found


def state_of(pid: int) -> str:
    """Return the state of a process as ps(1) tells it: R, S, D, T; Z if it is over, or gone."""
    try:
        return _stat(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _stat(pid: int) -> list[str]:
    """Return what proc(5) tells of a process after its name: state, parent and more."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
