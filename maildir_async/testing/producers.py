"""Checks that any producer must pass, whoever wrote it."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, Final

from maildir_async.receive.messages import BytesLike

__all__ = ["check_pull_producer", "check_push_producer"]

#: Seconds a producer gets from one chunk to the next. Turns of a loop would not do: a thread may have to read.
PATIENCE_S: Final = 10.0


class _RecordingConsumer:
    """A consumer that keeps what it gets, and knows when it may get something."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.writes = 0
        self.ended = 0
        self.may_write = True
        self._last_heard = time.monotonic()

    def is_worth_waiting_for(self) -> bool:
        """Return whether something came not so long ago, and it may be that more comes."""
        return time.monotonic() < self._last_heard + PATIENCE_S

    def register_producer(self, producer: Any, streaming: bool) -> None:
        raise AssertionError("a producer does not register itself while it is being checked")

    def unregister_producer(self) -> None:
        assert self.may_write, "the message was ended by a producer that is paused or stopped"
        self.ended += 1

    def write(self, data: BytesLike) -> None:
        assert self.may_write, "a chunk was written by a producer that is paused, stopped, or has not been asked"
        assert not self.ended, "a chunk was written after the end"
        self.received += data
        self.writes += 1
        if data:
            self._last_heard = time.monotonic()


async def check_pull_producer(make: Callable[[Any], Any], expected: bytes) -> None:
    """Assert that what *make* returns for a consumer is a pull producer of *expected*.

    It writes when it is asked, one chunk at most, and not otherwise; ends the message once; and is silent when stopped.
    """
    consumer = _RecordingConsumer()
    producer = make(consumer)
    while len(consumer.received) <= len(expected) and consumer.is_worth_waiting_for():
        writes = consumer.writes
        await _done(producer.resume_producing())
        assert consumer.writes <= writes + 1, "more than one chunk was written for one resume_producing()"
        if consumer.ended:
            break
        consumer.may_write = False
        await asyncio.sleep(0)
        consumer.may_write = True
    assert consumer.ended == 1, "the message was not ended"
    assert bytes(consumer.received) == expected, "the bytes differ"
    stopped = make(consumer := _RecordingConsumer())
    consumer.may_write = False
    await _done(stopped.stop_producing())
    for _ in range(10):
        await asyncio.sleep(0)


async def check_push_producer(make: Callable[[Any], Any], expected: bytes) -> None:
    """Assert that what *make* returns for a consumer is a push producer of *expected*.

    It starts by itself, is silent between pause and resume and after stop, and ends the message once.
    """
    consumer = _RecordingConsumer()
    producer = make(consumer)
    while len(consumer.received) <= len(expected) and consumer.is_worth_waiting_for():
        writes = consumer.writes
        await asyncio.sleep(0.0001)  # what it reads may come from a thread
        if consumer.ended:
            break
        if consumer.writes > writes:
            await _done(producer.pause_producing())
            consumer.may_write = False
            for _ in range(10):
                await asyncio.sleep(0)
            consumer.may_write = True
            await _done(producer.resume_producing())
    assert consumer.ended == 1, "the message was not ended"
    assert bytes(consumer.received) == expected, "the bytes differ"
    stopped = make(consumer := _RecordingConsumer())
    await _done(stopped.stop_producing())
    consumer.may_write = False
    for _ in range(10):
        await asyncio.sleep(0)


async def _done(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
