"""An SMTP server whose 250 means stored, for one maildir or a template: ``aiosmtpd_handler.py PORT MAILDIR``."""

import argparse
import asyncio

from aiosmtpd.smtp import SMTP

from maildir_async.smtp import MaildirHandler


async def main(port: int, maildir: str) -> None:
    # Or "/var/mail/{domain}/{user}/Maildir": then a message is written once for all of its recipients.
    loop, handler = asyncio.get_running_loop(), MaildirHandler(maildir)
    server = await loop.create_server(lambda: SMTP(handler, hostname="localhost", loop=loop), "127.0.0.1", port)
    print(*server.sockets[0].getsockname(), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("maildir")
    options = parser.parse_args()
    asyncio.run(main(options.port, options.maildir))
