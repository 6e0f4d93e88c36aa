"""Command lines that are none, errors that are counted, and what a greeting may say."""

import asyncio
import base64
import socket
from typing import Any, Final

import pytest
from aiosmtpd.smtp import AuthResult

from maildir_async.smtp import StreamingLMTP, StreamingSMTP, own_name
from wire import Scripted, serving

TOO_LONG: Final = "500 5.5.2 Command line too long"


@pytest.mark.every_loop
@pytest.mark.parametrize(
    "line",
    [
        b"x" * 65_600 + b"BDAT 15 LAST",
        b"x" * 65_536 + b"BDAT 15",
        b"BDAT 15" + b" " * 600,
        b"BDAT 15 " + b"x" * 600,
        b"BDAT 15 LAST" + b" " * 66_000,
        b"BDAT " + b"1" * 66_000,
        b"BDAT x" + b"\0" * 200_000,
        b"\n".join([b"x" * 70_000]),
    ],
    ids=range(8),
)
async def test_an_overlong_line_is_refused_once(line: bytes) -> None:
    """Whatever is in it, it is one mistake: nothing is skipped for it, and no part of it is a command."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        await client.begin("b@example.com")
        client.say(line + b"\r\nNOOP\r\nNOOP\r\nQUIT\r\n")
        assert await client.rest() == [TOO_LONG, "250 2.0.0 OK", "250 2.0.0 OK", "221 2.0.0 Bye"]


async def test_an_overlong_line_may_follow_a_bdat_that_was_refused() -> None:
    """The octets of the BDAT are dropped, and no more."""
    async with serving(Scripted(), command_call_limit={"BDAT": 9, "*": 9}) as server:
        client = await server.connect()
        client.say(b"EHLO me\r\nBDAT 5\r\nhello" + b"BDAT 9 " + b"x" * 70_000 + b"\r\nNOOP\r\nQUIT\r\n")
        told = [line for line in await client.rest() if not line.startswith("250-")]
        assert [line[:3] for line in told] == ["250", "503", "500", "250", "221"]


async def test_a_client_may_go_in_an_overlong_line() -> None:
    """A line without an end is no command, and ends with the client."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        client.say(b"x" * 200_000)
        client.writer.write_eof()
        assert await client.rest() == []


async def test_an_overlong_answer_to_a_challenge() -> None:
    """RFC 4954 §4: 500 5.5.6; its tail is no command."""
    options: dict[str, Any] = {"auth_require_tls": False, "authenticator": lambda *_: AuthResult(success=True)}
    async with serving(Scripted(), **options) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        assert (await client.ask("AUTH LOGIN")).startswith("334")
        assert (await client.ask(b"A" * 70_000 + b"\r\n")).startswith("500 5.5.6 ")
        assert (await client.ask("NOOP")) == "250 2.0.0 OK"
        assert (await client.ask("AUTH PLAIN " + base64.b64encode(b"\0a\0b").decode())).startswith("235")


@pytest.mark.parametrize("sent", [b"NOOP\n", b"BDAT 0 LAST\r\n\r\nNOOP\r\n"])
async def test_a_bare_lf_may_be_taken(sent: bytes) -> None:
    """With accept_bare_lf a command may end with it."""
    async with serving(Scripted(), accept_bare_lf=True) as server:
        client = await server.connect()
        client.say(b"NOOP\nRSET\nQUIT\n")
        assert [line[:3] for line in await client.rest()] == ["250", "250", "221"]


async def test_octets_after_a_bdat_with_a_bare_lf_are_no_commands() -> None:
    """Its octets come next whatever is said to it, so that the session ends."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        client.say(b"BDAT 6\nRSET\r\nNOOP\r\n")
        assert await client.rest() == ["421 4.3.0 Message not stored, closing connection"]


# Errors.


@pytest.mark.parametrize("command", ["FOO", "RCPT TO:<b@example.com>", "MAIL", "VRFY", ""])
async def test_too_many_errors_end_the_session(command: str) -> None:
    """So many replies with 4xx or 5xx, whatever the commands, and it is 421 4.7.0 (smtpd_hard_error_limit)."""
    async with serving(Scripted(), max_errors=3) as server:
        client = await server.connect()
        client.say(*[command, "NOOP"] * 5)
        told = await client.rest()
        assert [line[:3] for line in told] == ["50" + told[0][2], "250"] * 2 + ["50" + told[0][2], "421"]
        assert told[-1] == "421 4.7.0 Error: too many errors"


async def test_a_message_that_is_stored_begins_a_new_count() -> None:
    """Postfix: errors "without delivering mail". In LMTP a refused recipient is no error."""
    async with serving(Scripted(), max_errors=3) as server:
        client = await server.connect()
        for _ in range(3):
            assert [line[:3] for line in await client.asks("FOO", "FOO")] == ["500"] * 2
            await client.begin("b@example.com")
            assert (await client.ask(b"BDAT 0 LAST\r\n")).startswith("250")
    async with serving(Scripted(), StreamingLMTP, max_errors=3) as server:
        client = await server.connect()
        assert [line[:3] for line in await client.asks(*["RCPT TO:<b@example.com>"] * 9)] == ["503"] * 9
        client.say(*["FOO"] * 9)
        assert (await client.rest())[-1] == "421 4.7.0 Error: too many errors"


@pytest.mark.parametrize("wrong", [0, -1])
async def test_max_errors_is_a_count(wrong: int) -> None:
    """None at all would be no session."""
    with pytest.raises(ValueError, match="max_errors"):
        StreamingSMTP(Scripted(), max_errors=wrong, loop=asyncio.get_running_loop())


# The greeting.


async def test_the_greeting_says_what_it_is_told() -> None:
    """The ident is what follows the name; it cannot end the line."""
    async with serving(Scripted(), ident="ESMTP ready") as server:
        reader, writer = await asyncio.open_connection(*server.address)
        assert await reader.readline() == b"220 mx.example ESMTP ready\r\n"
        writer.close()
    for wrong in ("a\r\nb", "a\n", "é", 1):
        with pytest.raises(ValueError, match="ident"):
            StreamingSMTP(Scripted(), ident=wrong, loop=asyncio.get_running_loop())


@pytest.mark.parametrize(
    ("name", "known"), [("a" * 64 + ".example", "a" * 63 + ".example"), ("a..b", "a.b"), ("..", "localhost")]
)
def test_a_host_name_that_is_no_domain_is_mended(
    monkeypatch: pytest.MonkeyPatch, name: str, known: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the IDNA codec refuses the host's name there is a name all the same (RFC 1035 §2.3.4), and a warning."""

    def getfqdn() -> str:
        name.encode("idna")
        raise AssertionError(name)

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    own_name.cache_clear()
    try:
        assert own_name() == known
    finally:
        own_name.cache_clear()
    assert "is no domain name" in caplog.text
