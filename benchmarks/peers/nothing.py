"""The loop with nothing delivered: what its lag is anyway."""

import asyncio
from collections.abc import Sequence

from benchmarks.peers.kinds import WholeMessagesOnly
from benchmarks.workload import Workload


class Nothing(WholeMessagesOnly):
    """Sleeps until the time is up."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._seconds = workload.seconds

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Store nothing, slowly."""
        await asyncio.sleep(self._seconds)
