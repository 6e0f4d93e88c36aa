"""A mail server on aiosmtpd, as one would write it, that can tell how its loop fares.

    python -m benchmarks.mailserver KIND WORKLOAD-AS-JSON DIRECTORY SOCKET

The maildirs are DIRECTORY/0, DIRECTORY/1, ... and exist. "begin" on standard input is answered by "begun", and "end" by
one JSON object: fields of `Measurement`. Ends with its input.
"""

import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from aiosmtpd.handlers import Mailbox, Sink
from aiosmtpd.smtp import SMTP

from benchmarks.drive import LAG_SLEEP_S
from benchmarks.workload import Workload, percentiles
from maildir_async import Durability
from maildir_async.smtp import MaildirHandler, StreamingSMTP

__all__: list[str] = []


class Discard:
    """A handler for the streaming classes that takes everything and keeps nothing: the protocol alone."""

    async def open_delivery(self, server: Any, session: Any, envelope: Any, **options: Any) -> "Discard":
        """Return a delivery, which is itself: there is nothing to tell them apart."""
        return self

    async def send(self, chunk: bytes) -> None:
        """Forget *chunk*."""

    def fail(self, reply: str) -> None:
        """Nothing could be kept anyway."""

    async def finish(self) -> list[str]:
        """Say that all is well."""
        return ["250 2.0.0 OK"]

    def abort(self) -> None:
        """Nothing is left behind."""


def ours(root: str, workload: Workload) -> MaildirHandler:
    """Return our handler, for the maildirs of *workload*."""
    durability = Durability(workload.durability)
    if workload.maildirs == 1:
        return MaildirHandler(f"{root}/0", durability=durability)
    users = {f"{number}@example.org": f"{root}/{number}" for number in range(workload.maildirs)}
    return MaildirHandler(users, durability=durability)


#: A session of each kind, given its handler; and that, given the directory and the workload.
KINDS: Final[dict[str, tuple[Callable[..., Any], Callable[[str, Workload], Any]]]] = {
    "streaming": (StreamingSMTP, ours),
    "streaming-sink": (StreamingSMTP, lambda _root, _workload: Discard()),
    "stock": (SMTP, ours),
    "mailbox": (SMTP, lambda root, _workload: Mailbox(f"{root}/0")),  # type: ignore[arg-type]  # takes any path
    "sink": (SMTP, lambda _root, _workload: Sink()),
}


class Lag:
    """Looks how late the loop wakes a coroutine that sleeps a millisecond, and how late it does so at worst."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            asked = time.perf_counter()
            try:
                await asyncio.sleep(LAG_SLEEP_S)
            finally:  # also when that is cancelled: the loop may have been late to get there
                self.seen.append(time.perf_counter() - asked - LAG_SLEEP_S)


async def serve(kind: str, workload: Workload, root: str, socket: str) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    session, handler = KINDS[kind][0], KINDS[kind][1](root, workload)
    server = await loop.create_unix_server(
        lambda: session(handler, hostname="localhost", data_size_limit=None, loop=loop),
        socket,
        backlog=max(100, workload.in_flight),
    )
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    lag, watching = Lag(), None
    while command := await commands.readline():
        if command == b"begin\n":
            gc.collect()
            watching = asyncio.create_task(lag.watch()) if workload.lag else None
            answer = "begun"
        else:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            answer = json.dumps(
                {
                    "lag_ms": percentiles(lag.seen, 1e3),
                    "threads": threading.active_count(),
                    "descriptors": len(os.listdir("/proc/self/fd")) - 1,
                }
            )
        print(answer, flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Workload.from_json(sys.argv[2]), sys.argv[3], sys.argv[4]))
