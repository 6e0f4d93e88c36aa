"""The append task: its life, its producers, its options, and what it syncs."""

import asyncio
import errno
import gc
import itertools
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from maildir_async import (
    AppendError,
    AppendTask,
    BusyError,
    Delivered,
    Durability,
    GroupCommit,
    Maildir,
    MessageTooLargeError,
    UncertainAppendError,
)
from maildir_async.format.states import State
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.testing import Fault, FaultDisk
from support import Gate, contents, tree, turns, wire_size

HARD_LIMIT = 16 * 2**20  # bytes buffered past which a producer that ignores its pause is given up
MAIL = b"Subject: x\n\nbody\n"
LONG = bytes(range(256)) * (5 * CHUNK_SIZE // 512)  # two chunks and a half: most is written while it is received
EMPTY: dict[str, list[bytes]] = {"tmp": [], "new": [], "cur": []}


@pytest.fixture
async def maildir(tmp_path: Path) -> Maildir:
    """A maildir that exists and is known to be durable, with nothing in it."""
    box = Maildir(tmp_path / "box")
    os.unlink((await box.append(b"")).path)
    return box


async def on_disk(maildir: Maildir, *faults: Fault) -> tuple[Maildir, FaultDisk]:
    """Return the same maildir on a disk with *faults*, as known to be durable, and the disk, which has no calls yet."""
    disk = FaultDisk()
    box = Maildir(maildir.path, disk=disk)
    for flags in ("", "S"):
        os.unlink((await box.append(b"", flags=flags)).path)
    disk.calls.clear()
    disk.faults.extend(faults)
    return box, disk


def made(disk: FaultDisk, *operations: str) -> list[tuple[str, str]]:
    """Return the calls of these operations, with the last part of their path but for message files: their directory."""
    return [
        (call.operation, os.path.basename(os.path.dirname(call.path) if ".M" in call.path else call.path))
        for call in disk.calls
        if call.operation in operations
    ]


def loop_reports() -> list[dict[str, Any]]:
    """Have the loop's exception handler collect, and return the list."""
    reports = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    return reports


class SourceError(Exception):
    """What sources in these tests raise."""


# Life.


@pytest.mark.every_loop
async def test_life(maildir: Maildir) -> None:
    """A task is IDLE, RECEIVING from its start, COMMITTING from its end, DELIVERED; in tmp/ until it is published."""
    gate = Gate()
    box, disk = await on_disk(maildir, Fault("sync", path="box/tmp/", gate=gate))
    task = AppendTask(box)
    assert (task.state, task.tmp_path, task.bytes_written) == (State.IDLE, None, 0)
    assert disk.calls == []
    with pytest.raises(RuntimeError):
        _ = task.future
    future = task.start()
    assert task.future is future
    assert not future.done()
    assert task.state.name == "RECEIVING"
    await task.send(LONG)
    task.unregister_producer()
    assert task.state.name == "COMMITTING"
    await gate.reached()
    assert task.tmp_path is not None
    assert Path(task.tmp_path).parent == Path(box.path, "tmp")
    assert Path(task.tmp_path).read_bytes() == LONG
    assert task.bytes_written == len(LONG)
    assert contents(box.path)["new"] == []
    gate.open()
    delivered = await task
    assert task.state.name == "DELIVERED"
    assert future.result() is delivered
    assert contents(box.path) == EMPTY | {"new": [LONG]}
    assert box.path in repr(task)
    assert "DELIVERED" in repr(task)


@pytest.mark.every_loop
async def test_a_task_adds_one_message(maildir: Maildir) -> None:
    """A task that was started, or is over, refuses a second start, and more bytes by send, with RuntimeError."""
    for ending in ("deliver", "cancel"):
        task = AppendTask(maildir)
        task.start()
        with pytest.raises(RuntimeError):
            task.start()
        if ending == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            task.unregister_producer()
            await task
            with pytest.raises(RuntimeError):
                await task.send(MAIL)
            with pytest.raises(RuntimeError):
                task.unregister_producer()
            with pytest.raises(RuntimeError):
                task.register_producer(Pull(task), streaming=False)
        with pytest.raises(RuntimeError):
            task.start()
    assert contents(maildir.path) == EMPTY | {"new": [b""]}


@pytest.mark.every_loop
async def test_awaiting_twice(maildir: Maildir) -> None:
    """A task can be awaited any number of times, at once and afterwards: the message is delivered once."""
    task = AppendTask(maildir, MAIL)

    async def wait() -> Delivered:
        return await task

    outcomes = await asyncio.gather(wait(), wait())
    assert outcomes[0] is outcomes[1] is task.future.result()
    assert await task is outcomes[0]
    failing = AppendTask(maildir, [cast(Any, "text")])
    for _ in range(2):
        with pytest.raises(TypeError):
            await failing
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


@pytest.mark.every_loop
@pytest.mark.parametrize("how", ["task", "future"])
async def test_cancelling(maildir: Maildir, how: str) -> None:
    """To cancel the task's future is to cancel the task: ABORTED, its future cancelled, and nothing left."""
    task = AppendTask(maildir)
    async with asyncio.timeout(30):
        await task.send(LONG)
        (task if how == "task" else task.future).cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert task.future.cancelled()
    assert task.state.name == "ABORTED"
    assert not task.cancel()
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
async def test_cancelling_before_the_start(maildir: Maildir) -> None:
    """A task cancelled before its start has touched nothing, raises the cancellation, and cannot be started."""
    box, disk = await on_disk(maildir)
    task = AppendTask(box, MAIL)
    assert task.cancel()
    assert task.state.name == "ABORTED"
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(RuntimeError):
        task.start()
    assert disk.calls == []


@pytest.mark.every_loop
async def test_cancelling_too_late(maildir: Maildir) -> None:
    """A task whose message is being committed cannot be cancelled or failed any more: it says so, and delivers."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("sync", path="box/tmp/", gate=gate))
    task = AppendTask(box, MAIL)
    task.start()
    await gate.reached()
    assert not task.cancel()
    assert not task.fail(SourceError())
    gate.open()
    await task
    assert not task.cancel()
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


@pytest.mark.every_loop
@pytest.mark.parametrize("message", [MAIL, LONG], ids=["short", "long"])
async def test_fail(maildir: Maildir, message: bytes) -> None:
    """fail(exc) aborts with exactly that exception, once, stops the producer, and leaves nothing."""
    task = AppendTask(maildir)
    producer = Pull(task)
    task.write(message)
    task.register_producer(producer, streaming=False)
    reason = SourceError("the client hung up")
    assert task.fail(reason)
    assert not task.fail(SourceError("again"))
    with pytest.raises(SourceError) as caught:
        await task
    assert caught.value is reason
    assert task.future.exception() is reason
    assert (task.state, producer.stopped) == (State.ABORTED, 1)
    assert contents(maildir.path) == EMPTY


# Producers written by hand.


class Pull:
    """A pull producer with plain methods; asked with nothing left, it ends the message."""

    streaming = False

    def __init__(self, consumer: AppendTask, chunks: list[bytes] | None = None, *, error_at: int = -1) -> None:
        self.consumer = consumer
        self.chunks = [LONG] * 40 if chunks is None else list(chunks)
        self.error_at = error_at
        self.asked = 0
        self.stopped = 0

    def begin(self) -> None:
        self.consumer.register_producer(self, streaming=False)

    def resume_producing(self) -> Awaitable[object] | None:
        self.produce()
        return None

    def stop_producing(self) -> Awaitable[object] | None:
        self.stopped += 1
        return None

    def produce(self) -> None:
        assert not self.stopped
        if self.asked == self.error_at:
            raise SourceError("broken")
        self.asked += 1
        if self.chunks:
            self.consumer.write(self.chunks.pop(0))
        else:
            self.consumer.unregister_producer()


class AsyncPull(Pull):
    """A pull producer with async methods, which wait before they act."""

    async def resume_producing(self) -> None:
        await turns(3)
        self.produce()

    async def stop_producing(self) -> None:
        await turns(3)
        self.stopped += 1


class Push(Pull):
    """A push producer with plain methods, which writes as soon as it may."""

    streaming = True

    def __init__(self, consumer: AppendTask, chunks: list[bytes] | None = None, *, error_at: int = -1) -> None:
        super().__init__(consumer, chunks, error_at=error_at)
        self.may = asyncio.Event()
        self.may.set()
        self.paused = asyncio.Event()
        self.signals = list[str]()
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self.consumer.register_producer(self, streaming=True)
        self.task = asyncio.create_task(self.go())

    async def go(self) -> None:
        try:
            ended = False
            while not ended and not self.stopped:
                await self.may.wait()
                ended = not self.chunks
                self.produce()
                await asyncio.sleep(0)
        except SourceError as exc:
            self.consumer.fail(exc)

    def pause_producing(self) -> Awaitable[object] | None:
        self.pause()
        return None

    def resume_producing(self) -> Awaitable[object] | None:
        self.signals.append("resume")
        self.paused.clear()
        self.may.set()
        return None

    def stop_producing(self) -> Awaitable[object] | None:
        self.stop()
        return None

    def pause(self) -> None:
        self.signals.append("pause")
        self.may.clear()
        self.paused.set()

    def stop(self) -> None:
        self.stopped += 1
        if self.task is not None:
            self.task.cancel()


class AsyncPush(Push):
    """A push producer with async methods."""

    async def pause_producing(self) -> None:
        self.pause()
        await turns(3)

    async def resume_producing(self) -> None:
        await turns(3)
        super().resume_producing()

    async def stop_producing(self) -> None:
        await turns(3)
        self.stop()


PRODUCERS = pytest.mark.parametrize("kind", [Pull, AsyncPull, Push, AsyncPush], ids=lambda kind: kind.__name__)


@pytest.mark.every_loop
@PRODUCERS
async def test_producers_written_by_hand(maildir: Maildir, kind: type[Pull]) -> None:
    """Pull and push producers, with plain and with async methods, deliver what they write and are not stopped."""
    for chunks in ([MAIL], [], [b""], [MAIL] * 10, [bytes([n]) * 100_000 for n in range(30)], [LONG, b"", LONG]):
        async with AppendTask(maildir) as task:
            producer = kind(task, chunks)
            producer.begin()
        stored = Path(task.future.result().path).read_bytes()
        assert stored == b"".join(chunks)
        assert producer.stopped == 0


@pytest.mark.every_loop
@PRODUCERS
async def test_a_second_producer(maildir: Maildir, kind: type[Pull]) -> None:
    """A second producer is refused with RuntimeError, and the first one's message is delivered."""
    async with AppendTask(maildir) as task:
        first, second = kind(task, [MAIL, MAIL]), kind(task)
        task.register_producer(first, kind.streaming)
        if isinstance(first, Push):
            first.task = asyncio.create_task(first.go())
        if task.state.name == "RECEIVING":
            with pytest.raises(RuntimeError):
                task.register_producer(second, kind.streaming)
    assert (second.asked, second.stopped, first.stopped) == (0, 0, 0)
    assert contents(maildir.path) == EMPTY | {"new": [MAIL * 2]}


async def test_a_producer_for_a_task_with_a_message(maildir: Maildir) -> None:
    """A task that has a message refuses a producer, chunks and an end, also while it waits for its place."""
    gate = Gate()
    commit = GroupCommit(max_pending=1)
    first = AppendTask(Maildir(maildir.path, commit=commit, disk=FaultDisk(Fault("create", gate=gate))), b"first")
    first.start()
    waiting = AppendTask(Maildir(maildir.path, commit=commit), [MAIL])
    waiting.start()
    with pytest.raises(RuntimeError):
        waiting.register_producer(Pull(waiting), streaming=False)
    gate.open()
    await first
    async with asyncio.timeout(30):
        await waiting
    assert sorted(contents(maildir.path)["new"]) == sorted([b"first", MAIL])


FAILURES: dict[str, tuple[list[Fault], dict[str, Any], Callable[[AppendTask], object], type[BaseException]]] = {
    "cancel": ([], {}, lambda task: task.cancel(), asyncio.CancelledError),
    "fail": ([], {}, lambda task: task.fail(SourceError()), SourceError),
    "write": ([Fault("write", errno.ENOSPC)], {}, lambda task: None, AppendError),
    "later write": ([Fault("write", errno.ENOSPC, nth=3)], {}, lambda task: None, AppendError),
    "create": ([Fault("create", errno.EACCES)], {}, lambda task: None, AppendError),
    "size limit": ([], {"size_limit": 3 * len(LONG)}, lambda task: None, MessageTooLargeError),
}


@pytest.mark.every_loop
@pytest.mark.parametrize("failure", list(FAILURES))
@PRODUCERS
async def test_a_producer_of_a_failed_delivery_is_stopped(maildir: Maildir, kind: type[Pull], failure: str) -> None:
    """When a delivery fails or is cancelled, its producer has been stopped exactly once when that is told."""
    faults, options, act, error = FAILURES[failure]
    box, _ = await on_disk(maildir, *map(replace, faults))
    task = AppendTask(box, **options)
    producer = kind(task)
    task.start()
    producer.begin()
    await turns(5)
    act(task)
    with pytest.raises(error):
        await task
    assert producer.stopped == 1
    asked = producer.asked
    await turns()
    assert (producer.stopped, producer.asked) == (1, asked)
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
@PRODUCERS
async def test_a_producer_is_not_stopped_after_its_end(maildir: Maildir, kind: type[Pull]) -> None:
    """A producer that has ended its message is not stopped when the delivery fails afterwards."""
    box, _ = await on_disk(maildir, Fault("sync", errno.EIO, path="box/tmp/"))
    producer = None
    with pytest.raises(AppendError):
        async with AppendTask(box) as task:
            producer = kind(task, [LONG, MAIL])
            producer.begin()
    assert producer is not None
    assert producer.stopped == 0
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
@pytest.mark.parametrize("error_at", [0, 1, 3])
@pytest.mark.parametrize("kind", [Pull, AsyncPull], ids=lambda kind: kind.__name__)
async def test_a_producer_that_raises(maildir: Maildir, kind: type[Pull], error_at: int) -> None:
    """A producer that raises fails the delivery at stage receive, is the cause, and is neither asked nor stopped."""
    task = AppendTask(maildir)
    producer = kind(task, error_at=error_at)
    producer.begin()
    with pytest.raises(AppendError, match="SourceError: broken") as caught:
        await task
    assert (caught.value.stage, caught.value.errno) == ("receive", None)
    assert isinstance(caught.value.__cause__, SourceError)
    await turns()
    assert (producer.stopped, producer.asked) == (0, error_at)
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", [Pull, AsyncPull], ids=lambda kind: kind.__name__)
async def test_a_producer_that_lets_stop_iteration_out(maildir: Maildir, kind: type[Pull]) -> None:
    """A pull producer that lets a StopIteration out, as a bare next() does, fails the delivery like any error."""

    class Careless(kind):  # type: ignore[misc, valid-type]  # the base is a parameter of the test
        def produce(self) -> None:
            next(iter(()))

    task = AppendTask(maildir)
    Careless(task).begin()
    with pytest.raises(AppendError, match="StopIteration"):
        await task


class SignalError(Exception):
    """What the signals of a push producer raise here."""


@pytest.mark.every_loop
@pytest.mark.parametrize("method", ["pause_producing", "resume_producing"])
@pytest.mark.parametrize("kind", [Push, AsyncPush], ids=lambda kind: kind.__name__)
async def test_a_push_producer_whose_signal_raises(maildir: Maildir, kind: type[Push], method: str) -> None:
    """A push producer that raises when it is paused or resumed fails the delivery, and is not stopped."""
    task = AppendTask(maildir)
    producer = kind(task)

    def plain() -> None:
        raise SignalError(method)

    async def asynchronous() -> None:
        raise SignalError(method)

    setattr(producer, method, plain if kind is Push else asynchronous)
    producer.begin()
    with pytest.raises(AppendError) as caught:
        await task
    assert isinstance(caught.value.__cause__, SignalError)
    assert producer.stopped == 0
    producer.stop()
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
@PRODUCERS
async def test_a_producer_whose_stop_raises(maildir: Maildir, kind: type[Pull]) -> None:
    """An error of stop_producing goes to the loop's exception handler, and the delivery fails for its own reason."""
    reports = loop_reports()
    task = AppendTask(maildir)
    producer = kind(task)

    def plain() -> None:
        raise SignalError

    async def asynchronous() -> None:
        raise SignalError

    stop, producer.stop_producing = producer.stop_producing, plain if kind in (Pull, Push) else asynchronous  # type: ignore[method-assign]
    producer.begin()
    task.fail(SourceError())
    with pytest.raises(SourceError):
        await task
    assert [type(report["exception"]) for report in reports] == [SignalError]
    if (stopping := stop()) is not None:
        await stopping


@pytest.mark.every_loop
async def test_a_producer_registered_after_a_failure(maildir: Maildir) -> None:
    """A producer registered with a delivery that has failed is stopped at once, and not asked."""
    task = AppendTask(maildir)
    task.start()
    task.fail(SourceError())
    pull, push = Pull(task), Push(task)
    task.register_producer(pull, streaming=False)
    task.register_producer(push, streaming=True)
    with pytest.raises(SourceError):
        await task
    assert (pull.stopped, pull.asked, push.stopped) == (1, 0, 1)


class NothingYet:
    """A pull producer that has nothing the first times it is asked; it may not be asked on without a turn between."""

    def __init__(self, consumer: AppendTask, times: int) -> None:
        self.consumer = consumer
        self.times = times
        self.stopped = 0
        self.turn = 0
        self.asked_in_turn = -1
        asyncio.get_running_loop().call_soon(self.count)

    def count(self) -> None:
        self.turn += 1
        if self.times:
            asyncio.get_running_loop().call_soon(self.count)

    def produce(self) -> None:
        assert self.asked_in_turn != self.turn, "asked again without a turn of the loop"
        self.asked_in_turn = self.turn
        if self.times:
            self.times -= 1
            return
        self.consumer.write(MAIL)
        self.consumer.unregister_producer()

    def stop_producing(self) -> None:
        self.stopped += 1


class NothingYetPlain(NothingYet):
    def resume_producing(self) -> None:
        self.produce()


class NothingYetAsync(NothingYet):
    async def resume_producing(self) -> None:
        self.produce()


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", [NothingYetPlain, NothingYetAsync])
async def test_a_pull_producer_with_nothing_for_a_while(
    maildir: Maildir, kind: type[NothingYetPlain | NothingYetAsync]
) -> None:
    """A pull producer that has nothing yet is asked again, and the loop runs meanwhile."""
    async with AppendTask(maildir) as task:
        producer = kind(task, 5)
        task.register_producer(producer, streaming=False)
    assert (producer.times, producer.stopped) == (0, 0)
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


@pytest.mark.every_loop
async def test_a_producer_stopped_at_once(maildir: Maildir) -> None:
    """A pull producer whose delivery fails in the turn in which it was asked first is stopped, too."""
    for kind in (Pull, AsyncPull):
        task = AppendTask(maildir)
        producer = kind(task)
        producer.begin()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert producer.stopped == 1
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
async def test_all_tasks_cancelled(maildir: Maildir) -> None:
    """When every task of the loop is cancelled, as a loop does before it ends, no message is delivered in part."""

    def by_hand(task: AppendTask) -> None:
        task.write(LONG)
        task.write(MAIL)
        task.unregister_producer()

    feeds: list[Callable[[AppendTask], object]] = [
        by_hand,
        lambda task: Pull(task, [LONG, MAIL]).begin(),
        lambda task: AsyncPull(task, [LONG, MAIL]).begin(),
    ]
    not_ours = asyncio.all_tasks()
    for feed, count in itertools.product(feeds, range(20)):
        task = AppendTask(maildir)
        feed(task)
        await turns(count)
        for other in asyncio.all_tasks() - not_ours:
            other.cancel()
        await asyncio.wait([task.future])
        assert task.future.cancelled() or task.future.result().size == len(LONG + MAIL)
    assert set(contents(maildir.path)["new"]) <= {LONG + MAIL}
    assert contents(maildir.path)["tmp"] == []


@pytest.mark.every_loop
async def test_a_pull_producer_that_writes_later(maildir: Maildir) -> None:
    """A pull producer may write what it was asked for in a later turn, and end the message there."""

    class Late(Pull):
        def resume_producing(self) -> None:
            self.asked += 1
            if self.asked == 1:
                asyncio.get_running_loop().call_later(0.005, self.finish)

        def finish(self) -> None:
            self.consumer.write(MAIL)
            self.consumer.unregister_producer()

    async with AppendTask(maildir) as task:
        Late(task).begin()
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


# Back-pressure.


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", [Push, AsyncPush], ids=lambda kind: kind.__name__)
async def test_a_push_producer_is_paused_and_resumed(maildir: Maildir, kind: type[Push]) -> None:
    """A push producer is paused while the disk is behind, resumed when it has caught up, and the two balance."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("write", gate=gate))
    async with AppendTask(box) as task:
        producer = kind(task, [LONG[:100_000]] * 100)
        producer.begin()
        await producer.paused.wait()
        await gate.reached()
        asked = producer.asked
        await turns()
        assert (producer.asked, producer.signals) == (asked, ["pause"])
        assert asked == 12  # six of these are a chunk: one is being written, one is waiting
        gate.open()
    assert producer.signals[:2] == ["pause", "resume"]
    assert set(producer.signals[::2]) == {"pause"}
    assert set(producer.signals[1::2]) == {"resume"}
    assert producer.stopped == 0
    assert Path(task.future.result().path).read_bytes() == LONG[:100_000] * 100


@pytest.mark.every_loop
async def test_a_push_producer_is_paused_while_its_delivery_waits_for_a_place(maildir: Maildir) -> None:
    """A push producer whose delivery has no place yet is paused from the start, and resumed when there is one."""
    gate = Gate()
    commit = GroupCommit(max_pending=1)
    first = AppendTask(Maildir(maildir.path, commit=commit, disk=FaultDisk(Fault("create", gate=gate))), b"")
    first.start()
    async with AppendTask(Maildir(maildir.path, commit=commit)) as task:
        producer = Push(task, [MAIL] * 3)
        producer.begin()
        assert producer.signals == ["pause"]
        await turns()
        assert producer.asked == 0
        gate.open()
    assert producer.signals == ["pause", "resume"]
    await first
    assert sorted(contents(maildir.path)["new"]) == [b"", MAIL * 3]


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", [Pull, AsyncPull], ids=lambda kind: kind.__name__)
async def test_a_pull_producer_is_asked_when_there_is_room(maildir: Maildir, kind: type[Pull]) -> None:
    """A pull producer is not asked while the disk is behind by a chunk, and asked again when it has caught up."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("write", gate=gate))
    async with AppendTask(box) as task:
        producer = kind(task, [LONG[: CHUNK_SIZE // 4]] * 40)
        producer.begin()
        await gate.reached()
        await turns(200)
        assert producer.asked == 8  # one chunk is being written, one is waiting
        gate.open()
    assert producer.asked == 41
    assert Path(task.future.result().path).read_bytes() == LONG[: CHUNK_SIZE // 4] * 40


@pytest.mark.every_loop
async def test_send_waits(maildir: Maildir) -> None:
    """While the disk is behind, send takes its chunk and waits until the disk has caught up."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("write", gate=gate))
    async with AppendTask(box) as task:
        await task.send(LONG[:CHUNK_SIZE])  # goes to the disk at once
        sending = asyncio.create_task(task.send(LONG[CHUNK_SIZE : 2 * CHUNK_SIZE]))
        await gate.reached()
        await turns()
        assert not sending.done()
        gate.open()
        await sending
    assert contents(maildir.path) == EMPTY | {"new": [LONG[: 2 * CHUNK_SIZE]]}


@pytest.mark.every_loop
async def test_a_waiting_send_learns_of_a_failure(maildir: Maildir) -> None:
    """A send that waits for the disk raises what the disk says; so does the next, and the end of the block."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("write", errno.ENOSPC, gate=gate))
    task = AppendTask(box)
    await task.send(bytes(CHUNK_SIZE))
    sending = asyncio.create_task(task.send(bytes(CHUNK_SIZE)))
    await gate.reached()
    gate.open()
    for attempt in (sending, task.send(b""), task):
        with pytest.raises(AppendError) as caught:
            await attempt
        assert (caught.value.errno, caught.value.stage) == (errno.ENOSPC, "write")


@pytest.mark.every_loop
async def test_a_push_producer_that_ignores_its_pause(maildir: Maildir) -> None:
    """A push producer that writes on while paused fails its delivery in write at a hard limit, and is stopped once."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("write", gate=gate))
    task = AppendTask(box)
    producer = Push(task)
    task.register_producer(producer, streaming=True)
    written = 0
    while not producer.stopped:
        task.write(LONG[:CHUNK_SIZE])
        written += CHUNK_SIZE
        assert written <= HARD_LIMIT + 3 * CHUNK_SIZE
    assert written > HARD_LIMIT
    task.write(LONG)
    gate.open()
    with pytest.raises(AppendError) as caught:
        await task
    assert (caught.value.errno, caught.value.stage) == (errno.ENOBUFS, "receive")
    assert (producer.stopped, producer.signals) == (1, ["pause"])
    assert contents(maildir.path) == EMPTY


# Feeding by hand.


@pytest.mark.every_loop
async def test_write_after_the_end(maildir: Maildir) -> None:
    """What is written after the end of a message, or after its failure, is ignored."""
    task = AppendTask(maildir)
    task.write(MAIL)
    task.unregister_producer()
    task.write(b"more")
    await task
    task.write(b"more")
    failed = AppendTask(maildir)
    failed.write(MAIL)
    failed.fail(SourceError())
    failed.write(b"more")
    failed.unregister_producer()
    with pytest.raises(SourceError):
        await failed
    failed.write(b"more")
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


@pytest.mark.parametrize("message", [b"", LONG], ids=["short", "long"])
@pytest.mark.parametrize("chunk", ["text", None, 17])
async def test_writing_what_is_not_bytes(maildir: Maildir, message: bytes, chunk: object) -> None:
    """A chunk that is not bytes-like raises TypeError with its type from write, send and the task, which is aborted."""
    name = type(chunk).__name__
    task = AppendTask(maildir)
    task.write(message)
    with pytest.raises(TypeError, match=name):
        task.write(cast(Any, chunk))
    with pytest.raises(TypeError, match=name):
        await task
    sent = AppendTask(maildir)
    with pytest.raises(TypeError, match=name):
        await sent.send(cast(Any, chunk))
    with pytest.raises(TypeError, match=name):
        await sent
    assert (task.state, sent.state) == (State.ABORTED, State.ABORTED)
    assert contents(maildir.path) == EMPTY


async def test_writing_text_after_the_end(maildir: Maildir) -> None:
    """A wrong chunk after the end of a message raises TypeError, and the message, which is whole, is delivered."""
    task = AppendTask(maildir)
    task.write(MAIL)
    task.unregister_producer()
    with pytest.raises(TypeError):
        task.write(cast(Any, "text"))
    await task
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


@pytest.mark.every_loop
async def test_open_append_commits(maildir: Maildir) -> None:
    """Leaving the block of open_append commits: its future is done, and the message whole, also if it is empty."""
    for chunks in ([], [MAIL], [LONG, b"", MAIL], [MAIL[at : at + 1] for at in range(len(MAIL))]):
        async with maildir.open_append() as task:
            assert task.state.name == "RECEIVING"
            for chunk in chunks:
                await task.send(chunk)
        assert Path(task.future.result().path).read_bytes() == b"".join(chunks)
        assert task.state.name == "DELIVERED"


@pytest.mark.every_loop
@pytest.mark.parametrize("message", [MAIL, LONG], ids=["short", "long"])
async def test_open_append_aborts(maildir: Maildir, message: bytes) -> None:
    """An exception in the block of open_append aborts: it comes out as it is, and nothing is left."""
    with pytest.raises(SourceError):
        async with maildir.open_append() as task:
            await task.send(message)
            raise SourceError
    assert task.future.cancelled()
    assert task.state.name == "ABORTED"
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
async def test_open_append_raises_at_its_end(maildir: Maildir) -> None:
    """A delivery that fails raises when the block of open_append is left, if nothing raised before."""
    box, _ = await on_disk(maildir, Fault("sync", errno.EIO, path="box/tmp/"))
    with pytest.raises(AppendError) as caught:
        async with box.open_append() as task:
            await task.send(MAIL)
    assert (caught.value.errno, caught.value.stage) == (errno.EIO, "sync")
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
async def test_a_block_cannot_swallow_a_failure(maildir: Maildir) -> None:
    """A block that catches what send raises does not make the delivery succeed: it raises again at the end."""
    box, _ = await on_disk(maildir, Fault("write", errno.ENOSPC))
    caught_inside = 0
    with pytest.raises(AppendError) as caught:
        async with box.open_append() as task:
            for _ in range(10):
                try:
                    await task.send(LONG)
                except AppendError:
                    caught_inside += 1
    assert caught_inside > 1
    assert caught.value.errno == errno.ENOSPC
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
async def test_a_failure_told_by_send_is_told(maildir: Maildir) -> None:
    """A failure that send has raised, and that came out of the block, is not reported as never retrieved as well."""
    reports = loop_reports()
    box, _ = await on_disk(maildir, Fault("write", errno.ENOSPC))
    with pytest.raises(AppendError) as caught:
        async with box.open_append() as task:
            while True:
                await task.send(LONG)
    assert caught.value.errno == errno.ENOSPC
    del task, caught, box
    await turns()
    gc.collect()
    assert reports == []


@pytest.mark.every_loop
async def test_a_chunk_of_the_wrong_type_is_told_once(maildir: Maildir) -> None:
    """The TypeError that send and write have raised is not reported as never retrieved as well."""
    reports = loop_reports()
    idle = AppendTask(maildir)
    with pytest.raises(TypeError, match="data must be bytes, not str"):
        idle.write("text")  # type: ignore[arg-type]
    fresh = AppendTask(maildir)
    with pytest.raises(TypeError, match="data must be bytes, not str"):
        await fresh.send("text")  # type: ignore[arg-type]
    begun = AppendTask(maildir)
    await begun.send(LONG)
    with pytest.raises(TypeError, match="data must be bytes, not str"):
        begun.write("text")  # type: ignore[arg-type]
    await asyncio.wait([begun.future])
    del idle, fresh, begun
    await turns()
    gc.collect()
    assert reports == []


@pytest.mark.every_loop
async def test_a_chunk_of_the_wrong_type_from_a_producer_is_reported(maildir: Maildir) -> None:
    """It is raised to the producer, whom the library calls: the future reports it if nobody awaits it."""

    class Wrong:
        def __init__(self, consumer: AppendTask) -> None:
            self.consumer = consumer

        def resume_producing(self) -> None:
            self.consumer.write("text")  # type: ignore[arg-type]

        def stop_producing(self) -> None: ...

    reports = loop_reports()
    task = AppendTask(maildir)
    task.register_producer(Wrong(task), streaming=False)
    await asyncio.wait([task.future])
    del task
    await turns()
    gc.collect()
    assert [str(report["exception"]) for report in reports] == ["data must be bytes, not str"]


@pytest.mark.every_loop
async def test_ending_inside_the_block(maildir: Maildir) -> None:
    """A message ended inside the block is delivered, whatever the block raises once it is there."""
    with pytest.raises(SourceError):
        async with maildir.open_append() as task:
            await task.send(MAIL)
            task.unregister_producer()
            await task
            raise SourceError
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}


# Sources that raise, and never end.


def generator(good: int) -> Iterator[bytes]:
    for _ in range(good):
        yield LONG
    raise SourceError("broken")


async def async_generator(good: int) -> AsyncGenerator[bytes, None]:
    for _ in range(good):
        yield LONG
    raise SourceError("broken")


class BrokenFile:
    """A file that cannot be read to its end."""

    def __init__(self, good: int) -> None:
        self.good = good

    def read(self, size: int) -> bytes:
        if self.good <= 0:
            raise OSError(errno.EIO, "broken")
        self.good -= 1
        return LONG


class BrokenAsyncFile(BrokenFile):
    async def read(self, size: int) -> bytes:  # type: ignore[override]  # async, which is the point
        return super().read(size)


class BrokenMail(EmailMessage):
    """An email message that cannot be serialised."""

    def __init__(self, good: int) -> None:
        super().__init__()

    def as_bytes(self, unixfrom: bool = False, policy: Any = None) -> bytes:
        raise SourceError("broken")


SOURCES = [generator, async_generator, BrokenFile, BrokenAsyncFile, BrokenMail]


@pytest.mark.parametrize("good", [0, 1, 4])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
async def test_a_source_that_raises(maildir: Maildir, source: Callable[[int], Any], good: int) -> None:
    """A source that raises, at once or midway, is an AppendError at stage receive with it as cause; nothing is left."""
    with pytest.raises(AppendError, match="broken") as caught:
        await maildir.append(source(good))
    assert caught.value.stage == "receive"
    assert isinstance(caught.value.__cause__, SourceError | OSError)
    assert caught.value.errno == (errno.EIO if isinstance(caught.value.__cause__, OSError) else None)
    assert caught.value.temporary
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
@pytest.mark.parametrize("good", [0, 4])
async def test_the_deadline(maildir: Maildir, good: int) -> None:
    """A message that is not whole by its deadline is given up: ETIMEDOUT at stage receive, its source closed."""
    closed = list[int]()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(good):
                yield LONG
            await asyncio.Event().wait()
        finally:
            closed.append(1)

    with pytest.raises(AppendError) as caught:
        await maildir.append(endless(), deadline=timedelta(milliseconds=30))
    assert (caught.value.errno, caught.value.stage) == (errno.ETIMEDOUT, "receive")
    assert caught.value.temporary
    assert closed == [1]
    assert contents(maildir.path) == EMPTY


@pytest.mark.every_loop
async def test_the_deadline_is_about_receiving(maildir: Maildir) -> None:
    """A message that is whole is not given up at its deadline, however long it then waits for the disk."""
    gate = Gate()
    box, _ = await on_disk(maildir, Fault("create", gate=gate))
    first = AppendTask(box, b"first")
    first.start()
    await gate.reached()
    second = AppendTask(box, MAIL, deadline=timedelta(microseconds=1))
    second.start()
    assert second.state.name == "COMMITTING"
    await asyncio.sleep(0.01)  # past the deadline
    gate.open()
    await first
    await second
    assert contents(maildir.path)["new"] == [b"first", MAIL]


# Options.


@pytest.mark.every_loop
@pytest.mark.parametrize("size", [0, 10, CHUNK_SIZE, 5 * CHUNK_SIZE + 7])
async def test_progress(maildir: Maildir, size: int) -> None:
    """on_progress is told growing numbers of bytes on the loop's thread; the last is the size stored."""
    told = list[int]()

    def on_progress(stored: int) -> None:
        asyncio.get_running_loop()  # raises anywhere else
        told.append(stored)

    message = [bytes(min(size - at, 9_999)) for at in range(0, size, 9_999)]
    delivered = await maildir.append(message, prefix=b"X: 1\n", on_progress=on_progress)
    assert told[-1] == delivered.size == size + 5
    assert told == sorted(told)
    assert len(told) > size // CHUNK_SIZE // 2


@pytest.mark.every_loop
async def test_progress_that_raises(maildir: Maildir) -> None:
    """An on_progress that raises does not hurt the delivery; its error goes to the loop's exception handler."""
    reports = loop_reports()

    def on_progress(stored: int) -> None:
        raise SourceError(stored)

    delivered = await maildir.append([LONG], on_progress=on_progress)
    assert contents(maildir.path) == EMPTY | {"new": [LONG]}
    assert reports
    assert all(isinstance(report["exception"], SourceError) for report in reports)
    assert delivered.size == len(LONG)


async def test_flags(maildir: Maildir) -> None:
    """With flags a message goes straight to cur/, with them sorted and once each after ``:2,`` in its name."""
    delivered = await maildir.append(MAIL, flags="SFSRDPT")
    assert delivered.flags == "DFPRST"
    assert delivered.path.endswith(f",S={len(MAIL)},W={wire_size(MAIL)}:2,DFPRST")
    assert Path(delivered.path).parent.name == "cur"
    assert delivered.key == Path(delivered.path).name.removesuffix(":2,DFPRST")
    assert contents(maildir.path) == EMPTY | {"cur": [MAIL]}
    plain = await maildir.append(MAIL)
    assert (plain.flags, plain.key) == ("", Path(plain.path).name)
    assert Path(plain.path).parent.name == "new"


@pytest.mark.parametrize(
    ("received_at", "mtime_ns"),
    [
        (0, 0),
        (1_700_000_000, 1_700_000_000_000_000_000),
        (1_700_000_000.25, 1_700_000_000_250_000_000),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 1_700_000_000_000_000_000),
        (datetime(2023, 11, 15, 3, 43, 20, tzinfo=timezone(timedelta(hours=5.5))), 1_700_000_000_000_000_000),
        (datetime(2023, 11, 14, 22, 13, 20, 123_457, tzinfo=UTC), 1_700_000_000_123_457_000),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1_000),
    ],
    ids=str,
)
async def test_received_at(maildir: Maildir, received_at: datetime | float, mtime_ns: int) -> None:
    """received_at is the file's mtime, to the microsecond for a datetime; its atime is now, so no sweeper takes it."""
    before = time.time()
    for message in (MAIL, [LONG]):
        status = os.stat((await maildir.append(message, received_at=received_at)).path)
        assert status.st_mtime_ns == mtime_ns
        assert status.st_atime >= before - 1


async def test_received_at_without_a_zone(maildir: Maildir) -> None:
    """A datetime without a zone is local time; without received_at the mtime is the time of delivery."""
    local = datetime(2024, 2, 29, 12, 30)
    assert os.stat((await maildir.append(MAIL, received_at=local)).path).st_mtime == local.timestamp()
    before = time.time()
    assert os.stat((await maildir.append(MAIL)).path).st_mtime >= before - 1


async def test_the_mtime_is_set_before_the_message_is_visible(maildir: Maildir) -> None:
    """The mtime is set before the file is synced and published."""
    box, disk = await on_disk(maildir)
    await box.append(MAIL, received_at=0)
    assert made(disk, "utime", "sync", "rename_noreplace")[:3] == [
        ("utime", "tmp"),
        ("sync", "tmp"),
        ("rename_noreplace", "new"),
    ]


PREFIX = b"Return-Path: <a@example.org>\nReceived: from x\r\n\tby y\n"


@pytest.mark.parametrize("message", [b"", MAIL, LONG], ids=["empty", "short", "long"])
async def test_prefix(maildir: Maildir, message: bytes) -> None:
    """A prefix is stored before the message, once, and counts in the sizes; the size limit is the message's."""
    for source in (message, [message], [b"", message, b""]):
        delivered = await maildir.append(source, prefix=PREFIX, size_limit=len(message))
        stored = Path(delivered.path).read_bytes()
        assert stored == PREFIX + message
        assert (delivered.size, delivered.wire_size) == (len(stored), wire_size(stored))


NEWLINES = [b"", b"\r", b"\n", b"\r\n", b"\r\r\n", b"\n\r", b"a\r\nb\nc\rd\r", b"\r\n\r\n\n\n", b"no end", b"a\r\r"]


@pytest.mark.parametrize("prefix", [b"", PREFIX])
@pytest.mark.parametrize("newline", ["keep", "lf", "crlf"])
async def test_newline(maildir: Maildir, newline: Any, prefix: bytes) -> None:
    """Lf and crlf convert line ends, the prefix's too, however CR and LF are cut; keep keeps; a lone CR is data."""
    convert: dict[str, Callable[[bytes], bytes]] = {
        "keep": lambda data: data,
        "lf": lambda data: data.replace(b"\r\n", b"\n"),
        "crlf": lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    }
    for message in NEWLINES:
        for source in (message, [message[at : at + 1] for at in range(len(message))], [b"", message, b""]):
            delivered = await maildir.append(source, newline=newline, prefix=prefix, durability=Durability.NONE)
            stored = Path(delivered.path).read_bytes()
            assert stored == convert[newline](prefix + message)
            assert (delivered.size, delivered.wire_size) == (len(stored), wire_size(stored))


@pytest.mark.parametrize("newline", ["keep", "lf", "crlf"])
async def test_newline_across_chunks(maildir: Maildir, newline: Any) -> None:
    """A CRLF with its CR at the end of one chunk written and its LF in the next is one line end."""
    message = bytes(CHUNK_SIZE - 1) + b"\r\n" + bytes(CHUNK_SIZE - 1) + b"\n" + bytes(CHUNK_SIZE - 1) + b"\r"
    expected = {
        "keep": message,
        "lf": message.replace(b"\r\n", b"\n"),
        "crlf": message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    }[newline]
    for sizes in ((len(message),), (CHUNK_SIZE,), (CHUNK_SIZE - 1,), (100_003,)):
        chunks = [message[at : at + sizes[0]] for at in range(0, len(message), sizes[0])]
        delivered = await maildir.append(chunks, newline=newline)
        assert Path(delivered.path).read_bytes() == expected
        assert (delivered.size, delivered.wire_size) == (len(expected), wire_size(expected))


# Size limits.


async def test_a_size_limit_and_a_known_size(maildir: Maildir, tmp_path: Path) -> None:
    """A message known to be too large is refused before anything is written; the reply is permanent."""
    box, disk = await on_disk(maildir)
    mail = EmailMessage()
    mail["Subject"] = "x"
    mail.set_content("body\n")
    (tmp_path / "message").write_bytes(b"12345" + LONG)
    with open(tmp_path / "message", "rb") as file:
        file.seek(5)
        for message, size in (
            (MAIL, len(MAIL)),
            (bytearray(LONG), len(LONG)),
            (memoryview(LONG).cast("I"), len(LONG)),
            (mail, len(mail.as_bytes())),
            (file, len(LONG)),
        ):
            with pytest.raises(MessageTooLargeError) as caught:
                await box.append(message, size_limit=size - 1)
            assert (caught.value.errno, caught.value.stage) == (errno.EFBIG, "receive")
            assert caught.value.smtp_reply.startswith("552 5.3.4 ")
            assert not caught.value.temporary
            assert disk.calls == []
            if message is file:
                assert file.tell() <= 5 + len(LONG) // 2, "the file was read on"
                file.seek(5)
            delivered = await box.append(message, size_limit=size, durability=Durability.NONE)
            assert delivered.size == size
            os.unlink(delivered.path)
            disk.calls.clear()
    assert contents(maildir.path) == EMPTY


@pytest.mark.parametrize("limit", [0, 1000, 3 * CHUNK_SIZE])
async def test_a_size_limit_and_an_unknown_size(maildir: Maildir, limit: int) -> None:
    """A stream is stopped where it passes the limit, and nothing is left; up to the limit it is delivered."""
    produced = 0

    async def stream(size: int) -> AsyncGenerator[bytes, None]:
        nonlocal produced
        while size:
            chunk = bytes(min(size, 1000))
            size -= len(chunk)
            produced += len(chunk)
            yield chunk

    assert (await maildir.append(stream(limit), size_limit=limit)).size == limit
    produced = 0
    with pytest.raises(MessageTooLargeError):
        await maildir.append(stream(10 * limit + 5000), size_limit=limit)
    assert produced <= limit + 1000
    with pytest.raises(MessageTooLargeError):
        await maildir.append([bytes(limit), b"", b"x"], size_limit=limit)
    assert contents(maildir.path) == EMPTY | {"new": [bytes(limit)]}


async def test_size_limits_of_maildir_and_message(maildir: Maildir) -> None:
    """A maildir's size limit holds for its messages; one given with a message takes its place."""
    box = Maildir(maildir.path, size_limit=10)
    with pytest.raises(MessageTooLargeError, match=r"\b10\b"):
        await box.append(bytes(11))
    await box.append(bytes(11), size_limit=11)
    with pytest.raises(MessageTooLargeError, match=r"\b9\b"):
        await box.append(bytes(10), size_limit=9)


async def test_expect_size(maildir: Maildir) -> None:
    """expect_size refuses a message that would pass the limit before its first byte, and lets another pass."""
    box, disk = await on_disk(maildir)
    task = AppendTask(box, size_limit=10)
    producer = Push(task)
    task.register_producer(producer, streaming=True)
    task.expect_size(11)
    task.write(b"x")
    with pytest.raises(MessageTooLargeError):
        await task
    assert producer.stopped == 1
    assert disk.calls == []
    async with box.open_append(size_limit=10) as task:
        task.expect_size(10)
        await task.send(bytes(10))


async def test_the_empty_message(maildir: Maildir) -> None:
    """A message of no bytes, and an iterable that yields nothing, are delivered."""

    async def nothing() -> AsyncGenerator[bytes, None]:
        return
        yield

    for message in (b"", [], [b"", b""], iter(()), nothing()):
        assert (await maildir.append(message)).path.endswith(",S=0,W=0")
    assert contents(maildir.path) == EMPTY | {"new": [b""] * 5}


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"size_limit": -1}, ValueError, "size_limit.*-1"),
    ({"size_limit": "10M"}, TypeError, "size_limit.*'10M'"),
    ({"size_limit": 1e6}, TypeError, "size_limit.*1000000"),
    ({"size_limit": True}, TypeError, "size_limit.*True"),
    ({"flags": 3}, TypeError, "flags.*3"),
    ({"flags": None}, TypeError, "flags.*None"),
    ({"flags": ["S"]}, TypeError, r"flags.*\['S'\]"),
    ({"flags": b""}, TypeError, "flags.*b''"),
    ({"flags": "SX"}, ValueError, "'X'"),
    ({"flags": "s"}, ValueError, "'s'"),
    ({"flags": "S,"}, ValueError, "','"),
    ({"newline": "unix"}, ValueError, "'unix'"),
    ({"newline": None}, ValueError, "newline.*None"),
    ({"newline": b"lf"}, ValueError, "newline.*b'lf'"),
    ({"prefix": "X: 1\n"}, TypeError, "prefix.*str"),
    ({"prefix": 3}, TypeError, "prefix.*int"),
    ({"prefix": None}, TypeError, "prefix.*NoneType"),
    ({"prefix": b"X: 1"}, ValueError, "line end"),
    ({"prefix": b"X: 1\n\nbody\n"}, ValueError, "line 2 is empty"),
    ({"prefix": b"X: 1\r\n\r\nbody\n"}, ValueError, "line 2 is empty"),
    ({"prefix": b"X: 1\rY: 2\n"}, ValueError, "CR"),
    ({"prefix": b"X: 1\n \t\nY: 2\n"}, ValueError, "line 2"),
    ({"prefix": b" X: 1\n"}, ValueError, "line 1"),
    ({"prefix": b"X: \0\n"}, ValueError, "NUL"),
    ({"prefix": b"From a@example.org\n"}, ValueError, "line 1"),
    ({"durability": "full"}, TypeError, "'full'"),
    ({"durability": True}, TypeError, "True"),
    ({"deadline": 3}, TypeError, "deadline.*3"),
    ({"deadline": None}, TypeError, "deadline.*None"),
    ({"on_progress": 3}, TypeError, "on_progress.*3"),
    ({"deadline": timedelta()}, ValueError, "deadline"),
    ({"deadline": timedelta(seconds=-1)}, ValueError, "deadline"),
    ({"received_at": float("nan")}, ValueError, "received_at.*nan"),
    ({"received_at": float("-inf")}, ValueError, "received_at.*-inf"),
    ({"received_at": 1e300}, ValueError, "received_at.*1e"),
    ({"received_at": 10**18}, ValueError, "received_at.*10000"),
    ({"received_at": -(10**12)}, ValueError, "received_at.*-1000"),
    ({"received_at": "yesterday"}, TypeError, "received_at.*'yesterday'"),
    ({"received_at": date(2026, 1, 1)}, TypeError, "received_at.*date"),
    ({"received_at": timedelta(1)}, TypeError, "received_at.*timedelta"),
    ({"received_at": True}, TypeError, "received_at.*True"),
    ({"received_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}, ValueError, "received_at.*9999"),
]


@pytest.mark.parametrize(("options", "error", "names"), BAD_OPTIONS, ids=str)
async def test_bad_options(tmp_path: Path, options: dict[str, Any], error: type[Exception], names: str) -> None:
    """A bad option raises, naming what is wrong, before anything is touched or read."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "box", disk=disk)
    taken = itertools.count()
    with pytest.raises(error, match=names):
        await maildir.append((bytes(n) for n in taken), **options)
    with pytest.raises(error, match=names):
        maildir.open_append(**options)
    with pytest.raises(error, match=names):
        AppendTask(maildir, MAIL, **options)
    assert next(taken) == 0
    assert disk.calls == []
    assert maildir.statistics().in_flight == 0
    assert tree(tmp_path) == {}


# The bound on pending deliveries.


@pytest.mark.every_loop
async def test_busy(maildir: Maildir) -> None:
    """With wait=False a delivery past the bound raises BusyError at once, in every way in, and reads nothing."""
    gate = Gate()
    commit = GroupCommit(max_pending=1, wait=False)
    slow = Maildir(maildir.path, commit=commit, disk=FaultDisk(Fault("create", gate=gate)))
    first = AppendTask(slow, MAIL)
    first.start()
    box, taken = Maildir(maildir.path, commit=commit), itertools.count()
    with pytest.raises(BusyError) as caught:
        await box.append(bytes(n) for n in taken)
    assert (caught.value.errno, caught.value.stage) == (errno.EAGAIN, "queue")
    assert caught.value.smtp_reply.startswith("451 4.3.2 ")
    assert next(taken) == 0
    with pytest.raises(BusyError):
        async with box.open_append():
            pytest.fail("the block was entered")
    refused = AppendTask(box)
    refused.start()
    producer = Push(refused)
    refused.register_producer(producer, streaming=True)
    with pytest.raises(BusyError):
        await refused
    assert producer.stopped == 1
    gate.open()
    await first
    await box.append(b"now there is room")
    assert contents(maildir.path) == EMPTY | {"new": [MAIL, b"now there is room"]}


@pytest.mark.every_loop
async def test_waiting_for_a_place(maildir: Maildir) -> None:
    """With wait=True deliveries past the bound wait in the order they came, and read nothing before their turn."""
    gate = Gate()
    commit = GroupCommit(max_pending=1)
    slow = Maildir(maildir.path, commit=commit, disk=FaultDisk(Fault("create", gate=gate)))
    box = Maildir(maildir.path, commit=commit)
    read = list[int]()

    def message(number: int) -> Iterator[bytes]:
        read.append(number)
        yield b"%d" % number

    tasks = [AppendTask(slow, b"first"), *(AppendTask(box, message(number)) for number in range(10))]
    for task in tasks:
        task.start()
    await turns()
    assert read == []
    assert (commit.statistics().pending, commit.statistics().waiting) == (1, 10)
    tasks[5].cancel()  # number 4 is withdrawn from the queue at once
    assert commit.statistics().waiting == 9
    gate.open()
    await asyncio.wait([task.future for task in tasks])
    left = [number for number in range(10) if number != 4]
    assert read == left
    assert contents(maildir.path)["new"] == [b"first", *(b"%d" % number for number in left)]
    assert (commit.statistics().pending, commit.statistics().pending_bytes) == (0, 0)


@pytest.mark.every_loop
async def test_send_waits_for_a_place(maildir: Maildir) -> None:
    """A message fed by hand past the bound is not written before it has its place: send waits for that."""
    gate = Gate()
    commit = GroupCommit(max_pending=1)
    first = AppendTask(Maildir(maildir.path, commit=commit, disk=FaultDisk(Fault("create", gate=gate))), b"first")
    first.start()
    async with Maildir(maildir.path, commit=commit).open_append() as task:
        sending = asyncio.create_task(task.send(LONG))
        await turns()
        assert not sending.done()
        assert task.tmp_path is None
        gate.open()
        await sending
    await first
    assert contents(maildir.path)["new"] == [b"first", LONG]


@pytest.mark.every_loop
async def test_serial_appends_keep_their_order(maildir: Maildir) -> None:
    """Messages appended one after the other have names that sort in that order, whatever their size."""
    paths = [
        (await maildir.append([b"%d" % n, LONG if n % 3 else b""], durability=Durability.NONE)).path for n in range(20)
    ]
    assert paths == sorted(paths)
    assert [message[:2].rstrip(b"\0") for message in contents(maildir.path)["new"]] == [b"%d" % n for n in range(20)]


# Durability.

SYNCS = ("sync", "rename_noreplace", "mkdir")
FILE_FIRST = [("sync", "tmp"), ("rename_noreplace", "new")]


@pytest.mark.parametrize("message", [MAIL, [LONG]], ids=["short", "long"])
async def test_durability_full(maildir: Maildir, message: Any) -> None:
    """FULL syncs the file, then renames it, then syncs the directory; no more once new/ and cur/ are known."""
    box, disk = await on_disk(maildir)
    for flags, target in (("", "new"), ("S", "cur"), ("", "new"), ("", "new"), ("S", "cur")):
        assert (await box.append(message, flags=flags)).durability is Durability.FULL
        assert made(disk, *SYNCS) == [("sync", "tmp"), ("rename_noreplace", target), ("sync", target)]
        disk.calls.clear()


async def test_the_first_use_of_a_maildir(maildir: Maildir) -> None:
    """The first FULL delivery to a maildir that exists also syncs its directory and the one above."""
    disk = FaultDisk()
    box = Maildir(maildir.path, disk=disk)
    await box.append(MAIL, durability=Durability.FILE)
    disk.calls.clear()
    await box.append(MAIL)
    assert made(disk, *SYNCS) == [*FILE_FIRST, ("sync", "new"), ("sync", "box"), ("sync", "..")]
    assert next(call.path for call in disk.calls if call.path.endswith("..")) == f"{box.path}/.."


async def test_the_first_delivery_creates(tmp_path: Path) -> None:
    """A maildir made by a delivery is durable, from the outside in, before its message is published; then new/ is."""
    disk = FaultDisk()
    await Maildir(tmp_path / "a" / "b" / "box", disk=disk).append(MAIL)
    calls = made(disk, *SYNCS)
    parts = (tmp_path.name, "a", "b", "box")
    on_the_way = [call for above, name in pairwise(parts) for call in (("mkdir", name), ("sync", above))]
    inside = [("mkdir", name) for name in ("cur", "new", "tmp")]
    assert calls == [("sync", ".."), *on_the_way, *inside, ("sync", "box"), *FILE_FIRST, ("sync", "new")]


@pytest.mark.parametrize("message", [MAIL, [LONG]], ids=["short", "long"])
async def test_weaker_durability(maildir: Maildir, message: Any) -> None:
    """FILE syncs the file alone, before it is renamed; NONE syncs nothing; the outcome says so."""
    box, disk = await on_disk(maildir)
    assert (await box.append(message, durability=Durability.FILE)).durability is Durability.FILE
    assert made(disk, *SYNCS) == FILE_FIRST
    disk.calls.clear()
    assert (await box.append(message, durability=Durability.NONE)).durability is Durability.NONE
    assert made(disk, *SYNCS) == [("rename_noreplace", "new")]


async def test_the_durability_of_a_maildir(maildir: Maildir) -> None:
    """A maildir's durability holds for its messages; one given with a message takes its place."""
    disk = FaultDisk()
    box = Maildir(maildir.path, durability=Durability.NONE, disk=disk)
    assert (await box.append(MAIL)).durability is Durability.NONE
    assert (await box.append(MAIL, durability=Durability.FILE)).durability is Durability.FILE
    assert made(disk, *SYNCS) == [("rename_noreplace", "new"), *FILE_FIRST]


async def test_uncertain(maildir: Maildir) -> None:
    """A directory sync that fails is UncertainAppendError with the path of the whole message; the state says so too."""
    box, _ = await on_disk(maildir, Fault("sync", errno.EIO, path="box/new"))
    task = AppendTask(box, MAIL)
    with pytest.raises(UncertainAppendError) as caught:
        await task
    assert task.state.name == "UNCERTAIN"
    assert Path(caught.value.path).read_bytes() == MAIL
    assert (caught.value.errno, caught.value.stage) == (errno.EIO, "sync_directory")
    assert not task.cancel()
    assert contents(maildir.path) == EMPTY | {"new": [MAIL]}
