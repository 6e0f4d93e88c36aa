"""One loop's connection to the helper process: whole messages and chunks go out, outcomes come back.

On the loop's thread only, and without any other thread: that is what keeps deliveries going beside a loop that leaves
worker threads no time. `recover` says what becomes of what was in flight when the helper dies.
"""

import contextlib
import os
import socket
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from maildir_async.commit.entry import Entry
from maildir_async.disk.streamfile import StreamFile as TmpFile
from maildir_async.errors import (
    AppendError,
    BusyError,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    Stage,
    UncertainAppendError,
)
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.helper.process import HelperProcess
from maildir_async.helper.protocol import Decoder, encode

__all__ = ["Channel", "InFlight", "Stream", "error_from", "error_to", "names_in_use_by_helpers"]

RECEIVE_SIZE: Final = 256 * 1024

#: Messages sent without waiting for the end of the loop's turn, which in a busy loop is a turn away: 2,200 a second
#: went over in turns of 4 ms without this.
AT_ONCE: Final = 16


class Stream(Protocol):
    """A message that goes to the helper chunk by chunk."""

    tmpfile: TmpFile

    def acknowledged(self, size: int) -> None:
        """So many bytes are stored, and there is room for more."""
        ...

    def ended(self, error: MaildirError | None) -> None:
        """Nothing acts for it in the helper any more: it has failed there, or (None) been discarded as asked."""
        ...


@dataclass(slots=True)
class InFlight:
    """What the helper has been given and not answered yet.

    Attributes:
        tmp_name: the name of its file in ``tmp/``.
        name: the unique part of the name it is published under, once it is whole.
        entry: the message, once it is whole.
        stream: its stream, if it is one.

    """

    tmp_name: str
    name: str = ""
    entry: Entry | None = None
    stream: Stream | None = None


def names_in_use_by_helpers() -> set[str]:
    """Return the paths in ``tmp/`` that helper processes of this process are writing to."""
    return {path for channel in list(_channels) for path in channel.in_use()}


class Channel:
    """A connection.

    Args:
        loop: the running one.
        process: the helper.
        settled: told of entries that have their outcome.
        lost: told of what was in flight when the connection has come to its end.

    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        process: HelperProcess,
        *,
        settled: Callable[[list[Entry]], object],
        lost: Callable[["Channel", list[InFlight]], object],
    ) -> None:
        self.loop = loop
        self.process = process
        self._settled = settled
        self._lost = lost
        self._socket = process.connect()
        self._decoder = Decoder()
        self._number = 0
        self._in_flight: dict[int, InFlight] = {}
        self._turn: list[tuple[Any, ...] | Entry] = []  # what this turn of the loop has to send
        self._is_flush_due = False
        self._unsent: deque[memoryview] = deque()
        self.closed = False
        # Not __del__: thrown away in one go with this, the socket would warn that it is open.
        self._abandoned = weakref.finalize(self, self._socket.close)
        self._abandoned.atexit = False
        loop.add_reader(self._socket, self._readable)
        _channels.add(self)

    @property
    def pending(self) -> int:
        """How many messages it has to do with."""
        return len(self._in_flight) + len(self._turn)

    def in_use(self) -> set[str]:
        """Return the paths in ``tmp/`` that belong to what is in flight."""
        return {
            f"{source.tmpfile.directories.tmp}/{item.tmp_name}"
            for item in list(self._in_flight.values())
            if (source := item.entry or item.stream) is not None
        }

    def submit(self, entry: Entry) -> None:
        """Send a whole message, with all that is sent in this turn of the loop."""
        self._send(entry)

    def open(self, stream: Stream) -> int:
        """Begin with a stream, and return its number."""
        self._number += 1
        tmp_name = stream.tmpfile.names.next()
        self._in_flight[self._number] = InFlight(tmp_name, stream=stream)
        self._send(("open", self._number, tmp_name, *_options(stream.tmpfile)))
        return self._number

    def write(self, number: int, chunk: bytes) -> None:
        """Send a chunk of a stream."""
        self._send(("write", number, chunk))

    def end(self, number: int, entry: Entry) -> None:
        """The stream is whole with what *entry* holds."""
        in_flight = self._in_flight[number]
        entry.take()
        in_flight.entry, in_flight.name = entry, entry.tmpfile.names.next()
        self._send(("end", number, in_flight.name, b"".join(entry.chunks)))

    def discard(self, number: int) -> None:
        """Have a stream discarded; its `Stream.ended` tells when it is."""
        self._send(("discard", number))

    def close(self) -> None:
        """Close it: what is whole is finished by the helper, for nobody. Used when the loop is closed."""
        self.closed = True
        self._abandoned.detach()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        self.closed = True
        self._abandoned.detach()
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())  # not via the loop, whose selector the two processes share

    # Sending.

    def _send(self, frame: tuple[Any, ...] | Entry) -> None:
        if not self._turn and not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush_turn)
        self._turn.append(frame)
        if len(self._turn) >= AT_ONCE:
            self._flush()

    def _flush_turn(self) -> None:
        self._is_flush_due = False
        self._flush()

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        frames = [frame if isinstance(frame, tuple) else self._whole(frame) for frame in turn if _is_wanted(frame)]
        if self.closed or not frames:  # what is in flight has been told, or will be
            return
        self._unsent.append(memoryview(encode(frames)))
        if len(self._unsent) == 1:
            self._write_out()

    def _whole(self, entry: Entry) -> tuple[Any, ...]:
        entry.take()
        self._number += 1
        name = entry.tmpfile.names.next()
        self._in_flight[self._number] = InFlight(name, name, entry)
        chunks = entry.chunks
        message = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        return ("append", self._number, message, name, *_options(entry.tmpfile))

    def _write_out(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = self._socket.send(unsent[0])
                if sent == len(unsent[0]):
                    unsent.popleft()
                else:
                    unsent[0] = unsent[0][sent:]
        except BlockingIOError:
            self.loop.add_writer(self._socket, self._writable)
        except OSError:
            unsent.clear()  # the reader is told what has become of the connection

    def _writable(self) -> None:
        self.loop.remove_writer(self._socket)
        self._write_out()

    # Receiving.

    def _readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        settled: list[Entry] = []
        for kind, number, *answer in self._decoder.feed(data):
            if kind == "written":
                self._acknowledge(number, *answer)
                continue
            in_flight = self._in_flight.pop(number)
            if in_flight.entry is not None:
                _conclude(in_flight.entry, kind, answer)
                settled.append(in_flight.entry)
            elif in_flight.stream is not None:
                self.loop.call_soon(in_flight.stream.ended, error_from(*answer) if kind == "failed" else None)
        if settled:
            self._settled(settled)

    def _acknowledge(self, number: int, size: int) -> None:
        in_flight = self._in_flight.get(number)
        if in_flight is not None and in_flight.stream is not None:
            self.loop.call_soon(in_flight.stream.acknowledged, size)

    def _end(self) -> None:
        """The helper has died, or was told to end."""
        self.loop.remove_reader(self._socket)
        self.loop.remove_writer(self._socket)
        self.close()
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        for frame in self._turn:
            if isinstance(frame, Entry) and not frame.withdrawn:
                frame.take()
                in_flight.append(InFlight("", "", frame))
        self._turn = [frame for frame in self._turn if isinstance(frame, tuple)]
        self._lost(self, in_flight)


def _is_wanted(frame: tuple[Any, ...] | Entry) -> bool:
    return isinstance(frame, tuple) or not frame.withdrawn


def _options(tmpfile: TmpFile) -> tuple[Any, ...]:
    directories, content = tmpfile.directories, tmpfile.content
    return (
        directories.path,
        directories.create,
        tmpfile.mode,
        tmpfile.flags,
        tmpfile.mtime_ns,
        tmpfile.durability.value,
        content.prefix,
        content.newline,
    )


def _conclude(entry: Entry, kind: str, answer: list[Any]) -> None:
    if kind == "done":
        path, key, flags, size, wire_size, durability, queued_s, commit_s, warnings = answer
        entry.tmpfile.content.size = size
        entry.delivered = Delivered(
            path, key, None, flags, size, wire_size, Durability(durability), queued_s, commit_s, warnings
        )
    else:
        entry.error = error_from(*answer)
    entry.answered()


_ERRORS: Final[dict[str, type[MaildirError]]] = {
    error.__name__: error for error in (MaildirError, NotAMaildirError, AppendError, BusyError, MessageTooLargeError)
}


def error_to(error: MaildirError) -> tuple[Any, ...]:
    """Return *error* as plain values."""
    path = error.path if isinstance(error, UncertainAppendError) else None
    return type(error).__name__, str(error), error.errno, error.stage, path, tuple(getattr(error, "__notes__", ()))


def error_from(
    kind: str, text: str, number: int | None, stage: Stage | None, path: str | None, notes: Iterable[str]
) -> MaildirError:
    """Return the error that `error_to` was given."""
    error: MaildirError
    if path is not None:
        error = UncertainAppendError(text, path=path, errno=number, stage=stage)
    else:
        error = _ERRORS[kind](text, errno=number, stage=stage)
    for note in notes:
        error.add_note(note)
    return error


_channels: "weakref.WeakSet[Channel]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    for channel in list(_channels):
        channel.disown()


os.register_at_fork(after_in_child=_leave_to_parent)
