"""The registered producer of one delivery: asked, paused, resumed and stopped as the contracts say.

On the loop's thread only. The contracts are at the top of `maildir_async.receive.producers`.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

__all__ = ["Feed"]

#: Seconds between two questions to a pull producer that had nothing: at first, and at most.
NOTHING_YET_S: Final = (0.001, 0.05)


class Feed:
    """Drives one producer.

    Args:
        loop: the delivery's.
        has_room: whether the delivery can take more now.
        received: how many bytes it has taken.
        failed: told what the producer raised, or that its task was cancelled.
        quiet: told whenever a task of this has ended.

    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        has_room: Callable[[], bool],
        received: Callable[[], int],
        failed: Callable[[BaseException], object],
        quiet: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._has_room = has_room
        self._received = received
        self._failed = failed
        self._quiet = quiet
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
            raise RuntimeError(f"{self.producer!r} is registered already")
        self.producer, self._streaming = producer, streaming
        if streaming:
            self.brake()
        else:
            self.prompt()

    def unregister(self) -> None:
        """The producer has no more."""
        self.producer = None

    def brake(self) -> None:
        """Pause a push producer if there is no room (any more)."""
        if self._streaming and not self._paused and self.producer is not None and not self._has_room():
            self._paused = True
            self._signal(self.producer.pause_producing)

    def prompt(self) -> None:
        """There is room (again): resume a paused push producer, ask a pull producer for more."""
        if self.producer is None or self._stopped or not self._has_room():
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
        """The delivery has failed: have the producer stop, once. What it still writes is ignored."""
        self._stopped = True
        if self._asking is None:
            if self.producer is not None:
                self.stop_other(self.producer)
        elif self._begun and self._asking is not asyncio.current_task(self._loop):
            self._asking.cancel()  # the producer is stopped there: in the task that all of its code has run in

    def forget(self) -> None:
        """The delivery is over. Let go of it: the two would keep each other until the garbage collector comes."""
        self._has_room = bool
        self._received = int
        self._failed = id
        self._quiet = int

    def stop_other(self, producer: Any) -> None:
        """Stop *producer*, which no task of this asks: a push producer, or one that comes too late."""
        self._stopped = True
        if self.producer is producer:
            self.producer = None
        self._signal(producer.stop_producing)

    def _ask_first(self, producer: Any) -> None:
        """Ask in the caller's own turn, as Twisted does: a short message is whole when `start` returns."""
        try:
            later = producer.resume_producing()
        except Exception as exc:
            self._raised(exc)
            return
        if self.producer is producer or inspect.isawaitable(later):
            self._later = later
            self._asking = self._loop.create_task(self._ask_on(producer))
            if self._asking.done():  # eagerly, with nothing to wait for
                self._asking = None
            else:
                self._asking.add_done_callback(self._asked)

    async def _ask_on(self, producer: Any) -> None:
        """Ask for chunk after chunk, one a turn, while there is room and until the producer has unregistered."""
        nothing_yet_s = 0.0
        self._begun = True
        later, self._later = self._later, None
        if self._stopped:
            _drop(later)
        try:
            while not self._stopped:
                before = self._received()
                if inspect.isawaitable(later):
                    await later  # which need not wait for anything, and so may not give the loop a turn
                    nothing_yet_s = self._next_pause(nothing_yet_s, before)
                if self._stopped or self.producer is not producer:
                    break
                await asyncio.sleep(nothing_yet_s)
                while not self._has_room():
                    self._room = self._loop.create_future()
                    try:
                        await self._room
                    finally:
                        self._room = None
                before = self._received()
                later = producer.resume_producing()
                if not inspect.isawaitable(later):
                    nothing_yet_s = self._next_pause(nothing_yet_s, before)
        except asyncio.CancelledError as exc:
            self._failed(exc)
        except Exception as exc:
            self._raised(exc)
        if self._stopped and self.producer is producer:
            self.producer = None
            try:
                stopping = producer.stop_producing()
                if inspect.isawaitable(stopping):
                    await stopping
            except Exception as exc:
                self._report(exc)

    def _next_pause(self, pause_s: float, received_before: int) -> float:
        """Return how long to leave a producer alone that wrote, or had nothing, when it was asked."""
        least, most = NOTHING_YET_S
        return 0.0 if self._received() > received_before else min(max(least, 2 * pause_s), most)

    def _raised(self, exc: Exception) -> None:
        self.producer = None  # a producer that raised is not stopped
        self._failed(exc)

    def _signal(self, method: Callable[[], object]) -> None:
        try:
            later = method()
        except Exception as exc:
            self._signal_raised(exc)
            return
        if inspect.isawaitable(later):
            self._signals = self._loop.create_task(self._signal_later(self._signals, later))
            self._signals.add_done_callback(partial(self._signalled, later))

    async def _signal_later(self, earlier: asyncio.Task[None] | None, later: Awaitable[object]) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            await later
        except Exception as exc:
            self._signal_raised(exc)

    def _signal_raised(self, exc: Exception) -> None:
        if self._stopped:
            self._report(exc)
        else:
            self._raised(exc)

    def _report(self, exc: Exception) -> None:
        # The delivery has its reason to fail already; this one must not replace it, nor be lost.
        self._loop.call_exception_handler({"message": "stop_producing() raised", "exception": exc})

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        # Cancelled with the loop before its first turn, or ended by a KeyboardInterrupt: a chunk may be lost.
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is not None:
            _drop(self._later)
            self._failed(failure)
        self._quiet()

    def _signalled(self, later: Any, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            _drop(later)
        elif (exc := task.exception()) is not None:
            self._failed(exc)
        if self._signals is task:
            self._signals = None
            self._quiet()


def _drop(later: Any) -> None:
    """Let go of an awaitable that nobody is going to await."""
    if inspect.iscoroutine(later):
        later.close()
