"""Messages as they become visible, whoever delivers them: `maildir_async.Maildir.watch`."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from maildir_async.disk.directories import Directories
from maildir_async.format.given import given
from maildir_async.format.options import check_bool
from maildir_async.mailbox.lookout import Lookout, WatchedMessage

__all__ = ["WatchedMessage", "check_poll", "watch_messages"]

T = TypeVar("T")


class InThread(Protocol):
    """Has a worker thread make a call, which is waited for through any cancellation."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]: ...


def check_poll(poll_s: Any) -> float:
    """Return *poll_s* as seconds; TypeError or ValueError for what is none."""
    if isinstance(poll_s, bool) or not isinstance(poll_s, int | float):
        raise TypeError(f"poll_s must be a number of seconds, not {given(poll_s)}")
    if not 0 < poll_s < math.inf:
        raise ValueError(f"poll_s must be more than 0, not {given(poll_s)}")
    return float(poll_s)


def watch_messages(
    directories: Directories, folder: str | None, in_thread: InThread, *, existing: bool, poll_s: float
) -> AsyncGenerator[WatchedMessage, None]:
    """Return what yields the messages of a maildir or folder: `maildir_async.Maildir.watch` says which, and how.

    TypeError and ValueError for options that are none. Nothing is touched before the first message is asked for.
    """
    check_bool("existing", existing)
    lookout = Lookout(directories, folder, existing=existing, poll_s=check_poll(poll_s))
    return _watch(lookout, in_thread)


async def _watch(lookout: Lookout, in_thread: InThread) -> AsyncGenerator[WatchedMessage, None]:
    try:
        while True:
            for message in await in_thread(lookout.look):
                yield message
            if not lookout.has_more:
                await _readable(lookout.fd, lookout.patience_s)
    finally:
        await in_thread(lookout.close)


async def _readable(fd: int | None, timeout_s: float) -> None:
    """Wait until *fd* can be read, or the time is up."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not woken.done():
            woken.set_result(None)

    timer = loop.call_later(timeout_s, wake)
    try:
        if fd is not None:
            loop.add_reader(fd, wake)
        await woken
    finally:
        timer.cancel()
        if fd is not None:
            loop.remove_reader(fd)
