"""The event loops of a storm: each takes so many turns as it is told, in a thread of its own or in the caller's."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from anyio._backends._asyncio import _task_states

__all__ = ["Loop", "rest", "turns"]


class Loop:
    """An event loop that runs only while it is told to.

    Args:
        apart: whether it has a thread of its own.
        trouble: where what it reports goes.

    """

    def __init__(self, trouble: list[str], *, apart: bool) -> None:
        self._trouble = trouble
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if apart:
            self._thread = threading.Thread(target=self._work, name="storm-loop", daemon=True)
            self._thread.start()
        self.loop = self._new()

    def _new(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(self._report)
        return loop

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        self._trouble.append(f"the loop was told: {context.get('message')}{f': {exc!r}' if exc is not None else ''}")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            failure: BaseException | None = None
            try:
                job()
            except BaseException as exc:
                failure = exc
            del job
            self._done.put(failure)

    def begin(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have it run *coroutine*, and nothing after that. In the caller's thread that is done on return."""

        def job() -> None:
            self.loop.run_until_complete(coroutine())

        if self._thread is None:
            job()
        else:
            self._jobs.put(job)

    def end(self) -> None:
        """Wait for what `begin` has begun."""
        if self._thread is not None and (failure := self._done.get(timeout=60)) is not None:
            raise failure

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Have *coroutine* run in its turns."""
        return self.loop.create_task(coroutine)

    def vanish(self) -> None:
        """Close it, with all that is on it, and have another take its place."""
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is the very thing
            _task_states.pop(task, None)  # anyio keeps what is in a scope when its loop vanishes, for good
        self.loop.close()
        self.loop = self._new()

    def close(self) -> None:
        """End it, and its thread: nothing may be left on it."""
        if not self.loop.is_closed():
            for task in asyncio.all_tasks(self.loop):
                self._trouble.append(f"a task is left: {task!r}")
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            self.begin(self.loop.shutdown_asyncgens)
            self.end()
            self.loop.close()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(60)
            self._thread = None


async def turns(count: int) -> None:
    """Take so many turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def rest(seconds: float) -> None:
    """Take turns for a while."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(seconds)
