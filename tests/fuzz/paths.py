"""Command lines with paths: each has one reply, and hooks are given what the client wrote, and nothing else."""

import re

from .session import Keeper, converse

__all__ = ["target"]

#: Chosen by the first octet of each line; the rest is the argument.
VERBS = (b"MAIL FROM:", b"RCPT TO:", b"MAIL FROM:<", b"RCPT TO:<", b"VRFY ", b"MAIL ", b"RCPT ", b"MAIL FROM:<@a:")

#: What no mailbox may be without, said in another way: a local part, which has quotes or no specials, and a domain.
MAILBOX = re.compile(r"""(?:"(?:[^"\\]|\\[ -~])*"|[^\s"(),:;<>@\[\\\]]+)@(?:[^\s"(),:;<>@\[\\\]]+|\[[!-Z^-~]+\])""")


#: So many lines at most: a session has seconds for all of them.
MOST = 200


def target(data: bytes) -> None:
    """Say the lines of *data*, each after a verb."""
    lines = [
        VERBS[line[0] % len(VERBS)] + line[1:].replace(b"\r", b"\x0b") for line in data.split(b"\n")[:MOST] if line
    ]
    handler = Keeper()
    sent = [part for line in lines for part in (b"RSET", b"MAIL FROM:<x@y> SMTPUTF8", line) if not _is_mail(part, line)]
    said, _ = converse(handler, b"EHLO me\r\n" + b"".join(line + b"\r\n" for line in sent))
    replies = [line for line in said.split(b"\r\n") if line and line[3:4] == b" "]
    assert len(replies) == 2 + len(sent), replies
    assert all(re.match(rb"[25]\d\d ", reply) for reply in replies[2:]), replies
    told = b"\n".join(lines).decode("utf-8", "surrogateescape")
    for address in handler.addresses:
        if address not in ("x@y", "<>"):
            assert address in told
            assert not re.search("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", address), address
            assert MAILBOX.fullmatch(address) or address.lower() == "postmaster", address


def _is_mail(part: bytes, line: bytes) -> bool:
    """Whether *part* is the MAIL that a line needs before it, and the line is a MAIL itself."""
    return part is not line and part.startswith(b"MAIL") and line.startswith(b"MAIL")
