import re
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.format.content import NEWLINES, Content, check_newline, check_prefix
from support import reproducible

Newline = Literal["keep", "lf", "crlf"]

# Line ends in every mutilation, cut anywhere, with bytes that are not text, and empty chunks.
CHUNKS = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"a", b".", b"\xff\0"]), max_size=8).map(b"".join),
    ),
    max_size=12,
)
PREFIXES = st.sampled_from([b"", b"Return-Path: <a@b>\n", b"Delivered-To: a\r\nX: y\n z\n"])
POLICIES = st.sampled_from(["keep", "lf", "crlf"])


def joined(prefix: bytes, message: bytes) -> bytes:
    """What is to be stored before line ends are changed: the message does not continue a header of the prefix."""
    if prefix and message.startswith((b" ", b"\t")):
        return prefix + (b"\r\n" if prefix.endswith(b"\r\n") else b"\n") + message
    return prefix + message


def reference(whole: bytes, newline: Newline) -> bytes:
    """What is to be stored, from the whole message at once."""
    if newline == "lf":
        return whole.replace(b"\r\n", b"\n")
    if newline == "crlf":
        return re.sub(rb"(?<!\r)\n", b"\r\n", whole)
    return whole


def reference_wire_size(stored: bytes) -> int:
    return sum(1 + (byte == 10 and (at == 0 or stored[at - 1] != 13)) for at, byte in enumerate(stored))


def converted(content: Content, chunks: list[bytes]) -> bytes:
    """What comes out, with the size checked at every step."""
    stored = b""
    for chunk in chunks:
        stored += content.feed(chunk)
        assert content.size == len(stored)
    stored += content.end()
    assert content.size == len(stored)
    return stored


@reproducible
@given(CHUNKS, PREFIXES, POLICIES)
def test_any_chunking_stores_the_same(chunks: list[bytes], prefix: bytes, newline: Newline) -> None:
    """Any bytes in any chunks become what the policy makes of the whole, and both sizes are those of it."""
    expected = reference(joined(prefix, b"".join(chunks)), newline)
    content = Content(prefix=prefix, newline=newline)
    assert converted(content, chunks) == expected
    assert content.wire_size == reference_wire_size(expected)


@reproducible
@given(CHUNKS, PREFIXES, POLICIES)
def test_one_byte_at_a_time_stores_the_same(chunks: list[bytes], prefix: bytes, newline: Newline) -> None:
    """A message fed byte by byte, with an empty chunk after each, is stored as if it were given whole."""
    message = b"".join(chunks)
    whole = Content(prefix=prefix, newline=newline)
    bytewise = Content(prefix=prefix, newline=newline)
    one = [message[at : at + size] for at in range(len(message)) for size in (1, 0)]
    assert converted(bytewise, one) == converted(whole, [message]) == reference(joined(prefix, message), newline)
    assert (bytewise.size, bytewise.wire_size) == (whole.size, whole.wire_size)


@reproducible
@given(CHUNKS)
def test_keep_passes_bytes_through(chunks: list[bytes]) -> None:
    """With ``keep`` and no prefix each chunk is stored as it is, at once and without a copy."""
    content = Content()
    for chunk in chunks:
        assert content.feed(chunk) is chunk
    assert content.end() == b""


@pytest.mark.parametrize(
    ("newline", "message", "stored"),
    [
        ("keep", b"a\r\nb\nc\rd", b"a\r\nb\nc\rd"),
        ("lf", b"a\r\nb\nc\rd", b"a\nb\nc\rd"),
        ("crlf", b"a\r\nb\nc\rd", b"a\r\nb\r\nc\rd"),
        ("lf", b"\r\r\n\r", b"\r\n\r"),
        ("crlf", b"\n\n\r\r\n\r", b"\r\n\r\n\r\r\n\r"),
    ],
)
def test_policies(newline: Newline, message: bytes, stored: bytes) -> None:
    """``lf`` and ``crlf`` change line ends only; a CR that no LF follows is data."""
    assert converted(Content(newline=newline), [message]) == stored


def test_empty_message_has_its_prefix() -> None:
    """A message of no bytes is its prefix, in the policy's line ends."""
    content = Content(prefix=b"A: b\n", newline="crlf")
    assert converted(content, []) == b"A: b\r\n"
    assert (content.size, content.wire_size) == (6, 6)


@pytest.mark.parametrize("newline", ["keep", "lf", "crlf"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("message", "is_apart"),
    [
        (b" folded\n", True),
        (b"\tfolded\n", True),
        (b" \r\nbody", True),
        (b" ", True),
        (b"", False),
        (b"\r\n folded", False),
        (b"\n folded", False),
        (b"\r folded", False),
        (b"From a@b.example Thu Jan  1 00:00:00 1970\n folded", False),
        (b"Subject: x\n folded", False),
    ],
)
def test_a_message_never_continues_the_prefix(
    newline: Newline, line_end: bytes, message: bytes, is_apart: bool
) -> None:
    """A message that begins with SP or HT has an empty line before it, with the prefix's line end, in any chunking."""
    prefix = b"A: b" + line_end
    expected = reference(prefix + line_end * is_apart + message, newline)
    for chunks in ([message], [b"", message], [b"", message[:1], b"", message[1:]]):
        content = Content(prefix=prefix, newline=newline)
        assert converted(content, chunks) == expected
        assert (content.size, content.wire_size) == (len(expected), reference_wire_size(expected))
    assert converted(Content(newline=newline), [message]) == reference(message, newline)


def test_a_prefix_that_cannot_be_read() -> None:
    """A memoryview that has been released is a ValueError that names the prefix."""
    released = memoryview(b"X: 1\n")
    released.release()
    with pytest.raises(ValueError, match=r"prefix.*released"):
        check_prefix(released)  # type: ignore[arg-type]


def test_newline_is_one_of_three() -> None:
    """A policy that does not exist is a ValueError that names it."""
    for newline in NEWLINES:
        assert check_newline(newline) == newline
    wrong: Any
    for wrong in ("", "CRLF", "\n", "crlf "):
        with pytest.raises(ValueError, match=re.escape(repr(wrong))):
            check_newline(wrong)


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"Return-Path: <alice@example.org>\n",
        b"Return-Path: <>\r\n",
        b"Delivered-To: a\nReceived: from b\n\tby c;\r\n  today\nX:\n",
        b"X-Odd!#$ \t: caf\xc3\xa9 \xff\n",
    ],
)
def test_prefix_of_whole_header_lines(prefix: bytes) -> None:
    """Whole header fields, ended by LF or CRLF and folded or not, are taken as they are, from any bytes-like."""
    assert check_prefix(prefix) == prefix
    for other in (bytearray(prefix), memoryview(prefix)):
        taken = check_prefix(other)  # type: ignore[arg-type]
        assert (type(taken), taken) == (bytes, prefix)


@pytest.mark.parametrize(
    "prefix",
    [
        b"A: b",  # no line end
        b"A: b\r",
        b"\n",  # ends the header
        b"\r\n",
        b"A: b\n\n",
        b"A: b\r\n\r\nbody\r\n",
        b"A: b\n \n",  # blank, to a lenient reader
        b"A: b\n\t \r\nC: d\n",
        b" folded: first\n",
        b"A: b\rC: d\n",  # a bare CR, a line end to a lenient reader
        b"A: b\r\r\n",
        b"A: b\0\n",
        b"no colon\n",
        b": no name\n",
        b"Two words: x\n",
        b"From alice@example.org Thu Jan  1 00:00:00 1970\n",  # an mbox separator
        b"caf\xc3\xa9: x\n",
        b"A: b\nbody\n",
        b"Return-Path: <%s>\n" % b"a@b>\r\n\r\n<script>",  # what a hostile envelope address makes of a template
        b"Return-Path: <%s>\n" % b"a@b\nnot a field",
    ],
)
def test_prefix_that_could_end_the_header(prefix: bytes) -> None:
    """Anything that could end the header, split a field or start the body is a ValueError."""
    with pytest.raises(ValueError, match="prefix"):
        check_prefix(prefix)


@reproducible
@given(st.lists(st.sampled_from([b"A: b", b" c", b"\t", b" ", b"", b"d", b"\n", b"\r\n", b"\r", b"\0"])).map(b"".join))
def test_prefix_taken_is_a_header(prefix: bytes) -> None:
    """Whatever is taken reads, line by line, as fields and their continuations and nothing else."""
    try:
        taken = check_prefix(prefix)
    except ValueError:
        return
    for line in re.split(rb"\r\n|\n", taken)[:-1]:
        assert re.fullmatch(rb"A: b[A-Zabcd: \t]*|[ \t]+[^ \t\r\0][^\r\0]*", line)
    assert taken.endswith(b"\n") or not taken


@pytest.mark.parametrize("prefix", ["A: b\n", None, 7, ["A: b\n"]])
def test_prefix_is_bytes(prefix: object) -> None:
    """A prefix that is not bytes is a TypeError that names its type."""
    with pytest.raises(TypeError, match=f"not {type(prefix).__name__}"):
        check_prefix(prefix)  # type: ignore[arg-type]
