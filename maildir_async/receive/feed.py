"""The registered producer of one delivery: asked, paused, resumed and stopped as the contracts say.

On the loop's thread only. The contracts are at the top of `maildir_async.receive.producers`; what anything means that a
producer raises is said in `maildir_async.receive.user_code`.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from maildir_async.format.given import given
from maildir_async.format.options import check_bool
from maildir_async.receive.user_code import CallersContext, answer_of, failure_of, goes_on, raised_by

__all__ = ["Feed", "Receiver", "check_producer"]

#: Seconds between two questions to a pull producer that had nothing: at first, and at most.
NOTHING_YET_S: Final = (0.001, 0.05)


def check_producer(producer: object, streaming: bool) -> None:
    """Raise TypeError unless *producer* has the methods of one that pushes, if *streaming*, or of one that is asked."""
    check_bool("streaming", streaming)
    for method in ("resume_producing", "stop_producing", "pause_producing")[: 2 + streaming]:
        if not callable(getattr(producer, method, None)):
            raise TypeError(f"producer must have a method {method}, and {given(producer)} has none")


class Receiver(Protocol):
    """What takes what the producer writes: `maildir_async.receive.reception.Reception`."""

    received: int

    @property
    def has_room(self) -> bool:
        """Whether it can take more now."""
        ...

    def source_failed(self, exc: BaseException) -> None:
        """End the delivery: with what its source has raised, or as cancelled."""
        ...

    def quiet(self) -> None:
        """Called when a task has ended that code of the producer ran in."""
        ...


class Feed:
    """Drives one producer.

    Args:
        receiver: what the producer writes to.
        loop: the delivery's.
        context: what the producer's code is to run in.

    """

    def __init__(self, receiver: Receiver, loop: asyncio.AbstractEventLoop, context: CallersContext) -> None:
        self._receiver = receiver
        self._loop = loop
        self._context = context
        self.producer: Any = None
        self._streaming = False
        self._paused = False
        self._stopped = False
        self._asking: asyncio.Task[None] | None = None  # asks a pull producer
        self._begun = False  # whether that has had its first turn
        self._later: Any = None  # what that has been given to begin with
        self._room: asyncio.Future[None] | None = None  # what that waits for
        self._signals: asyncio.Task[None] | None = None  # pause, resume and stop calls that are async, one by one

    @property
    def busy(self) -> bool:
        """Whether code of the producer may still run in a task of this."""
        return self._asking is not None or self._signals is not None

    def register(self, producer: Any, streaming: bool) -> None:
        """Take *producer*, and ask it for its first chunk or slow it down. RuntimeError if there is one."""
        if self.producer is not None:
            raise RuntimeError(f"{given(self.producer)} is registered already")
        self.producer, self._streaming = producer, streaming
        if streaming:
            self.brake()
        else:
            self.prompt()

    def unregister(self) -> None:
        """Let go of the producer, which has no more."""
        self.producer = None

    def brake(self) -> None:
        """Pause a push producer if there is no room (any more)."""
        if self._streaming and not self._paused and self.producer is not None and not self._receiver.has_room:
            self._paused = True
            self._signal(self.producer.pause_producing)

    def prompt(self) -> None:
        """Resume a paused push producer, or ask a pull producer for more, if there is room (again)."""
        if self.producer is None or self._stopped or not self._receiver.has_room:
            return
        if self._streaming:
            if self._paused:
                self._paused = False
                self._signal(self.producer.resume_producing)
        elif self._room is not None:
            if not self._room.done():
                self._room.set_result(None)
        elif self._asking is None:
            self._ask_first(self.producer)

    def stop(self) -> None:
        """Have the producer stop, once, since the delivery has failed. What it still writes is ignored."""
        self._stopped = True
        if self._asking is None:
            if self.producer is not None:
                self.stop_other(self.producer)
        elif self._begun and self._asking is not asyncio.current_task(self._loop):
            self._asking.cancel()  # the producer is stopped there: in the task that all of its code has run in

    def stop_other(self, producer: Any) -> None:
        """Stop *producer*, which no task of this asks: a push producer, or one that comes too late."""
        self._stopped = True
        if self.producer is producer:
            self.producer = None
        self._signal(producer.stop_producing)

    # Asking a pull producer.

    def _ask_first(self, producer: Any) -> None:
        """Ask in the caller's own turn, as Twisted does: a short message is whole when `start` returns."""
        before = self._receiver.received
        try:
            later = self._context.run(producer.resume_producing)
        except BaseException as exc:
            self._raised(exc)
            return
        if self.producer is not producer and not inspect.isawaitable(later):
            return
        self._later = later
        asking = self._context.run(self._loop.create_task, self._ask_on(producer, before))
        if asking.done():  # eagerly, with nothing to wait for
            return
        self._asking = asking
        asking.add_done_callback(self._asked)

    async def _ask_on(self, producer: Any, before: int) -> None:
        """Ask for chunk after chunk, one a turn, while there is room and until the producer has unregistered.

        *before* is what had been received before the first question.
        """
        nothing_yet_s = 0.0
        self._begun = True
        later, self._later = self._later, None
        if self._stopped:
            _drop(later)
        ask: Callable[[], object] = lambda: later  # noqa: E731 the first answer, which is there
        try:
            while not self._stopped:
                await answer_of(ask)  # which need not wait for anything, and so may not give the loop a turn
                nothing_yet_s = self._next_pause(nothing_yet_s, before)
                if self._stopped or self.producer is not producer:
                    break
                await asyncio.sleep(nothing_yet_s)
                while not self._receiver.has_room:
                    self._room = self._loop.create_future()
                    try:
                        await self._room
                    finally:
                        self._room = None
                before = self._receiver.received
                ask = producer.resume_producing
        except asyncio.CancelledError as exc:
            if self._stopped and (task := asyncio.current_task(self._loop)) is not None:
                task.uncancel()  # by `stop`, and heard: what stopping waits for is not to be taken for it
            self._receiver.source_failed(exc)
        except BaseException as exc:
            self._raised(exc)
        if self._stopped and self.producer is producer:
            self.producer = None
            try:
                await answer_of(producer.stop_producing)
            except asyncio.CancelledError:
                raise
            except BaseException as exc:
                self._report(exc)

    def _next_pause(self, pause_s: float, received_before: int) -> float:
        """Return how long to leave a producer alone that wrote, or had nothing, when it was asked."""
        least, most = NOTHING_YET_S
        return 0.0 if self._receiver.received > received_before else min(max(least, 2 * pause_s), most)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        # Cancelled with the loop before its first turn, or ended by a KeyboardInterrupt: a chunk may be lost.
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None:
            _drop(self._later)
            self._receiver.source_failed(failure)
        self._receiver.quiet()

    # Telling it to pause, to go on or to stop.

    def _signal(self, method: Callable[[], object]) -> None:
        try:
            later = self._context.run(method)
        except BaseException as exc:
            self._signal_raised(exc)
            return
        if inspect.isawaitable(later):
            signalling = self._context.run(self._loop.create_task, self._signal_later(self._signals, later))
            if signalling.done():  # eagerly, with nothing to wait for
                return
            self._signals = signalling
            signalling.add_done_callback(partial(self._signalled, later))

    async def _signal_later(self, earlier: asyncio.Task[None] | None, later: Awaitable[object]) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            await answer_of(lambda: later)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            self._signal_raised(exc)

    def _signalled(self, later: Any, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            _drop(later)
        elif (exc := task.exception()) is not None:
            self._receiver.source_failed(exc)
        if self._signals is task:
            self._signals = None
            self._receiver.quiet()

    # What it raises.

    def _raised(self, exc: BaseException) -> None:
        self.producer = None  # a producer that raised is not stopped
        self._receiver.source_failed(failure_of(exc))
        if goes_on(exc):
            raise exc

    def _signal_raised(self, exc: BaseException) -> None:
        if self._stopped:
            self._report(exc)
        else:
            self._raised(exc)

    def _report(self, exc: BaseException) -> None:
        # The delivery has its reason to fail already; this one must not replace it, nor be lost.
        self._loop.call_exception_handler({"message": "stop_producing() raised", "exception": raised_by(exc)})
        if goes_on(exc):
            raise exc


def _drop(later: Any) -> None:
    """Let go of an awaitable that nobody is going to await."""
    if inspect.iscoroutine(later):
        later.close()
