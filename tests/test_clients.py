"""Who the client of a session really is: PROXY headers, XCLIENT, XFORWARD; IPv4 addresses in IPv6's clothes."""

import asyncio
import ipaddress
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maildir_async.smtp import MaildirHandler, Networks, ProxyHeaderError, StreamingSMTP, read_proxy_header
from maildir_async.smtp.proxied import (
    SIGNATURE,
    Attributes,
    AttributeSyntaxError,
    _crc32c,
    parse_attributes,
    parse_proxy,
    plain_host,
    read_proxy,
)
from support import PATIENCE_S, contents, reproducible
from wire import KINDS, Client, Scripted, is_lmtp, serving

LOOPBACK: Final = ["127.0.0.0/8"]


def v2(command: int, family: int, rest: bytes) -> bytes:
    """Return a version 2 header."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def tcp4(source: str, port: int, tlvs: bytes = b"") -> bytes:
    """Return a version 2 header for a client by TCP over IPv4."""
    return v2(
        0x21, 0x11, socket.inet_aton(source) + socket.inet_aton("192.0.2.9") + struct.pack("!HH", port, 25) + tlvs
    )


def tcp6(source: str, port: int) -> bytes:
    """Return a version 2 header for a client by TCP over IPv6."""
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("::1").packed
    return v2(0x21, 0x21, addresses + struct.pack("!HH", port, 25))


def summed(header: bytes) -> bytes:
    """Return *header*, which ends with a TLV for its checksum, with that filled in."""
    return header[:-4] + _crc32c(header).to_bytes(4)


CRC: Final = b"\x03\x00\x04" + bytes(4)

GOOD: Final[list[tuple[bytes, Any]]] = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25\r\n", ("192.0.2.1", 4711)),
    (b"PROXY TCP6 2001:db8::1 ::1 4711 25\r\n", ("2001:db8::1", 4711)),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 4711 25\r\n", ("192.0.2.1", 4711)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 whatever\r\n", None),
    (tcp4("192.0.2.1", 4711), ("192.0.2.1", 4711)),
    (tcp4("192.0.2.1", 4711, b"\x01\x00\x02h2\x04\x00\x00"), ("192.0.2.1", 4711)),
    (summed(tcp4("192.0.2.1", 4711, CRC)), ("192.0.2.1", 4711)),
    (tcp6("2001:db8::1", 4711), ("2001:db8::1", 4711)),
    (tcp6("::ffff:192.0.2.1", 4711), ("192.0.2.1", 4711)),
    (v2(0x21, 0x31, bytes(216)), ("", 0)),
    (v2(0x20, 0x00, b""), None),
    (v2(0x20, 0x11, b"whatever"), None),
    (v2(0x21, 0x00, b""), None),
]

BAD: Final = [
    b"EHLO client.example\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 04711 25\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 25\r\n",
    b"PROXY TCP4  192.0.2.1 192.0.2.2 1 25\r\n",
    b"PROXY TCP4 2001:db8::1 ::1 4711 25\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 25 \r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 4711 25\r\n",
    b"PROXY UNKNOWNISH TCP4 1.2.3.4 1 1\r\n",
    b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
    tcp4("192.0.2.1", 4711, b"\x01\x00"),
    tcp4("192.0.2.1", 4711, b"\x01\x00\x03h2"),
    tcp4("192.0.2.1", 4711, CRC),
    v2(0x11, 0x11, bytes(12)),
    v2(0x22, 0x11, bytes(12)),
    v2(0x21, 0x12, bytes(12)),
    v2(0x21, 0x11, bytes(11)),
]


# The parsers.


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_proxy_headers(header: bytes, client: Any) -> None:
    """Both versions name the client; UNKNOWN and LOCAL leave the connection's own; TLVs are read over."""
    assert parse_proxy(header) == client


@pytest.mark.parametrize("header", [b"", SIGNATURE, *BAD])
def test_what_is_no_proxy_header(header: bytes) -> None:
    """Whatever is not to the letter of proxy-protocol.txt is none."""
    with pytest.raises(ProxyHeaderError):
        parse_proxy(header)


def test_the_checksum() -> None:
    """CRC32C is that of RFC 9260, whose check value is known."""
    assert _crc32c(b"123456789") == 0xE3069283


@settings(reproducible, max_examples=100)
@example(b"PROXY TCP4 \xc2\xb9 1 1 1\r\n")
@given(
    st.binary(max_size=64)
    | st.binary(max_size=64).map(lambda data: SIGNATURE + data)
    | st.text("PROXYTC46 .:1f%\r\n", max_size=60).map(lambda text: f"PROXY {text}".encode())
    | st.tuples(st.sampled_from([header for header, _ in GOOD]), st.binary(max_size=9)).map(lambda two: two[0] + two[1])
)
def test_any_octets_are_a_proxy_header_or_none(data: bytes) -> None:
    """No octets make the parser, or the reader, raise anything but ProxyHeaderError, or read past the header."""
    at = 0

    async def read(count: int) -> bytes:
        nonlocal at
        if at + count > len(data):
            raise EOFError
        at += count
        return data[at - count : at]

    try:
        asyncio.run(read_proxy(read))
    except (ProxyHeaderError, EOFError):
        pass
    else:
        parse_proxy(data[:at])
    with suppress(ProxyHeaderError):
        parse_proxy(data)


@settings(reproducible, max_examples=50)
@given(st.ip_addresses(), st.integers(0, 65535))
def test_proxy_headers_go_round(address: Any, port: int) -> None:
    """What either version says of any client is what is read."""
    told = (plain_host(str(address)), port)
    line = f"PROXY TCP{address.version} {address} {'::1' if address.version == 6 else '192.0.2.2'} {port} 25\r\n"
    assert parse_proxy(line.encode()) == told
    assert parse_proxy((tcp4 if address.version == 4 else tcp6)(str(address), port)) == told


def test_networks() -> None:
    """Networks know IPv4 in either clothing, zones, and Unix sockets; what is no network is a ValueError."""
    networks = Networks(["192.0.2.0/24", ipaddress.ip_network("fe80::/10"), "unix"])
    assert [
        host in networks for host in ("192.0.2.7", "::ffff:192.0.2.7", "fe80::1%eth0", "", "192.0.3.1", "what")
    ] == [
        *[True] * 4,
        *[False] * 2,
    ]
    assert "" not in Networks(["0.0.0.0/0"])
    assert not Networks([])
    for wrong in ("192.0.2.1/24", "example.org", "UNIX"):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            Networks([wrong])
    with pytest.raises(TypeError):
        Networks("192.0.2.0/24")


def test_attributes() -> None:
    """What Postfix sends is understood: xtext, IPV6:, unknown values, several commands."""
    told = parse_attributes("XFORWARD", "NAME=spike.porcupine.org ADDR=168.100.189.2 PORT=4711 PROTO=ESMTP HELO=a+2Bb")
    assert told == Attributes(addr="168.100.189.2", port=4711, proto="ESMTP", helo="a+b")
    told = told.updated(parse_attributes("XFORWARD", "addr=IPv6:2001:db8::1 PORT=[UNAVAILABLE] HELO=+5BTEMPUNAVAIL+5D"))
    assert told == Attributes(addr="2001:db8::1", port=0, proto="ESMTP", helo="")
    assert parse_attributes("XFORWARD", "IDENT=4F SOURCE=LOCAL") == Attributes()
    assert parse_attributes("XCLIENT", "LOGIN=me DESTADDR=192.0.2.1 DESTPORT=25") == Attributes(login="me")


BAD_ATTRIBUTES: Final = [
    "", "ADDR", "ADDR=", "X=1", "LOGIN=me", "ADDR=host", "ADDR=IPV6:1.2.3.4", "ADDR=fe80::1%25", "PORT=70000",
    "PORT=-1", "PORT=¹", "PROTO=X", "HELO=a+0D+0Ab", "HELO=+", "HELO=+FF", "HELO=é", "HELO=" + "x" * 256, "SOURCE=X",
]  # fmt: skip


@pytest.mark.parametrize("arg", [arg for arg in BAD_ATTRIBUTES if arg != "ADDR="])
def test_bad_attributes(arg: str) -> None:
    """Whatever is wrong is 501 5.5.4, in one line that has nothing of the argument in it."""
    with pytest.raises(AttributeSyntaxError, match=r"\A501 5\.5\.4 [A-Za-z =.:]+\Z"):
        parse_attributes("XFORWARD", arg)


@settings(reproducible, max_examples=100)
@given(
    st.sampled_from(["XCLIENT", "XFORWARD"]),
    st.text(max_size=40)
    | st.lists(
        st.tuples(st.sampled_from(["ADDR=", "PORT=", "HELO=", "PROTO="]), st.text("1:.+0aF[]% =", max_size=9))
    ).map(lambda pairs: " ".join(map("".join, pairs))),
)
def test_any_text_is_attributes_or_none(command: str, arg: str) -> None:
    """No text makes the parser raise anything but AttributeSyntaxError; what it returns can be written in a header."""
    try:
        told = parse_attributes(command, arg)
    except AttributeSyntaxError:
        return
    assert (told.helo or "").isprintable()
    assert not told.addr or ipaddress.ip_address(told.addr)


@settings(reproducible, max_examples=50)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=40))
def test_xtext_goes_round(helo: str) -> None:
    """Any printable text arrives as it was encoded (RFC 3461 §4)."""
    octets = "".join(chr(o) if 33 <= o <= 126 and o not in b"+=" else f"+{o:02X}" for o in helo.encode())
    if helo.upper() not in ("[UNAVAILABLE]", "[TEMPUNAVAIL]"):
        assert parse_attributes("XCLIENT", f"HELO={octets}").helo == helo


# PROXY in a session.


async def raw(server: Any) -> Client:
    """Return a client that has heard nothing yet."""
    client = Client(*await asyncio.open_connection(*server.address))
    server.clients.append(client)
    return client


def received(root: Path) -> str:
    """Return the one message under *root*."""
    (message,) = contents(root)["new"]
    return message.decode()


@pytest.mark.every_loop
@pytest.mark.parametrize("header", [GOOD[0][0], tcp4("192.0.2.1", 4711)])
async def test_the_proxy_s_client_is_the_client(tmp_path: Path, header: bytes) -> None:
    """Received, receipts and session name the client behind the proxy, however the header is cut."""
    told: list[Any] = []
    handler = MaildirHandler(tmp_path / "m", on_receipt=told.append)
    async with serving(handler, proxy_protocol=LOOPBACK) as server:
        client = await raw(server)
        for octet in header:
            client.say(bytes([octet]))
            await asyncio.sleep(0)
        assert (await client.hear()).startswith("220 mx.example")
        assert server.sessions[0].session.peer == ("192.0.2.1", 4711)
        await client.begin("b@example.com")
        assert (await client.ask("DATA")).startswith("354")
        assert (await client.ask(b"hello\r\n.\r\n")).startswith("250")
    assert "Received: from client.example ([192.0.2.1]) by" in received(tmp_path / "m")
    assert [receipt.client.peer for receipt in told] == ["192.0.2.1"]


async def test_a_proxy_may_send_header_and_commands_at_once() -> None:
    """What follows the header in the same packet is the client's; UNKNOWN and LOCAL leave the socket's peer."""
    async with serving(Scripted(), proxy_protocol=LOOPBACK) as server:
        for header in (b"PROXY UNKNOWN\r\n", v2(0x20, 0, b"")):
            client = await raw(server)
            client.say(header, "NOOP", "QUIT")
            assert [line[:3] for line in await client.rest()] == ["220", "250", "221"]
            assert server.sessions[-1].session.peer[0] == "127.0.0.1"


@pytest.mark.parametrize("header", BAD[:4] + BAD[-3:])
async def test_a_proxy_without_a_header_is_closed(header: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A listed peer that sends no header, or a bad one, hears nothing; there is one line in the log."""
    async with serving(Scripted(), proxy_protocol=LOOPBACK) as server:
        client = await raw(server)
        client.say(header + b"x" * 16)
        assert await client.rest() == []
    lines = [record.message for record in caplog.records if record.name == "maildir_async.smtp"]
    assert len(lines) == 1
    assert "127.0.0.1 sent no PROXY header" in lines[0]


async def test_a_header_has_to_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listed peer that sends nothing is closed, without a word."""
    monkeypatch.setattr("maildir_async.smtp.clients.PROXY_TIMEOUT_S", 0.01)
    async with serving(Scripted(), proxy_protocol=LOOPBACK) as server:
        assert await (await raw(server)).rest() == []


async def test_others_have_no_proxy() -> None:
    """From a peer that is not listed PROXY is an unknown command."""
    async with serving(Scripted(), proxy_protocol=["192.0.2.0/24", "unix"]) as server:
        client = await server.connect()
        assert (await client.ask(GOOD[0][0])).startswith("500 5.5.1")


@pytest.mark.every_loop
async def test_a_header_is_read_from_the_socket_before_tls() -> None:
    """`read_proxy_header` reads the header and not one octet more, from listed peers only, in bounded time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        for header, client in GOOD:
            theirs.sendall(header + b"\x16\x03")
            assert await read_proxy_header(ours, Networks(["unix"])) == client
            assert ours.recv(99) == b"\x16\x03"
        theirs.sendall(b"\x16")
        assert await read_proxy_header(ours, Networks(LOOPBACK)) is None
        assert ours.recv(99) == b"\x16"
        with pytest.raises(ProxyHeaderError, match="in time"):
            await read_proxy_header(ours, Networks(["unix"]), timeout=0.01)
        theirs.sendall(b"PROXY")
        theirs.close()
        with pytest.raises(ProxyHeaderError, match="ended"):
            await read_proxy_header(ours, Networks(["unix"]), timeout=PATIENCE_S)


# XCLIENT and XFORWARD in a session.


@pytest.mark.parametrize("kind", KINDS)
async def test_they_are_announced_to_trusted_peers_only(kind: Any) -> None:
    """Both are announced with their attributes to trusted peers; others hear 550 5.7.0, or 500 where it is off."""
    hello = "LHLO me" if is_lmtp(kind) else "EHLO me"
    for trusted, reply in ((LOOPBACK, "250"), (["192.0.2.1"], "550 5.7.0"), ([], "500 5.5.1")):
        async with serving(Scripted(), kind, trusted_peers=trusted) as server:
            client = await server.connect()
            told = await client.ask(hello)
            assert ("250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT" in told) == (trusted == LOOPBACK)
            assert ("250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" in told) == (trusted == LOOPBACK)
            assert (await client.ask("XFORWARD ADDR=192.0.2.1")).startswith(reply)


async def test_xforward_names_the_client_of_one_message(tmp_path: Path) -> None:
    """Received and receipts name the forwarded client, until the end of the transaction."""
    told: list[Any] = []
    handler = MaildirHandler(tmp_path / "m", on_receipt=told.append)
    async with serving(handler, trusted_peers=LOOPBACK) as server:
        client = await server.connect()
        await client.ask("EHLO relay.example")
        assert await client.ask("XFORWARD NAME=x ADDR=192.0.2.1 PORT=4711 PROTO=ESMTP") == "250 2.0.0 Ok"
        assert await client.ask("XFORWARD HELO=far.example IDENT=4F") == "250 2.0.0 Ok"
        for _ in range(2):
            await client.asks("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")
            assert (await client.ask("XFORWARD ADDR=192.0.2.2")).startswith("503 5.5.1")
            assert (await client.ask("XCLIENT ADDR=192.0.2.2")).startswith("503 5.5.1")
            await client.ask("DATA")
            assert (await client.ask(b"hello\r\n.\r\n")).startswith("250")
        await client.asks("XFORWARD ADDR=192.0.2.1", "RSET", "MAIL FROM:<>", "RCPT TO:<b@example.com>", "DATA")
        await client.ask(b".\r\n")
    assert [(receipt.client.peer, receipt.client.helo) for receipt in told] == [
        ("192.0.2.1", "far.example"),
        ("127.0.0.1", "relay.example"),
        ("127.0.0.1", "relay.example"),
    ]
    messages = sorted(contents(tmp_path / "m")["new"])
    assert sum(b"from far.example ([192.0.2.1])" in message for message in messages) == 1


async def test_xclient_begins_anew() -> None:
    """XCLIENT is answered with the greeting; the session has no name yet, and its peer is the one told."""
    async with serving(Scripted(), trusted_peers=LOOPBACK, ident="ready") as server:
        client = await server.connect()
        await client.ask("EHLO me")
        assert await client.ask("XCLIENT ADDR=IPV6:2001:db8::1 PORT=1 NAME=x") == "220 mx.example ready"
        session = server.sessions[0]
        assert session.session.peer == ("2001:db8::1", 1)
        assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("503")
        assert await client.ask("XCLIENT HELO=far.example PROTO=ESMTP LOGIN=me") == "220 mx.example ready"
        assert session.session.peer == ("2001:db8::1", 1)
        assert (await client.ask("MAIL FROM:<a@example.com>")).startswith("250")


# Peers.


@pytest.mark.parametrize(
    ("peer", "known"),
    [
        (("::ffff:192.0.2.1", 1, 0, 0), ("192.0.2.1", 1)),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::1", 1, 0, 0)),
        (("192.0.2.1", 1), ("192.0.2.1", 1)),
        ("", ""),
    ],
)
async def test_mapped_peers_are_written_as_ipv4(peer: Any, known: Any) -> None:
    """A peer of a dual-stack socket is known by its IPv4 address (RFC 4291 §2.5.5.2)."""
    session: Any = StreamingSMTP(Scripted(), hostname="mx.example", loop=asyncio.get_running_loop())
    session._set_rset_state()
    session.session = session._create_session()
    session.session.peer = peer
    session._know_client()
    assert session.session.peer == known
