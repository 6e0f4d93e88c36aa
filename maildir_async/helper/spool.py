"""What a delivery has received, when a helper process writes it: a chunk in memory, and the rest over there.

The counterpart of `maildir_async.receive.spool`, with the same methods. On the loop's thread only.
"""

import errno
from collections.abc import Callable

from maildir_async.commit.entry import Entry
from maildir_async.disk.streamfile import StreamFile as TmpFile
from maildir_async.errors import AppendError, MaildirError
from maildir_async.helper.channel import Channel
from maildir_async.receive.buffer import Buffer
from maildir_async.receive.spool import CHUNK_SIZE

__all__ = ["HelperSpool"]


class HelperSpool:
    """Gathers one message and has the helper write it.

    Args:
        channel: gives the channel to the helper, asked when there is something to send.
        tmpfile: what the message is to be; no file of this process.
        commit: takes messages that are whole before a chunk is full.
        written: told whenever a chunk has been written, or can be.
        failed: told what went wrong.
        quiet: told whenever the helper has done with something.

    """

    def __init__(
        self,
        channel: Callable[[], Channel | None],
        tmpfile: TmpFile,
        commit: Callable[[Entry], object],
        written: Callable[[], object],
        failed: Callable[[BaseException], object],
        quiet: Callable[[], object],
    ) -> None:
        self._ask_for_channel = channel
        self._channel: Channel | None = None  # the one that has the stream
        self.tmpfile = tmpfile
        self._commit = commit
        self._written = written
        self._failed = failed
        self._quiet = quiet
        self._buffer = Buffer()
        self._number: int | None = None  # in the channel, once there is a chunk, until it is over
        self._is_writing = False
        self._is_discarded = False
        self.leftover: str | None = None  # after `discard`: what could not be removed, if anything

    @property
    def size(self) -> int:
        """Bytes in memory that have not been sent yet."""
        return self._buffer.size

    @property
    def has_room(self) -> bool:
        """Whether more may come: a chunk is not whole yet."""
        return self.size < CHUNK_SIZE

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
        if self._buffer.size < CHUNK_SIZE or self._is_writing or self._is_discarded:
            return
        if self._channel is None:
            self._channel = self._ask_for_channel()
            if self._channel is None:
                text = "there is no helper process, and this message was not begun without one"
                self._failed(AppendError(text, errno=errno.EPIPE, stage="receive"))
                return
            self._number = self._channel.open(self)
        if self._number is not None:
            self._is_writing = True
            self._channel.write(self._number, b"".join(self._buffer.take()))

    def take_rest(self) -> list[bytes | bytearray | memoryview]:
        """Return what has not been sent: less than a chunk, if this is not busy."""
        return self._buffer.take()

    def submit(self, entry: Entry) -> None:
        """The message is whole with what *entry* holds."""
        if self._channel is None or self._number is None:
            self._commit(entry)
        else:
            self._channel.end(self._number, entry)

    def discard(self) -> None:
        """Drop what is in memory, and have the helper drop what it has."""
        self._is_discarded = True
        self._buffer.take()
        if self._channel is not None and self._number is not None:
            self._channel.discard(self._number)

    def forget(self) -> None:
        """The delivery is over."""
        self._written = self._quiet = int
        self._failed = id

    # What the channel tells.

    def acknowledged(self, size: int) -> None:
        """So many bytes are stored."""
        self._is_writing = False
        self.tmpfile.content.size = size
        self._written()
        self.write_out()
        self._quiet()

    def ended(self, error: MaildirError | None) -> None:
        """The helper has nothing of it any more."""
        self._number = None
        self._is_writing = False
        if self._is_discarded:
            if error is not None:
                self.leftover = "; ".join(getattr(error, "__notes__", ())) or None
            self._quiet()
        elif error is not None:
            self._failed(error)
