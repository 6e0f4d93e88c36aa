"""Other processes of a storm: forked children that deliver, tell of each message on a pipe, and may be killed."""

import asyncio
import contextlib
import os
import select
import signal
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable, Sequence

from maildir_async import Delivered

from .deliveries import EITHER, Message, told

__all__ = ["Child"]

#: Seconds that a child gets. One that hangs is at fault.
_PATIENCE_S = 20


class Child:
    """A forked process that delivers *messages* one after another, and ends without clearing up.

    Args:
        messages: what it delivers.
        box: to which maildir.
        deliver: delivers one of them, in the child.

    Attributes:
        pid: its process id.
        verdicts: what must be true of each message, once it is over.
        faults: what went wrong with the process itself.

    """

    def __init__(
        self, messages: Sequence[Message], box: int, deliver: Callable[[Message], Awaitable[Delivered]]
    ) -> None:
        self.box = box
        self.messages = messages
        self.verdicts = {message.number: EITHER for message in messages}
        self.faults = list[str]()
        self.was_killed = False
        self._is_over = False
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads, which is the point
            self.pid = os.fork()
        if self.pid == 0:
            _run(messages, writer, deliver)
        os.close(writer)

    @property
    def is_over(self) -> bool:
        """Whether it has been waited for."""
        return self._is_over

    def kill(self) -> None:
        """Kill it, wherever it is."""
        if not self._is_over:
            self.was_killed = True
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> None:
        """Wait for its end, and hear what it had to tell."""
        if self._is_over:
            return
        deadline = time.monotonic() + _PATIENCE_S
        said = b""
        while True:
            ready, _, _ = select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.faults.append("a child hangs")
                os.kill(self.pid, signal.SIGKILL)
                self.was_killed = True
                break
            piece = os.read(self._reader, 65536)
            if not piece:
                break
            said += piece
        os.close(self._reader)
        status = os.waitpid(self.pid, 0)[1]
        self._is_over = True
        for line in said.decode().splitlines():
            number, _, verdict = line.partition(" ")
            self.verdicts[int(number)] = verdict
        if status and not self.was_killed:
            self.faults.append(f"a child failed with status {status}")


def _run(messages: Sequence[Message], writer: int, deliver: Callable[[Message], Awaitable[Delivered]]) -> None:
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(2 * _PATIENCE_S)

        async def each() -> None:
            for message in messages:
                outcome: object
                try:
                    outcome = await deliver(message)
                except Exception as exc:
                    outcome = exc
                os.write(writer, f"{message.number} {told(outcome)}\n".encode())  # shorter than PIPE_BUF

        asyncio.run(each())
        status = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(status)
