"""What a delivery has received: a chunk in memory, and the rest in its file in ``tmp/``.

A worker-thread file handle writes one chunk while the next is being received. A message no longer than one chunk never
touches the disk here: it goes to group commit as it is. On the loop's thread only.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Protocol
from weakref import finalize

from maildir_async.commit.entry import Entry
from maildir_async.commit.waiting import run_in_thread
from maildir_async.disk.streamfile import StreamFile
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.buffer import Buffer, Chunk
from maildir_async.receive.handle import open_handle

__all__ = ["CHUNK_SIZE", "Spool", "Writer"]

Chunks = list[Chunk]

#: Bytes gathered before they are written. A stream holds two such chunks: one being written, one being received.
CHUNK_SIZE: Final = 512 * 1024

#: The same for a message that is large already, while there are few streams: 0.85 of plain C's rate where the other has
#: 0.75, for twice the memory.
LARGE_CHUNK_SIZE: Final = 2**20
LARGE_FROM: Final = 8 * 2**20
FEW_STREAMS: Final = 4


class Writer(Protocol):
    """What has its message written: `maildir_async.receive.reception.Reception`."""

    def written(self) -> None:
        """Called when a chunk has been written, and there is room for another."""
        ...

    def write_failed(self, exc: BaseException) -> None:
        """Called with what went wrong, or with the cancellation of the task that writes: the delivery ends."""
        ...

    def quiet(self) -> None:
        """Called when a task or thread has ended that was at work on the file."""
        ...


class Spool:
    """Gathers and writes one message.

    Args:
        writer: what it is written for.
        loop: the delivery's.
        file: where it is written.
        commit: whose threads write.

    """

    def __init__(self, writer: Writer, loop: asyncio.AbstractEventLoop, file: StreamFile, commit: GroupCommit) -> None:
        self._writer = writer
        self._loop = loop
        self._file = file
        self._commit = commit
        self._buffer = Buffer()
        self._next: deque[Chunks] = deque()  # one whole chunk at most: what the thread writes after the one in hand
        self._next_size = 0
        self._writing: asyncio.Task[None] | None = None
        self._handle: Any = None  # from aiofiles
        self._abandoned: finalize[..., Any] | None = None  # discards the file if this is thrown away
        self._discarding: asyncio.Future[str | None] | None = None
        self._discarded = False

    @property
    def size(self) -> int:
        """Bytes in memory that are not being written yet."""
        return self._buffer.size + (self._next_size if self._next else 0)

    @property
    def has_room(self) -> bool:
        """Whether more may come: a chunk is not whole yet."""
        return self.size < self._chunk_size

    @property
    def _chunk_size(self) -> int:
        is_large = self._file.content.size >= LARGE_FROM and len(self._commit.streams) <= FEW_STREAMS
        return LARGE_CHUNK_SIZE if is_large else CHUNK_SIZE

    @property
    def busy(self) -> bool:
        """Whether a task or thread is at work on the file."""
        return self._writing is not None or (self._discarding is not None and not self._discarding.done())

    def add(self, data: bytes | memoryview) -> None:
        """Take bytes that do not change any more."""
        self._buffer.add(data)

    def write_out(self) -> None:
        """Have a whole chunk, if there is one, written: now, or by the thread that is at it when it has done that."""
        if self._discarded:
            return
        if self._buffer.size >= self._chunk_size and not self._next:
            self._next_size = self._buffer.size
            self._next.append(self._buffer.take())
        if self._next and self._writing is None:
            self._writing = writing = self._loop.create_task(self._write(self._next.popleft()))
            writing.add_done_callback(self._wrote)

    def take_rest(self) -> Chunks:
        """Return what is not in the file yet: less than a chunk, if it is not busy."""
        return self._buffer.take()

    def submit(self, entry: Entry) -> None:
        """Have the message committed, which is whole with what *entry* holds."""
        self._commit.submit(entry)

    def discard(self) -> None:
        """Drop what is in memory and have the file removed, once the write in progress is over."""
        self._discarded = True
        self._buffer.take()
        self._next.clear()
        if self._abandoned is not None:
            # Handed to a thread before anything else, so that it is done even if this loop never runs again.
            try:
                self._discarding = run_in_thread(self._loop, self._commit.streams.crew, self._file.discard)
            except RuntimeError:  # there is no thread, so none is at work on it, and the system gives no other
                self._file.discard()
            else:
                self._discarding.add_done_callback(lambda _: self._writer.quiet())

    @property
    def leftover(self) -> str | None:
        """After `discard`: what could not be removed, if anything."""
        return self._discarding.result() if self._discarding is not None else None

    def forget(self) -> None:
        """Let go of the file, whatever has become of it: the delivery is over."""
        if self._abandoned is not None:
            self._abandoned.detach()
            self._commit.streams.over(self._file)

    async def _write(self, chunks: Chunks) -> None:
        try:
            if self._handle is None and not self._discarded:
                # From now on there may be a file, which must outlive neither this nor the loop.
                self._abandoned = finalize(self, _discard_later, self._commit, self._file)
                self._abandoned.atexit = False  # GroupCommit sees to that
                self._commit.stream_opened(self._file, self._loop)
                self._handle = await open_handle(self._file, self._commit.streams.crew)
            if not self._discarded:
                handle: Any = self._handle
                await handle.writelines(self._and_next(chunks))
        except (Exception, asyncio.CancelledError) as exc:  # the loop cancels all tasks before it ends
            self._writer.write_failed(exc)

    def _and_next(self, chunks: Chunks) -> Iterator[Chunks]:
        """Yield a chunk, and the next while there is one. In the thread: it does not wait for the loop between."""
        yield chunks
        with contextlib.suppress(IndexError):
            while True:
                chunks = self._next.popleft()
                with contextlib.suppress(RuntimeError):  # a closed loop: the watch discards what it leaves
                    self._loop.call_soon_threadsafe(self._took_next)
                yield chunks

    def _took_next(self) -> None:
        if not self._discarded:
            self.write_out()
            self._writer.written()

    def _wrote(self, writing: asyncio.Task[None]) -> None:
        self._writing = None
        # Cancelled with the loop before its first turn, or ended by a KeyboardInterrupt: chunks are lost, and so the
        # message must be.
        failure = asyncio.CancelledError() if writing.cancelled() else writing.exception()
        if failure is not None:
            self._writer.write_failed(failure)
        try:
            self._took_next()
        finally:  # a KeyboardInterrupt in an on_progress
            self._writer.quiet()


def _discard_later(commit: GroupCommit, file: StreamFile) -> None:
    commit.streams.over(file)
    # No thread to be had: the end of the interpreter, which discards all there is.
    with contextlib.suppress(RuntimeError):
        commit.streams.crew.run(file.discard)
