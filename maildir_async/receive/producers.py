"""Where the bytes come from: the producer and consumer contracts, and the adapter that makes a producer of anything.

The contracts are Twisted's (twisted.internet.interfaces), with methods that may also be ``async``:

* A *pull* producer is asked for the next chunk by `resume_producing`, and writes it to its consumer, if there is one.
* A *push* producer writes when it likes, between `pause_producing` and `resume_producing` not at all. It starts
  un-paused, and every pause is followed by one resume unless the message ended or failed meanwhile.
* The end of the message is ``consumer.unregister_producer()``.
* `stop_producing` is called once if the consumer has no use for more. It is not called on a producer that itself
  raised, nor after the end.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.disk.threads import Crew
from maildir_async.format.given import given
from maildir_async.format.options import check_bool
from maildir_async.group_commit import default_commit
from maildir_async.receive.messages import BytesLike, Message, is_nothing
from maildir_async.receive.sources import END, Source, source_of
from maildir_async.receive.user_code import answer_of, failure_of, goes_on, raised_by

__all__ = ["Consumer", "PullProducer", "PushProducer", "as_producer", "read_all"]


class Consumer(Protocol):
    """What takes the bytes. `maildir_async.AppendTask` is one.

    A consumer may also have ``fail(exc)``, told when a push adapter's source raises; ``expect_size(size)``, told when
    the size is known before the first byte; and ``readers``, the threads that read what blocks.
    """

    def register_producer(self, producer: Any, streaming: bool) -> None:
        """Take chunks from *producer*: a push producer if *streaming*. RuntimeError if there is one already."""
        ...

    def unregister_producer(self) -> None:
        """End the message."""
        ...

    def write(self, data: BytesLike) -> None:
        """Take a chunk. Never waits; may call the producer's ``pause_producing``. TypeError if it is not bytes-like."""
        ...


@runtime_checkable
class PullProducer(Protocol):
    """Writes one chunk when asked."""

    def resume_producing(self) -> Awaitable[object] | None:
        """Write the next chunk, if any, to the consumer; at the end, call its ``unregister_producer``."""
        ...

    def stop_producing(self) -> Awaitable[object] | None:
        """Produce no more: the consumer has failed or was cancelled."""
        ...


@runtime_checkable
class PushProducer(PullProducer, Protocol):
    """Writes chunks when it has them, unless paused."""

    def pause_producing(self) -> Awaitable[object] | None:
        """Write nothing until `resume_producing`."""
        ...


def as_producer(message: Message, consumer: Consumer, *, streaming: bool = False) -> "PullAdapter | PushAdapter":
    """Return a producer that writes *message* to *consumer*: pull, or push if *streaming*.

    It is for the caller to register it. A push adapter needs a running loop, and starts in the next turn of it.

    Args:
        message: bytes-like; an `email.message.Message`; a binary file (read in a worker thread, from where it
            stands, and not closed); anything with an async ``read(n)``; an anyio byte receive stream; or an
            iterable or async iterable of bytes-like chunks. A plain iterable is iterated on the loop: one that
            blocks, blocks the loop.
        consumer: what it is written to.
        streaming: which kind of producer.

    Raises TypeError for anything else, naming its type.

    """
    # Threads that may hang are those of the GroupCommit that the message goes to.
    crew: Crew | None = getattr(consumer, "readers", None)
    source = source_of(message, crew if crew is not None else default_commit().readers)
    for method in ("write", "unregister_producer"):
        if not callable(getattr(consumer, method, None)):
            raise TypeError(f"consumer must have a method {method}, and {given(consumer)} has none")
    return PushAdapter(source, consumer) if check_bool("streaming", streaming) else PullAdapter(source, consumer)


async def read_all(message: Message, crew: Crew, take: Callable[[Any], Awaitable[object]]) -> None:
    """Have *take* awaited with each chunk of *message*, whatever that gives for one, one a turn of the loop.

    To be run by `in_own_task`. Raises what *take* does, or what a delivery fails with whose source this is; the source
    is closed then.
    """
    source: Source = await answer_of(partial(source_of, message, crew))
    try:
        while not source.last and (chunk := await answer_of(source.read)) is not END:
            await take(chunk)
            await asyncio.sleep(0)  # neither need give the loop a turn
    finally:
        await _close(source)


async def _close(source: Source) -> None:
    """End what reading *source* began. What its code raises there must not replace what has been, nor be lost."""
    try:
        await answer_of(source.close)
    except Exception as exc:
        text = "a source raised as it was closed"
        asyncio.get_running_loop().call_exception_handler({"message": text, "exception": raised_by(exc)})


class PullAdapter:
    """A pull producer of a source."""

    def __init__(self, source: Source, consumer: Consumer) -> None:
        self._source = source
        self._consumer = consumer

    def resume_producing(self) -> Awaitable[object] | None:
        """Write the next chunk; an awaitable if that takes a wait."""
        if self._source.waits:
            return self._resume_later()
        _pass_on(self._source, self._source.read(), self._consumer)
        return None

    def stop_producing(self) -> Awaitable[object] | None:
        """Close what was opened by iterating: a generator, not a file."""
        return self._source.close()

    async def _resume_later(self) -> None:
        _pass_on(self._source, await self._source.read(), self._consumer)


class PushAdapter:
    """A push producer of a source: a task that goes on by itself, and can be paused."""

    def __init__(self, source: Source, consumer: Consumer) -> None:
        loop = asyncio.get_running_loop()
        self._source = source
        self._consumer = consumer
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._is_stopped = False
        self._is_told = False  # what its source has raised
        self._over: asyncio.Future[None] = UncancellableFuture(loop=loop)
        self._task = loop.create_task(self._produce())
        self._task.add_done_callback(self._produced)

    def pause_producing(self) -> None:
        """Write nothing more until resumed. A read that is under way goes on; its chunk is kept until then."""
        self._resumed.clear()

    def resume_producing(self) -> None:
        """Go on."""
        self._resumed.set()

    def stop_producing(self) -> Awaitable[object]:
        """Write nothing more ever; the awaitable is done when nothing reads from the source any more."""
        self._is_stopped = True
        self._task.cancel()
        return self._over

    async def _produce(self) -> None:
        try:
            ended = False
            await asyncio.sleep(0)  # let whoever made this register it, also where tasks start eagerly
            while not ended:
                chunk = await answer_of(self._source.read)
                await asyncio.sleep(0)  # neither of the others need give the loop a turn
                await self._resumed.wait()
                ended = _pass_on(self._source, chunk, self._consumer)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._is_told = self._is_stopped or self._tell(failure_of(exc))
            if goes_on(exc) or not self._is_told:
                raise
        finally:
            if self._is_stopped and (task := asyncio.current_task()) is not None:
                task.uncancel()  # heard: what closing waits for is not to be taken for it
            await _close(self._source)

    def _tell(self, exc: BaseException) -> bool:
        """Have the consumer fail with *exc*; return whether it is one that can be told."""
        fail = getattr(self._consumer, "fail", None)
        if fail is not None:
            fail(exc)
        return fail is not None

    def _produced(self, task: asyncio.Task[None]) -> None:
        self._over.set_result(None)
        if task.cancelled() and not self._is_stopped:
            self._tell(asyncio.CancelledError())  # with all tasks of its loop, perhaps before its first turn
        elif self._is_told and not task.cancelled():
            task.exception()  # a KeyboardInterrupt: nobody else retrieves it


def _pass_on(source: Source, chunk: Any, consumer: Consumer) -> bool:
    """Give *chunk*, or the end, to the consumer; return whether that was the end."""
    if source.size is not None:
        if (expect_size := getattr(consumer, "expect_size", None)) is not None:
            expect_size(source.size)
        source.size = None
    if chunk is not END and not is_nothing(chunk):
        consumer.write(chunk)
    if chunk is END or source.last:
        consumer.unregister_producer()
        return True
    return False
