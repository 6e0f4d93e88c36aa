"""A session that talks to a target instead of a socket."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from maildir_async.smtp import StreamingSMTP

from .cutting import cut

__all__ = ["Keeper", "Message", "Recorded", "converse"]


class Transport(asyncio.Transport):
    """One that goes nowhere, and keeps what is said."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234)})
        self.said = bytearray()
        self._is_closed = False

    def write(self, data: Any) -> None:
        self.said += data

    def is_closing(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        self._is_closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class Message:
    """See `maildir_async.smtp.Delivery`: keeps what it gets."""

    def __init__(self) -> None:
        self.content = b""
        self.end = ""

    async def send(self, chunk: bytes) -> None:
        assert not self.end
        assert chunk
        self.content += chunk

    def fail(self, reply: str) -> None:
        raise AssertionError(reply)

    async def finish(self) -> Sequence[str]:
        assert not self.end
        self.end = "finished"
        return ["250 2.0.0 Stored"]

    def abort(self) -> None:
        assert not self.end
        self.end = "aborted"


class Keeper:
    """A handler that keeps messages and recipients.

    Attributes:
        messages: in the order of their beginning.
        addresses: senders and recipients, as a handler's hooks are given them.

    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.addresses: list[str] = []

    async def handle_MAIL(  # noqa: N802 aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.addresses.append(address)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(  # noqa: N802 aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.addresses.append(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def open_delivery(self, *_: Any, **__: Any) -> Message:
        self.messages.append(Message())
        return self.messages[-1]

    async def handle_exception(self, error: Exception) -> str:
        raise AssertionError("a session has failed") from error


class Recorded(StreamingSMTP):
    """Remembers the command lines that it has read, those among them that are refused."""

    lines: list[bytes]

    async def _read_line(self) -> bytes:
        line = await super()._read_line()
        self.lines.append(line)
        return line


def converse(handler: Keeper, stream: bytes, lengths: Iterable[int] = ()) -> tuple[bytes, list[bytes]]:
    """Have a session read *stream*, in chunks of *lengths*, to its end; return what it said, and the command lines."""
    return _runner.run(_converse(handler, stream, lengths))


async def _converse(handler: Keeper, stream: bytes, lengths: Iterable[int]) -> tuple[bytes, list[bytes]]:
    session, transport = (
        Recorded(handler, max_errors=10**6, hostname="mx.example", loop=asyncio.get_running_loop()),
        Transport(),
    )
    session.lines = []
    session.connection_made(transport)
    for chunk in cut(stream, list(lengths)):
        session.data_received(chunk)
        for _ in range(3):  # turns, in which it may come to an end before there is more
            await asyncio.sleep(0)
    session.eof_received()
    task: Any = session._handler_coroutine
    _, late = await asyncio.wait([task], timeout=4)
    assert not late
    session.connection_lost(None)
    if not task.cancelled() and task.exception() is not None:
        raise task.exception()
    return bytes(transport.said), session.lines


_runner = asyncio.Runner()
