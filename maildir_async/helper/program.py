"""The helper process itself: takes messages over its connections, and delivers them by group commit of its own.

It ends when the process it works for closes the control connection or is gone: what is whole is finished first, what
is not is discarded. It ignores the signals that end a program from its terminal: that is up to the one it works for.
"""

import asyncio
import contextlib
import os
import signal
import socket
from datetime import timedelta
from typing import Any, Final

from maildir_async.commit.entry import Entry
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.streamfile import StreamFile as TmpFile
from maildir_async.errors import MaildirError, append_error
from maildir_async.format.content import Content
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.names import UniqueNames
from maildir_async.group_commit import GroupCommit
from maildir_async.helper.channel import RECEIVE_SIZE, error_to
from maildir_async.helper.protocol import Decoder, encode
from maildir_async.receive.submission import Counted
from maildir_async.receive.task import AppendTask

__all__ = ["main"]

#: Whoever this works for bounds what is pending.
UNBOUNDED: Final = 2**62

NEVER: Final = timedelta(days=36500)

#: Seconds between two looks whether that process is still there, where the system does not tell.
PARENT_S: Final = 1.0

_disk: Final = PosixDisk()


def main(told: dict[str, Any]) -> None:
    """Serve until the work is over."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_serve(socket.socket(fileno=told["control"]), told["parent"], syncfs=told["syncfs"]))


async def _serve(control: socket.socket, parent: int, *, syncfs: bool) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    commit = GroupCommit(max_pending=UNBOUNDED, max_pending_bytes=UNBOUNDED, syncfs=syncfs)
    connections: list[_Connection] = []

    def connect() -> None:
        try:
            data, fds, _, _ = socket.recv_fds(control, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        connections[:] = [connection for connection in connections if not connection.is_over]
        connections.extend(_Connection(commit, socket.socket(fileno=fd)) for fd in fds)
        if not data:
            loop.remove_reader(control)
            over.set()

    control.setblocking(False)
    loop.add_reader(control, connect)
    watch = asyncio.ensure_future(_until_gone(parent, over))
    await over.wait()
    watch.cancel()
    for connection in connections:
        connection.end()
    for connection in connections:
        await connection.idle()


async def _until_gone(parent: int, over: asyncio.Event) -> None:
    """Set *over* when process *parent* is gone: a fork of it may hold a copy of the control connection."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(parent)
    except (AttributeError, OSError):  # not Linux, or it is gone already
        while os.getppid() == parent:  # noqa: ASYNC110 there is nothing that could set an event
            await asyncio.sleep(PARENT_S)
    else:
        if os.getppid() == parent:
            gone = asyncio.Event()
            loop.add_reader(pidfd, gone.set)
            await gone.wait()
            loop.remove_reader(pidfd)
    over.set()


class _GivenName(UniqueNames):
    """The one name that the other process has drawn, so that it can tell later what has become of the message."""

    __slots__ = ("_given",)

    def __init__(self, given: str) -> None:
        super().__init__(hostname="-")
        self._given = given

    def next(self) -> str:
        return self._given


class _Mailbox:
    """What an `AppendTask` needs of a maildir."""

    def __init__(self, commit: GroupCommit, tmpfile: TmpFile) -> None:
        self.commit = commit
        self.directories = tmpfile.directories
        self.names = tmpfile.names
        self.file_mode = tmpfile.mode
        self.durability = tmpfile.durability
        self.size_limit: int | None = None

    def begun(self, delivery: Counted) -> None:
        pass

    def ended(self, delivery: Counted) -> None:
        pass

    def record(self, entry: Entry) -> None:
        pass


class _Connection:
    """One loop of the other process."""

    def __init__(self, commit: GroupCommit, connection: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._commit = commit
        self._socket = connection
        connection.setblocking(False)
        self._decoder = Decoder()
        self._directories: dict[tuple[str, bool], Directories] = {}
        self._entries = 0
        self._streams: dict[int, AppendTask] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._turn: list[tuple[Any, ...]] = []
        self._unsent = bytearray()
        self._changed = asyncio.Event()
        self._loop.add_reader(connection, self._readable)

    @property
    def is_over(self) -> bool:
        """Whether it has been closed, and nothing that came over it is at work any more."""
        return self._socket.fileno() < 0 and not self._entries and not self._streams

    async def idle(self) -> None:
        """Return when nothing that came over this connection is at work any more."""
        while self._entries or self._streams:
            self._changed.clear()
            await self._changed.wait()

    def end(self) -> None:
        """Nothing more comes, and nobody waits for an answer: finish what is whole, discard what is not."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for task in list(self._streams.values()):
            task.cancel()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        for kind, number, *rest in self._decoder.feed(data):
            match kind:
                case "append":
                    self._append(number, *rest)
                case "open":
                    self._open(number, *rest)
                case "write" if number in self._streams:
                    writing = self._loop.create_task(self._write(number, self._streams[number], *rest))
                    self._writing.add(writing)
                    writing.add_done_callback(self._writing.discard)
                case "end" if number in self._streams:
                    task = self._streams[number]
                    name, chunk = rest
                    task._delivery.tmpfile.publish_as(name)  # pyright: ignore[reportPrivateUsage] nobody else names messages
                    task.write(chunk)
                    task.unregister_producer()
                case "discard" if number in self._streams:
                    self._streams[number].cancel()
                case _:  # for a stream that has failed, as the other side is about to learn
                    pass

    def _append(self, number: int, message: bytes, *options: Any) -> None:
        tmpfile = self._tmpfile(*options)
        place = self._commit.request_place(len(message), self._loop, int)
        assert place is not None
        self._entries += 1

        def settled(entry: Entry) -> None:
            self._entries -= 1
            if entry.delivered is not None:
                self._answer_delivered(number, entry.delivered)
            elif entry.error is not None:
                self._answer(("failed", number, *error_to(entry.error)))
            self._changed.set()

        self._commit.submit(Entry(tmpfile, (message,), loop=self._loop, place=place, settle=settled, record=id))

    def _open(self, number: int, name: str, *options: Any) -> None:
        tmpfile = self._tmpfile(name, *options)
        task = AppendTask(
            _Mailbox(self._commit, tmpfile),
            flags=tmpfile.flags,
            received_at=None if tmpfile.mtime_ns is None else tmpfile.mtime_ns / 1e9,
            prefix=tmpfile.content.prefix,
            newline=tmpfile.content.newline,
            deadline=NEVER,  # that, too, is bounded over there
        )
        self._streams[number] = task
        task.start().add_done_callback(lambda future: self._stream_over(number, future))

    def _stream_over(self, number: int, future: asyncio.Future[Delivered]) -> None:
        del self._streams[number]
        if future.cancelled():
            self._answer(("discarded", number))
        elif (exc := future.exception()) is None:
            self._answer_delivered(number, future.result())
        else:
            error = exc if isinstance(exc, MaildirError) else append_error(exc, path="", stage="receive")
            self._answer(("failed", number, *error_to(error)))
        self._changed.set()

    async def _write(self, number: int, task: AppendTask, chunk: bytes) -> None:
        with contextlib.suppress(MaildirError):  # told when the task is over
            await task.send(chunk)
            self._answer(("written", number, task.bytes_written))

    def _tmpfile(
        self,
        name: str,
        path: str,
        create: bool,
        mode: int,
        flags: str,
        mtime_ns: int | None,
        durability: str,
        prefix: bytes,
        newline: Any,
    ) -> TmpFile:
        return TmpFile(
            Directories(path, disk=_disk, create=create),
            _GivenName(name),
            Content(prefix=prefix, newline=newline),
            mode=mode,
            flags=flags,
            mtime_ns=mtime_ns,
            durability=Durability(durability),
        )

    def _answer_delivered(self, number: int, delivered: Delivered) -> None:
        self._answer(
            (
                "done",
                number,
                delivered.path,
                delivered.key,
                delivered.flags,
                delivered.size,
                delivered.wire_size,
                delivered.durability.value,
                delivered.queued_s,
                delivered.commit_s,
                delivered.warnings,
            )
        )

    def _answer(self, frame: tuple[Any, ...]) -> None:
        if not self._turn:
            self._loop.call_soon(self._flush)
        self._turn.append(frame)

    def _flush(self) -> None:
        turn, self._turn = self._turn, []
        was_empty = not self._unsent
        self._unsent += encode(turn)
        if was_empty:
            self._write_out()

    def _write_out(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:  # nobody is there to be told
            self._unsent.clear()
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._write_out()
