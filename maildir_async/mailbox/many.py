"""Many appends, several at a time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import anyio

from maildir_async.format.delivered import Delivered
from maildir_async.format.options import check_callback, check_count

__all__ = ["settle_many"]


async def settle_many(
    append: Callable[[Any], Awaitable[Delivered]],
    messages: Iterable[Any] | AsyncIterable[Any],
    *,
    concurrency: int,
    on_progress: Callable[[int, int | None, int], object] | None,
) -> list[Delivered | Exception]:
    """Append *messages*, *concurrency* at a time, and return what became of each, in the order given.

    If *messages* or *on_progress* raises, or this is cancelled, no further message is begun, those in flight are
    cancelled and waited for, and that exception is raised.
    """
    concurrency = check_count("concurrency", concurrency, least=1)
    check_callback("on_progress", on_progress)
    if isinstance(messages, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"messages must be an iterable of messages, not {type(messages).__name__}")
    total = len(messages) if isinstance(messages, Sequence) else None
    outcomes: dict[int, Delivered | Exception] = {}
    taking = asyncio.Lock()
    stored = 0

    async def append_on(numbered: AsyncGenerator[tuple[int, Any], None]) -> None:
        nonlocal stored
        while True:
            async with taking:
                try:
                    number, message = await anext(numbered)
                except StopAsyncIteration:
                    return
            try:
                outcomes[number] = delivered = await append(message)
                stored += delivered.size
            except Exception as exc:
                outcomes[number] = exc
            if on_progress is not None:
                on_progress(len(outcomes), total, stored)

    async with aclosing(_numbered(messages)) as numbered:
        try:
            async with anyio.create_task_group() as group:
                for _ in range(concurrency if total is None else min(concurrency, total)):
                    group.start_soon(append_on, numbered)
        except BaseExceptionGroup as exc:
            raise exc.exceptions[0] from None  # what a plain loop over them would have raised
    return [outcomes[number] for number in sorted(outcomes)]


async def _numbered(messages: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[tuple[int, Any], None]:
    number = 0
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield number, message
            number += 1
    else:
        for message in messages:
            yield number, message
            number += 1
