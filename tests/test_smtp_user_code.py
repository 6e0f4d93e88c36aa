"""Code of the user's in the servers: what it raises costs nobody else an answer; it runs in the session's context."""

import asyncio
import contextvars
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import GroupCommit, Maildir
from maildir_async.smtp import MaildirHandler, Receipt, StreamingLMTP
from maildir_async.smtp.user_code import ClientGoneError, UserCodeError, raising_trouble, trouble, trouble_of_callback
from support import contents
from wire import KINDS, Client, Scripted, is_lmtp, serving, until

both_kinds: Final = pytest.mark.parametrize("kind", KINDS)


class Odd(BaseException):
    """What is no Exception, and ends no program."""


RAISED: Final[dict[str, type[BaseException]]] = {"a foreign cancellation": asyncio.CancelledError, "no Exception": Odd}
both_ways: Final = pytest.mark.parametrize("raised", RAISED.values(), ids=list(RAISED))


async def begun(server: Any, kind: Any, *names: str) -> tuple[Client, list[str]]:
    """Return a client that has named its recipients, and the answers for those."""
    client = await server.connect()
    told = await client.asks(
        "LHLO me" if is_lmtp(kind) else "EHLO me",
        "MAIL FROM:<a@example.com>",
        *(f"RCPT TO:<{name}@example.com>" for name in names),
    )
    return client, told[2:]


# What it raises.


@both_ways
@both_kinds
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_resolver_may_raise_anything(tmp_path: Path, kind: Any, raised: Any, is_async: bool) -> None:
    """Its recipient is told 451; the others have their maildirs, and the session goes on."""

    def find(address: str) -> Path:
        if address.startswith("odd"):
            raise raised
        return tmp_path / "m"

    async def find_later(address: str) -> Path:
        if raised is asyncio.CancelledError and address.startswith("odd"):
            lookup = asyncio.get_running_loop().create_future()
            lookup.cancel()
            await lookup
        return find(address)

    async with serving(MaildirHandler(find_later if is_async else find), kind) as server:
        client, told = await begun(server, kind, "odd", "b")
        assert [reply[:9] for reply in told] == ["451 4.3.0", "250 2.1.5"]
        assert (await client.ask("DATA")).startswith("354")
        assert (await client.ask(b"x\r\n.\r\n")).startswith("250")
    assert len(contents(tmp_path / "m")["new"]) == 1


@both_ways
@both_kinds
async def test_on_receipt_may_raise_anything(tmp_path: Path, kind: Any, raised: Any) -> None:
    """The client is told what is true, the other receipts are told too, and the session goes on."""
    told: list[str] = []

    def show(receipt: Receipt) -> None:
        told.append(receipt.address)
        raise raised

    handler = MaildirHandler(lambda address: tmp_path / address[0], on_receipt=show)
    async with serving(handler, kind) as server:
        client, _ = await begun(server, kind, "b", "c")
        assert (await client.ask("DATA")).startswith("354")
        client.say(b"x\r\n.\r\n", "NOOP")
        replies = [await client.hear() for _ in range(3 if is_lmtp(kind) else 2)]
    assert {reply[:9] for reply in replies} == {"250 2.0.0"}
    assert told == ["b@example.com", "c@example.com"]


@both_ways
@both_kinds
@pytest.mark.parametrize("where", ["opening", "sending", "finishing"])
async def test_a_delivery_may_raise_anything(kind: Any, raised: Any, where: str) -> None:
    """It is 451, to DATA or for each recipient, the delivery is aborted, and the session goes on."""
    script = Scripted(**{where: raised()})
    async with serving(script, kind) as server:
        client, _ = await begun(server, kind, "b", "c")
        told = await client.ask("DATA")
        if where != "opening":
            assert told.startswith("354")
            client.say(b"x\r\n.\r\n")
            told = await client.hear()
            if is_lmtp(kind):
                assert await client.hear() == told
        assert told.startswith("451 4.3.0")
        assert await client.ask("NOOP") == "250 2.0.0 OK"
    assert all(delivery.is_aborted for delivery in script.deliveries)


@both_ways
async def test_a_hook_may_raise_anything(raised: Any) -> None:
    """The command is told 451, and the session goes on."""

    class Handler(Scripted):
        async def handle_VRFY(self, *args: Any) -> str:  # noqa: N802
            raise raised

    async with serving(Handler()) as server:
        client = await server.connect()
        assert (await client.asks("EHLO me", "VRFY <a@example.com>", "NOOP"))[1:] == [
            "451 4.3.0 Message not stored, try again later",
            "250 2.0.0 OK",
        ]


async def test_a_client_that_goes_during_a_lookup_ends_it(tmp_path: Path) -> None:
    """That cancellation is the session's own, and no trouble of the resolver's: nothing is looked up for nobody."""
    ended: list[BaseException] = []
    asked = asyncio.Event()

    async def find(address: str) -> Path:
        asked.set()
        try:
            await asyncio.Event().wait()
        except BaseException as exc:
            ended.append(exc)
            raise
        return tmp_path

    async with serving(MaildirHandler(find)) as server:
        client = await server.connect()
        client.say("EHLO me", "MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")
        await asked.wait()
        client.writer.transport.abort()
        await until(lambda: bool(ended))
    assert type(ended[0]) is asyncio.CancelledError


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, GeneratorExit, ClientGoneError])
async def test_what_ends_the_program_or_the_session_is_no_trouble(ends: type[BaseException]) -> None:
    """It is raised again."""
    for judge in (trouble, trouble_of_callback):
        with pytest.raises(ends):
            judge(ends())


async def test_what_is_trouble() -> None:
    """An Exception is itself, and anything else the cause of one; a cancellation is meant if the task was cancelled."""
    error = ValueError()
    assert trouble(error) is error
    for odd in (Odd("x"), asyncio.CancelledError("x")):
        found = trouble(odd)
        assert isinstance(found, UserCodeError)
        assert found.__cause__ is odd
    with pytest.raises(UserCodeError), raising_trouble():
        raise Odd

    async def judged() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            trouble(exc)

    task = asyncio.create_task(judged())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Closed(MaildirHandler):
    """Its maildirs have been closed, which is a fault of whoever made it."""

    def maildir(self, path: Any, commit: GroupCommit | None = None) -> Maildir:
        maildir = super().maildir(path, commit)
        maildir.mailbox.close()
        return maildir


@both_kinds
@pytest.mark.parametrize("size", [10, 700_000], ids=["short", "stream"])
@pytest.mark.parametrize("recipients", [1, 2])
async def test_a_closed_maildir_is_one_s_own_trouble(tmp_path: Path, kind: Any, size: int, recipients: int) -> None:
    """An overridden ``maildir()`` may return one: 4xx when the message has come, no place is kept, nothing is left."""
    commit = GroupCommit(wait=False)
    handler = Closed(lambda address: tmp_path / address[0], commit=commit)
    async with serving(handler, kind) as server:
        client, _ = await begun(server, kind, *"bc"[:recipients])
        assert (await client.ask("DATA")).startswith("354")
        client.say(b"x" * size + b"\r\n.\r\n", "NOOP")
        replies = [await client.hear() for _ in range(recipients if is_lmtp(kind) else 1)]
        assert {reply[0] for reply in replies} == {"4"}
        assert await client.hear() == "250 2.0.0 OK"
    assert commit.statistics().pending == 0
    assert not any(tmp_path.iterdir())


# Where it runs.

_who: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("who", default="nobody")


@pytest.mark.parametrize("is_full", [False, True], ids=["at once", "after a wait"])
async def test_a_resolver_and_on_receipt_run_in_the_session_s_context(tmp_path: Path, is_full: bool) -> None:
    """What one of them sets the other finds, however long the message has waited for a place; no other session does."""
    seen: list[tuple[str, str]] = []
    commit = GroupCommit(max_pending=1)

    def find(address: str) -> Path:
        seen.append((address, _who.get()))
        _who.set(address)
        return tmp_path / address[0]

    def show(receipt: Receipt) -> None:
        seen.append((receipt.address, _who.get()))

    handler = MaildirHandler(find, on_receipt=show, commit=commit)
    async with serving(handler, StreamingLMTP) as server:
        clients = [(await begun(server, StreamingLMTP, name))[0] for name in "bc"]
        if is_full:
            assert (await clients[0].ask("DATA")).startswith("354")
            clients[1].say("DATA")
            await until(lambda: commit.statistics().waiting == 1)
            clients[0].say(b"x\r\n.\r\n")
            assert (await clients[0].hear()).startswith("250")
            assert (await clients[1].hear()).startswith("354")
            assert (await clients[1].ask(b"x\r\n.\r\n")).startswith("250")
        else:
            for client in clients:
                assert (await client.ask("DATA")).startswith("354")
                assert (await client.ask(b"x\r\n.\r\n")).startswith("250")
    assert seen == [
        ("b@example.com", "nobody"),
        ("c@example.com", "nobody"),
        ("b@example.com", "b@example.com"),
        ("c@example.com", "c@example.com"),
    ]
