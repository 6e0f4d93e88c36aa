"""The mailbox: made, delivered to in numbers, listed, swept, counted and closed."""

import asyncio
import errno
import gc
import mailbox
import os
import threading
import time
import tracemalloc
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from maildir_async import (
    AppendError,
    AppendTask,
    Delivered,
    Durability,
    GroupCommit,
    Maildir,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    UncertainAppendError,
    deliver,
)
from maildir_async.disk.directories import Directories
from maildir_async.disk.listing import clean_tmp
from maildir_async.disk.posix import PosixDisk
from maildir_async.format.content import Content, check_newline, check_prefix
from maildir_async.format.names import UniqueNames
from maildir_async.format.options import nanoseconds
from maildir_async.mailbox.upkeep import is_in_use
from maildir_async.testing import Fault, FaultDisk
from support import Gate, contents, tree, turns

MAIL = b"Subject: x\n\nbody\n"
LONG = bytes(1_300_000)
EMPTY: dict[str, list[bytes]] = {"tmp": [], "new": [], "cur": []}
SUBDIRECTORIES = {"tmp": None, "new": None, "cur": None}


class SourceError(Exception):
    """What sources in these tests raise."""


# The object.


def test_construction_touches_nothing(tmp_path: Path) -> None:
    """To make a Maildir needs no loop, no directory and no system call; it works in any thread."""
    disk = FaultDisk()
    path = tmp_path / "missing" / "box"
    maildir = Maildir(path, disk=disk)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(Maildir, path, disk=disk).result().path == maildir.path
    assert maildir.statistics().in_flight == 0
    assert disk.calls == []
    assert os.listdir(tmp_path) == []


def test_a_relative_path_is_fixed_at_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is taken from where the process stood when the Maildir was made."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    maildir = Maildir("box")
    monkeypatch.chdir(tmp_path / "there")
    assert maildir.path == str(tmp_path / "here" / "box")
    delivered = asyncio.run(_append(maildir, MAIL))
    assert Path(delivered.path).parent == tmp_path / "here" / "box" / "new"
    assert tree(tmp_path / "there") == {}


async def _append(maildir: Maildir, message: Any) -> Delivered:
    return await maildir.append(message)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "names"),
    [
        ((b"box",), {}, TypeError, "bytes"),
        ((17,), {}, TypeError, "int"),
        (("",), {}, ValueError, "''"),
        (("a\0b",), {}, ValueError, "x00"),
        ((None,), {}, TypeError, "path.*NoneType"),
        (("a\ud800b",), {}, ValueError, "path.*ud800"),
        (("box",), {"create": "no"}, TypeError, "create.*'no'"),
        (("box",), {"commit": 3}, TypeError, "commit.*3"),
        (("box",), {"size_limit": -1}, ValueError, "size_limit.*-1"),
        (("box",), {"size_limit": "10M"}, TypeError, "size_limit.*'10M'"),
        (("box",), {"durability": "full"}, TypeError, "durability.*'full'"),
        (("box",), {"durability": None}, TypeError, "durability.*None"),
        (("box",), {"file_mode": 0o700}, ValueError, "file_mode.*0o700"),
        (("box",), {"file_mode": 0o4600}, ValueError, "file_mode.*0o4600"),
        (("box",), {"file_mode": "600"}, TypeError, "file_mode.*'600'"),
        (("box",), {"file_mode": -1}, ValueError, "file_mode.*-1"),
        (("box",), {"file_mode": True}, TypeError, "file_mode.*True"),
        (("box",), {"hostname": b"x"}, TypeError, "hostname.*b'x'"),
        (("box",), {"hostname": "a\ud800"}, ValueError, "hostname.*ud800"),
        (("box",), {"names": 3}, TypeError, "names.*3"),
        (("box",), {"disk": 3}, TypeError, "disk.*3"),
        (("box",), {"hostname": "a", "names": UniqueNames()}, ValueError, "hostname"),
    ],
)
def test_bad_arguments(arguments: tuple[Any], options: dict[str, Any], error: type[Exception], names: str) -> None:
    """A wrong argument of Maildir raises, naming what is wrong."""
    with pytest.raises(error, match=names):
        Maildir(*arguments, **options)


BAD_CALLS: dict[str, tuple[Callable[[Maildir], Awaitable[object]], type[Exception], str]] = {
    "concurrency text": (lambda maildir: maildir.append_many([], concurrency=cast(int, "4")), TypeError, "concur.*'4'"),
    "concurrency 0": (lambda maildir: maildir.append_many([], concurrency=0), ValueError, "concurrency.*0"),
    "on_progress": (lambda maildir: maildir.append_many([], on_progress=cast(Any, 3)), TypeError, "on_progress.*3"),
    "return_exceptions": (
        lambda maildir: maildir.append_many([], return_exceptions=cast(Any, "no")),
        TypeError,
        "return_exceptions.*'no'",
    ),
    "older_than 3": (lambda maildir: maildir.clean_tmp(cast(timedelta, 3)), TypeError, "older_than.*3"),
    "older_than -1": (lambda maildir: maildir.clean_tmp(timedelta(-1)), ValueError, "older_than.*-1"),
    "size text": (lambda maildir: maildir.check_room(cast(int, "3")), TypeError, "size.*'3'"),
    "size -1": (lambda maildir: maildir.check_room(-1), ValueError, "size.*-1"),
}


@pytest.mark.parametrize("call", list(BAD_CALLS))
async def test_bad_arguments_of_methods(tmp_path: Path, call: str) -> None:
    """A wrong argument of a method raises, naming the argument and what it was, and touches nothing."""
    disk = FaultDisk()
    done, error, names = BAD_CALLS[call]
    with pytest.raises(error, match=names):
        await done(Maildir(tmp_path / "box", disk=disk))
    assert disk.calls == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_pending": "4"}, TypeError),
        ({"max_pending": 0}, ValueError),
        ({"max_pending": 1.5}, TypeError),
        ({"max_pending_bytes": None}, TypeError),
        ({"max_pending_bytes": -1}, ValueError),
        ({"wait": "no"}, TypeError),
        ({"syncfs": "no"}, TypeError),
        ({"helper_process": 1}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments_of_a_group_commit(options: dict[str, Any], error: type[Exception]) -> None:
    """A wrong argument of GroupCommit raises, naming the argument and what it was."""
    ((name, value),) = options.items()
    with pytest.raises(error, match=f"{name}.*{value!r}"):
        GroupCommit(**options)


class Text(str):
    """A str of its own kind."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Word(str, Enum):  # noqa: UP042 whose str() is not its value, as a StrEnum's is
    LF = "lf"
    SEEN = "S"


class Number(IntEnum):
    MODE = 0o640
    LIMIT = 1000


async def test_classes_of_one_s_own_become_exact_types(tmp_path: Path) -> None:
    """What derives from str, int or bytes is taken for what it is, and nothing further down meets its class."""

    class Bytes(bytes):
        pass

    maildir = Maildir(
        Text(tmp_path / "box"), file_mode=Number.MODE, size_limit=Number.LIMIT, hostname=Text("mx.example.org")
    )
    exact = [maildir.path, maildir.mailbox.mode, maildir.size_limit]
    assert [(type(value), value) for value in exact] == [
        (str, str(tmp_path / "box")),
        (int, 0o640),
        (int, 1000),
    ]
    for prefix in (Bytes(b"X: 1\r\n"), bytearray(b"X: 1\r\n"), memoryview(b"X: 1\r\n")):
        task = AppendTask(maildir, MAIL, flags=Word.SEEN, newline=cast(Any, Word.LF), prefix=cast(bytes, prefix))
        delivered = await task
        assert (type(delivered.flags), delivered.flags, type(delivered.path)) == (str, "S", str)
        assert delivered.path.partition(",")[0].endswith(".mx.example.org")
        assert Path(delivered.path).read_bytes() == b"X: 1\n" + MAIL
    content = Content(prefix=check_prefix(Bytes(b"X: 1\n")), newline=check_newline(cast(Any, Word.LF)))
    assert (type(content.prefix), type(content.newline)) == (bytes, str)
    assert [type(nanoseconds(value)) for value in (Number.LIMIT, 1.5, datetime(2026, 1, 1))] == [int] * 3


async def test_a_path_is_left_to_the_system(tmp_path: Path) -> None:
    """``..`` after a symbolic link leads to where the system says, not to where the link stands."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    delivered = await Maildir(f"{tmp_path}//link/.././box").append(MAIL)
    assert delivered.path.startswith(f"{tmp_path}/link/../box/new/")
    assert len(os.listdir(tmp_path / "far" / "box" / "new")) == 1
    assert not (tmp_path / "box").exists()


async def test_a_path_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A name that is no UTF-8, as `os.fsdecode` has it, is a path like others."""
    delivered = await Maildir(tmp_path / os.fsdecode(b"b\xf6x")).append(MAIL)
    assert os.path.exists(os.fsencode(delivered.path))
    assert os.listdir(os.fsencode(tmp_path)) == [b"b\xf6x"]


def test_an_absolute_path_asks_for_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Maildir can be made in a process whose working directory has been removed."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert Maildir(tmp_path / "box").path == str(tmp_path / "box")


@pytest.mark.heavy
def test_a_maildir_is_small(tmp_path: Path) -> None:
    """A Maildir takes less than 2 KiB, so that a daemon may hold one for every user, used or not."""
    paths = [str(tmp_path / f"{number}") for number in range(1000)]
    Maildir(paths[0])

    async def use(maildirs: list[Maildir]) -> None:
        for maildir in maildirs:
            await maildir.append(MAIL, durability=Durability.NONE)

    def measured(used: bool) -> float:
        gc.collect()
        tracemalloc.start()
        maildirs = [Maildir(path) for path in paths]
        if used:
            asyncio.run(use(maildirs[:200]))
            gc.collect()
            del maildirs[200:]
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size / len(maildirs)

    # What other threads of the test run, or an import, happen to take meanwhile is not the maildirs'.
    assert any(measured(used=False) < 2048 for _ in range(3))
    assert any(measured(used=True) < 4096 for _ in range(3))


@pytest.mark.every_loop
async def test_from_many_loops_and_threads(tmp_path: Path) -> None:
    """One Maildir serves loops in several threads at once; each message is delivered once."""
    maildir = Maildir(tmp_path / "box")

    async def deliver(thread: int) -> list[Delivered]:
        return await asyncio.gather(*(maildir.append(b"%d %d" % (thread, number)) for number in range(20)))

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(asyncio.run, deliver(thread)) for thread in range(4)]
        mine = await deliver(4)
        await asyncio.wait([asyncio.wrap_future(other) for other in others])
    paths = {delivered.path for delivered in [*mine, *(one for other in others for one in other.result())]}
    assert len(paths) == 100
    assert {Path(path).read_bytes() for path in paths} == {b"%d %d" % (t, n) for t in range(5) for n in range(20)}
    assert len(os.listdir(tmp_path / "box" / "new")) == 100
    assert maildir.statistics().delivered == 100


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
async def test_file_mode(tmp_path: Path, mode: int) -> None:
    """Message files have the mode asked for, whatever the umask; directories are for their owner only."""
    before = os.umask(0o077)
    try:
        delivered = await Maildir(tmp_path / "box", file_mode=mode).append(MAIL)
    finally:
        os.umask(before)
    assert os.stat(delivered.path).st_mode & 0o7777 == mode
    for directory in ("", "tmp", "new", "cur"):
        assert os.stat(tmp_path / "box" / directory).st_mode & 0o7777 == 0o700


async def test_hostname(tmp_path: Path) -> None:
    """A hostname ends the unique part of names, escaped as the Maildir page asks."""
    delivered = await Maildir(tmp_path / "box", hostname="mx/1:a").append(MAIL)
    assert delivered.key.partition(",")[0].endswith(r".mx\0571\072a")


# Creating.


async def test_create(tmp_path: Path) -> None:
    """create() makes the maildir and what is above it, mode 0700, durably, from the outside in; twice is well."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "a" / "box", create=False, disk=disk)
    await maildir.create()
    assert tree(tmp_path) == {"a": None, "a/box": None, **{f"a/box/{name}": None for name in SUBDIRECTORIES}}
    for name in ("a", "a/box", *(f"a/box/{name}" for name in SUBDIRECTORIES)):
        assert os.stat(tmp_path / name).st_mode & 0o7777 == 0o700
    synced = [call.path for call in disk.calls if call.operation == "sync"]
    assert synced == [f"{tmp_path}/..", str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "box")]
    await maildir.create()
    assert contents(maildir.path) == EMPTY


async def test_what_create_has_synced_is_not_synced_again(tmp_path: Path) -> None:
    """After create() the first message syncs nothing but itself and new/, one to many maildirs each new/ once."""
    disk = FaultDisk()
    maildirs = [Maildir(tmp_path / "users" / str(number), disk=disk) for number in range(50)]
    for maildir in maildirs:
        await maildir.create()
    disk.calls.clear()
    outcomes = await deliver(MAIL, maildirs)
    assert all(outcome.delivered for outcome in outcomes)
    synced = [call.path for call in disk.calls if call.operation == "sync"]
    assert len(synced) == 51
    assert sorted(path for path in synced if path.endswith("/new")) == sorted(f"{m.path}/new" for m in maildirs)
    disk.calls.clear()
    await maildirs[0].append(MAIL, flags="S")
    assert [call.path for call in disk.calls if call.operation == "sync"][1:] == [f"{maildirs[0].path}/cur"]


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("flags", ["", "S"])
@pytest.mark.parametrize("missing", list(SUBDIRECTORIES))
async def test_the_first_message_makes_a_maildir_whole(
    tmp_path: Path, missing: str, flags: str, durability: Durability
) -> None:
    """The first message completes a maildir, also by what it does not need itself; other readers can open it then."""
    (tmp_path / "box").mkdir()
    for name in SUBDIRECTORIES.keys() - {missing}:
        (tmp_path / "box" / name).mkdir()
    with pytest.raises(NotAMaildirError, match=f"it has no {missing}/"):
        await Maildir(tmp_path / "box", create=False).append(MAIL, flags=flags, durability=durability)
    assert tree(tmp_path / "box") == dict.fromkeys(SUBDIRECTORIES.keys() - {missing})
    await Maildir(tmp_path / "box").append(MAIL, flags=flags, durability=durability)
    ((_, message),) = mailbox.Maildir(tmp_path / "box", create=False).items()
    assert message.get_flags() == flags


@pytest.mark.parametrize("missing", list(SUBDIRECTORIES))
@pytest.mark.parametrize("way", ["create", "append"])
async def test_a_half_made_maildir_is_repaired(tmp_path: Path, missing: str, way: str) -> None:
    """A maildir that lacks a subdirectory is completed by create(), and by the delivery that needs it."""
    maildir = Maildir(tmp_path / "box")
    await maildir.append(MAIL)
    await maildir.append(MAIL, flags="S")
    for file in (tmp_path / "box" / missing).iterdir():
        file.unlink()
    (tmp_path / "box" / missing).rmdir()
    left = contents(maildir.path)
    if way == "create":
        await maildir.create()
        assert contents(maildir.path) == left | {missing: []}
    else:
        flags = "S" if missing == "cur" else ""
        for message in (b"after", [LONG]):
            delivered = await maildir.append(message, flags=flags)
            assert os.path.exists(delivered.path)


def test_many_create_at_once(tmp_path: Path) -> None:
    """Twenty loops in twenty threads create and deliver to one maildir at the same time, and none fails."""
    barrier = threading.Barrier(20)

    async def create(number: int) -> str:
        maildir = Maildir(tmp_path / "a" / "b" / "box")
        barrier.wait(30)
        if number % 2:
            await maildir.create()
        return (await maildir.append(b"%d" % number)).path

    with ThreadPoolExecutor(20) as pool:
        paths = list(pool.map(lambda number: asyncio.run(create(number)), range(20)))
    assert [Path(path).read_bytes() for path in paths] == [b"%d" % number for number in range(20)]
    assert contents(tmp_path / "a" / "b" / "box")["tmp"] == []


WAYS: dict[str, Callable[[Maildir], Awaitable[object]]] = {
    "short": lambda maildir: maildir.append(MAIL),
    "long": lambda maildir: maildir.append([LONG]),
    "many": lambda maildir: maildir.append_many([MAIL]),
}
LOOKING: dict[str, Callable[[Maildir], Awaitable[object]]] = {
    "create": lambda maildir: maildir.create(),
    "index": lambda maildir: maildir.index(),
    "clean_tmp": lambda maildir: maildir.clean_tmp(),
}
CALLS = WAYS | LOOKING


@pytest.mark.parametrize("way", [way for way in CALLS if way != "create"])
async def test_without_create(tmp_path: Path, way: str) -> None:
    """With create=False, what is not a maildir raises NotAMaildirError naming the path, and nothing is made."""
    (tmp_path / "half" / "tmp").mkdir(parents=True)
    before = tree(tmp_path)
    for name in ("missing", "half", "half/missing"):
        maildir = Maildir(tmp_path / name, create=False)
        if (name, way) == ("half", "clean_tmp"):
            continue
        with pytest.raises(NotAMaildirError, match=name) as caught:
            await CALLS[way](maildir)
        assert (caught.value.errno, caught.value.stage) == (errno.ENOENT, "create")
        assert caught.value.smtp_reply.startswith("451 4.3.5 ")
        assert str(tmp_path) not in caught.value.smtp_reply
    assert tree(tmp_path) == before


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("way", list(CALLS))
async def test_a_path_that_is_a_file(tmp_path: Path, way: str, create: bool) -> None:
    """A path that is a file, or lies below one, or has a file for a subdirectory, is a NotAMaildirError."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "box").mkdir()
    for name in SUBDIRECTORIES:
        (tmp_path / "box" / name).write_bytes(b"")
    before = tree(tmp_path)
    for name in ("file", "file/box", "file/a/box", "box"):
        maildir = Maildir(tmp_path / name, create=create)
        with pytest.raises(NotAMaildirError, match=name) as caught:
            await CALLS[way](maildir)
        assert caught.value.errno in (errno.ENOTDIR, errno.ENOENT)
        assert caught.value.stage == "create"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["mkdir", "create", "open_directory"])
async def test_directories_that_refuse(tmp_path: Path, operation: str, number: int) -> None:
    """What the system says about a directory is an AppendError with its errno, a temporary reply, and nothing left."""
    disk = FaultDisk(Fault(operation, number, nth=0))
    maildir = Maildir(tmp_path / "box", disk=disk)
    if operation != "mkdir":
        await Maildir(tmp_path / "box").create()
    for message in (MAIL, [LONG]):
        with pytest.raises(AppendError) as caught:
            await maildir.append(message)
        assert caught.value.errno == number
        assert caught.value.temporary
        assert caught.value.stage == ("publish" if operation == "open_directory" else "create")
    assert contents(maildir.path) == ({} if operation == "mkdir" else EMPTY)


@pytest.mark.parametrize("call", list(LOOKING))
async def test_directories_that_refuse_to_be_looked_at(tmp_path: Path, call: str) -> None:
    """create, index and clean_tmp say what the system says: an AppendError with errno, stage and path."""
    await Maildir(tmp_path / "box").create()
    disk = FaultDisk(Fault("open_directory", errno.EACCES, nth=0), Fault("listdir", errno.EACCES, nth=0))
    with pytest.raises(AppendError, match=r"box.*Permission denied") as caught:
        await CALLS[call](Maildir(tmp_path / "box", disk=disk))
    assert (caught.value.errno, caught.value.stage) == (errno.EACCES, "create")


# Many.


@pytest.mark.every_loop
async def test_append_many(tmp_path: Path) -> None:
    """append_many delivers each message once and returns what became of them in the order given."""
    maildir = Maildir(tmp_path / "box")
    messages = [b"%d" % number if number % 3 else [b"%d" % number, b"", LONG] for number in range(200)]
    results = await maildir.append_many(messages, prefix=b"X: 1\n", flags="S")
    assert len(results) == 200
    for number, delivered in enumerate(results):
        stored = Path(delivered.path).read_bytes()
        assert stored == b"X: 1\n%d" % number + (b"" if number % 3 else LONG)
        assert delivered.flags == "S"
    assert len(contents(maildir.path)["cur"]) == 200
    assert await maildir.append_many([]) == []
    assert await maildir.append_many(iter(())) == []


class Counted:
    """Messages that count how many of them are open at once, and how many have been taken. Each waits for *crowd*."""

    def __init__(self, count: int, crowd: int) -> None:
        self.count = count
        self.crowd = crowd  # so many have to be open at once, before any goes on
        self.crowded = asyncio.Event()
        self.taken = 0
        self.open = 0
        self.most = 0

    async def message(self, number: int) -> AsyncGenerator[bytes, None]:
        self.open += 1
        self.most = max(self.most, self.open)
        if self.open == self.crowd:
            self.crowded.set()
        await self.crowded.wait()
        yield b"%d" % number
        self.open -= 1

    def plain(self) -> Iterator[AsyncGenerator[bytes, None]]:
        for number in range(self.count):
            self.taken += 1
            yield self.message(number)

    async def asynchronous(self) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        for message in self.plain():
            await asyncio.sleep(0)
            yield message


@pytest.mark.every_loop
@pytest.mark.parametrize("concurrency", [1, 3, 64])
@pytest.mark.parametrize("kind", ["list", "iterator", "async iterator"])
async def test_concurrency(tmp_path: Path, kind: str, concurrency: int) -> None:
    """append_many has as many messages in flight as it may, never more, and takes them as it needs them."""
    counted = Counted(40, min(40, concurrency))
    messages: Any = counted.asynchronous() if kind == "async iterator" else counted.plain()
    maildir = Maildir(tmp_path / "box", durability=Durability.NONE)
    most_in_flight = 0

    def on_progress(done: int, total: int | None, stored: int) -> None:
        nonlocal most_in_flight
        most_in_flight = max(most_in_flight, maildir.statistics().in_flight)
        if kind != "list":
            assert counted.taken <= done + concurrency

    results = await maildir.append_many(
        list(messages) if kind == "list" else messages, concurrency=concurrency, on_progress=on_progress
    )
    assert [Path(delivered.path).read_bytes() for delivered in results] == [b"%d" % number for number in range(40)]
    assert counted.most == counted.crowd
    assert most_in_flight <= concurrency


@pytest.mark.every_loop
async def test_progress_of_many(tmp_path: Path) -> None:
    """on_progress of append_many is told messages settled, in all, and bytes stored, after each; failed ones count."""
    told = list[tuple[int, int | None, int]]()

    def on_progress(done: int, total: int | None, stored: int) -> None:
        asyncio.get_running_loop()  # raises anywhere else
        told.append((done, total, stored))

    maildir = Maildir(tmp_path / "box")
    messages: list[Any] = [b"12345", b"123", "text", b"1"]
    await maildir.append_many(messages, on_progress=on_progress, return_exceptions=True)
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    assert {total for _, total, _ in told} == {4}
    assert [stored for _, _, stored in told] == sorted(stored for _, _, stored in told)
    assert told[-1] == (4, 4, 9)
    told.clear()
    await maildir.append_many(iter([b"12345"]), on_progress=on_progress)
    assert told == [(1, 1, 5)]  # by then it is known that there is no other


async def test_failures_of_many(tmp_path: Path) -> None:
    """A message that fails stops no other; the first failure in input order is raised once all are settled."""
    maildir = Maildir(tmp_path / "box", size_limit=100)
    slow_failure = asyncio.Event()

    async def too_large() -> AsyncGenerator[bytes, None]:
        await slow_failure.wait()
        yield bytes(101)

    async def last() -> AsyncGenerator[bytes, None]:
        await turns()
        slow_failure.set()
        yield b"last"

    with pytest.raises(MessageTooLargeError):
        await maildir.append_many([b"first", too_large(), cast(Any, "text"), last()])
    assert sorted(contents(maildir.path)["new"]) == [b"first", b"last"]
    slow_failure.clear()
    results = await maildir.append_many([b"first", too_large(), cast(Any, "text"), last()], return_exceptions=True)
    assert [type(result) for result in results] == [Delivered, MessageTooLargeError, TypeError, Delivered]
    assert maildir.statistics().in_flight == 0


@pytest.mark.every_loop
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_messages_that_raise(tmp_path: Path, asynchronous: bool) -> None:
    """If the iterable of messages raises, that comes out as it is, no more are taken, and those in flight are over."""
    maildir = Maildir(tmp_path / "box")
    opened = closed = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal opened, closed
        opened += 1
        try:
            while True:
                yield LONG
        finally:
            closed += 1

    def plain() -> Iterator[Any]:
        yield endless()
        yield endless()
        raise SourceError

    async def later() -> AsyncGenerator[Any, None]:
        yield endless()
        yield endless()
        await turns(100)
        raise SourceError

    with pytest.raises(SourceError):
        await maildir.append_many(later() if asynchronous else plain())
    assert maildir.statistics().in_flight == 0
    assert opened == closed
    assert opened == 2 or not asynchronous
    assert contents(maildir.path).get("new", []) == contents(maildir.path).get("tmp", []) == []


@pytest.mark.every_loop
async def test_cancelling_many(tmp_path: Path) -> None:
    """Cancelling append_many ends those in flight as cancelled appends do, and takes no more messages."""
    maildir = Maildir(tmp_path / "box")
    begun = asyncio.Event()
    taken = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        yield LONG
        yield LONG
        begun.set()
        await asyncio.Event().wait()

    def messages() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield endless()

    task = asyncio.create_task(maildir.append_many(messages(), concurrency=3))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken == 3
    assert maildir.statistics().in_flight == 0
    assert contents(maildir.path) == EMPTY


@pytest.mark.parametrize(
    ("messages", "options", "error", "names"),
    [
        ([], {"concurrency": 0}, ValueError, "0"),
        (b"bytes", {}, TypeError, "bytes"),
        ("text", {}, TypeError, "str"),
        (bytearray(b"x"), {}, TypeError, "bytearray"),
        (17, {}, TypeError, "int"),
    ],
)
async def test_bad_arguments_for_many(
    tmp_path: Path, messages: Any, options: dict[str, Any], error: type[Exception], names: str
) -> None:
    """append_many refuses a message in place of messages, and no concurrency at all, and touches nothing."""
    with pytest.raises(error, match=names):
        await Maildir(tmp_path / "box").append_many(messages, **options)
    assert tree(tmp_path) == {}


# The index.


async def test_index(tmp_path: Path) -> None:
    """The index holds what exists, in order, then each message delivered, before its append returns."""
    maildir = Maildir(tmp_path / "box")
    before = [await maildir.append(b"0", flags="SF"), await maildir.append(b"1"), await maildir.append(b"2", flags="S")]
    (tmp_path / "box" / "new" / ".hidden").touch()
    index = await maildir.index()
    assert [(entry.path, entry.key, entry.flags) for entry in index] == [(d.path, d.key, d.flags) for d in before]
    assert "3" in repr(index)
    task = AppendTask(maildir, b"3")
    seen = list[int]()
    task.start().add_done_callback(lambda _: seen.append(len(index)))
    delivered = await task
    await turns(2)
    assert seen == [4]
    assert index[3] == delivered
    assert index[-1] is index[3:][0]
    assert delivered in index
    assert next(reversed(index)) is index[3]
    more = await maildir.append_many([b"%d" % number for number in range(30)])
    assert sorted(index[4:], key=lambda entry: entry.key) == sorted(more, key=lambda entry: entry.key)
    paths = [entry.path for entry in index[4:]]
    assert paths == sorted(paths), "not in the order of publication"


async def test_an_index_has_a_message_once_that_a_reader_moves_meanwhile(tmp_path: Path) -> None:
    """A message that is moved from ``new/`` to ``cur/`` while both are listed is in the index once, where it went."""
    delivered = await Maildir(tmp_path / "box").append(b"moved")
    moved = tmp_path / "box" / "cur" / f"{delivered.key}:2,S"

    class Moving(PosixDisk):
        def listdir(self, path: str) -> list[str]:
            found = super().listdir(path)
            if path.endswith("new"):
                os.rename(delivered.path, moved)
            return found

    index = await Maildir(tmp_path / "box", disk=Moving()).index()
    assert [(entry.path, entry.key) for entry in index] == [(str(moved), delivered.key)]


async def test_an_index_of_nothing(tmp_path: Path) -> None:
    """The index of a maildir that is yet to be made is empty, makes nothing, and fills with deliveries."""
    maildir = Maildir(tmp_path / "box")
    index = await maildir.index()
    assert list(index) == []
    assert tree(tmp_path) == {}
    delivered = await maildir.append(MAIL)
    assert list(index) == [delivered]


async def test_an_index_keeps_what_was_delivered_only(tmp_path: Path) -> None:
    """The index does not get messages that failed, were cancelled or may be lost in a power cut, nor other objects'."""
    disk = FaultDisk(Fault("sync", errno.EIO, path="box/tmp/"), Fault("sync", errno.EIO, path="box/new"))
    await Maildir(tmp_path / "box").create()
    maildir = Maildir(tmp_path / "box", disk=disk)
    index = await maildir.index()
    with pytest.raises(AppendError):
        await maildir.append(b"not synced")
    with pytest.raises(UncertainAppendError):
        await maildir.append(b"directory not synced")
    task = AppendTask(maildir, MAIL)
    task.start()
    task.cancel()
    await asyncio.wait([task.future])
    await Maildir(tmp_path / "box").append(b"another's")
    assert list(index) == []


async def test_two_indexes(tmp_path: Path) -> None:
    """Each index that is held grows; one that is dropped is gone, and nothing keeps a list for it."""
    maildir = Maildir(tmp_path / "box")
    first, second = await maildir.index(), await maildir.index()
    one = await maildir.append(MAIL)
    gone = weakref.ref(second)
    del second
    gc.collect()
    assert gone() is None
    two = await maildir.append(MAIL)
    assert list(first) == [one, two]
    last = weakref.ref(first)
    del first
    gc.collect()
    assert last() is None
    before = await maildir.append(MAIL)
    assert [entry.key for entry in await maildir.index()] == [one.key, two.key, before.key]


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("sync", "box/tmp/"),
        ("rename_noreplace", "box/new/"),
        ("sync", "box/new"),
        ("close", "box/new"),
    ],
)
async def test_a_message_published_while_the_index_is_made(tmp_path: Path, operation: str, path: str) -> None:
    """A message that is being published while the index is made is in it once, wherever it stands."""
    await Maildir(tmp_path / "box").create()
    gate = Gate()
    maildir = Maildir(tmp_path / "box", disk=FaultDisk(Fault(operation, path=path, gate=gate)))
    task = AppendTask(maildir, MAIL)
    task.start()
    await gate.reached()
    index = await maildir.index()
    gate.open()
    delivered = await task
    assert [entry.key for entry in index] == [delivered.key]


async def test_messages_delivered_while_the_index_lists(tmp_path: Path) -> None:
    """Messages delivered while the index lists the directories are in it once, after those that existed."""
    existing = await Maildir(tmp_path / "box").append(b"existing")
    gate = Gate()
    maildir = Maildir(tmp_path / "box", disk=FaultDisk(Fault("listdir", path="box/cur", gate=gate)))
    making = asyncio.create_task(maildir.index())
    await gate.reached()  # new/ has been listed, cur/ has not
    delivered = [await maildir.append(b"1"), await maildir.append(b"2", flags="S"), await maildir.append(b"3")]
    gate.open()
    assert [entry.key for entry in await making] == [existing.key, *(one.key for one in delivered)]


# Sweeping.


async def test_clean_tmp(tmp_path: Path) -> None:
    """clean_tmp removes, and returns, regular files not changed for that long, none that this process is writing to."""
    maildir = Maildir(tmp_path / "box")
    delivered = await maildir.append(MAIL)
    tmp = tmp_path / "box" / "tmp"
    for name in ("1.a.host", "2.b.host"):
        (tmp / name).write_bytes(b"litter")
        os.utime(tmp / name, (0, 0))  # which changes its ctime to now
    (tmp / "directory").mkdir()
    (tmp / "link").symlink_to(delivered.path)
    os.mkfifo(tmp / "fifo")
    task = AppendTask(maildir)
    await task.send(LONG)
    await asyncio.to_thread(_until, lambda: task.tmp_path is not None)
    assert await maildir.clean_tmp() == []
    assert await maildir.clean_tmp(timedelta(seconds=60)) == []
    await asyncio.to_thread(_until, lambda: time.time() > os.stat(tmp / "2.b.host").st_ctime)
    removed = await maildir.clean_tmp(timedelta())
    assert sorted(removed) == [str(tmp / "1.a.host"), str(tmp / "2.b.host")]
    task.unregister_producer()
    assert Path((await task).path).read_bytes() == LONG
    assert sorted(os.listdir(tmp)) == ["directory", "fifo", "link"]
    assert Path(delivered.path).read_bytes() == MAIL
    with pytest.raises(ValueError, match="negative"):
        await maildir.clean_tmp(timedelta(seconds=-1))


async def test_clean_tmp_beside_deliveries(tmp_path: Path) -> None:
    """Sweeping all the time, by whatever path, what is older than nothing, takes no file of a delivery of ours."""
    (tmp_path / "link").symlink_to(tmp_path / "box")
    maildir = Maildir(tmp_path / "box")
    await maildir.create()
    over = False

    async def sweep(path: Path) -> list[str]:
        removed: list[str] = []
        while not over:
            removed += await Maildir(path).clean_tmp(timedelta(0))
        return removed

    sweepers = [asyncio.create_task(sweep(tmp_path / name)) for name in ("box", "link")]
    delivered = await maildir.append_many([MAIL if number % 4 else [LONG] for number in range(200)], concurrency=8)
    over = True
    assert await asyncio.gather(*sweepers) == [[], []]
    assert len(delivered) == len(os.listdir(tmp_path / "box" / "new")) == 200


@pytest.mark.parametrize("moment", ["create", "chmod"])
async def test_clean_tmp_at_the_moment_a_file_appears(tmp_path: Path, moment: str) -> None:
    """A file is spared from the moment it exists, and found by way of a symbolic link."""
    (tmp_path / "box").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "box")
    removed: list[str] = []
    sweep = partial(clean_tmp, Directories(str(tmp_path / "link"), disk=Old(), create=False), 0, is_in_use)

    class Sweeping(PosixDisk):
        def create(self, path: str, mode: int, directory: int | None = None) -> int:
            fd = super().create(path, mode, directory)
            removed.extend(sweep())
            return fd

    disk = FaultDisk(Fault(moment, gate=lambda: removed.extend(sweep())), disk=Sweeping())
    maildir = Maildir(tmp_path / "box", file_mode=0o640, disk=disk)
    await maildir.create()
    assert (await maildir.append(MAIL)).size == len(MAIL)
    assert removed == []


class Old(PosixDisk):
    """Every file in tmp/ changed long ago."""

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        return os.stat_result((*super().stat(path, directory)[:9], 0))


def _until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class AgedDisk(FaultDisk):
    """Every file looks as old as told, by its ctime alone."""

    age_s = 0.0

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        found = list(super().stat(path, directory))
        found[7] = found[8] = int(time.time())
        found[9] = int(time.time() - self.age_s)
        return os.stat_result(found)


async def test_clean_tmp_goes_by_36_hours_of_ctime(tmp_path: Path) -> None:
    """Without an age given, a file goes whose ctime is more than 36 hours old, whatever its mtime and atime."""
    disk = AgedDisk()
    maildir = Maildir(tmp_path / "box", disk=disk)
    await maildir.create()
    litter = tmp_path / "box" / "tmp" / "1.a.host"
    litter.touch()
    disk.age_s = timedelta(hours=35.9).total_seconds()
    assert await maildir.clean_tmp() == []
    disk.age_s = timedelta(hours=36.1).total_seconds()
    assert await maildir.clean_tmp() == [str(litter)]
    assert not litter.exists()


@pytest.mark.parametrize("operation", ["stat", "unlink"])
async def test_clean_tmp_among_others(tmp_path: Path, operation: str) -> None:
    """A file that somebody else removes or publishes meanwhile is no error, and is not among those returned."""
    tmp = tmp_path / "box" / "tmp"
    await Maildir(tmp_path / "box").create()
    for name in ("1.a.host", "2.b.host"):
        (tmp / name).touch()
    disk = AgedDisk(Fault(operation, path="1.a.host", gate=lambda: os.unlink(tmp / "1.a.host")))
    disk.age_s = 1e6
    assert await Maildir(tmp_path / "box", disk=disk).clean_tmp() == [str(tmp / "2.b.host")]
    assert os.listdir(tmp) == []


# Counting and closing.


async def test_statistics(tmp_path: Path) -> None:
    """The statistics count what has become of the messages given to this object."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "box", disk=disk, size_limit=100)
    assert repr(maildir.statistics()) == (
        "MaildirStatistics(in_flight=0, delivered=0, uncertain=0, failed=0, bytes_stored=0)"
    )
    await maildir.append(b"12345", prefix=b"X: 1\n")
    await maildir.append(b"12345")
    with pytest.raises(MessageTooLargeError):
        await maildir.append(bytes(101))
    task = AppendTask(maildir)
    task.start()
    assert maildir.statistics().in_flight == 1
    task.cancel()
    await asyncio.wait([task.future])
    disk.faults.append(Fault("sync", errno.EIO, path="box/tmp/"))
    with pytest.raises(AppendError):
        await maildir.append(b"12345")
    disk.faults.append(Fault("sync", errno.EIO, path="box/new"))
    with pytest.raises(UncertainAppendError):
        await maildir.append(b"12345")
    counted = maildir.statistics()
    assert (counted.in_flight, counted.delivered, counted.bytes_stored) == (0, 2, 15)
    assert (counted.uncertain, counted.failed) == (1, 3)


@pytest.mark.every_loop
async def test_aclose_drains(tmp_path: Path) -> None:
    """Aclose refuses further messages with MaildirError, and returns when those in flight are settled."""
    await Maildir(tmp_path / "box").create()
    gate = Gate()
    maildir = Maildir(tmp_path / "box", disk=FaultDisk(Fault("sync", path="box/tmp/", gate=gate)))
    short = asyncio.create_task(maildir.append(MAIL))
    fed = AppendTask(maildir)
    fed.start()
    await gate.reached()
    closing = [asyncio.create_task(maildir.aclose()) for _ in range(2)]
    await turns()
    with pytest.raises(MaildirError, match="closed"):
        await maildir.append(MAIL)
    with pytest.raises(MaildirError, match="closed"):
        async with maildir.open_append():
            pytest.fail("the block was entered")
    gate.open()
    await short
    await turns()
    assert [task.done() for task in closing] == [False, False]
    await fed.send(MAIL)  # what was begun may be finished
    fed.unregister_producer()
    await asyncio.gather(*closing)
    assert fed.future.done()
    await maildir.aclose()
    assert contents(maildir.path) == EMPTY | {"new": [MAIL, MAIL]}


def test_aclose_meets_a_start(tmp_path: Path) -> None:
    """What starts on another thread while aclose() runs is waited for or refused, and never begun after it."""
    maildir = Maildir(tmp_path / "box")
    lock, used = threading.RLock(), False

    class Meeting:
        """Its lock; before that is taken by a start, somebody closes the maildir in another thread."""

        def __enter__(self) -> None:
            nonlocal used
            if not used and threading.current_thread() is threading.main_thread():
                used = True
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(asyncio.run, maildir.aclose()).result(30)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    maildir.mailbox._lock = Meeting()  # type: ignore[assignment]
    with pytest.raises(MaildirError, match="closed"):
        asyncio.run(_append(maildir, MAIL))
    assert used
    assert not (tmp_path / "box").exists()


@pytest.mark.every_loop
async def test_aclose_can_be_given_up(tmp_path: Path) -> None:
    """Cancelling aclose stops the waiting, not the deliveries; it can be called again."""
    await Maildir(tmp_path / "box").create()
    gate = Gate()
    maildir = Maildir(tmp_path / "box", disk=FaultDisk(Fault("sync", path="box/tmp/", gate=gate)))
    task = AppendTask(maildir, MAIL)
    task.start()
    await gate.reached()
    closing = asyncio.create_task(maildir.aclose())
    await turns()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    again = asyncio.create_task(maildir.aclose())
    gate.open()
    await again
    assert task.future.done()


@pytest.mark.every_loop
async def test_aclose_waits_for_other_loops(tmp_path: Path) -> None:
    """Aclose waits for deliveries of a loop in another thread, which get their outcome there."""
    await Maildir(tmp_path / "box").create()
    gate = Gate()
    maildir = Maildir(tmp_path / "box", disk=FaultDisk(Fault("sync", path="box/tmp/", gate=gate)))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: asyncio.run(_append(maildir, MAIL)))
        await gate.reached()
        closing = asyncio.create_task(maildir.aclose())
        await turns()
        assert not closing.done()
        assert not other.done()
        gate.open()
        await closing
        assert maildir.statistics().in_flight == 0
        assert Path((await asyncio.wrap_future(other)).path).read_bytes() == MAIL


@pytest.mark.every_loop
async def test_aclose_does_not_wait_for_closed_loops(tmp_path: Path) -> None:
    """A delivery whose loop was closed under it does not hold aclose, and leaves nothing in tmp/."""
    maildir = Maildir(tmp_path / "box")

    def leave() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(_begin(maildir))
        loop.close()

    await asyncio.to_thread(leave)
    async with asyncio.timeout(30):
        await maildir.aclose()
    assert maildir.statistics().in_flight == 0


async def _begin(maildir: Maildir) -> None:
    AppendTask(maildir).start()


@pytest.mark.every_loop
async def test_as_a_context_manager(tmp_path: Path) -> None:
    """As an async context manager a Maildir is drained and closed at the end of the block, also if that raises."""
    tasks = list[AppendTask]()
    for raising in (False, True):
        with suppress(SourceError):
            async with Maildir(tmp_path / "box") as maildir:
                assert isinstance(maildir, Maildir)
                tasks.append(AppendTask(maildir, MAIL))
                tasks[-1].start()
                if raising:
                    raise SourceError
        assert tasks[-1].future.done()
        with pytest.raises(MaildirError):
            await maildir.append(MAIL)
    assert contents(maildir.path) == EMPTY | {"new": [MAIL, MAIL]}


async def test_two_objects_for_one_directory(tmp_path: Path) -> None:
    """Closing one Maildir does not close another that stands for the same directory, nor the GroupCommit they share."""
    commit = GroupCommit()
    first, second = (Maildir(tmp_path / "box", commit=commit) for _ in range(2))
    await first.append(MAIL)
    await first.aclose()
    await second.append(MAIL)
    assert contents(second.path) == EMPTY | {"new": [MAIL, MAIL]}
    assert (first.commit, second.commit) == (commit, commit)


# How they show.


async def test_delivered_shows_itself(tmp_path: Path) -> None:
    """A Delivered shows as one line; in notebooks as a table in which nothing from outside is markup."""
    maildir = Maildir(tmp_path / "<b>&box", hostname="<i>")
    delivered = await maildir.append(MAIL, flags="S")
    assert "\n" not in repr(delivered)
    for part in (delivered.key, "S", str(len(MAIL)), "FULL"):
        assert part in repr(delivered)
    shown = delivered._repr_html_()
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "&lt;b&gt;&amp;box" in shown
    assert shown.startswith("<table>")
    assert shown.endswith("</table>")
    with pytest.raises(AttributeError):
        cast(Any, delivered).path = "elsewhere"
    assert (delivered.folder, delivered.durability, delivered.warnings) == (None, Durability.FULL, ())
    assert delivered.queued_s >= 0
    assert delivered.commit_s > 0
    assert str(maildir.path) in repr(maildir)


@pytest.mark.parametrize(("room", "size", "fits"), [(0, 0, False), (0, 1, False), (9, 10, False), (10, 10, True)])
async def test_check_room(tmp_path: Path, room: int, size: int, fits: bool) -> None:
    """A disk that has no room for so much is told as ENOSPC, and a full one whatever the size; nothing is written."""

    class Disk(FaultDisk):
        def room(self, path: str) -> int:
            return room

    maildir = Maildir(tmp_path / "m", disk=Disk())
    await maildir.create()
    if fits:
        await maildir.check_room(size)
    else:
        with pytest.raises(AppendError) as caught:
            await maildir.check_room(size)
        assert (caught.value.errno, caught.value.stage) == (errno.ENOSPC, "create")
    assert not any(contents(tmp_path / "m").values())


async def test_the_options_of_many_are_looked_at_once(tmp_path: Path) -> None:
    """Keywords that can be read once are every message's, in `append_many` and `deliver`, and a wrong option is told
    of although there is no message.
    """
    maildirs = [Maildir(tmp_path / name) for name in "ab"]
    delivered = await maildirs[0].append_many([b"1", b"2"], keywords=iter(["$Forwarded"]))
    outcomes = await deliver(b"3", maildirs, keywords=iter(["$Forwarded"]))
    told = [*delivered, *(outcome.delivered for outcome in outcomes)]
    assert [each.keywords for each in told if each] == [("$Forwarded",)] * 4
    with pytest.raises(ValueError, match="flags"):
        await maildirs[0].append_many([], flags="?")
