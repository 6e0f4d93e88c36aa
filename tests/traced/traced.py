"""A forked child that strace(1) has hold of before it does anything."""

import asyncio
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .scenarios import Scenario, Tell

__all__ = ["CALLS", "MORE_CALLS", "Run", "Traced", "run", "run_plain"]

#: System calls that change what is on the disk, or make it durable.
CALLS: Final = (
    "openat",
    "mkdir",
    "mkdirat",
    "write",
    "writev",
    "pwrite64",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync_file_range",
    "io_submit",
    "io_getevents",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "ftruncate",
    "fallocate",
    "utimensat",
    "fchmod",
    "fchown",
)

#: Those that only look, or end something.
MORE_CALLS: Final = (
    "close",
    "newfstatat",
    "fstat",
    "statx",
    "lstat",
    "stat",
    "getdents64",
    "flock",
    "fcntl",
    "read",
    "pread64",
    "lseek",
    "fadvise64",
    "io_setup",
    "io_destroy",
    "fstatfs",
    "statfs",
    "access",
    "faccessat2",
    "readlink",
)

#: Seconds after which a program that has not ended hangs.
PATIENCE_S: Final = 60.0

_LINE: Final = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed)(.*)$")


@dataclass(frozen=True, slots=True)
class Traced:
    """A call in strace's log: the thread's number in the order of first appearance, the call and its arguments."""

    thread: int
    call: str
    text: str


@dataclass(slots=True)
class Run:
    """What became of a child.

    Attributes:
        told: what it has acknowledged: names and paths.
        signal: that has ended it, or 0.
        error: the exception that ended its program, as a line; "" if none did.
        seconds: from the moment it was let go to its end.
        calls: that strace has seen.
        hung: it had to be ended.

    """

    told: list[tuple[str, str]] = field(default_factory=list)
    signal: int = 0
    error: str = ""
    seconds: float = 0.0
    calls: list[Traced] = field(default_factory=list)
    hung: bool = False


def run(scenario: Scenario, place: Path, tag: str, log: Path, calls: tuple[str, ...], *inject: str) -> Run:
    """Run *scenario* in a child under strace with *inject*, and return what became of it."""
    tracing = f"--trace={','.join(f'?{call}' for call in calls)}"

    def attach(pid: int) -> "subprocess.Popen[bytes]":
        command = ["strace", "-f", "-o", str(log), tracing, *(f"--inject={each}" for each in inject), "-p", str(pid)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.readline()
        if b"attached" not in said:
            process.wait(PATIENCE_S)
            raise RuntimeError(f"strace: {said.decode().strip()}")
        return process

    found = _run(lambda tell: scenario.run(place, tag, tell), attach)
    found.calls = _read(log)
    return found


def run_in_new_place(scenario: Scenario, work: Path, calls: tuple[str, ...], *inject: str) -> Run:
    """Run *scenario* as `run` does, as the first in ``place`` below *work*, which is made anew for it."""
    place = work / "place"
    if place.exists():
        shutil.rmtree(place)
    place.mkdir()
    scenario.prepare(place)
    return run(scenario, place, "first-", work / "log", calls, *inject)


def run_plain(job: Callable[[Tell], "object"]) -> Run:
    """Run *job*, which returns an awaitable, in a child that nobody traces."""
    return _run(job, None)


def _run(job: Callable[[Tell], "object"], attach: "Callable[[int], subprocess.Popen[bytes]] | None") -> Run:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(job, ours, theirs)
    theirs.close()
    strace = None
    ended = False
    found = Run()
    gone = os.pidfd_open(pid)
    try:
        ours.settimeout(PATIENCE_S)
        ours.recv(16)  # from here on it makes no call but its program's
        strace = attach(pid) if attach is not None else None
        began = time.monotonic()
        ours.send(b"go")
        _hear(ours, found)
        ready, _, _ = select.select([gone], [], [], max(1.0, began + PATIENCE_S - time.monotonic()))
        found.seconds = time.monotonic() - began
        ended = bool(ready)
        found.hung = not ended
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(gone)
        ours.close()
        if strace is not None:
            try:
                strace.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                strace.kill()
                strace.communicate()
    found.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return found


def _hear(ours: socket.socket, found: Run) -> None:
    """Take what the child tells, until it ends or hangs."""
    ours.settimeout(PATIENCE_S)
    while True:
        try:
            said = ours.recv(65536)
        except (TimeoutError, ConnectionResetError):
            return
        if not said:
            return
        name, path = json.loads(said)
        if name is None:
            found.error = path
        else:
            found.told.append((name, path))


def _child(job: Callable[[Tell], "object"], ours: socket.socket, theirs: socket.socket) -> None:
    """Wait to be let go, run *job*, and end."""
    status = 1
    try:
        ours.close()
        theirs.send(b"ready")
        theirs.recv(16)

        def tell(name: str | None, path: str) -> None:
            theirs.send(json.dumps([name, path]).encode())  # no call of those that are counted

        async def main() -> None:
            try:
                await job(tell)  # type: ignore[misc]
            except Exception as exc:
                tell(None, f"{type(exc).__name__}: {exc}")

        status = 0
        try:
            asyncio.run(main())
        except OSError:  # a fault that the loop has met when it was closed
            os._exit(0)  # at once: what is left of the loop would complain
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _read(log: Path) -> list[Traced]:
    threads = dict[str, int]()
    found = list[Traced]()
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is not None and match[3] == "(":
            found.append(Traced(threads.setdefault(match[1], len(threads)), match[2], match[4]))
    return found
