"""An SMTP server whose 250 means stored: ``aiosmtpd_handler.py PORT MAILDIR``. Needs aiosmtpd."""

import asyncio
import signal
import sys

from aiosmtpd.smtp import SMTP, Envelope, Session

from maildir_async import Maildir, MaildirError


class MaildirHandler:
    def __init__(self, maildir: Maildir) -> None:
        self.maildir = maildir

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        try:
            await self.maildir.append(envelope.original_content)  # the bytes; content may have been decoded
        except MaildirError as exc:
            return exc.smtp_reply
        return "250 2.0.0 Stored"

    async def handle_exception(self, error: Exception) -> str:  # aiosmtpd's own is a 500 with the error's text
        return "451 4.3.0 Not stored, try again later"


async def main(port: int, path: str) -> None:
    loop, stop, handler = asyncio.get_running_loop(), asyncio.Event(), MaildirHandler(Maildir(path))
    server = await loop.create_server(lambda: SMTP(handler, hostname="localhost"), "127.0.0.1", port)
    print(*server.sockets[0].getsockname(), flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
