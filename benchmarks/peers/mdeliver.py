"""mblaze's mdeliver: a process for each message, which reads it from its standard input. Syncs the file."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.peers.kinds import WholeMessagesOnly
from benchmarks.workload import Workload


class Mdeliver(WholeMessagesOnly):
    """Started by as many threads as messages are in flight, which cost little beside the processes."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._paths = paths
        self._program = shutil.which("mdeliver") or "mdeliver"
        self._threads = ThreadPoolExecutor(workload.in_flight)

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._deliver_now, self._paths[maildir], message)

    async def aclose(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _deliver_now(self, path: str, message: bytes) -> None:
        stdin = os.memfd_create("message")
        try:
            os.write(stdin, message)
            os.lseek(stdin, 0, os.SEEK_SET)
            redirect = [(os.POSIX_SPAWN_DUP2, stdin, 0)]
            process = os.posix_spawn(self._program, ["mdeliver", path], os.environ, file_actions=redirect)
        finally:
            os.close(stdin)
        if os.waitpid(process, 0)[1]:
            raise RuntimeError(f"mdeliver {path} failed")
