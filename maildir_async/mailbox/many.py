"""Many appends, several at a time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import aclosing, contextmanager
from typing import Protocol, TypeVar

import anyio

from maildir_async.format.given import given
from maildir_async.format.options import check_callback, check_count
from maildir_async.receive.messages import Message
from maildir_async.receive.user_code import failure_of, is_foreign

__all__ = ["settle_many"]


class Sized(Protocol):
    """What becomes of a message: a `Delivered`, for one."""

    @property
    def size(self) -> int:
        """Bytes stored."""
        ...


S = TypeVar("S", bound=Sized)


async def settle_many(
    append: Callable[[Message], Awaitable[S]],
    messages: Iterable[Message] | AsyncIterable[Message],
    *,
    concurrency: int,
    on_progress: Callable[[int, int | None, int], object] | None,
) -> list[S | Exception]:
    """Append *messages*, *concurrency* at a time, and return what became of each, in the order given.

    If *messages* or *on_progress* raises, or this is cancelled, no further message is begun, those in flight are
    cancelled and waited for, and that exception is raised: an AppendError for a CancelledError of theirs.
    """
    concurrency = check_count("concurrency", concurrency, least=1)
    check_callback("on_progress", on_progress)
    is_iterable = isinstance(messages, Iterable | AsyncIterable) or hasattr(type(messages), "__getitem__")
    if isinstance(messages, str | bytes | bytearray | memoryview) or not is_iterable:
        kind = type(messages).__name__
        raise TypeError(f"messages must be an iterable of messages, not {kind}: {given(messages)}")
    total = len(messages) if isinstance(messages, Sequence) else None
    outcomes: dict[int, S | Exception] = {}
    taking = asyncio.Lock()
    stored = taken = 0
    told: int | None = total  # how many there are, as *on_progress* knows it

    def tell() -> None:
        nonlocal told
        if on_progress is not None:
            told = total
            with _no_cancellation():
                on_progress(len(outcomes), total, stored)

    async def append_on(numbered: AsyncGenerator[tuple[int, Message], None]) -> None:
        nonlocal stored, taken, total
        while True:
            async with taking:
                try:
                    number, message = await anext(numbered)
                except StopAsyncIteration:
                    total = taken
                    return
                taken = number + 1
            try:
                outcomes[number] = delivered = await append(message)
                stored += delivered.size
            except Exception as exc:
                outcomes[number] = exc
            except asyncio.CancelledError as exc:
                if not is_foreign(exc):
                    raise
                outcomes[number] = failure_of(exc)
            tell()

    async with aclosing(_numbered(messages)) as numbered:
        try:
            async with anyio.create_task_group() as group:
                for _ in range(concurrency if total is None else min(concurrency, total)):
                    group.start_soon(append_on, numbered)
        except BaseExceptionGroup as exc:
            failure = exc.exceptions[0]
            raise failure from failure.__cause__  # what a plain loop over them would have raised
    if told is None:  # the end of *messages* was found after all of them had been settled
        tell()
    return [outcomes[number] for number in sorted(outcomes)]


async def _numbered(
    messages: Iterable[Message] | AsyncIterable[Message],
) -> AsyncGenerator[tuple[int, Message], None]:
    number = 0
    if isinstance(messages, AsyncIterable):
        with _no_cancellation():
            async for message in messages:
                yield number, message
                number += 1
    else:
        with _no_cancellation():
            for message in messages:
                yield number, message
                number += 1


@contextmanager
def _no_cancellation() -> Generator[None, None, None]:
    """Have a CancelledError of the caller's code be a failure of that, unless the running task has been cancelled.

    The task group would take it for the end of that task, and the call would return as if all were done.
    """
    try:
        yield
    except asyncio.CancelledError as exc:
        if not is_foreign(exc):
            raise
        raise failure_of(exc) from exc
