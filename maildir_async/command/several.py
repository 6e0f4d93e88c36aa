"""Several FILEs: delivered at once, so that they share their syncs."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from maildir_async.command.outcomes import Outcome, Outcomes
from maildir_async.command.sources import Found, close, is_open, read_ahead

__all__ = ["deliver_each"]

#: Short FILEs in hand, as `append_many` has them by default; each has up to 512 KiB in memory.
SHORT: Final = 64

#: Long FILEs in hand. Each has two open files, and up to 1 MiB in memory; more of them write a disk no faster.
LONG: Final = 8

#: FILEs that a thread reads before it says so. Arbitrary: one in four of those in hand.
AHEAD: Final = 16

#: What a FILE was found to be; None for what has not been looked at.
Source = Found | None

#: Delivers a FILE by its name and its source.
Deliver = Callable[[str, Source], Awaitable[Outcome]]


async def deliver_each(names: Sequence[str], deliver: Deliver, outcomes: Outcomes) -> None:
    """Deliver each of *names* by *deliver*, and have *outcomes* know each outcome.

    What is no regular file (a pipe, a terminal) is read in its turn, since another of *names* may be the same; those
    before it may still be on their way to the disk. The first of *names* goes alone: a signal that comes while it is
    published finds that no other has been begun.

    If this is cancelled, no further one is begun, what is being received is aborted, and what group commit has begun
    with is waited for. Then *outcomes* has all that was delivered, and the cancellation is raised.
    """
    async with asyncio.TaskGroup() as group:
        hands = _Hands(group, names, deliver, outcomes)
        number = 0
        while number < len(names):
            found = await read_ahead(names[number : number + AHEAD]) if number else []
            if not found:
                await hands.deliver(number, None)
                if (this := asyncio.current_task()) is not None and this.cancelling():
                    raise asyncio.CancelledError  # by a signal that came too late for this one
                number += 1
            elif not (_lacks_descriptors(found[0]) and await hands.one_less()):
                await hands.take(number, found)
                number += len(found)


class _Hands:
    """The FILEs that are being delivered."""

    def __init__(self, group: asyncio.TaskGroup, names: Sequence[str], deliver: Deliver, outcomes: Outcomes) -> None:
        self._group = group
        self._names = names
        self._deliver = deliver
        self._outcomes = outcomes
        self._short = asyncio.Semaphore(SHORT)
        self._long = asyncio.Semaphore(LONG)
        self._tasks: set[asyncio.Task[None]] = set()

    async def deliver(self, number: int, source: Source) -> None:
        """Deliver one."""
        self._outcomes.add(number, await self._deliver(self._names[number], source))

    async def take(self, number: int, found: Sequence[Found]) -> None:
        """Begin with what has been *found* for FILEs from *number* on, each when there is a hand for it."""
        try:
            for source in found:
                places = self._long if is_open(source) else self._short
                await places.acquire()
                task = self._group.create_task(self.deliver(number, source))
                self._tasks.add(task)
                task.add_done_callback(partial(self._done, places, source))
                number += 1
        except BaseException:
            close(found[-1])
            raise

    def _done(self, places: asyncio.Semaphore, source: Found, task: "asyncio.Task[None]") -> None:
        places.release()
        self._tasks.discard(task)
        close(source)

    async def one_less(self) -> bool:
        """Wait until one of them is settled; return whether there was one."""
        if not self._tasks:
            return False
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        return True


def _lacks_descriptors(found: Found) -> bool:
    return isinstance(found, OSError) and found.errno in (errno.EMFILE, errno.ENFILE)
