"""The bytes a delivery has received and not yet handed to a worker thread. Pure."""

from typing import Final

__all__ = ["Buffer", "Chunk", "frozen"]

Chunk = bytes | bytearray | memoryview

#: Smaller chunks are gathered by copying, so that a message fed byte by byte costs bytes, not objects.
SMALL: Final = 16 * 1024
#: A gathered chunk grows no further than this.
GATHERED: Final = 256 * 1024


def frozen(data: Chunk) -> bytes | memoryview:
    """Return *data* if it cannot change under us, or else a copy: a producer may use its buffer again."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, memoryview) and isinstance(data.obj, bytes) and data.c_contiguous:
        return data.cast("B")
    return bytes(data)


class Buffer:
    """Chunks in order. `size` is their bytes."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Add a chunk that does not change any more."""
        self.size += len(data)
        last = self._chunks[-1] if self._chunks else None
        if last is None or len(data) >= SMALL:
            self._chunks.append(data)
        elif isinstance(last, bytearray) and len(last) < GATHERED:
            last += data
        else:
            self._chunks.append(bytearray(data))

    def take(self) -> list[Chunk]:
        """Return all chunks, and be empty."""
        chunks, self._chunks, self.size = self._chunks, [], 0
        return chunks
