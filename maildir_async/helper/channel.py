"""One loop's connection to the helper process: whole messages and chunks go out, outcomes come back.

On the loop's thread only, and without any other thread: that is what keeps deliveries going beside a loop that leaves
worker threads no time. `recover` says what becomes of what was in flight when the helper dies.
"""

import contextlib
import errno
import os
import socket
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Any, Final, Protocol

from maildir_async.commit.entry import QUEUED, TAKEN, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.queue import Queue
from maildir_async.errors import AppendError
from maildir_async.helper.answers import delivered_from, error_from
from maildir_async.helper.in_flight import InFlight, Stream, gone_error
from maildir_async.helper.process import HelperProcess
from maildir_async.helper.protocol import Decoder, encode
from maildir_async.helper.sender import Sender

__all__ = ["RECEIVE_SIZE", "Channel", "Owner", "names_in_use_by_helpers"]

RECEIVE_SIZE: Final = 256 * 1024

#: Messages sent without waiting for the end of the loop's turn, which in a busy loop is a turn away: 2,200 a second
#: went over in turns of 4 ms without this.
AT_ONCE: Final = 16

#: Bytes of a whole message, or of its prefix, past which it is delivered by this process: a frame has an end.
LARGEST: Final = 2**30


class Owner(Protocol):
    """Who sees to what a dead helper leaves: `maildir_async.helper.delegation.Delegation`."""

    def lost(self, channel: "Channel", in_flight: "list[InFlight]") -> None:
        """Take over what was *in_flight* when the connection came to its end."""
        ...

    def abandoned(self, channel: "Channel") -> None:
        """See to what *channel* has in flight, whose loop has been closed."""
        ...


def names_in_use_by_helpers() -> set[str]:
    """Return the names, up to any comma, that helpers of this process have for files in ``tmp/``."""
    return {item.tmp_name for channel in list(_channels) for item in channel.in_flight()}


class Channel:
    """A connection.

    Args:
        loop: the running one.
        process: the helper.
        queue: what settles messages, and takes those that cannot go over.
        owner: who takes over what was in flight when the connection has come to its end.

    Attributes:
        closed: whether it takes nothing more.
        is_over: whether the helper has said that it has done all it was given, and has nothing of it any more.

    """

    def __init__(self, loop: AbstractEventLoop, process: HelperProcess, queue: Queue, owner: Owner) -> None:
        self.loop = loop
        self.process = process
        self._queue = queue
        self._owner = owner
        self._in_flight: dict[int, InFlight] = {}
        self._socket = process.connect()
        self._decoder = Decoder()
        self._number = 0
        self._turn: list[tuple[Any, ...] | Entry] = []  # what this turn of the loop has to send
        self._is_flush_due = False
        self._sender = Sender(loop, self._socket)
        self.closed = self.is_over = False
        # Not __del__: thrown away in one go with this, the socket would warn that it is open.
        self._abandoned = weakref.finalize(self, self._socket.close)
        self._abandoned.atexit = False
        loop.add_reader(self._socket, self._readable)
        _channels.add(self)

    def __del__(self) -> None:
        if not self._in_flight:
            return
        if self._socket.fileno() >= 0:  # its loop has been closed, and has let go of it
            self._owner.abandoned(self)
        else:  # its loop has been dropped, and all is thrown away in one go
            self.give_up()

    @property
    def pending(self) -> int:
        """How many messages it has to do with."""
        return len(self._in_flight) + len(self._turn)

    def in_flight(self) -> list[InFlight]:
        """Return what has not been answered."""
        return list(self._in_flight.values())

    def submit(self, entry: Entry) -> None:
        """Send a whole message, with all that is sent in this turn of the loop."""
        chunks = entry.chunks
        size = len(chunks) if isinstance(chunks, bytes) else sum(map(len, chunks))
        if size > LARGEST or len(entry.plan.prefix) > LARGEST:
            self._queue.turns.submit(entry)
            return
        entry.whole_at = time.monotonic()
        self._send(entry)

    def open(self, stream: Stream) -> int:
        """Begin with a stream, and return its number."""
        self._number += 1
        tmp_name = stream.mailbox.names.next()
        self._in_flight[self._number] = InFlight(stream.mailbox, tmp_name, stream=stream)
        self._send(("open", self._number, tmp_name, *_options(stream.mailbox, stream.plan)))
        return self._number

    def write(self, number: int, chunk: bytes) -> None:
        """Send a chunk of a stream."""
        self._send(("write", number, chunk))

    def end(self, number: int, entry: Entry) -> None:
        """Have the stream published, which is whole with what *entry* holds: it cannot be withdrawn any more."""
        entry.state = TAKEN
        entry.whole_at = entry.taken_at = time.monotonic()
        in_flight = self._in_flight.get(number)
        if in_flight is None:  # the stream has failed, and is about to learn that
            entry.error = gone_error("the helper process ended")
            self._queue.settle([entry])
            return
        in_flight.entry, in_flight.name = entry, entry.mailbox.names.next()
        self._send(("end", number, in_flight.name, _joined(entry)))

    def discard(self, number: int) -> None:
        """Have a stream discarded; its `Stream.discarded` tells when it is."""
        self._send(("discard", number))

    # The end of it.

    def leave(self) -> None:
        """Send nothing more, for the loop has been closed: the helper finishes what is whole, and drops what is not."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def drain(self) -> list[InFlight]:
        """Take answers for a loop that is closed until there are no more; return what has none. In a worker thread."""
        self._socket.setblocking(True)
        while self._receive():
            pass
        self._close()
        return self._take_in_flight()

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        self.closed = True
        self._in_flight, self._turn = {}, []
        self._abandoned.detach()
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())  # not via the loop, whose selector the two processes share

    def _close(self) -> None:
        self.closed = True
        self._abandoned.detach()
        self._socket.close()

    def _take_in_flight(self) -> list[InFlight]:
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        return in_flight

    def give_up(self) -> None:
        """Give back what messages hold whose outcome nobody will learn: the helper finishes those that are whole."""
        entries = [item.entry for item in self._take_in_flight() if item.entry is not None]
        for entry in entries:
            entry.chunks = b""
            text = f"{entry.mailbox.directories.path}: the loop is gone, and the helper process may have delivered it"
            entry.error = AppendError(text, errno=errno.ECANCELED, stage="queue")
        self._queue.settle(entries)

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
        if self.closed:  # what is in flight has been told, or will be
            return
        pieces: list[bytes] = []
        refused: list[Entry] = []
        for frame in turn:
            if isinstance(frame, tuple):
                number = frame[1]
            elif frame.state == QUEUED:
                number = self._number = self._number + 1
            else:  # withdrawn
                continue
            try:
                pieces += encode(frame if isinstance(frame, tuple) else self._whole(number, frame))
            except Exception as exc:  # which concerns this message alone
                pieces += encode(("discard", number))
                self._refuse(number, exc, refused)
        if pieces:
            self._sender.send(b"".join(pieces))
        self._queue.settle(refused)

    def _refuse(self, number: int, exc: Exception, refused: list[Entry]) -> None:
        """Fail a message that cannot be told to the helper."""
        item = self._in_flight.pop(number, None)
        if item is None:  # refused already
            return
        text = f"{item.mailbox.directories.path}: the message cannot be handed to the helper process: {exc}"
        error = AppendError(text, errno=errno.EMSGSIZE, stage="queue" if item.stream is None else "receive")
        error.__cause__ = exc
        if item.entry is not None:
            item.entry.error = error
            item.entry.chunks = b""
            refused.append(item.entry)
        elif item.stream is not None:
            self.loop.call_soon(item.stream.failed, error)

    def _whole(self, number: int, entry: Entry) -> tuple[Any, ...]:
        entry.state = TAKEN
        entry.taken_at = time.monotonic()
        name = entry.mailbox.names.next()
        self._in_flight[number] = InFlight(entry.mailbox, name, name, entry)
        return ("append", number, _joined(entry), name, *_options(entry.mailbox, entry.plan))

    # Receiving.

    def _readable(self) -> None:
        if self._receive():
            return
        self.loop.remove_reader(self._socket)
        self._sender.stop()
        self._close()
        lost = self._take_in_flight()
        turn, self._turn = self._turn, []
        for frame in turn:
            if isinstance(frame, Entry) and frame.state == QUEUED:
                frame.state = TAKEN
                lost.append(InFlight(frame.mailbox, "", "", frame))
        self._owner.lost(self, lost)

    def _receive(self) -> bool:
        """Take answers, and return whether there may be more: not once the helper has died, or was told to end."""
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        settled: list[Entry] = []
        try:
            for kind, number, *answer in self._decoder.feed(data):
                self._take(kind, number, answer, settled)
        except Exception as exc:  # no memory, for one: what has not been understood is as if it had not been answered
            self.loop.call_exception_handler({"message": "a helper process's answer cannot be read", "exception": exc})
            return False
        finally:
            self._queue.settle(settled)
        return bool(data)

    def _take(self, kind: str, number: int, answer: list[Any], settled: list[Entry]) -> None:
        item = self._in_flight.get(number)
        if item is None:  # the last of all answers; or one about what has been refused
            self.is_over = self.is_over or kind == "over"
            return
        entry, stream = item.entry, item.stream
        if kind == "written":
            if stream is not None:
                self._tell(stream.acknowledged, *answer)
            return
        if entry is not None:
            if kind == "done":
                delivered = delivered_from(*answer, folder=entry.mailbox.folder, keywords=entry.plan.keywords)
                entry.path, entry.name = delivered.path, delivered.key
                entry.size, entry.wire_size = delivered.size, delivered.wire_size
                entry.delivered = delivered
            elif kind == "failed":
                entry.error = error_from(*answer)
            else:  # the helper has ended without looking at its last chunk
                entry.error = gone_error("the helper process ended")
            entry.chunks = b""
            settled.append(entry)
        elif stream is not None and kind == "failed":
            self._tell(stream.failed, error_from(*answer))
        elif stream is not None:
            self._tell(stream.discarded, *answer)
        del self._in_flight[number]

    def _tell(self, learn: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
            self.loop.call_soon(learn, *args)


def _joined(entry: Entry) -> bytes:
    """Return what is given of the message as exact bytes, which `marshal` takes as they are."""
    chunks = entry.chunks
    if isinstance(chunks, bytes):
        return chunks
    return bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)


def _options(mailbox: Mailbox, plan: Plan) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    directories, base = mailbox.directories, mailbox.directories.base
    return (
        (
            *(directories.path, directories.create, mailbox.mode, base.directory, base.mount),
            *(directories.root.path if directories.root is not None else "", directories.inherit_mode),
        ),
        (
            *(plan.durability.value, plan.flags, plan.mtime_ns, plan.prefix, plan.newline),
            *(plan.keywords, plan.strip_from_line),
        ),
    )


_channels: "weakref.WeakSet[Channel]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    for channel in list(_channels):
        channel.disown()


os.register_at_fork(after_in_child=_leave_to_parent)
