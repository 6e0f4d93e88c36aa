"""How a delivery ends: one future, settled once, that nobody's cancellation ends before."""

import asyncio
from functools import partial
from typing import Any, Protocol

import anyio

from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.format.delivered import Delivered

__all__ = ["Ending"]


class Cancellable(Protocol):
    """The delivery."""

    def cancel(self) -> bool:
        """Abort it, if that can still be done."""
        ...


class Ending(asyncio.Future[Delivered]):
    """The outcome of a delivery, as a future. Cancelling it cancels the delivery, which settles it at its end."""

    def __init__(self, delivery: Cancellable, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._delivery: Cancellable | None = delivery
        self._notes: list[str] = []
        self._told = False

    def cancel(self, msg: Any = None) -> bool:
        """Have the delivery cancelled, which settles this when it has ended. Return False: it is not cancelled yet."""
        if self._delivery is not None:
            self._delivery.cancel()
        return False

    def tell(self) -> None:
        """Called where the failure, past or to come, is told otherwise: it is not reported as never retrieved."""
        self._told = True
        if self.done() and not self.cancelled():
            self.exception()

    def settle(self, outcome: Delivered | BaseException) -> None:
        """Have it end with *outcome*."""
        self._delivery = None  # the two would keep each other
        if isinstance(outcome, Delivered):
            self.set_result(outcome)
            return
        self._notes = getattr(outcome, "__notes__", [])
        if isinstance(outcome, asyncio.CancelledError):
            super().cancel("; ".join(self._notes) or None)
            return
        self.set_exception(outcome)
        if self._told:
            self.exception()

    async def outcome(self) -> Delivered:
        """Return the outcome, or raise it, when it is there.

        A cancellation of any kind cancels the delivery, waits for its end, and is raised whatever that is.
        """
        interrupted: asyncio.CancelledError | None = None
        if not self.done():
            try:
                await self._waiter()
            except asyncio.CancelledError as exc:
                interrupted = exc
            except GeneratorExit:  # thrown away, with its loop
                self.tell()
                self.cancel()
                raise
        if interrupted is None:
            try:
                return self.result()
            except asyncio.CancelledError as exc:
                self._note(exc)
                raise
        # Not in the except clause: a second cancellation must not have the first as its context, by which anyio
        # would take it for its own.
        self.tell()  # before the wait, which may end with the loop
        self.cancel()
        await self.settled()
        self._note(interrupted)
        raise interrupted

    def _waiter(self) -> asyncio.Future[None]:
        """Return a future that is done when this is, and may be cancelled before."""
        waiter: asyncio.Future[None] = self.get_loop().create_future()
        self.add_done_callback(partial(_wake, waiter))
        return waiter

    async def settled(self) -> None:
        """Return when it is settled, through cancellation of every kind.

        The shield keeps an anyio scope from cancelling anew in every turn of the loop; the future does not let a
        native `asyncio.Task.cancel` through before it is done.
        """
        if not self.done():
            over: UncancellableFuture[None] = UncancellableFuture(loop=self.get_loop())
            self.add_done_callback(lambda _: over.set_result(None))
            with anyio.CancelScope(shield=True):
                await over

    def _note(self, exc: asyncio.CancelledError) -> None:
        """Say in *exc*, which is raised for it, what has been left behind."""
        for note in self._notes:
            exc.add_note(note)


def _wake(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)
