"""What it means that code of the user's has raised: a resolver, a hook, a delivery, a callback. Said here alone.

Nothing that such code raises may cost anybody but its own message an answer, nor a place among the pending deliveries.
"""

import asyncio
from types import TracebackType
from typing import Final

__all__ = ["ClientGoneError", "UserCodeError", "raising_trouble", "trouble", "trouble_of_callback"]


class ClientGoneError(asyncio.CancelledError):
    """A session's client has gone. aiosmtpd's loop ends by a CancelledError, and answers anything else."""


class UserCodeError(Exception):
    """Code of the user's has raised something that is no Exception; that is its cause."""


#: What ends the program, the session, or this very coroutine: nobody may hold it up.
_ENDS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit, ClientGoneError)


def trouble(raised: BaseException) -> Exception:
    """Return the trouble that awaited code is in which has *raised* this. It may heal, as all that nobody has foreseen.

    Raises it again if it is no trouble: the program is to end, or the running task, which has been cancelled. A
    CancelledError that comes while nobody has cancelled the task is that of something the code has waited for.
    """
    if isinstance(raised, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise raised
    return trouble_of_callback(raised)


def trouble_of_callback(raised: BaseException) -> Exception:
    """Return the trouble that code is in which was called, and not awaited: no cancellation can come through it."""
    if isinstance(raised, Exception):
        return raised
    if isinstance(raised, _ENDS):
        raise raised
    error = UserCodeError(f"{type(raised).__name__} was raised: {raised}")
    error.__cause__ = raised
    return error


class _RaisingTrouble:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if raised is not None and not isinstance(raised, Exception):
            error = trouble(raised)
            raise error from error.__cause__


_raising_trouble: Final = _RaisingTrouble()


def raising_trouble() -> _RaisingTrouble:
    """Around awaited code of the user's, for callers who know what to do with an Exception: `trouble` is raised."""
    return _raising_trouble
