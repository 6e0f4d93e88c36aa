"""The deliveries of a storm: each is a task on one of its loops, and tells what has become of it."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import anyio

from maildir_async import (
    AppendTask,
    Consumer,
    Delivered,
    Durability,
    Maildir,
    MaildirError,
    Outcome,
    UncertainAppendError,
    deliver,
)

__all__ = ["ABSENT", "DOUBLE", "EITHER", "ONCE", "Abort", "Delivery", "Message", "body_of", "options_of", "told"]

#: What must be true of a message in a maildir.
ONCE: Final = "once"
ABSENT: Final = "absent"
EITHER: Final = "absent, or once"
DOUBLE: Final = "absent, and another of its key is there"

#: How many pieces a stream is fed in.
PIECES: Final = 4

#: What an error is noted with where what it tells is not the whole truth.
_NOT_WHOLE: Final = ("could not be taken back", "may have been published", "may be there")


class Abort(Exception):  # noqa: N818 it is no error
    """What a caller's own code raises."""


@dataclass(frozen=True)
class Message:
    """A message: its bytes say which one it is, and no part of them can be taken for another part."""

    number: int
    size: int

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return body_of(self.number, self.size)


@lru_cache(maxsize=64)
def body_of(number: int, size: int) -> bytes:
    """Return the bytes of a message."""
    head, end = b"m%d %d\n" % (number, size), b"\nend of m%d\n" % number
    return head + random.Random(number).randbytes(size) + end


class _Producer:
    """What is asked, or pushes: it gives a piece each time that a step says so."""

    def __init__(self, consumer: Consumer, pieces: "asyncio.Queue[bytes | str]", *, pushes: bool) -> None:
        self._consumer = consumer
        self._pieces = pieces
        self._running = asyncio.Event()
        self._running.set()
        self.pushing = asyncio.ensure_future(self._push()) if pushes else None
        self.pauses = self.resumes = self.stops = 0
        self.has_ended = False

    async def _push(self) -> None:
        while not self.has_ended:
            await self._give(await self._pieces.get())

    async def _give(self, piece: bytes | str) -> None:
        await self._running.wait()
        if self.stops:
            return
        if isinstance(piece, bytes):
            self._consumer.write(piece)
        elif piece == "end":
            self.has_ended = True
            self._consumer.unregister_producer()
        elif self.pushing is None:
            raise Abort
        else:  # one that pushes has nobody to raise it to
            self.has_ended = True
            assert isinstance(self._consumer, AppendTask)
            self._consumer.fail(Abort())

    async def resume_producing(self) -> None:
        self.resumes += 1
        if self.pushing is not None:
            self._running.set()
            return
        await self._give(await self._pieces.get())

    def pause_producing(self) -> None:
        self.pauses += 1
        self._running.clear()

    def stop_producing(self) -> None:
        self.stops += 1
        self._running.set()
        if self.pushing is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop
                self.pushing.cancel()


@dataclass(eq=False)
class Delivery:
    """One delivery, of one message or of many.

    Attributes:
        how: which way it goes.
        loop: on which loop, by number.
        messages: what it delivers.
        boxes: to which maildirs, by number; more than one for a fan-out.
        folder: where in these.
        options: of `Maildir.append`.
        guard: what can cancel it beside the task's own `cancel`.
        key: its duplicate_key.
        is_atomic: whether it is one transaction.
        task: what runs it.
        result, error: what has become of it.
        is_vanished: whether its loop has been closed.
        left_at: for each message and maildir, whether it was there when this had ended; None before.

    """

    how: str
    loop: int
    messages: Sequence[Message]
    maildirs: Sequence[Maildir]
    boxes: Sequence[int]
    folder: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    guard: str | None = None
    key: str | None = None
    is_atomic: bool = False
    task: "asyncio.Task[None] | None" = None
    append_task: AppendTask | None = None
    producer: _Producer | None = None
    result: Any = None
    error: BaseException | None = None
    is_vanished: bool = False
    left_at: "set[tuple[int, int]] | None" = None

    def __post_init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._fed = 0
        self._has_ended = False
        self._scope: anyio.CancelScope | None = None
        self._timeout: asyncio.Timeout | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.is_vanished or self.task is None or self.task.done()

    # On its loop.

    async def run(self) -> None:
        """Deliver, and keep what becomes of it."""
        try:
            if self.guard == "scope":
                with anyio.CancelScope() as self._scope:
                    self.result = await self._deliver()
            elif self.guard == "timeout":
                async with asyncio.timeout(None) as self._timeout:
                    self.result = await self._deliver()
            else:
                self.result = await self._deliver()
        except (Exception, asyncio.CancelledError) as exc:
            self.error = exc
        finally:
            if self.producer is not None and self.producer.pushing is not None:
                self.producer.pushing.cancel()

    def _deliver(self) -> Awaitable[Any]:
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "append": lambda: self.maildirs[0].append(self.messages[0].body, folder=self.folder, **self.options),
            "iterable": lambda: self.maildirs[0].append(self._iterate(), folder=self.folder, **self.options),
            "fan_out": lambda: deliver(self.messages[0].body, list(self.maildirs), folder=self.folder, **self.options),
        }
        return (ways.get(self.how) or getattr(self, f"_{self.how}"))()

    async def _task(self) -> Delivered:
        message = self.messages[0].body
        self.append_task = AppendTask(self.maildirs[0], message, folder=self.folder, **self.options)
        return await self.append_task

    async def _many(self) -> Any:
        messages = [message.body for message in self.messages]
        if self.is_atomic:
            return await self.maildirs[0].append_many(messages, atomic=True, folder=self.folder, **self.options)
        return await self.maildirs[0].append_many(
            messages, concurrency=3, return_exceptions=True, folder=self.folder, **self.options
        )

    async def _iterate(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) != "end":
            if not isinstance(piece, bytes):
                raise Abort
            yield piece

    async def _hand(self) -> Delivered:
        async with self.maildirs[0].open_append(folder=self.folder, **self.options) as task:
            self.append_task = task
            while (piece := await self.pieces.get()) != "end":
                if piece == "fail":
                    task.fail(Abort())
                    break
                if not isinstance(piece, bytes):
                    raise Abort
                await task.send(piece)
        return await task

    async def _push(self) -> Delivered:
        return await self._produce(pushes=True)

    async def _pull(self) -> Delivered:
        return await self._produce(pushes=False)

    async def _produce(self, *, pushes: bool) -> Delivered:
        self.append_task = task = AppendTask(self.maildirs[0], folder=self.folder, **self.options)
        self.producer = _Producer(task, self.pieces, pushes=pushes)
        task.start()
        task.register_producer(self.producer, pushes)
        return await task

    def feed(self, end: str) -> None:
        """Give it its next piece; or what is left, and its *end*."""
        if self._has_ended:
            return
        body = self.messages[0].body
        step_ = -(-len(body) // PIECES)
        if end in ("", "end"):
            for _ in range(1 if not end else PIECES):
                if piece := body[self._fed : self._fed + step_]:
                    self._fed += len(piece)
                    self.pieces.put_nowait(piece)
        if end:
            self._has_ended = True
            self.pieces.put_nowait(end)

    def cancel(self, how: str) -> None:
        """Cancel it, as it can be."""
        if self.is_over or self.task is None:
            return
        if how == "guard" and self._scope is not None:
            self._scope.cancel()
        elif how == "guard" and self._timeout is not None:
            with contextlib.suppress(RuntimeError):  # it has expired, or is over
                self._timeout.reschedule(self.task.get_loop().time())
        else:
            self.task.cancel()

    def vanish(self) -> None:
        """Keep nothing of it alive: its loop is about to be closed."""
        self.is_vanished = True
        self.task = self.append_task = self.producer = self._scope = self._timeout = None
        self.pieces = asyncio.Queue()

    # Afterwards.

    def verdicts(self) -> list[tuple[Message, int, str]]:
        """Return what must be true of each message in each maildir."""
        found = list[tuple[Message, int, str]]()
        for at, message in enumerate(self.messages):
            for which, box in enumerate(self.boxes):
                found.append((message, box, told(self._outcome(at, which))))
        return found

    def _outcome(self, at: int, which: int) -> Any:
        """Return what is told of one message; None where nothing is."""
        if self.is_vanished:
            return None
        if isinstance(self.result, list):
            each = self.result[which if self.how == "fan_out" else at]
            return (each.delivered or each.error) if isinstance(each, Outcome) else each
        if self.result is not None:
            return self.result
        if self.append_task is not None and (self.is_cancelled or isinstance(self.error, Abort)):
            try:
                future = self.append_task.future
            except RuntimeError:  # it was cancelled before its start
                return asyncio.CancelledError("withdrawn") if self.error is not None else None
            if not future.done():
                return None
            return asyncio.CancelledError("withdrawn") if future.cancelled() else future.exception() or future.result()
        return None if self.is_cancelled else self.error

    @property
    def is_cancelled(self) -> bool:
        """Whether it has ended by a cancellation, of whatever kind."""
        return (self.error is None and self.result is None) or isinstance(
            self.error, asyncio.CancelledError | TimeoutError
        )


def told(outcome: Any) -> str:
    """Return what must be true of a message of which *outcome* is told."""
    if outcome is None:
        return EITHER
    if isinstance(outcome, Delivered):
        return DOUBLE if outcome.duplicate else ONCE
    if isinstance(outcome, UncertainAppendError):
        return ONCE
    if isinstance(outcome, MaildirError):
        said = [str(outcome), *getattr(outcome, "__notes__", ())]
        return EITHER if any(words in text for words in _NOT_WHOLE for text in said) else ABSENT
    return ABSENT


def options_of(*, keywords: Sequence[str], flags: str, durability: str | None, key: str | None) -> dict[str, Any]:
    """Return the options of `Maildir.append` that a step means."""
    options: dict[str, Any] = {}
    if keywords:
        options["keywords"] = keywords
    if flags:
        options["flags"] = flags
    if durability is not None:
        options["durability"] = Durability[durability]
    if key is not None:
        options["duplicate_key"] = key
    return options
