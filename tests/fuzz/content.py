"""The octets of a message on their way to its file: prefix, mbox line, line ends, sizes, in any chunking."""

import re

from maildir_async.format.content import FROM_LINE_MOST, NEWLINES, Content, check_prefix, wire_size_of

from .cutting import chunked, each_way

__all__ = ["target"]

PIECES = (b"\r", b"\n", b"\r\n", b"From ", b"From x\n", b"X: y\n", b" ", b"\t", b":", b"|", b"a", b"\0", b"\n ")

PREFIXES = (b"", b"A: b\n", b"A: b\r\n c\r\n")


def target(data: bytes) -> None:
    """Store what follows the first ``|``, cut by what is before it; and look whether it could be a prefix."""
    lengths, message = chunked(data)
    _check_prefix(message)
    has_line = message[:5] == b"From " and b"\n" in message[:FROM_LINE_MOST]
    for newline in NEWLINES:
        for prefix in PREFIXES:
            for strips in (False, True):
                body = message.partition(b"\n")[2] if strips and has_line else message
                if prefix and body[:1] in (b" ", b"\t"):
                    body = prefix[prefix.index(b"b") + 1 :].partition(b"\n")[0] + b"\n" + body
                whole = prefix + body
                if newline == "lf":
                    whole = whole.replace(b"\r\n", b"\n")
                elif newline == "crlf":
                    whole = re.sub(rb"(?<!\r)\n", b"\r\n", whole)
                for chunks in each_way(message, lengths):
                    content = Content(prefix=prefix, newline=newline, strip_from_line=strips)
                    stored = b"".join([*map(content.feed, chunks), content.end()])
                    assert stored == whole
                    assert content.size == len(whole)
                    assert content.wire_size == wire_size_of(whole)
    assert wire_size_of(message) == len(re.sub(rb"(?<!\r)\n", b"\r\n", message))


def _check_prefix(data: bytes) -> None:
    try:
        assert check_prefix(data) == data
    except ValueError:
        return
    assert not data or data.endswith(b"\n")
    assert not re.search(rb"\0|\r(?!\n)|(?:\A|\n)\s*?\n", data)
    for line in data.splitlines():
        assert line[:1] in (b" ", b"\t") or re.match(rb"[!-9;-~]+[ \t]*:", line)
    assert data[:1] not in (b" ", b"\t")
