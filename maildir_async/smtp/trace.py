"""Trace headers: what a final delivery writes in front of a message (RFC 5321 §4.4). Pure."""

import ipaddress
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final, cast

from maildir_async.smtp.addresses import host_name, unquoted
from maildir_async.smtp.paths import parse_mailbox
from maildir_async.smtp.proxied import plain_host

__all__ = ["host_of", "trace_headers"]

COLUMNS: Final = 78  # RFC 5322 §2.1.1: where a line should end
TAB: Final = 8  # columns of what begins a folded line

WORD_MAX: Final = 255  # octets of a word; paths have a bound of their own

#: Words that are kept as they are written: most come again, with the next message. One has 2 KiB at most.
KEPT: Final = 256

#: Stand for our name for the transmission and for the date, where a header is folded. No word has them.
_NAME: Final = "\0"
_DATE: Final = "\1"

_ATEXT: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_DOT_STRING: Final = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_NO_WORD: Final = re.compile(r"[^A-Za-z0-9._:\[\]-]")


def trace_headers(
    *,
    mail_from: str | None,
    helo: str,
    peer: object,
    hostname: str,
    protocol: str,
    message_id: str,
    delivered_to: str | None = None,
    original_to: str | None = None,
    now: datetime | None = None,
    return_path: bool = True,
    received: bool = True,
    newline: bytes = b"\n",
) -> bytes:
    """Return whole header lines: Return-Path, Delivered-To, X-Original-To, Received.

    Whatever is in the arguments, nothing of it can end a line, a comment or the header, and no line has more than 998
    octets. An address that cannot be written as what it is (one that is none, UTF-8 where it may not be, far too long)
    is not written at all, and its header left out: it would be somebody else's. In the other words ``?`` stands
    for what has no place there.

    Args:
        mail_from: the envelope sender; None, "" and "<>" are the null sender.
        helo: the name the client gave itself.
        peer: aiosmtpd's: a tuple that begins with the address, or nothing (a Unix socket).
        hostname: ours.
        protocol: how it came: ``ESMTPS``, ``LMTP``, … With ``UTF8`` in front, UTF-8 may be written (RFC 6531 §4.3).
        message_id: what we call this transmission.
        delivered_to: the recipient, for Delivered-To; None to leave it out.
        original_to: the recipient as the client wrote it, for X-Original-To; None to leave it out. If one of the two
            is given, Received names it.
        now: the time, with its zone; the current one by default.
        return_path: whether to write it.
        received: whether to write it.
        newline: the line end.

    """
    utf8 = protocol.startswith("UTF8")
    delivered = _address(delivered_to, utf8) if delivered_to else None
    original = _address(original_to, utf8) if original_to else None
    end = newline.decode()
    text = ""
    if return_path:
        sender = "" if mail_from in (None, "", "<>") else _address(mail_from, utf8)
        if sender is not None:
            text = f"Return-Path: <{sender}>{end}"
    if delivered is not None:
        text += f"Delivered-To: {delivered}{end}"
    if original is not None:
        assert original_to is not None
        text += f"X-Original-To: {original_to if utf8 or original_to.isascii() else original}{end}"
    if received:
        recipient = delivered if delivered is not None else original
        name = _NO_WORD.sub("?", message_id[:WORD_MAX]) or "unknown"
        date = format_datetime(now) if now is not None else _date(int(time.time()))
        head, middle = _received(helo, host_of(peer), hostname, protocol, recipient, end, len(name), len(date))
        text += f"{head}{name}{middle}{date}{end}"
    return text.encode()


@lru_cache(KEPT)
def _received(
    helo: str, host: str, hostname: str, protocol: str, recipient: str | None, end: str, name_size: int, date_size: int
) -> tuple[str, str]:
    """Return what a Received header has before our name for the transmission, and between that and the date.

    The same for all messages of a session to one recipient: where a line is folded depends on how long those two are.
    """
    clauses = [
        f"from {_word(helo)}",
        f"({_literal(host)})",
        f"by {_word(hostname)}",
        f"with {_word(protocol)}",
        f"id {_NAME * name_size}",
        *([f"for <{recipient}>"] if recipient is not None else []),
    ]
    clauses[-1] += ";"
    lines = _folded("Received:", [*clauses, _DATE * date_size])
    head, _, rest = end.join(lines).partition(_NAME * name_size)
    return head, rest.partition(_DATE * date_size)[0]


def _folded(name: str, clauses: Iterable[str]) -> list[str]:
    """Return the lines of a header, none longer than it should be unless a clause alone is."""
    lines = [name]
    room = COLUMNS - len(name)
    for clause in clauses:
        if len(clause) < room or lines == [name]:
            lines[-1] += f" {clause}"
            room -= 1 + len(clause)
        else:
            lines.append(f"\t{clause}")
            room = COLUMNS - TAB - len(clause)
    return lines


@lru_cache(1)
def _date(seconds: int) -> str:
    return format_datetime(datetime.fromtimestamp(seconds, UTC))


@lru_cache(KEPT)
def _address(text: str | None, utf8: bool) -> str | None:
    """Return an address as a header may have it, quoted where it has to be; None if that cannot be done."""
    mailbox = parse_mailbox(text) if text else None
    if mailbox is None:  # whatever ends lines, or turns their direction, is not in one
        return None
    local, domain = unquoted(mailbox.local), mailbox.domain.removesuffix(".")  # no header has that dot: RFC 5322 §3.4.1
    if not _DOT_STRING.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    if not domain.isascii() and not utf8:
        domain = host_name(domain) or ""
    address = f"{local}@{domain}" if domain else local
    return address if utf8 or address.isascii() else None


@lru_cache(KEPT)
def _word(text: str) -> str:
    return _NO_WORD.sub("?", text[:WORD_MAX]) or "unknown"


@lru_cache(KEPT)
def _literal(host: str) -> str:
    """Return the client's address as a literal (RFC 5321 §4.1.3), or what a Unix socket is."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # what follows is an interface of ours
    except ValueError:
        return "local"
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def host_of(peer: object) -> str:
    """Return the address in aiosmtpd's *peer*; "" for a Unix socket, which has none."""
    return plain_host(str(cast("tuple[object, ...]", peer)[0])) if isinstance(peer, tuple) and peer else ""
