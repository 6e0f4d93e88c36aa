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
import inspect
from collections.abc import Awaitable
from typing import Any, Protocol, runtime_checkable

from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.errors import AppendError, MaildirError
from maildir_async.receive.sources import BytesLike, Source, check_chunk, source_of

__all__ = ["Consumer", "PullProducer", "PushProducer", "as_producer", "source_error"]


class Consumer(Protocol):
    """What takes the bytes. `maildir_async.AppendTask` is one.

    A consumer may also have ``fail(exc)``, told when a push adapter's source raises, and ``expect_size(size)``,
    told when the size is known before the first byte.
    """

    def register_producer(self, producer: Any, streaming: bool) -> None:
        """Take chunks from *producer*: a push producer if *streaming*. RuntimeError if there is one already."""
        ...

    def unregister_producer(self) -> None:
        """End the message."""
        ...

    def write(self, data: BytesLike) -> None:
        """Take a chunk. Never waits; may call the producer's ``pause_producing``."""
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


def as_producer(message: Any, consumer: Consumer, *, streaming: bool = False) -> "PullAdapter | PushAdapter":
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
    source = source_of(message)
    return PushAdapter(source, consumer) if streaming else PullAdapter(source, consumer)


def source_error(exc: BaseException) -> BaseException:
    """Return what a delivery fails with when its source has raised *exc*, which becomes the cause.

    A TypeError about a chunk, and what this package raises itself, say all there is to say.
    """
    if isinstance(exc, (MaildirError, TypeError)):
        return exc
    error = AppendError(
        f"the source raised {type(exc).__name__}: {exc}",
        stage="receive",
        errno=exc.errno if isinstance(exc, OSError) else None,
    )
    error.__cause__ = exc
    return error


class PullAdapter:
    """A pull producer of a source."""

    def __init__(self, source: Source, consumer: Consumer) -> None:
        self._source = source
        self._consumer = consumer

    def resume_producing(self) -> Awaitable[object] | None:
        """Write the next chunk; an awaitable if that takes a wait."""
        chunk = self._source.read()
        if inspect.isawaitable(chunk):
            return self._resume_later(chunk)
        _pass_on(self._source, chunk, self._consumer)
        return None

    def stop_producing(self) -> Awaitable[object] | None:
        """Close what was opened by iterating: a generator, not a file."""
        return self._source.close()

    async def _resume_later(self, chunk: Awaitable[BytesLike | None]) -> None:
        _pass_on(self._source, await chunk, self._consumer)


class PushAdapter:
    """A push producer of a source: a task that goes on by itself, and can be paused."""

    def __init__(self, source: Source, consumer: Consumer) -> None:
        loop = asyncio.get_running_loop()
        self._source = source
        self._consumer = consumer
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._over: asyncio.Future[None] = UncancellableFuture(loop=loop)
        self._task = loop.create_task(self._produce())
        self._task.add_done_callback(lambda _: self._over.set_result(None))

    def pause_producing(self) -> None:
        """Write nothing more until resumed. A read that is under way goes on; its chunk is kept until then."""
        self._resumed.clear()

    def resume_producing(self) -> None:
        """Go on."""
        self._resumed.set()

    def stop_producing(self) -> Awaitable[object]:
        """Write nothing more ever; the awaitable is done when nothing reads from the source any more."""
        self._task.cancel()
        return self._over

    async def _produce(self) -> None:
        try:
            ended = False
            await asyncio.sleep(0)  # let whoever made this register it, also where tasks start eagerly
            while not ended:
                chunk = self._source.read()
                if inspect.isawaitable(chunk):
                    chunk = await chunk
                await asyncio.sleep(0)  # neither of the others need give the loop a turn
                await self._resumed.wait()
                ended = _pass_on(self._source, chunk, self._consumer)
        except Exception as exc:
            fail = getattr(self._consumer, "fail", None)
            if fail is None:
                raise
            fail(source_error(exc))
        finally:
            if (closing := self._source.close()) is not None:
                await closing


def _pass_on(source: Source, chunk: BytesLike | None, consumer: Consumer) -> bool:
    """Give *chunk*, or the end, to the consumer; return whether that was the end."""
    if source.size is not None:
        if (expect_size := getattr(consumer, "expect_size", None)) is not None:
            expect_size(source.size)
        source.size = None
    if chunk is not None and check_chunk(chunk) and len(chunk):
        consumer.write(chunk)
    if chunk is None or source.last:
        consumer.unregister_producer()
        return True
    return False
