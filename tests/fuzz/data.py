"""DATA: in any chunking, a message ends at its terminator and nowhere else, and what follows that are commands."""

from .cutting import chunked
from .session import Keeper, converse

__all__ = ["target"]

ENVELOPE = b"EHLO me\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"


def target(data: bytes) -> None:
    """Send what follows the first ``|`` after DATA, in chunks of the lengths before it."""
    lengths, octets = chunked(data)
    handler = Keeper()
    said, lines = converse(handler, ENVELOPE + b"DATA\r\n" + octets, [len(ENVELOPE), len(b"DATA\r\n"), *lengths])
    assert b"\r\n354 " in said
    message, end, rest = (b"\r\n" + octets).partition(b"\r\n.\r\n")
    (first, *_) = handler.messages
    if not end:
        assert first.end == "aborted"
        assert lines[4:] == []
        return
    assert first.end == "finished"
    assert first.content == (message + b"\r\n").replace(b"\r\n.", b"\r\n")[2:]
    assert b"".join(lines[4:5]) == (rest.partition(b"\n")[0] + b"\n" if b"\n" in rest else b"")
