"""The helper process itself: takes messages over its connections, and has them committed by a queue of its own.

It ends when the process it works for closes the control connection or is gone: what is whole is finished first, what
is not is discarded. It ignores the signals that end a program from its terminal: that is up to the one it works for.
"""

import asyncio
import os
import socket
from typing import Any, Final

from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import PosixDisk
from maildir_async.helper.connection import Connection
from maildir_async.helper.interpreter import ignore_terminal
from maildir_async.helper.work import Work

__all__ = ["main", "serve"]

#: Seconds between two looks whether that process is still there, where the system does not tell.
PARENT_S: Final = 1.0


def main(told: dict[str, Any]) -> None:
    """Serve until the work is over."""
    ignore_terminal()
    control = socket.socket(fileno=told["control"])
    asyncio.run(serve(control, told["parent"], PosixDisk(), syncfs=told["syncfs"]))


async def serve(control: socket.socket, parent: int, disk: Disk, *, syncfs: bool) -> None:
    """Take connections that come over *control*, and serve them until that is closed, or process *parent* gone."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    work = Work(loop, disk, syncfs=syncfs)
    connections: list[Connection] = []

    def connect() -> None:
        try:
            data, fds, _, _ = socket.recv_fds(control, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        connections[:] = [connection for connection in connections if not connection.is_over]
        connections.extend(Connection(work, socket.socket(fileno=fd)) for fd in fds)
        if not data:
            loop.remove_reader(control)
            over.set()

    control.setblocking(False)
    loop.add_reader(control, connect)
    watch = asyncio.ensure_future(_until_gone(parent, over))
    await over.wait()
    watch.cancel()
    for connection in connections:
        connection.end()
    for connection in connections:
        await connection.idle()


async def _until_gone(parent: int, over: asyncio.Event) -> None:
    """Set *over* when process *parent* is gone: a fork of it may hold a copy of the control connection."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(parent)
    except (AttributeError, OSError):  # not Linux, or it is gone already
        while os.getppid() == parent:  # noqa: ASYNC110 there is nothing that could set an event
            await asyncio.sleep(PARENT_S)
    else:
        if os.getppid() == parent:
            gone = asyncio.Event()
            loop.add_reader(pidfd, gone.set)
            await gone.wait()
            loop.remove_reader(pidfd)
    over.set()
