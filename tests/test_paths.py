"""The envelope means what the client has written: the grammar of its paths, and the commands that have them."""

import re
import time
from pathlib import Path
from typing import Any, Final

import pytest
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session
from hypothesis import example, given, settings
from hypothesis import strategies as st

import maildir_async
from maildir_async.smtp import MaildirHandler, Receipt, StreamingLMTP, StreamingSMTP
from maildir_async.smtp.addresses import parse_address
from maildir_async.smtp.paths import PATH_MAX, is_recipient, parse_mailbox, parse_parameters, parse_path, parse_vrfy
from support import contents, reproducible
from wire import Client, Scripted, serving

# The grammar.

#: What may stand between the brackets.
MAILBOXES: Final = [
    "a@b",
    "alice@example.org",
    "Alice.B@Example.ORG",
    "!#$%&'*+-/=?^_`{|}~@example.org",
    "=?utf-8?q?alice?=@example.org",  # of itself, not of alice
    '"alice"@example.org',
    '""@example.org',
    '"a b\\"c\\\\d"@example.org',
    '"a@b"@example.org',
    '"<a>(x),;:[]"@example.org',
    '"=?utf-8?q?alice?="@example.org',
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    "a@[ipv6:::ffff:192.0.2.1]",
    "a@[x-tag:what@ever]",
    "a@xn--bcher-kva.example",
    "a@1.example",
    "a@b--c.example",
    # With UTF-8, by RFC 6531 §3.3.
    "jürgen@example.org",
    '"jürgen \u200c x"@example.org',
    "a@bücher.example",
    "用户@例子.广告",
    # The kindnesses.
    "a..b@example.org",
    "a.@example.org",
    ".a@example.org",
    "a@example.org.",
    "a@my_host.example",
    # Longer than the minimum of RFC 5321 §4.5.3.1.
    "reply+" + "x" * 194 + "@example.org",
    "a" * (PATH_MAX - 2) + "@b",
    "a@" + "b." * 126 + "b",
]

NO_MAILBOXES: Final = [
    "",
    "a",
    "@",
    "a@",
    "@b",
    "a@@b",
    "a@b@c",
    ".@b",
    "..@b",
    "a b@c",
    "a@b c",
    " a@b",
    "a@b ",
    "a\t@b",
    "a@b(x)",
    "a(x)@b",
    "(x)a@b",
    "=?utf-8?q?alice?=(x)@example.org",
    "<a@b>",
    "a@b,c@d",
    'a"b@c',
    '"a"b@c',
    '"a".b@c',
    '"a@b',
    '"a\\"@b',
    '"a\\é"@b',
    "a@b..c",
    "a@.b",
    "a@b..",
    "a@.",
    "a@-b",
    "a@b-.c",
    "a@b/c",
    "a@[]",
    "a@[1.2.3]",
    "a@[1.2.3.256]",
    "a@[1.2.3.4.5]",
    "a@[1.2.3.4",
    "a@[1.2.3.4].c",
    "a@[IPv6:1.2.3.4]",
    "a@[IPv6:1::2::3]",
    "a@[IPv6:fe80::1%eth0]",
    "a@[IPv6:]",
    "a@[host]",
    "a@[-:x]",
    "a@[x:a b]",
    "a@💩.example",  # no U-label
    "a@xn--é.example",
    "postmaster@",
    "po\u017ftmaster",
    *(f"a{char}b@c" for char in "\0\x01\r\n\x0b\x1b\x7f\x85\xa0\u2028\u202e\u200b\udce9"),
    *(f'"a{char}b"@c' for char in "\0\r\n\t\x7f\x85\u2028\udce9"),
    *(f"a@b{char}c" for char in "\0\r\n\x7f\x85\xa0\u2028\udce9"),
    "a" * PATH_MAX + "@b",
    "é" * (PATH_MAX // 2) + "@b",
    "a@" + "b." * 127 + "bb",
    "a@" + "b" * 64 + "é",
]


@pytest.mark.parametrize("mailbox", MAILBOXES)
def test_mailboxes(mailbox: str) -> None:
    """Each comes out as it is written, whatever stands around it."""
    for text in (f"<{mailbox}>", f" \t<{mailbox}>"):
        assert parse_path(text) == (mailbox, "")
    assert parse_path(mailbox) is None, "without its brackets"
    assert parse_path(f"<@a.example,@b.example:{mailbox}>") == (mailbox, "")
    assert parse_path(f"<{mailbox}> SIZE=1  BODY=7BIT") == (mailbox, "SIZE=1  BODY=7BIT")
    assert parse_vrfy(f"<{mailbox}>") == parse_vrfy(mailbox) == mailbox
    assert is_recipient(mailbox)
    found = parse_mailbox(mailbox)
    assert found is not None
    assert f"{found.local}@{found.domain}" == mailbox


@pytest.mark.parametrize("text", NO_MAILBOXES)
def test_what_is_no_mailbox(text: str) -> None:
    """None of them is one, with brackets or without, after a source route or not."""
    assert parse_mailbox(text) is None
    assert not is_recipient(text)
    assert parse_path(f"<{text}>") is None or not text
    assert parse_path(f"<@a.example:{text}>") is None
    assert parse_path(text) != (text, "")


@pytest.mark.parametrize(
    "text",
    [
        "<a@b",
        "a@b>",
        "<a@b>>",
        "<<a@b>",
        "<a@b>x",
        "<a@b>SIZE=1",
        "<a@b>\tSIZE=1",
        "< a@b>",
        "<a@b >",
        "<a@b> \n",
        "<@a:>",
        "<@:a@b>",
        "<@a,b:a@b>",
        "<@a;@b:a@b>",
        "<@a,:a@b>",
        "<@a a@b>",
        "<alice>",
        "< >",
        "Alice <a@b>",
        "",
        " ",
    ],
)
def test_what_is_no_path(text: str) -> None:
    """Nothing is taken away, or made good, to find a path."""
    assert parse_path(text) is None


def test_the_null_path_and_postmaster() -> None:
    """``<>``, and postmaster in any case, have no domain; nobody else may be without."""
    assert parse_path("<>") == ("", "")
    assert parse_path("<> SIZE=1") == ("", "SIZE=1")
    for name in ("postmaster", "Postmaster", "POSTMASTER"):
        assert parse_path(f"<{name}>") == (name, "")
        assert parse_mailbox(name) == (name, "")


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", {}),
        ("  ", {}),
        ("size=1", {"SIZE": "1"}),
        ("SIZE=1  BODY=8bitmime SMTPUTF8", {"SIZE": "1", "BODY": "8bitmime", "SMTPUTF8": None}),
        ("X-Y=<a>", {"X-Y": "<a>"}),
        ("SIZE=1 size=2", {"SIZE": "2"}),
        ("SIZE=", None),
        ("=", None),
        ("=1", None),
        ("-X", None),
        ("X_Y", None),
        ("X=a=b", None),
        ("X=é", None),
        ("é=x", None),
        ("X=\0", None),
        ("X\tY", None),
        ("X=1\r", None),
        ("X\n", None),
        ("X \n", None),
        ("X\x1cY", None),
        ("X=1\xa0Y", None),
    ],
)
def test_parameters(text: str, parameters: dict[str, str | None] | None) -> None:
    """Keywords in any case, values as written; what is malformed or there twice is none of it."""
    assert parse_parameters(text) == parameters


ATOM: Final = st.text("abc019!#$%&'*+-/=?^_`{|}~éß用", min_size=1, max_size=6).filter(str.isprintable)
DOT_STRINGS: Final = st.lists(ATOM, min_size=1, max_size=3).map(".".join)
QUOTED: Final = st.lists(st.sampled_from([*"ab @<>().,é", '\\"', "\\\\", "\\ ", "\\a"]), max_size=8).map(
    lambda parts: f'"{"".join(parts)}"'
)
LABEL: Final = st.from_regex(r"[a-z0-9](?:[a-z0-9_-]{0,5}[a-z0-9])?", fullmatch=True)
DOMAINS: Final = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
LITERALS: Final = st.ip_addresses(v=4).map("[{}]".format) | st.ip_addresses(v=6).map("[IPv6:{}]".format)


@settings(reproducible, max_examples=50)
@given(DOT_STRINGS | QUOTED, DOMAINS | DOMAINS.map("{}.".format) | LITERALS, st.lists(DOMAINS, max_size=3))
def test_whatever_is_valid_comes_out_as_written(local: str, domain: str, route: list[str]) -> None:
    """A path that the grammar can make is taken, and nothing is changed in it."""
    by_way_of = ",".join(f"@{host}" for host in route) + ":" if route else ""
    assert parse_path(f"<{by_way_of}{local}@{domain}> X=1") == (f"{local}@{domain}", "X=1")
    assert parse_mailbox(f"{local}@{domain}") == (local, domain)


ANYTHING: Final = st.binary(max_size=60) | st.text('<>a1._-+@ =()"\\\\é:,[]\0\r\n', max_size=20).map(str.encode)


@reproducible
@given(ANYTHING)
@example(b"<\xff@b>")
def test_anything_else_is_nothing(octets: bytes) -> None:
    """Any octets are answered; what is taken has no control in it, and is itself a path."""
    text = octets.decode("utf-8", "surrogateescape")
    parse_parameters(text)
    parse_vrfy(text)
    for path in (parse_path(text), parse_path(f"<{text}>")):
        if path is not None and path[0]:
            address = path[0]
            assert address in text
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", address)
            assert parse_path(f"<{address}>") == (address, "")
            assert is_recipient(address) == (parse_mailbox(address) is not None)
            parse_address(address)


PIECES: Final = ["(", "a.", "a", ".", "a@", '\\"', "\\\\", '"', "@a,", "@a:", "a-", "[", "[a:", "é", "\u0301", " ", "="]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("opening", ["<", '<"', "<@", "<a@", "<a@[", "<@a:", '"', "", "<a@b> "])
def test_it_takes_linear_time(opening: str, piece: str) -> None:
    """An argument of 28 KB is answered in less time than a command takes otherwise, however it repeats itself."""
    best = float("inf")
    for text in (opening + piece * (28_000 // len(piece)), opening + piece * (28_000 // len(piece)) + ">"):
        for _ in range(3):
            began = time.thread_time()
            parse_path(text)
            parse_vrfy(text)
            parse_parameters(text)
            parse_parameters("X=" + text)
            best = min(best, time.thread_time() - began)
        assert best < 0.02  # seconds; it takes 2 ms, and the parser that was here before 155 ms


# The commands.

BAD_RECIPIENT: Final = "501 5.1.3"
BAD_SENDER: Final = "501 5.1.7"

#: What MAIL is followed by, and the code of the answer.
SENDERS: Final = {
    "FROM:<a@b.example>": "250 2.1.0",
    "from:<a@b.example>": "250 2.1.0",
    "FROM: <a@b.example>": "250 2.1.0",
    "FROM:a@b.example": "501 5.1.7",
    "FROM: a@b.example SIZE=1": "501 5.1.7",
    "FROM:<a@b.example> ": "250 2.1.0",
    "FROM:<>": "250 2.1.0",
    "FROM: <>": "250 2.1.0",
    "FROM:<a@b.example.>": "250 2.1.0",
    "FROM:<@x.example:a@b.example>": "250 2.1.0",
    'FROM:<"a b"@c.example>': "250 2.1.0",
    "FROM:<a@[192.0.2.1]>": "250 2.1.0",
    "FROM:<jürgen@b.example> SMTPUTF8": "250 2.1.0",
    "FROM:<jürgen@b.example> smtputf8 BODY=8bitmime SIZE=100": "250 2.1.0",
    "FROM:<jürgen@b.example>": "553 5.6.7",
    "FROM:<a@bücher.example>": "553 5.6.7",
    "FROM:<a@b.example> BODY=7BIT": "250 2.1.0",
    "FROM:<a@b.example> BODY=8BITMIME": "250 2.1.0",
    "FROM:<a@b.example> SIZE=0": "250 2.1.0",
    "FROM:": BAD_SENDER,
    "FROM:a": BAD_SENDER,
    "FROM:<a>": BAD_SENDER,
    "FROM:<postmaster>": BAD_SENDER,
    "FROM:<a@b": BAD_SENDER,
    "FROM:<a@b>x": BAD_SENDER,
    "FROM:<a@b>SIZE=1": BAD_SENDER,
    "FROM:<=?utf-8?q?boss=40bank.com=3e?=(c)@b.org>": BAD_SENDER,
    "FROM:<a@b\0>": BAD_SENDER,
    "FROM:<a\rb@c>": BAD_SENDER,
    "FROM:< >": BAD_SENDER,
    "FROM:<<>>": BAD_SENDER,
    "FROM:<" + "a" * 891 + "@b.example>": BAD_SENDER,
    "FROM:<" + "a" * 890 + "@b.example>": "250 2.1.0",
    "FROM": "501 5.5.4",
    "FROM :<a@b>": "501 5.5.4",
    "TO:<a@b>": "501 5.5.4",
    "<a@b>": "501 5.5.4",
    "FROM:<a@b.example> SIZE": "501 5.5.4",
    "FROM:<a@b.example> SIZE=": "501 5.5.4",
    "FROM:<a@b.example> SIZE=x": "501 5.5.4",
    "FROM:<a@b.example> SIZE=-1": "501 5.5.4",
    "FROM:<a@b.example> SIZE=²": "501 5.5.4",
    "FROM:<a@b.example> SIZE=1 SIZE=1": "250 2.1.0",
    "FROM:<a@b.example> SIZE=99999999999999999999999": "552 5.3.4",
    "FROM:<a@b.example> BODY": "501 5.5.4",
    "FROM:<a@b.example> BODY=BINARYMIME": "501 5.5.4",
    "FROM:<a@b.example> SMTPUTF8=1": "501 5.5.4",
    "FROM:<a@b.example> SMTPUTF8 smtputf8": "250 2.1.0",
    "FROM:<a@b.example> AUTH=<>": "555 5.5.4",  # it is not announced without TLS
    "FROM:<a@b.example> NOTIFY=NEVER": "555 5.5.4",
    "FROM:<a@b.example> x@y": "501 5.5.4",
}

#: The same for RCPT.
RECIPIENTS: Final = {
    "TO:<a@b.example>": "250 2.1.5",
    "to: \t<a@b.example>": "250 2.1.5",
    "TO:a@b.example": "501 5.1.3",
    "TO:<a@b.example.>": "250 2.1.5",
    "TO:<@x.example,@y.example:a@b.example>": "250 2.1.5",
    'TO:<"a b"@c.example>': "250 2.1.5",
    "TO:<postmaster>": "250 2.1.5",
    "TO:<PostMaster>": "250 2.1.5",
    "TO:<reply+" + "x" * 194 + "@b.example>": "250 2.1.5",
    "TO:<a..b@c.example>": "250 2.1.5",
    "TO:<a/b@c.example>": "250 2.1.5",
    "TO:<jürgen@b.example>": "553 5.6.7",
    "TO:<>": BAD_RECIPIENT,
    "TO:": BAD_RECIPIENT,
    "TO:<alice>": BAD_RECIPIENT,
    "TO:<=?utf-8?q?alice?=(x)@example.org>": BAD_RECIPIENT,
    "TO:<(x)a@b>": BAD_RECIPIENT,
    "TO:<a @b>": BAD_RECIPIENT,
    "TO:<a@b": BAD_RECIPIENT,
    "TO:<a@\0b>": BAD_RECIPIENT,
    'TO:<"a\rb"@c>': BAD_RECIPIENT,
    'TO:<"a\0b"@c>': BAD_RECIPIENT,
    "TO:<a@b>, <c@d>": BAD_RECIPIENT,
    "TO:<a@b.example> NOTIFY=NEVER": "555 5.5.4",
    "TO:<a@b.example> SIZE=1": "555 5.5.4",
    "TO:<a@b.example> =": "501 5.5.4",
    "TO": "501 5.5.4",
    "FROM:<a@b>": "501 5.5.4",
}


async def test_what_mail_is_told() -> None:
    """Each argument of MAIL has its answer, and the session goes on."""
    async with serving(Scripted(), data_size_limit=1000, max_errors=1000) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        told = {arg: (await client.asks(f"MAIL {arg}", "RSET"))[0] for arg in SENDERS}
    assert {arg: " ".join(reply.split(" ")[:2]) for arg, reply in told.items()} == SENDERS


@pytest.mark.parametrize("kind", [StreamingSMTP, StreamingLMTP])
async def test_what_rcpt_is_told(kind: Any) -> None:
    """Each argument of RCPT has its answer, and so has RCPT without MAIL."""
    async with serving(Scripted(), kind) as server:
        client = await server.connect()
        await client.ask("LHLO me" if issubclass(kind, LMTP) else "EHLO me")
        assert await client.ask("RCPT TO:<a@b>") == "503 5.5.1 Error: need MAIL command"
        await client.ask("MAIL FROM:<>")
        told = {arg: await client.ask(f"RCPT {arg}") for arg in RECIPIENTS}
        assert await client.ask("MAIL FROM:<>") == "503 5.5.1 Error: nested MAIL command"
    assert {arg: " ".join(reply.split(" ")[:2]) for arg, reply in told.items()} == RECIPIENTS


async def test_without_extensions_there_are_no_parameters() -> None:
    """After HELO a parameter is a mistake, and so is UTF-8 (RFC 6531 §3.5)."""
    async with serving(Scripted()) as server:
        client = await server.connect()
        told = await client.asks(
            "HELO me",
            "MAIL FROM:<a@b> SIZE=1",
            "MAIL FROM:<é@b>",
            "MAIL FROM:<a@b>",
            "RCPT TO:<a@b> X",
            "RCPT TO:<a@b>",
        )
    assert [reply[:9] for reply in told[1:]] == ["501 5.5.4", "553 5.6.7", "250 2.1.0", "501 5.5.4", "250 2.1.5"]


@pytest.mark.filterwarnings("ignore:Requiring AUTH:UserWarning")
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("AUTH=<>", "250"),
        ("auth=e+3Dmc2@example.com", "250"),
        ("AUTH=+2B", "250"),
        ("AUTH", "501"),
        ("AUTH=", "501"),
        ("AUTH=+", "501"),
        ("AUTH=a+2b", "501"),  # RFC 3461 §4: capitals
        ("AUTH=a=b", "501"),
    ],
)
async def test_auth_as_a_parameter(value: str, told: str) -> None:
    """Where AUTH is announced, MAIL may tell who has submitted the message (RFC 4954 §5), in xtext or as ``<>``."""

    class Handler(Scripted):
        async def handle_MAIL(  # noqa: N802
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            assert options == [value.replace("auth", "AUTH")]  # in its own letters
            envelope.mail_from = address
            return "250 OK"

    async with serving(Handler(), auth_require_tls=False) as server:
        client = await server.connect()
        assert "\n250-AUTH " in await client.ask("EHLO me")
        assert (await client.ask(f"MAIL FROM:<a@b.example> {value}"))[:3] == told


@pytest.mark.parametrize("text", ["(" * 200, "=?utf-8?q?a?=(x)@b", '"a\\', "<a@b", "a@b(c)", "", "\0", "a b"])
async def test_other_commands_have_the_same_grammar(text: str) -> None:
    """VRFY refuses what names nobody, and a hook is not asked; EXPN is not implemented."""
    asked: list[str] = []

    class Handler(Scripted):
        async def handle_VRFY(self, server: Any, session: Any, envelope: Any, address: str) -> str:  # noqa: N802
            asked.append(address)
            return "250 yes"

    async with serving(Handler()) as server:
        client = await server.connect()
        told = await client.asks("EHLO me", f"VRFY {text}", f"EXPN {text}", "VRFY <a@b>", "VRFY alice")
    assert told[1][:3] == "501"
    assert told[2][:3] == "502"
    assert asked == ["a@b", "alice"]


async def test_a_flood_of_parentheses_stalls_nobody() -> None:
    """28 KB of ``<((((`` are refused by their length, and what fits into a command is read in no time."""
    async with serving(Scripted()) as server:
        session = server.session()
        for octets in (b"(" * 900, b'"' + b'\\"' * 400, b"a." * 450, b"@a," * 300):
            began = time.thread_time()
            assert (await _answer(session, octets)).startswith("501 5.1.7")
            assert time.thread_time() - began < 0.02
        client = await server.connect()
        await client.ask("EHLO me")
        assert await client.ask("MAIL FROM:<" + "(" * 28_000) == "500 5.5.2 Command line too long"


async def _answer(session: Any, octets: bytes) -> str:
    session.session, session.envelope = Session(session.loop), Envelope()
    return str(await session._answer_to_mail(f"FROM:<{octets.decode()}>"))


# What becomes of it.


async def attempt(client: Client, *lines: str) -> list[str]:
    return [reply[:9] for reply in await client.asks(*lines)]


@pytest.mark.parametrize(
    ("sender", "header"),
    [
        ("a@b.example", "a@b.example"),
        ("a@b.example.", "a@b.example"),
        ("@x.example:a@b.example", "a@b.example"),
        ('"a b"@c.example', '"a b"@c.example'),
        ('"boss@bank.com>"@b.example', '"boss@bank.com>"@b.example'),
        ('"alice"@b.example', "alice@b.example"),
        ("a..b@c.example", '"a..b"@c.example'),
        ("a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
        ("jürgen@bücher.example", "jürgen@bücher.example"),
        ("", ""),
    ],
)
async def test_return_path_is_the_sender(tmp_path: Path, sender: str, header: str) -> None:
    """Return-Path is the sender in the syntax of a header (RFC 5322 §3.4.1), whatever may be in a path."""
    async with serving(MaildirHandler(tmp_path / "m")) as server:
        client = await server.connect()
        await client.begin("x@y.example", sender=sender, mail=" SMTPUTF8")
        assert (await client.asks("DATA", b"x\r\n.\r\n"))[1].startswith("250 ")
    (stored,) = contents(tmp_path / "m")["new"]
    assert stored.startswith(f"Return-Path: <{header}>\n".encode())


async def test_what_the_client_wrote_is_what_everybody_sees(tmp_path: Path) -> None:
    """The resolver, receipts and X-Original-To have the address in its own letters, without a source route."""
    asked: list[str] = []
    receipts: list[Receipt] = []

    def resolve(address: str) -> str:
        asked.append(address)
        return str(tmp_path / "m")

    handler = MaildirHandler(resolve, original_to=True, on_receipt=receipts.append)
    async with serving(handler) as server:
        client = await server.connect()
        for sent in ('<@x.example:"Al ice+x"@Example.ORG.>', "<A..b@Example.ORG>", "<PostMaster>"):
            await client.asks("EHLO me", "MAIL FROM:<>")
            assert (await client.asks(f"RCPT TO:{sent}", "DATA", b"x\r\n.\r\n"))[2].startswith("250 ")
    written = ['"Al ice+x"@Example.ORG.', "A..b@Example.ORG", "PostMaster"]
    assert asked == written
    assert [receipt.address for receipt in receipts] == written
    stored = contents(tmp_path / "m")["new"]
    assert [re.findall(rb"^X-Original-To: (.*)\n", text, re.MULTILINE) for text in stored] == [
        [address.encode()] for address in written
    ]


@pytest.mark.parametrize("kind", [SMTP, LMTP, StreamingSMTP, StreamingLMTP])
async def test_a_resolver_is_asked_for_addresses_only(tmp_path: Path, kind: Any) -> None:
    """No resolver is asked for a null path, a control or a comment, whatever a server's own grammar lets pass."""
    asked: list[str] = []

    def resolve(address: str) -> str:
        asked.append(address)
        return str(tmp_path / "m")

    hostile = [
        "<>",
        '<"a\rb"@c>',
        '<"a\0b"@c>',
        '<"a\x7fb"@c>',
        "<a\x01@c>",
        "<a@b",
        "<(x)@b>",
        "<a@ b\0>",
        '<"a\\\r"@c>',
    ]
    async with serving(MaildirHandler(resolve), kind) as server:
        client = await server.connect()
        await client.asks("LHLO me" if issubclass(kind, LMTP) else "EHLO me", "MAIL FROM:<>")
        for sent in hostile:
            told = await client.ask(f"RCPT TO:{sent}")
            if kind in (StreamingSMTP, StreamingLMTP) or sent == "<>":
                assert told.startswith(BAD_RECIPIENT)
    assert all(parse_mailbox(address) is not None for address in asked)
    if kind in (StreamingSMTP, StreamingLMTP):
        assert asked == []


@pytest.mark.parametrize(
    "to", ["=?utf-8?q?alice?=(x)@example.org", '"=?utf-8?q?alice?="@example.org', "alice(x)@example.org"]
)
async def test_an_encoded_word_is_nobody(tmp_path: Path, to: str) -> None:
    """What a header parser would decode to alice is not delivered to alice."""
    handler = MaildirHandler({"alice@example.org": tmp_path / "m"})
    async with serving(handler) as server:
        client = await server.connect()
        told = await client.asks("EHLO me", "MAIL FROM:<>", f"RCPT TO:<{to}>")
        assert told[2].startswith("5")
        assert (await client.ask("RCPT TO:<alice@example.org.>")) == "250 2.1.5 OK"  # with the root's dot it is
    assert not (tmp_path / "m" / "new").exists()


@settings(reproducible, max_examples=12)
@given(st.lists(ANYTHING.filter(lambda octets: not set(octets) & set(b"\r\n")), min_size=1, max_size=12))
async def test_any_octets_are_answered(args: list[bytes]) -> None:
    """Whatever follows MAIL and RCPT has a reply of its own, and no hook is asked for what is no path."""
    async with serving(Scripted(), max_errors=1000) as server:
        client = await server.connect()
        await client.ask("EHLO me")
        for arg in args:
            told = [await client.ask(verb + arg + b"\r\n") for verb in (b"MAIL FROM:", b"RCPT TO:", b"VRFY ", b"MAIL ")]
            assert all(reply[0] in "25" for reply in told)
            await client.ask("RSET")


def test_no_group_is_possessive() -> None:
    """Before Python 3.11.5 one keeps what a repetition that fails has matched (gh-106052); atomic groups do not."""
    package = Path(maildir_async.__file__).parent
    assert [path.name for path in package.rglob("*.py") if re.search(r"\)[*?+]\+", path.read_text())] == []
