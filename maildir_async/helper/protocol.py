"""What passes between a process and its helper: tuples of plain values, each with its length before it. Pure.

Both ends are the same interpreter, started by one another: the values are in `marshal`'s format, which is the fastest
there is and promises nothing between versions.
"""

import marshal
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["Decoder", "encode"]

_LENGTH: Final = 4  # bytes


def encode(frame: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Return the two pieces by which *frame* goes over the wire, one behind the other.

    ValueError or OverflowError for what cannot: a value that is not of a plain type, or 2 GiB and more of bytes. Each
    frame is encoded by itself, so that one that cannot go costs no other.
    """
    piece = marshal.dumps(frame)
    return len(piece).to_bytes(_LENGTH, "little"), piece


class Decoder:
    """Takes bytes in any pieces, and gives frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Any, ...]]:
        """Take *data*, and yield the frames that are whole now. To be exhausted, and not used again if it raises."""
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        with memoryview(buffer) as view:
            while at + _LENGTH <= end:
                start = at + _LENGTH
                length = int.from_bytes(view[at:start], "little")
                if start + length > end:
                    break
                at = start + length
                with view[start:at] as piece:
                    frame: tuple[Any, ...] = marshal.loads(piece)
                yield frame
        del buffer[:at]
