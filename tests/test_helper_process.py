"""The helper process: it does what this one would do, and however either of them dies, what was told is true.

Run as a program, this file is a parent that dies as told.
"""

import asyncio
import contextlib
import ctypes
import email.message
import errno
import gc
import io
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
import pytest

import maildir_async
from look import Look, chunks_of, descriptors, until
from maildir_async import (
    AppendError,
    AppendTask,
    BusyError,
    Delivered,
    Durability,
    GroupCommit,
    Maildir,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    UncertainAppendError,
)
from maildir_async.commit.entry import TAKEN, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.calls import Disk, write_all
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.errors import Stage
from maildir_async.format.names import names_for
from maildir_async.helper import program
from maildir_async.helper.answers import error_from, error_to
from maildir_async.helper.channel import Channel
from maildir_async.helper.connection import Connection
from maildir_async.helper.in_flight import InFlight, Stream
from maildir_async.helper.process import HelperProcess
from maildir_async.helper.recovery import recover
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import UNIQUE, Gate, children, forked, some, state_of, tree, turns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes by /proc")

#: Bytes of a stream of which some are in tmp/, whatever the size of a chunk.
LONG: Final = 1_300_000


#: For a test of which the kind of loop is not the point.
one_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})], ids=["debug"])


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """When a test is over there is no helper, nor what is left of one that nobody has waited for."""
    before = children()
    yield
    until(lambda: children() <= before)


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a helper that has died young there is another at once."""
    monkeypatch.setattr("maildir_async.helper.process.BACK_OFF_S", (0.0, 0.0))


@asynccontextmanager
async def helped(**options: Any) -> AsyncIterator[GroupCommit]:
    """Have a group commit with a helper, that is ended."""
    commit = GroupCommit(helper_process=True, **options)
    try:
        yield commit
    except BaseException:
        if (pid := commit.statistics().helper_pid) is not None:
            os.kill(pid, signal.SIGKILL)  # it may stand still
        raise
    finally:
        await commit.aclose()


def pid_of(commit: GroupCommit) -> int:
    """Return the process id of its helper, which there must be."""
    pid = commit.statistics().helper_pid
    assert pid is not None
    return pid


def stop(commit: GroupCommit) -> int:
    """Have its helper stand still, and return its process id."""
    pid = pid_of(commit)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")
    return pid


async def soon(condition: Callable[[], object]) -> None:
    """Wait, without blocking the loop, for what is about to happen."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def begin_stream(maildir: Maildir) -> AppendTask:
    """Return a delivery of which the helper has stored something in tmp/."""
    before = set(Look(maildir.path).names("tmp"))
    task = maildir.open_append()
    await task.send(b"x" * LONG)
    await soon(lambda: set(Look(maildir.path).names("tmp")) - before)
    return task


# The same as without it.


def _email() -> email.message.EmailMessage:
    message = email.message.EmailMessage()
    message["Subject"] = "a message"
    message.set_content("with a body\n")
    return message


LINES: Final = b"".join(b"line %d\r\nand %d\n" % (number, number) for number in range(60_000))

KINDS: Final[dict[str, Callable[[], Any]]] = {
    "empty": lambda: b"",
    "bytes": lambda: b"one\ntwo\r\n",
    "bytearray": lambda: bytearray(b"one\ntwo\r\n"),
    "memoryview": lambda: memoryview(b"one\ntwo\r\n")[1:],
    "long bytes": lambda: LINES,
    "a chunk": lambda: b"c" * 2**19,
    "a chunk and one": lambda: b"c" * (2**19 + 1),
    "file": lambda: io.BytesIO(LINES),
    "iterable": lambda: [b"one\r", b"\ntwo", b""],
    "async iterable": chunks_of(b"a few\nlines\n", 3),
    "stream": chunks_of(LINES, 100_003),
    "email": _email,
}

OPTIONS: Final[list[dict[str, Any]]] = [
    {},
    {"flags": "SRF", "received_at": datetime(2001, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)},
    {"prefix": b"Return-Path: <a@b>\nX: y\r\n", "newline": "crlf", "durability": Durability.FILE},
    {"newline": "lf", "size_limit": 2**30, "received_at": 1.5, "durability": Durability.NONE},
]


async def _delivered(maildir: Maildir) -> dict[str, Any]:
    """Deliver everything in every way, and return what can be seen of each message."""
    seen: dict[str, Any] = {}
    for number, options in enumerate(OPTIONS):
        for kind, make in KINDS.items():
            progress: list[int] = []
            one = await maildir.append(make(), on_progress=progress.append, **options)
            path = Path(one.path)
            unique, _, rest = path.name.partition(",")
            match = UNIQUE.fullmatch(unique)
            assert match is not None
            assert match["pid"] == str(os.getpid()), "not a name of this process"
            assert one.key == path.name.partition(":")[0]
            assert progress == sorted(progress)
            found = path.stat()
            seen[f"{kind} {number}"] = (
                (path.parent.name, rest, path.read_bytes(), oct(found.st_mode)),
                found.st_mtime_ns if "received_at" in options else None,
                (one.size, one.wire_size, one.flags, one.durability, one.warnings, one.folder),
                progress[-1],
            )
    return seen


async def test_all_is_as_without_it(tmp_path: Path) -> None:
    """A message of any kind, with any options, is stored, named and told of as it would be by this process."""
    index = await (maildir := Maildir(tmp_path / "plain", commit=GroupCommit(), file_mode=0o640)).index()
    expected = await _delivered(maildir)
    async with helped() as commit:
        maildir = Maildir(tmp_path / "helped", commit=commit, file_mode=0o640)
        index = await maildir.index()
        seen = await _delivered(maildir)
        assert commit.statistics().batches == 0, "this process has done it itself"
        assert pid_of(commit) in children()
    assert seen == expected
    assert len(index) == len(seen) == maildir.statistics().delivered
    Look(maildir.path).assert_tmp_empty()
    assert commit.statistics().helper_pid is None


async def test_many_at_once_into_several_maildirs(tmp_path: Path) -> None:
    """Messages begun together, whole and streamed, come to their own maildirs, each with its own outcome."""
    async with helped() as commit:
        maildirs = [Maildir(tmp_path / name / "sub", commit=commit) for name in "abc"]
        contents = [b"%d " % number * (1 if number % 7 else LONG // 4) for number in range(60)]
        appends = [maildirs[number % 3].append(content) for number, content in enumerate(contents)]
        delivered = await asyncio.gather(*appends)
    assert [Path(one.path).read_bytes() for one in delivered] == contents
    assert [Path(one.path).parents[1] for one in delivered] == [tmp_path / "abc"[n % 3] / "sub" for n in range(60)]
    assert sum(len(Look(maildir.path).messages()) for maildir in maildirs) == 60


@one_loop
async def test_a_limit_is_kept_here(tmp_path: Path) -> None:
    """A message that passes its limit on the way is refused, and nothing of it is left."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit, size_limit=2 * LONG)
        with pytest.raises(MessageTooLargeError):
            await maildir.append(chunks_of(b"x" * 3 * LONG, 100_000)())
        assert Look(maildir.path).names("tmp") == []
        await maildir.append(chunks_of(b"x" * 2 * LONG, 100_000)())
    assert len(Look(maildir.path).messages()) == 1


# Errors.


WRONG: Final = ["missing", "half made", "a file", "new is a file", "name too long"]


@one_loop
@pytest.mark.parametrize("kind", ["short", "stream"])
@pytest.mark.parametrize("wrong", some(WRONG, 2))
async def test_errors_are_as_without_it(
    tmp_path: Path, wrong: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What goes wrong in the helper is raised here: class, errno, stage, reply, text and cause.

    Nothing is left, or printed.
    """
    path = tmp_path / ("x" * 300 if wrong == "name too long" else "m")
    if wrong in ("half made", "new is a file"):
        for name in ("cur", "tmp"):
            (path / name).mkdir(parents=True)
    if wrong == "a file":
        path.write_text("")
    if wrong == "new is a file":
        (path / "new").write_text("")
    before = tree(tmp_path)

    async def fail(commit: GroupCommit) -> tuple[Any, ...]:
        maildir = Maildir(path, commit=commit, create=wrong not in ("missing", "half made"))
        message: Any = b"short" if kind == "short" else chunks_of(b"x" * 3 * LONG, 100_000)()
        with pytest.raises(MaildirError) as caught:
            await maildir.append(message)
        assert tree(tmp_path) == before
        exc = caught.value
        cause = exc.__cause__
        told = None if cause is None else (type(cause), getattr(cause, "errno", None))
        return type(exc), exc.errno, exc.stage, exc.smtp_reply, exc.temporary, str(exc), told

    expected = await fail(GroupCommit())
    async with helped() as commit:
        assert await fail(commit) == expected
        assert pid_of(commit)
    assert capfd.readouterr() == ("", "")


LIMITS: Final = [(resource.RLIMIT_FSIZE, errno.EFBIG, "write"), (resource.RLIMIT_NOFILE, errno.EMFILE, "create")]


@one_loop
@pytest.mark.parametrize("kind", ["short", "stream"])
@pytest.mark.parametrize(("limit", "number", "stage"), LIMITS, ids=["file size", "descriptors"])
async def test_the_helper_meets_a_limit(tmp_path: Path, limit: int, number: int, stage: Stage, kind: str) -> None:
    """A real failure in the middle of a delivery fails that message alone, and leaves nothing."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        pid = pid_of(commit)
        before = resource.prlimit(pid, limit)
        resource.prlimit(pid, limit, (3, before[1]))
        with pytest.raises(AppendError) as caught:
            await maildir.append(b"short" if kind == "short" else chunks_of(b"x" * 3 * LONG, 100_000)())
        assert (caught.value.errno, caught.value.stage) == (number, stage)
        assert Look(maildir.path).names("tmp") == []
        resource.prlimit(pid, limit, before)
        await maildir.append(b"afterwards")
        assert pid_of(commit) == pid
    assert Look(maildir.path).messages() == [b"first use", b"afterwards"]


ERRORS: Final[list[MaildirError]] = [
    MaildirError("closed", errno=errno.ESHUTDOWN, stage="queue"),
    NotAMaildirError("no \udcff maildir", errno=errno.ENOTDIR, stage="create"),
    AppendError("no errno"),
    AppendError("full", errno=errno.ENOSPC, stage="write"),
    BusyError("busy", errno=errno.EAGAIN, stage="queue"),
    MessageTooLargeError("large", errno=errno.EFBIG, stage="receive"),
    UncertainAppendError("uncertain", path="/m/new/1", errno=errno.EIO),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {error}")
def test_an_error_passes_from_process_to_process(error: MaildirError) -> None:
    """It comes out with the same class, text, errno, stage, reply, path and notes, and what the system said."""
    error.add_note("a note")
    error.__cause__ = PermissionError(errno.EACCES, "not for you", "/a/path")
    copy = error_from(*error_to(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert (str(copy), copy.smtp_reply) == (str(error), error.smtp_reply)
    assert type(copy.__cause__) is PermissionError
    assert (copy.__cause__.errno, copy.__cause__.strerror) == (errno.EACCES, "not for you")


@pytest.fixture
def helper_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultDisk]:
    """The disk of helpers that are no processes, but threads of this one, so that their calls can fail as told."""
    disk, threads = FaultDisk(), list[threading.Thread]()

    def start(process: HelperProcess) -> None:
        ours, theirs = socket.socketpair()

        def serve() -> None:
            asyncio.run(program.serve(theirs, os.getppid(), disk, syncfs=False))
            theirs.close()

        threads.append(thread := threading.Thread(target=serve))
        thread.start()
        with process._lock:
            process._control = ours
            waiting, process._to_pass = process._to_pass, []
        for end in waiting:
            process._pass(end)
        process._started.set()

    monkeypatch.setattr(HelperProcess, "start", start)
    yield disk
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


FAULTS: Final[list[tuple[str, str, type[AppendError], Stage]]] = [
    ("create", "/tmp/", AppendError, "create"),
    ("write", "/tmp/", AppendError, "write"),
    ("utime", "/tmp/", AppendError, "write"),
    ("sync", "/tmp/", AppendError, "sync"),
    ("close", "/tmp/", AppendError, "close"),
    ("rename_noreplace", "/new/", AppendError, "publish"),
    ("sync", "/new", UncertainAppendError, "sync_directory"),
]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["short", "stream"])
@pytest.mark.parametrize(("operation", "path", "kind_of", "stage"), FAULTS)
def test_every_call_of_the_helper_fails(
    tmp_path: Path,
    helper_disk: FaultDisk,
    operation: str,
    path: str,
    kind_of: type[AppendError],
    stage: Stage,
    kind: str,
    number: int,
) -> None:
    """Whichever call fails over there: the error is told here with its errno and stage, and what is left is true."""

    async def main() -> None:
        async with helped() as commit:
            maildir = Maildir(tmp_path / "m", commit=commit)
            look = Look(maildir.path)
            first = await maildir.append(b"first use")
            helper_disk.faults.append(Fault(operation, number, path=f"{tmp_path}/m{path}"))
            message: Any = b"short" if kind == "short" else chunks_of(b"x" * LONG, 100_000)()
            with pytest.raises(AppendError) as caught:
                await maildir.append(message, received_at=1.0)
            assert type(caught.value) is kind_of
            assert (caught.value.errno, caught.value.stage) == (number, stage)
            cause = caught.value.__cause__
            assert isinstance(cause, OSError)
            assert (cause.errno, cause.strerror) == (number, os.strerror(number))
            left = {f"{maildir.path}/new/{name}" for name in look.names("new")} - {first.path}
            assert left == ({caught.value.path} if isinstance(caught.value, UncertainAppendError) else set())
            assert look.names("tmp") == []
            await maildir.append(b"afterwards")

    asyncio.run(main())


def test_a_stream_has_the_name_in_tmp_that_was_drawn_for_it(tmp_path: Path, helper_disk: FaultDisk) -> None:
    """Were the helper to die, its file could be found by that name: also if the stream ends before there is a file."""
    gate = Gate()

    async def main() -> None:
        async with helped() as commit:
            maildir, other = (Maildir(tmp_path / name, commit=commit) for name in ("m", "other"))
            helper_disk.faults.append(Fault("create", path=f"{tmp_path}/m/tmp/", gate=gate))
            task = AppendTask(maildir)
            task.write(b"x" * LONG)
            task.unregister_producer()
            await gate.reached()
            for _ in range(2):  # there and back again: whatever the two have to tell one another has been told
                await other.append(b"message")
            gate.open()
            delivered = await task
            made = {os.path.basename(call.path) for call in helper_disk.calls if call.operation == "create"}
            assert (
                len({name for name in made if f"{tmp_path}/m/tmp/{name}" in {c.path for c in helper_disk.calls}}) == 1
            )
            assert delivered.key.partition(",")[0] not in made

    asyncio.run(main())


# Its death.

WRITERS: Final = 24


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kills", [10, pytest.param(40, marks=pytest.mark.heavy)])
def test_killed_at_any_moment_under_load(tmp_path: Path, kills: int, no_back_off: None) -> None:
    """What append returned for is there exactly once, with its own bytes; what it raised for is not; tmp/ is empty.

    A whole message never fails for it, a stream with EPIPE only, and each time another helper takes over.
    """
    dice = random.Random(1)
    outcomes: dict[bytes, Delivered | AppendError] = {}
    killed: list[int] = []

    async def main() -> None:
        commit = GroupCommit(helper_process=True)
        maildirs = [Maildir(tmp_path / name, commit=commit) for name in ("a", "b")]

        async def writer(number: int) -> None:
            for count in range(100_000):
                if len(killed) == kills:
                    return
                streamed = dice.random() < 0.1
                size = dice.randint(530_000, 700_000) if streamed else dice.randint(1, 5000)
                content = b"%d-%d " % (number, count) + b"x" * size
                message: Any = chunks_of(content, 200_000)() if streamed else content
                maildir = maildirs[dice.random() < 0.5]
                try:
                    outcomes[content] = await maildir.append(message, flags="S" if dice.random() < 0.2 else "")
                except AppendError as exc:
                    outcomes[content] = exc

        async def killer() -> None:
            while len(killed) < kills:
                enough = len(outcomes) + dice.randint(1, 60)
                await soon(partial(lambda enough: len(outcomes) >= enough, enough))
                await soon(lambda: commit.statistics().helper_pid not in (None, *killed[-1:]))
                pid = pid_of(commit)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        async with asyncio.timeout(100):
            await asyncio.gather(killer(), *map(writer, range(WRITERS)))
        batches = commit.statistics().batches
        outcomes[b"afterwards"] = await maildirs[0].append(b"afterwards")
        await soon(lambda: commit.statistics().helper_pid not in (None, killed[-1]))
        outcomes[b"and again"] = await maildirs[0].append(b"and again")
        assert batches, "whenever a helper died there was nothing in flight: this was no test"
        await commit.aclose()

    asyncio.run(main())
    assert len(set(killed)) == kills
    copies = Counter[bytes]()
    for name in ("a", "b"):
        look = Look(tmp_path / name)
        copies.update(look.messages())
        look.assert_tmp_empty()
    for content, outcome in outcomes.items():
        told = content[:20], outcome
        if isinstance(outcome, Delivered):
            assert copies.pop(content) == 1, told
            assert Path(outcome.path).read_bytes() == content, told
            assert (outcome.size, outcome.wire_size) == (len(content), len(content)), told
        else:
            assert len(content) > 530_000, "a whole message has failed"
            assert (outcome.errno, type(outcome)) == (errno.EPIPE, AppendError), told
            assert content not in copies, told
    assert not copies, "there is what nobody has been told of"
    assert any(isinstance(outcome, AppendError) for outcome in outcomes.values())


async def test_dies_with_messages_in_flight(tmp_path: Path, no_back_off: None) -> None:
    """A helper killed while it has done nothing yet: whole messages are delivered, what was being received fails."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        unfinished, ended, cancelled = [await begin_stream(maildir) for _ in range(3)]
        pid = stop(commit)
        appends = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(30)]
        ended.unregister_producer()
        cancelled.cancel()
        await turns(5)
        assert commit.statistics().pending == 32  # a cancelled one has given its place up
        late = [asyncio.ensure_future(maildir.append(b"late %d" % number)) for number in range(3)]
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*appends, *late)
        for task in (unfinished, ended):
            with pytest.raises(AppendError, match="helper process died") as caught:
                await task
            assert (caught.value.errno, caught.value.stage) == (errno.EPIPE, "receive")
            assert caught.value.temporary
        await asyncio.wait([cancelled.future])
        assert cancelled.future.cancelled()
        look = Look(maildir.path)
        assert look.names("tmp") == []
        assert Counter(look.messages()) == Counter(
            [b"first use", *(b"%d" % number for number in range(30)), *(b"late %d" % number for number in range(3))]
        )
        assert commit.statistics().pending == 0
        await maildir.append(b"afterwards")


async def test_dies_between_the_start_of_a_stream_and_its_first_chunk(tmp_path: Path, no_back_off: None) -> None:
    """A delivery begun with a helper that dies before it has been given anything has an outcome, a true one."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        streams = [maildir.open_append() for _ in range(3)]
        for task in streams:
            task.write(b"begun ")
        long, short, cancelled = streams
        os.kill(pid_of(commit), signal.SIGKILL)
        await soon(lambda: commit.statistics().helper_pid is None)
        for task in (long, cancelled):
            task.write(b"x" * LONG)
        short.unregister_producer()
        assert isinstance(await short, Delivered)
        cancelled.cancel()
        async with asyncio.timeout(30):
            await asyncio.wait([cancelled.future])
        with suppress(RuntimeError):  # it has failed
            long.unregister_producer()
        await asyncio.wait([long.future], timeout=30)
        assert long.future.done()
        stored = sorted(map(len, Look(maildir.path).messages()))
        assert stored == sorted([len(b"first use"), len(b"begun ")] + [LONG + 6] * (long.future.exception() is None))
        assert Look(maildir.path).names("tmp") == []


@one_loop
async def test_dies_with_nothing_to_do(tmp_path: Path) -> None:
    """A helper that dies while idle costs no message: the next is delivered."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"1")
        os.kill(pid_of(commit), signal.SIGKILL)
        await maildir.append(b"2")
    assert Look(maildir.path).messages() == [b"1", b"2"]


@one_loop
async def test_signals_of_a_terminal_do_not_end_it(tmp_path: Path) -> None:
    """It is for the program to end at a Ctrl-C or a hang-up, and for the helper to be there until it has."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"1")
        pid = pid_of(commit)
        assert os.getsid(pid) == pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        await maildir.append(b"2")
        assert pid_of(commit) == pid


# What is found after it.


class Wreck:
    """A maildir as a dead helper has left it, with one message that was in flight."""

    name: Final = "1700000000.M1P1Q1R0123456789abcdef.host"
    tmp_name: Final = "1600000000.M1P1Q1R0123456789abcdef.host"
    content: Final = b"one\ntwo\n"
    published: Final = f"{name},S=8,W=10"

    def __init__(
        self,
        path: str,
        disk: Disk,
        *,
        streamed: bool = False,
        whole: bool = True,
        durability: Durability = Durability.FULL,
        flags: str = "",
    ) -> None:
        self.path = path
        self.disk = disk
        self.directories = Directories(path, disk=disk, create=True)
        self.mailbox = Mailbox(self.directories, names_for(None), 0o600)
        self.commit = GroupCommit()
        plan = Plan(durability, flags)
        chunks = [b"two\n"] if streamed else self.content
        loop: Any = _Loop()
        self.entry = Entry(self.mailbox, plan, chunks, loop, loop)
        assert self.commit.admission.admit(8)
        self.entry.cost = 8
        self.entry.state = TAKEN
        self.mailbox.enter()
        stream = cast(Stream, _Stream()) if streamed else None
        self.item = InFlight(self.mailbox, self.tmp_name if streamed else self.name, stream=stream)
        if whole:
            self.item.name, self.item.entry = self.name, self.entry

    def put(self, *places: str, content: bytes | None = None) -> None:
        """Have the message at these places, by one file."""
        paths = [f"{self.path}/{place}" for place in places]
        fd = self.disk.create(paths[0], 0o600)
        write_all(self.disk, fd, self.content if content is None else content)
        self.disk.sync(fd)
        self.disk.close(fd)
        for path in paths[1:]:
            self.disk.link(paths[0], path)

    def recover(self) -> str:
        """Do that, and return what the message is: settled, to be delivered again, or failed; never two of these."""
        over, again, failed = recover([self.item])
        assert len(over) + len(again) + len(failed) == 1
        if again:
            assert again == [self.entry]
            assert self.mailbox.in_flight == 1
            return "again"
        if over:
            assert over == [self.entry]
            self.commit.queue.settle(over)
            assert (self.commit.admission.pending, self.mailbox.in_flight) == (0, 0)
            assert (self.entry.error is None) != (self.entry.delivered is None)
            assert self.mailbox.delivered == (self.entry.error is None)
            return "settled"
        assert failed[0][0] is self.item.stream
        self.error = failed[0][1]
        return "failed"


class _Stream:
    """A message being received, that is told nothing."""


class _Loop:
    """A loop that nobody runs."""

    def call_soon_threadsafe(self, *_: object) -> None:
        """Do nothing."""


@pytest.fixture
def wreck(tmp_path: Path) -> Callable[..., Wreck]:
    """Make one in an existing maildir, on a disk whose calls are recorded from then on."""

    def make(*places: str, content: bytes | None = None, disk: Disk | None = None, **options: Any) -> Wreck:
        made = Wreck(str(tmp_path / "m") if disk is None else "/m", disk or FaultDisk(), **options)
        made.directories.make()
        if places:
            made.put(*places, content=content)
        if isinstance(made.disk, FaultDisk):
            made.disk.calls.clear()
        return made

    return make


MakeWreck = Callable[..., Wreck]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("also_in_tmp", [False, True], ids=["renamed", "linked"])
@pytest.mark.parametrize(
    "place", [f"new/{Wreck.published}", f"cur/{Wreck.published}:2,FS"], ids=["in new/", "moved by a reader"]
)
def test_published_and_not_told(wreck: MakeWreck, place: str, also_in_tmp: bool, streamed: bool) -> None:
    """A message that had been published counts as delivered, where it is now, and nothing is left in tmp/."""
    tmp = f"tmp/{Wreck.tmp_name if streamed else Wreck.published}"
    found = wreck(place, *([tmp] if also_in_tmp else []), streamed=streamed)
    assert found.recover() == "settled"
    delivered = found.entry.delivered
    assert delivered is not None
    assert (delivered.path, delivered.key) == (f"{found.path}/{place}", Wreck.published)
    assert (delivered.size, delivered.wire_size, delivered.durability) == (8, 10, Durability.FULL)
    look = Look(found.path)
    assert look.messages() == [Wreck.content]
    assert look.names("tmp") == []
    assert not descriptors(found.path)
    assert isinstance(found.disk, FaultDisk)
    assert [call.path for call in found.disk.calls if call.operation == "sync"], "its directory may not be durable"


@pytest.mark.parametrize("durability", [Durability.FILE, Durability.NONE])
def test_published_and_no_more_was_asked_for(wreck: MakeWreck, durability: Durability) -> None:
    """A weaker level is not synced here either."""
    found = wreck(f"new/{Wreck.published}", durability=durability)
    assert found.recover() == "settled"
    assert found.entry.delivered is not None
    assert found.entry.delivered.durability is durability
    assert isinstance(found.disk, FaultDisk)
    assert "sync" not in [call.operation for call in found.disk.calls]


@pytest.mark.parametrize("content", [None, b"", b"one\ntw"], ids=["whole file", "empty file", "torn file"])
@pytest.mark.parametrize("in_tmp", [True, False])
def test_whole_here_and_not_published(wreck: MakeWreck, in_tmp: bool, content: bytes | None) -> None:
    """A message in memory that was not published is delivered anew, and what there is of it in tmp/ is removed."""
    found = wreck(*([f"tmp/{Wreck.published}"] if in_tmp else []), content=content)
    assert found.recover() == "again"
    assert found.entry.chunks == Wreck.content
    assert tree(found.path) == {"tmp": None, "new": None, "cur": None}


@pytest.mark.parametrize("whole", [True, False], ids=["ended", "being received"])
@pytest.mark.parametrize("in_tmp", [True, False])
def test_streamed_and_not_published(wreck: MakeWreck, in_tmp: bool, whole: bool) -> None:
    """A stream that was not published has failed with EPIPE, whether it had ended or not; its file is removed."""
    found = wreck(*([f"tmp/{Wreck.tmp_name}"] if in_tmp else []), content=b"one\n", streamed=True, whole=whole)
    assert found.recover() == ("settled" if whole else "failed")
    error = found.entry.error if whole else found.error
    assert type(error) is AppendError
    assert (error.errno, error.stage) == (errno.EPIPE, "receive")
    assert tree(found.path) == {"tmp": None, "new": None, "cur": None}


def test_neighbours_are_left_alone(wreck: MakeWreck) -> None:
    """What has another name, however similar, is not taken for the message, nor removed."""
    found = wreck(f"new/{Wreck.name}x,S=8,W=10", f"cur/x{Wreck.name},S=8,W=10:2,", f"tmp/{Wreck.name}x,S=8,W=10")
    before = tree(found.path)
    assert found.recover() == "again"
    assert tree(found.path) == before


def test_the_maildir_is_gone(wreck: MakeWreck) -> None:
    """Where there is no maildir any more there is no message: it is delivered anew."""
    found = wreck()
    shutil.rmtree(found.path)
    assert found.recover() == "again"


def test_found_but_not_durable(wreck: MakeWreck) -> None:
    """If the sync that the helper may not have done fails, the message is visible and uncertain."""
    found = wreck(f"new/{Wreck.published}")
    assert isinstance(found.disk, FaultDisk)
    found.disk.faults.append(Fault("sync", errno.EIO, nth=0))
    assert found.recover() == "settled"
    error = found.entry.error
    assert isinstance(error, UncertainAppendError)
    assert (error.path, error.errno) == (f"{found.path}/new/{Wreck.published}", errno.EIO)
    assert Look(found.path).messages() == [Wreck.content]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("also_in_tmp", [False, True], ids=["renamed", "linked"])
def test_found_but_tmp_cannot_be_changed(wreck: MakeWreck, also_in_tmp: bool, number: int) -> None:
    """A message that is visible is never told of as not delivered, whatever cannot be removed from tmp/."""
    found = wreck(f"new/{Wreck.published}", *([f"tmp/{Wreck.published}"] if also_in_tmp else []))
    assert isinstance(found.disk, FaultDisk)
    found.disk.faults.append(Fault("unlink", number, nth=0))
    assert found.recover() == "settled"
    assert isinstance(found.entry.error, UncertainAppendError | None), found.entry.error
    if found.entry.delivered is not None and also_in_tmp:
        assert "tmp" in found.entry.delivered.warnings[0]


@pytest.mark.parametrize("place", ["new", "cur"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_nobody_knows(wreck: MakeWreck, streamed: bool, place: str) -> None:
    """Where it cannot be seen whether the message was published, it has failed; to deliver it again might double it."""
    found = wreck(f"new/{Wreck.published}", streamed=streamed)
    assert isinstance(found.disk, FaultDisk)
    found.disk.faults.append(Fault("listdir", errno.EIO, path=f"{found.path}/{place}"))
    assert found.recover() == "settled"
    assert isinstance(found.entry.error, AppendError)
    assert found.entry.error.temporary
    assert Look(found.path).messages() == [Wreck.content]


@pytest.mark.parametrize("place", [f"new/{Wreck.published}", f"cur/{Wreck.published}:2,S"], ids=["new", "cur"])
def test_what_is_found_survives_a_power_cut(wreck: MakeWreck, place: str) -> None:
    """A message counted as delivered since it was found is still there when power has gone, wherever it was found."""
    disk = CrashDisk()
    found = wreck(f"new/{Wreck.published}", disk=disk)
    if place.startswith("cur"):
        fd = disk.open_directory("/m/new")
        disk.sync(fd)  # the helper's, and then a reader came
        disk.close(fd)
        disk.rename(f"/m/new/{Wreck.published}", f"/m/{place}")
    assert found.recover() == "settled"
    assert found.entry.delivered is not None
    for left in disk.after_power_cut():
        assert Wreck.content in [content for path, content in left.items() if "/tmp/" not in path]


def test_directories_are_listed_once(wreck: MakeWreck) -> None:
    """However many messages were in flight, a maildir is listed once."""
    found = wreck()
    assert isinstance(found.disk, FaultDisk)
    others = [Wreck(found.path, found.disk) for _ in range(5)]
    recover([found.item, *(other.item for other in others)])
    listed = [call.path for call in found.disk.calls if call.operation == "listdir"]
    assert sorted(listed) == [f"{found.path}/{name}" for name in ("cur", "new", "tmp")]


# The death of this process.


def _die(how: str, path: str) -> None:
    """Be a parent that has told of one message, has many in flight and one being received, and dies."""
    maildir = Maildir(path, commit=GroupCommit(helper_process=True))

    async def begin() -> None:
        await maildir.append(b"told of")
        await begin_stream(maildir)
        fork = 0
        if how == "forked":
            fork = ctypes.PyDLL(None).fork()  # past all hooks: it has copies of every descriptor
            while fork == 0:
                signal.pause()
        tasks.extend(asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(200))
        await turns(3)
        print(maildir.commit.statistics().helper_pid, fork, flush=True)
        if how in ("killed", "forked"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "os._exit":
            os._exit(3)
        elif how == "sys.exit":
            sys.exit(3)

    tasks: list[asyncio.Future[Delivered]] = []
    if how == "end":
        asyncio.new_event_loop().run_until_complete(begin())
    else:
        asyncio.run(begin())


ENDS: Final = {"killed": -9, "forked": -9, "os._exit": 3, "sys.exit": 3, "end": 0, "asyncio.run": 0}


@pytest.mark.parametrize("how", some(ENDS, 2))
def test_it_does_not_outlive_its_parent(tmp_path: Path, how: str) -> None:
    """However the parent dies the helper ends by itself; messages are whole in new/ or not there, and tmp/ is empty."""
    paths = [str(Path(maildir_async.__file__).parents[1]), os.path.dirname(__file__)]
    with (
        open(tmp_path / "stderr", "wb") as stderr,
        subprocess.Popen(
            [sys.executable, __file__, how, str(tmp_path / "m")],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as parent,
    ):
        assert parent.stdout is not None
        said = parent.stdout.readline().split()
        assert parent.wait(60) == ENDS[how], (tmp_path / "stderr").read_text()
        pid, fork = map(int, said)
        until(lambda: state_of(pid) == "Z")
        if fork:
            assert state_of(fork) == "S"
            os.kill(fork, signal.SIGKILL)
    look = Look(tmp_path / "m")
    look.assert_tmp_empty()
    assert b"told of" in look.messages()
    whole = {b"told of", *(b"%d" % number for number in range(200))}
    assert whole >= set(look.messages())
    assert len(look.messages()) == len(set(look.messages()))


# Forks, loops, threads.


def sockets() -> set[str]:
    """Return the sockets that this process has open."""
    found: set[str] = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


def test_a_forked_child_has_its_own(tmp_path: Path) -> None:
    """A child forked while messages are in flight has a helper of its own; the parent's is undisturbed."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    loop = asyncio.new_event_loop()
    before = sockets()
    loop.run_until_complete(maildir.append(b"first use"))
    of_the_helper = sockets() - before
    assert of_the_helper
    pid = stop(commit)

    async def begin() -> list[Any]:
        appends = [asyncio.ensure_future(maildir.append(b"parent %d" % number)) for number in range(20)]
        stream = maildir.open_append()
        await asyncio.wait([asyncio.ensure_future(stream.send(b"s" * LONG)), *appends], timeout=0)
        await turns(5)
        return [*appends, stream]

    pending = loop.run_until_complete(begin())

    def child() -> int:
        assert not sockets() & of_the_helper, "the child holds the parent's connections"

        async def deliver() -> int:
            assert commit.statistics().pending == 0
            await maildir.append_many([b"child"] * 5)
            await maildir.append(chunks_of(b"x" * LONG, 100_000)())
            return pid_of(commit)

        return asyncio.run(deliver())

    theirs = forked(child, children=2)
    assert len({pid, *theirs}) == 3
    for one in theirs:
        until(lambda one=one: state_of(one) == "Z")  # type: ignore[misc]  # a lambda with a default
    assert pid_of(commit) == pid
    os.kill(pid, signal.SIGCONT)
    stream = pending.pop()

    async def finish() -> None:
        stream.unregister_producer()
        await asyncio.gather(*pending, stream)
        await maildir.append(b"afterwards")
        assert pid_of(commit) == pid
        await commit.aclose()

    loop.run_until_complete(finish())
    loop.close()
    look = Look(maildir.path)
    look.assert_tmp_empty()
    found = Counter(look.messages())
    assert [found[b"parent %d" % number] for number in range(20)] == [1] * 20
    assert (found[b"child"], found[b"x" * LONG], found[b"s" * LONG]) == (10, 2, 1)
    assert sum(found.values()) == 20 + 10 + 2 + 1 + 2


def _sockets(pid: int) -> int:
    """Return how many sockets a process has open."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def test_several_loops_and_threads_at_once(tmp_path: Path) -> None:
    """One helper takes the messages of eight loops in as many threads; no connection outlives its loop."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    loop = asyncio.new_event_loop()
    start = threading.Barrier(8)

    async def deliver(thread: int) -> list[Delivered]:
        contents = [b"%d %d" % (thread, number) * (1 if number % 10 else LONG // 4) for number in range(30)]
        start.wait()
        return await maildir.append_many(contents, concurrency=10)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda thread: asyncio.run(deliver(thread)), range(8)))
    loop.run_until_complete(maildir.append(b"one more"))
    pid = pid_of(commit)
    for number in range(8):
        for at, one in enumerate(results[number]):
            assert Path(one.path).read_bytes() == b"%d %d" % (number, at) * (1 if at % 10 else LONG // 4)
    assert len(Look(maildir.path).names("new")) == 8 * 30 + 1
    own = 2 + 1  # its loop's, and the control connection
    until(lambda: _sockets(pid) == own + 1)
    loop.run_until_complete(commit.aclose())
    loop.close()


@pytest.mark.parametrize(
    ("uv", "held"),
    some([(False, True), (False, False), (True, False), (True, True)], 2),
    ids=["asyncio-referenced", "asyncio-forgotten", "uvloop-forgotten", "uvloop-referenced"],
)
def test_loop_closed_under_deliveries(tmp_path: Path, held: bool, uv: bool) -> None:
    """A loop closed with deliveries in flight leaves nothing in tmp/, no connection, and others undisturbed."""
    import uvloop

    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    other, loop = asyncio.new_event_loop(), uvloop.new_event_loop() if uv else asyncio.new_event_loop()
    other.run_until_complete(maildir.append(b"first use"))
    pid, tasks = pid_of(commit), list[Any]()
    sockets = _sockets(pid)

    async def begin() -> None:
        tasks.append(await begin_stream(maildir))
        stop(commit)
        tasks.append(AppendTask(maildir))
        tasks[-1].write(b"y" * LONG)
        tasks.extend(asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(20))
        await turns(5)
        tasks.append(asyncio.ensure_future(maildir.append(b"20")))

    loop.run_until_complete(begin())
    for task in tasks[2:]:
        task._log_destroy_pending = False
    loop.close()
    del loop, task
    if not held:
        tasks.clear()
        gc.collect()
    os.kill(pid, signal.SIGCONT)
    look = Look(maildir.path)
    until(lambda: _sockets(pid) == sockets)
    until(lambda: not look.names("tmp"))
    other.run_until_complete(maildir.append(b"afterwards"))
    assert pid_of(commit) == pid
    other.run_until_complete(commit.aclose())
    other.close()
    assert (
        {b"first use", b"afterwards"}
        <= set(look.messages())
        <= {
            b"first use",
            b"afterwards",
            *(b"%d" % number for number in range(21)),
        }
    )
    assert len(look.messages()) == len(set(look.messages()))
    look.assert_tmp_empty()
    tasks.clear()
    gc.collect()


def test_nobody_uses_it_any_more(tmp_path: Path) -> None:
    """A helper whose group commit is thrown away ends, and is waited for."""
    commit = GroupCommit(helper_process=True)
    asyncio.run(Maildir(tmp_path / "m", commit=commit).append(b"message"))
    pid = pid_of(commit)
    del commit
    until(lambda: gc.collect() >= 0 and pid not in children())  # a thread that looks after it lets go of it first


# Cancellation.


async def _cancel(task: AppendTask, how: str) -> None:
    """Have whoever awaits *task* cancelled, and return when he is."""
    if how == "task":
        task.cancel()
        await asyncio.wait([task.future])
    elif how == "native":
        waiting = asyncio.ensure_future(_wait_for(task))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await task
    else:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await task
        assert scope.cancelled_caught


async def _wait_for(task: AppendTask) -> Delivered:
    return await task


CANCELS: Final = ["task", "native", "timeout", "anyio"]


@pytest.mark.parametrize("how", CANCELS)
async def test_a_cancelled_stream_leaves_nothing(tmp_path: Path, how: str) -> None:
    """When the cancellation of a stream has come through, the helper has removed what there was of it."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        task = await begin_stream(maildir)
        await _cancel(task, how)
        assert Look(maildir.path).names("tmp") == []
        assert task.future.cancelled()
        await maildir.append(b"afterwards")
        assert commit.statistics().pending == 0
    assert Look(maildir.path).messages() == [b"afterwards"]


@pytest.mark.every_loop
@pytest.mark.parametrize("how", some(CANCELS, 2))
@pytest.mark.parametrize("end", ["goes on", "dies"])
async def test_whoever_cancels_waits_for_the_helper(tmp_path: Path, how: str, end: str) -> None:
    """A cancellation comes through when the helper has answered, or is gone; the future says what became of each."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        stream = await begin_stream(maildir)
        pid = stop(commit)
        whole = AppendTask(maildir, b"whole")
        whole.start()
        await turns(5)
        cancelling = [asyncio.ensure_future(_cancel(task, how)) for task in (stream, whole)]
        await turns(200)
        await asyncio.wait(cancelling, timeout=0.01)
        assert [one.done() for one in cancelling] == [False, False]
        os.kill(pid, signal.SIGCONT if end == "goes on" else signal.SIGKILL)
        await asyncio.gather(*cancelling)
        assert Look(maildir.path).names("tmp") == []
        assert stream.future.cancelled()
        assert Path(whole.future.result().path).read_bytes() == b"whole"
    assert Look(maildir.path).messages() == [b"whole"]


@pytest.mark.every_loop
async def test_cancelled_before_it_was_sent(tmp_path: Path) -> None:
    """A message cancelled in the turn it was begun in is not delivered."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        task = AppendTask(maildir, b"cancelled")
        task.start()
        assert task.cancel()
        assert task.future.cancelled()
        await maildir.append(b"afterwards")
        assert commit.statistics().pending == 0
    assert Look(maildir.path).messages() == [b"first use", b"afterwards"]


@one_loop
@pytest.mark.parametrize("why", ["deadline", "fail", "source"])
async def test_a_stream_that_fails_here_leaves_nothing(tmp_path: Path, why: str) -> None:
    """A delivery that ends for a reason of this side raises that, once the helper has removed what it had."""

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * LONG
        await soon(lambda: Look(maildir.path).names("tmp"))
        raise ConnectionResetError("gone")

    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        if why == "source":
            task = AppendTask(maildir, breaks())
        else:
            task = AppendTask(maildir, deadline=timedelta(seconds=1 if why == "deadline" else 1000))
            task.write(b"x" * LONG)
            if why == "fail":
                await soon(lambda: Look(maildir.path).names("tmp"))
                task.fail(ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError if why == "fail" else AppendError):
            await task
        assert Look(maildir.path).names("tmp") == []
    assert Look(maildir.path).messages() == []


# Where there is none.


@pytest.mark.parametrize("program", ["nothing there", "fails", "None"])
def test_it_cannot_be_started(
    tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no helper can be started this process delivers, and does not try again for each message."""
    monkeypatch.setattr("maildir_async.helper.process.BACK_OFF_S", (1000.0, 1000.0))
    started = tmp_path / "started"
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho >> {started}\nexit 1\n")
    script.chmod(0o755)
    wrong = {"nothing there": str(tmp_path / "no"), "fails": str(script), "None": None}[program]
    monkeypatch.setattr(sys, "executable", wrong)

    async def main() -> None:
        async with helped() as commit:
            maildir = Maildir(tmp_path / "m", commit=commit)
            await asyncio.gather(*(maildir.append(b"%d" % number) for number in range(20)))
            for number in range(20, 40):
                await maildir.append(b"%d" % number)
            await maildir.append(chunks_of(b"x" * LONG, 100_000)())
            assert commit.statistics().helper_pid is None
            assert commit.statistics().messages == 41
            if program == "fails":
                assert started.read_text() == "\n"
            monkeypatch.undo()
            commit._delegation._helper._not_before = 0.0  # type: ignore[union-attr]  # as if that time had passed
            await maildir.append(b"with a helper")
            assert pid_of(commit)

    asyncio.run(main())
    assert Counter(Look(tmp_path / "m").messages()) == Counter(
        [b"x" * LONG, b"with a helper", *(b"%d" % number for number in range(40))]
    )
    Look(tmp_path / "m").assert_tmp_empty()
    assert capfd.readouterr() == ("", "")


class OwnDisk(PosixDisk):
    """A disk with a behaviour of its own, if only that it counts."""

    def __init__(self) -> None:
        self.created = 0

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        self.created += 1
        return super().create(path, mode, directory)


@one_loop
@pytest.mark.parametrize("make", [FaultDisk, OwnDisk])
async def test_another_disk_is_used_here(tmp_path: Path, make: Callable[[], FaultDisk | OwnDisk]) -> None:
    """A disk that is not just the system's is the one that is used, in this process."""
    disk = make()
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit, disk=disk)
        await maildir.append(b"message")
        await maildir.append(chunks_of(b"x" * LONG, 100_000)())
        assert commit.statistics().helper_pid is None
    made = disk.created if isinstance(disk, OwnDisk) else [call.operation for call in disk.calls].count("create")
    assert made >= 2


# Bounds, numbers, the end.


async def test_bounds_hold(tmp_path: Path) -> None:
    """What the helper has in hand is pending: past the bound BusyError at once, or a wait, as without a helper."""
    async with helped(max_pending=4, wait=False) as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        pid = stop(commit)
        pending = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(4)]
        await turns(5)
        assert (commit.statistics().pending, commit.statistics().queued) == (4, 0)
        with pytest.raises(BusyError):
            await maildir.append(b"one too many")
        os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*pending)
        await maildir.append(b"room again")
        statistics = commit.statistics()
        assert (statistics.pending, statistics.pending_bytes, statistics.waiting) == (0, 0, 0)
    assert len(Look(maildir.path).names("new")) == 6


@pytest.mark.every_loop
async def test_a_pause_reaches_the_source(tmp_path: Path) -> None:
    """A source is asked for no more than a few chunks while the helper does not take them."""
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x" * 100_000
            await asyncio.sleep(0)

    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        pid = stop(commit)
        task = AppendTask(maildir, endless())
        task.start()
        await turns(2000)
        assert given * 100_000 < 4 * 2**20
        os.kill(pid, signal.SIGCONT)
        await soon(lambda: given * 100_000 > 8 * 2**20)
        await _cancel(task, "task")
        assert Look(maildir.path).names("tmp") == []


class Word(str, Enum):  # noqa: UP042 whose str() is not its value, as a StrEnum's is
    """Words of a program's own."""

    LF = "lf"
    SEEN = "S"


@one_loop
async def test_options_of_a_class_of_one_s_own(tmp_path: Path) -> None:
    """What derives from str is told to the helper as what it is, and holds nobody up."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        options: dict[str, Any] = {"newline": Word.LF, "flags": Word.SEEN, "prefix": memoryview(b"X: 1\r\n")}
        async with asyncio.timeout(30):
            one, other = await asyncio.gather(maildir.append(b"1\r\n", **options), maildir.append(b"2"))
    assert (Path(one.path).read_bytes(), one.flags, Path(other.path).read_bytes()) == (b"X: 1\n1\n", "S", b"2")


# What cannot go over.


@one_loop
@pytest.mark.parametrize("kind", ["short", "stream"])
async def test_each_frame_fails_alone(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that cannot be told to the helper fails by itself, and leaves nothing; the others of its turn go."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        pid = pid_of(commit)
        monkeypatch.setattr("maildir_async.receive.submission.check_newline", lambda newline: newline)
        message: Any = b"short" if kind == "short" else chunks_of(b"x" * LONG, 600_000)()
        bad = maildir.append(message, newline=cast(Any, Word.LF))  # of a kind that does not go over
        async with asyncio.timeout(30):
            one, error, two = await asyncio.gather(
                maildir.append(b"one"), bad, maildir.append(b"y" * LONG), return_exceptions=True
            )
            await maildir.append(b"afterwards")
        assert isinstance(one, Delivered)
        assert isinstance(two, Delivered)
        assert type(error) is AppendError
        assert error.errno == errno.EMSGSIZE
        assert isinstance(error.__cause__, ValueError)
        assert pid_of(commit) == pid
        assert (commit.statistics().pending, maildir.statistics().in_flight) == (0, 0)
    assert sorted(map(len, Look(maildir.path).messages())) == [3, 9, 10, LONG]
    Look(maildir.path).assert_tmp_empty()


@one_loop
@pytest.mark.parametrize("long", ["message", "prefix"])
async def test_what_no_frame_can_hold_is_delivered_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    """A whole message too large for a frame (2 GiB; here 1,000 bytes) is delivered by this process."""
    monkeypatch.setattr("maildir_async.helper.channel.LARGEST", 1000)
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        message, prefix = (b"x" * 1001, b"") if long == "message" else (b"", b"X: " + b"x" * 997 + b"\n")
        await asyncio.gather(maildir.append(b"short"), maildir.append(message, prefix=prefix))
        assert commit.statistics().messages == 1
    assert sorted(Look(maildir.path).messages()) == sorted([b"short", prefix + message])


@one_loop
async def test_a_chunk_of_any_size_goes_over_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a source gives at once, however much, is sent in frames of a bounded size, one unanswered at a time."""
    sizes: list[int] = []
    write = Channel.write

    def counted(channel: Channel, number: int, chunk: bytes) -> None:
        sizes.append(len(chunk))
        write(channel, number, chunk)

    monkeypatch.setattr(Channel, "write", counted)
    content = b"".join(b"%07d\n" % number for number in range(1_500_000))
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append([b"begun ", content, b"ended"])
    assert len(sizes) >= 3
    assert max(sizes) <= 4 * 2**20
    assert Look(maildir.path).messages() == [b"begun " + content + b"ended"]


async def test_a_stream_begun_here_ends_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that this process has begun to write, while there was no helper, is whole: no helper gets its rest."""

    def full(process: HelperProcess) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("maildir_async.helper.process.BACK_OFF_S", (0.0, 0.0))
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        with monkeypatch.context() as patch:
            patch.setattr(HelperProcess, "connect", full)
            task = await begin_stream(maildir)
        await maildir.append(b"now there is one")
        assert commit.statistics().helper_pid is not None
        await task.send(b"rest")
        task.unregister_producer()
        assert (await task).size == LONG + 4
    assert sorted(Look(maildir.path).messages(), key=len) == [b"now there is one", b"x" * LONG + b"rest"]


async def test_no_descriptor_for_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no connection can be made this process delivers; once one can be, the helper does."""

    def full(process: HelperProcess) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("maildir_async.helper.process.BACK_OFF_S", (0.0, 0.0))
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        with monkeypatch.context() as patch:
            patch.setattr(HelperProcess, "connect", full)
            await maildir.append(b"1")
            await maildir.append(b"x" * LONG)
        assert (commit.statistics().messages, commit.statistics().helper_pid) == (2, None)
        await maildir.append(b"2")
        assert (commit.statistics().messages, commit.statistics().pending) == (2, 0)
    assert len(Look(maildir.path).messages()) == 3


def test_a_leftover_of_a_stream_is_told(tmp_path: Path, helper_disk: FaultDisk) -> None:
    """When the helper cannot remove what it has of a stream that is given up here, the error has a note of it."""

    async def main() -> None:
        async with helped() as commit:
            maildir = Maildir(tmp_path / "m", commit=commit)
            task = await begin_stream(maildir)
            helper_disk.faults.append(Fault("unlink", errno.EROFS, path="/tmp/"))
            task.fail(ConnectionResetError("gone"))
            with pytest.raises(ConnectionResetError) as caught:
                await task
            assert "tmp/" in caught.value.__notes__[0]
            (left,) = Look(maildir.path).names("tmp")
            os.unlink(f"{maildir.path}/tmp/{left}")

    asyncio.run(main())


def test_a_thread_that_comes_when_all_is_over_is_not_missed() -> None:
    """A write that ends when the loop of the other process has been closed complains of nothing."""
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    connection = Connection(cast(Any, SimpleNamespace(loop=loop)), ours)
    loop.close()
    stream: Any = SimpleNamespace(write=lambda chunk: None, file=SimpleNamespace(discard=lambda: None))
    connection._write(1, stream, b"late")
    connection._discard_file(1, stream)
    ours.close()
    theirs.close()


def test_what_a_closed_loop_had_in_flight_is_counted(tmp_path: Path) -> None:
    """Whole messages of a loop that is closed are delivered by the helper, are counted, and give their places back."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(maildir.append(b"first use"))
    pid = stop(commit)

    async def begin() -> list[asyncio.Task[Delivered]]:
        begun = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(20)]
        await turns(5)
        return begun

    tasks = loop.run_until_complete(begin())
    assert commit.statistics().pending == 20
    for task in tasks:
        cast(Any, task)._log_destroy_pending = False
    loop.close()
    os.kill(pid, signal.SIGCONT)
    until(lambda: commit.statistics().pending == 0)
    until(lambda: maildir.statistics().in_flight == 0)
    assert maildir.statistics().delivered == 21
    assert len(Look(maildir.path).messages()) == 21

    async def close() -> None:
        assert pid_of(commit) == pid, "the helper had to end for it"
        await maildir.aclose()
        await commit.aclose()

    asyncio.run(close())


def test_what_a_dropped_loop_had_in_flight_gives_its_places_back(tmp_path: Path) -> None:
    """Messages of a loop that is thrown away without being closed hold nothing; the helper and other loops go on."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    asyncio.run(maildir.append(b"first use"))
    pid = stop(commit)

    def begin() -> None:
        loop = asyncio.new_event_loop()

        async def deliver() -> None:
            tasks.extend(asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(20))
            await turns(5)

        tasks: list[Any] = []
        loop.run_until_complete(deliver())
        for task in tasks:
            task._log_destroy_pending = False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the loop, which is dropped on purpose
        begin()
        gc.collect()
    os.kill(pid, signal.SIGCONT)
    assert commit.statistics().pending == 0
    assert maildir.statistics().in_flight == 0
    until(lambda: len(Look(maildir.path).names("new")) == 21)

    async def go_on() -> None:
        await maildir.append(b"afterwards")
        assert pid_of(commit) == pid
        await commit.aclose()

    asyncio.run(go_on())


@one_loop
async def test_the_helper_has_few_descriptors(tmp_path: Path) -> None:
    """With fewer descriptors than messages they are delivered by and by, each under the name that was drawn for it."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        await maildir.append(b"first use")
        pid = pid_of(commit)
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 10, limit[1]))
        delivered = await asyncio.gather(*(maildir.append(b"%d" % number) for number in range(100)))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        for one in delivered:
            unique, _, sizes = one.key.partition(",")
            match = UNIQUE.fullmatch(unique)
            assert match is not None
            assert match["pid"] == str(os.getpid())
            assert sizes == f"S={one.size},W={one.wire_size}"
            assert os.path.basename(one.path) == one.key
    assert len(Look(maildir.path).messages()) == 101


@one_loop
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "being received"])
async def test_the_helper_is_told_to_end_under_a_stream(tmp_path: Path, ended: bool) -> None:
    """A stream that the helper has dropped because it ends has failed: no part of it is ever taken for the whole."""
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        task = await begin_stream(maildir)
        await soon(lambda: task.bytes_written)  # nothing is unanswered
        assert commit._delegation is not None
        pid = stop(commit)
        commit._delegation.end()
        if ended:
            task.write(b"the end")
            task.unregister_producer()
            await turns(5)
        os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(30):
            await asyncio.wait([task.future])
        error = task.future.exception()
        if error is not None:
            assert type(error) is AppendError
            assert (error.errno, error.stage) == (errno.EPIPE, "receive")
        else:
            assert ended
        stored = Look(maildir.path).messages()
        assert stored == ([] if error is not None else [b"x" * LONG + b"the end"])
        Look(maildir.path).assert_tmp_empty()


class _Stuck:
    """A process in uninterruptible sleep: not even a kill ends it."""

    pid = 1

    def __init__(self) -> None:
        self.waited_s = 0.0
        self.kills = 0

    def wait(self, timeout: float | None = None) -> int:
        """Come to nothing; that time passes at once."""
        assert timeout is not None, "waits without a bound"
        self.waited_s += timeout
        raise subprocess.TimeoutExpired("helper", timeout)

    def kill(self) -> None:
        """Do nothing."""
        self.kills += 1


@pytest.mark.parametrize("timeout_s", [60.0, 0.5, 0.0, -1.0])
def test_waiting_for_its_end_has_a_bound(timeout_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that not even a kill ends is waited for no longer than was asked for, and that it has not ended is told."""
    process, stuck = HelperProcess(syncfs=False), _Stuck()
    now = [1000.0]
    monkeypatch.setattr("maildir_async.helper.process.time.monotonic", lambda: now[0] + stuck.waited_s)
    process._popen = cast(Any, stuck)
    process._started.set()
    assert process.wait_gone(timeout_s) is False
    assert stuck.kills == 1
    assert stuck.waited_s <= max(timeout_s, 0.0)


def test_waiting_for_one_that_is_being_started_has_a_bound() -> None:
    """A start that hangs holds nobody up past his limit; and one that nobody is going to make holds up nobody."""
    process = HelperProcess(syncfs=False)
    assert process.wait_gone(0.01) is False
    process.abandon()
    assert process.wait_gone(30) is True


LATE_IMPORTS: Final = """
import asyncio, os, signal, socket, sys, threading
import maildir_async, maildir_async.helper.program as program
from maildir_async import GroupCommit, Maildir, MaildirError
from maildir_async.disk.posix import PosixDisk
from maildir_async.helper.process import HelperProcess

def start(process):
    ours, theirs = socket.socketpair()
    threading.Thread(
        target=lambda: asyncio.run(program.serve(theirs, os.getppid(), PosixDisk(), syncfs=False))
    ).start()
    with process._lock:
        process._control = ours
        waiting, process._to_pass = process._to_pass, []
    for end in waiting:
        process._pass(end)
    process._started.set()

async def chunks():
    for _ in range(10):
        yield b"x" * 200_000

async def main(where, path):
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(path, commit=commit)
    await maildir.append(b"1")
    await maildir.append(chunks())
    try:
        await Maildir(path + "/new/no", create=False, commit=commit).append(b"2")
        sys.exit("delivered")
    except MaildirError:
        pass
    if where == "process":
        os.kill(commit.statistics().helper_pid, signal.SIGKILL)
        await asyncio.gather(*(maildir.append(b"3") for _ in range(50)))
    await commit.aclose()

where, path = sys.argv[1:]
if where == "thread":
    HelperProcess.start = start
before = set(sys.modules)
asyncio.run(main(where, path))
late = set(sys.modules) - before
sys.exit(f"imported late: {late}" if late else 0)
"""


@pytest.mark.parametrize("where", ["process", "thread"])
def test_nothing_is_imported_late(tmp_path: Path, where: str) -> None:
    """Neither side imports anything for a delivery, an error or a death: there may be no descriptor for it."""
    run = subprocess.run(
        [sys.executable, "-c", LATE_IMPORTS, where, str(tmp_path / "m")],
        env=os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


@one_loop
async def test_what_is_in_use_is_not_swept(tmp_path: Path) -> None:
    """`clean_tmp` leaves alone what this process's helper is writing, by whatever path it comes to it."""
    (tmp_path / "link").symlink_to(tmp_path / "m")
    async with helped() as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        task = await begin_stream(maildir)
        (tmp_path / "m" / "tmp" / "another's").touch()
        removed = await maildir.clean_tmp(older_than=timedelta())
        assert [os.path.basename(path) for path in removed] == ["another's"]
        assert await Maildir(tmp_path / "link").clean_tmp(older_than=timedelta()) == []
        task.unregister_producer()
        await task
        assert await maildir.clean_tmp(older_than=timedelta()) == []
    assert Look(maildir.path).messages() == [b"x" * LONG]


async def test_ended_and_begun_again(tmp_path: Path) -> None:
    """`aclose` waits for what is in hand and ends the helper, as often as it is called; then there is another."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    await commit.aclose()
    await GroupCommit().aclose()
    pids: set[int] = set()
    for count in range(1, 4):
        await maildir.append(b"first")
        pids.add(pid := pid_of(commit))
        appends = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(20)]
        await asyncio.sleep(0)
        await asyncio.gather(commit.aclose(), commit.aclose())
        assert commit.statistics().helper_pid is None
        assert pid not in children()
        await asyncio.gather(*appends)
        assert commit.statistics().batches == 0
        assert len(pids) == count
    await asyncio.to_thread(commit.wait_idle, 30)
    assert len(Look(maildir.path).messages()) == 3 * 21


@pytest.mark.every_loop
async def test_cancelling_aclose_does_not_leave_it_half_done(tmp_path: Path) -> None:
    """Whoever is cancelled in `aclose` gets that when the helper is gone."""
    commit = GroupCommit(helper_process=True)
    await Maildir(tmp_path / "m", commit=commit).append(b"message")
    pid = pid_of(commit)
    closing = asyncio.ensure_future(commit.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert pid not in children()


def test_memory(tmp_path: Path) -> None:
    """A stream of 200 MiB through the helper grows this process by less than 16 MiB."""
    from test_memory import status

    async def fresh() -> AsyncIterator[bytes]:
        for number in range(200 * 16):
            yield b"%07d\n" % number * 8192

    async def main() -> tuple[Delivered, int]:
        async with helped() as commit:
            maildir = Maildir(tmp_path / "m", commit=commit)
            await maildir.append(chunks_of(b"x" * 4 * LONG, 65536)())
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted from here
            before = status("VmRSS")
            delivered = await maildir.append(fresh())
            return delivered, status("VmHWM") - before

    delivered, grown = asyncio.run(main())
    assert delivered.size == Path(delivered.path).stat().st_size == 200 * 2**20
    os.unlink(delivered.path)
    assert grown < 16 * 2**20


if __name__ == "__main__":
    _die(sys.argv[1], sys.argv[2])
