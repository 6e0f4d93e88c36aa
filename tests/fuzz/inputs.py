"""What a target is given without a fuzzer: pieces put together by chance, and pieces repeated."""

import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from . import TARGETS

__all__ = ["PIECES", "by_chance", "most_of", "patterns", "pieces_of", "target_of"]

#: Of a target that has none of its own.
PIECES: Final = (
    *(b"|", b"\r\n", b".", b"\r", b"\n", b"<", b">", b"@", b'"', b"\\", b"(", b":", b"a", b"\xff", b"=", b" ", b"N"),
    *(b"PROXY TCP4 ", b"ADDR=", b"+3"),
)

_LENGTHS: Final = (1, 3, 8, 20, 60)


def target_of(name: str) -> Callable[[bytes], object]:
    """Return the target of that name."""
    assert name in TARGETS
    found: Callable[[bytes], object] = importlib.import_module(f".{name}", __package__).target
    return found


def pieces_of(name: str) -> Sequence[bytes]:
    """Return what the inputs of a target are put together from."""
    found: Sequence[bytes] = getattr(importlib.import_module(f".{name}", __package__), "PIECES", PIECES)
    return found


def most_of(name: str) -> int:
    """Return the octets of the longest pattern for a target whose time others are to blame for."""
    return int(getattr(importlib.import_module(f".{name}", __package__), "PATTERN_MOST", sys.maxsize))


def by_chance(pieces: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield inputs without end, the same for the same seed. Two of five have lengths of chunks in front."""
    chance = random.Random(seed)
    while True:
        count = chance.randrange(chance.choice(_LENGTHS)) + 1
        data = b"".join(
            chance.choice(pieces) if chance.random() < 0.75 else chance.randbytes(chance.randrange(4))
            for _ in range(count)
        )
        if chance.random() < 0.4:
            data = bytes(chance.randrange(1, 12) for _ in range(chance.randrange(8))) + b"|" + data
        yield data


def patterns(pieces: Sequence[bytes]) -> Iterator[Callable[[int], bytes]]:
    """Yield what makes an input of about so many octets: each piece again and again; and behind another, once.

    That is what makes an expression go back, and a loop look again at all that it has seen.
    """
    for number, piece in enumerate(pieces):
        before = pieces[number - 1]
        yield lambda size, piece=piece: b"|" + piece * (size // len(piece))  # type: ignore[misc]  # a default binds
        yield lambda size, piece=piece, before=before: before + piece * (size // len(piece)) + before  # type: ignore[misc]
