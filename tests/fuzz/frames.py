"""What passes between a process and its helper: frames in any pieces, outcomes as plain values.

What is in a frame comes from the same interpreter and is not guarded against: marshal promises nothing for other input.
"""

import errno

from maildir_async.errors import AppendError, BusyError, MaildirError, UncertainAppendError
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.helper.answers import delivered_from, delivered_to, error_from, error_to
from maildir_async.helper.protocol import Decoder, encode

from .cutting import chunked, decoded, each_way

__all__ = ["target"]

PIECES = (b"|", b"\0", b"\xff", b"a", b"\n", b"\x01\0\0\0", b"\xed\xa0\x80", b"abc|def")


def target(data: bytes) -> None:
    """Send the pieces of what follows the first ``|`` as frames, cut by what is before it; and half a frame."""
    lengths, octets = chunked(data)
    frames: list[tuple[object, ...]] = []
    for number, piece in enumerate(octets.split(b"|", 100)):
        text = decoded(piece)
        cause = OSError(errno.EIO, text)
        errors: list[MaildirError] = [AppendError(text, errno=errno.EIO, stage="sync"), BusyError(text)]
        errors.append(UncertainAppendError(text, path=text, stage="publish"))
        error = errors[number % len(errors)]
        error.__cause__ = cause
        error.add_note(text)
        level = list(Durability)[number % len(Durability)]
        delivered = Delivered(text, text, None, "S", (), len(piece), number, level, False, 0.5, 0.25, (text,))
        frames += [(number, piece), error_to(error), delivered_to(delivered)]
        again = error_from(*error_to(error))
        assert (type(again), str(again), again.errno, again.stage) == (type(error), text, error.errno, error.stage)
        assert str(again.__cause__) == str(cause)
        assert delivered_from(*delivered_to(delivered)) == delivered
    stream = b"".join(piece for frame in frames for piece in encode(frame))
    for chunks in each_way(stream, lengths):
        decoder = Decoder()
        assert [frame for chunk in chunks for frame in decoder.feed(chunk)] == frames
        half = b"".join(encode(("more", octets)))
        assert list(decoder.feed(half[:-1])) == []
        assert list(decoder.feed(half[-1:])) == [("more", octets)]
