"""The signals that end the command in good order."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

from maildir_async.command.answers import failed, wait_again, wait_no_longer

__all__ = ["SIGNALS", "run_until_signal"]

#: What ends the command in good order. Those that whoever started it has it ignore (nohup) stay ignored.
SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def run_until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run *work* in an event loop of its own, and return its exit code. A signal cancels it, and then it is 75."""
    try:
        return asyncio.run(_interruptible(work))
    finally:
        wait_again()


def _wait_no_longer(_number: int, _frame: object) -> None:
    wait_no_longer()


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(work)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            # The loop hears of a signal by its pipe, and not from Python's handler; that is called also while the loop
            # waits for those who read the output.
            signal.signal(number, _wait_no_longer)
            signal.siginterrupt(number, False)
    try:
        return await task
    except asyncio.CancelledError:
        return failed(os.EX_TEMPFAIL, "interrupted")
