"""A streaming server, clients that say bytes to it, and handlers that do as told."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

from maildir_async import GroupCommit, Maildir
from maildir_async.smtp import MaildirHandler, Refused, StreamingLMTP, StreamingSMTP
from maildir_async.testing import FaultDisk
from support import PATIENCE_S

__all__ = ["Client", "Clock", "Faulty", "Scripted", "ScriptedDelivery", "Server", "serving", "verbatim"]


def verbatim(path: str | Path, **options: Any) -> MaildirHandler:
    """Return a handler that stores what is sent, and nothing else, in one maildir."""
    return MaildirHandler(path, newline="keep", return_path=False, delivered_to=False, received=False, **options)


class Faulty(MaildirHandler):
    """Its maildirs are on a disk with faults."""

    def __init__(self, disk: FaultDisk, *args: Any, **options: Any) -> None:
        self._disk = disk
        super().__init__(*args, **options)

    def maildir(self, path: Any, commit: GroupCommit | None = None) -> Maildir:
        return Maildir(path, disk=self._disk, commit=commit or self._commit)


class Scripted:
    """A handler whose deliveries keep what they get, and raise or wait as told.

    Args:
        opening: what `open_delivery` raises.
        sending: what each `send` raises.
        finishing: what `finish` raises.
        replies: what it returns, instead of a success for each recipient.

    Attributes:
        deliveries: those opened.
        gate: what `send` and `finish` wait for; it is open until a test closes it.
        waiting: how many of them wait for it, or did.

    """

    def __init__(
        self,
        *,
        opening: BaseException | None = None,
        sending: BaseException | None = None,
        finishing: BaseException | None = None,
        replies: Sequence[str] | None = None,
    ) -> None:
        self.opening = opening
        self.sending = sending
        self.finishing = finishing
        self.replies = replies
        self.deliveries: list[ScriptedDelivery] = []
        self.asked: list[tuple[str, int | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def open_delivery(
        self, server: SMTP, session: Session, envelope: Envelope, *, protocol: str, size: int | None
    ) -> "ScriptedDelivery":
        """See `maildir_async.smtp.DeliveryOpener`."""
        self.asked.append((protocol, size))
        if self.opening is not None:
            raise self.opening
        self.deliveries.append(ScriptedDelivery(self, len(envelope.rcpt_tos)))
        return self.deliveries[-1]

    async def wait(self, raising: BaseException | None) -> None:
        """Wait for the gate, and raise."""
        self.waiting += 1
        await self.gate.wait()
        if raising is not None:
            raise raising


class ScriptedDelivery:
    """See `maildir_async.smtp.Delivery`."""

    def __init__(self, script: Scripted, recipients: int) -> None:
        self._script = script
        self._recipients = recipients
        self.content = b""
        self.reply = ""
        self.is_finished = False
        self.is_aborted = False

    async def send(self, chunk: bytes) -> None:
        assert not self.is_over
        assert not self.reply
        assert chunk
        self.content += chunk
        await self._script.wait(self._script.sending)

    def fail(self, reply: str) -> None:
        assert not self.is_over
        self.reply = reply

    async def finish(self) -> Sequence[str]:
        assert not self.is_over
        await self._script.wait(self._script.finishing)
        self.is_finished = True
        if self.reply:
            return [self.reply] * self._recipients
        return self._script.replies or [f"250 2.0.0 Stored {number}" for number in range(self._recipients)]

    def abort(self) -> None:
        assert not self.is_over
        self.is_aborted = True

    @property
    def is_over(self) -> bool:
        """Whether it may not be used any more."""
        return self.is_finished or self.is_aborted


class Client:
    """A raw client: it says bytes and hears replies, of which it knows nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, *lines: bytes | str) -> None:
        """Send *lines*: a str with a CRLF, bytes as they are."""
        self.writer.write(b"".join(line.encode() + b"\r\n" if isinstance(line, str) else line for line in lines))

    async def hear(self) -> str:
        """Return the next reply; the lines of a long one joined with LF. "" at the end of the connection."""
        lines = list[str]()
        async with asyncio.timeout(PATIENCE_S):
            while not lines or lines[-1][3:4] == "-":
                line = await self.reader.readline()
                if not line:
                    return "\n".join(lines)
                assert line.endswith(b"\r\n")
                lines.append(line[:-2].decode())
        return "\n".join(lines)

    async def ask(self, *lines: bytes | str) -> str:
        """Send, and return the next reply."""
        self.say(*lines)
        return await self.hear()

    async def asks(self, *lines: bytes | str) -> list[str]:
        """Send each by itself, and return the reply to each."""
        return [await self.ask(line) for line in lines]

    async def begin(self, *recipients: str, hello: str = "EHLO", sender: str = "a@example.com", mail: str = "") -> None:
        """Go as far as DATA or BDAT can be said."""
        said = (f"{hello} client.example", f"MAIL FROM:<{sender}>{mail}", *(f"RCPT TO:<{to}>" for to in recipients))
        told = await self.asks(*said)
        assert all(reply.startswith("250") for reply in told), told

    async def rest(self) -> list[str]:
        """Return what is said until the server closes, line by line. ConnectionError counts as closing."""
        heard = b""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while chunk := await self.reader.read(2**16):
                    heard += chunk
        return heard.decode().splitlines()

    def reset(self) -> None:
        """Go, with a reset for a farewell (linger for no time at all)."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class Server:
    """What `serving` serves.

    Attributes:
        sessions: one for each connection so far.
        address: host and port.

    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.sessions: list[Any] = []
        self.clients: list[Client] = []
        self.address: tuple[str, int]

    def session(self) -> Any:
        """Make one more."""
        self.sessions.append(self._make())
        return self.sessions[-1]

    async def connect(self) -> Client:
        """Return a client that has heard the greeting."""
        client = Client(*await asyncio.open_connection(*self.address))
        self.clients.append(client)
        greeting = await client.hear()
        assert greeting.startswith("220 mx.example ")
        return client

    async def over(self) -> None:
        """Wait until no session does anything any more."""
        await until(lambda: all(task is None or task.done() for task in map(_task, self.sessions)))


def _task(session: Any) -> "asyncio.Task[None] | None":
    task: asyncio.Task[None] | None = session._handler_coroutine
    return task


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task is about to do, or fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(handler: Any, kind: Any = StreamingSMTP, **options: Any) -> AsyncIterator[Server]:
    """Serve on the loopback; in the end all is closed, every session is over, and nobody is at work on a disk."""
    loop = asyncio.get_running_loop()
    server = Server(lambda: kind(handler, **({"hostname": "mx.example", "loop": loop} | options)))
    listening = await loop.create_server(server.session, "127.0.0.1", 0)
    server.address = listening.sockets[0].getsockname()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: problems.append(context))
    try:
        yield server
    finally:
        listening.close()
        for client in server.clients:
            client.writer.close()
        for session in server.sessions:
            if session.transport is not None:
                with suppress(AttributeError):  # Python 3.11.2, of Debian 12: one with TLS that is lost already
                    session.transport.abort()
        await server.over()
        for client in server.clients:
            with suppress(ConnectionError, ssl.SSLError):
                await client.writer.wait_closed()
        if isinstance(handler, MaildirHandler):
            assert await asyncio.to_thread(handler._commit.wait_idle, PATIENCE_S)
    for session in server.sessions:
        task = _task(session)
        assert task is None or task.cancelled() or task.exception() is None
    assert problems == []


class Clock:
    """Has the loop's timers believe that time has gone by. For loops written in Python."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        loop: Any = asyncio.get_running_loop()
        real = loop.time
        loop.time = lambda: real() + self.ahead_s

    def advance(self, seconds: float) -> None:
        """Let so much time go by at once."""
        self.ahead_s += seconds


def is_lmtp(kind: Any) -> bool:
    """Whether this class of servers speaks LMTP."""
    return issubclass(kind, LMTP)


KINDS: Final = [StreamingSMTP, StreamingLMTP]

#: Raised by a script, with everything in it that a client must not hear.
SECRET: Final = OSError(28, "No space left on device", "/var/mail/alice/tmp/123")

REFUSED: Final = Refused("452 4.3.1 Insufficient system storage")
