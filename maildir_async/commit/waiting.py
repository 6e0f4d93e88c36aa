"""Calls into worker threads, and outcomes, that nobody walks away from."""

import asyncio
import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import anyio

from maildir_async.disk.threads import Crew

__all__ = ["UncancellableFuture", "run_in_thread", "until_done"]

P = ParamSpec("P")
T = TypeVar("T")

# The first CancelScope imports it: 40 ms of file I/O on the loop's thread, or an OSError without a spare descriptor.
importlib.import_module("anyio._backends._asyncio")


class UncancellableFuture(asyncio.Future[T]):
    """A future that does not let a cancelled task go before it is done.

    A task that is cancelled while it awaits one gets its CancelledError when the future is done, however often it
    is cancelled: a thread cannot be interrupted, and must not be left to act after the call it acts for.
    """

    def cancel(self, msg: Any = None) -> bool:
        """Refuse, and return False."""
        return False


async def until_done(future: asyncio.Future[T]) -> T:
    """Return what *future*, an uncancellable one, comes to, through cancellation of every kind, which is raised then.

    The shield keeps an anyio scope from cancelling anew in every turn of the loop; the future does not let a native
    `asyncio.Task.cancel` through before it is done.
    """
    with anyio.CancelScope(shield=True):
        await future
    return future.result()


def run_in_thread(
    loop: asyncio.AbstractEventLoop, crew: Crew, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> UncancellableFuture[T]:
    """Have a thread of *crew* call *fn*, and return what awaits its result to the very end.

    The call is made even if the loop never runs again.
    """
    result: UncancellableFuture[T] = UncancellableFuture(loop=loop)

    def job() -> None:
        try:
            settle = partial(result.set_result, fn(*args, **kwargs))
        except StopIteration as exc:  # which no future takes
            settle = partial(result.set_exception, RuntimeError(f"StopIteration raised by {fn!r}: {exc}"))
        except BaseException as exc:
            settle = partial(result.set_exception, exc)
        # A closed loop has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)

    crew.run(job)
    return result
