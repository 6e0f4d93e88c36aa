"""What is said to clients: enhanced status codes, several replies as one, nothing that a reply may not hold. Pure."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from maildir_async.errors import DEFAULT_SMTP_REPLY

__all__ = [
    "AUTH_LINE_TOO_LONG",
    "BAD_RECIPIENT",
    "BAD_SENDER",
    "BARE_LF",
    "COMMAND_TOO_LONG",
    "LINE_TOO_LONG",
    "MESSAGE_TIMEOUT",
    "NOT_ASCII",
    "NOT_READ",
    "NOT_STORED",
    "SHUTTING_DOWN",
    "TIMEOUT",
    "TOO_LARGE",
    "TOO_MANY_ERRORS",
    "as_reply",
    "combined",
    "encoded",
    "joined",
    "with_enhanced_code",
]

#: For whatever is not known to be permanent.
NOT_STORED: Final = DEFAULT_SMTP_REPLY
TOO_LARGE: Final = "552 5.3.4 Message too large"
BAD_SENDER: Final = "501 5.1.7 Bad sender address syntax"  # RFC 3463 §3.2
BAD_RECIPIENT: Final = "501 5.1.3 Bad recipient address syntax"
NOT_ASCII: Final = "553 5.6.7 SMTPUTF8 is required for an address that is not ASCII"  # RFC 6531 §3.5
LINE_TOO_LONG: Final = "500 5.6.0 Line too long"
SHUTTING_DOWN: Final = "421 4.3.2 Service shutting down"
NOT_READ: Final = "421 4.3.0 Message not stored, closing connection"
TIMEOUT: Final = "421 4.4.2 Timeout, closing connection"
MESSAGE_TIMEOUT: Final = "421 4.4.2 Message took too long, closing connection"
TOO_MANY_ERRORS: Final = "421 4.7.0 Error: too many errors"
COMMAND_TOO_LONG: Final = "500 5.5.2 Command line too long"
BARE_LF: Final = "500 5.5.2 Error: a line ends with CR LF, not with LF"
AUTH_LINE_TOO_LONG: Final = "500 5.5.6 Authentication exchange line is too long"  # RFC 4954 §6

#: Octets of a reply line without its CRLF (RFC 5321 §4.5.3.1.5).
LINE_LIMIT: Final = 510

#: RFC 2034 §4: these answers, and the greeting, have no enhanced code.
_PLAIN: Final = frozenset({"EHLO", "HELO", "LHLO"})

#: (command, code) → enhanced code (RFC 3463), where that depends on the command.
_BY_COMMAND: Final = {
    ("MAIL", "250"): "2.1.0",
    ("RCPT", "250"): "2.1.5",
    ("RCPT", "450"): "4.2.0",
    ("RCPT", "550"): "5.1.1",
    ("RCPT", "552"): "5.2.2",
}

#: (code, words) → enhanced code, for what aiosmtpd says under a code that has more than one meaning.
_BY_TEXT: Final = {
    ("500", "not recognized"): "5.5.1",
    ("554", "lack of security"): "5.7.0",
}

#: Code → enhanced code. Any other code gets x.0.0.
_BY_CODE: Final = {
    "421": "4.3.0",
    "450": "4.2.0",
    "451": "4.3.0",
    "452": "4.3.1",
    "454": "4.7.0",
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "504": "5.5.4",
    "530": "5.7.0",
    "535": "5.7.8",
    "538": "5.7.11",
    "552": "5.3.4",
    "553": "5.1.3",
    "555": "5.5.4",
}

#: Lines that are kept as they go over the wire: nearly all come again, but for those that name a message.
KEPT: Final = 256

_REPLY: Final = re.compile(r"([245])\d\d(?=[ -]|$)")
_HAS_CODE: Final = re.compile(r"[245]\d\d[ -]\d\.\d{1,3}\.\d{1,3}(?: |$)")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def with_enhanced_code(line: str, command: str) -> str:
    """Return one line of the reply to *command* (in capitals) with an enhanced status code, if it has to have one."""
    reply = _REPLY.match(line)
    if reply is None or command in _PLAIN or _HAS_CODE.match(line):
        return line
    code, rest = line[:3], line[4:]
    enhanced = _BY_COMMAND.get((command, code))
    if enhanced is None:
        texts = (found for (of, words), found in _BY_TEXT.items() if of == code and words in rest)
        enhanced = next(texts, None) or _BY_CODE.get(code, f"{reply[1]}.0.0")
    return f"{code}{line[3:4] or ' '}{enhanced} {rest}".rstrip()


def encoded(reply: str, *, command: str, utf8: bool) -> bytes:
    """Return *reply* as it goes over the wire, without the last line's CRLF.

    CRLF separates lines. Other control characters become question marks, and so does whatever is not ASCII unless
    *utf8*, as in a transaction that asked for SMTPUTF8 (RFC 6531 §3.7.4.2). Lines that are too long are cut.
    """
    if "\r\n" not in reply:
        return _encoded_line(reply, command, utf8)
    return b"\r\n".join(_encoded_line(line, command, utf8) for line in reply.split("\r\n"))


@lru_cache(KEPT)
def _encoded_line(line: str, command: str, utf8: bool) -> bytes:
    if command:
        line = with_enhanced_code(line, command)
    if not line.isprintable():
        line = _UNPRINTABLE.sub("?", line)
    octets = line.encode("utf-8" if utf8 else "ascii", "replace")
    if len(octets) > LINE_LIMIT:
        octets = octets[:LINE_LIMIT].decode("utf-8", "ignore").encode()
    return octets


def as_reply(answer: object) -> str:
    """Return *answer*, from somebody else's code, if it can be the reply to a message; `NOT_STORED` if it cannot."""
    return answer if isinstance(answer, str) and _REPLY.match(answer) else NOT_STORED


def joined(replies: Sequence[str]) -> str:
    """Return one text for the replies of all recipients, as LMTP has them (RFC 2033 §4.2), in their order."""
    return "\r\n".join(map(_one_line, replies))


def combined(replies: Sequence[str]) -> str:
    """Return the one reply that SMTP has for a message to several recipients.

    A success only if all have succeeded: whoever is told so deletes the message. If one failure is temporary the
    client is to try again, and those who have the message get it twice, which is better than not at all.
    """
    if len(replies) == 1:
        return _one_line(replies[0])
    lines = list(map(_one_line, replies)) or [NOT_STORED]
    for severity in "45":
        for line in lines:
            if line.startswith(severity):
                return line
    return lines[0]


def _one_line(reply: str) -> str:
    line = as_reply(reply)
    if "\r\n" in line:
        line = " ".join(line.split("\r\n"))
    elif line[3:4] == " ":
        return line
    return f"{line[:3]} {line[4:]}"
