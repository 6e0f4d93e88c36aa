"""Trace headers: what they say, and that nothing a client sends can be more than a word in them."""

import email
import email.policy
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.format.content import check_prefix
from maildir_async.smtp.trace import trace_headers
from support import reproducible

NOW: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLAIN: Final[dict[str, Any]] = {
    "mail_from": "a@example.com",
    "helo": "client.example",
    "peer": ("192.0.2.1", 1234),
    "hostname": "mx.example.org",
    "protocol": "ESMTPS",
    "message_id": "0123abcd",
    "now": NOW,
}


def test_all_of_them() -> None:
    """In the order of RFC 5321: Return-Path first."""
    assert trace_headers(**PLAIN, delivered_to="b@example.org", original_to="b+x@example.org").decode() == (
        "Return-Path: <a@example.com>\n"
        "Delivered-To: b@example.org\n"
        "X-Original-To: b+x@example.org\n"
        "Received: from client.example ([192.0.2.1]) by mx.example.org with ESMTPS\n"
        "\tid 0123abcd for <b@example.org>; Fri, 02 Jan 2026 03:04:05 +0000\n"
    )


def test_each_recipient_alone_is_named() -> None:
    """X-Original-To by itself is for whom Received says the message is."""
    prefix = trace_headers(**PLAIN, original_to="b+x@example.org")
    assert b"for <b+x@example.org>;" in prefix
    assert b"Delivered-To" not in prefix


@pytest.mark.parametrize("address", ["a..b@example.org.", '"alice"@Example.ORG', "b+x@b\u00fccher.example"])
def test_the_original_recipient_is_what_the_client_wrote(address: str) -> None:
    """X-Original-To has the very words; a header with a syntax of its own, what they mean."""
    lines = trace_headers(**PLAIN | {"protocol": "UTF8SMTP"}, original_to=address).decode().split("\n")
    assert lines[1] == f"X-Original-To: {address}"


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("a@example.com", "a@example.com"),
        ("postmaster", "postmaster"),
        ("a+b=c/d@[192.0.2.1]", "a+b=c/d@[192.0.2.1]"),
        ('"a b"@example.com', '"a b"@example.com'),
        ('"a\\"><b"@example.com', '"a\\"><b"@example.com'),
        (r'"a\\b"@example.com', r'"a\\b"@example.com'),
        ("../etc@example.com", '"../etc"@example.com'),  # no dot-string of a header
        ("a..b@example.com", '"a..b"@example.com'),
        ("a@example.com.", "a@example.com"),
        ("a(b@example.com", None),
        ("a@b\u00fccher.example", "a@xn--bcher-kva.example"),
        ("a" * 884 + "@example.com", "a" * 884 + "@example.com"),
        ("a" * 900 + "@example.com", None),  # cut, it would be somebody else's
        ("j\u00fcrgen@example.com", None),
        ("a\r\nX: y@example.com", None),
        ("a\x85b@example.com", None),
        ("a@example.com>(", None),
        ("a@exam ple.com", None),
        ("a@example.com\n", None),
        ("a\udce9@example.com", None),
        ("a@", None),
        (">", None),
    ],
)
def test_addresses_are_written_as_they_are_or_not_at_all(address: str, written: str | None) -> None:
    """No address becomes another one: what cannot be written leaves its header out."""
    lines = trace_headers(**PLAIN | {"mail_from": address}, delivered_to=address).decode().split("\n")
    if written is None:
        assert lines[0].startswith("Received: ")
        assert "for <" not in "".join(lines)
    else:
        assert lines[:2] == [f"Return-Path: <{written}>", f"Delivered-To: {written}"]
        assert f"for <{written}>;" in "\n".join(lines[2:])


def test_other_words_keep_their_place() -> None:
    """What does not belong into a word becomes a question mark; where there is none, it says so."""
    hostile = trace_headers(**PLAIN | {"helo": "a (b)\r\nc\u00e9;", "hostname": "", "message_id": "x y"})
    assert max(map(len, trace_headers(**PLAIN | {"helo": "h" * 5000}).split(b"\n"))) < 300
    assert b"Received: from a??b???c?? ([192.0.2.1]) by unknown with ESMTPS id x?y;\n" in hostile


@pytest.mark.parametrize("length", range(1, 120))
def test_lines_are_folded(length: int) -> None:
    """No line goes beyond column 78 but for a word that is too long by itself; none is begun without need."""
    prefix = trace_headers(**PLAIN | {"helo": "h" * length}, delivered_to="b@example.org").decode()
    lines = prefix.removesuffix("\n").split("\n")
    assert all(len(line.expandtabs(8)) <= 78 or "hhhhhhhhhhh" in line for line in lines)
    assert len(lines) <= 6
    assert lines[2].startswith("Received: from h")


def test_the_time_is_now() -> None:
    """Without a time it is that of the call, with a zone."""
    before = datetime.now(UTC).replace(microsecond=0)
    prefix = trace_headers(**PLAIN | {"now": None})
    date = parsedate_to_datetime(prefix.decode().rpartition(";")[2].strip())
    assert before <= date <= datetime.now(UTC)


def test_each_can_be_left_out() -> None:
    """Without a recipient none is named; with nothing switched on there is nothing."""
    both = trace_headers(**PLAIN)
    assert b"for <" not in both
    assert both.count(b"\n") == 3
    assert trace_headers(**PLAIN, received=False) == b"Return-Path: <a@example.com>\n"
    assert trace_headers(**PLAIN, return_path=False, received=False) == b""
    assert trace_headers(**PLAIN, newline=b"\r\n").count(b"\r\n") == 3


@pytest.mark.parametrize("sender", [None, "", "<>"])
def test_the_null_sender(sender: str | None) -> None:
    """However it is written, it is <>."""
    assert trace_headers(**PLAIN | {"mail_from": sender}).startswith(b"Return-Path: <>\n")


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        (("::1", 1, 0, 0), b"([IPv6:::1])"),
        (("fe80::1%eth0", 1, 0, 2), b"([IPv6:fe80::1])"),
        ("", b"(local)"),
        (None, b"(local)"),
        (("host)\r\nX: y", 1), b"(local)"),
    ],
)
def test_peers(peer: object, text: bytes) -> None:
    """An address literal, or a word for those that have none."""
    assert text in trace_headers(**PLAIN | {"peer": peer})


def test_utf8_only_where_it_may_be() -> None:
    """In a UTF8SMTP transaction an address is written as it is; in another one not."""
    told: dict[str, Any] = {"mail_from": "j\u00fcrgen@example.com"}
    assert "<j\u00fcrgen@".encode() in trace_headers(**PLAIN | told | {"protocol": "UTF8SMTP"})
    assert trace_headers(**PLAIN | told).isascii()
    told["mail_from"] = "a@b\u00fccher.example"
    assert "<a@b\u00fccher.example>".encode() in trace_headers(**PLAIN | told | {"protocol": "UTF8LMTP"})
    for unseen in ("\u202e", "\u200b", "\x85", "\u2028", "\udce9"):
        told["mail_from"] = f"a{unseen}@example.com"
        assert trace_headers(**PLAIN | told | {"protocol": "UTF8SMTP"}).startswith(b"Received:")


anything = st.text(max_size=400) | st.text(alphabet='a@.<>()\r\n\t :;"\\\0\x85\u2028\udce9', max_size=400)


@reproducible
@given(anything, anything, anything, anything | st.none(), anything | st.none(), st.sampled_from(["ESMTP", "UTF8SMTP"]))
def test_nothing_can_be_injected(
    sender: str, helo: str, peer: str, delivered: str | None, original: str | None, protocol: str
) -> None:
    """Whatever the client says, there are these headers, each once, in lines that are not too long."""
    told: dict[str, Any] = {"mail_from": sender, "helo": helo, "peer": (peer, 1), "protocol": protocol}
    prefix = trace_headers(**PLAIN | told, delivered_to=delivered, original_to=original)
    assert check_prefix(prefix) == prefix
    lines = prefix.split(b"\n")
    assert max(map(len, lines)) <= 998
    assert b"\r" not in prefix
    assert prefix.decode().count("\n") == len(prefix.decode().splitlines())
    parsed = email.message_from_bytes(prefix + b"Subject: x\n\nbody\n", policy=email.policy.compat32)
    may_be = iter(["Return-Path", "Delivered-To", "X-Original-To"])
    assert parsed.keys()[-2:] == ["Received", "Subject"]
    assert all(name in may_be for name in parsed.keys()[:-2])  # each at most once, in this order
    if sender in ("", "<>"):
        assert parsed["Return-Path"] == "<>"
    assert parsed.get_payload() == "body\n"
    assert str(parsed["Received"]).endswith("Fri, 02 Jan 2026 03:04:05 +0000")
    assert str(parsed["Received"]).count(";") <= 1 + (delivered or original or "").count(";")
