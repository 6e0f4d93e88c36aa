"""Code of the caller: sources, producers, callbacks. How it is called, and what anything that it raises means.

::

    a MaildirError                            the delivery fails with it
    any other Exception, StopIteration and    the delivery fails with AppendError(stage="receive"), whose cause it is
    GeneratorExit too
    CancelledError, where nobody has          the same: it is a failure of whatever that code has waited for
    cancelled the task that it is raised in
    CancelledError otherwise                  the delivery is cancelled
    KeyboardInterrupt, SystemExit             the delivery fails as by an Exception, and the loop gets it as well

All of it runs in the context (`contextvars`) of whoever has started the delivery, however long that had to wait for
its place.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import anyio

from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.errors import AppendError, MaildirError
from maildir_async.format.given import given

__all__ = [
    "CallersContext",
    "answer_of",
    "failure_of",
    "fit_for_future",
    "goes_on",
    "in_own_task",
    "is_foreign",
    "raised_by",
]

P = ParamSpec("P")
T = TypeVar("T")


def failure_of(exc: BaseException) -> Exception:
    """Return what a delivery fails with when code of the caller has raised *exc*, which becomes the cause."""
    if isinstance(exc, MaildirError):
        return exc
    error = AppendError(
        f"the source raised {type(exc).__name__}: {exc}",
        stage="receive",
        errno=exc.errno if isinstance(exc, OSError) else None,
    )
    error.__cause__ = exc
    return error


def raised_by(exc: BaseException) -> BaseException:
    """Return what code of the caller has raised where *exc* is what a delivery fails with for that."""
    return exc.__cause__ if isinstance(exc, AppendError) and exc.__cause__ is not None else exc


def fit_for_future(exc: BaseException) -> BaseException:
    """Return *exc*, or what has it as its cause, if it is one that a future refuses or a loop takes for its own.

    TypeError for what is no exception.
    """
    if not isinstance(exc, BaseException):
        raise TypeError(f"exc must be an exception, not {given(exc)}")
    is_fit = isinstance(exc, (Exception, asyncio.CancelledError))
    return exc if is_fit and not isinstance(exc, StopIteration | StopAsyncIteration) else failure_of(exc)


def goes_on(exc: BaseException) -> bool:
    """Whether *exc* is the loop's concern too: asyncio lets it end `run_forever`."""
    return isinstance(exc, (KeyboardInterrupt, SystemExit))


def is_foreign(exc: BaseException) -> bool:
    """Whether *exc* is a CancelledError that is none: nobody has cancelled the running task, which is one of ours.

    A task of somebody else may have been cancelled long ago, and have gone on: its count says nothing.
    """
    task = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and not (task is not None and task.cancelling())


async def answer_of(call: Callable[[], object]) -> Any:
    """Return what *call*, code of the caller, returns, or what that comes to if it is awaitable.

    To be awaited in a task of ours. Raises `failure_of` what the code raises; CancelledError only if that task has been
    cancelled; KeyboardInterrupt and SystemExit as they are.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task(loop)
    try:
        answer = call()
        return (await answer) if inspect.isawaitable(answer) else answer
    except (KeyboardInterrupt, SystemExit, MaildirError):
        raise
    except asyncio.CancelledError as exc:
        if not is_foreign(exc):
            raise
        raise failure_of(exc) from exc
    except GeneratorExit as exc:
        if asyncio.current_task(loop) is not task:  # this coroutine is being thrown away, with its task and its loop
            raise
        raise failure_of(exc) from exc
    except BaseException as exc:
        raise failure_of(exc) from exc


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Return what *work*, in which code of the caller is run, comes to in a task of its own.

    So it can be told whether that has been cancelled: only with the caller of this, or with all tasks of its loop.
    Cancelling this cancels the task; it is over when this raises.
    """
    loop = asyncio.get_running_loop()
    over: UncancellableFuture[None] = UncancellableFuture(loop=loop)
    task = loop.create_task(work)
    task.add_done_callback(lambda _: over.set_result(None))
    interrupted: asyncio.CancelledError | None = None
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError as exc:
        interrupted = exc
    if interrupted is None:
        return task.result()
    # Not in the except clause: a second cancellation must not have the first as its context, by which anyio would take
    # it for its own.
    task.cancel()
    with anyio.CancelScope(shield=True):
        await over
    if not task.cancelled():
        task.exception()  # seen: the cancellation is what is told
    raise interrupted


class CallersContext:
    """The context of the task that this is made in, for code of the caller that is called on the loop."""

    __slots__ = ("_context", "_is_entered")

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._is_entered = False

    def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what *call* returns in that context. A task that it makes is in a copy of it."""
        if self._is_entered:  # a producer that writes is paused from inside its write
            return call(*args, **kwargs)
        self._is_entered = True
        try:
            return self._context.run(call, *args, **kwargs)
        finally:
            self._is_entered = False

    def show(self, loop: asyncio.AbstractEventLoop, display: Callable[[int], object], size: int) -> None:
        """Call *display*. It must cost nobody his mail, whatever it raises; a KeyboardInterrupt goes on to the loop."""
        try:
            self.run(display, size)
        except BaseException as exc:
            if goes_on(exc):
                raise
            loop.call_exception_handler({"message": "on_progress raised", "exception": exc})
