"""DATA in `StreamingSMTP` and `StreamingLMTP`: to disk while it comes, whole or not at all, answered for everybody."""

import asyncio
import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope

import maildir_async
from look import Look
from maildir_async import GroupCommit, Maildir
from maildir_async.smtp import MaildirHandler, Receipt, StreamingLMTP, StreamingSMTP
from maildir_async.smtp.delivery import transmission_type
from maildir_async.testing import Fault, FaultDisk
from support import Gate, contents, turns
from wire import KINDS, REFUSED, SECRET, Client, Clock, Faulty, Scripted, Server, is_lmtp, serving, until, verbatim

pytestmark = pytest.mark.every_loop

MIB: Final = 2**20

python_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
both_kinds: Final = pytest.mark.parametrize("kind", KINDS)


async def begun(server: Server, kind: Any = StreamingSMTP, recipients: int = 1) -> Client:
    """Return a client that has been told to send its message."""
    client = await server.connect()
    names = [f"u{number}@example.com" for number in range(recipients)]
    await client.begin(*names, hello="LHLO" if is_lmtp(kind) else "EHLO")
    assert (await client.ask("DATA")).startswith("354")
    return client


# What is stored.

MESSAGES: Final = {
    "empty": b"",
    "an empty line": b"\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "a header": b"Subject: x\r\n\r\n",
    "dots": b".\r\n..\r\n.x\r\nx.\r\n...\r\n",
    "no text": bytes(range(256)) * 300 + b"\r\n",
    "bare": b"a\rb\nc\r\rd\n\ne\n\rf\r\n",
    "smuggled": b"a\n.\nMAIL FROM:<x@y.example>\r\n\r.\rb\n.\r\nc\r\n.\nd\r\n.\re\r\n",
    "long": (b"x" * 70 + b"\r\n.") * 20_000 + b"\r\n",
    "one line": b"x" * 300_000 + b"\r\n",
}


def stuffed(message: bytes) -> bytes:
    """Return *message* as a client sends it after DATA."""
    return (b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


@both_kinds
@pytest.mark.parametrize("message", MESSAGES.values(), ids=list(MESSAGES))
async def test_a_message_is_stored_as_it_was_sent(tmp_path: Path, message: bytes, kind: Any) -> None:
    """Byte for byte, whatever is in it; 250 when it is; and the session goes on where the message has ended."""
    async with serving(verbatim(tmp_path / "m"), kind) as server:
        client = await begun(server, kind)
        told = await client.ask(stuffed(message))
        assert told.startswith("250 2.0.0 ")
        assert contents(tmp_path / "m") == {"tmp": [], "new": [message], "cur": []}
        assert await client.ask("NOOP") == "250 2.0.0 OK"


async def test_a_message_may_come_a_byte_at_a_time(tmp_path: Path) -> None:
    """However it is cut on its way."""
    message = MESSAGES["smuggled"] + MESSAGES["dots"]
    async with serving(verbatim(tmp_path / "m")) as server:
        client = await begun(server)
        for octet in stuffed(message):
            client.say(bytes([octet]))
            await turns(3)
        assert (await client.hear()).startswith("250")
    assert contents(tmp_path / "m")["new"] == [message]


@both_kinds
async def test_a_whole_session_may_come_at_once(tmp_path: Path, kind: Any) -> None:
    """Commands and messages that a client has not waited with are answered in their order (RFC 2920)."""
    hello = "LHLO" if is_lmtp(kind) else "EHLO"
    envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    async with serving(verbatim(tmp_path / "m"), kind) as server:
        client = await server.connect()
        client.say(
            f"{hello} me", envelope + b"1\r\n.\r\n" + envelope + b".\r\n" + b"NOOP\r\n" + envelope + b"3\r\n.\r\n"
        )
        told = [await client.hear() for _ in range(14)]
        assert await client.ask("QUIT") == "221 2.0.0 Bye"
    one = ["250 2.1.0", "250 2.1.5", "354 End d", "250 2.0.0"]
    assert [reply[:9] for reply in told[1:]] == one + one + ["250 2.0.0"] + one
    assert contents(tmp_path / "m")["new"] == [b"1\r\n", b"", b"3\r\n"]


async def test_handle_data_is_not_called_and_there_is_no_content(tmp_path: Path) -> None:
    """A handler's ``handle_DATA`` is for aiosmtpd's own classes; the envelope has no content here."""
    seen: list[Envelope] = []

    class Handler(Scripted):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            raise NotImplementedError

        async def open_delivery(self, server: Any, session: Any, envelope: Any, **options: Any) -> Any:
            seen.append(envelope)
            return await super().open_delivery(server, session, envelope, **options)

    async with serving(Handler()) as server:
        client = await begun(server)
        assert (await client.ask(b"x\r\n.\r\n")).startswith("250")
    assert [envelope.content for envelope in seen] == [None]


# Before the message.


@both_kinds
async def test_data_out_of_turn(kind: Any) -> None:
    """DATA before HELO or RCPT, or with an argument, is told what is wrong, and nothing is opened."""
    script = Scripted()
    hello = "LHLO" if is_lmtp(kind) else "EHLO"
    async with serving(script, kind) as server:
        client = await server.connect()
        assert await client.ask("DATA") == f"503 5.5.1 Error: send {'LHLO' if is_lmtp(kind) else 'HELO'} first"
        assert (await client.ask(f"{hello} me")).startswith("250")
        assert await client.ask("DATA") == "503 5.5.1 Error: need RCPT command"
        assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 OK"
        assert await client.ask("DATA") == "503 5.5.1 Error: need RCPT command"
        assert await client.ask("RCPT TO:<a@b.example>") == "250 2.1.5 OK"
        assert await client.ask("DATA now") == "501 5.5.4 Syntax: DATA"
    assert script.deliveries == []


async def test_authentication_is_asked_for() -> None:
    """With ``auth_required`` nothing is opened for who has not authenticated."""
    script = Scripted()
    async with serving(script, auth_required=True) as server:
        client = await server.connect()
        told = await client.asks("EHLO me", "MAIL FROM:<a@b.example>", "DATA")
        assert told[1:] == ["530 5.7.0 Authentication required"] * 2
    assert script.deliveries == []


@both_kinds
async def test_a_delivery_that_cannot_be_is_refused_before_the_message(kind: Any) -> None:
    """What `open_delivery` refuses is the one answer to DATA, 354 is not said, and a later DATA may do better."""
    script = Scripted(opening=REFUSED)
    async with serving(script, kind) as server:
        client = await server.connect()
        await client.begin("b@example.com", "c@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
        assert await client.asks("DATA", "NOOP") == [REFUSED.reply, "250 2.0.0 OK"]
        script.opening = SECRET
        assert await client.asks("DATA", "NOOP") == ["451 4.3.0 Message not stored, try again later", "250 2.0.0 OK"]
        script.opening = None
        assert (await client.ask("DATA")).startswith("354")
        assert (await client.ask(b".\r\n")).startswith("250")


async def test_the_handler_is_told_how_the_message_comes() -> None:
    """The protocol's name, and the size the client has announced."""
    script = Scripted()
    async with serving(script) as server:
        for hello, mail in (("HELO", ""), ("EHLO", ""), ("EHLO", " SIZE=123 BODY=8BITMIME"), ("EHLO", " SMTPUTF8")):
            client = await server.connect()
            await client.begin("b@example.com", hello=hello, mail=mail)
            assert (await client.ask("DATA")).startswith("354")
    assert script.asked == [("SMTP", None), ("ESMTP", None), ("ESMTP", 123), ("UTF8SMTP", None)]


@pytest.mark.parametrize(
    ("kind", "extended", "tls", "authenticated", "utf8", "name"),
    [
        (SMTP, False, False, False, False, "SMTP"),
        (SMTP, True, False, False, False, "ESMTP"),
        (SMTP, True, True, False, False, "ESMTPS"),
        (SMTP, True, False, True, False, "ESMTPA"),
        (SMTP, True, True, True, False, "ESMTPSA"),
        (SMTP, True, True, True, True, "UTF8SMTPSA"),
        (LMTP, True, False, False, False, "LMTP"),
        (LMTP, True, True, True, False, "LMTPSA"),
        (LMTP, True, False, False, True, "UTF8LMTP"),
    ],
)
def test_transmission_types(kind: Any, extended: bool, tls: bool, authenticated: bool, utf8: bool, name: str) -> None:
    """The names are those of RFC 3848 and RFC 6531."""
    server = kind.__new__(kind)
    server.transport = SimpleNamespace(get_extra_info=lambda key: object() if tls and key == "sslcontext" else None)
    session: Any = SimpleNamespace(extended_smtp=extended, authenticated=authenticated)
    envelope: Any = SimpleNamespace(smtp_utf8=utf8)
    assert transmission_type(server, session, envelope) == name


@both_kinds
@pytest.mark.parametrize("end", [b".\r\n", b"BDAT 0 LAST\r\n", b"RSET\r\n", "close", "reset"])
async def test_a_message_that_comes_has_a_place(tmp_path: Path, kind: Any, end: bytes | str) -> None:
    """From its 354 on a message counts as pending, however it ends; past the bound DATA and BDAT are told 451 4.3.2."""
    receipts: list[Receipt] = []
    commit = GroupCommit(max_pending=1, wait=False)
    hello = "LHLO" if is_lmtp(kind) else "EHLO"
    async with serving(verbatim(tmp_path / "m", commit=commit, on_receipt=receipts.append), kind) as server:
        first, second, third = [await server.connect() for _ in range(3)]
        for client in (first, second, third):
            await client.begin("b@example.com", hello=hello)
        told = await first.ask(*(["DATA"] if end == b".\r\n" else [b"BDAT 3\r\nx\r\n"]))
        assert told[:3] in ("354", "250")
        assert commit.statistics().pending == 1
        for _ in range(3):
            assert (await second.ask("DATA")).startswith("451 4.3.2 ")
        assert (await third.ask(b"BDAT 6\r\nQUIT\r\n")).startswith("451 4.3.2 ")
        assert (await third.ask(b"BDAT 0 LAST\r\n")).startswith("451 4.3.2 ")
        assert [receipt.reply[:9] for receipt in receipts] == ["451 4.3.2"] * 4
        assert commit.statistics().pending == 1
        if isinstance(end, bytes):
            assert (await first.ask(end)).startswith("250")
        elif end == "close":
            first.writer.close()
        else:
            first.reset()
        await until(lambda: commit.statistics().pending == 0)
        assert (await second.ask("DATA")).startswith("354")
        assert (await second.ask(b".\r\n")).startswith("250")
    assert (commit.statistics().pending, commit.statistics().pending_bytes) == (0, 0)


async def test_a_client_that_goes_while_it_waits_for_a_place(tmp_path: Path) -> None:
    """With a queue that waits, DATA is answered when there is a place; who goes before leaves none taken."""
    commit = GroupCommit(max_pending=1)
    async with serving(verbatim(tmp_path / "m", commit=commit)) as server:
        first = await begun(server)
        waiting = [await server.connect() for _ in range(2)]
        for number, client in enumerate(waiting, 1):
            await client.begin("b@example.com")
            client.say("DATA")
            await until(lambda number=number: commit.statistics().waiting == number)  # type: ignore[misc]  # a lambda with a default
        waiting[0].reset()
        await until(lambda: commit.statistics().waiting == 1)
        assert (await first.ask(b".\r\n")).startswith("250")
        assert (await waiting[1].hear()).startswith("354")
    assert commit.statistics().pending == 0


# Limits.


@both_kinds
async def test_a_message_over_the_limit_is_told_so_when_it_has_come(tmp_path: Path, kind: Any) -> None:
    """The limit counts the message, not its doubled dots; past it all is dropped, 552 is said, and nothing is left."""
    fits = b".x\r\n" * 25_000
    async with serving(verbatim(tmp_path / "m"), kind, data_size_limit=100_000) as server:
        client = await begun(server, kind, recipients=2)
        told = [await client.ask(stuffed(fits + b"x\r\n"))] + [await client.hear() for _ in range(is_lmtp(kind))]
        assert told == ["552 5.3.4 Message too large"] * (1 + is_lmtp(kind))
        assert Look(tmp_path / "m").names("new") == []
        await client.begin("b@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
        assert (await client.ask("DATA")).startswith("354")
        assert (await client.ask(stuffed(fits))).startswith("250")
    assert contents(tmp_path / "m") == {"tmp": [], "new": [fits], "cur": []}


async def test_what_is_over_the_limit_is_not_sent_on() -> None:
    """From the first byte too many on, a delivery gets nothing; it is told why."""
    script = Scripted()
    async with serving(script, data_size_limit=100_000) as server:
        client = await begun(server)
        assert (await client.ask(b"x" * 10_000_000 + b"\r\n.\r\n")).startswith("552 5.3.4")
    (delivery,) = script.deliveries
    assert len(delivery.content) <= 100_000
    assert delivery.reply == "552 5.3.4 Message too large"
    assert delivery.is_finished


async def test_a_size_over_the_limit_is_refused_at_mail() -> None:
    """SIZE is announced; a client that says a larger one is refused at once; without a limit nobody is."""
    async with serving(Scripted(), data_size_limit=1000) as server:
        client = await server.connect()
        assert "250-SIZE 1000" in (await client.ask("EHLO me")).split("\n")
        assert (await client.ask("MAIL FROM:<a@b.example> SIZE=1001")).startswith("552 5.3.4 ")
        assert (await client.ask("MAIL FROM:<a@b.example> SIZE=x")).startswith("501 5.5.4 ")
        assert await client.ask("MAIL FROM:<a@b.example> SIZE=1000") == "250 2.1.0 OK"
    script = Scripted()
    async with serving(script, data_size_limit=None) as server:
        client = await begun(server)
        assert (await client.ask(b"x" * MIB + b"\r\n.\r\n")).startswith("250")


@both_kinds
async def test_a_line_over_the_limit(tmp_path: Path, kind: Any) -> None:
    """A line of 1,000 octets with its CRLF passes a limit of that; a longer one is told so when all has come."""
    longest = b"." + b"x" * 997 + b"\r\n"
    async with serving(verbatim(tmp_path / "m"), kind, line_length_limit=1000) as server:
        client = await begun(server, kind, recipients=2)
        told = [await client.ask(stuffed(longest * 200 + b"x" + longest))]
        told += [await client.hear() for _ in range(is_lmtp(kind))]
        assert told == ["500 5.6.0 Line too long"] * (1 + is_lmtp(kind))
        client = await begun(server, kind)
        assert (await client.ask(stuffed(longest * 200))).startswith("250")
    assert contents(tmp_path / "m")["new"] == [longest * 200]


def test_wrong_arguments() -> None:
    """A handler that opens no deliveries is a TypeError, what cannot be done with a stream is a ValueError."""
    with pytest.raises(TypeError, match="open_delivery"):
        StreamingSMTP(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoded"):
        StreamingSMTP(MaildirHandler("/tmp/m"), decode_data=True)
    with pytest.raises(ValueError, match="octets"):
        StreamingLMTP(MaildirHandler("/tmp/m"), line_length_limit=0)


# Failures.

NOT_STORED: Final = "451 4.3.0 Message not stored, try again later"


@both_kinds
@pytest.mark.parametrize("where", ["sending", "finishing"])
async def test_an_exception_is_answered_for_every_recipient(kind: Any, where: str) -> None:
    """What a delivery raises is told after the message: 451 for each recipient, without a word of it."""
    script = Scripted(**{where: SECRET})  # type: ignore[arg-type]
    async with serving(script, kind) as server:
        client = await begun(server, kind, recipients=3)
        client.say(b"x" * 1_000_000 + b"\r\n.\r\n", "NOOP")
        told = [await client.hear() for _ in range(4 if is_lmtp(kind) else 2)]
        assert told == [NOT_STORED] * (len(told) - 1) + ["250 2.0.0 OK"]
    assert [delivery.is_aborted for delivery in script.deliveries] == [True]


@both_kinds
async def test_an_exception_by_the_refusal_itself(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that cannot even be failed, or aborted: the client is answered as ever."""

    def broken(*_: Any) -> None:
        raise SECRET

    script = Scripted()
    async with serving(script, kind, data_size_limit=100) as server:
        client = await begun(server, kind, recipients=2)
        monkeypatch.setattr(script.deliveries[0], "fail", broken)
        monkeypatch.setattr(script.deliveries[0], "abort", broken)
        client.say(b"x" * 100_000 + b"\r\nQUIT\r\n.\r\n", "NOOP")
        told = [await client.hear() for _ in range(3 if is_lmtp(kind) else 2)]
        assert told == [NOT_STORED] * (len(told) - 1) + ["250 2.0.0 OK"]


async def test_a_message_that_cannot_be_read_is_not_taken_for_commands() -> None:
    """With no memory to read on, what is left of a message is not looked at; the session ends."""

    class Short(StreamingSMTP):
        async def _take(self, transfer: Any, chunk: bytes) -> None:
            raise MemoryError

    script = Scripted()
    async with serving(script, Short) as server:
        for said in (b"DATA\r\nx", b"BDAT 5\r\nx"):
            client = await server.connect()
            await client.begin("b@example.com")
            client.say(said + b"x" * 70_000 + b"\r\nQUIT\r\n.\r\n")
            told = await client.rest()
            assert told[-1] == "421 4.3.0 Message not stored, closing connection"
            assert not [line for line in told if line.startswith(("2", "5"))]
    assert [delivery.is_aborted for delivery in script.deliveries] == [True] * 2


@both_kinds
async def test_the_handler_s_own_words_for_an_exception(kind: Any) -> None:
    """A handler's ``handle_exception`` says what is told; if it raises, or says what is no reply, 451 is."""

    class Handler(Scripted):
        answer: Any = "450 4.2.0 So be it"

        async def handle_exception(self, error: Exception) -> Any:
            assert error is SECRET
            if self.answer is None:
                raise ValueError("/secret")
            return self.answer

    handler = Handler(finishing=SECRET)
    async with serving(handler, kind) as server:
        for answer, told in (("450 4.2.0 So be it", "450 4.2.0 So be it"), (None, NOT_STORED), (3, NOT_STORED)):
            handler.answer = answer
            client = await begun(server, kind, recipients=2)
            assert await client.ask(b"x\r\n.\r\n") == told
            if is_lmtp(kind):
                assert await client.hear() == told


@pytest.mark.parametrize("replies", [[], ["250 2.0.0 a"], ["250 2.0.0 a"] * 3])
async def test_a_wrong_number_of_replies_is_a_failure(replies: list[str]) -> None:
    """A client must never wait for a reply, nor take one recipient's for another's."""
    async with serving(Scripted(replies=replies), StreamingLMTP) as server:
        client = await begun(server, StreamingLMTP, recipients=2)
        client.say(b"x\r\n.\r\n", "NOOP")
        expected = [NOT_STORED] * 2 if replies else ["250 2.0.0 Stored 0", "250 2.0.0 Stored 1"]
        assert [await client.hear() for _ in range(3)] == [*expected, "250 2.0.0 OK"]


REPLIES: Final = ["250 2.0.0 Stored", "451 4.3.0 Not\r\n250 2.0.0 forged\nx", "552 5.2.2 Full", "nonsense"]


async def test_lmtp_answers_for_each_recipient_in_order() -> None:
    """As many replies as recipients, each one line with a code, whatever the handler has made up."""
    async with serving(Scripted(replies=REPLIES), StreamingLMTP) as server:
        client = await begun(server, StreamingLMTP, recipients=4)
        client.say(b"x\r\n.\r\n", "NOOP")
        assert [await client.hear() for _ in range(5)] == [
            "250 2.0.0 Stored",
            "451 4.3.0 Not 250 2.0.0 forged?x",
            "552 5.2.2 Full",
            NOT_STORED,
            "250 2.0.0 OK",
        ]


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        (["250 2.0.0 a", "250 2.0.0 b"], "250 2.0.0 a"),
        (["250 2.0.0 a", "552 5.2.2 b"], "552 5.2.2 b"),
        (["552 5.2.2 a", "451 4.3.0 b"], "451 4.3.0 b"),
    ],
)
async def test_smtp_answers_once_for_all(replies: list[str], told: str) -> None:
    """Success only if everybody has the message; else a client tries again as long as that may help."""
    async with serving(Scripted(replies=replies)) as server:
        client = await begun(server, recipients=2)
        assert await client.asks(b"x\r\n.\r\n", "NOOP") == [told, "250 2.0.0 OK"]


# The client's going.


@both_kinds
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("sent", [b"", b".", b"\r\n.", b"x" * 2_000_000, b"x\r\n.\r"], ids=["0", "1", "3", "2M", "4"])
async def test_a_client_that_goes_leaves_nothing(tmp_path: Path, kind: Any, sent: bytes, reset: bool) -> None:
    """Gone in the middle of its message, in any way: the delivery is aborted, and nothing is left on disk."""
    async with serving(verbatim(tmp_path / "m"), kind) as server:
        client = await begun(server, kind)
        client.say(sent)
        await client.writer.drain()
        if reset:
            client.reset()
        else:
            client.writer.close()
        await server.over()
    assert not any(contents(tmp_path / "m").values())


@pytest.mark.parametrize("sent", [b"x" * 200_000, b"x\r\n.\r\n"], ids=["send", "finish"])
async def test_a_connection_lost_while_the_disk_works(sent: bytes) -> None:
    """Lost while the delivery takes a chunk, or finishes: it is aborted."""
    script = Scripted()
    script.gate.clear()
    async with serving(script) as server:
        client = await begun(server)
        client.say(sent)
        await until(lambda: script.waiting == 1)
        if sent.endswith(b".\r\n"):
            script.gate.set()
            script.gate.clear()
            await until(lambda: script.waiting == 2)
        assert not script.deliveries[0].is_over
        server.sessions[0].transport.abort()  # as it is when the kernel tells of it
        await server.over()
    assert script.deliveries[0].is_aborted


@both_kinds
@pytest.mark.parametrize("said", [["DATA", b"x\r\n.\r\n"], [b"BDAT 3 LAST\r\nx\r\n"]], ids=["DATA", "BDAT"])
@pytest.mark.parametrize("is_late", [True, False], ids=["committing", "queued"])
async def test_what_became_of_a_message_is_told_though_the_client_has_gone(
    tmp_path: Path, kind: Any, said: list[Any], is_late: bool
) -> None:
    """Gone after its last byte, a client hears nothing; receipts tell if the message was stored all the same."""
    receipts: list[Receipt] = []
    gate = Gate()
    commit = GroupCommit()
    paths = {"b@example.com": tmp_path / "b", "c@example.com": tmp_path / "c"}
    disk = FaultDisk(Fault("sync", gate=gate, path="/tmp/"))
    handler = Faulty(disk, paths, commit=commit, on_receipt=receipts.append)
    async with serving(handler, kind) as server:
        client = await server.connect()
        await client.begin(*paths, hello="LHLO" if is_lmtp(kind) else "EHLO")
        first = None
        if not is_late:  # it has to wait for another one
            first = asyncio.create_task(Maildir(tmp_path / "a", disk=disk, commit=commit).append(b"first"))
            await gate.reached()
        for line in said[:-1]:
            assert (await client.ask(line)).startswith("354")
        client.say(said[-1])
        await (gate.reached() if is_late else until(lambda: commit.statistics().queued == 1))
        server.sessions[0].transport.abort()
        await until(lambda: server.sessions[0].transport is None)
        await turns()
        gate.open()
        await server.over()
        if first is not None:
            await first
        assert [(receipt.address, receipt.reply) for receipt in receipts] == [(address, "") for address in paths]
        for receipt in receipts:
            assert (receipt.delivered is not None) == is_late
            assert (receipt.error is None) == is_late
            assert len(contents(paths[receipt.address]).get("new", [])) == is_late
    assert commit.statistics().pending == 0


async def test_a_client_that_says_no_more_is_answered(tmp_path: Path) -> None:
    """Half-closed after its last command: the message is stored, and the client gets all of its replies."""
    message = b"x" * 98 + b"\r\n"
    async with serving(verbatim(tmp_path / "m")) as server:
        client = await server.connect()
        client.say("EHLO me", "MAIL FROM:<a@b.example>", "RCPT TO:<a@b.example>", "DATA", message * 3000, ".")
        client.say("QUIT")
        client.writer.write_eof()
        told = await client.rest()
    assert [line[:4] for line in told[-6:]] == ["250 ", "250 ", "250 ", "354 ", "250 ", "221 "]
    assert contents(tmp_path / "m")["new"] == [message * 3000]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"EHLO",
        b"EHLO me\r\n",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\n",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n.",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\nx\r\n.\r",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nBDAT 9\r\nx",
        b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nBDAT 1\r\nx",
        b"BDAT 9\r\nx",
        b"x" * 70_000,
        b"x" * 1_000_000,
    ],
)
async def test_an_end_of_file_ends_the_session_at_any_stage(said: bytes) -> None:
    """However far a half-closed client has come, the session ends by itself, and nothing is stored."""
    script = Scripted()
    async with serving(script) as server:
        client = await server.connect()
        client.say(said)
        client.writer.write_eof()
        told = await client.rest()
        await server.over()
    assert not [line for line in told if line.startswith("4")]
    assert [delivery.is_aborted for delivery in script.deliveries] == [True] * len(script.deliveries)


# Time.


@python_loop
async def test_a_client_may_take_its_time_as_long_as_something_comes() -> None:
    """The idle timer goes by what comes, not by commands: a message may take longer than it allows."""
    script = Scripted()
    async with serving(script, timeout=300) as server:
        client = await begun(server)
        clock = Clock()
        for part in range(10):
            before = len(script.deliveries[0].content)
            client.say(b"x" * 100_000)
            await until(lambda before=before: len(script.deliveries[0].content) > before)  # type: ignore[misc]  # a lambda with a default
            clock.advance(200)
            await turns(5)
            assert part < 20
        assert (await client.ask(b"\r\n.\r\n")).startswith("250")


@python_loop
@pytest.mark.parametrize("said", [b"DATA\r\n", b"BDAT 100\r\n"])
async def test_a_byte_now_and_then_is_enough(said: bytes) -> None:
    """The timer goes by what comes, be it less than is worth handing on."""
    heard: list[bytes] = []

    class Hearing(StreamingSMTP):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            heard.append(data)

    async with serving(Scripted(), Hearing, timeout=300) as server:
        client = await server.connect()
        await client.begin("b@example.com")
        client.say(said)
        clock = Clock()
        for _ in range(9):
            before = len(heard)
            client.say(b"x")
            await until(lambda before=before: len(heard) > before)  # type: ignore[misc]  # a lambda with a default
            clock.advance(200)
            await turns(5)
        assert not server.sessions[0].transport.is_closing()


@python_loop
async def test_a_client_that_falls_silent_is_told_so() -> None:
    """With nothing coming for so long the session is closed with 421, and the message is aborted."""
    script = Scripted()
    async with serving(script, timeout=300) as server:
        client = await begun(server)
        client.say(b"x" * 100_000)
        await until(lambda: script.deliveries[0].content)
        clock = Clock()
        clock.advance(299)
        await turns()
        assert not script.deliveries[0].is_aborted
        clock.advance(2)
        assert await client.rest() == ["421 4.4.2 Timeout, closing connection"]
        await server.over()
    assert script.deliveries[0].is_aborted


@python_loop
async def test_the_disk_s_time_is_not_the_client_s() -> None:
    """While the client waits for the disk, the timer stands still; afterwards it has all of its time again."""
    script = Scripted()
    async with serving(script, timeout=300) as server:
        client = await begun(server)
        clock = Clock()
        script.gate.clear()
        for waiting, sent in enumerate((b"x" * 100_000, b"\r\n.\r\n", b"")):  # twice in send(), once in finish()
            client.say(sent)
            await until(lambda waiting=waiting: script.waiting == waiting + 1)  # type: ignore[misc]  # a lambda with a default
            for _ in range(20):
                clock.advance(299)
                await turns(5)
            script.gate.set()  # for those who wait
            script.gate.clear()
            await turns(5)
            clock.advance(299)
            await turns(5)
        assert (await client.hear()).startswith("250")
        assert await client.ask("NOOP") == "250 2.0.0 OK"
        clock.advance(299)
        await turns(5)
        assert await client.ask("NOOP") == "250 2.0.0 OK"


@python_loop
async def test_a_lookup_s_time_is_not_the_client_s(tmp_path: Path) -> None:
    """While a recipient is being looked up the timer stands still; afterwards the client has all of its time again."""
    looking, found = asyncio.Event(), asyncio.Event()

    async def look_up(address: str) -> str:
        looking.set()
        await found.wait()
        return str(tmp_path / "m")

    async with serving(MaildirHandler(look_up), timeout=300) as server:
        client = await server.connect()
        await client.begin()
        clock = Clock()
        client.say("RCPT TO:<b@example.com>")
        await looking.wait()
        for _ in range(20):
            clock.advance(299)
            await turns(5)
        found.set()
        assert await client.hear() == "250 2.1.5 OK"
        clock.advance(299)
        await turns(5)
        assert await client.ask("NOOP") == "250 2.0.0 OK"


# A slow disk, and memory.


class OneMaildir:
    """A handler that delivers to a maildir on any disk."""

    def __init__(self, maildir: Maildir) -> None:
        self.maildir = maildir
        self.received = 0

    async def open_delivery(self, server: Any, session: Any, envelope: Any, **options: Any) -> Any:
        handler = self

        class Delivery:
            task = handler.maildir.open_append()

            async def send(self, chunk: bytes) -> None:
                handler.received += len(chunk)
                await self.task.send(chunk)

            async def finish(self) -> list[str]:
                self.task.unregister_producer()
                await self.task
                return ["250 2.0.0 Stored"] * len(envelope.rcpt_tos)

            def fail(self, reply: str) -> None:
                raise NotImplementedError

            def abort(self) -> None:
                self.task.cancel()

        return Delivery()


async def test_a_disk_that_hangs_holds_the_client_up(tmp_path: Path) -> None:
    """With the disk behind, no more is read than has room; when it goes on, so does the client."""
    gate = Gate()
    disk = FaultDisk(Fault("write", gate=gate))
    handler = OneMaildir(Maildir(tmp_path / "m", disk=disk, commit=GroupCommit()))
    # Far more than sockets hold, and no line begins with a dot.
    message = b"x" + (random.Random(1).randbytes(MIB) * 32).replace(b"\r\n.", b"\r\n,") + b"\r\n"
    async with serving(handler, data_size_limit=None) as server:
        client = await begun(server)
        client.say(message + b".\r\n")
        draining = asyncio.create_task(client.writer.drain())
        await gate.reached()
        received = -1
        while received != handler.received:  # until nothing comes any more
            received = handler.received
            await asyncio.sleep(0.05)
        is_held_up = not draining.done()
        gate.open()
        assert is_held_up
        assert received < 4 * MIB
        assert (await client.hear()).startswith("250")
        await draining
    is_stored = contents(tmp_path / "m")["new"] == [message]
    assert is_stored  # by itself: pytest would look for the difference, byte by byte


async def test_a_full_disk_in_the_middle(tmp_path: Path) -> None:
    """The rest of the message is taken, then the failure is told, and nothing is left."""
    disk = FaultDisk(Fault("write", error=errno.ENOSPC, nth=2))
    handler = OneMaildir(Maildir(tmp_path / "m", disk=disk, commit=GroupCommit()))
    async with serving(handler) as server:
        client = await begun(server)
        assert await client.asks(b"x" * (4 * MIB) + b"\r\n.\r\n", "NOOP") == [NOT_STORED, "250 2.0.0 OK"]
    assert contents(tmp_path / "m") == {"tmp": [], "new": [], "cur": []}


def grown(path: Path, size: int, clients: int) -> int:
    """Return the bytes that a server's process grows by while so many clients send it so much, at its largest."""
    child = subprocess.run(
        [sys.executable, __file__, str(path), str(size), str(clients)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(maildir_async.__file__).parents[1]), *sys.path])},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    told = json.loads(child.stdout)
    assert told["replies"] == ["250"] * clients
    assert sorted(file.stat().st_size for file in (path / "new").iterdir()) == [size] * clients
    for file in (path / "new").iterdir():
        file.unlink()
    return int(told["grown"])


@pytest.mark.parametrize("clients", [4, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_message_is_never_in_memory(tmp_path: Path, clients: int) -> None:
    """50 MiB grow the process by less than 16 MiB for each connection."""
    growth = grown(tmp_path / "m", 50 * MIB, clients)
    print(f"{clients} x 50 MiB: {growth / MIB:.1f} MiB")
    assert growth < 16 * MIB * clients


def status(field: str) -> int:
    """Return bytes of one kind that this process has, from what Linux tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(path: str, size: int, clients: int) -> None:
    """Serve clients that threads are, and print what the process has grown by."""
    line = b".." + b"x" * 73 + b"\r\n"
    chunk = line * 840
    plain = (len(line) - 1) * 840

    def talk(address: tuple[str, int]) -> str:
        import socket

        with socket.create_connection(address) as connection:
            stream = connection.makefile("rb")
            stream.readline()
            said = [b"HELO me", b"MAIL FROM:<a@b.example>", b"RCPT TO:<a@b.example>", b"DATA"]
            for command in said:
                connection.sendall(command + b"\r\n")
                stream.readline()
            for _ in range(size // plain):
                connection.sendall(chunk)
            connection.sendall(b"x" * (size % plain - 2) + b"\r\n.\r\n")
            reply = stream.readline().decode()
            stream.close()
            return reply[:3]

    async def serve() -> list[str]:
        loop = asyncio.get_running_loop()
        handler = verbatim(path)
        server = await loop.create_server(
            lambda: StreamingSMTP(handler, data_size_limit=None, hostname="mx.example"), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()
        replies = await asyncio.gather(*(asyncio.to_thread(talk, address) for _ in range(clients)))
        server.close()
        return replies

    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted from here
    before = status("VmRSS")
    replies = asyncio.run(serve())
    print(json.dumps({"grown": status("VmHWM") - before, "replies": replies}))


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
