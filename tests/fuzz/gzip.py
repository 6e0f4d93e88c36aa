"""A compressed file that mail is in: as zlib's own reader has it, up to where it is damaged."""

import gzip
import tempfile
import zlib

from maildir_async.disk.reading import Unchanged
from maildir_async.mail_import.reading import MailFile

__all__ = ["target"]

PIECES = (
    *(gzip.compress(b"From a Thu Jan  1 00:00:00 1970\nA: b\n\nc\n", mtime=0), gzip.compress(b"", mtime=0)),
    *(gzip.compress(bytes(3000), mtime=0), b"\x1f\x8b\x08", b"\0\0", b"A: b\n", b"From ", b"\n", b"|"),
)

#: Octets that are compared. It takes quadratic time to do so, which is what is not to be in the code under test.
MOST = 1 << 12


def target(data: bytes) -> None:
    """Read *data* as a file; then what it is with each piece before a ``|`` compressed."""
    for octets in (data, b"".join(gzip.compress(piece, 1, mtime=0) for piece in data.split(b"|"))):
        with tempfile.TemporaryFile() as file:
            file.write(octets)
            file.seek(0)
            odd: list[tuple[int, str]] = []
            reading = Unchanged("it", file.fileno())
            mail = MailFile(reading, lambda offset, reason, odd=odd: odd.append((offset, reason)))  # type: ignore[misc]
            assert mail.is_empty or not mail.is_mbox or mail.peek(0, 1) is None or octets[:1] != b"\x1f"
            read = b"".join(mail.pieces())
        assert len(odd) <= 1
        if len(octets) > MOST:
            continue
        if not octets.startswith(b"\x1f\x8b\x08"):
            assert (read, odd) == (octets, [])
            continue
        expected, is_whole = _decompressed(octets)
        assert expected.startswith(read) or read.startswith(expected)
        if is_whole:
            assert (read, odd) == (expected, [])
        else:
            assert odd
    if len(octets) <= MOST:
        assert data.startswith(b"\x1f\x8b\x08") or read == data.replace(b"|", b"")


def _decompressed(octets: bytes) -> tuple[bytes, bool]:
    """Return what is compressed in *octets*, and whether that is all there is."""
    made = b""
    while octets.startswith(b"\x1f\x8b\x08"):
        one = zlib.decompressobj(31)
        try:
            made += one.decompress(octets)
        except zlib.error:
            return made, False
        if not one.eof:
            return made, False
        octets = one.unused_data
    return made, not octets.strip(b"\0")
