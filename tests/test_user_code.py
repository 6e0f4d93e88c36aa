"""Whatever code of the caller raises costs its own message, and no other: sources, producers and callbacks."""

import asyncio
import contextvars
import errno
import gc
import gzip
import io
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import anyio
import pytest

from look import Look, until
from maildir_async import (
    AppendError,
    AppendTask,
    Delivered,
    GroupCommit,
    Maildir,
    MaildirError,
    MessageTooLargeError,
    as_producer,
    deliver,
)
from maildir_async.format.states import State
from maildir_async.receive.sources import cost_of
from maildir_async.testing import Fault, FaultDisk
from support import turns

LONG = b"x" * 1_300_000


class Odd(BaseException):
    """Neither an Exception nor one of the interpreter's."""


async def _cancelled_elsewhere() -> None:
    """Await a future that somebody else has cancelled."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    await future


class Reader:
    """An async ``read`` that fails in the middle."""

    def __init__(self) -> None:
        self.chunks = [b"the beginning"]

    async def read(self, size: int = -1) -> bytes:
        if self.chunks:
            return self.chunks.pop()
        await _cancelled_elsewhere()
        return b""


class BlockingFile(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise asyncio.CancelledError


class Stream(anyio.abc.ByteReceiveStream):
    async def receive(self, max_bytes: int = 65536) -> bytes:
        await _cancelled_elsewhere()
        return b""

    async def aclose(self) -> None:
        pass


async def _async_generator() -> AsyncIterator[bytes]:
    yield b"the beginning"
    await _cancelled_elsewhere()


def _generator() -> Iterator[bytes]:
    yield b"the beginning"
    raise asyncio.CancelledError


class AtOnce:
    """Raises what it is given, at the place it is given."""

    def __init__(self, where: str, exc: BaseException) -> None:
        self._where = where
        self._exc = exc

    def _raise_at(self, where: str) -> None:
        if where == self._where:
            raise self._exc


class Plain(AtOnce):
    def __iter__(self) -> Iterator[bytes]:
        self._raise_at("__iter__")
        return self

    def __next__(self) -> bytes:
        self._raise_at("__next__")
        return b"more"


class Asynchronous(AtOnce):
    def __aiter__(self) -> AsyncIterator[bytes]:
        self._raise_at("__aiter__")
        return self

    def __anext__(self) -> Awaitable[bytes]:
        self._raise_at("__anext__")

        async def later() -> bytes:
            self._raise_at("later")
            return b"more"

        return later()


class Read(AtOnce):
    async def read(self, size: int = -1) -> bytes:
        self._raise_at("read")
        return b"more"


MAKERS: dict[str, Callable[[BaseException], Any]] = {
    "__iter__": lambda exc: Plain("__iter__", exc),
    "__next__": lambda exc: Plain("__next__", exc),
    "__aiter__": lambda exc: Asynchronous("__aiter__", exc),
    "__anext__": lambda exc: Asynchronous("__anext__", exc),
    "its awaitable": lambda exc: Asynchronous("later", exc),
    "read": lambda exc: Read("read", exc),
}


async def _appended(maildir: Maildir, message: Any) -> object:
    return await maildir.append(message)


async def _pushed(maildir: Maildir, message: Any) -> object:
    task = AppendTask(maildir)
    task.start()
    task.register_producer(as_producer(message, task, streaming=True), streaming=True)
    return await task


async def _delivered(maildir: Maildir, message: Any) -> object:
    (outcome,) = await deliver(message, [maildir])
    if outcome.error is not None:
        raise outcome.error
    return outcome.delivered


WAYS = [_appended, _pushed, _delivered]
Way = Callable[[Maildir, Any], Awaitable[object]]


@pytest.fixture
def maildir(tmp_path: Path) -> Maildir:
    return Maildir(tmp_path / "m", commit=GroupCommit())


def assert_nothing_is_left(maildir: Maildir) -> None:
    """No place is kept, and nothing is on the disk."""
    assert maildir.commit.statistics().pending == 0
    assert maildir.statistics().in_flight == 0
    Look(maildir.path).assert_tmp_empty()
    assert Look(maildir.path).messages() == []


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
@pytest.mark.parametrize("make", [Reader, BlockingFile, Stream, _async_generator, _generator])
async def test_a_foreign_cancellation_is_a_failure(maildir: Maildir, make: Callable[[], Any], way: Way) -> None:
    """A CancelledError of the source, while nobody has cancelled the delivery, is an AppendError at stage receive."""
    with pytest.raises(AppendError) as caught:
        await way(maildir, make())
    assert caught.value.stage == "receive"
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    this = asyncio.current_task()
    assert this is not None
    assert not this.cancelling()
    assert_nothing_is_left(maildir)


@pytest.mark.parametrize("make", [Reader, BlockingFile, _async_generator, _generator])
async def test_append_many_goes_on_after_a_foreign_cancellation(maildir: Maildir, make: Callable[[], Any]) -> None:
    """One message whose source is cancelled by somebody else fails alone: the others are delivered, and it is told."""
    messages = [b"1", b"2", make(), b"4", b"5"]
    results = await maildir.append_many(messages, concurrency=1, return_exceptions=True)
    assert [type(result) for result in results] == [Delivered, Delivered, AppendError, Delivered, Delivered]
    messages[2] = make()
    with pytest.raises(AppendError):
        await maildir.append_many(messages, concurrency=1)
    assert sorted(Look(maildir.path).messages()) == sorted([b"1", b"2", b"4", b"5"] * 2)


async def _messages_async() -> AsyncIterator[bytes]:
    yield b"1"
    await _cancelled_elsewhere()


def _messages() -> Iterator[bytes]:
    yield b"1"
    raise asyncio.CancelledError


@pytest.mark.parametrize("make", [_messages_async, _messages])
async def test_a_foreign_cancellation_of_the_messages_is_told(maildir: Maildir, make: Callable[[], Any]) -> None:
    """If the iterable of append_many raises a foreign CancelledError, the call raises, and does not say it is done."""
    with pytest.raises(AppendError) as caught:
        await maildir.append_many(make())
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_a_foreign_cancellation_of_the_display_of_many_is_told(maildir: Maildir) -> None:
    """If on_progress of append_many raises CancelledError, the call raises, and does not say that all are delivered."""

    def show(done: int, total: int | None, stored: int) -> None:
        raise asyncio.CancelledError

    with pytest.raises(AppendError):
        await maildir.append_many([b"1", b"2", b"3"], concurrency=1, on_progress=show)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
@pytest.mark.parametrize(
    "exc", [GeneratorExit, Odd, StopIteration, StopAsyncIteration, ValueError, asyncio.CancelledError]
)
@pytest.mark.parametrize("where", MAKERS)
async def test_whatever_a_source_raises(maildir: Maildir, where: str, exc: type[BaseException], way: Way) -> None:
    """Whatever a source raises, and wherever, its message fails with it as the cause, and its place is given back."""
    if (where, exc) in {
        ("__next__", StopIteration),
        ("__anext__", StopAsyncIteration),
        ("its awaitable", StopAsyncIteration),
    }:
        pytest.skip("the end of the message")
    if way is _pushed and where in ("__iter__", "__aiter__"):
        pytest.skip("raised to who makes the adapter")
    with pytest.raises(AppendError) as caught:
        async with asyncio.timeout(20):
            await way(maildir, MAKERS[where](exc()))
    assert caught.value.stage == "receive"
    cause: BaseException | None = caught.value
    while cause is not None and not isinstance(cause, exc):
        cause = cause.__cause__
    assert cause is not None
    assert_nothing_is_left(maildir)
    await maildir.aclose()


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("where", MAKERS)
def test_an_interrupt_in_a_source_goes_on(tmp_path: Path, where: str, waits: bool, exc: type[BaseException]) -> None:
    """A KeyboardInterrupt of a source ends the loop, as in any asyncio program; its place is given back."""
    commit = GroupCommit(max_pending=1)
    maildir = Maildir(tmp_path / "m", commit=commit)

    async def main() -> None:
        if waits:
            async with maildir.open_append() as holder:
                task = asyncio.ensure_future(maildir.append(MAKERS[where](exc())))
                await turns(3)
                await holder.send(b"held")
            await task
        await maildir.append(MAKERS[where](exc()))

    with pytest.raises(exc):
        asyncio.run(main())
    assert commit.statistics().pending == 0

    async def after() -> None:
        async with asyncio.timeout(20):
            await maildir.append(b"next")
            await maildir.aclose()

    asyncio.run(after())
    Look(maildir.path).assert_tmp_empty()
    assert b"next" in Look(maildir.path).messages()


@pytest.mark.parametrize("exc", [asyncio.CancelledError, GeneratorExit, Odd, ValueError])
async def test_a_display_costs_nobody_his_mail(maildir: Maildir, exc: type[BaseException]) -> None:
    """Whatever on_progress raises, a stream goes on and is delivered, and the loop's exception handler is told."""
    reports: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(type(context["exception"])))

    def show(stored: int) -> None:
        raise exc

    async with asyncio.timeout(20):
        delivered = await maildir.append(iter([LONG, LONG]), on_progress=show)
    assert delivered.size == 2 * len(LONG)
    assert set(reports) == {exc}
    assert maildir.commit.statistics().pending == 0


class Pushes:
    """A push producer whose signals raise."""

    def __init__(self, exc: BaseException, *, is_async: bool) -> None:
        self._exc = exc
        self._is_async = is_async
        self.stopped = 0

    def pause_producing(self) -> Any:
        async def later() -> None:
            raise self._exc

        if self._is_async:
            return later()
        raise self._exc

    def resume_producing(self) -> None:
        pass

    def stop_producing(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("exc", [asyncio.CancelledError, Odd, StopIteration])
async def test_a_signal_that_raises_anything(maildir: Maildir, exc: type[BaseException], is_async: bool) -> None:
    """A producer that raises anything when it is paused fails its own delivery, and is not stopped."""
    task = AppendTask(maildir)
    task.start()
    producer = Pushes(exc(), is_async=is_async)
    task.register_producer(producer, streaming=True)
    task.write(LONG)
    task.write(LONG)  # the first is being written: there is no room for this one
    async with asyncio.timeout(20):
        with pytest.raises(AppendError) as caught:
            await task
    assert caught.value.stage == "receive"
    assert producer.stopped == 0
    assert_nothing_is_left(maildir)


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_signal_that_raises_while_there_is_no_place(tmp_path: Path, is_async: bool) -> None:
    """A producer that raises as it is paused, with nothing written yet, fails its delivery alone."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit(max_pending=1))
    async with maildir.open_append() as holder:
        task = AppendTask(maildir)
        task.start()
        task.register_producer(producer := Pushes(Odd(), is_async=is_async), streaming=True)
        task.write(b"chunk")
        with pytest.raises(AppendError):
            await task
        assert producer.stopped == 0
        await holder.send(b"held")
    assert maildir.commit.statistics().pending == 0


@pytest.mark.parametrize("exc", [StopIteration(), StopAsyncIteration(), GeneratorExit(), Odd(), KeyboardInterrupt()])
async def test_fail_with_what_no_future_takes(maildir: Maildir, exc: BaseException) -> None:
    """`fail` with what no future takes, or what ends a loop, is an AppendError that it is the cause of."""
    task = AppendTask(maildir)
    future = task.start()
    assert task.fail(exc)
    with pytest.raises(AppendError) as caught:
        await task
    assert caught.value.__cause__ is exc
    assert future.exception() is caught.value
    assert_nothing_is_left(maildir)


async def test_an_adapter_of_a_task_that_is_not_started(maildir: Maildir) -> None:
    """A pull adapter that is asked by hand starts the task that it writes to."""
    task = AppendTask(maildir)
    as_producer(b"message", task).resume_producing()
    assert (await task).size == 7


async def test_an_oserror_of_a_source_keeps_its_errno(maildir: Maildir) -> None:
    """What `deliver`'s source raises before its first chunk is each maildir's AppendError, with its errno."""
    (outcome,) = await deliver(Plain("__iter__", OSError(errno.EIO, "no tape")), [maildir])
    assert isinstance(outcome.error, AppendError)
    assert (outcome.error.errno, outcome.error.stage) == (errno.EIO, "receive")


@pytest.mark.parametrize("way", [_appended, _pushed, _delivered], ids=lambda way: way.__name__.strip("_"))
async def test_a_cancellation_of_the_delivery_is_none_of_the_source(maildir: Maildir, way: Way) -> None:
    """Cancelling the delivery, in either way, while its source waits ends as a cancellation and leaves nothing."""

    async def waits() -> AsyncIterator[bytes]:
        yield LONG
        await asyncio.get_running_loop().create_future()

    native = asyncio.ensure_future(way(maildir, waits()))
    await turns(20)
    native.cancel()
    with pytest.raises(asyncio.CancelledError):
        await native
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_later(0.01, scope.cancel)
        await way(maildir, waits())
    assert scope.cancelled_caught
    async with asyncio.timeout(20):
        while maildir.statistics().in_flight:  # of the pushed one, whose adapter has been told to stop
            await asyncio.sleep(0.001)
    assert_nothing_is_left(maildir)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_the_end_of_a_loop_is_a_cancellation(tmp_path: Path, way: Way) -> None:
    """asyncio.run cancels all tasks, ours too: what was being received is gone, and nobody is told of a failure."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit())
    told: list[BaseException] = []

    async def waits() -> AsyncIterator[bytes]:
        yield LONG
        await asyncio.get_running_loop().create_future()

    async def one() -> None:
        try:
            await way(maildir, waits())
        except BaseException as exc:
            told.append(exc)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(one())
        await turns(20)
        assert not task.done()

    asyncio.run(main())
    assert [type(exc) for exc in told] == [asyncio.CancelledError]
    assert maildir.commit.statistics().pending == 0
    assert maildir.commit.wait_idle(20)
    Look(maildir.path).assert_tmp_empty()
    assert Look(maildir.path).messages() == []


WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


@pytest.mark.parametrize("kind", ["generator", "async generator", "file", "pull"])
async def test_code_runs_in_the_context_of_its_caller(tmp_path: Path, kind: str) -> None:
    """A source that had to wait for its place runs in its caller's context, and on_progress with it."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit(max_pending=1))
    seen: list[str] = []

    def plain() -> Iterator[bytes]:
        seen.append(WHO.get())
        yield LONG
        seen.append(WHO.get())

    async def asynchronous() -> AsyncIterator[bytes]:
        for chunk in plain():
            yield chunk

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            seen.append(WHO.get())
            return super().read(size)

    class Pull:
        def __init__(self, task: AppendTask) -> None:
            self._task = task

        def resume_producing(self) -> None:
            seen.append(WHO.get())
            self._task.write(LONG)
            self._task.unregister_producer()

        def stop_producing(self) -> None:
            pass

    async def waiting() -> None:
        WHO.set("caller")
        if kind == "pull":
            task = AppendTask(maildir, on_progress=lambda _: seen.append(WHO.get()))
            task.start()
            task.register_producer(Pull(task), streaming=False)
            await task
            return
        makers: dict[str, Callable[[], Any]] = {
            "generator": plain,
            "async generator": asynchronous,
            "file": lambda: File(LONG),
        }
        await maildir.append(makers[kind](), on_progress=lambda _: seen.append(WHO.get()))

    WHO.set("stranger")
    async with maildir.open_append() as holder:
        task = contextvars.Context().run(asyncio.ensure_future, waiting())
        await turns(5)
        await holder.send(b"held")
    await task
    assert len(seen) >= 3
    assert set(seen) == {"caller"}


def test_a_compressed_file_is_judged_by_what_is_in_it(tmp_path: Path) -> None:
    """The size of a file is taken for the message's only where it is: not that of the file below a gzip.GzipFile."""
    maildir = Maildir(tmp_path / "m")
    (tmp_path / "noise").write_bytes(os.urandom(5000))
    with gzip.open(tmp_path / "short.gz", "wb") as file:
        file.write(b"short")
    with gzip.open(tmp_path / "long.gz", "wb") as file:
        file.write(bytes(100_000))
    assert (tmp_path / "short.gz").stat().st_size > 10

    async def main() -> None:
        with gzip.open(tmp_path / "short.gz") as opened:
            assert (await maildir.append(opened, size_limit=10)).size == 5
        with gzip.open(tmp_path / "long.gz") as opened, pytest.raises(MessageTooLargeError):
            await maildir.append(opened, size_limit=10_000)
        with open(tmp_path / "noise", "rb") as opened, pytest.raises(MessageTooLargeError):
            await maildir.append(opened, size_limit=4999)
        with open(tmp_path / "noise", "rb") as opened:
            opened.seek(1)
            assert (await maildir.append(opened, size_limit=4999)).size == 4999

    asyncio.run(main())


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
@pytest.mark.parametrize("kind", ["text", "attachment"])
async def test_an_email_object_is_charged_by_its_size(tmp_path: Path, kind: str, size: int) -> None:
    """An email object counts among the pending bytes as about what it is when it is serialised, small or large."""
    message = EmailMessage()
    message["Subject"] = "charged"
    if kind == "text":
        message.set_content("x" * 70 + "\n" + ("y" * 70 + "\n") * (size // 71))
    else:
        message.set_content("see below")
        message.add_attachment(os.urandom(size), maintype="application", subtype="octet-stream")
    whole = len(message.as_bytes())
    assert whole <= cost_of(message) <= 1.1 * whole + 1000
    commit = GroupCommit()
    waiting = asyncio.ensure_future(Maildir(tmp_path / "m", commit=commit).append(message))
    await turns(2)
    assert commit.statistics().pending_bytes == cost_of(message)
    await waiting


async def test_a_refused_start_is_the_outcome(maildir: Maildir) -> None:
    """A task that a closed maildir refuses has failed: its future says so, and so does everything else."""
    await maildir.aclose()
    task = AppendTask(maildir)
    with pytest.raises(MaildirError, match="closed") as caught:
        task.start()
    assert task.state is State.ABORTED
    assert task.future.exception() is caught.value
    with pytest.raises(MaildirError, match="closed"):
        await task.send(b"chunk")
    with pytest.raises(MaildirError, match="closed"):
        await task
    producer = Pushes(Odd(), is_async=False)
    task.register_producer(producer, streaming=True)
    assert producer.stopped == 1
    with pytest.raises(RuntimeError):
        task.start()
    task = AppendTask(maildir)
    with pytest.raises(MaildirError, match="closed"):
        await task.send(b"chunk")
    with pytest.raises(MaildirError, match="closed"):
        await asyncio.wait_for(task.future, 5)


def test_a_stream_on_a_loop_that_is_dropped(tmp_path: Path) -> None:
    """A stream whose loop is dropped, and never closed, leaves nothing in tmp/: nothing of ours keeps loop or task."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit())

    def begin() -> None:
        loop = asyncio.new_event_loop()

        async def feed() -> None:
            task = AppendTask(maildir)
            task.start()
            await task.send(LONG)
            while not task.bytes_written:
                await asyncio.sleep(0.001)

        loop.run_until_complete(feed())

    def collected() -> bool:
        gc.collect()
        return Look(maildir.path).names("tmp") == []

    gc.disable()
    try:
        begin()
        assert Look(maildir.path).names("tmp") != []
        with pytest.warns(ResourceWarning, match="loop"):
            until(collected)
    finally:
        gc.enable()
    until(lambda: maildir.commit.statistics().pending == 0)


@pytest.mark.parametrize("how", ["awaited", "future"])
async def test_a_cancellation_says_what_is_left(tmp_path: Path, how: str) -> None:
    """If the file of a cancelled stream cannot be removed, the cancellation says so."""
    disk = FaultDisk(Fault("unlink", errno.EIO))
    maildir = Maildir(tmp_path / "m", commit=GroupCommit(), disk=disk)
    task = AppendTask(maildir)
    task.start()
    await task.send(LONG)
    while not task.bytes_written:
        await asyncio.sleep(0.001)
    if how == "awaited":
        waiting = asyncio.ensure_future(task)
        await turns(2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await waiting
        assert "could not be removed" in caught.value.__notes__[0]
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task.future
        assert "could not be removed" in str(caught.value)
    for left in (tmp_path / "m" / "tmp").iterdir():
        left.unlink()


async def test_blocked_files_stop_only_their_own_group_commit(tmp_path: Path) -> None:
    """Seventy pipes that nobody writes to, given to one GroupCommit, do not keep another from an email object."""
    release = threading.Event()

    class Blocked(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            release.wait(30)
            return b""

    blocked = Maildir(tmp_path / "blocked", commit=GroupCommit())
    healthy = Maildir(tmp_path / "healthy", commit=GroupCommit())
    waiting = [asyncio.ensure_future(blocked.append(Blocked())) for _ in range(70)]
    try:
        await turns(5)
        message = EmailMessage()
        message.set_content("text")
        async with asyncio.timeout(20):
            await healthy.append(message)
            (outcome,) = await deliver(message, [healthy])
            assert outcome.delivered is not None
            await _pushed(healthy, message)
    finally:
        release.set()
        await asyncio.gather(*waiting)


LATE = """
import asyncio, sys
from email.message import EmailMessage
from maildir_async import AppendError, AppendTask, Maildir, as_producer, deliver

async def never():
    yield b"x"
    await asyncio.get_running_loop().create_future()

async def fails():
    yield b"x"
    raise OSError(5, "no tape")

async def main(path):
    message = EmailMessage()
    message["Subject"] = "Umlaut \\xe4"
    message.set_content("text \\xe4")
    maildir = Maildir(path)
    await maildir.append(b"first")
    before = set(sys.modules)
    for make in (maildir.append, lambda message: deliver(message, [maildir]), lambda m: maildir.append_many([m])):
        task = asyncio.ensure_future(make(never()))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        try:
            await make(fails())
        except AppendError:
            pass
        await make(message)
        await make([b"y"])
    print(sorted(set(sys.modules) - before))

asyncio.run(main(sys.argv[1]))
"""


def test_nothing_is_imported_late(tmp_path: Path) -> None:
    """When the first append has returned, no delivery, error or cancellation imports anything more."""
    run = subprocess.run([sys.executable, "-c", LATE, tmp_path / "m"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
