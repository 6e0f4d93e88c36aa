"""Messages that end before they are whole: one record each, whichever way they end, and no receipts."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async.smtp import CutOff, MaildirHandler, StreamingLMTP, StreamingSMTP
from support import contents
from wire import Client, Clock, Server, is_lmtp, serving, verbatim

python_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])


async def _begun(client: Client, kind: Any, first: str) -> None:
    await client.begin("b@example.com", "c@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
    if first == "DATA":
        assert (await client.ask("DATA")).startswith("354")
        client.say(b"hello\r\n")
    else:
        assert (await client.ask(b"BDAT 7\r\nhello\r\n")).startswith("250")
        if first == "in BDAT":
            client.say(b"BDAT 7\r\nhel")


async def _goes(client: Client, server: Server) -> None:
    client.writer.close()


async def _resets(client: Client, server: Server) -> None:
    client.reset()


async def _is_shut_down(client: Client, server: Server) -> None:
    server.sessions[0].end_now()
    assert await client.rest() == ["421 4.3.2 Service shutting down"]


async def _thinks_better(client: Client, server: Server) -> None:
    assert (await client.ask("RSET")).startswith("250")


ENDS: Final[list[tuple[str, Any, str, str]]] = [
    ("DATA", _goes, "client gone", ""),
    ("DATA", _resets, "client gone", ""),
    ("DATA", _is_shut_down, "shutting down", "421 4.3.2 Service shutting down"),
    ("BDAT", _goes, "client gone", ""),
    ("BDAT", _resets, "client gone", ""),
    ("BDAT", _thinks_better, "reset", ""),
    ("BDAT", _is_shut_down, "shutting down", "421 4.3.2 Service shutting down"),
    ("in BDAT", _goes, "client gone", ""),
    ("in BDAT", _is_shut_down, "shutting down", "421 4.3.2 Service shutting down"),
]


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", [StreamingSMTP, StreamingLMTP])
@pytest.mark.parametrize(("first", "end", "reason", "reply"), ENDS)
async def test_a_message_cut_off_is_told_once(
    tmp_path: Path, kind: Any, first: str, end: Callable[[Client, Server], Awaitable[None]], reason: str, reply: str
) -> None:
    """However it ends, there is one record of it, and no receipt; nothing is left of it."""
    cut_off: list[CutOff] = []
    receipts: list[Any] = []
    handler = verbatim(tmp_path / "m", on_cut_off=cut_off.append, on_receipt=receipts.append)
    async with serving(handler, kind) as server:
        client = await server.connect()
        await _begun(client, kind, first)
        await end(client, server)
    (record,) = cut_off
    assert (record.reason, record.reply, record.recipients) == (reason, reply, 2)
    assert (record.client.mail_from, record.client.helo) == ("a@example.com", "client.example")
    assert record.message_id
    assert record.seconds >= 0
    assert receipts == []
    assert not any(contents(tmp_path / "m").values())


@python_loop
@pytest.mark.parametrize(
    ("trickle", "reason", "reply"),
    [
        (False, "timeout", "421 4.4.2 Timeout, closing connection"),
        (True, "message too late", "421 4.4.2 Message took too long, closing connection"),
    ],
)
async def test_a_silent_client_is_told_of(tmp_path: Path, trickle: bool, reason: str, reply: str) -> None:
    """A client that falls silent within a message, or is too slow, is cut off with 421, and that is in the record."""
    cut_off: list[CutOff] = []
    handler = verbatim(tmp_path / "m", on_cut_off=cut_off.append)
    async with serving(handler, timeout=60, message_timeout=90) as server:
        client = await server.connect()
        clock = Clock()
        await _begun(client, StreamingSMTP, "BDAT")
        if trickle:
            clock.advance(50)
            assert (await client.ask(b"BDAT 7\r\nhello\r\n")).startswith("250")
            clock.advance(50)
        else:
            clock.advance(61)
        assert await client.rest() == [reply]
    assert [(record.reason, record.reply) for record in cut_off] == [(reason, reply)]


async def test_a_message_announced_too_large_is_told_of(tmp_path: Path) -> None:
    """552 at MAIL for the announced size (RFC 1870 §6.1) has a record with the size and the sender."""
    cut_off: list[CutOff] = []
    async with serving(verbatim(tmp_path / "m", on_cut_off=cut_off.append), data_size_limit=100) as server:
        client = await server.connect()
        told = await client.asks("EHLO me", "MAIL FROM:<a@example.com> SIZE=101", "MAIL FROM:<a@example.com> SIZE=100")
        assert [line[:3] for line in told] == ["250", "552", "250"]
    (record,) = cut_off
    assert (record.size, record.recipients, record.message_id) == (101, 0, "")
    assert (record.client.mail_from, record.reason) == ("a@example.com", "announced too large")
    assert record.reply.startswith("552 5.3.4 ")


@pytest.mark.parametrize("first", ["DATA", "BDAT"])
async def test_a_message_that_came_to_its_end_has_receipts(tmp_path: Path, first: str) -> None:
    """One that is refused at its end, or stored, has receipts and no such record."""
    cut_off: list[CutOff] = []
    receipts: list[Any] = []
    handler = verbatim(tmp_path / "m", on_cut_off=cut_off.append, on_receipt=receipts.append)
    async with serving(handler, data_size_limit=20) as server:
        client = await server.connect()
        for text in (b"hello\r\n", b"hello\r\n" * 9):
            await client.asks("EHLO me", "MAIL FROM:<>", "RCPT TO:<b@example.com>")
            if first == "DATA":
                await client.ask("DATA")
                await client.ask(text + b".\r\n")
            else:
                await client.ask(b"BDAT %d LAST\r\n" % len(text) + text)
    assert [receipt.reply[:3] for receipt in receipts] == ["250", "552"]
    assert cut_off == []


async def test_without_a_callback_it_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The logger tells of it at info; a callback that raises costs nobody anything."""
    caplog.set_level("INFO", "maildir_async.smtp")

    def raises(record: CutOff) -> None:
        raise ValueError("mine")

    for callback, words in ((None, "was cut off after 7 bytes: client gone"), (raises, "on_cut_off raised")):
        async with serving(verbatim(tmp_path / "m", on_cut_off=callback)) as server:
            client = await server.connect()
            await _begun(client, StreamingSMTP, "BDAT")
            client.writer.close()
        assert words in caplog.text


async def test_a_message_that_has_receipts_was_not_cut_off(tmp_path: Path) -> None:
    """An abort that comes after the receipts, as where the client goes while its message is stored, tells nothing."""
    cut_off: list[CutOff] = []
    deliveries: list[Any] = []

    class Handler(MaildirHandler):
        async def open_delivery(self, *args: Any, **options: Any) -> Any:
            deliveries.append(await super().open_delivery(*args, **options))
            return deliveries[-1]

    async with serving(Handler(tmp_path / "m", on_cut_off=cut_off.append)) as server:
        client = await server.connect()
        await client.begin("b@example.com")
        assert (await client.ask(b"BDAT 1 LAST\r\nx")).startswith("250")
        deliveries[0].abort()
    assert cut_off == []
