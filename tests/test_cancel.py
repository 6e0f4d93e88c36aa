"""Cancellation, of every kind, at every step of a delivery: the table of promises holds each time."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import support
from look import Look, chunks_of, descriptors
from maildir_async import AppendTask, Delivered, GroupCommit, Maildir
from maildir_async.format.states import State
from maildir_async.testing import Fault, FaultDisk

pytestmark = pytest.mark.every_loop

SHORT = b"Subject: short\n\nbody\n"
LONG = bytes(range(256)) * 2048 * 2 + b"tail"  # two chunks and more: written while it is received


async def _fed_by_hand(task: AppendTask) -> None:
    async with task:
        for start in range(0, len(LONG), 300_000):
            await task.send(LONG[start : start + 300_000])


async def _awaited(task: AppendTask) -> None:
    await task


MESSAGES: dict[str, tuple[bytes, Callable[[], Any], Callable[[AppendTask], Awaitable[None]]]] = {
    "bytes": (SHORT, lambda: SHORT, _awaited),
    "long bytes": (LONG, lambda: LONG, _awaited),
    "async iterable": (LONG, lambda: chunks_of(LONG, 100_000)(), _awaited),
    "file": (LONG, lambda: io.BytesIO(LONG), _awaited),
    "by hand": (LONG, lambda: None, _fed_by_hand),
}


class Moment:
    """The moment at which a worker thread stands before its disk call, until the loop has done what it wants."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._come = asyncio.Event()
        self._go_on = threading.Event()

    def gate(self) -> None:
        self._loop.call_soon_threadsafe(self._come.set)
        assert self._go_on.wait(30)

    async def use(self, action: Callable[[], object], times: int = 1) -> None:
        await self._come.wait()
        for _ in range(times):
            action()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        self._go_on.set()


async def _native(delivery: Awaitable[Any], moment: Moment, times: int = 1) -> None:
    waiting = asyncio.ensure_future(delivery)
    await moment.use(waiting.cancel, times)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def _native_again_and_again(delivery: Awaitable[Any], moment: Moment) -> None:
    await _native(delivery, moment, times=7)


async def _timeout(delivery: Awaitable[Any], moment: Moment) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            expiry = asyncio.ensure_future(moment.use(lambda: timeout.reschedule(loop.time())))
            await delivery
    await expiry


async def _anyio_scope(delivery: Awaitable[Any], moment: Moment) -> None:
    with anyio.CancelScope() as scope:
        expiry = asyncio.ensure_future(moment.use(scope.cancel))
        await delivery
    assert scope.cancelled_caught
    await expiry


async def _anyio_scope_then_native(delivery: Awaitable[Any], moment: Moment) -> None:
    async def scoped() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await delivery

    scopes: list[anyio.CancelScope] = []
    waiting = asyncio.ensure_future(scoped())
    actions = iter((lambda: scopes[0].cancel(), waiting.cancel))
    await moment.use(lambda: next(actions)(), times=2)
    with pytest.raises(asyncio.CancelledError):  # the native one is not swallowed by the scope
        await waiting


async def _task_group_failure(delivery: Awaitable[Any], moment: Moment) -> None:
    async def sibling() -> None:
        failing = asyncio.get_running_loop().create_future()
        released = asyncio.ensure_future(moment.use(lambda: failing.set_exception(ZeroDivisionError)))
        try:
            await failing
        finally:
            await released

    async def deliver() -> None:
        await delivery

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(sibling())
            group.create_task(deliver())
    assert caught.group_contains(ZeroDivisionError)


Kind = Callable[[Awaitable[Any], Moment], Awaitable[None]]
KINDS: list[Kind] = [
    _native,
    _native_again_and_again,
    _timeout,
    _anyio_scope,
    _anyio_scope_then_native,
    _task_group_failure,
]


def _check(look: Look, task: AppendTask, message: bytes, disk: FaultDisk) -> None:
    """The outcome is told truthfully, and nothing acts any more or is left."""
    calls = len(disk.calls)
    assert task.future.done()
    look.assert_tmp_empty()
    if task.future.cancelled():
        assert task.state is State.ABORTED
        assert look.messages() == []
    else:
        assert task.state is State.DELIVERED
        assert look.messages() == [message]
        assert Path(task.future.result().path).read_bytes() == message
    assert task._maildir.commit.wait_idle(10)
    assert len(disk.calls) == calls, "a thread went on after the call had ended"
    assert not descriptors(look.path.parent)


def _each_with_one() -> list[Any]:
    """Return every kind of message with every kind of cancellation, of which those with neither of two are heavy."""
    return [
        pytest.param(
            message,
            kind,
            id=f"{message}-{kind.__name__.strip('_')}",
            marks=() if kind is _native or message == "async iterable" else pytest.mark.heavy,
        )
        for message in MESSAGES
        for kind in KINDS
    ]


@pytest.mark.parametrize(("message", "kind"), _each_with_one())
def test_cancelled_at_every_disk_call(tmp_path: Path, kind: Kind, message: str) -> None:
    """Cancelled before any of its system calls, a delivery is as if never begun, or whole; and it is over."""
    asyncio.run(_cancel_at_every_disk_call(tmp_path, kind, message))


@pytest.mark.parametrize("kind", [_native, _anyio_scope], ids=["native", "anyio scope"])
async def test_cancelled_at_every_disk_call_on_any_loop(tmp_path: Path, kind: Kind) -> None:
    """The same holds in debug mode, with eager tasks, and on uvloop."""
    await _cancel_at_every_disk_call(tmp_path, kind, "async iterable")


async def _cancel_at_every_disk_call(tmp_path: Path, kind: Kind, message: str) -> None:
    content, make, run = MESSAGES[message]
    dry = FaultDisk()
    await run(AppendTask(Maildir(tmp_path / "dry", disk=dry), make()))
    steps = len(dry.calls)
    assert steps > 10
    cancelled = 0
    for step in range(1, steps + 1):
        moment = Moment()
        disk = FaultDisk(Fault("", nth=step, gate=moment.gate))
        maildir = Maildir(tmp_path / str(step), disk=disk, commit=GroupCommit())
        task = AppendTask(maildir, make())
        await kind(run(task), moment)
        _check(Look(maildir.path), task, content, disk)
        cancelled += task.future.cancelled()
    if message == "bytes":
        assert cancelled == 0, "group commit had begun with it: too late"
    else:
        assert 0 < cancelled < steps


def _turns(every: bool) -> Iterator[int]:
    """Yield 0, 1, 2, … for ever; if not *every*, the sparser the later, as turns are short beside a disk."""
    turn = 0
    while True:
        yield turn
        turn += 1 if every else max(1, turn // 8)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.heavy)], ids=["sparse", "every"])
@pytest.mark.parametrize("message", support.some(MESSAGES, 2))
async def test_cancelled_in_every_turn_of_the_loop(tmp_path: Path, message: str, every: bool) -> None:
    """Cancelled in the first turn of its loop, the second, … until it is through: the promises hold each time."""
    content, make, run = MESSAGES[message]
    outcomes = set()
    for turns in _turns(every):
        disk = FaultDisk()
        maildir = Maildir(tmp_path / str(turns), disk=disk, commit=GroupCommit())
        task = AppendTask(maildir, make())
        waiting = asyncio.ensure_future(run(task))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not waiting.cancel():
            break
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if task.state is State.IDLE:  # cancelled before its first step
            assert disk.calls == []
            continue
        _check(Look(maildir.path), task, content, disk)
        outcomes.add(task.state)
        if turns > 400 and task.state is State.DELIVERED:
            break  # turns are short beside a disk; the other test stops at every call of it
    if message != "bytes":  # which is in group commit's hands one turn after it was given
        assert State.ABORTED in outcomes


async def test_queued_delivery_is_withdrawn_at_once(tmp_path: Path) -> None:
    """A cancelled delivery that group commit has not begun with ends while the one before it still hangs."""
    began, release = threading.Event(), threading.Event()

    def gate() -> None:
        began.set()
        release.wait(30)

    disk = FaultDisk(Fault("create", gate=gate))
    maildir = Maildir(tmp_path / "m", disk=disk, commit=GroupCommit())
    await maildir.create()
    first = asyncio.ensure_future(maildir.append(b"first"))
    while not began.is_set():
        await asyncio.sleep(0.001)
    task = AppendTask(maildir, b"second")
    task.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert task.state is State.COMMITTING
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not first.done()
    release.set()
    await first
    assert Look(maildir.path).messages() == [b"first"]
    assert [call.operation for call in disk.calls].count("create") == 1


async def test_waiting_for_a_place_can_be_cancelled(tmp_path: Path) -> None:
    """A delivery that waits for a place among the pending ones ends at once, and its place goes to the next."""
    commit = GroupCommit(max_pending=1)
    maildir = Maildir(tmp_path / "m", commit=commit)
    async with maildir.open_append() as holder:
        waiting = [asyncio.ensure_future(maildir.append(text)) for text in (b"a", b"b")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await holder.send(b"held")
    delivered = await waiting[1]
    assert isinstance(delivered, Delivered)
    assert sorted(Look(maildir.path).messages()) == [b"b", b"held"]
    assert commit.statistics().pending == 0


async def test_blocking_read_of_the_callers_file_is_waited_for(tmp_path: Path) -> None:
    """Cancelled while a worker thread reads the caller's file, append raises only when that read has returned."""
    reading, release = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reading.set()
            release.wait(30)
            returned.append(True)
            return b"late"

    returned: list[bool] = []
    maildir = Maildir(tmp_path / "m")
    waiting = asyncio.ensure_future(maildir.append(Slow()))
    while not reading.is_set():
        await asyncio.sleep(0.001)
    waiting.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert returned
    Look(maildir.path).assert_tmp_empty()


async def test_async_source_is_interrupted_at_once_and_closed(tmp_path: Path) -> None:
    """Cancelled while it waits for a stream, append ends at once and closes the generator, in the task that ran it."""
    closed_in: list[asyncio.Task[Any] | None] = []
    ran_in: list[asyncio.Task[Any] | None] = []

    async def never_ending() -> AsyncIterator[bytes]:
        ran_in.append(asyncio.current_task())
        try:
            yield LONG
            await asyncio.get_running_loop().create_future()
        finally:
            closed_in.append(asyncio.current_task())

    maildir = Maildir(tmp_path / "m")
    task = AppendTask(maildir, never_ending())
    waiting = asyncio.ensure_future(task)
    while task.bytes_written < len(LONG):
        await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert closed_in == ran_in
    Look(maildir.path).assert_tmp_empty()
    assert Look(maildir.path).messages() == []


def test_waiting_through_a_cancelled_scope_does_not_spin(tmp_path: Path) -> None:
    """While a cancelled anyio scope waits for the disk, its loop is idle: anyio's repeated cancelling is kept out."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        hangs, release = asyncio.Event(), threading.Event()

        def gate() -> None:
            loop.call_soon_threadsafe(hangs.set)
            release.wait(30)

        maildir = Maildir(tmp_path / "m", disk=FaultDisk(Fault("sync", path="m/tmp/", gate=gate)))
        calls = 0
        original = loop.call_soon

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*args, **kwargs)

        async def expire() -> None:
            await hangs.wait()
            scope.cancel()
            await asyncio.sleep(0)
            setattr(loop, "call_soon", counting)  # noqa: B010 a method may not be assigned to
            await asyncio.sleep(0.05)  # thousands of turns for a loop that spins
            release.set()

        with anyio.CancelScope() as scope:
            expiry = asyncio.ensure_future(expire())
            await maildir.append(b"message")
        await expiry
        assert calls < 100

    asyncio.run(main())


@pytest.mark.parametrize("operation", ["write", "sync", "rename_noreplace"])
async def test_a_cancelled_append_waits_for_what_is_in_flight(tmp_path: Path, operation: str) -> None:
    """While a thread acts for the message a cancellation, however often, does not come out; after that it does."""
    gate = support.Gate()
    maildir = Maildir(tmp_path / "m", disk=FaultDisk(Fault(operation, gate=gate, path="/m/")))
    task = asyncio.create_task(maildir.append(b"message"))
    await gate.reached()
    for _ in range(3):
        task.cancel()
        await support.turns()
        assert not task.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert support.contents(tmp_path / "m") == {"tmp": [], "new": [b"message"], "cur": []}
