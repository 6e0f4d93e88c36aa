"""One connection to the helper process, seen from in there: messages come in, outcomes go out."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.streamfile import StreamFile
from maildir_async.errors import MaildirError, append_error
from maildir_async.helper.answers import delivered_to, error_to
from maildir_async.helper.channel import RECEIVE_SIZE
from maildir_async.helper.protocol import Decoder, encode
from maildir_async.helper.work import Work

__all__ = ["Connection"]


class _Stream:
    """A message that comes in chunks, of which one is written at a time: the other side sends no more."""

    __slots__ = ("file", "is_discarded", "mailbox", "plan")

    def __init__(self, mailbox: Mailbox, plan: Plan, file: StreamFile) -> None:
        self.mailbox = mailbox
        self.plan = plan
        self.file = file
        self.is_discarded = False

    def write(self, chunk: bytes) -> MaildirError | None:
        """Write a chunk; return what went wrong, if anything: then it is discarded. Blocks."""
        try:
            if not self.file.name:
                self.file.create()
            self.file.write((chunk,))
        except BaseException as exc:
            return self.failed(exc)
        return None

    def failed(self, exc: BaseException) -> MaildirError:
        """Discard it, and return the error. Blocks."""
        error = append_error(exc, path=self.mailbox.directories.path, stage=self.file.stage)
        leftover = self.file.discard()
        if leftover is not None:
            error.add_note(leftover)
        return error


class Connection:
    """The connection of one loop of the other process."""

    def __init__(self, work: Work, connection: socket.socket) -> None:
        self._work = work
        self._loop = work.loop
        self._socket = connection
        connection.setblocking(False)
        self._decoder = Decoder()
        self._entries = 0  # under way
        self._streams: dict[int, _Stream] = {}
        self._turn: list[tuple[Any, ...]] = []
        self._unsent = bytearray()
        self._is_ending = False
        self._is_told = False  # that all is done
        self._changed = asyncio.Event()
        self._loop.add_reader(connection, self._readable)

    @property
    def is_over(self) -> bool:
        """Whether nothing that came over it is at work any more, and it is closed."""
        return self._socket.fileno() < 0

    async def idle(self) -> None:
        """Return when nothing that came over it is at work any more, and that has been told as far as anybody reads."""
        while self._entries or self._streams or self._turn:
            self._changed.clear()
            await self._changed.wait()

    def end(self) -> None:
        """Take no more: finish what is whole, discard what is not, and tell of that whoever there is to be told."""
        if self._is_ending:
            return
        self._is_ending = True
        self._loop.remove_reader(self._socket)
        for number in list(self._streams):
            self._discard(number)
        self._write_out()

    # What comes.

    def _readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            for frame in self._decoder.feed(data):
                self._take(*frame)
        except Exception as exc:  # no memory, for one: the other side sees to what has not been answered
            self._loop.call_exception_handler({"message": "what came cannot be read", "exception": exc})
            data = b""
        if not data:
            self.end()

    def _take(self, kind: str, number: int, *rest: Any) -> None:
        stream = self._streams.get(number)
        try:
            if kind == "append":
                self._append(number, *rest)
            elif kind == "open":
                self._open(number, *rest)
            elif stream is None or stream.is_discarded:
                pass  # it has failed, as the other side is about to learn
            elif kind == "write":
                self._work.streams.run(partial(self._write, number, stream, *rest))
            elif kind == "end":
                del self._streams[number]
                name, message = rest
                self._commit(number, stream.mailbox, stream.plan, name, message, stream.file)
            elif kind == "discard":
                self._discard(number)
        except Exception as exc:  # no thread or no memory to be had, which concerns this message alone
            self._streams.pop(number, None)
            error = append_error(exc, path="", stage="receive") if stream is None else stream.failed(exc)
            self._answer("failed", number, *error_to(error))

    def _append(self, number: int, message: bytes, name: str, mailbox: tuple[Any, ...], plan: tuple[Any, ...]) -> None:
        self._commit(number, self._work.mailbox(*mailbox), self._work.plan(*plan), name, message)

    def _commit(
        self, number: int, mailbox: Mailbox, plan: Plan, name: str, message: bytes, file: StreamFile | None = None
    ) -> None:
        entry = self._work.commit(mailbox, plan, name, message, file)
        self._entries += 1
        entry.future.add_done_callback(partial(self._settled, number, entry))

    def _settled(self, number: int, entry: Entry, _: object) -> None:
        self._entries -= 1
        if entry.delivered is not None:
            self._answer("done", number, *delivered_to(entry.delivered))
        elif entry.error is not None:
            self._answer("failed", number, *error_to(entry.error))

    def _open(self, number: int, name: str, mailbox: tuple[Any, ...], plan: tuple[Any, ...]) -> None:
        where, what = self._work.mailbox(*mailbox), self._work.plan(*plan)
        self._streams[number] = _Stream(where, what, self._work.stream(where, what, name))

    def _write(self, number: int, stream: _Stream, chunk: bytes) -> None:
        """Write a chunk, in a thread of its own."""
        error = stream.write(chunk)
        self._tell(partial(self._wrote, number, stream, error))

    def _wrote(self, number: int, stream: _Stream, error: MaildirError | None) -> None:
        if stream.is_discarded:  # of which there is another answer
            return
        if error is None:
            self._answer("written", number, stream.file.content.size)
        else:
            del self._streams[number]
            self._answer("failed", number, *error_to(error))

    def _discard(self, number: int) -> None:
        stream = self._streams[number]
        stream.is_discarded = True
        try:
            self._work.streams.run(partial(self._discard_file, number, stream))
        except RuntimeError:  # there is no thread, so none is at work on it, and the system gives no other
            self._discarded(number, stream.file.discard())

    def _discard_file(self, number: int, stream: _Stream) -> None:
        leftover = stream.file.discard()
        self._tell(partial(self._discarded, number, leftover))

    def _discarded(self, number: int, leftover: str | None) -> None:
        del self._streams[number]
        self._answer("discarded", number, leftover)

    def _tell(self, callback: Callable[[], object]) -> None:
        """Have *callback* called on the loop: from a thread, which may come when all is over, and nobody is told."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    # What goes.

    def _answer(self, *frame: Any) -> None:
        if not self._turn:
            self._loop.call_soon(self._flush)
        self._turn.append(frame)

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        for frame in turn:
            self._add(frame)
        self._write_out()
        self._changed.set()

    def _add(self, frame: tuple[Any, ...]) -> None:
        for piece in encode(frame):
            self._unsent += piece

    def _write_out(self) -> None:
        if self.is_over:
            return
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # nobody is there to be told
            sent = len(self._unsent)
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._close_if_done()

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._write_out()

    def _close_if_done(self) -> None:
        """Once it is ending and all has been answered, say so, and close it."""
        if not self._is_ending or self._entries or self._streams or self._turn or self.is_over:
            return
        if self._is_told:
            self._loop.remove_writer(self._socket)
            self._socket.close()
        else:
            self._is_told = True
            self._add(("over", 0))
            self._write_out()
