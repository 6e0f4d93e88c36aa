"""`append_many(atomic=True)`: all of the messages, or none."""

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from maildir_async import AppendError, Delivered, GroupCommit, Maildir, MaildirError, MessageTooLargeError
from maildir_async.commit.batch import names_in_use
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import Gate, contents, forked, some, turns

PATH: Final = "/var/mail/alice"
LONG: Final = b"long " * 120_000


async def stream(message: bytes = LONG) -> AsyncIterator[bytes]:
    for start in range(0, len(message), 60_000):
        yield message[start : start + 60_000]


def messages() -> list[Any]:
    return [b"one\n", stream(), b"", b"two\n" * 1000, bytearray(b"three")]


WHOLE: Final = [b"one\n", LONG, b"", b"two\n" * 1000, b"three"]


@pytest.mark.every_loop
@pytest.mark.parametrize("process", [False, True], ids=["here", "helper"])
async def test_all_are_delivered_in_their_order(tmp_path: Path, process: bool) -> None:
    """Bytes and streams: names in the order given, counted and listed once, and the options of `append`."""
    async with Maildir(tmp_path, commit=GroupCommit(helper_process=process)) as maildir:
        index = await maildir.index()
        told: list[tuple[int, int | None, int]] = []
        delivered = await maildir.append_many(
            messages(), atomic=True, flags="S", prefix=b"A: b\n", on_progress=lambda *done: told.append(done)
        )
        await maildir.commit.aclose()
    stored = [b"A: b\n" + message for message in WHOLE]
    assert contents(tmp_path) == {"tmp": [], "new": [], "cur": stored}
    assert [Path(each.path).read_bytes() for each in delivered] == stored
    assert [each.key for each in delivered] == sorted(each.key for each in delivered)
    assert [each.size for each in delivered] == [len(each) for each in stored]
    assert {each.flags for each in delivered} == {"S"}
    assert [each[:2] for each in told] == [(count, 5) for count in range(1, 6)]
    assert list(index) == delivered
    numbers = maildir.statistics()
    assert (numbers.delivered, numbers.failed, numbers.bytes_stored) == (5, 0, sum(map(len, stored)))


async def test_a_folder(tmp_path: Path) -> None:
    """They go to the folder asked for, which is made, and counts them; its maildir gets none."""
    maildir = Maildir(tmp_path, commit=GroupCommit())
    delivered = await maildir.append_many(messages(), atomic=True, folder="Archive/2024")
    assert {each.folder for each in delivered} == {"Archive/2024"}
    assert contents(tmp_path / ".Archive.2024") == {"tmp": [], "new": WHOLE, "cur": []}
    assert contents(tmp_path)["new"] == []
    assert maildir.statistics().delivered == 5
    with pytest.raises(ValueError, match="folder"):
        await maildir.append_many(messages(), atomic=True, folder="a//b")
    await maildir.aclose()


async def test_one_sync_of_the_directory_and_none_before_all_are_synced(tmp_path: Path) -> None:
    """Nothing is published before the last file is synced; one sync of ``new/`` makes 200 messages durable."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path, disk=disk, commit=GroupCommit())
    await maildir.append(b"the directories are durable")
    disk.calls.clear()
    assert len(await maildir.append_many([b"x"] * 200, atomic=True)) == 200
    done = [(call.operation, "/new" in call.path) for call in disk.calls]
    first = next(at for at, (operation, _) in enumerate(done) if operation.startswith("rename"))
    last = max(at for at, call in enumerate(done) if call[0] == "write")
    assert last < first
    assert done.count(("sync", True)) == 1


async def test_bounds_of_group_commit_hold_no_transaction_up(tmp_path: Path) -> None:
    """A transaction may be larger than what may be pending at once; others are delivered beside it."""
    commit = GroupCommit(max_pending=4, max_pending_bytes=64)
    maildir = Maildir(tmp_path, commit=commit)
    with anyio.fail_after(30):
        await asyncio.gather(
            maildir.append_many([b"x" * 40] * 50, atomic=True), *[maildir.append(b"y") for _ in range(20)]
        )
    assert len(contents(tmp_path)["new"]) == 70
    assert commit.statistics().pending == 0


async def test_what_is_refused(tmp_path: Path) -> None:
    """Both outcomes at once are no transaction; no messages are no work; a closed maildir takes none."""
    maildir = Maildir(tmp_path / "box")
    with pytest.raises(ValueError, match="atomic excludes return_exceptions"):
        await maildir.append_many([b""], atomic=True, return_exceptions=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="atomic must be True or False"):
        await maildir.append_many([b""], atomic=1)  # type: ignore[call-overload]
    assert await maildir.append_many([], atomic=True) == []
    assert not (tmp_path / "box").exists()
    await maildir.aclose()
    with pytest.raises(MaildirError, match="closed"):
        await maildir.append_many([b"x"], atomic=True)


class OopsError(Exception):
    pass


@pytest.mark.parametrize("concurrency", [1, 64])
async def test_a_failure_before_publishing_leaves_none(tmp_path: Path, concurrency: int) -> None:
    """A message that is too large, none at all, or whose source raises; messages that raise; a callback that does."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 600_000
        raise OopsError

    def failing() -> Any:
        yield b"x"
        yield stream()
        raise OopsError

    def refuse(*_: int | None) -> None:
        raise OopsError

    maildir = Maildir(tmp_path, size_limit=700_000)
    kept = await maildir.append(b"before")
    cases: list[tuple[Any, type[Exception], dict[str, Any]]] = [
        ([b"x", b"y" * 700_001, b"z"], MessageTooLargeError, {}),
        ([b"x", stream(), 5], TypeError, {}),
        ([b"x", broken(), b"z"], AppendError, {}),
        (failing(), OopsError, {}),
        ([b"x", stream(), b"z"], OopsError, {"on_progress": refuse}),
    ]
    for given, expected, options in cases:
        with pytest.raises(expected):
            await maildir.append_many(given, atomic=True, concurrency=concurrency, **options)
        assert contents(tmp_path) == {"tmp": [], "new": [b"before"], "cur": []}
        assert not names_in_use()
    assert Path(kept.path).exists()
    await maildir.aclose()
    assert maildir.statistics().delivered == 1


async def test_no_message_is_begun_after_one_has_failed(tmp_path: Path) -> None:
    """An endless sequence ends with the first failure."""
    maildir = Maildir(tmp_path, size_limit=10)
    with pytest.raises(MessageTooLargeError):
        await maildir.append_many(itertools.chain([b"x", b"x" * 11], itertools.repeat(b"x")), atomic=True)


def faults() -> list[tuple[str, int]]:
    """The calls of a whole transaction, each with its number among those of its kind."""
    disk = CountingDisk()
    asyncio.run(Maildir(disk.place, disk=disk, commit=GroupCommit()).append_many(messages(), atomic=True))
    seen: dict[str, int] = {}
    for call in disk.calls:
        seen[call.operation] = seen.get(call.operation, 0) + 1
    return [(operation, nth) for operation, count in seen.items() for nth in range(1, count + 1)]


class CountingDisk(FaultDisk):
    """Faults on a disk in memory."""

    place = PATH

    def __init__(self, *given: Fault) -> None:
        self.memory = CrashDisk()
        super().__init__(*given, disk=self.memory)  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize(("number", "every"), some([(errno.EIO, 3), (errno.EIO, 1), (errno.ENOSPC, 1)], 3))
def test_a_fault_at_every_call(number: int, every: int) -> None:
    """Whichever call fails: all are there, or none is, or a note names each that is."""
    for operation, nth in faults()[::every]:
        disk = CountingDisk(Fault(operation, number, nth=nth))
        maildir = Maildir(PATH, disk=disk, commit=GroupCommit())
        told = f"{operation} {nth}"
        try:
            delivered = asyncio.run(maildir.append_many(messages(), atomic=True))
        except MaildirError as exc:
            notes = "\n".join(getattr(exc, "__notes__", ()))
            for path in disk.memory.files():
                assert ("the file in tmp/ could not be removed" if "/tmp/" in path else path) in notes, (told, path)
            assert maildir.statistics().delivered == 0, told
        else:
            files = disk.memory.files()
            assert [files[each.path] for each in delivered] == WHOLE, told
            assert maildir.statistics().delivered == 5
        assert maildir.mailbox.in_flight == 0, told
        assert disk.memory.open_files == 0, told


@pytest.mark.parametrize("every", some([3, 1], 2))
def test_power_cut_at_every_call(every: int) -> None:
    """Each message is whole or absent; when the call has returned, all survive."""
    for cut_at in itertools.count(1, every):
        disk = CrashDisk(cut_at=cut_at)
        maildir = Maildir(PATH, disk=disk, commit=GroupCommit())  # type: ignore[arg-type, unused-ignore]
        delivered: list[Delivered] = []
        with contextlib.suppress(MaildirError):
            delivered = asyncio.run(maildir.append_many(messages(), atomic=True))
        for found in disk.after_power_cut(range(4)):
            assert all(each.path in found for each in delivered)
            assert all(content in WHOLE for path, content in found.items() if "/tmp/" not in path)
        assert disk.open_files == 0
        if disk.changes < cut_at:
            assert len(delivered) == 5
            return


async def test_what_has_been_published_is_taken_back(tmp_path: Path) -> None:
    """The third of four cannot be published: the others are removed again, durably, and the error is its own."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path, disk=disk, commit=GroupCommit())
    await maildir.append(b"before")
    index = await maildir.index()
    operation = next(call.operation for call in disk.calls if call.operation.startswith("rename"))
    disk.faults[:] = [Fault(operation, errno.EIO, nth=3)]
    disk.calls.clear()
    with pytest.raises(AppendError) as raised:
        await maildir.append_many([b"1", b"2", b"3", b"4"], atomic=True)
    assert raised.value.stage == "publish"
    assert raised.value.errno == errno.EIO
    assert contents(tmp_path) == {"tmp": [], "new": [b"before"], "cur": []}
    assert disk.calls[-2].operation == "sync"
    assert len(list(index)) == 1
    numbers = maildir.statistics()
    assert (numbers.delivered, numbers.failed) == (1, 4)


async def test_a_directory_that_cannot_be_synced(tmp_path: Path) -> None:
    """All have been visible, and none is when the error comes: it does not say that any is."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path, disk=disk, commit=GroupCommit())
    await maildir.append(b"before")
    disk.faults.append(Fault("sync", errno.EIO, path=f"{tmp_path}/new"))
    with pytest.raises(AppendError) as raised:
        await maildir.append_many([b"1", b"2"], atomic=True)
    assert type(raised.value) is AppendError
    assert contents(tmp_path)["new"] == [b"before"]


async def test_what_a_reader_has_moved_is_named(tmp_path: Path) -> None:
    """A message that is not where it was published stays, and a note says so."""

    def move() -> None:
        for path in (tmp_path / "new").iterdir():
            path.rename(tmp_path / "cur" / f"{path.name}:2,S")

    disk = FaultDisk()
    maildir = Maildir(tmp_path, disk=disk, commit=GroupCommit())
    before = await maildir.append(b"before")
    os.unlink(before.path)
    disk.faults.append(Fault("sync", errno.EIO, path=f"{tmp_path}/new", gate=move))
    with pytest.raises(AppendError) as raised:
        await maildir.append_many([b"1", b"2"], atomic=True)
    assert contents(tmp_path) == {"tmp": [], "new": [], "cur": [b"1", b"2"]}
    notes = [note for note in raised.value.__notes__ if "a reader has moved or removed it" in note]
    assert len(notes) == 2


@pytest.mark.every_loop
@pytest.mark.parametrize("operation", ["create", "write", "sync", "close"])
async def test_a_cancellation_before_publishing(tmp_path: Path, operation: str) -> None:
    """Whatever it comes in the midst of: none is there when the cancellation is raised, and nothing in ``tmp/``."""
    for nth in (1, 3):
        gate, disk = Gate(), FaultDisk()
        maildir = Maildir(tmp_path, disk=disk, commit=GroupCommit())
        await maildir.create()
        disk.faults.append(Fault(operation, gate=gate, path=f"{tmp_path}/tmp/", nth=nth))
        task = asyncio.ensure_future(maildir.append_many(messages(), atomic=True, concurrency=2))
        await gate.reached()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert contents(tmp_path) == {"tmp": [], "new": [], "cur": []}
        assert not names_in_use()
        await maildir.aclose()


@pytest.mark.parametrize(("first", "step"), some([(1, 7), (1, 1)], 2))
async def test_a_cancellation_at_every_call(tmp_path: Path, first: int, step: int) -> None:
    """None is there when it is raised, or, where publishing had begun, all are; nothing is in ``tmp/``."""
    ends, tries, nth = set[int](), 0, first
    while True:
        tries += 1
        gate, box = Gate(), tmp_path / str(tries)
        disk = FaultDisk(Fault("", gate=gate, nth=nth))
        maildir = Maildir(box, disk=disk, commit=GroupCommit())
        task = asyncio.ensure_future(maildir.append_many(messages(), atomic=True))
        reached = asyncio.ensure_future(gate.reached())
        await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
        if not gate.is_reached:  # it has been delivered by fewer calls
            reached.cancel()
            assert len(await task) == 5
            if 5 in ends or step > 1 or tries > 300:
                break
            nth = max(
                1, nth - 12
            )  # how many calls it takes depends on how the messages share rounds, and that on the machine
            continue
        nth += step
        task.cancel()
        await turns(3)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = contents(box)
        assert not found.get("tmp")
        assert found.get("new", []) in ([], WHOLE)
        assert not names_in_use()
        await maildir.aclose()
        assert maildir.statistics().delivered == len(found.get("new", []))
        ends.add(len(found.get("new", [])))
    assert ends == {0, 5} or (step > 1 and ends == {0})


async def test_a_message_that_hangs_is_held_when_it_has_been_synced(tmp_path: Path) -> None:
    """Its round leaves it behind, and holds the others; it is finished alone, and all are published."""
    gate, commit = Gate(), GroupCommit()
    commit.queue.patience_s = 0.01
    disk = FaultDisk()
    maildir = Maildir(tmp_path, disk=disk, commit=commit)
    await maildir.create()
    disk.faults.append(Fault("sync", gate=gate, path=f"{tmp_path}/tmp/"))

    def others_are_held(count: int, *_: int | None) -> None:
        if count == 2:
            assert not any(call.operation.startswith("rename") for call in disk.calls)
            gate.open()

    given = [b"1", b"2", b"3"]
    assert len(await maildir.append_many(given, atomic=True, on_progress=others_are_held)) == 3
    assert contents(tmp_path) == {"tmp": [], "new": given, "cur": []}


@pytest.mark.every_loop
@pytest.mark.parametrize("native", [True, False], ids=["task", "scope"])
async def test_a_cancellation_while_publishing(tmp_path: Path, native: bool) -> None:
    """Publishing is waited for: all are there, durable, when the cancellation is raised."""
    gate, disk = Gate(), FaultDisk()
    maildir = Maildir(tmp_path, disk=disk, commit=GroupCommit())
    await maildir.append(b"before")
    disk.faults.append(Fault("sync", gate=gate, path=f"{tmp_path}/new"))

    async def scoped() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await maildir.append_many(messages(), atomic=True)
        assert scope.cancelled_caught
        raise asyncio.CancelledError

    scopes: list[anyio.CancelScope] = []
    task = asyncio.ensure_future(maildir.append_many(messages(), atomic=True) if native else scoped())
    await gate.reached()
    task.cancel() if native else scopes[0].cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(contents(tmp_path)["new"]) == sorted([b"before", *WHOLE])
    assert maildir.statistics().delivered == 6


def test_a_loop_that_is_gone(tmp_path: Path) -> None:
    """A transaction thrown away with its loop, while it is being written, leaves nothing in ``tmp/``."""
    commit = GroupCommit()
    maildir = Maildir(tmp_path, commit=commit)

    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def begin() -> None:
        held.append(asyncio.ensure_future(maildir.append_many([b"1", b"2", never()], atomic=True)))
        while len(contents(tmp_path).get("tmp", ())) < 2:
            await asyncio.sleep(0.001)

    held: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    deadline = time.monotonic() + 30
    while contents(tmp_path)["tmp"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert contents(tmp_path) == {"tmp": [], "new": [], "cur": []}


def test_a_loop_that_is_gone_while_a_message_is_synced(tmp_path: Path) -> None:
    """What is ready to be held only after its transaction has been given up is removed at once."""
    gate = Gate()
    maildir = Maildir(tmp_path, disk=FaultDisk(Fault("sync", gate=gate, path=f"{tmp_path}/tmp/")), commit=GroupCommit())

    async def begin() -> None:
        held.append(asyncio.ensure_future(maildir.append_many([b"1"], atomic=True)))
        await gate.reached()

    held: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    deadline = time.monotonic() + 30
    while maildir.mailbox.in_flight and time.monotonic() < deadline:  # until it has been given up
        time.sleep(0.01)
    assert contents(tmp_path)["tmp"] == [b"1"]
    gate.open()
    while contents(tmp_path)["tmp"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert contents(tmp_path) == {"tmp": [], "new": [], "cur": []}


async def test_what_is_held_is_in_use_and_not_a_childs(tmp_path: Path) -> None:
    """A sweeper leaves what waits in ``tmp/`` to be published; so does a forked child, in which none is in use."""
    maildir = Maildir(tmp_path, commit=GroupCommit())
    go_on = asyncio.Event()

    async def given() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"
        await go_on.wait()

    task = asyncio.ensure_future(maildir.append_many(given(), atomic=True))
    while len(contents(tmp_path).get("tmp", ())) < 2 or len(names_in_use()) < 2:
        await asyncio.sleep(0.001)
    assert forked(lambda: len(names_in_use())) == [0]
    (tmp_path / "tmp" / "stale").write_bytes(b"")
    assert await maildir.clean_tmp(older_than=timedelta()) == [str(tmp_path / "tmp" / "stale")]
    go_on.set()
    assert len(await task) == 2
    assert contents(tmp_path) == {"tmp": [], "new": [b"1", b"2"], "cur": []}


FEW_DESCRIPTORS: Final = """
import asyncio, resource, sys
from maildir_async import Maildir
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
messages = [b"%d\\n" % number for number in range(1000)]
delivered = asyncio.run(Maildir(sys.argv[1]).append_many(messages, atomic=True, concurrency=500))
assert [open(each.path, "rb").read() for each in delivered] == messages
assert sorted(each.key for each in delivered) == [each.key for each in delivered]
"""


def test_a_thousand_messages_and_64_descriptors(tmp_path: Path) -> None:
    """A message that is held has no descriptor."""
    subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, str(tmp_path)], check=True, timeout=60)
    assert len(contents(tmp_path)["new"]) == 1000


KILLED: Final = """
import asyncio, sys
from maildir_async import Maildir
maildir = Maildir(sys.argv[1])
print("go", flush=True)
while True:
    asyncio.run(maildir.append_many([b"x" * 5000] * 20, atomic=True))
    print("done", flush=True)
"""


@pytest.mark.heavy
def test_a_kill_leaves_whole_messages(tmp_path: Path) -> None:
    """SIGKILL at any moment: what has returned is there, and every message that is visible is whole."""
    for number in range(10):
        box = tmp_path / str(number)
        with subprocess.Popen([sys.executable, "-c", KILLED, str(box)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.01 * number)
            process.send_signal(signal.SIGKILL)
            returned = process.stdout.read().count(b"done\n")
        found = contents(box).get("new", [])
        assert len(found) >= 20 * returned
        assert set(found) <= {b"x" * 5000}
