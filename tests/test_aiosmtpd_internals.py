"""What `StreamingSMTP` rests on in aiosmtpd beyond its documentation. If one of these fails, so may the servers.

After a new release of aiosmtpd has failed here, read what has changed there, and the methods of `LastingSMTP` and
`StreamingSMTP` that have the name; only then change the table.
"""

import ast
import asyncio
import inspect
import types
from collections.abc import Callable
from typing import Any, Final

import pytest
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session, TLSSetupException

from maildir_async.smtp import StreamingLMTP, StreamingSMTP, clients, commands, envelope, sessions, streaming
from maildir_async.smtp.wire import SessionReader
from wire import Scripted

#: Methods that are called, or replaced: their parameters.
METHODS: Final = {
    "_call_handler_hook": "(self, command, *args)",
    "_cb_client_connected": "(self, reader, writer)",
    "_getaddr": "(self, arg)",
    "_reset_timeout": "(self, duration=None)",
    "_handle_client": "(self)",
    "_set_post_data_state": "(self)",
    "_set_rset_state": "(self)",
    "_timeout_cb": "(self)",
    "check_auth_needed": "(self, caller_method)",
    "check_helo_needed": "(self, helo='HELO')",
    "connection_lost": "(self, error)",
    "connection_made": "(self, transport)",
    "data_received": "(self, data)",
    "eof_received": "(self)",
    "handle_exception": "(self, error)",
    "push": "(self, status)",
    "smtp_DATA": "(self, arg)",
    "smtp_MAIL": "(self, arg)",
    "smtp_RCPT": "(self, arg)",
    "smtp_STARTTLS": "(self, arg)",
    "smtp_VRFY": "(self, arg)",
}

#: Attributes of a session that has just been made: their types.
ATTRIBUTES: Final[dict[str, Any]] = {
    "_auth_require_tls": bool,
    "_auth_required": bool,
    "_ehlo_hook_ver": types.NoneType,
    "_handle_hooks": dict,
    "_original_transport": types.NoneType,
    "_smtp_methods": dict,
    "_timeout_duration": (int, float),
    "_timeout_handle": types.NoneType,
    "_tls_protocol": types.NoneType,
    "__ident__": str,
    "hostname": str,
    "require_starttls": types.NoneType,
    "command_size_limits": dict,
    "local_part_limit": int,
    "data_size_limit": int,
    "enable_SMTPUTF8": bool,
    "envelope": types.NoneType,
    "event_handler": Scripted,
    "loop": asyncio.AbstractEventLoop,
    "session": types.NoneType,
    "transport": types.NoneType,
}

#: Made by `_cb_client_connected`.
CONNECTED: Final = {"_reader", "_writer"}


def made(kind: Callable[..., Any] = SMTP, **options: Any) -> Any:
    """Return a session that is connected to nothing. To be called on a loop."""
    return kind(Scripted(), hostname="mx.example", loop=asyncio.get_running_loop(), **options)


def used() -> set[str]:
    """Return what our classes use of themselves and do not define."""
    names: set[str] = set()
    for module in (envelope, sessions, commands, clients, streaming):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute):
                of = node.value
                is_super = isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "super"
                if is_super or (isinstance(of, ast.Name) and of.id == "self"):
                    names.add(node.attr)
    own = {
        name
        for kind in (
            envelope.EnvelopeSMTP,
            sessions.LastingSMTP,
            commands.CommandSMTP,
            clients.ClientSMTP,
            StreamingSMTP,
            StreamingLMTP,
        )
        for name in vars(kind)
    }
    for kind in (sessions.LastingSMTP, commands.CommandSMTP, clients.ClientSMTP, StreamingSMTP):
        tree = ast.parse(inspect.getsource(kind.__init__).replace("\n    ", "\n").strip())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Attribute):
                        own.add(target.attr)
    return (names - own) | (set(METHODS) & own) | (set(ATTRIBUTES) & names) - {"__init__"}


def test_the_tables_are_whole() -> None:
    """Whatever our classes use of aiosmtpd's is in the tables above, and nothing else is."""
    assert used() - {"__init__"} == set(METHODS) | set(ATTRIBUTES) | CONNECTED


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_their_parameters(name: str) -> None:
    """Each method takes what it did."""
    signature = inspect.signature(getattr(SMTP, name))
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(parameters)) == METHODS[name]


@pytest.mark.parametrize(
    "name",
    ["_call_handler_hook", "check_auth_needed", "check_helo_needed", "handle_exception", "push", "smtp_RCPT"],
)
def test_what_is_awaited_is_a_coroutine(name: str) -> None:
    """Each of these is a coroutine function."""
    assert inspect.iscoroutinefunction(getattr(SMTP, name))


@pytest.mark.parametrize("name", ["_reset_timeout", "_set_post_data_state", "_timeout_cb", "_getaddr"])
def test_what_is_not_awaited_is_none(name: str) -> None:
    """None of these is a coroutine function."""
    assert not inspect.iscoroutinefunction(getattr(SMTP, name))


async def test_attributes_have_their_types() -> None:
    """A new session has all of the attributes."""
    session = made()
    for name, kind in ATTRIBUTES.items():
        assert isinstance(getattr(session, name), kind), name


async def test_sessions_and_envelopes() -> None:
    """They have what is read and written here."""
    session = Session(asyncio.get_running_loop())
    assert {"host_name", "extended_smtp", "authenticated", "ssl", "peer"} <= set(vars(session))
    assert {"mail_from", "mail_options", "rcpt_tos", "rcpt_options", "smtp_utf8"} <= set(vars(Envelope()))


async def test_the_hook_for_ehlo() -> None:
    """Hooks are found by name when a session is made; that for EHLO has a version beside it."""

    class New(Scripted):
        async def handle_EHLO(self, server: Any, session: Any, envelope: Any, hostname: Any, responses: Any) -> Any:  # noqa: N802
            raise NotImplementedError

    handler = New()
    session = SMTP(handler, hostname="mx.example", loop=asyncio.get_running_loop())
    assert session._handle_hooks == {"EHLO": handler.handle_EHLO}
    assert session._ehlo_hook_ver == "new"


async def test_limits_of_commands_are_the_instance_s() -> None:
    """Its constructor clears the limits, which are one for all: each session of ours has its own, the class none."""
    ours = made(StreamingSMTP)
    limits = dict(ours.command_size_limits)
    made()
    made(StreamingSMTP)
    assert dict(ours.command_size_limits) == limits
    assert ours.command_size_limits is not SMTP.command_size_limits
    assert dict(SMTP.command_size_limits) == {}
    assert ours.max_command_size_limit == sessions.AUTH_SIZE


@pytest.mark.every_loop
async def test_the_reader_is_ours() -> None:
    """What `connection_made` hands to `_cb_client_connected` is the reader that the session was made with."""
    session = made(StreamingSMTP)
    transport = Transport()
    session.connection_made(transport)
    try:
        assert isinstance(session._reader, SessionReader)
        assert session._reader is session._stream_reader
        assert session._writer.transport is transport
    finally:
        await ended(session)


class Transport(asyncio.Transport):
    """One that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.said += bytes(data)

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        raise NotImplementedError


async def ended(session: Any) -> None:
    """Lose the session's connection, and wait for its end."""
    session._writer.close()
    session.connection_lost(None)
    await asyncio.wait([session._handler_coroutine])


class Spy(asyncio.StreamReader):
    """A reader that knows how it was asked."""

    def __init__(self, *answers: bytes | BaseException) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    def _answer(self, *asked: Any) -> bytes:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def readuntil(self, *args: Any) -> bytes:
        return self._answer("readuntil", *args)

    async def readline(self) -> bytes:
        return self._answer("readline")


async def spied(spy: Spy, commands: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Transport]:
    """Have aiosmtpd's own loop read from *spy* to its end.."""

    class Spied(SMTP):
        def _cb_client_connected(self, reader: Any, writer: Any) -> None:
            super()._cb_client_connected(spy, writer)

        async def handle_exception(self, error: Exception) -> str:
            return f"451 {type(error).__name__}"

    session, transport = made(Spied, **options), Transport()
    session._smtp_methods.update(commands or {})
    session.connection_made(transport)
    await asyncio.wait([session._handler_coroutine], timeout=30)
    session.connection_lost(None)
    return session, transport


@pytest.mark.every_loop
async def test_how_the_loop_asks_for_a_command() -> None:
    """It asks for a line with ``readuntil()``, without arguments, and ends when that raises CancelledError."""
    spy = Spy(b"NOOP\r\n", asyncio.CancelledError())
    session, transport = await spied(spy)
    assert spy.asked == [("readuntil",)] * 2
    assert session._handler_coroutine.cancelled()
    assert transport.is_closed
    assert transport.said.endswith(b"\r\n250 OK\r\n")


async def test_how_the_loop_answers_an_exception() -> None:
    """What a command raises is given to ``handle_exception``, and what that returns is pushed."""

    async def failing(arg: Any) -> None:
        raise ValueError

    _, transport = await spied(Spy(b"NOOP\r\n", asyncio.CancelledError()), {"NOOP": failing})
    assert transport.said.endswith(b"\r\n451 ValueError\r\n")


@pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")
async def test_how_auth_asks_for_an_answer() -> None:
    """It asks for it with ``readline()``."""
    spy = Spy(b"EHLO me\r\n", b"AUTH PLAIN\r\n", b"*\r\n", asyncio.CancelledError())
    _, transport = await spied(spy, auth_require_tls=False)
    assert spy.asked == [("readuntil",), ("readuntil",), ("readline",), ("readuntil",)]
    assert b"\r\n334 \r\n501 5.7.0 " in transport.said


def test_commands_are_methods() -> None:
    """``smtp_X`` is the command X; LMTP's greeting is SMTP's own."""
    assert issubclass(StreamingLMTP, LMTP)
    assert StreamingLMTP.smtp_LHLO is LMTP.smtp_LHLO  # type: ignore[comparison-overlap, unused-ignore]
    assert StreamingLMTP.smtp_HELO is LMTP.smtp_HELO
    assert StreamingLMTP.smtp_EHLO is LMTP.smtp_EHLO
    assert issubclass(TLSSetupException, Exception)


async def test_rset_and_ehlo_set_the_post_data_state() -> None:
    """All that begins a new transaction goes through `_set_post_data_state`, which makes the envelope."""
    calls: list[str] = []

    class Counting(SMTP):
        def _set_post_data_state(self) -> None:
            calls.append("")
            super()._set_post_data_state()  # type: ignore[no-untyped-call]

    session, transport = made(Counting), Transport()
    session.connection_made(transport)
    assert isinstance(session.envelope, Envelope)
    for line in (b"EHLO me\r\n", b"HELO me\r\n", b"RSET\r\n"):
        before = len(calls)
        session.data_received(line)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(calls) == before + 1
    await ended(session)


@pytest.mark.every_loop
async def test_the_timer() -> None:
    """`_reset_timeout` has `_timeout_cb` called once, so many seconds later."""
    session, rung = made(timeout=300), asyncio.Event()
    session._timeout_cb = rung.set
    session._reset_timeout()
    first = session._timeout_handle
    assert 299 < first.when() - session.loop.time() <= 300.001  # uvloop counts in whole milliseconds
    session._reset_timeout(0.001)
    assert first.cancelled()
    async with asyncio.timeout(30):
        await rung.wait()


async def test_long_local_parts_may_be_refused() -> None:
    """`local_part_limit`, an attribute that users of aiosmtpd set, is kept to."""
    session = made(StreamingSMTP)
    session.local_part_limit = 64
    assert not session._is_long(f"{'x' * 64}@example.com")
    assert session._is_long(f"{'x' * 65}@example.com")
