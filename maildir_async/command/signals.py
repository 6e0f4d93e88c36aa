"""The signals that end the command in good order."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

from maildir_async.command.answers import failed

__all__ = ["SIGNALS", "run_until_signal"]

#: What ends the command in good order. Those that whoever started it has it ignore (nohup) stay ignored.
SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def run_until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run *work* in an event loop of its own, and return its exit code. A signal cancels it, and then it is 75."""
    return asyncio.run(_interruptible(work))


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(work)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return failed(os.EX_TEMPFAIL, "interrupted")
