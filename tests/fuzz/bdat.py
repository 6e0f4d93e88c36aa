"""BDAT: in any chunking, a message is the octets that were announced, be they what they may."""

from .cutting import chunked
from .session import Keeper, converse

__all__ = ["target"]

ENVELOPE = b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"


#: So many parts before the last at most: a session has seconds for all of it.
MOST = 200


def target(data: bytes) -> None:
    """Send what follows the first ``|``, cut at each ``|``, as the parts of one message; the last one ends it."""
    lengths, octets = chunked(data)
    parts = octets.split(b"|", MOST)
    stream, sizes = ENVELOPE, [len(ENVELOPE), *lengths]
    for part in parts[:-1]:
        stream += b"BDAT %d\r\n" % len(part) + part
        if part.endswith(b"N"):
            stream += b"NOOP\r\n"
    stream += b"bdat %d LAST\r\n" % len(parts[-1]) + parts[-1] + b"QUIT\r\n"
    handler = Keeper()
    said, lines = converse(handler, stream, sizes)
    (message,) = handler.messages
    assert message.end == "finished"
    assert message.content == b"".join(parts)
    commands = [line.split(b" ")[0].strip().upper() for line in lines[3:]]
    expected = [
        command for part in parts[:-1] for command in (b"BDAT", b"NOOP") if command == b"BDAT" or part.endswith(b"N")
    ]
    assert commands == [*expected, b"BDAT", b"QUIT"]
    assert said.endswith(b"\r\n250 2.0.0 Stored\r\n221 2.0.0 Bye\r\n")
