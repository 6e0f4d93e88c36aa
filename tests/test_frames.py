"""What passes between a process and its helper: values of every plain kind, however the stream is cut."""

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.helper.protocol import Decoder, encode
from support import reproducible

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.binary()
    | st.text(alphabet=st.characters(codec=None, categories=None))  # surrogates too: a path that is not UTF-8
)
_values = st.recursive(_scalars, lambda inner: st.tuples(inner, inner) | st.lists(inner, max_size=3), max_leaves=8)
_frames = st.lists(st.lists(_values, max_size=4).map(tuple), max_size=5)


def _encoded(frames: Iterable[tuple[Any, ...]]) -> bytes:
    return b"".join(piece for frame in frames for piece in encode(frame))


def _cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@reproducible
@given(frames=_frames, cuts=st.lists(st.integers(min_value=0, max_value=40), max_size=30))
def test_any_values_in_any_pieces(frames: list[tuple[Any, ...]], cuts: list[int]) -> None:
    """Frames come out equal, of the same types and in order, wherever the stream is cut, each with its last byte."""
    decoder = Decoder()
    found = [frame for piece in _cut(_encoded(frames), cuts) for frame in decoder.feed(piece)]
    assert repr(found) == repr(frames)


@reproducible
@given(frames=_frames.filter(len))
def test_no_frame_comes_before_it_is_whole(frames: list[tuple[Any, ...]]) -> None:
    """Byte by byte, a frame comes with its own last byte, and not before."""
    decoder, found = Decoder(), list[tuple[Any, ...]]()
    for number in range(len(frames)):
        data = _encoded(frames[number : number + 1])
        for byte in data[:-1]:
            assert list(decoder.feed(bytes([byte]))) == []
        found += decoder.feed(data[-1:])
        assert len(found) == number + 1
    assert repr(found) == repr(frames)


def test_a_large_frame_between_small_ones() -> None:
    """A chunk of a stream in pieces of a socket's size, with small frames around it in the same pieces."""
    frames = [("open", 1), ("write", 1, bytes(range(256)) * 4096), ("end", 1, "name", b"rest")]
    decoder, data = Decoder(), _encoded(frames)
    pieces = _cut(data, [65536] * (len(data) // 65536))
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == frames


class _Word(str, Enum):  # noqa: UP042 a class derived from a plain one
    LF = "lf"


@pytest.mark.parametrize("value", [object(), _Word.LF, ValueError])
def test_what_cannot_go_over_is_refused(value: object) -> None:
    """A value of no plain type is refused when its own frame is encoded."""
    with pytest.raises(ValueError, match="unmarshallable"):
        encode(("append", 1, value))
