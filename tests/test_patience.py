"""Clients that take their time: what each of them may take, and what becomes of one that takes more."""

import asyncio
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from maildir_async.smtp import MaildirHandler, StreamingSMTP
from maildir_async.smtp.patience import MESSAGE_TIMEOUT_S, Patience
from support import PATIENCE_S, contents, turns
from wire import KINDS, REFUSED, Client, Clock, Scripted, Server, is_lmtp, serving, until, verbatim

#: Time goes by as told, on loops written in Python only.
python_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
both_kinds: Final = pytest.mark.parametrize("kind", KINDS)

TIMEOUT: Final = "421 4.4.2 Timeout, closing connection"
TOOK_TOO_LONG: Final = "421 4.4.2 Message took too long, closing connection"

#: More than a delivery keeps in memory.
LARGE: Final = b"x" * 1_500_000


class Bench:
    """A client of one session, and how much time goes by for both of them."""

    def __init__(self, server: Server, client: Client) -> None:
        self.client = client
        self.clock = Clock()
        self._session = server.sessions[-1]
        self._heard = 0
        received = self._session.data_received

        def data_received(data: bytes) -> None:
            received(data)
            self._heard += len(data)

        self._session.data_received = data_received

    async def say(self, said: bytes) -> None:
        """Have the server hear so much, and do what it does about it."""
        before = self._heard
        self.client.say(said)
        await until(lambda: self._heard == before + len(said) or self.is_over)
        await turns(5)

    async def later(self, seconds: float) -> None:
        """Let so much time go by, and the server do what it does then."""
        self.clock.advance(seconds)
        await turns(5)

    async def trickle(self, seconds: int, said: bytes = b"x", every: int = 100) -> None:
        """Say something now and then, for so long."""
        for _ in range(seconds // every):
            await self.say(said)
            await self.later(every)

    @property
    def is_over(self) -> bool:
        """Whether the server has closed the connection."""
        transport = self._session.transport
        return transport is None or transport.is_closing()


async def begun(server: Server, kind: Any, *recipients: str) -> Bench:
    """Return a client that may send its message."""
    client = await server.connect()
    await client.begin(*recipients or ["b@example.com"], hello="LHLO" if is_lmtp(kind) else "EHLO")
    return Bench(server, client)


# A command.


@python_loop
async def test_the_time_for_a_command_begins_with_the_last_reply() -> None:
    """What the server has kept the client waiting with is not taken off, be the last command good or bad."""
    entered, gate = asyncio.Event(), asyncio.Event()

    class Slow(Scripted):
        async def handle_NOOP(self, *_: Any) -> str:  # noqa: N802
            entered.set()
            await gate.wait()
            return "250 OK"

    async with serving(Slow(), timeout=300) as server:
        bench = Bench(server, await server.connect())
        bench.client.say("NOOP")
        await entered.wait()
        await bench.later(299)
        gate.set()
        assert await bench.client.hear() == "250 2.0.0 OK"
        for _ in range(2):
            await bench.later(299)
            assert (await bench.client.ask("FOO")).startswith("500")
        await bench.later(299)
        assert not bench.is_over
        await bench.later(2)
        assert await bench.client.rest() == [TIMEOUT]


@python_loop
async def test_a_line_that_never_ends_has_no_more_time_for_its_length() -> None:
    """A command line is cut off in time however much of it comes."""
    async with serving(Scripted(), timeout=300) as server:
        bench = Bench(server, await server.connect())
        await bench.trickle(299, b"x" * 140_000, every=99)
        assert not bench.is_over
        await bench.later(4)
        assert await bench.client.rest() == [TIMEOUT]


@pytest.mark.filterwarnings("ignore:Session.login_data")
@python_loop
async def test_an_answer_to_a_challenge_has_to_come_in_time() -> None:
    """Each answer has the time of a command, from its challenge on, and is no use bit by bit."""
    asked: list[Any] = []
    options: dict[str, Any] = {"authenticator": lambda *args: asked.append(args), "auth_require_tls": False}
    async with serving(Scripted(), timeout=300, **options) as server:
        bench = await begun(server, StreamingSMTP)
        assert (await bench.client.ask("AUTH LOGIN")).startswith("334 ")
        await bench.later(299)
        assert (await bench.client.ask("YWxpY2U=")).startswith("334 ")
        await bench.trickle(299, b"c", every=99)
        assert not bench.is_over
        await bench.later(4)
        assert await bench.client.rest() == [TIMEOUT]
        await server.over()
    assert asked == []


@python_loop
async def test_a_proxy_s_line_has_a_time_of_its_own() -> None:
    """It has to be whole in the seconds that there are for it; from then on the client has its usual time."""

    class Handler(Scripted):
        async def handle_PROXY(self, *_: Any) -> bool:  # noqa: N802
            return True

    async with serving(Handler(), timeout=300, proxy_protocol_timeout=30) as server:
        benches: list[Bench] = []
        for _ in range(2):
            client = Client(*await asyncio.open_connection(*server.address))
            server.clients.append(client)
            await until(lambda: len(server.sessions) > len(benches))
            benches.append(Bench(server, client))
        good, bad = benches
        assert (await good.client.ask("PROXY TCP4 192.0.2.1 192.0.2.2 1 25")).startswith("220 ")
        for octet in b"PRO":
            await bad.say(bytes([octet]))
            await bad.later(9)
        assert not bad.is_over
        await bad.later(4)
        assert await bad.client.rest() == [TIMEOUT]
        await good.later(250)
        assert await good.client.ask("NOOP") == "250 2.0.0 OK"


# A message.


@python_loop
@both_kinds
@pytest.mark.parametrize(
    "begin", [b"DATA\r\n", b"BDAT 9000000\r\n", b"BDAT 1500000\r\n"], ids=["DATA", "BDAT", "BDATs"]
)
async def test_a_message_has_to_come_in_time(tmp_path: Path, kind: Any, begin: bytes) -> None:
    """A client that sends a bit of a message now and then, or a BDAT, is told 421 in the end; nothing is left."""
    more = b"BDAT 1\r\nxNOOP\r\n" if begin == b"BDAT 1500000\r\n" else b"x"
    async with serving(verbatim(tmp_path / "m"), kind, timeout=300) as server:
        bench = await begun(server, kind)
        await bench.say(begin + LARGE)
        await until(lambda: contents(tmp_path / "m").get("tmp"))
        await bench.trickle(3500, more)
        await bench.say(more)
        await bench.later(99)
        assert not bench.is_over
        assert contents(tmp_path / "m")["tmp"] != []
        await bench.later(2)
        told = await bench.client.rest()
        await server.over()
    assert [line[:3] for line in told[:-1]] == {
        b"DATA\r\n": ["354"],
        b"BDAT 9000000\r\n": [],
        b"BDAT 1500000\r\n": ["250"] * 73,
    }[begin]
    assert told[-1] == TOOK_TOO_LONG
    assert contents(tmp_path / "m") == {"tmp": [], "new": [], "cur": []}


@python_loop
@pytest.mark.parametrize(
    ("recipients", "opening"), [(["b@example.com"], REFUSED), ([], None)], ids=["refused", "out of turn"]
)
async def test_octets_that_are_dropped_have_to_come_in_time(recipients: list[str], opening: Any) -> None:
    """What is read for nothing but to find its end is not read for ever."""
    async with serving(Scripted(opening=opening), timeout=300) as server:
        client = await server.connect()
        await client.begin(*recipients)
        bench = Bench(server, client)
        await bench.say(b"BDAT 9000000\r\n")
        await bench.trickle(3500)
        await bench.say(b"x")
        await bench.later(99)
        assert not bench.is_over
        await bench.later(2)
        assert await bench.client.rest() == [TOOK_TOO_LONG]


@python_loop
async def test_each_message_has_all_of_its_time() -> None:
    """Messages that have come, in any way, or have been given up, take no time off the next one's."""
    script = Scripted()
    async with serving(script, timeout=300) as server:
        bench = await begun(server, StreamingSMTP)
        client = bench.client
        for begin, end, told in (
            (b"DATA\r\n", b"\r\n.\r\n", ["354", "250"]),
            (b"BDAT 3501\r\n", b"x" * 3466 + b"BDAT 0 LAST\r\n", ["250", "250"]),
            (b"BDAT 3501\r\n", b"x" * 3466 + b"RSET\r\n", ["250", "250"]),
            (b"BDAT 3501\r\n", b"x" * 3466 + b"EHLO me\r\n", ["250", "250"]),
            (b"DATA\r\n", b"\r\n.\r\n", ["354", "250"]),
            (b"RSET\r\nBDAT 3501\r\n", b"x" * 3466, ["250", "503"]),
            (b"RSET\r\nBDAT 3501\r\n", b"x" * 3466, ["250", "503"]),
        ):
            await bench.say(begin)
            await bench.trickle(3500)
            await bench.say(end)
            assert [(await client.hear())[:3] for _ in told] == told
            await bench.later(200)
            await client.begin("b@example.com")
        assert not bench.is_over
    assert [delivery.is_finished for delivery in script.deliveries] == [True, True, False, False, True]


@python_loop
@both_kinds
async def test_a_long_message_is_not_cut(tmp_path: Path, kind: Any) -> None:
    """However large: what comes in time is stored."""
    async with serving(verbatim(tmp_path / "m"), kind, timeout=300, data_size_limit=None) as server:
        bench = await begun(server, kind)
        await bench.say(b"DATA\r\n")
        await bench.trickle(3500, LARGE, every=290)
        await bench.say(b"\r\n.\r\n")
        assert [(await bench.client.hear())[:3] for _ in range(2)] == ["354", "250"]
    assert contents(tmp_path / "m") == {"tmp": [], "new": [LARGE * 12 + b"\r\n"], "cur": []}


@python_loop
@pytest.mark.parametrize("begin", [b"DATA\r\n", b"BDAT 9000000\r\n"])
async def test_the_disk_s_time_is_not_the_message_s(begin: bytes) -> None:
    """While the client waits for the disk, its message's time stands still, and goes on where it was."""
    script = Scripted()
    async with serving(script, timeout=300) as server:
        bench = await begun(server, StreamingSMTP)
        await bench.say(begin)
        await bench.trickle(1800)
        before = script.waiting
        script.gate.clear()
        await bench.say(b"x" * 100_000)  # which the server's reader has room for
        await until(lambda: script.waiting > before)
        for _ in range(30):
            await bench.later(299)
        script.gate.set()
        await turns()
        await bench.trickle(1700)
        await bench.say(b"x")
        await bench.later(99)
        assert not bench.is_over
        await bench.later(2)
        assert (await bench.client.rest())[-1] == TOOK_TOO_LONG
        await server.over()
    assert script.deliveries[0].is_aborted


@both_kinds
@pytest.mark.parametrize("begin", [b"DATA\r\n", b"BDAT 9000000\r\n"])
async def test_a_message_may_have_less_time_than_silence(tmp_path: Path, kind: Any, begin: bytes) -> None:
    """In real time, on any loop: a client that goes on sending is cut off when its message has had its time."""
    async with serving(verbatim(tmp_path / "m"), kind, message_timeout=0.2) as server:
        client = await server.connect()
        await client.begin("b@example.com", hello="LHLO" if is_lmtp(kind) else "EHLO")
        client.say(begin + LARGE)
        answers = asyncio.create_task(client.rest())
        async with asyncio.timeout(PATIENCE_S):
            while not answers.done():
                client.say(b"x")
                await asyncio.sleep(0.005)
        told = await answers
        await server.over()
    assert told[-1:] in ([TOOK_TOO_LONG], [])  # a client that sends into a closed connection may not get to hear it
    assert not any(contents(tmp_path / "m").values())


@python_loop
async def test_a_handler_s_deadline_is_told_when_the_message_has_come(tmp_path: Path) -> None:
    """If that comes first, each recipient has a temporary failure, nothing is left, and the session goes on."""
    handler = verbatim(tmp_path / "m", deadline=timedelta(minutes=30))
    kind = KINDS[1]
    async with serving(handler, kind, timeout=300) as server:
        bench = await begun(server, kind, "b@example.com", "c@example.com")
        await bench.say(b"DATA\r\n" + LARGE)
        await until(lambda: contents(tmp_path / "m").get("tmp"))
        await bench.trickle(1801)
        await until(lambda: not contents(tmp_path / "m")["tmp"])
        await bench.trickle(1000)
        await bench.say(b"\r\n.\r\nNOOP\r\n")
        told = [await bench.client.hear() for _ in range(4)]
        assert [line[:9] for line in told] == ["354 End d", "451 4.3.0", "451 4.3.0", "250 2.0.0"]
    assert contents(tmp_path / "m") == {"tmp": [], "new": [], "cur": []}


def test_a_delivery_has_more_time_than_a_client() -> None:
    """By default it is the session that ends what takes too long; the delivery's deadline is for what goes wrong."""
    handler = MaildirHandler("/tmp/m")
    assert handler._deadline > timedelta(seconds=2 * MESSAGE_TIMEOUT_S)


@pytest.mark.parametrize("wrong", [0, -1, math.nan])
def test_no_time_at_all_is_a_mistake(wrong: float) -> None:
    """A message has to have some time; without bounds it is infinite."""
    with pytest.raises(ValueError, match="message_timeout must be positive"):
        StreamingSMTP(Scripted(), message_timeout=wrong)


# What it is reckoned by.


class Time:
    """A clock, and somebody's patience by it."""

    def __init__(self, message_timeout_s: float = 1000) -> None:
        self.now = 50.0
        loop: Any = SimpleNamespace(time=lambda: self.now)
        self.patience = Patience(loop, 100, message_timeout_s)

    def left(self, after: float) -> float:
        """Let so much time go by, and return what is left."""
        self.now += after
        return self.patience.left_s


def test_a_command_s_time_is_not_added_to() -> None:
    """Only a beginning gives time, as much as is usual or as is said, and what is heard does not."""
    time = Time()
    assert time.left(60) == 40
    time.patience.heard()
    assert time.left(10) == 30
    time.patience.begin(20)
    assert time.left(5) == 15
    time.patience.begin()
    assert time.left(130) == -30
    assert not time.patience.message_is_late


def test_a_message_s_time_is_in_two_parts() -> None:
    """What is heard gives time for more, up to the end of the whole; between its parts commands do not."""
    time = Time(message_timeout_s=250)
    with time.patience.receiving():
        assert time.left(90) == 10
        time.patience.heard()
        assert time.left(90) == 10
    time.patience.begin()
    assert time.left(10) == 60
    with time.patience.receiving():
        time.patience.heard()
        assert time.left(59) == 1
        assert not time.patience.message_is_late
        assert time.left(1) == 0
        assert time.patience.message_is_late
    time.patience.message_over()
    assert time.left(0) == 100


@pytest.mark.parametrize("raising", [False, True])
def test_time_stands_still_at_work(raising: bool) -> None:
    """At work all is left; afterwards the client has all of its own time, and its message what it had before."""
    time = Time(message_timeout_s=150)

    def work(check: Callable[[], object]) -> None:
        with time.patience.working():
            check()
            if raising:
                raise ValueError

    def checked(seconds: float) -> None:
        try:
            work(lambda: time.left(seconds) == 100 or pytest.fail("it goes on"))
        except ValueError:
            assert raising

    checked(1000)
    assert time.left(0) == 100
    with time.patience.receiving():
        assert time.left(90) == 10
        checked(5000)
        assert time.left(0) == 60
        assert time.left(30) == 30


def test_no_bounds_for_a_message() -> None:
    """With an infinite time for a message, there is still the other one."""
    time = Time(message_timeout_s=math.inf)
    with time.patience.receiving():
        assert time.left(99) == 1
        with time.patience.working():
            time.left(1e9)
        assert time.left(99) == 1
