"""aiosmtpd's own Mailbox handler, called as its server calls it, without the protocol around it."""

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.peers.kinds import WholeMessagesOnly
from benchmarks.workload import Workload


class Handler(WholeMessagesOnly):
    """`handle_DATA`: parses the message, adds three header lines, and calls `mailbox.Maildir.add`, all on the loop."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        handlers: Any = importlib.import_module("aiosmtpd.handlers")
        smtp: Any = importlib.import_module("aiosmtpd.smtp")
        self._handlers = [handlers.Mailbox(path) for path in paths]
        self._envelope = smtp.Envelope
        self._session = smtp.Session(None)
        self._session.peer = ("127.0.0.1", 25)

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        envelope = self._envelope()
        envelope.mail_from, envelope.rcpt_tos, envelope.content = "a@example.org", ["b@example.org"], message
        status = await self._handlers[maildir].handle_DATA(None, self._session, envelope)
        if status != "250 OK":
            raise RuntimeError(status)
        await asyncio.sleep(0)  # or no other coroutine would ever run
