"""`maildir_async.smtp.replies`: what is said has a code, is text, and tells nothing it must not."""

import inspect
import re
from typing import Final

import pytest
from aiosmtpd import lmtp, smtp
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.errors import SMTP_REPLIES
from maildir_async.smtp import replies
from maildir_async.smtp.replies import NOT_STORED, as_reply, combined, encoded, joined, with_enhanced_code
from support import reproducible

CODED: Final = re.compile(r"([245])\d\d[ -]\1\.\d{1,3}\.\d{1,3}( |\Z)")


@pytest.mark.parametrize(
    ("line", "command", "told"),
    [
        ("250 OK", "MAIL", "250 2.1.0 OK"),
        ("250 OK", "RCPT", "250 2.1.5 OK"),
        ("250 OK", "NOOP", "250 2.0.0 OK"),
        ("250", "NOOP", "250 2.0.0"),
        ("250-OK", "NOOP", "250-2.0.0 OK"),
        ("550 no", "RCPT", "550 5.1.1 no"),
        ("550 no", "DATA", "550 5.0.0 no"),
        ("499 odd", "DATA", "499 4.0.0 odd"),
        ('500 Error: command "X" not recognized', "X", '500 5.5.1 Error: command "X" not recognized'),
        ("554 Command refused due to lack of security", "X", "554 5.7.0 Command refused due to lack of security"),
        ("250 2.9.9 has one", "MAIL", "250 2.9.9 has one"),
        ("250 2.9.9", "MAIL", "250 2.9.9"),
        ("250 2.9.9x is none", "MAIL", "250 2.1.0 2.9.9x is none"),
        ("250-mx.example", "EHLO", "250-mx.example"),
        ("250-mx.example", "LHLO", "250-mx.example"),
        ("250 mx.example", "HELO", "250 mx.example"),
        ("354 go on", "DATA", "354 go on"),
        ("334 VXNlcg==", "AUTH", "334 VXNlcg=="),
        ("no reply", "X", "no reply"),
        ("2500 either", "X", "2500 either"),
    ],
)
def test_enhanced_codes(line: str, command: str, told: str) -> None:
    """A reply gets the code that its command and words call for, unless it has one, or is to have none (RFC 2034)."""
    assert with_enhanced_code(line, command) == told
    assert with_enhanced_code(told, command) == told


def test_everything_that_aiosmtpd_says_gets_a_code() -> None:
    """Each reply in its source, but 220 and 354, gets one whose class is the reply's."""
    said = {
        text
        for module in (smtp, lmtp)
        for text in re.findall(r"""["'](\d{3} [^"']+)""", inspect.getsource(module))
        if text[0] in "245"
    }
    assert len(said) > 40
    for text in said:
        assert CODED.match(with_enhanced_code(text, "X"))
    assert not [code for code, enhanced in replies._BY_CODE.items() if code[0] != enhanced[0]]
    assert not [code for (_, code), enhanced in replies._BY_COMMAND.items() if code[0] != enhanced[0]]


def test_our_own_replies_have_codes() -> None:
    """The constants, and what `MaildirError.smtp_reply` may be, are whole replies."""
    own = [getattr(replies, name) for name in replies.__all__ if name.isupper()]
    assert len(own) >= 5
    for reply in (*own, *SMTP_REPLIES.values()):
        assert CODED.match(reply)
        assert encoded(reply, command="DATA", utf8=False) == reply.encode()


@reproducible
@given(st.text() | st.text(alphabet="25 -.\r\n\0é\u2028\ud800x"), st.booleans())
def test_what_goes_over_the_wire_is_text(text: str, utf8: bool) -> None:
    """CRLF separates lines, of at most 510 octets; there is no other control character, nor any octet but ASCII's."""
    wire = encoded(text, command="NOOP", utf8=utf8)
    lines = wire.decode("utf-8" if utf8 else "ascii").split("\r\n")
    assert len(lines) == text.count("\r\n") + 1
    for line in lines:
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", line)
        assert len(line.encode()) <= 510


def test_long_lines_are_cut() -> None:
    """At 510 octets, and never within a character."""
    assert encoded("250 " + "x" * 600, command="NOOP", utf8=False) == b"250 2.0.0 " + b"x" * 500
    assert encoded("250 2.0.0 " + "é" * 300, command="NOOP", utf8=True) == b"250 2.0.0 " + "é".encode() * 250
    assert encoded("250 2.0.0 x" + "é" * 300, command="NOOP", utf8=True) == b"250 2.0.0 x" + "é".encode() * 249


def test_a_greeting_has_no_code() -> None:
    """Before the first command a reply stays as it is."""
    assert encoded("220 mx.example", command="", utf8=False) == b"220 mx.example"


@pytest.mark.parametrize("answer", [None, 3, b"250 OK", "", "OK", "2500", "354 go on", "999 x", "250_x"])
def test_what_is_no_reply_is_a_temporary_failure(answer: object) -> None:
    """Whatever somebody else's code returns, a client is told something true."""
    assert as_reply(answer) == NOT_STORED
    assert as_reply("250 OK") == "250 OK"


def test_one_line_for_each_recipient() -> None:
    """Joined, there are as many lines as replies, none of which a client could take for the first of several."""
    assert joined(["250 a", "452-b\r\n250 c", "nonsense", "550-"]) == f"250 a\r\n452 b 250 c\r\n{NOT_STORED}\r\n550 "


@pytest.mark.parametrize(
    ("told", "reply"),
    [
        (["250 a", "250 b"], "250 a"),
        (["250 a", "550 b", "551 c"], "550 b"),
        (["550 a", "250 b", "451 c", "452 d"], "451 c"),
        (["250 a", "x"], NOT_STORED),
        ([], NOT_STORED),
    ],
)
def test_one_reply_for_all(told: list[str], reply: str) -> None:
    """The worst that trying again may mend, else the worst; success only if there is nothing else."""
    assert combined(told) == reply
