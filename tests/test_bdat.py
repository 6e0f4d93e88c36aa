"""BDAT (RFC 3030) in `StreamingSMTP` and `StreamingLMTP`: counted octets, in as many commands as the client likes."""

import ssl
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async.smtp import StreamingSMTP
from support import contents, turns
from wire import KINDS, REFUSED, SECRET, Client, Clock, Scripted, Server, is_lmtp, serving, until, verbatim

python_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
both_kinds: Final = pytest.mark.parametrize("kind", KINDS)

NOT_STORED: Final = "451 4.3.0 Message not stored, try again later"

#: With everything in it that would end a message sent with DATA, or change in it.
MESSAGE: Final = b".\r\n\r\n.\r\n..x\r\nQUIT\r\n\0\xff bare \r and \n, and no end"


async def begun(server: Server, kind: Any = StreamingSMTP, recipients: int = 1) -> Client:
    """Return a client that may send its message."""
    client = await server.connect()
    names = [f"u{number}@example.com" for number in range(recipients)]
    await client.begin(*names, hello="LHLO" if is_lmtp(kind) else "EHLO")
    return client


@pytest.mark.every_loop
@both_kinds
async def test_octets_are_stored_as_they_are(tmp_path: Path, kind: Any) -> None:
    """Neither dots nor line ends mean anything; each command is answered, the last one for the message."""
    large = b"x" * 1_000_000
    async with serving(verbatim(tmp_path / "m"), kind) as server:
        client = await begun(server, kind)
        assert await client.ask(b"BDAT %d\r\n" % len(MESSAGE), MESSAGE) == f"250 2.0.0 {len(MESSAGE)} octets received"
        assert await client.ask("BDAT 0") == "250 2.0.0 0 octets received"
        assert await client.ask(b"bdat 1000000\r\n", large) == "250 2.0.0 1000000 octets received"
        assert contents(tmp_path / "m").get("new", []) == []
        assert (await client.ask(b"BDAT 3 last\r\nend")).startswith("250 2.0.0 ")
        assert contents(tmp_path / "m") == {"tmp": [], "new": [MESSAGE + large + b"end"], "cur": []}
        assert await client.ask("NOOP") == "250 2.0.0 OK"


@both_kinds
@pytest.mark.parametrize("parts", [[b"x"], [b"x", b""], [b"", b"x"]])
async def test_the_last_may_be_the_first_or_empty(kind: Any, parts: list[bytes]) -> None:
    """BDAT 0 LAST ends a message; so does the only BDAT there is."""
    script = Scripted()
    async with serving(script, kind) as server:
        client = await begun(server, kind)
        for number, part in enumerate(parts):
            last = b" LAST" if number == len(parts) - 1 else b""
            assert (await client.ask(b"BDAT %d%s\r\n%s" % (len(part), last, part))).startswith("250")
    assert [(delivery.content, delivery.is_finished) for delivery in script.deliveries] == [(b"x", True)]


@both_kinds
async def test_each_recipient_is_answered_for_after_the_last(kind: Any) -> None:
    """LMTP has a reply for each after LAST, and one only after the others (RFC 2033 §4.2)."""
    async with serving(Scripted(), kind) as server:
        client = await begun(server, kind, recipients=2)
        client.say(b"BDAT 1\r\nxBDAT 1 LAST\r\ny", "NOOP")
        told = [await client.hear() for _ in range(4 if is_lmtp(kind) else 3)]
        stored = ["250 2.0.0 Stored 0", "250 2.0.0 Stored 1"][: 1 + is_lmtp(kind)]
        assert told == ["250 2.0.0 1 octets received", *stored, "250 2.0.0 OK"]


@pytest.mark.every_loop
async def test_it_may_all_come_at_once(tmp_path: Path) -> None:
    """Pipelined, two messages and everything around them."""
    envelope = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
    async with serving(verbatim(tmp_path / "m")) as server:
        client = await server.connect()
        client.say("EHLO me", envelope, b"BDAT 2\r\nQUBDAT 4 LAST\r\nIT\r\n", envelope, b"BDAT 0 LAST\r\n", "QUIT")
        told = await client.rest()
    assert [line[:9] for line in told[-8:]] == [
        *("250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0"),
        *("250 2.1.0", "250 2.1.5", "250 2.0.0", "221 2.0.0"),
    ]
    assert contents(tmp_path / "m")["new"] == [b"QUIT\r\n", b""]


# What is wrong.


@both_kinds
async def test_octets_of_a_refused_command_are_dropped(kind: Any) -> None:
    """Out of turn, the octets are read, and are no commands; the reply is as for DATA."""
    script = Scripted()
    hello = "LHLO" if is_lmtp(kind) else "EHLO"
    async with serving(script, kind) as server:
        client = await server.connect()
        assert (
            await client.ask(b"BDAT 6\r\nQUIT\r\n")
            == f"503 5.5.1 Error: send {'LHLO' if is_lmtp(kind) else 'HELO'} first"
        )
        await client.ask(f"{hello} me")
        assert await client.ask(b"BDAT 6\r\nQUIT\r\n") == "503 5.5.1 Error: need RCPT command"
        assert await client.ask(b"BDAT 6 LAST\r\nQUIT\r\n") == "503 5.5.1 Error: need RCPT command"
        assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert script.deliveries == []


async def test_authentication_is_asked_for() -> None:
    """With ``auth_required`` nothing is opened for who has not authenticated, and the octets are dropped."""
    script = Scripted()
    async with serving(script, auth_required=True) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        assert await client.ask(b"BDAT 6\r\nQUIT\r\n") == "530 5.7.0 Authentication required"
        assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert script.deliveries == []


@pytest.mark.every_loop
async def test_octets_are_dropped_where_aiosmtpd_refuses_the_command(certificate: ssl.SSLContext) -> None:
    """For want of TLS: what was sent with it is no command, and a size that cannot be read ends the session."""
    script = Scripted()
    async with serving(script, tls_context=certificate, require_starttls=True) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        refused = "530 5.7.0 Must issue a STARTTLS command first"
        assert await client.ask(b"BDAT 6 LAST\r\nQUIT\r\n", b"BDAT 70000\r\n", bytes(70_000)) == refused
        assert await client.hear() == refused
        assert await client.ask("NOOP") == "250 2.0.0 OK"
        client.say(b"BDAT six\r\nNOOP\r\n")
        assert await client.rest() == [refused, "421 4.3.0 Message not stored, closing connection"]
    assert script.deliveries == []


@pytest.mark.parametrize(
    "arg", ["", " ", " x", " -1", " +1", " 1_0", " ²", " 1 FIRST", " 1 LAST x", f" {'9' * 21}", " 0x5"]
)
async def test_a_size_that_cannot_be_read_ends_the_session(arg: str) -> None:
    """Nobody knows where such octets end; rather than take them for commands the server says 501 and closes."""
    script = Scripted()
    async with serving(script) as server:
        client = await begun(server)
        client.say(f"BDAT{arg}", "NOOP", "NOOP")
        assert await client.rest() == ["501 5.5.4 Syntax: BDAT <octets> [LAST]; closing connection"]
        await server.over()
    assert script.deliveries == []


@both_kinds
async def test_what_may_not_come_in_between(kind: Any) -> None:
    """DATA, RCPT and MAIL are refused once a message has begun to come; the message is not disturbed."""
    script = Scripted()
    async with serving(script, kind) as server:
        client = await begun(server, kind)
        await client.ask(b"BDAT 1\r\nx")
        told = await client.asks("DATA", "RCPT TO:<c@example.com>", "MAIL FROM:<c@example.com>", "NOOP", "VRFY x")
        assert [line[:9] for line in told] == ["503 5.5.1"] * 3 + ["250 2.0.0", "252 2.0.0"]
        assert (await client.ask(b"BDAT 1 LAST\r\ny")).startswith("250")
    assert [(delivery.content, delivery.is_finished) for delivery in script.deliveries] == [(b"xy", True)]


@pytest.mark.every_loop
@both_kinds
@pytest.mark.parametrize("command", ["RSET", "EHLO me", "QUIT"])
async def test_a_message_may_be_given_up(tmp_path: Path, kind: Any, command: str) -> None:
    """RSET, a new greeting, QUIT: nothing is left, and what comes next is a message of its own."""
    command = command.replace("EHLO", "LHLO") if is_lmtp(kind) else command
    async with serving(verbatim(tmp_path / "m"), kind) as server:
        client = await begun(server, kind)
        await client.ask(b"BDAT 1000000\r\n", b"x" * 1_000_000)
        assert (await client.ask(command))[:1] == "2"
        if command == "QUIT":
            await server.over()
            client = await begun(server, kind)
        else:
            assert (await client.ask(b"BDAT 1 LAST\r\nx")).startswith("503 5.5.1")
            await client.begin("b@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
        assert (await client.ask(b"BDAT 1 LAST\r\ny")).startswith("250")
    assert contents(tmp_path / "m") == {"tmp": [], "new": [b"y"], "cur": []}


@both_kinds
async def test_a_delivery_that_cannot_be(kind: Any) -> None:
    """Refused at the first BDAT, the octets of all are dropped, and the answer stays the same up to the last."""
    for opening, told in ((REFUSED, REFUSED.reply), (SECRET, NOT_STORED)):
        script = Scripted(opening=opening)
        async with serving(script, kind) as server:
            client = await begun(server, kind, recipients=2)
            client.say(b"BDAT 6\r\nQUIT\r\nBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\n", "NOOP")
            replies = [await client.hear() for _ in range(5 if is_lmtp(kind) else 4)]
            assert replies == [told] * (len(replies) - 1) + ["250 2.0.0 OK"]
            script.opening = None
            await client.begin("b@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
            assert (await client.ask(b"BDAT 1 LAST\r\ny")).startswith("250")


@both_kinds
@pytest.mark.parametrize("where", ["sending", "finishing"])
async def test_an_exception_is_answered(kind: Any, where: str) -> None:
    """What a delivery raises is a temporary failure of the chunk, and of the message, for every recipient."""
    script = Scripted(**{where: SECRET})  # type: ignore[arg-type]
    async with serving(script, kind) as server:
        client = await begun(server, kind, recipients=2)
        client.say(b"BDAT 1\r\nxBDAT 6 LAST\r\nQUIT\r\n", "NOOP")
        first = NOT_STORED if where == "sending" else "250 2.0.0 1 octets received"
        replies = [await client.hear() for _ in range(4 if is_lmtp(kind) else 3)]
        assert replies == [first] + [NOT_STORED] * (len(replies) - 2) + ["250 2.0.0 OK"]
    assert [delivery.is_aborted for delivery in script.deliveries] == [True]


@both_kinds
async def test_a_message_over_the_limit_is_refused_by_its_size(tmp_path: Path, kind: Any) -> None:
    """The chunk that makes it too large is refused before it has come: its octets are dropped, nothing is left."""
    async with serving(verbatim(tmp_path / "m"), kind, data_size_limit=100_000) as server:
        client = await begun(server, kind)
        assert (await client.ask(b"BDAT 60000\r\n", b"x" * 60_000)).startswith("250")
        told = await client.ask(b"BDAT 60000\r\n", b"QUIT\r\n" * 10_000)
        assert told == "552 5.3.4 Message too large"
        assert await client.ask(b"BDAT 0 LAST\r\n") == "552 5.3.4 Message too large"
        await client.begin("b@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
        assert (await client.ask(b"BDAT 100000 LAST\r\n", b"x" * 100_000)).startswith("250")
    assert contents(tmp_path / "m") == {"tmp": [], "new": [b"x" * 100_000], "cur": []}


async def test_what_is_over_the_limit_is_not_sent_on() -> None:
    """Of a chunk that is too large by what is said of it, the delivery gets nothing."""
    script = Scripted()
    async with serving(script, data_size_limit=1000) as server:
        client = await begun(server)
        assert (await client.ask(b"BDAT 5000000 LAST\r\n", b"x" * 5_000_000)).startswith("552 5.3.4")
        client.say(b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<a@b.example>\r\nBDAT 99999999999999999999\r\nx")
        client.writer.write_eof()
        await client.rest()
    assert [(delivery.content, delivery.reply[:9]) for delivery in script.deliveries] == [(b"", "552 5.3.4")] * 2


async def test_a_line_over_the_limit() -> None:
    """Lines are looked at across chunks."""
    async with serving(Scripted(), line_length_limit=10) as server:
        client = await begun(server)
        assert (await client.ask(b"BDAT 6\r\nabcdef")).startswith("250")
        assert await client.ask(b"BDAT 5\r\nghi\r\n") == "500 5.6.0 Line too long"
        assert await client.ask(b"BDAT 0 LAST\r\n") == "500 5.6.0 Line too long"
        assert await client.ask("NOOP") == "250 2.0.0 OK"


@pytest.mark.every_loop
@both_kinds
@pytest.mark.parametrize(
    "sent", [b"BDAT 9\r\n", b"BDAT 9\r\nx", b"BDAT 1\r\nx", b"BDAT 2000000 LAST\r\n" + b"x" * 1_000_000]
)
async def test_a_client_that_goes_leaves_nothing(tmp_path: Path, kind: Any, sent: bytes) -> None:
    """Gone in the middle of a chunk, or between two: nothing is left on disk."""
    async with serving(verbatim(tmp_path / "m"), kind) as server:
        client = await begun(server, kind)
        client.say(sent)
        await client.writer.drain()
        client.writer.close()
        await server.over()
    assert not any(contents(tmp_path / "m").values())


@pytest.mark.every_loop
async def test_a_connection_lost_between_two_chunks_aborts_the_message() -> None:
    """The delivery of an unfinished sequence is aborted when the connection is lost, or the session's task ended."""
    script = Scripted()
    async with serving(script) as server:
        for is_lost in (True, False):
            client = await begun(server)
            assert (await client.ask(b"BDAT 1\r\nx")).startswith("250")
            session = server.sessions[-1]
            if is_lost:
                session.transport.abort()
            else:
                session._handler_coroutine.cancel()
            await client.rest()
            await server.over()
    assert [delivery.is_aborted for delivery in script.deliveries] == [True, True]


@pytest.mark.every_loop
async def test_a_session_s_task_that_is_ended_aborts_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled in the middle of a chunk, with a loop that is about to stop: nobody else will tell the delivery."""
    script = Scripted()
    async with serving(script) as server:
        client = await begun(server)
        client.say(b"BDAT 9\r\nx")
        await until(lambda: script.waiting)
        session = server.sessions[0]
        monkeypatch.setattr(session, "connection_lost", lambda error: None)
        session._handler_coroutine.cancel()
        await server.over()
        assert script.deliveries[0].is_aborted
        session._timeout_handle.cancel()


@python_loop
@pytest.mark.parametrize("limit", [None, 5], ids=["taken", "dropped"])
async def test_the_idle_timer_begins_anew_after_each_chunk(limit: int | None) -> None:
    """A chunk may take longer than the timer allows, and after it the client has all of its time for the next."""
    heard: list[bytes] = []

    class Hearing(StreamingSMTP):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            heard.append(data)

    async with serving(Scripted(), Hearing, timeout=300, data_size_limit=limit) as server:
        client = await begun(server)
        clock = Clock()
        for _ in range(2):
            client.say("BDAT 10")
            for _ in range(5):
                clock.advance(200)
                await turns(5)
                before = len(heard)
                client.say(b"xx")
                await until(lambda before=before: len(heard) > before)  # type: ignore[misc]  # a lambda with a default
            assert (await client.hear())[:3] == ("552" if limit else "250")
            clock.advance(299)
            await turns(5)
            assert await client.ask("NOOP") == "250 2.0.0 OK"
        clock.advance(301)
        assert await client.rest() == ["421 4.4.2 Timeout, closing connection"]


@both_kinds
async def test_it_is_announced(kind: Any) -> None:
    """CHUNKING is among the extensions, and BDAT has its line of HELP."""
    async with serving(Scripted(), kind) as server:
        client = await server.connect()
        assert "250-CHUNKING" in (await client.ask("LHLO me" if is_lmtp(kind) else "EHLO me")).split("\n")
        assert await client.ask("HELP BDAT") == "250 2.0.0 Syntax: BDAT <octets> [LAST]"
        assert await client.ask("HELP DATA") == "250 2.0.0 Syntax: DATA"
