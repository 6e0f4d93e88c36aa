"""An LMTP server that streams to the disk: ``lmtp_daemon.py PORT TEMPLATE``, with ``{user}`` and ``{domain}``.

``maildir-async serve`` is this with worker processes, reloading, limits, logs and metrics.
"""

import argparse
import asyncio
import signal
import sys

from maildir_async.smtp import Layout, MaildirHandler, Receipt, StreamingLMTP


def log(receipt: Receipt) -> None:
    print(receipt.address, receipt.size, receipt.reply, file=sys.stderr)


async def main(port: int, template: str) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    handler = MaildirHandler(Layout(template, create=True), on_receipt=log)
    server = await loop.create_server(
        lambda: StreamingLMTP(handler, hostname="localhost", data_size_limit=100 * 2**20), "127.0.0.1", port
    )
    print(*server.sockets[0].getsockname(), flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("template")
    options = parser.parse_args()
    asyncio.run(main(options.port, options.template))
