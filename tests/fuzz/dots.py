"""What follows DATA, without a session: doubled dots, the longest line, what may be the end."""

from maildir_async.smtp.dot_stuffing import TERMINATOR, LineLimit, Unstuffer, begun

from .cutting import chunked, each_way

__all__ = ["target"]

PIECES = (b".", b"\r\n", b"\r", b"\n", b"\r\n.\r\n", b"\r\n..", b"aaaaaaaa", b"|")

LIMIT = 12


def target(data: bytes) -> None:
    """Take what follows the first ``|``, cut by what is before it."""
    lengths, octets = chunked(data)
    plain = (b"\r\n" + octets).replace(b"\r\n.", b"\r\n")[2:]
    is_short = all(len(line) + 2 <= LIMIT for line in octets.split(b"\r\n")[:-1])
    for chunks in each_way(octets, lengths):
        unstuffer = Unstuffer()
        assert b"".join(map(unstuffer.feed, chunks)) == plain
        limit = LineLimit(LIMIT)
        admitted = all(map(limit.admits, chunks))
        assert admitted or not is_short or len(octets.split(b"\r\n")[-1]) > LIMIT
        assert not admitted or (is_short and len(octets.split(b"\r\n")[-1]) <= LIMIT)
    length = begun(octets)
    assert octets.endswith(TERMINATOR[:length])
    assert not any(octets.endswith(TERMINATOR[:longer]) for longer in range(length + 1, 6))
