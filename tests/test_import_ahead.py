"""What is read ahead of the storing of an import."""

import asyncio
from collections.abc import Awaitable

import pytest

from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.mail_import.ahead import READY_MESSAGES, Ahead
from maildir_async.mail_import.messages import Found
from maildir_async.mail_import.session import STEP_MESSAGES, Step


class _Source:
    """Steps that have come as soon as they are asked for; the one after *steps* of them fails."""

    def __init__(self, steps: int) -> None:
        self.asked = 0
        self._steps = steps
        self.ahead = Ahead(self._read, self._until, lambda step: None)

    def _read(self) -> "UncancellableFuture[Step]":
        self.asked += 1
        future = UncancellableFuture[Step](loop=asyncio.get_running_loop())
        if self.asked > self._steps:
            future.set_exception(OSError("cannot be read on"))
        else:
            message = Found("mbox", 0, (), "", (), None, b"x")
            future.set_result(Step([(message, b"")] * STEP_MESSAGES, 0, 0, is_last=False))
        return future

    async def _until(self, future: "Awaitable[Step]") -> Step:
        return await future


async def test_reading_goes_on_while_messages_are_ready() -> None:
    """Steps are taken in as they come, not first when none is ready, and no more than there is room for."""
    source = _Source(steps=100)
    for _ in range(8):
        await source.ahead.take()
    assert source.asked == READY_MESSAGES // STEP_MESSAGES + 1


async def test_a_failure_comes_after_what_was_read_before_it() -> None:
    """All that has been read is given out before reading's failure is raised."""
    source = _Source(steps=2)
    for _ in range(2 * STEP_MESSAGES):
        assert await source.ahead.take() is not None
    with pytest.raises(OSError, match="cannot be read on"):
        await source.ahead.take()
