"""Arguments of commands, replies, and the headers that are written of an envelope: by themselves, without a session."""

import re
from contextlib import suppress
from datetime import UTC, datetime

from maildir_async.smtp.paths import (
    PATH_MAX,
    is_recipient,
    parse_mailbox,
    parse_parameters,
    parse_path,
    parse_vrfy,
    xtext_is_valid,
)
from maildir_async.smtp.proxied import Networks, plain_host
from maildir_async.smtp.replies import LINE_LIMIT, NOT_STORED, as_reply, combined, encoded, joined
from maildir_async.smtp.streaming import _announced_chunk
from maildir_async.smtp.trace import trace_headers

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    *(
        b"<",
        b">",
        b"a@b.example",
        b'"a b"@c.example',
        b"@x,@y:",
        b" SIZE=1",
        b" BODY=8BITMIME",
        b"\\",
        b'"',
        b"(",
        b")",
    ),
    *(
        b"[127.0.0.1]",
        b"[IPv6:::1]",
        b"\xc3\xa4",
        b"\xff",
        b"\r\n",
        b"\n",
        b"\0",
        b" ",
        b"+41",
        b"LAST",
        b"12",
        b"250 ok",
    ),
    *(b"451 4.3.0 no", b"-", b"::ffff:10.0.0.1", b"\xe2\x80\xa8", b"a" * 70, b"a" * 600),
)

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def target(data: bytes) -> None:
    """Read *data* as each of these, and write it into replies and headers."""
    text = decoded(data)
    path = parse_path(text)
    if path is not None:
        address, rest = path
        assert address in text
        assert not address or parse_mailbox(address) is not None
        assert not address or is_recipient(address)
        assert rest in text
    mailbox = parse_mailbox(text)
    if mailbox is not None:
        assert text == f"{mailbox.local}@{mailbox.domain}" or text.lower() == "postmaster"
        assert len(text.encode()) <= PATH_MAX
        assert not re.search("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text)
    assert is_recipient(text) == (mailbox is not None)
    vrfy = parse_vrfy(text)
    assert vrfy is None or (vrfy and vrfy in text)
    parameters = parse_parameters(text)
    assert parameters is None or all(
        f"{key}={value}" in text.upper() or value is None or value in text for key, value in parameters.items()
    )
    assert not xtext_is_valid(text) or (text.isascii() and " " not in text)
    announced = _announced_chunk(text)
    assert announced is None or 0 <= announced[0] < 10**20
    assert plain_host(text) == text or text.startswith("::ffff:")
    with suppress(ValueError):
        Networks([text])
    _check_replies(text)
    _check_headers(text)


def _check_replies(text: str) -> None:
    for reply in (as_reply(text), combined([text, text]), joined([text, "250 ok"])):
        assert re.match(r"[245]\d\d", reply)
    assert as_reply(text) in (text, NOT_STORED)
    assert "\r\n" not in combined([text])
    for line in encoded(as_reply(text), command="DATA", utf8=True).split(b"\r\n"):
        assert len(line) <= LINE_LIMIT
        assert not re.search(rb"[\0-\x1f\x7f]", line)
    assert encoded(text, command="", utf8=False).isascii()


def _check_headers(text: str) -> None:
    for utf8 in (False, True):
        header = trace_headers(
            mail_from=text,
            helo=text,
            peer=(text, 1),
            hostname=text,
            protocol="UTF8SMTP" if utf8 else "ESMTP",
            message_id=text,
            delivered_to=text,
            original_to=text,
            now=WHEN,
        )
        lines = header.split(b"\n")
        assert lines[-1] == b""
        assert max(map(len, lines)) <= 998
        assert not re.search(rb"[\0-\x08\x0b-\x1f\x7f]", header)
        assert utf8 or header.isascii()
        names = [line.partition(b":")[0] for line in lines[:-1] if line[:1] not in (b" ", b"\t")]
        assert len(names) == len(set(names))
        assert set(names) <= {b"Return-Path", b"Delivered-To", b"X-Original-To", b"Received"}
        assert all(line.strip() for line in lines[:-1])
