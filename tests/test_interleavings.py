"""Moments that are hard to come by, each brought about on purpose: what a review of every interleaving has found."""

import asyncio
import errno
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from look import Look, descriptors, until
from maildir_async import (
    AppendError,
    AppendTask,
    Delivered,
    Durability,
    GroupCommit,
    Maildir,
    UncertainAppendError,
    deliver,
)
from maildir_async.commit.rounds import Round
from maildir_async.mailbox.index import Index
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import PATIENCE_S, Gate

CHUNK = 512 * 1024


def test_keyboard_interrupt_tears_no_message(tmp_path: Path) -> None:
    """A KeyboardInterrupt in the turn in which the writer takes a chunk loses none: the message is delivered whole."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit())
    loop = asyncio.new_event_loop()
    interrupts = iter([KeyboardInterrupt()])

    def progress(size: int) -> None:
        for interrupt in interrupts:
            raise interrupt

    async def feed() -> AppendTask:
        task = AppendTask(maildir, on_progress=progress)
        for letter in b"abc":
            task.write(bytes([letter]) * CHUNK)
        task.write(b"end")
        task.unregister_producer()
        return task

    task = loop.run_until_complete(feed())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait([task.future]))
    loop.run_until_complete(task.future)
    loop.close()
    assert Look(maildir.path).messages() == [b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK + b"end"]
    Look(maildir.path).assert_tmp_empty()


def test_keyboard_interrupt_in_one_answer_costs_no_other(tmp_path: Path) -> None:
    """A KeyboardInterrupt in one message's last on_progress leaves it delivered, and its batch gets the answers."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit())
    loop = asyncio.new_event_loop()

    def progress(size: int) -> None:
        raise KeyboardInterrupt

    async def start() -> list[AppendTask]:
        tasks = [AppendTask(maildir, b"message", on_progress=progress if number == 0 else None) for number in range(3)]
        for task in tasks:
            task.start()
        return tasks

    tasks = loop.run_until_complete(start())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait([task.future for task in tasks]))
    for task in tasks:
        assert isinstance(loop.run_until_complete(task), Delivered)
    loop.close()


def test_new_replaced_between_opening_and_publishing() -> None:
    """If new/ is removed at that moment, the directory that takes its place is the one that is synced."""
    platter = CrashDisk()
    swap = Fault("rename_noreplace", gate=lambda: platter.rmdir("/m/new"))
    maildir = Maildir("/m", disk=FaultDisk(swap, disk=platter), commit=GroupCommit())
    delivered = asyncio.run(maildir.append(b"message"))
    assert all(delivered.path in found for found in platter.after_power_cut())


def test_directories_that_another_delivery_is_making() -> None:
    """A directory that another delivery has made, and not synced yet, is not taken for durable."""
    platter = CrashDisk()
    hangs, release = threading.Event(), threading.Event()

    def gate() -> None:
        hangs.set()
        assert release.wait(30)

    disk = FaultDisk(Fault("mkdir", path="/domain/one/cur", gate=gate), disk=platter)

    async def main() -> None:
        one = asyncio.ensure_future(Maildir("/domain/one", disk=disk, commit=GroupCommit()).append(b"1"))
        await asyncio.to_thread(hangs.wait, 30)
        two = await Maildir("/domain/two", disk=disk, commit=GroupCommit()).append(b"2")
        assert all(two.path in found for found in platter.after_power_cut())
        release.set()
        await one

    asyncio.run(main())


def test_source_that_cannot_be_iterated(tmp_path: Path) -> None:
    """A message whose __iter__ raises fails its own delivery, at once or when its turn comes, and keeps no place."""

    class Rows:
        def __iter__(self) -> Iterator[bytes]:
            raise ConnectionError("no database")

    async def main() -> None:
        commit = GroupCommit(max_pending=1)
        maildir = Maildir(tmp_path / "m", commit=commit)
        with pytest.raises(AppendError, match="no database"):
            await maildir.append(Rows())
        async with maildir.open_append() as task:
            waiting = asyncio.ensure_future(maildir.append(Rows()))
            await asyncio.sleep(0)
            await task.send(b"held")
        with pytest.raises(AppendError, match="no database"):
            await waiting
        assert commit.statistics().pending == 0
        await maildir.aclose()

    asyncio.run(main())


def test_fork_while_an_index_is_locked(tmp_path: Path) -> None:
    """A child forked while another thread changes an index can use that index."""
    index = Index()
    with index._lock:
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if index._lock.acquire(timeout=5) else 1)
            finally:
                os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_cancelled_stream_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system gives no thread to remove its file, a cancelled stream is settled all the same, and tmp/ empty."""
    monkeypatch.setattr("maildir_async.disk.threads.IDLE_S", 0.02)
    disk = CrashDisk()  # there is nowhere to remove the file but on the loop, to which the bench would object

    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        maildir = Maildir("/m", disk=disk, commit=GroupCommit())
        task = maildir.open_append()
        await task.send(b"x" * CHUNK)
        while not task.bytes_written or maildir.commit.streams.crew.threads:
            await asyncio.sleep(0.001)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)

    asyncio.run(main())
    assert disk.files() == {}


def test_no_memory_for_cleaning_up_costs_only_one_message(tmp_path: Path) -> None:
    """If even the removal of a failed message fails, unforeseen, it and its neighbours get their answers."""

    def no_memory() -> None:
        raise MemoryError

    async def main() -> list[Delivered | BaseException]:
        disk = FaultDisk(Fault("write", errno.EIO), Fault("unlink", gate=no_memory))
        maildir = Maildir(tmp_path / "m", disk=disk, commit=GroupCommit())
        return [*await asyncio.gather(maildir.append(b"a"), maildir.append(b"b"), return_exceptions=True)]

    first, second = asyncio.run(main())
    assert isinstance(first, AppendError)
    assert "MemoryError" in first.__notes__[0]
    assert isinstance(second, Delivered)
    for left in (tmp_path / "m" / "tmp").iterdir():
        left.unlink()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL], ids=errno.errorcode.get)
def test_weaker_messages_in_a_batch_with_a_durable_one(tmp_path: Path, number: int) -> None:
    """A failed directory sync is told to the message that asked for it, not to its weaker neighbours."""

    async def main() -> list[Any]:
        disk = FaultDisk(Fault("sync", number, nth=0, path="m/new"))
        maildir = Maildir(tmp_path / "m", disk=disk, commit=GroupCommit())
        levels = (Durability.FULL, Durability.FILE, Durability.NONE)
        appends = (maildir.append(b"message", durability=level) for level in levels)
        return await asyncio.gather(*appends, return_exceptions=True)

    full, file, none = asyncio.run(main())
    assert isinstance(full, UncertainAppendError) if number == errno.EIO else full.durability is Durability.FILE
    assert (file.durability, file.warnings) == (Durability.FILE, ())
    assert (none.durability, none.warnings) == (Durability.NONE, ())


def test_hang_in_opening_a_directory_leaks_no_descriptor(tmp_path: Path) -> None:
    """Who hangs while it opens the directory of its batch closes what it then gets, the batch being long over."""
    release = threading.Event()

    async def main() -> None:
        for name in ("a", "b"):
            await Maildir(tmp_path / name).create()
        disk = FaultDisk(Fault("open_directory", path="a/new", gate=lambda: release.wait(30)))
        commit = GroupCommit()
        a, b = (asyncio.ensure_future(Maildir(tmp_path / name, disk=disk, commit=commit).append(b"m")) for name in "ab")
        await b
        assert not a.done()
        release.set()
        await a

    asyncio.run(main())
    until(lambda: not descriptors(tmp_path))


def test_garbage_collector_in_group_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries of a closed loop that are thrown away in the middle of group commit do not deadlock it."""
    commit = GroupCommit()
    maildir = Maildir(tmp_path / "m", commit=commit)
    asyncio.run(maildir.append(b"first use"))
    original = Round.__init__

    def collecting(self: Round, *args: Any, **options: Any) -> None:
        gc.collect()
        original(self, *args, **options)

    monkeypatch.setattr(Round, "__init__", collecting)
    loop = asyncio.new_event_loop()
    task = loop.create_task(maildir.append(b"thrown away"))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    del task, loop
    assert isinstance(asyncio.run(asyncio.wait_for(maildir.append(b"next"), 30)), Delivered)


def test_a_round_that_cannot_be_made_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no memory for a round, its messages get an answer, leave nothing, and the next ones are delivered."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit())
    original = Round.__init__

    def failing(self: Round, *args: Any, **options: Any) -> None:
        monkeypatch.setattr(Round, "__init__", original)
        raise MemoryError

    monkeypatch.setattr(Round, "__init__", failing)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    async def main() -> Delivered:
        with pytest.raises(AppendError) as caught:
            await asyncio.wait_for(maildir.append(b"no memory"), 30)
        assert isinstance(caught.value.__cause__, MemoryError)
        return await asyncio.wait_for(maildir.append(b"next"), 30)

    asyncio.run(main())
    assert Look(maildir.path).messages() == [b"next"]
    Look(maildir.path).assert_tmp_empty()


@pytest.mark.parametrize("how", ["task", "append"])
def test_a_loop_that_is_closed_in_the_turn_of_a_submission(tmp_path: Path, how: str) -> None:
    """What a loop has not handed over when it is closed is taken back then, and `aclose` does not wait for it.

    anyio keeps a coroutine that is in a scope of its when the loop is closed, so no collector can throw it away.
    """
    commit = GroupCommit()
    maildir = Maildir(tmp_path / "m", commit=commit)
    loop = asyncio.new_event_loop()
    kept: list[object] = []

    def start() -> None:
        if how == "task":
            kept.append(AppendTask(maildir, b"message").start())
        else:
            kept.append(loop.create_task(maildir.append(b"message")))
            kept[0]._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.call_soon(loop.stop)

    loop.call_soon(start)
    if how == "task":
        loop.call_soon(loop.stop)
    loop.run_forever()
    assert commit.statistics().pending == 1
    loop.close()
    assert commit.statistics().pending == 0
    asyncio.run(asyncio.wait_for(maildir.aclose(), 30))
    assert maildir.statistics().in_flight == 0
    assert Look(maildir.path).messages() == []
    del kept[:]
    gc.collect()
    assert commit.statistics().pending == 0
    assert maildir.statistics().failed == 1


@pytest.mark.parametrize(
    ("how", "turns"),
    [
        *(("append", turns) for turns in range(5)),
        *((how, turns) for how in ("stream", "fan-out") for turns in range(3)),
    ],
)
def test_a_loop_that_is_closed_while_a_place_is_waited_for(tmp_path: Path, how: str, turns: int) -> None:
    """Before it is granted, or in any turn after: it is given back, and nobody waits for what will not come."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"message"

    gate = Gate()
    disk = FaultDisk(Fault("write", gate=gate))
    commit = GroupCommit(max_pending=1)
    maildir, other = (Maildir(tmp_path / name, disk=disk, commit=commit) for name in ("m", "other"))
    loop, first = asyncio.new_event_loop(), asyncio.new_event_loop()
    sent = first.create_task(other.append(b"first"))
    first.run_until_complete(gate.reached())

    async def in_a_scope() -> None:
        with anyio.CancelScope():
            if how == "fan-out":
                await deliver(b"message", [maildir, other])
            else:
                await maildir.append(b"message" if how == "append" else chunks())

    task = loop.create_task(in_a_scope())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    while not commit.statistics().waiting:
        loop.run_until_complete(asyncio.sleep(0))
    gate.open()
    if turns:
        first.run_until_complete(sent)
        for _ in range(turns - 1):
            loop.call_soon(loop.stop)
            loop.run_forever()
    is_done = task.done()
    loop.close()
    if not turns:
        first.run_until_complete(sent)
    first.run_until_complete(asyncio.wait_for(maildir.aclose(), PATIENCE_S))
    first.run_until_complete(asyncio.wait_for(other.aclose(), PATIENCE_S))
    assert commit.wait_idle(PATIENCE_S)
    first.close()
    assert (commit.statistics().pending, commit.statistics().waiting) == (0, 0)
    assert (maildir.statistics().in_flight, other.statistics().in_flight) == (0, 0)
    assert not is_done
    assert Look(maildir.path).messages() in ([], [b"message"])
    Look(maildir.path).assert_tmp_empty()


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_loop_that_is_closed_in_any_turn_of_a_failure(tmp_path: Path, cancelled: bool) -> None:
    """Whoever awaits a task is thrown away with its loop: its failure is then nobody's, and is not complained of."""
    said: list[dict[str, Any]] = []
    for turns in range(8):
        gate = Gate()
        disk = FaultDisk(Fault("write", errno.EIO, gate=gate))
        maildir = Maildir(tmp_path / str(turns), disk=disk, commit=GroupCommit())
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))

        async def wait(maildir: Maildir = maildir) -> None:
            await AppendTask(maildir, b"message")

        task = loop.create_task(wait())
        loop.run_until_complete(gate.reached())
        if cancelled:
            task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
        gate.open()
        assert maildir.commit.wait_idle(30)
        for _ in range(turns):
            loop.call_soon(loop.stop)
            loop.run_forever()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        if task.done() and not task.cancelled():
            task.exception()
        loop.close()
        del task, loop, wait
        gc.collect()
    assert said == []


def test_a_fan_out_is_thrown_away_with_its_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fan-out whose loop is closed waits for nothing and complains of nothing; the message is whole or absent."""
    said: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: said.append(repr(args.exc_value)))
    gate = Gate()
    disk, commit = FaultDisk(Fault("write", gate=gate)), GroupCommit()
    maildirs = [Maildir(tmp_path / name, disk=disk, commit=commit) for name in "ab"]
    loop = asyncio.new_event_loop()
    task = loop.create_task(deliver(b"message", maildirs))
    loop.run_until_complete(gate.reached())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    del task, loop
    gc.collect()
    gate.open()
    assert commit.wait_idle(30)
    gc.collect()
    assert said == []
    assert commit.statistics().pending == 0
    for maildir in maildirs:
        assert Look(maildir.path).messages() in ([], [b"message"])
        Look(maildir.path).assert_tmp_empty()
