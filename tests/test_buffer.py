from array import array

from hypothesis import given
from hypothesis import strategies as st

from maildir_async.receive.buffer import GATHERED, SMALL, Buffer, frozen
from support import reproducible


def joined(chunks: list[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(chunks)


@reproducible
@given(st.lists(st.one_of(st.binary(max_size=50), st.integers(SMALL - 1, SMALL + 1).map(lambda n: b"x" * n))))
def test_bytes_come_out_as_they_went_in(chunks: list[bytes]) -> None:
    """What is taken is what was added, in order, ``size`` is its bytes, and then there is nothing left."""
    buffer = Buffer()
    for at, chunk in enumerate(chunks):
        buffer.add(memoryview(chunk) if at % 2 else chunk)
    assert buffer.size == sum(map(len, chunks))
    assert joined(buffer.take()) == b"".join(chunks)
    assert (buffer.size, buffer.take()) == (0, [])


def test_what_was_taken_does_not_change() -> None:
    """Bytes added later do not reach into what has been taken."""
    buffer = Buffer()
    for byte in (b"a", b"b", b"c"):
        buffer.add(byte)
    taken = buffer.take()
    buffer.add(b"d")
    buffer.add(b"e")
    assert joined(taken) == b"abc"
    assert joined(buffer.take()) == b"de"


def test_byte_by_byte_costs_bytes() -> None:
    """A message fed byte by byte is gathered into few chunks, none much longer than the bound."""
    buffer = Buffer()
    for _ in range(2 * GATHERED + 10):
        buffer.add(b"x")
    taken = buffer.take()
    assert len(taken) <= 4
    assert max(map(len, taken)) <= GATHERED + SMALL
    assert sum(map(len, taken)) == 2 * GATHERED + 10


def test_large_chunks_are_not_copied() -> None:
    """A large chunk, and a lone one of any size, is handed on as the object it is."""
    large, small = b"x" * SMALL, b"y"
    buffer = Buffer()
    buffer.add(large)
    buffer.add(large)
    assert all(chunk is large for chunk in buffer.take())
    buffer.add(small)
    assert buffer.take()[0] is small


def test_bytes_are_frozen_already() -> None:
    """Bytes, and views of bytes, are kept without a copy."""
    data = b"abcdefgh"
    assert frozen(data) is data
    view = frozen(memoryview(data)[2:6])
    assert isinstance(view, memoryview)
    assert view.obj is data
    assert (bytes(view), len(frozen(memoryview(data).cast("I")))) == (b"cdef", 8)


def test_what_may_change_is_copied() -> None:
    """A producer that uses its buffer again does not change what it has written."""
    for source in (bytearray(b"abcd"), array("B", b"abcd")):
        view = memoryview(source)
        kept = [frozen(view), frozen(view[1:3]), frozen(view[::-1])]
        view[:] = memoryview(b"ZZZZ").cast("B")
        assert kept == [b"abcd", b"bc", b"dcba"]
    whole = bytearray(b"abcd")
    kept = [frozen(whole)]
    whole[:] = b"gone"
    assert kept == [b"abcd"]


def test_a_view_with_gaps_is_its_own_bytes() -> None:
    """A view that is not contiguous, or has wide items, is kept as the bytes it stands for."""
    assert bytes(frozen(memoryview(b"abcdef")[::2])) == b"ace"
    assert bytes(frozen(memoryview(array("H", [1, 2])))) == array("H", [1, 2]).tobytes()
