"""Octets cut into what a target needs: chunks, words, numbers."""

from collections.abc import Iterator, Sequence

__all__ = ["chunked", "cut", "decoded", "each_way"]


def chunked(data: bytes) -> tuple[list[int], bytes]:
    """Return the lengths of chunks, and the octets that come in them: what is before the first ``|``, and after it."""
    lengths, _, octets = data.partition(b"|")
    return list(lengths), octets


def cut(octets: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    """Yield *octets* in chunks of *lengths*, and then the rest. None is empty."""
    at = 0
    for length in lengths:
        if at < len(octets) and length:
            yield octets[at : at + length]
            at += length
    if at < len(octets):
        yield octets[at:]


def each_way(octets: bytes, lengths: Sequence[int]) -> Iterator[list[bytes]]:
    """Yield *octets* whole, cut by *lengths*, and, if there are few, one by one."""
    yield [octets]
    yield list(cut(octets, lengths))
    if len(octets) <= 2000:
        yield [octets[at : at + 1] for at in range(len(octets))]


def decoded(data: bytes) -> str:
    """Return *data* as a text: as the system gives names, so with lone surrogates for what is no UTF-8."""
    return data.decode("utf-8", "surrogateescape")
