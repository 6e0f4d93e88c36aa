"""The processes that the main process forks, and what is told of their ends."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from maildir_async.daemon.log import Log

__all__ = ["Child", "how_ended", "tell_threads_failures"]


@dataclass(slots=True)
class Child:
    """A process that there is to be, always."""

    name: str
    run: Callable[[], int]
    slot: int | None = None  # of a worker
    pid: int | None = None
    born_at: float = 0.0
    delay_s: float = 0.0
    not_before: float = 0.0
    fields: dict[str, object] = field(default_factory=dict[str, object])


def how_ended(status: int) -> dict[str, object]:
    """Return by what signal a process has ended, or with which exit code, as fields of an event."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"signal": next((known.name for known in signal.Signals if known == number), str(number))}
    return {"exit_code": os.waitstatus_to_exitcode(status)}


def tell_threads_failures(log: Log) -> None:
    """Have an exception that ends a thread of this process become a line of the log."""

    def tell(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread is not None else None
        log.event("error", "thread_failed", thread=name, error=f"{args.exc_type.__name__}: {args.exc_value}")

    threading.excepthook = tell
