"""Store what each client sends until it closes its side: ``tcp_daemon.py PORT MAILDIR``, ``nc -N HOST PORT < mail``."""

import argparse
import asyncio
import signal

from maildir_async import Maildir, MaildirError


async def main(port: int, path: str) -> None:
    maildir = Maildir(path, size_limit=50 * 2**20)

    async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await maildir.append(reader)
            reply = "250 2.0.0 Stored"
        except MaildirError as exc:  # a client whose connection breaks is one of them
            reply = exc.smtp_reply
        except asyncio.CancelledError:  # the end of main: nothing is left in tmp/
            reply = "421 4.3.2 Shutting down"
        writer.write(reply.encode() + b"\r\n")
        writer.close()

    server = await asyncio.start_server(store, "127.0.0.1", port)
    print(*server.sockets[0].getsockname(), flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("maildir")
    options = parser.parse_args()
    asyncio.run(main(options.port, options.maildir))
