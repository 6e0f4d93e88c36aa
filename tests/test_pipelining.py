"""Replies to commands that come together go out together (RFC 2920 §3.2), and none is kept back for it."""

import asyncio
import socket
from typing import Any

import pytest

from maildir_async.smtp import StreamingLMTP, StreamingSMTP, commands
from wire import KINDS, Scripted, is_lmtp, serving, until

pytestmark = pytest.mark.every_loop

FIRST = "250 2.1.0 OK"
NEXT = "250 2.1.5 OK"


class Recorded:
    """A transport whose writes are kept, and are made."""

    def __init__(self, transport: Any, writes: list[list[str]]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data.decode().splitlines())
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def recording(kind: Any, writes: list[list[str]]) -> Any:
    """Return a class of servers like *kind* that tells what it writes."""

    class Recording(kind):  # type: ignore[misc]  # the base is a parameter
        def connection_made(self, transport: Any) -> None:
            super().connection_made(Recorded(transport, writes))

    return Recording


@pytest.mark.parametrize("kind", KINDS)
async def test_an_envelope_is_answered_in_one_piece(kind: Any) -> None:
    """All that is said up to DATA, and then what is said of the message."""
    writes = list[list[str]]()
    async with serving(Scripted(), recording(kind, writes)) as server:
        client = await server.connect()
        await client.ask("LHLO me" if is_lmtp(kind) else "EHLO me")
        writes.clear()
        to = [f"RCPT TO:<{number}@example.com>" for number in range(2)]
        for before in ([], ["RSET"]):
            client.say(*before, "MAIL FROM:<a@example.com>", *to, "DATA")
            told = [await client.hear() for _ in range(len(before) + 4)]
            assert writes == [told]
            assert [line[:3] for line in told[-4:]] == ["250", "250", "250", "354"]
            writes.clear()
            client.say(b"hello\r\n.\r\n")
            assert (await client.hear()).startswith("250 2.0.0 Stored")
            if is_lmtp(kind):
                assert (await client.hear()).startswith("250 2.0.0 Stored")
            assert len(writes) == 1
            writes.clear()


async def test_one_by_one_each_is_answered_at_once() -> None:
    """A client that waits for every reply gets it, and by itself."""
    writes = list[list[str]]()
    async with serving(Scripted(), recording(StreamingSMTP, writes)) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        writes.clear()
        told = await client.asks(
            "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "RSET", "RCPT TO:<b@example.com>"
        )
        assert writes == [[line] for line in told]
        assert told == [FIRST, NEXT, "250 2.0.0 OK", "503 5.5.1 Error: need MAIL command"]


async def test_what_has_to_be_waited_for_keeps_back_nothing() -> None:
    """While one recipient is being looked up, what was said before is out."""
    asked, gate = asyncio.Event(), asyncio.Event()

    class Slow(Scripted):
        async def handle_RCPT(  # noqa: N802
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            asked.set()
            await gate.wait()
            envelope.rcpt_tos.append(address)
            return NEXT

    async with serving(Slow()) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "NOOP")
        assert await client.hear() == FIRST
        await asked.wait()
        gate.set()
        assert [await client.hear(), await client.hear()] == [NEXT, "250 2.0.0 OK"]


async def test_a_client_that_says_no_more_hears_all() -> None:
    """What is held when the end of its commands is seen goes out before the connection is closed."""
    async with serving(Scripted(), StreamingLMTP) as server:
        client = await server.connect()
        await client.ask("LHLO me")
        session = server.sessions[0]
        session.data_received(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n")
        session.eof_received()  # in the same turn of the loop
        assert await client.rest() == [FIRST, NEXT]


async def test_the_last_word_comes_last() -> None:
    """What ends a session goes out at once, behind what was said before it."""
    async with serving(Scripted(), command_call_limit={"RCPT": 1, "*": 9}) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "RCPT TO:<c@example.com>", "NOOP")
        assert await client.rest() == [FIRST, NEXT, "421 4.7.0 RCPT sent too many times"]


async def test_a_shutdown_comes_after_what_was_said() -> None:
    """A session that is told to end while it answers says all it has to say, in order."""

    class Ending(Scripted):
        async def handle_RCPT(  # noqa: N802
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            server.shut_down()
            return NEXT

    async with serving(Ending()) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "NOOP")
        assert await client.rest() == [FIRST, NEXT, "421 4.3.2 Service shutting down"]


async def test_a_client_that_listens_to_nothing_is_not_answered_for_ever() -> None:
    """Replies that are held are bounded as all are: a client that does not read them is read no further."""
    async with serving(Scripted(), max_errors=2**30) as server:
        client = await server.connect()
        session = server.sessions[0]
        await client.ask("EHLO me")
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # the stream has no way to
        high = 4096
        session.transport.set_write_buffer_limits(high=high)
        session.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, high)
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, high)
        command = b"RCPT TO:<b@example.com>\r\n"
        blocked = asyncio.create_task(_flood(client.writer, command))
        try:
            await until(lambda: session._paused)
            assert session.transport.get_write_buffer_size() <= high + 2 * commands.COMMANDS_A_TURN * 40
        finally:
            blocked.cancel()
            client.writer.transport.abort()


async def _flood(writer: asyncio.StreamWriter, command: bytes) -> None:
    while True:
        writer.write(command * 100)
        await writer.drain()
