"""What a delivery has received, when a helper process writes it: a chunk in memory, and the rest over there.

The counterpart of `maildir_async.receive.spool`, with the same methods. On the loop's thread only.
"""

from collections.abc import Callable
from typing import Final, Protocol

from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.streamfile import StreamFile
from maildir_async.errors import MaildirError
from maildir_async.helper.channel import Channel
from maildir_async.helper.in_flight import gone_error

__all__ = ["Buffer", "HelperSpool", "Writer"]

#: Bytes sent in one frame at most. A chunk that a source gives may be of any size.
MOST_SENT: Final = 4 * 2**20


class Writer(Protocol):
    """What has its message written: `maildir_async.receive.reception.Reception`."""

    def written(self) -> None:
        """Called when a chunk has been written, and there is room for another."""
        ...

    def write_failed(self, exc: BaseException) -> None:
        """Called with what went wrong: the delivery ends."""
        ...

    def quiet(self) -> None:
        """Called when the helper has done with something."""
        ...


class Buffer(Protocol):
    """What gathers chunks: `maildir_async.receive.buffer.Buffer`."""

    size: int

    def add(self, data: bytes | memoryview) -> None:
        """Add a chunk that does not change any more."""
        ...

    def take(self) -> list[bytes | bytearray | memoryview]:
        """Return all chunks, and be empty."""
        ...


class HelperSpool:
    """Gathers one message and has the helper write it.

    Args:
        writer: what it is written for.
        channel: gives the channel to the helper, asked when there is something to send.
        mailbox: where the message goes.
        plan: what is asked for it.
        file: no file of this process; its content counts what the helper has stored.
        commit: takes what is whole before a chunk is full.
        buffer: what gathers it.
        chunk_size: bytes of a whole chunk.

    Attributes:
        leftover: after `discard`, what could not be removed, if anything.

    """

    def __init__(
        self,
        writer: Writer,
        channel: Callable[[], Channel | None],
        mailbox: Mailbox,
        plan: Plan,
        file: StreamFile,
        commit: Callable[[Entry], object],
        *,
        buffer: Buffer,
        chunk_size: int,
    ) -> None:
        self._writer: Writer | None = writer
        self._ask_for_channel = channel
        self.mailbox = mailbox
        self.plan = plan
        self._content = file.content
        self._commit = commit
        self._buffer = buffer
        self._chunk_size = chunk_size
        self._channel: Channel | None = None  # the one that has the stream
        self._number: int | None = None  # in the channel, once there is a chunk, until it is over
        self._next = memoryview(b"")  # what is to be sent after the one under way
        self._is_writing = False
        self._is_discarded = False
        self.leftover: str | None = None

    @property
    def size(self) -> int:
        """Bytes in memory that have not been sent yet."""
        return self._buffer.size + len(self._next)

    @property
    def has_room(self) -> bool:
        """Whether more may come: a chunk is not whole yet."""
        return self.size < self._chunk_size

    @property
    def busy(self) -> bool:
        """Whether the helper is at work on the message."""
        if self._channel is None or self._number is None:
            return False
        return self._is_writing or self._is_discarded or self._channel.closed

    def add(self, data: bytes | memoryview) -> None:
        """Take bytes that do not change any more."""
        self._buffer.add(data)

    def write_out(self) -> None:
        """Send a whole chunk, if there is one, unless the helper has not done with the last."""
        if self._is_writing or self._is_discarded:
            return
        if not self._next and self._buffer.size >= self._chunk_size:
            self._next = memoryview(b"".join(self._buffer.take()))
        if not self._next:
            return
        if self._channel is None:
            self._channel = self._ask_for_channel()
            if self._channel is None:
                if self._writer is not None:
                    text = "there is no helper process, and this message was not begun without one"
                    self._writer.write_failed(gone_error(text))
                return
            self._number = self._channel.open(self)
        if self._number is not None:
            self._is_writing = True
            chunk, self._next = self._next[:MOST_SENT], self._next[MOST_SENT:]
            self._channel.write(self._number, bytes(chunk))

    def take_rest(self) -> list[bytes | bytearray | memoryview]:
        """Return what has not been sent: less than a chunk, if this is not busy."""
        return self._buffer.take()

    def submit(self, entry: Entry) -> None:
        """Have the message committed, which is whole with what *entry* holds."""
        if self._channel is None:
            self._commit(entry)
        else:
            assert self._number is not None  # or it has failed
            self._channel.end(self._number, entry)

    def discard(self) -> None:
        """Drop what is in memory, and have the helper drop what it has."""
        self._is_discarded = True
        self._buffer.take()
        self._next = memoryview(b"")
        if self._channel is not None and self._number is not None:
            self._channel.discard(self._number)

    def forget(self) -> None:
        """Let go of the delivery, which is over."""
        self._writer = None

    # What the channel tells.

    def acknowledged(self, size: int) -> None:
        """Called when *size* bytes are stored: send on."""
        self._is_writing = False
        self._content.size = size
        writer = self._writer
        try:
            if writer is not None:
                writer.written()
        finally:  # a KeyboardInterrupt in an on_progress
            self.write_out()
            if writer is not None:
                writer.quiet()

    def failed(self, error: MaildirError) -> None:
        """Called when the message has come to nothing, by *error*."""
        self._over()
        if self._is_discarded:
            self.leftover = "; ".join(getattr(error, "__notes__", ())) or None
            self._quiet()
        elif self._writer is not None:
            self._writer.write_failed(error)

    def discarded(self, leftover: str | None) -> None:
        """Called when the message is discarded, but for a *leftover*."""
        self._over()
        if self._is_discarded:
            self.leftover = leftover
            self._quiet()
        elif self._writer is not None:
            error = gone_error("the helper process ended")
            if leftover is not None:
                error.add_note(leftover)
            self._writer.write_failed(error)

    def _over(self) -> None:
        self._number = None
        self._is_writing = False

    def _quiet(self) -> None:
        if self._writer is not None:
            self._writer.quiet()
