"""Twisted's maildir, on its asyncio reactor. It does all its work on the loop, and syncs nothing."""

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.kinds import WholeMessagesOnly
from benchmarks.workload import Workload


class Twisted(WholeMessagesOnly):
    """`MaildirMailbox.appendMessage`."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._paths = paths
        importlib.import_module("twisted.mail")  # fails here, and not on the loop, if it is not installed

    async def start(self) -> None:
        """Install the reactor on the running loop: it must be there before twisted.mail.maildir is imported."""
        self._loop = asyncio.get_running_loop()
        importlib.import_module("twisted.internet.asyncioreactor").install(self._loop)
        self._reactor: Any = importlib.import_module("twisted.internet.reactor")
        self._reactor.startRunning(installSignalHandlers=False)
        maildir: Any = importlib.import_module("twisted.mail.maildir")
        self._maildirs = [maildir.MaildirMailbox(path.encode()) for path in self._paths]

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        await self._maildirs[maildir].appendMessage(message).asFuture(self._loop)

    async def aclose(self) -> None:
        """End the reactor's threads; the loop is not its own to stop."""
        self._reactor.fireSystemEvent("shutdown")
