"""`DuplicateFilter`: what has been delivered is not stored again, and nothing is ever lost by it."""

import asyncio
import contextlib
import errno
import gc
import io
import os
import random
import resource
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from maildir_async import (
    AppendError,
    AppendTask,
    Delivered,
    DuplicateFilter,
    GroupCommit,
    Maildir,
    UncertainAppendError,
    deliver,
)
from maildir_async.format.message_id import HEAD_SIZE, Head, message_id_of
from maildir_async.testing import Fault, FaultDisk
from support import PATIENCE_S, Gate, contents, forked, turns

MESSAGE: Final = b"From: a@example.org\nMessage-ID: <1@example.org>\n\nHello\n"
LARGE: Final = MESSAGE + b"x" * 79 * 20_000


def filtered(root: Path, name: str = "m", **options: Any) -> Maildir:
    """Return a maildir below *root* with a filter; those of one *root* have one file."""
    return Maildir(root / name, duplicates=DuplicateFilter(root / "seen"), **options)


def stored(root: Path, name: str = "m") -> list[bytes]:
    """Return the messages of a maildir, in which nothing is left in ``tmp/``."""
    found = contents(root / name)
    assert found.get("tmp", []) == []
    return found.get("new", []) + found.get("cur", [])


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until *holds*."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


# One after the other.


@pytest.mark.every_loop
@pytest.mark.parametrize("message", [MESSAGE, LARGE], ids=["short", "large"])
async def test_what_has_been_delivered_is_not_stored_again(tmp_path: Path, message: bytes) -> None:
    """The second is a duplicate with the path of the first, what was asked for it and its sizes; it is not there."""
    maildir = filtered(tmp_path)

    first = await maildir.append(message, duplicate_key=b"key")
    again = await maildir.append(message, duplicate_key="key", flags="S", keywords=["$Junk"])

    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.path, again.key) == (first.path, first.key)
    assert (again.size, again.wire_size) == (first.size, first.wire_size)
    assert (again.flags, again.keywords, again.folder, again.warnings) == ("S", ("$Junk",), None, ())
    assert stored(tmp_path) == [message]
    assert (maildir.statistics().delivered, maildir.statistics().failed) == (1, 0)
    await maildir.aclose()


async def test_another_object_and_maildir(tmp_path: Path) -> None:
    """A key is a maildir's and a folder's: another object for the same finds it, another maildir or folder does not."""
    first = await filtered(tmp_path).append(MESSAGE, duplicate_key="key")

    second, third = filtered(tmp_path), filtered(tmp_path)
    again = await second.append(MESSAGE, duplicate_key="key")
    assert (await third.append(MESSAGE, duplicate_key="key")).path == first.path  # no claim of the second is left
    others = [
        await filtered(tmp_path, "other").append(MESSAGE, duplicate_key="key"),
        await filtered(tmp_path).append(MESSAGE, duplicate_key="key", folder="Lists"),
        await filtered(tmp_path).append(MESSAGE, duplicate_key="another"),
        await filtered(tmp_path).append(MESSAGE),
    ]
    in_folder = await filtered(tmp_path).append(MESSAGE, duplicate_key="key", folder="Lists")

    assert again.path == first.path
    assert not any(each.duplicate for each in others)
    assert (in_folder.duplicate, in_folder.folder, in_folder.path) == (True, "Lists", others[1].path)


async def test_fed_by_hand(tmp_path: Path) -> None:
    """A task that is fed finds out at the end of its message, and leaves nothing in tmp/."""
    maildir = filtered(tmp_path)
    outcomes = list[Delivered]()
    for _ in range(2):
        async with maildir.open_append(duplicate_key=True) as task:
            for start in range(0, len(LARGE), 100_000):
                await task.send(LARGE[start : start + 100_000])
        outcomes.append(task.future.result())

    assert [each.duplicate for each in outcomes] == [False, True]
    assert (outcomes[1].size, outcomes[1].wire_size) == (outcomes[0].size, outcomes[0].wire_size)
    assert stored(tmp_path) == [LARGE]


async def test_with_a_helper_process(tmp_path: Path) -> None:
    """What the helper has written of a duplicate is removed by it; sizes that only it knows are 0."""
    maildir = filtered(tmp_path, commit=GroupCommit(helper_process=True))
    for message in (MESSAGE, LARGE):
        outcomes = [await maildir.append(io.BytesIO(message), duplicate_key=message[-20:]) for _ in range(2)]
        assert [each.duplicate for each in outcomes] == [False, True]
        assert outcomes[1].size in (0, len(message))
    assert sorted(stored(tmp_path)) == sorted([MESSAGE, LARGE])
    await maildir.commit.aclose()


async def test_append_many(tmp_path: Path) -> None:
    """Of messages with one Message-ID among many the first that is whole is stored, the others are told to be it."""
    maildir = filtered(tmp_path)
    outcomes = await maildir.append_many(
        [b"Message-ID: <%d>\n\n%d\n" % (number % 50, number) for number in range(200)], duplicate_key=True
    )
    assert sum(not each.duplicate for each in outcomes) == 50 == len(stored(tmp_path))
    with pytest.raises(ValueError, match="atomic excludes duplicate_key"):
        await maildir.append_many([MESSAGE], atomic=True, duplicate_key=True)


async def test_keys_that_are_none(tmp_path: Path) -> None:
    """A key of another type, an empty one, and one without a filter is refused before anything is touched."""
    for key, error in ((1, TypeError), (False, TypeError), (bytearray(b"a"), TypeError), (b"", ValueError)):
        wrong: Any = key
        with pytest.raises(error, match="duplicate_key"):
            await filtered(tmp_path).append(MESSAGE, duplicate_key=wrong)
        with pytest.raises(error, match="duplicate_key"):
            await deliver(MESSAGE, [filtered(tmp_path)], duplicate_key=wrong)
    with pytest.raises(ValueError, match="cannot be encoded"):
        await filtered(tmp_path).append(MESSAGE, duplicate_key="\ud800")
    for call in (
        lambda: Maildir(tmp_path / "m").append(MESSAGE, duplicate_key=True),
        lambda: deliver(MESSAGE, [Maildir(tmp_path / "m")], duplicate_key=True),
    ):
        with pytest.raises(ValueError, match="needs a filter"):
            await call()
    with pytest.raises(ValueError, match="needs a filter"):
        AppendTask(Maildir(tmp_path / "m"), duplicate_key=b"key")
    not_one: Any = "seen"
    with pytest.raises(TypeError, match="duplicates must be"):
        Maildir(tmp_path / "m", duplicates=not_one)
    with pytest.raises(ValueError, match="keep"):
        DuplicateFilter(tmp_path / "seen", keep=timedelta())
    assert list(tmp_path.iterdir()) == []


# The Message-ID.


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (MESSAGE, b"<1@example.org>"),
        (b"message-id:<A@b>\r\n\r\n", b"<A@b>"),
        (b"MESSAGE-ID \t:  <A@b> \t\r\n", b"<A@b>"),
        (b"Message-ID:\r\n <A@b>\r\nTo: c\r\n\r\n", b"<A@b>"),
        (b"Message-ID: <A\n\t@b>\n\n", b"<A\t@b>"),
        (b"Message-ID: <first>\nMessage-ID: <second>\n\n", b"<first>"),
        (b"Message-ID:\nMessage-ID: <second>\n\n", None),
        (b"Message-ID: <whole>", b"<whole>"),
        (b"Subject: a\n Message-ID: <folded>\n\n", None),
        (b"Resent-Message-ID: <other>\n\n", None),
        (b"Subject: a\n\nMessage-ID: <body>\n", None),
        (b"Subject: a\r\n\r\nMessage-ID: <body>\r\n", None),
        (b"\nMessage-ID: <body>\n", None),
        (b"From a@b Mon Jan  1 00:00:00 2024\nMessage-ID: <mbox>\n\n", b"<mbox>"),
        (b"", None),
        (b"X: " + b"x" * HEAD_SIZE + b"\nMessage-ID: <late>\n\n", None),
        (b"X: " + b"x" * (HEAD_SIZE - 25) + b"\nMessage-ID: <cut-off-here>\n\n", None),
        (b"X: " + b"x" * (HEAD_SIZE - 60) + b"\nMessage-ID: <just@in>\nTo: a\n\n" + b"x" * 100, b"<just@in>"),
    ],
)
def test_the_message_id_is_found(message: bytes, found: bytes | None) -> None:
    """The first one, unfolded and stripped, its case kept, if it ends within the header's first 64 KiB; else none."""
    assert message_id_of(message) == found
    head = Head()
    for start in range(0, len(message), 7):
        head.observe(message[start : start + 7])
    assert head.message_id() == found


def _kinds() -> dict[str, Callable[[], Any]]:
    email = EmailMessage()
    email["From"], email["Message-ID"] = "a@example.org", "<1@example.org>"
    email.set_content("Hello\n")

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(len(MESSAGE)):
            yield MESSAGE[at : at + 1]

    def reader() -> asyncio.StreamReader:
        stream = asyncio.StreamReader()
        stream.feed_data(MESSAGE)
        stream.feed_eof()
        return stream

    return {
        "bytes": lambda: MESSAGE,
        "bytearray": lambda: bytearray(MESSAGE),
        "memoryview": lambda: memoryview(MESSAGE),
        "backwards": lambda: memoryview(MESSAGE[::-1])[::-1],
        "email": lambda: email,
        "file": lambda: io.BytesIO(MESSAGE),
        "iterable": lambda: [MESSAGE[:30], b"", MESSAGE[30:]],
        "async iterable": chunks,
        "reader": reader,
        "folded": lambda: MESSAGE.replace(b"ID: ", b"ID:\r\n "),
        "large": lambda: LARGE,
    }


async def test_the_message_id_of_every_kind_of_message(tmp_path: Path) -> None:
    """However a message is given, True finds its Message-ID, and what is stored is as ever."""
    maildir = filtered(tmp_path)
    for name, kind in _kinds().items():
        box = Maildir(tmp_path / name, duplicates=maildir.duplicates)
        plain = Maildir(tmp_path / f"{name} plain")
        await plain.append(kind())
        assert not (await box.append(kind(), duplicate_key=True)).duplicate
        assert (await box.append(MESSAGE, duplicate_key=b"<1@example.org>")).duplicate, name
        assert (await box.append(kind(), duplicate_key=True)).duplicate, name
        assert stored(tmp_path, name) == stored(tmp_path, f"{name} plain")
    sender, receiver = anyio.create_memory_object_stream[bytes](9)
    await sender.send(MESSAGE)
    await sender.aclose()
    box = Maildir(tmp_path / "bytes", duplicates=maildir.duplicates)
    with receiver:
        assert (await box.append(receiver, duplicate_key=True)).duplicate


async def test_a_message_without_message_id_is_stored(tmp_path: Path) -> None:
    """Each time, and without a warning; nothing is made for it."""
    for _ in range(2):
        delivered = await filtered(tmp_path).append(b"Subject: none\n\n", duplicate_key=True)
        assert (delivered.duplicate, delivered.warnings) == (False, ())
    assert len(stored(tmp_path)) == 2
    assert not (tmp_path / "seen").exists()


# At the same time.


@pytest.mark.every_loop
async def test_a_hundred_tasks(tmp_path: Path) -> None:
    """Of a hundred deliveries of one key at once exactly one is stored, and the others have its path."""
    maildir = filtered(tmp_path)
    outcomes = await asyncio.gather(*(maildir.append(b"%d\n" % number, duplicate_key="k") for number in range(100)))
    assert [each.duplicate for each in outcomes].count(False) == 1
    assert len({each.path for each in outcomes}) == 1 == len(stored(tmp_path))


async def _deliver_keys(maildir: Maildir, keys: int, *, seed: int = 0) -> int:
    """Deliver a message for each of so many keys, many at a time, and return how many were stored."""
    order = [b"key %d" % key for key in range(keys)] * 2
    random.Random(seed).shuffle(order)
    outcomes = await asyncio.gather(*(maildir.append(key, duplicate_key=key) for key in order))
    assert [each.warnings for each in outcomes if each.warnings] == []
    return sum(not each.duplicate for each in outcomes)


def test_loops_in_threads(tmp_path: Path) -> None:
    """Loops of several threads that share a filter, or have each their own, store one of each key between them."""
    shared = filtered(tmp_path)
    maildirs = [shared, shared, filtered(tmp_path)]
    counts = list[int]()

    def run(seed: int) -> None:
        counts.append(asyncio.run(_deliver_keys(maildirs[seed], 20, seed=seed)))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (sum(counts), len(counts)) == (20, 3)
    assert sorted(stored(tmp_path)) == sorted(b"key %d" % key for key in range(20))


@pytest.mark.parametrize("keys", [6, pytest.param(100, marks=pytest.mark.heavy)])
def test_eight_processes(tmp_path: Path, keys: int) -> None:
    """Eight processes that deliver the same keys at once, without being killed, store exactly one of each."""
    maildir = filtered(tmp_path)  # used by none before the fork

    counts = forked(lambda: asyncio.run(_deliver_keys(maildir, keys, seed=os.getpid())), children=8)

    assert sum(counts) == keys
    assert sorted(stored(tmp_path)) == sorted(b"key %d" % key for key in range(keys))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [8, pytest.param(150, marks=pytest.mark.heavy)])
def test_processes_that_are_killed(tmp_path: Path, kills: int) -> None:
    """Eight clients send the same hundred messages while some are killed at any moment: each is there, whole, and what
    has been answered is the path of one that is there. A claim of one that was killed holds nobody up.
    """
    dice = random.Random(1)
    keys = [b"key %d" % key for key in range(100)]
    reader, writer = os.pipe()

    async def send(seed: int) -> None:
        maildir = filtered(tmp_path)
        order = keys.copy()
        random.Random(seed).shuffle(order)

        async def client(part: list[bytes]) -> None:
            for key in part:
                delivered = await maildir.append(key, duplicate_key=key)
                os.write(writer, b"%s\n" % os.fsencode(os.path.basename(delivered.path)))

        await asyncio.gather(*(client(order[start::8]) for start in range(8)))

    def run(seed: int) -> None:
        asyncio.run(send(seed))

    running, started, killed = set[int](), 0, 0
    said = bytearray()
    collector = threading.Thread(target=lambda: said.extend(_read_all(reader)))
    collector.start()
    while started < 8 or killed < kills or running:
        while len(running) < 8 and (started < 8 or killed < kills):
            started += 1
            running.add(_start(partial(run, started)))
        if killed < kills:
            time.sleep(dice.random() * 0.03)
            victim = dice.choice(sorted(running))
            os.kill(victim, signal.SIGKILL)
            running.discard(victim)
            os.waitpid(victim, 0)
            killed += 1
        else:
            pid = running.pop()
            assert os.waitpid(pid, 0)[1] == 0
    os.close(writer)
    collector.join()
    os.close(reader)

    there = {path.name: path.read_bytes() for path in (tmp_path / "m" / "new").iterdir()}
    assert set(there.values()) == set(keys)
    assert len(there) <= len(keys) + 8 * killed
    answered = {os.fsdecode(line) for line in bytes(said).splitlines()}
    assert answered <= set(there)


def _start(job: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(120)
            job()
            status = 0
        finally:
            os._exit(status)
    return pid


def _read_all(fd: int) -> bytes:
    said = b""
    while chunk := os.read(fd, 65536):
        said += chunk
    return said


# Claims: who waits, and for whom.


async def test_a_failed_delivery_lets_the_next_one_store(tmp_path: Path) -> None:
    """The one that fails is told so, the next that waits is stored, and the others are its duplicates."""
    gate = Gate()
    disk = FaultDisk(Fault("sync", error=errno.EIO, path="/tmp/", gate=gate))
    maildir = filtered(tmp_path, disk=disk)
    tasks = [asyncio.ensure_future(maildir.append(b"%d\n" % number, duplicate_key="k")) for number in range(5)]
    await gate.reached()
    gate.open()

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in outcomes].count(AppendError) == 1
    delivered = [each for each in outcomes if isinstance(each, Delivered)]
    assert [each.duplicate for each in delivered].count(False) == 1
    assert len(stored(tmp_path)) == 1


async def test_what_may_be_gone_is_not_remembered(tmp_path: Path) -> None:
    """After UncertainAppendError the next one is stored: the first is visible, but a power cut may take it."""
    disk = FaultDisk(Fault("sync", error=errno.EIO, path="/new", nth=2))
    maildir = filtered(tmp_path, disk=disk)
    await maildir.append(b"before\n")

    with pytest.raises(UncertainAppendError):
        await maildir.append(b"1\n", duplicate_key="k")

    assert not (await maildir.append(b"2\n", duplicate_key="k")).duplicate
    assert (await maildir.append(b"3\n", duplicate_key="k")).duplicate
    assert len(stored(tmp_path)) == 3


@pytest.mark.every_loop
@pytest.mark.parametrize("scope", [False, True], ids=["native", "anyio"])
async def test_a_waiter_that_is_cancelled_stops_waiting(tmp_path: Path, scope: bool) -> None:
    """It ends while the other is under way, leaves nothing, and changes nothing for that and those who wait too."""
    gate = Gate()
    maildir = filtered(tmp_path, disk=FaultDisk(Fault("sync", path="/tmp/", gate=gate)))
    holder = asyncio.ensure_future(maildir.append(b"1\n", duplicate_key="k"))
    await gate.reached()
    third = asyncio.ensure_future(maildir.append(b"3\n", duplicate_key="k"))
    if scope:
        with anyio.move_on_after(0.02) as limit:
            await maildir.append(LARGE, duplicate_key="k")
        assert limit.cancelled_caught
    else:
        waiter = asyncio.ensure_future(maildir.append(LARGE, duplicate_key="k"))
        await turns()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert not holder.done()
    gate.open()

    assert not (await holder).duplicate
    assert (await third).path == (await holder).path
    assert stored(tmp_path) == [b"1\n"]


async def test_a_holder_that_is_cancelled_when_it_is_too_late_is_remembered(tmp_path: Path) -> None:
    """It has been delivered, so those who wait are duplicates of it, and so are those who come later."""
    gate = Gate()
    maildir = filtered(tmp_path, disk=FaultDisk(Fault("sync", path="/tmp/", gate=gate)))
    task = AppendTask(maildir, b"1\n", duplicate_key="k")
    holder = asyncio.ensure_future(_await(task))
    await gate.reached()
    waiter = asyncio.ensure_future(maildir.append(b"2\n", duplicate_key="k"))
    await turns()
    holder.cancel()
    await turns()
    holder.cancel()
    gate.open()

    with pytest.raises(asyncio.CancelledError):
        await holder
    first = task.future.result()
    assert ((await waiter).path, (await waiter).duplicate) == (first.path, True)
    assert (await filtered(tmp_path).append(b"3\n", duplicate_key="k")).duplicate
    assert stored(tmp_path) == [b"1\n"]


async def _await(task: AppendTask) -> Delivered:
    return await task


async def test_cancelled_at_any_moment(tmp_path: Path) -> None:
    """Whenever a delivery is cancelled, the next one of its key is stored, or is a duplicate of one that is there."""
    for delay in range(40):
        name = str(delay)
        maildir = filtered(tmp_path, name)
        task = asyncio.ensure_future(maildir.append(b"1\n", duplicate_key="k"))
        await turns(delay)
        await asyncio.sleep(delay % 4 * 0.0005)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        delivered = await maildir.append(b"2\n", duplicate_key="k")
        assert os.path.exists(delivered.path)
        assert len(stored(tmp_path, name)) == 1


def test_a_loop_that_vanishes_holds_nobody_up(tmp_path: Path) -> None:
    """A claim of a delivery whose loop has been closed is nobody's: the next one is delivered."""
    gate = Gate()
    maildir = filtered(tmp_path, disk=FaultDisk(Fault("sync", path="/tmp/", gate=gate)))
    loop = asyncio.new_event_loop()
    task = loop.create_task(maildir.append(b"1\n", duplicate_key="k"))
    loop.run_until_complete(gate.reached())
    loop.close()
    gate.open()

    delivered = asyncio.run(maildir.append(b"2\n", duplicate_key="k"))

    assert os.path.exists(delivered.path)
    assert delivered.warnings == ()
    with contextlib.suppress(RuntimeError):
        task.cancel()  # not to be told as pending
    del task


# Forks.


async def test_a_forked_child_goes_on_with_the_file(tmp_path: Path) -> None:
    """A child finds what its parent has delivered, and the parent what its child has, with the objects of before."""
    maildir = filtered(tmp_path)
    first = await maildir.append(MESSAGE, duplicate_key="parent")

    def child() -> tuple[str, bool, tuple[str, ...]]:
        async def run() -> tuple[str, bool, tuple[str, ...]]:
            again = await maildir.append(MESSAGE, duplicate_key="parent")
            new = await maildir.append(MESSAGE, duplicate_key="child")
            return again.path, new.duplicate, again.warnings + new.warnings

        asyncio.set_event_loop(None)
        asyncio.events._set_running_loop(None)
        return asyncio.run(run())

    assert await asyncio.to_thread(forked, child) == [(first.path, False, ())]
    assert (await maildir.append(MESSAGE, duplicate_key="child")).duplicate
    assert (await maildir.append(MESSAGE, duplicate_key="parent")).path == first.path
    with closing(sqlite3.connect(tmp_path / "seen")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_child_keeps_no_claim_of_its_parent(tmp_path: Path) -> None:
    """A process with a claim is killed while a child of its lives on: the claim is free."""
    maildir = filtered(tmp_path)
    reader, writer = os.pipe()

    def claim() -> None:
        async def run() -> None:
            assert maildir.duplicates is not None
            claimed = maildir.duplicates.gate(maildir.mailbox, b"k")
            assert await claimed.enter() is None
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            os.write(writer, b"%d\n" % child)
            time.sleep(30)

        asyncio.run(run())

    pid = _start(claim)
    grandchild = int(os.read(reader, 20))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        delivered = asyncio.run(asyncio.wait_for(maildir.append(MESSAGE, duplicate_key="k"), 20))
        assert (delivered.duplicate, delivered.warnings) == (False, ())
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(reader)
        os.close(writer)


# How long, and what goes wrong.


async def test_keys_are_kept_for_so_long(tmp_path: Path) -> None:
    """After *keep* a key is new, and its row is removed; a row from a far future, by a wrong clock, counts for none."""
    now = 1_000_000.0
    seen = DuplicateFilter(tmp_path / "seen", keep=timedelta(hours=1), clock=lambda: now)
    maildir = Maildir(tmp_path / "m", duplicates=seen)
    await maildir.append(b"1\n", duplicate_key="k")
    now += 3599
    assert (await maildir.append(b"1\n", duplicate_key="k")).duplicate
    now += 2
    assert not (await maildir.append(b"1\n", duplicate_key="k")).duplicate
    now -= 3601 * 2
    assert not (await maildir.append(b"1\n", duplicate_key="k")).duplicate
    assert (await maildir.append(b"1\n", duplicate_key="k")).duplicate

    now += 1e6
    fresh = Maildir(tmp_path / "m", duplicates=DuplicateFilter(tmp_path / "seen", clock=lambda: now))
    await fresh.append(b"1\n", duplicate_key="other")  # the first remembered by an object removes what is old
    with closing(sqlite3.connect(tmp_path / "seen")) as connection:
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (1,)


@pytest.mark.parametrize("garbage", [b"no database at all\n" * 100, None], ids=["no database", "damaged"])
async def test_a_damaged_database_is_set_aside(tmp_path: Path, garbage: bytes | None) -> None:
    """The message is delivered, with a warning that says where the file is now; a new one is begun and used."""
    path = tmp_path / "seen"
    if garbage is None:
        maildir = filtered(tmp_path)
        await maildir.append(b"1\n", duplicate_key="k")
        del maildir
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        good = path.read_bytes()
        garbage = good[:4096] + b"\xff" * (len(good) - 4096)
    path.write_bytes(garbage)
    maildir = filtered(tmp_path, "other")

    first = await maildir.append(b"1\n", duplicate_key="k")
    again = await maildir.append(b"1\n", duplicate_key="k")

    assert (first.duplicate, again.duplicate) == (False, True)
    (aside,) = [each for each in tmp_path.iterdir() if ".corrupt-" in each.name and each.suffix[-4:] not in "-wal-shm"]
    assert aside.read_bytes() == garbage
    assert len(first.warnings) == 1
    assert str(aside) in first.warnings[0]
    assert again.warnings == ()


async def test_a_database_that_is_set_aside_by_another_is_opened_anew(tmp_path: Path) -> None:
    """An object that has the old file open looks into the one that is at the path now."""
    one, two = filtered(tmp_path), filtered(tmp_path)
    await one.append(b"1\n", duplicate_key="k")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{tmp_path}/seen{suffix}", f"{tmp_path}/aside{suffix}")

    second = await two.append(b"2\n", duplicate_key="k")
    assert not second.duplicate
    assert (await one.append(b"3\n", duplicate_key="k")).path == second.path


async def _stores_each(maildir: Maildir, count: int = 3) -> None:
    """Check that deliveries of one key, at once and after that, are all stored, and told of."""
    outcomes = [
        *await asyncio.gather(*(maildir.append(b"1\n", duplicate_key="k") for _ in range(count - 1))),
        *await maildir.append_many([b"1\n"], duplicate_key="k"),
    ]
    assert [each.duplicate for each in outcomes] == [False] * count
    for each in outcomes:
        assert len(each.warnings) >= 1
        assert each.warnings[0].startswith("duplicates of the message were not looked for: ")


async def test_a_database_that_cannot_be_made(tmp_path: Path) -> None:
    """A read-only disk, a missing directory, a directory in its place: all is delivered, with warnings."""
    read_only = FaultDisk(Fault("create", error=errno.EROFS, nth=0))
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory-claims").mkdir()
    for number, seen in enumerate(
        (
            DuplicateFilter(tmp_path / "seen", disk=read_only),
            DuplicateFilter(tmp_path / "missing" / "seen"),
            DuplicateFilter(tmp_path / "directory"),
        )
    ):
        await _stores_each(Maildir(tmp_path / str(number), duplicates=seen))
        assert len(stored(tmp_path, str(number))) == 3


def test_a_full_disk(tmp_path: Path) -> None:
    """Where the database cannot grow, the message is delivered, and warned of: it has not been remembered."""
    maildir = filtered(tmp_path)

    def child() -> list[tuple[bool, int]]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # EFBIG for what is longer; SQLite calls both full

        async def run() -> list[tuple[bool, int]]:
            outcomes = [await maildir.append(MESSAGE, duplicate_key="k") for _ in range(3)]
            return [(each.duplicate, len(each.warnings)) for each in outcomes]

        return asyncio.run(run())

    assert all(not duplicate and warnings for duplicate, warnings in forked(child)[0])
    assert stored(tmp_path) == [MESSAGE] * 3


@pytest.mark.parametrize("mode", ["NORMAL", pytest.param("EXCLUSIVE", marks=pytest.mark.heavy)])
async def test_a_database_that_another_has_locked(tmp_path: Path, mode: str) -> None:
    """Two seconds are waited for it; then the message is delivered, with a warning."""
    maildir = filtered(tmp_path)
    await maildir.append(b"before\n", duplicate_key="before")
    if mode == "EXCLUSIVE":
        maildir = Maildir(tmp_path / "m", duplicates=DuplicateFilter(tmp_path / "other"))
    with closing(sqlite3.connect(tmp_path / ("seen" if mode == "NORMAL" else "other"))) as connection:
        if mode == "EXCLUSIVE":
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("CREATE TABLE mine (a)")
        delivered = await maildir.append(b"1\n", duplicate_key="k")

    assert not delivered.duplicate
    assert len(delivered.warnings) == 1
    assert "locked" in delivered.warnings[0]
    assert not (await maildir.append(b"1\n", duplicate_key="k")).duplicate
    assert (await maildir.append(b"1\n", duplicate_key="k")).duplicate


# Fan-out.


@pytest.mark.parametrize("message", [MESSAGE, LARGE], ids=["short", "large"])
@pytest.mark.parametrize("known", [0, 1])
async def test_a_fan_out_to_maildirs_of_which_one_has_the_message(tmp_path: Path, message: bytes, known: int) -> None:
    """It is a duplicate there, and stored in the others: each outcome is its own, by its own filter."""
    boxes = [
        filtered(tmp_path, "0"),
        Maildir(tmp_path / "1", duplicates=DuplicateFilter(tmp_path / "another")),
        Maildir(tmp_path / "2"),
    ]
    first = await boxes[known].append(message, duplicate_key=True)

    outcomes = await deliver(io.BytesIO(message), boxes, duplicate_key=True)
    again = await deliver(io.BytesIO(message), boxes, duplicate_key=True)

    found = [outcome.delivered for outcome in outcomes]
    assert [each and each.duplicate for each in found] == [known == 0, known == 1, False]
    duplicate = found[known]
    assert duplicate is not None
    assert duplicate.path == first.path
    assert duplicate.size == (len(message) if message is MESSAGE else 0)
    assert [each.delivered and each.delivered.duplicate for each in again] == [True, True, False]
    assert [len(stored(tmp_path, str(number))) for number in range(3)] == [1, 1, 2]


async def test_fan_outs_at_once(tmp_path: Path) -> None:
    """Fan-outs of one message to the same maildirs, in any order and one twice, end, and store it once in each."""
    boxes = [filtered(tmp_path, name) for name in "abc"]
    orders = [boxes, boxes[::-1], [boxes[1], boxes[0], filtered(tmp_path, "b")]]
    assert boxes[1].duplicates is not None
    claimed = boxes[1].duplicates.gate(boxes[1].mailbox, b"<1@example.org>")
    assert await claimed.enter() is None
    deliveries = asyncio.gather(
        *(deliver(MESSAGE, orders[number % 3], duplicate_key=True) for number in range(12)),
        *(box.append(MESSAGE, duplicate_key=True) for box in boxes),
    )
    await asyncio.sleep(0.05)  # so that all have what they can have: each stands in the way of some other
    claimed.leave()
    results = await deliveries
    assert all(outcome.delivered for result in results if isinstance(result, list) for outcome in result)
    assert [len(stored(tmp_path, name)) for name in "abc"] == [1, 1, 1]


async def test_a_fan_out_that_fails_or_is_cancelled_lets_the_next_one_store(tmp_path: Path) -> None:
    """A source that raises, or a cancellation, ends its claims; what was delivered all the same is remembered."""

    async def source() -> AsyncIterator[bytes]:
        yield LARGE
        await reached()

    async def fails() -> None:
        raise OSError(errno.EIO, "the source")

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    boxes = [filtered(tmp_path, name) for name in "ab"]
    reached = fails
    assert all(outcome.error for outcome in await deliver(source(), boxes, duplicate_key=True))
    reached = hangs
    task = asyncio.ensure_future(deliver(source(), boxes, duplicate_key=True))
    await begun.wait()
    waiter = asyncio.ensure_future(boxes[0].append(MESSAGE, duplicate_key=True))
    await turns()
    assert not waiter.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (await waiter).duplicate
    assert [len(stored(tmp_path, name)) for name in "ab"] == [1, 0]

    gate = Gate()
    slow = filtered(tmp_path, "slow", disk=FaultDisk(Fault("sync", path="slow/tmp/", gate=gate)))
    task = asyncio.ensure_future(deliver(MESSAGE, [slow], duplicate_key=True))
    await gate.reached()
    task.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await filtered(tmp_path, "slow").append(MESSAGE, duplicate_key=True)).duplicate


@pytest.mark.parametrize("how", ["IMMEDIATE", "EXCLUSIVE"])
async def test_a_database_that_another_has_locked_is_waited_for(tmp_path: Path, how: str) -> None:
    """Also when it is set up: who has just begun there as well is no reason not to look for duplicates."""
    path = tmp_path / "seen.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE another (x)")
    maildir = Maildir(tmp_path / "Maildir", duplicates=DuplicateFilter(path))
    other.execute(f"BEGIN {how}")
    first = asyncio.ensure_future(maildir.append(b"x", duplicate_key="k"))
    await asyncio.wait([first], timeout=0.2)
    assert not first.done()
    other.execute("COMMIT")
    other.close()
    assert (await first).warnings == ()
    assert (await maildir.append(b"x", duplicate_key="k")).duplicate


@pytest.mark.parametrize("times", [4, pytest.param(12, marks=pytest.mark.heavy)])
def test_a_child_forked_while_a_filter_is_thrown_away(tmp_path: Path, times: int) -> None:
    """SQLite has no lock of its own then that nobody in the child would give back."""

    async def use(path: Path) -> tuple[str, ...]:
        maildir = Maildir(path, duplicates=DuplicateFilter(f"{path}.sqlite"))
        return (await maildir.append(b"x", duplicate_key="k")).warnings

    for number in range(times):
        for each in range(3):
            asyncio.run(use(tmp_path / f"{number}.{each}"))
        gc.collect()
        assert forked(lambda number=number: asyncio.run(use(tmp_path / f"{number}.child"))) == [()]  # type: ignore[misc]
