"""Calls into worker threads that nobody walks away from, and the worker-thread file handle of a stream."""

import asyncio
import contextlib
import importlib
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

from aiofiles.threadpool.binary import AsyncFileIO

from maildir_async.disk.threads import Crew
from maildir_async.disk.tmpfile import TmpFile

__all__ = ["UncancellableFuture", "open_handle", "run_in_thread"]

# anyio would import it when the first scope is made: by a cancellation, on the loop's thread, and perhaps when there is
# no descriptor left, or no such path any more.
importlib.import_module("anyio._backends._asyncio")

P = ParamSpec("P")
T = TypeVar("T")


class UncancellableFuture(asyncio.Future[T]):
    """A future that does not let a cancelled task go before it is done.

    A task that is cancelled while it awaits one gets its CancelledError when the future is done, however often it
    is cancelled: a thread cannot be interrupted, and must not be left to act after the call it acts for.
    """

    def cancel(self, msg: Any = None) -> bool:
        """Refuse."""
        return False


def run_in_thread(
    loop: asyncio.AbstractEventLoop, crew: Crew, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> UncancellableFuture[T]:
    """Have a thread of *crew* call *fn*, and return what awaits the outcome to the very end.

    The call is made even if the loop never runs again.
    """
    outcome: UncancellableFuture[T] = UncancellableFuture(loop=loop)

    def job() -> None:
        try:
            settle = partial(outcome.set_result, fn(*args, **kwargs))
        except StopIteration as exc:  # which no future takes
            settle = partial(outcome.set_exception, RuntimeError(f"StopIteration raised by {fn!r}: {exc}"))
        except BaseException as exc:
            settle = partial(outcome.set_exception, exc)
        # A closed loop has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle)

    crew.run(job)
    return outcome


class _Raw(io.RawIOBase):
    """The file below the handle: its writes go through the `Disk`, and are complete."""

    def __init__(self, tmpfile: TmpFile) -> None:
        super().__init__()
        self._tmpfile = tmpfile

    def writable(self) -> bool:
        return True

    def writelines(self, lines: Iterable[Any], /) -> None:
        for chunks in lines:
            self._tmpfile.write(chunks)


async def open_handle(tmpfile: TmpFile, crew: Crew) -> AsyncFileIO:
    """Create the file in ``tmp/`` and return an aiofiles handle to it, whose ``writelines`` is to be used: it takes
    sequences of chunks from an iterable, in its thread, and writes each.

    The handle owns neither file nor descriptor: `TmpFile.discard` or group commit ends them, and waits for a write
    that is still running in its thread when the task that awaited it is gone.
    """
    loop = asyncio.get_running_loop()

    await run_in_thread(loop, crew, tmpfile.create)
    return AsyncFileIO(cast("BinaryIO", _Raw(tmpfile)), loop, crew)
