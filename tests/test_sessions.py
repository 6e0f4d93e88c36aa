"""Sessions of `StreamingSMTP` and `StreamingLMTP`: what is announced and answered, and every way they can end."""

import asyncio
import base64
import re
import resource
import smtplib
import socket
import ssl
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from maildir_async.smtp import StreamingLMTP, StreamingSMTP, clients, commands, own_name
from support import PATIENCE_S, contents, turns
from wire import KINDS, SECRET, Client, Clock, Scripted, is_lmtp, serving, until, verbatim

python_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
both_kinds: Final = pytest.mark.parametrize("kind", KINDS)

ENVELOPE: Final = ["MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>"]

TIMEOUT: Final = "421 4.4.2 Timeout, closing connection"
SHUTTING_DOWN: Final = "421 4.3.2 Service shutting down"
NOT_STORED: Final = "451 4.3.0 Message not stored, try again later"


# The greeting.


@both_kinds
async def test_what_is_announced(kind: Any) -> None:
    """What is served, in one reply without enhanced codes, the last line being the last."""
    async with serving(Scripted(), kind, data_size_limit=1000) as server:
        client = await server.connect()
        told = await client.ask("LHLO me" if is_lmtp(kind) else "EHLO me")
    keywords = ["SIZE 1000", "8BITMIME", "SMTPUTF8", "PIPELINING", "ENHANCEDSTATUSCODES", "CHUNKING"]
    assert told.split("\n") == ["250-mx.example", *(f"250-{keyword}" for keyword in keywords), "250 HELP"]


async def test_lmtp_has_its_own_greeting() -> None:
    """LMTP knows LHLO only, and SMTP does not know that."""
    async with serving(Scripted(), StreamingLMTP) as server:
        client = await server.connect()
        told = await client.asks("HELO me", "EHLO me", "MAIL FROM:<a@b.example>")
        assert [line[:3] for line in told] == ["500", "500", "503"]
        assert "LHLO" in told[2]
    async with serving(Scripted()) as server:
        client = await server.connect()
        assert (await client.ask("LHLO me")).startswith("500")
        assert await client.ask("HELO me") == "250 mx.example"


@pytest.mark.filterwarnings("ignore:Use the 5-argument handle_EHLO:DeprecationWarning")
async def test_a_handler_may_change_what_is_announced() -> None:
    """A handler's own EHLO hook gets all lines, and its answer is what is said; the older kind of hook adds a line."""

    class New(Scripted):
        async def handle_EHLO(  # noqa: N802
            self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
        ) -> list[str]:
            session.host_name = f"really {hostname}"
            return [line for line in responses if "CHUNKING" not in line]

    class Old(Scripted):
        async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: str) -> str:  # noqa: N802
            session.host_name = hostname
            await server.push("250-MORE")
            return "250 END"

    async with serving(New()) as server:
        client = await server.connect()
        told = await client.ask("EHLO me")
        assert "250-PIPELINING" in told
        assert "CHUNKING" not in told
        assert server.sessions[0].session.host_name == "really me"
        assert await client.ask(ENVELOPE[0]) == "250 2.1.0 OK"
    async with serving(Old()) as server:
        client = await server.connect()
        told = await client.ask("EHLO me")
        assert told.split("\n")[-5:] == [*(f"250-{word}" for word in clients.KEYWORDS), "250-MORE", "250 END"]
        assert await client.ask(ENVELOPE[0]) == "250 2.1.0 OK"


async def test_the_resolver_is_asked_once_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a host name given, this host's is looked up for the first connection only."""
    asked: list[str] = []

    def getfqdn() -> str:
        asked.append("")
        return "this.example"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    own_name.cache_clear()
    try:
        names = [StreamingSMTP(Scripted(), loop=asyncio.get_running_loop()).hostname for _ in range(3)]
    finally:
        own_name.cache_clear()
    assert names == ["this.example"] * 3
    assert asked == [""]


# Replies.

BARE_LF: Final = "500 5.5.2 Error: a line ends with CR LF, not with LF"

CODED: Final = re.compile(r"[245]\d\d[ -]([245])\.\d{1,3}\.\d{1,3} \S")

MALFORMED: Final = {
    "": "500",
    " ": "500",
    "FOO": "500",
    "FOO BAR": "500",
    " NOOP": "500",
    "FOO\rBAR": "500",
    "NOOP\rNOOP": "500",
    "\x01\x7f\x9f": "500",
    "\xff": "500",
    "HELO": "501",
    "EHLO": "501",
    "MAIL": "501",
    "MAIL FROM": "501",
    "MAIL FROM:": "501",
    "MAIL FROM:<>": "250",
    "MAIL TO:<a@b.example>": "501",
    "MAIL FROM:<": "501",
    'MAIL FROM:"': "501",
    "MAIL FROM:<é@ü.example": "501",
    "MAIL FROM:<a b@c.example>": "501",
    "MAIL FROM:<a@b.example> SIZE=²": "501",
    "MAIL FROM:<a@b.example> SIZE=-1": "501",
    "MAIL FROM:<a@b.example> SIZE=9999999999999999999999": "552",
    "MAIL FROM:<a@b.example> BODY=BINARYMIME": "501",
    "MAIL FROM:<a@b.example> SMTPUTF8=1": "501",
    "MAIL FROM:<a@b.example> FOO=1": "555",
    "MAIL FROM:<a@b.example> =": "501",
    "RCPT": "503",
    "RCPT TO:<a@b.example>": "503",
    "DATA": "503",
    "RSET now": "501",
    "QUIT now": "501",
    "VRFY": "501",
    "VRFY <": "501",
    "VRFY \xff\u2028": "501",
    "VRFY alice": "252",
    "EXPN": "502",
    "HELP": "250",
    "HELP FOO": "501",
    "AUTH": "538",
    "STARTTLS": "454",
    "BDAT 0": "503",
}


@pytest.mark.parametrize("command", MALFORMED)
@pytest.mark.parametrize("option", [True, False])
async def test_malformed_commands(command: str, option: bool) -> None:
    """Each is told what is wrong, with an enhanced code, permanent where sending it again would not help."""
    async with serving(Scripted(), enable_SMTPUTF8=option) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        told = await client.ask(command)
        assert told.isprintable()
        assert told.isascii()
        if option:
            assert told[:3] == MALFORMED[command]
        assert told[0] in "25" or command == "STARTTLS"
        if command != "EHLO" and command != "HELO":
            coded = CODED.match(told)
            assert coded is not None
            assert coded[1] == told[0]
        assert await client.ask("NOOP") == "250 2.0.0 OK"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"NOOP\n", [BARE_LF]),
        (b"NOOP\nRSET\r\n", [BARE_LF, "250 2.0.0 OK"]),
        (b"MAIL FROM:<a@b.example>\n", [BARE_LF]),
        (b"FOO\n", [BARE_LF]),
        (b"NOOP\rNOOP\r\n", ['500 5.5.1 Error: command "NOOP?NOOP" not recognized']),
        (b"NOOP\r\r\n", ["250 2.0.0 OK"]),
        (b"\n", [BARE_LF]),
        (b"\r\n\r\n", ["500 5.5.2 Error: bad syntax"] * 2),
        (b"NOOP\0\r\n", ['500 5.5.1 Error: command "NOOP?" not recognized']),
    ],
)
async def test_line_ends_of_commands(sent: bytes, told: list[str]) -> None:
    """A command ends with CRLF alone (RFC 5321 §2.3.8); what ends otherwise is one mistake, and the session goes on."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        client.say(sent, "QUIT")
        assert await client.rest() == [*told, "221 2.0.0 Bye"]


@pytest.mark.parametrize("length", [1_000, 65_000, 65_540, 1_000_000])
async def test_an_overlong_command_is_one_mistake(length: int) -> None:
    """However long, it is read to its end and refused; the session goes on."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        assert await client.ask("EHLO me", "NOOP " + "x" * length) != ""
        assert await client.hear() == "500 5.5.2 Command line too long"
        assert await client.ask("NOOP") == "250 2.0.0 OK"


async def test_one_client_s_limits_are_no_other_s() -> None:
    """A client may use the room that its extensions give a command, whoever has connected since."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        other = await server.connect()
        await other.ask("HELO me")
        sender = "x" * 530
        assert await client.ask(f"MAIL FROM:<{sender}@example.com> SIZE=1 BODY=8BITMIME SMTPUTF8") == "250 2.1.0 OK"
        assert await client.ask(f"RCPT TO:<{sender}@example.com>") == "500 5.5.2 Command line too long"
        assert await client.ask(f"RCPT TO:<{'x' * 480}@example.com>") == "250 2.1.5 OK"
        assert await other.ask(f"MAIL FROM:<{sender}@example.com>") == "500 5.5.2 Command line too long"


async def test_hooks_that_raise_tell_nothing() -> None:
    """Whatever a hook raises, the client hears 451, and may go on."""

    class Handler(Scripted):
        async def fail(self, *_: Any) -> str:
            raise SECRET

        handle_HELO = handle_MAIL = handle_RCPT = handle_RSET = handle_NOOP = handle_VRFY = handle_QUIT = fail  # noqa: N815

        async def handle_EHLO(self, server: Any, session: Any, *rest: Any) -> list[str]:  # noqa: N802
            raise SECRET

    handler: Any = Handler()
    handler.handle_EHLO = lambda server, session, envelope, hostname, responses: handler.fail()
    async with serving(handler) as server:
        client = await server.connect()
        for command in ("EHLO me", "HELO me", "RSET", "NOOP", "VRFY a", "QUIT"):
            assert await client.ask(command) == NOT_STORED
        server.sessions[0].session.host_name = "me"
        assert await client.ask(ENVELOPE[0]) == NOT_STORED
        server.sessions[0].envelope.mail_from = "a@example.com"
        assert await client.ask(ENVELOPE[1]) == NOT_STORED


@pytest.mark.parametrize("answer", [None, 3, "so be it", SECRET])
async def test_what_a_handler_makes_of_an_exception_is_made_a_reply(answer: Any) -> None:
    """Whatever its ``handle_exception`` returns or raises, the client hears a reply, and the session goes on."""

    class Handler(Scripted):
        async def handle_NOOP(self, *_: Any) -> str:  # noqa: N802
            raise SECRET

        async def handle_exception(self, error: Exception) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    async with serving(Handler()) as server:
        client = await server.connect()
        assert await client.asks("NOOP", "RSET") == [NOT_STORED, "250 2.0.0 OK"]


async def test_what_a_hook_says_is_made_a_reply() -> None:
    """Codes are added to a hook's words, control characters are taken out; what is no text is a failure."""
    answers: list[Any] = ["250 fine", "550 no", "450 4.1.1 own code", "250 a\0b\nc", "552 full", None, 3, b"250 bytes"]

    class Handler(Scripted):
        async def handle_RCPT(self, *_: Any) -> Any:  # noqa: N802
            return answers.pop(0)

    async with serving(Handler()) as server:
        client = await server.connect()
        await client.asks("EHLO me", ENVELOPE[0])
        told = [await client.ask(ENVELOPE[1]) for _ in range(len(answers))]
    assert told == [
        *("250 2.1.5 fine", "550 5.1.1 no", "450 4.1.1 own code", "250 2.1.5 a?b?c", "552 5.2.2 full"),
        *(NOT_STORED, NOT_STORED, "250 bytes"),
    ]


async def test_replies_are_ascii_unless_the_client_can_do_more() -> None:
    """Text that is not ASCII is said in a transaction with SMTPUTF8 only (RFC 6531 §3.7.4.2)."""

    class Handler(Scripted):
        async def handle_RCPT(self, *_: Any) -> str:  # noqa: N802
            return "550 5.1.1 Grüße"

    async with serving(Handler()) as server:
        client = await server.connect()
        for mail, told in (("", "550 5.1.1 Gr??e"), (" SMTPUTF8", "550 5.1.1 Grüße")):
            await client.asks("EHLO me", ENVELOPE[0] + mail)
            assert await client.ask(ENVELOPE[1]) == told


@pytest.mark.every_loop
async def test_floods_are_ended_with_421() -> None:
    """Too many errors, or too many of one command, end the session."""
    async with serving(Scripted(), max_errors=4, command_call_limit={"NOOP": 2, "*": 9}) as server:
        client = await server.connect()
        client.say(*["FOO"] * 9)
        told = await client.rest()
        assert len(told) == 5
        assert told[-1] == "421 4.7.0 Error: too many errors"
        client = await server.connect()
        client.say(*["NOOP"] * 9)
        assert await client.rest() == ["250 2.0.0 OK"] * 2 + ["421 4.7.0 NOOP sent too many times"]


@pytest.mark.every_loop
async def test_a_flood_of_commands_keeps_nobody_waiting() -> None:
    """Commands that come all at once are answered a few at a time: others have their turns in between."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        task = server.sessions[0]._handler_coroutine
        answered = 0

        class Counting:
            async def handle_NOOP(self, *_: Any) -> str:  # noqa: N802
                nonlocal answered
                answered += 1
                return "250 OK"

        server.sessions[0]._handle_hooks["NOOP"] = Counting().handle_NOOP
        client.say(*["NOOP"] * 3000)
        seen: set[int] = set()
        while answered < 3000:
            seen.add(answered)
            await asyncio.sleep(0)
            assert not task.done()
        steps = sorted(seen)
        assert max(after - before for before, after in pairwise(steps)) <= 2 * commands.COMMANDS_A_TURN


async def test_rset_forgets_the_envelope() -> None:
    """After RSET there is no sender and no recipient."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        told = await client.asks("EHLO me", *ENVELOPE, "RSET", "DATA", ENVELOPE[1], *ENVELOPE)
        assert [line[:9] for line in told[3:]] == ["250 2.0.0", "503 5.5.1", "503 5.5.1", "250 2.1.0", "250 2.1.5"]


@pytest.mark.every_loop
async def test_a_proxy_in_front() -> None:
    """With the PROXY protocol, the greeting comes after its line, and is plain."""

    class Handler(Scripted):
        async def handle_PROXY(self, server: Any, session: Any, envelope: Any, proxy_data: Any) -> bool:  # noqa: N802
            return str(proxy_data.src_addr) == "192.0.2.1"

    async with serving(Handler(), proxy_protocol_timeout=300) as server:
        client = Client(*await asyncio.open_connection(*server.address))
        server.clients.append(client)
        assert (await client.ask("PROXY TCP4 192.0.2.1 192.0.2.2 1 25")).startswith("220 mx.example ")
        assert await client.ask("NOOP") == "250 2.0.0 OK"


def test_in_a_stock_controller(tmp_path: Path) -> None:
    """`Controller.factory` may return one: a message sent with smtplib is stored; `stop` leaves nothing running."""

    class Streaming(Controller):
        def factory(self) -> StreamingSMTP:
            return StreamingSMTP(self.handler, **self.SMTP_kwargs)

    controller = Streaming(verbatim(tmp_path / "m"), hostname="127.0.0.1", port=0, ready_timeout=PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    controller.port = port
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_S) as client:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: x\n\n.\n", mail_options=["SIZE=12"])
    finally:
        controller.stop()
    assert contents(tmp_path / "m")["new"] == [b"Subject: x\r\n\r\n.\r\n"]


# Time.


@python_loop
@pytest.mark.parametrize("trickle", [False, True], ids=["silent", "slow loris"])
async def test_a_command_has_to_come_in_time(trickle: bool) -> None:
    """A client gets 421 when it has sent no command for so long, whether it sends nothing or bit by bit."""
    async with serving(Scripted(), timeout=300) as server:
        client = await server.connect()
        clock = Clock()
        for _ in range(3):
            clock.advance(99)
            if trickle:
                client.say(b"N")
            await turns()
        assert server.sessions[0].transport is not None
        clock.advance(4)
        assert await client.rest() == [TIMEOUT]
        await server.over()


@python_loop
async def test_a_command_gives_all_of_the_time_again() -> None:
    """The timer begins anew with each command."""
    async with serving(Scripted(), timeout=300) as server:
        client = await server.connect()
        clock = Clock()
        for _ in range(5):
            clock.advance(299)
            await turns(5)
            assert await client.ask("NOOP") == "250 2.0.0 OK"


@python_loop
async def test_a_client_that_does_not_listen_is_cut_off() -> None:
    """One that reads none of its replies cannot keep a connection that is closing for ever."""
    async with serving(Scripted(), timeout=300) as server:
        client = await server.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = server.sessions[0]
        client.say(b"HELP\r\n" * 500_000)
        await until(lambda: session.transport.get_write_buffer_size() > 2**16)  # past which the session waits
        clock = Clock()
        clock.advance(301)
        await server.over()
        await until(lambda: session.transport is None)


@python_loop
@pytest.mark.parametrize("in_a_message", [False, True])
async def test_a_client_that_has_stopped_listening_before_its_time_is_up(
    monkeypatch: pytest.MonkeyPatch, in_a_message: bool
) -> None:
    """If even the 421 cannot be said, the connection is cut when as much time has gone by again."""
    async with serving(Scripted(), timeout=300, message_timeout=290) as server:
        client = await server.connect()
        if in_a_message:
            await client.begin("b@example.com")
            assert (await client.ask("DATA")).startswith("354")
        session = server.sessions[0]
        aborted = asyncio.Event()
        transport = session.transport
        monkeypatch.setattr(session, "transport", Deaf(transport, aborted))
        clock = Clock()
        for seconds in (301, 250):
            clock.advance(seconds)
            await turns()
            assert not aborted.is_set()
        clock.advance(51)
        async with asyncio.timeout(PATIENCE_S):
            await aborted.wait()
        monkeypatch.setattr(session, "transport", transport)


class Deaf:
    """A transport whose peer reads nothing any more."""

    def __init__(self, transport: Any, aborted: asyncio.Event) -> None:
        self._transport = transport
        self._aborted = aborted
        self._is_closing = False

    def write(self, data: bytes) -> None:
        assert not self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def is_closing(self) -> bool:
        return self._is_closing

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self._aborted.set()
        self._transport.abort()


# Shutting down.


@pytest.mark.every_loop
@both_kinds
async def test_a_session_that_waits_is_ended_at_once(kind: Any) -> None:
    """421 and the end, whether or not a command has begun to come."""
    async with serving(Scripted(), kind) as server:
        fresh, greeted, typing = [await server.connect() for _ in range(3)]
        for client in (greeted, typing):
            await client.asks("LHLO me" if is_lmtp(kind) else "EHLO me", *ENVELOPE)
        typing.say(b"NO")
        await turns()
        for session in server.sessions:
            session.shut_down()
            session.shut_down()
        for client in (fresh, greeted, typing):
            assert await client.rest() == [SHUTTING_DOWN]
        await server.over()


@pytest.mark.every_loop
@both_kinds
async def test_a_message_that_comes_is_stored_before_the_end(kind: Any) -> None:
    """In the middle of DATA: the rest is taken, stored and answered for all, then 421; no more commands are."""
    script = Scripted()
    async with serving(script, kind) as server:
        client = await server.connect()
        await client.begin("a@b.example", "b@b.example", hello="LHLO" if is_lmtp(kind) else "EHLO")
        client.say("DATA", b"x" * 100_000)
        assert (await client.hear()).startswith("354")
        await until(lambda: script.waiting)
        server.sessions[0].shut_down()
        script.gate.clear()
        client.say(b"\r\n.\r\n", "NOOP")
        await until(lambda: script.waiting > 1)
        server.sessions[0].shut_down()
        script.gate.set()
        stored = ["250 2.0.0 Stored 0", "250 2.0.0 Stored 1"][: 1 + is_lmtp(kind)]
        assert await client.rest() == [*stored, SHUTTING_DOWN]
        await server.over()
    assert script.deliveries[0].is_finished


@pytest.mark.every_loop
async def test_a_client_that_authenticates_is_answered_before_the_end() -> None:
    """In the middle of AUTH: its outcome is told, then 421."""
    async with serving(Scripted(), **AUTH) as server:
        client = await server.connect()
        await client.asks("EHLO me", "AUTH LOGIN")
        server.sessions[0].shut_down()
        assert (await client.ask(b64("alice"))).startswith("334")
        client.say(b64("wrong"))
        assert await client.rest() == ["535 5.7.8 Authentication credentials invalid", SHUTTING_DOWN]


@pytest.mark.every_loop
async def test_a_command_is_answered_before_the_end() -> None:
    """In the middle of a hook: its command is answered; those that came behind it are not."""
    entered, gate = asyncio.Event(), asyncio.Event()

    class Handler(Scripted):
        async def handle_RCPT(self, *_: Any) -> str:  # noqa: N802
            entered.set()
            await gate.wait()
            return "250 2.1.5 OK"

    async with serving(Handler()) as server:
        client = await server.connect()
        await client.asks("EHLO me", ENVELOPE[0])
        client.say(ENVELOPE[1], "DATA")
        await entered.wait()
        server.sessions[0].shut_down()
        gate.set()
        assert await client.rest() == ["250 2.1.5 OK", SHUTTING_DOWN]


@pytest.mark.every_loop
async def test_a_sequence_of_chunks_is_finished_before_the_end() -> None:
    """Between two BDAT commands a message is in the middle; it is stored, then 421. A failed one is not waited for."""
    script = Scripted()
    async with serving(script, data_size_limit=10) as server:
        client = await server.connect()
        await client.begin("a@b.example")
        await client.ask(b"BDAT 1\r\nx")
        server.sessions[0].shut_down()
        assert await client.ask(b"BDAT 1\r\ny") == "250 2.0.0 1 octets received"
        client.say(b"BDAT 1 LAST\r\nz", "NOOP")
        assert await client.rest() == ["250 2.0.0 Stored 0", SHUTTING_DOWN]
        client = await server.connect()
        await client.begin("a@b.example")
        assert (await client.ask(b"BDAT 11\r\n", b"x" * 11)).startswith("552")
        server.sessions[1].shut_down()
        assert await client.rest() == [SHUTTING_DOWN]
    assert [delivery.content for delivery in script.deliveries] == [b"xyz", b""]


@pytest.mark.every_loop
async def test_a_session_may_be_shut_down_before_it_begins() -> None:
    """One that is told before its connection is made greets, and ends."""

    class Late(StreamingSMTP):
        def connection_made(self, transport: Any) -> None:
            self.shut_down()
            super().connection_made(transport)

    async with serving(Scripted(), Late) as server:
        client = await server.connect()
        assert await client.rest() == [SHUTTING_DOWN]


# Many.


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Have this process open as many files as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("many", [200, pytest.param(1000, marks=pytest.mark.heavy)])
@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
async def test_idle_clients_are_in_nobody_s_way(tmp_path: Path, many: int) -> None:
    """Beside them a message is delivered; they are all told when the server shuts down."""
    async with serving(verbatim(tmp_path / "m")) as server:
        idle = [await server.connect() for _ in range(many)]
        client = await server.connect()
        await client.begin("b@example.com")
        assert await client.ask("DATA")
        assert (await client.ask(b"x\r\n.\r\n")).startswith("250")
        for session in server.sessions:
            session.shut_down()
        for one in idle:
            assert await one.rest() == [SHUTTING_DOWN]
        await server.over()
    assert contents(tmp_path / "m")["new"] == [b"x\r\n"]


# TLS and AUTH, which are aiosmtpd's.


def trusting() -> ssl.SSLContext:
    """Return what a client needs that believes any server."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def secured(client: Client) -> None:
    """Have *client* go on in TLS, having said STARTTLS."""
    async with asyncio.timeout(PATIENCE_S):
        await client.writer.start_tls(trusting(), server_hostname="mx.example")


@pytest.mark.every_loop
async def test_starttls(certificate: ssl.SSLContext) -> None:
    """Messages come through TLS as ever, and are said to; the envelope begins anew; chunks in between are forgotten."""
    script = Scripted()
    async with serving(script, tls_context=certificate) as server:
        client = await server.connect()
        assert "250-STARTTLS" in await client.ask("EHLO me")
        await client.asks(*ENVELOPE)
        assert (await client.ask(b"BDAT 1\r\nx")).startswith("250")
        assert await client.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await secured(client)
        assert (await client.ask("DATA")).startswith("503")
        await client.begin("b@example.com")
        assert (await client.ask("DATA")).startswith("354")
        assert (await client.ask(b"y" * 300_000 + b"\r\n.\r\n")).startswith("250")
        assert await client.ask("QUIT") == "221 2.0.0 Bye"
    assert [protocol for protocol, _ in script.asked] == ["ESMTP", "ESMTPS"]
    assert [delivery.is_aborted for delivery in script.deliveries] == [True, False]
    assert script.deliveries[1].content == b"y" * 300_000 + b"\r\n"


@pytest.mark.every_loop
async def test_there_is_one_tls(certificate: ssl.SSLContext) -> None:
    """STARTTLS within TLS is 503 and not announced (RFC 3207 §4.2), and the session lives; `tls_begun` is called."""
    begun: list[Any] = []

    class Session(StreamingSMTP):
        def tls_begun(self) -> None:
            begun.append(self.session.ssl is not None)  # type: ignore[union-attr]

    async with serving(Scripted(), Session, tls_context=certificate, require_starttls=True) as server:
        client = await server.connect()
        assert (await client.ask("STARTTLS now")).startswith("501")
        assert begun == []
        assert await client.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await secured(client)
        assert "STARTTLS" not in await client.ask("EHLO me")
        assert await client.ask("STARTTLS") == "503 5.5.1 Error: TLS already active"
        assert await client.ask("NOOP") == "250 2.0.0 OK"
        assert begun == [True]


@pytest.mark.every_loop
async def test_tls_from_the_beginning(certificate: ssl.SSLContext) -> None:
    """With implicit TLS STARTTLS is done already, whatever the options say; `tls_begun` is called."""
    begun: list[str] = []

    class Session(StreamingSMTP):
        def tls_begun(self) -> None:
            begun.append(str(self.session and self.session.peer))

    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"hostname": "mx.example", "tls_context": certificate, "require_starttls": True}
    listening = await loop.create_server(
        lambda: Session(Scripted(), peer=("192.0.2.1", 7), loop=loop, **options), "127.0.0.1", 0, ssl=certificate
    )
    async with listening:
        client = Client(*await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=trusting()))
        assert await client.hear() != ""
        assert "STARTTLS" not in await client.ask("EHLO me")
        assert await client.ask("STARTTLS") == "503 5.5.1 Error: TLS already active"
        assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("250")
        assert await client.ask("QUIT") == "221 2.0.0 Bye"
        assert begun == ["('192.0.2.1', 7)"]
        client.writer.close()


@pytest.mark.every_loop
async def test_what_came_before_tls_is_forgotten(certificate: ssl.SSLContext) -> None:
    """Commands put behind STARTTLS by somebody on the way are not taken for the client's (CVE-2011-0411)."""
    script = Scripted()
    async with serving(script, tls_context=certificate) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        client.say("STARTTLS", "EHLO evil", "MAIL FROM:<evil@example.com>", "RCPT TO:<b@example.com>", "DATA", b"evil")
        assert (await client.hear()).startswith("220")
        await secured(client)
        assert (await client.ask("NOOP")) == "250 2.0.0 OK"
        assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("503")
    assert script.deliveries == []


@pytest.mark.every_loop
async def test_a_client_that_goes_in_tls_leaves_nothing(certificate: ssl.SSLContext) -> None:
    """Gone in the middle of a message, with TLS's farewell or without."""
    for farewell in (True, False):
        script = Scripted()
        async with serving(script, tls_context=certificate) as server:
            client = await server.connect()
            await client.asks("EHLO me", "STARTTLS")
            await secured(client)
            await client.begin("b@example.com")
            client.say("DATA", b"x" * 300_000)
            await until(lambda script=script: script.waiting)  # type: ignore[misc]  # a lambda with a default
            if farewell:
                client.writer.close()
            else:
                client.writer.transport.abort()
            await server.over()
        assert [delivery.is_aborted for delivery in script.deliveries] == [True]


@pytest.mark.every_loop
async def test_a_handshake_that_fails_ends_the_session(certificate: ssl.SSLContext) -> None:
    """What is no TLS after STARTTLS gets no more than an alert."""
    async with serving(Scripted(), tls_context=certificate) as server:
        client = await server.connect()
        await client.asks("EHLO me", "STARTTLS")
        client.say("EHLO me", "EHLO me", "EHLO me")
        async with asyncio.timeout(PATIENCE_S):
            await client.reader.read()
        await server.over()


@pytest.mark.every_loop
async def test_a_client_that_goes_in_the_handshake_ends_the_session(certificate: ssl.SSLContext) -> None:
    """The session does not wait for ever for a handshake that nobody goes on with."""
    async with serving(Scripted(), tls_context=certificate) as server:
        client = await server.connect()
        await client.asks("EHLO me", "STARTTLS")
        client.say(b"\x16\x03\x01")
        client.writer.close()
        await server.over()


@python_loop
async def test_a_handshake_has_to_come_in_time(certificate: ssl.SSLContext) -> None:
    """A client that says STARTTLS and falls silent is cut off, without a word in the clear."""
    async with serving(Scripted(), tls_context=certificate, timeout=30) as server:
        client = await server.connect()
        await client.asks("EHLO me", "STARTTLS")
        clock = Clock()
        clock.advance(31)
        assert await client.rest() == []
        await server.over()


def authenticator(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    """Know one user."""
    return AuthResult(success=(data.login, data.password) == (b"alice", b"secret"), handled=False)


AUTH: Final[dict[str, Any]] = {"authenticator": authenticator, "auth_require_tls": False}


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.filterwarnings("ignore:Session.login_data")
async def test_auth() -> None:
    """PLAIN and LOGIN work as in aiosmtpd, challenges are as they were, and the message is said to be A."""
    script = Scripted()
    async with serving(script, **AUTH) as server:
        for commands in (
            [f"AUTH PLAIN {b64(chr(0) + 'alice' + chr(0) + 'secret')}"],
            ["AUTH LOGIN", b64("alice"), b64("secret")],
        ):
            client = await server.connect()
            assert "250-AUTH LOGIN PLAIN" in await client.ask("EHLO me")
            told = await client.asks(*commands)
            assert all(re.fullmatch(r"334 [A-Za-z0-9+/=]*", line) for line in told[:-1])
            assert told[-1] == "235 2.7.0 Authentication successful"
            await client.asks(*ENVELOPE)
            assert (await client.ask("DATA")).startswith("354")
    assert [protocol for protocol, _ in script.asked] == ["ESMTPA"] * 2


async def test_auth_that_fails() -> None:
    """Wrong, broken off, no base64, twice, of no known kind: told so, each with a code."""
    async with serving(Scripted(), **AUTH) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        told = [
            await client.ask(f"AUTH PLAIN {b64(chr(0) + 'alice' + chr(0) + 'wrong')}"),
            (await client.asks("AUTH PLAIN", "*"))[-1],
            (await client.asks("AUTH LOGIN", "%%%"))[-1],
            await client.ask("AUTH FOO"),
            await client.ask("AUTH"),
            await client.ask("AUTH PLAIN a b"),
        ]
        assert [line[:9] for line in told] == [
            *("535 5.7.8", "501 5.7.0", "501 5.5.2", "504 5.5.4", "501 5.5.4", "501 5.5.4"),
        ]


@pytest.mark.every_loop
async def test_half_an_answer_to_a_challenge_is_none() -> None:
    """A client that goes while it is asked for a password has not given one."""
    asked: list[Any] = []
    async with serving(Scripted(), **AUTH | {"authenticator": lambda *args: asked.append(args)}) as server:
        client = await server.connect()
        await client.asks("EHLO me", "AUTH LOGIN", b64("alice"))
        client.say(b64("secre").encode())
        client.writer.write_eof()
        assert await client.rest() == []
        await server.over()
    assert asked == []
