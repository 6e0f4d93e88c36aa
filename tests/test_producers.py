"""Every kind of message, in every chunking, through every way in, is stored byte for byte."""

import array
import asyncio
import email
import errno
import io
import os
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from email.message import EmailMessage, Message
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import aiofiles
import anyio
import pytest
from anyio.abc import SocketAttribute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maildir_async import (
    AppendError,
    AppendTask,
    Consumer,
    Delivered,
    Durability,
    Maildir,
    PullProducer,
    PushProducer,
    as_producer,
)
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.testing import check_pull_producer, check_push_producer
from support import contents, turns, wire_size

MAIL = b"Subject: \xe4\r\nX: 1\n\nline\r\n\r\r\n\n\0\xff\n.\nlast line without an end\r"


def large(size: int) -> bytes:
    """Return so many bytes with line ends of both kinds in them, and one of two bytes across the chunk boundary."""
    pattern = bytes(range(1, 256)) + b"\r\n" + MAIL
    message = bytearray((pattern * (size // len(pattern) + 1))[:size])
    message[CHUNK_SIZE - 1 : CHUNK_SIZE + 1] = b"\r\n"[: max(0, size - CHUNK_SIZE + 1)]
    return bytes(message)


def cut(message: bytes, *sizes: int) -> list[bytes]:
    """Return *message* in chunks of *sizes*, and the rest."""
    chunks = list[bytes]()
    for size in sizes:
        chunks.append(message[:size])
        message = message[size:]
    return [*chunks, message]


CHUNKINGS: dict[str, list[bytes]] = {
    "whole": [MAIL],
    "nothing": [],
    "an empty chunk": [b""],
    "one byte at a time": [MAIL[at : at + 1] for at in range(len(MAIL))],
    "empty chunks between": [chunk for at in range(0, len(MAIL), 7) for chunk in (b"", MAIL[at : at + 7], b"")],
    "a chunk less one": [large(CHUNK_SIZE - 1)],
    "a chunk": [large(CHUNK_SIZE)],
    "a chunk and one": [large(CHUNK_SIZE + 1)],
    "a byte, a chunk, a byte": cut(large(CHUNK_SIZE + 2), 1, CHUNK_SIZE),
    "cut at the boundary": cut(large(CHUNK_SIZE + 1), CHUNK_SIZE - 1, 1),
    "many chunks": cut(large(3 * CHUNK_SIZE + 5), *[CHUNK_SIZE // 8] * 24),
    "three chunks in one": [large(3 * CHUNK_SIZE)],
}

BIG = large(CHUNK_SIZE - 3)


# One async context manager for each kind of message, made of chunks where the kind has chunks.

Kind = Callable[[list[bytes], Path], AbstractAsyncContextManager[Any]]
KINDS: dict[str, Kind] = {}


def kind(make: Callable[[list[bytes], Path], AsyncIterator[Any]]) -> Kind:
    """List a kind of message."""
    KINDS[make.__name__.strip("_")] = manager = asynccontextmanager(make)
    return manager


@kind
async def bytes_(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    yield b"".join(chunks)


@kind
async def bytearray_(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    yield bytearray(b"".join(chunks))


@kind
async def memoryview_(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    yield memoryview(b"".join(chunks))


@kind
async def memoryview_with_gaps(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    whole = b"".join(chunks)
    spread = bytearray(2 * len(whole))
    spread[::2] = whole
    yield memoryview(spread)[::2]


@kind
async def file(chunks: list[bytes], tmp_path: Path) -> AsyncIterator[Any]:
    (tmp_path / "message").write_bytes(b"".join(chunks))
    with open(tmp_path / "message", "rb") as opened:
        yield opened
        assert not opened.closed


@kind
async def unbuffered_file(chunks: list[bytes], tmp_path: Path) -> AsyncIterator[Any]:
    (tmp_path / "message").write_bytes(b"".join(chunks))
    with open(tmp_path / "message", "rb", buffering=0) as opened:
        yield opened
        assert not opened.closed


@kind
async def file_read_before(chunks: list[bytes], tmp_path: Path) -> AsyncIterator[Any]:
    (tmp_path / "message").write_bytes(b"From: mbox\n" + b"".join(chunks))
    with open(tmp_path / "message", "rb") as opened:
        opened.readline()
        yield opened


@kind
async def bytes_io(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    opened = io.BytesIO(b"".join(chunks))
    yield opened
    assert not opened.closed


@kind
async def bytes_io_read_before(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    opened = io.BytesIO(b"12345" + b"".join(chunks))
    opened.seek(5)
    yield opened


@kind
async def spooled_file(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    with tempfile.SpooledTemporaryFile(max_size=100) as opened:
        opened.write(b"".join(chunks))
        opened.seek(0)
        yield opened
        assert not opened.closed


@kind
async def pipe(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    reader, writer = os.pipe()

    def write() -> None:
        with open(writer, "wb", buffering=0) as opened:
            for chunk in chunks:
                rest = chunk
                while rest:
                    rest = rest[opened.write(rest) :]

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, "rb", buffering=0) as opened:
        yield opened
        assert not opened.closed
    thread.join()


@kind
async def aiofiles_handle(chunks: list[bytes], tmp_path: Path) -> AsyncIterator[Any]:
    (tmp_path / "message").write_bytes(b"".join(chunks))
    async with aiofiles.open(tmp_path / "message", "rb") as opened:
        yield opened
        assert not opened.closed


@kind
async def anyio_file(chunks: list[bytes], tmp_path: Path) -> AsyncIterator[Any]:
    (tmp_path / "message").write_bytes(b"".join(chunks))
    async with await anyio.open_file(tmp_path / "message", "rb") as opened:
        yield opened
        assert not opened.wrapped.closed


@kind
async def stream_reader(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    here, there = socket.socketpair()
    reader, our_end = await asyncio.open_connection(sock=here)
    _reader, their_end = await asyncio.open_connection(sock=there)

    async def send() -> None:
        for chunk in chunks:
            their_end.write(chunk)
            await their_end.drain()
        their_end.close()
        await their_end.wait_closed()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        yield reader
    our_end.close()
    await our_end.wait_closed()


@kind
async def anyio_tcp_stream(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listeners:
        listener = listeners.listeners[0]
        client = await anyio.connect_tcp("127.0.0.1", listener.extra(SocketAttribute.local_port))
        server = await cast(Any, listener).accept()

    async def send() -> None:
        async with client:
            for chunk in chunks:
                await client.send(chunk)

    async with server, anyio.create_task_group() as group:
        group.start_soon(send)
        yield server


@kind
async def memory_object_stream(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    sender, receiver = anyio.create_memory_object_stream[bytes](1)

    async def send() -> None:
        with sender:
            for chunk in chunks:
                await sender.send(chunk)

    with receiver:
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            yield receiver


@kind
async def async_generator(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    async def generate() -> AsyncGenerator[bytes, None]:
        for chunk in chunks:
            await asyncio.sleep(0)
            yield chunk

    yield generate()


@kind
async def async_generator_that_never_waits(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    async def generate() -> AsyncGenerator[bytes, None]:
        for chunk in chunks:
            yield chunk

    yield generate()


@kind
async def async_iterator(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    class Chunks:
        def __init__(self) -> None:
            self._left = iter(chunks)

        def __aiter__(self) -> "Chunks":
            return self

        async def __anext__(self) -> bytes:
            for chunk in self._left:
                return chunk
            raise StopAsyncIteration

    yield Chunks()


@kind
async def generator(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    yield (chunk for chunk in chunks)


@kind
async def list_(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    yield list(chunks)


@kind
async def list_of_each_type(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    types: list[Callable[[bytes], Any]] = [bytes, bytearray, memoryview]
    yield [types[number % 3](chunk) for number, chunk in enumerate(chunks)]


@kind
async def plain_read_returning_awaitable(chunks: list[bytes], _: Path) -> AsyncIterator[Any]:
    class Reader:
        def __init__(self) -> None:
            self._stream = io.BytesIO(b"".join(chunks))

        def read(self, size: int) -> Awaitable[bytes]:
            async def later() -> bytes:
                await asyncio.sleep(0)
                return self._stream.read(size)

            return later()

    yield Reader()


# Three ways in.

Way = Callable[[Maildir, Any], Awaitable[Delivered]]


async def appended(maildir: Maildir, message: Any) -> Delivered:
    return await maildir.append(message)


async def pulled(maildir: Maildir, message: Any) -> Delivered:
    async with maildir.open_append() as task:
        task.register_producer(as_producer(message, task, streaming=False), streaming=False)
    return task.future.result()


async def pushed(maildir: Maildir, message: Any) -> Delivered:
    async with maildir.open_append() as task:
        task.register_producer(as_producer(message, task, streaming=True), streaming=True)
    return task.future.result()


def assert_stored(delivered: Delivered, message: bytes) -> None:
    """Assert that *delivered* is *message* byte for byte, and that its sizes are right, in its name too."""
    stored = Path(delivered.path).read_bytes()
    assert (len(stored), stored == message) == (len(message), True)
    assert (delivered.size, delivered.wire_size) == (len(message), wire_size(message))
    assert delivered.path.endswith(f",S={len(message)},W={wire_size(message)}")


@pytest.mark.parametrize(
    "way",
    [appended, *(pytest.param(way, marks=pytest.mark.heavy) for way in (pulled, pushed))],
    ids=lambda way: way.__name__,
)
@pytest.mark.parametrize("kind", list(KINDS))
async def test_every_kind_in_every_chunking(tmp_path: Path, kind: str, way: Way) -> None:
    """Each kind of message, however it is cut, is stored byte for byte, with the right sizes, and is not closed."""
    maildir = Maildir(tmp_path / "box", durability=Durability.NONE)
    for chunks in CHUNKINGS.values():
        async with KINDS[kind](chunks, tmp_path) as message:
            delivered = await way(maildir, message)
        assert_stored(delivered, b"".join(chunks))
    assert contents(maildir.path)["tmp"] == []
    assert len(contents(maildir.path)["new"]) == len(CHUNKINGS)


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", list(KINDS))
async def test_every_adapter_is_a_pull_producer(tmp_path: Path, kind: str) -> None:
    """The pull adapter of each kind writes a chunk when asked and not otherwise, ends once, is silent when stopped."""
    for chunks in itemgetter("whole", "one byte at a time", "many chunks")(CHUNKINGS):
        async with KINDS[kind](chunks, tmp_path) as message:
            await check_pull_producer(partial(as_producer, message), b"".join(chunks))


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", list(KINDS))
async def test_every_adapter_is_a_push_producer(tmp_path: Path, kind: str) -> None:
    """The push adapter of each kind starts by itself, is silent while paused and once stopped, and ends once."""
    for chunks in itemgetter("whole", "one byte at a time", "many chunks")(CHUNKINGS):
        async with KINDS[kind](chunks, tmp_path) as message:
            await check_push_producer(partial(as_producer, message, streaming=True), b"".join(chunks))


@pytest.mark.parametrize("streaming", [False, True])
async def test_adapters_satisfy_the_protocols(tmp_path: Path, streaming: bool) -> None:
    """What as_producer returns is a PullProducer, and a PushProducer if streaming; an AppendTask is a Consumer."""
    async with Maildir(tmp_path / "box").open_append() as task:
        consumer: Consumer = task
        producer = as_producer(MAIL, consumer, streaming=streaming)
        assert isinstance(producer, PullProducer)
        assert isinstance(producer, PushProducer) == streaming
        task.register_producer(producer, streaming)
    assert_stored(task.future.result(), MAIL)


@pytest.mark.parametrize("way", [appended, pulled, pushed], ids=lambda way: way.__name__)
@pytest.mark.parametrize("item", ["H", "I", "d"])
async def test_items_of_many_bytes(tmp_path: Path, item: str, way: Way) -> None:
    """A memoryview of items longer than a byte is stored as its bytes, none and many, also with gaps and as a chunk."""
    maildir = Maildir(tmp_path / "box", durability=Durability.NONE)
    for count in (0, 1, 3, CHUNK_SIZE // 4 + 1):
        items = array.array(item, range(40_000)) * (count // 40_000 + 1)
        del items[count:]
        assert_stored(await way(maildir, memoryview(items)), items.tobytes())
        assert_stored(await way(maildir, memoryview(items)[::2]), items[::2].tobytes())
        chunks = [memoryview(items), b"\n", memoryview(items)[::3]]
        assert_stored(await way(maildir, chunks), items.tobytes() + b"\n" + items[::3].tobytes())
    table = memoryview(bytes(range(12))).cast("B", (3, 4))
    assert_stored(await way(maildir, table), bytes(range(12)))


def mails() -> "dict[str, Message[Any, Any]]":
    parsed = email.message_from_bytes(b"From: a@example.org\nSubject: =?utf-8?q?=C3=A4?=\n\nFrom here\n.\nbody \xe4\n")
    plain = Message()
    plain["Subject"] = "plain"
    plain.set_payload("body\nFrom there\n")
    modern = EmailMessage()
    modern["Subject"] = "ä long one " * 20
    modern["To"] = "Ä <a@example.org>"
    modern.set_content("Käse\nFrom there\n")
    attached = EmailMessage()
    attached["Subject"] = "attached"
    attached.set_content("see below")
    attached.add_attachment(bytes(range(256)) * 8192, maintype="application", subtype="octet-stream", filename="x")
    with_crlf = EmailMessage(policy=email.policy.SMTP)
    with_crlf["Subject"] = "crlf"
    with_crlf.set_content("one\ntwo\n")
    with_from = email.message_from_bytes(b"From a@example.org Mon Jan  1 00:00:00 2024\nSubject: mbox\n\nbody\n")
    return {
        "parsed": parsed,
        "Message": plain,
        "EmailMessage": modern,
        "with attachment": attached,
        "with CRLF": with_crlf,
        "with From line": with_from,
    }


@pytest.mark.parametrize("way", [appended, pulled, pushed], ids=lambda way: way.__name__)
async def test_email_messages(tmp_path: Path, way: Way) -> None:
    """An email message is stored as its as_bytes() gives it."""
    maildir = Maildir(tmp_path / "box", durability=Durability.NONE)
    for mail in mails().values():
        assert_stored(await way(maildir, mail), mail.as_bytes())


@pytest.mark.parametrize("mail", list(mails()))
async def test_email_adapters(mail: str) -> None:
    """The adapters of an email message are proper pull and push producers."""
    message = mails()[mail]
    await check_pull_producer(partial(as_producer, message), message.as_bytes())
    await check_push_producer(partial(as_producer, message, streaming=True), message.as_bytes())


class NotingFile(io.BytesIO):
    """Notes what is asked of it, and in which thread."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.sizes: list[int] = []
        self.threads: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.sizes.append(-1 if size is None else size)
        self.threads.add(threading.get_ident())
        return super().read(size)


@pytest.mark.every_loop
@pytest.mark.parametrize("way", [appended, pulled, pushed], ids=lambda way: way.__name__)
async def test_files_are_read_off_the_loop(tmp_path: Path, way: Way) -> None:
    """A binary file is read in worker threads only, a bounded piece at a time, from where it stands, to its end."""
    opened = NotingFile(b"-----" + large(2 * CHUNK_SIZE))
    opened.seek(5)
    delivered = await way(Maildir(tmp_path / "box"), opened)
    assert_stored(delivered, large(2 * CHUNK_SIZE))
    assert threading.get_ident() not in opened.threads
    assert all(0 < size <= CHUNK_SIZE for size in opened.sizes)
    assert not opened.closed
    assert opened.tell() == 5 + 2 * CHUNK_SIZE


@pytest.mark.every_loop
async def test_emails_are_serialised_off_the_loop(tmp_path: Path) -> None:
    """An email message is turned into bytes in a worker thread."""
    threads = list[int]()

    class NotingMessage(EmailMessage):
        def as_bytes(self, unixfrom: bool = False, policy: Any = None) -> bytes:
            threads.append(threading.get_ident())
            return super().as_bytes(unixfrom, policy)

    message = NotingMessage()
    message["Subject"] = "x"
    await Maildir(tmp_path / "box").append(message)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.every_loop
async def test_a_blocking_file_stops_nobody_else(tmp_path: Path) -> None:
    """While the read of one message's file blocks, the loop goes on and other messages are delivered."""
    maildir = Maildir(tmp_path / "box")
    reader, writer = os.pipe()
    with open(reader, "rb") as blocking:
        task = AppendTask(maildir, blocking)
        task.start()
        delivered = await maildir.append(io.BytesIO(MAIL))
        assert not task.future.done()
        os.write(writer, b"at last")
        os.close(writer)
        assert_stored(await task, b"at last")
    assert_stored(delivered, MAIL)


async def test_a_producers_buffer_may_be_used_again(tmp_path: Path) -> None:
    """A chunk is what it was when it was written, whatever is done with its buffer afterwards."""

    def chunks() -> Iterator[bytearray | memoryview]:
        buffer = bytearray(70_000)
        for number in range(30):
            buffer[:] = bytes([number]) * len(buffer)
            yield memoryview(buffer) if number % 2 else buffer

    delivered = await Maildir(tmp_path / "box").append(chunks())
    assert_stored(delivered, b"".join(bytes([number]) * 70_000 for number in range(30)))


@pytest.mark.parametrize("size", [10, 2 * CHUNK_SIZE])
async def test_a_bytearray_is_let_go(tmp_path: Path, size: int) -> None:
    """After an append the caller's bytearray can be resized: nothing holds a view of it, also when it was refused."""
    message = bytearray(size)
    maildir = Maildir(tmp_path / "box")
    await maildir.append(message)
    message += b"x"
    with pytest.raises(AppendError):
        await maildir.append(message, size_limit=1)
    message += b"x"


@pytest.mark.parametrize("way", [appended, pulled, pushed], ids=lambda way: way.__name__)
async def test_chunks_that_are_not_bytes(tmp_path: Path, way: Way) -> None:
    """A chunk that is not bytes-like is a TypeError that names the type, and leaves nothing behind."""
    maildir = Maildir(tmp_path / "box")
    await maildir.create()

    class Reading:
        def __init__(self, chunk: Any) -> None:
            self._chunk = chunk

        def read(self, size: int) -> Any:
            return self._chunk

    class ReadingAsync(Reading):
        async def read(self, size: int) -> Any:
            return self._chunk

    async def generate(chunk: Any) -> AsyncGenerator[Any, None]:
        yield large(2 * CHUNK_SIZE)
        yield chunk

    for chunk, name in (("text", "str"), (None, "NoneType"), (17, "int"), ([b"x"], "list")):
        messages = [[b"x", chunk], generate(chunk)]
        if chunk is not None:  # which means "nothing now" to a file
            messages += [Reading(chunk), ReadingAsync(chunk)]
        for message in messages:
            with pytest.raises(TypeError, match=rf"\b{name}\b"):
                await way(maildir, message)
    assert contents(maildir.path) == {"tmp": [], "new": [], "cur": []}


async def test_messages_of_the_wrong_type(tmp_path: Path) -> None:
    """A message of a type that cannot be one is a TypeError that names the type, before anything is touched."""
    maildir = Maildir(tmp_path / "box")
    text_file = io.StringIO("text")
    for message, name in (
        ("text", "str"),
        (None, "NoneType"),
        (17, "int"),
        (object(), "object"),
        (tmp_path, type(tmp_path).__name__),
        (text_file, "StringIO"),
    ):
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            await maildir.append(cast(Any, message))
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            as_producer(cast(Any, message), cast(Any, None))
    assert not (tmp_path / "box").exists()


async def test_a_file_in_text_mode(tmp_path: Path) -> None:
    """A file opened in text mode is a TypeError, whichever library opened it, and leaves nothing behind."""
    (tmp_path / "message").write_text("text")
    maildir = Maildir(tmp_path / "box")
    with open(tmp_path / "message") as opened, pytest.raises(TypeError, match="TextIOWrapper"):
        await maildir.append(cast(Any, opened))
    async with aiofiles.open(tmp_path / "message") as handle:
        with pytest.raises(TypeError, match=r"\bstr\b"):
            await maildir.append(cast(Any, handle))
    async with await anyio.open_file(tmp_path / "message") as handle_:
        with pytest.raises(TypeError, match=r"\bstr\b"):
            await maildir.append(cast(Any, handle_))
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("way", [appended, pulled, pushed], ids=lambda way: way.__name__)
async def test_unreadable_sources(tmp_path: Path, way: Way) -> None:
    """A source that cannot be read is an AppendError at stage receive with the source's errno, and nothing is left."""
    (tmp_path / "message").touch()
    maildir = Maildir(tmp_path / "box")
    with open(tmp_path / "message", "ab") as write_only, pytest.raises(AppendError) as caught:
        await way(maildir, write_only)
    assert caught.value.stage == "receive"
    assert isinstance(caught.value.__cause__, io.UnsupportedOperation)
    with open(tmp_path / "message", "rb") as closed:
        pass
    with pytest.raises(AppendError, match="closed file") as caught:
        await way(maildir, closed)
    assert caught.value.stage == "receive"
    assert not (tmp_path / "box").exists()


async def test_a_non_blocking_pipe(tmp_path: Path) -> None:
    """A non-blocking pipe that has nothing to read is an AppendError with EAGAIN, not the end of the message."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb", buffering=0) as opened, open(writer, "wb", buffering=0) as other:
        other.write(b"the beginning")
        with pytest.raises(AppendError) as caught:
            await Maildir(tmp_path / "box").append(opened)
    assert (caught.value.errno, caught.value.stage) == (errno.EAGAIN, "receive")
    assert not (tmp_path / "box").exists()


@pytest.mark.every_loop
async def test_an_abandoned_generator_is_closed(tmp_path: Path) -> None:
    """A generator whose message fails is closed before append raises: its finally clause has run."""
    closed = list[str]()

    def plain() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(1000)
        finally:
            closed.append("plain")

    async def asynchronous() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield bytes(1000)
        finally:
            await asyncio.sleep(0)
            closed.append("async")

    maildir = Maildir(tmp_path / "box", size_limit=10_000)
    for way in (appended, pulled, pushed):
        for message in (plain(), asynchronous()):
            with pytest.raises(AppendError):
                await way(maildir, message)
    assert closed == ["plain", "async"] * 3


@pytest.mark.every_loop
async def test_a_stopped_push_adapter_reads_no_more(tmp_path: Path) -> None:
    """A push adapter of a source that never waits leaves the loop its turns, and stops when it is stopped."""
    turn = read = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        if not task.future.done():
            asyncio.get_running_loop().call_soon(count)

    async def source() -> AsyncGenerator[bytes, None]:
        nonlocal read
        while True:
            read += 1
            assert read <= turn + 2, "read on without a turn of the loop"
            yield b"x"

    task = AppendTask(Maildir(tmp_path / "box", size_limit=20))
    task.start()
    count()
    task.register_producer(as_producer(source(), task, streaming=True), streaming=True)
    with pytest.raises(AppendError, match="20 bytes"):
        await task
    assert read <= 22


@pytest.mark.every_loop
async def test_a_push_adapter_stopped_at_once(tmp_path: Path) -> None:
    """A push adapter that is stopped before its first turn has stopped, and its delivery ends."""
    task = AppendTask(Maildir(tmp_path / "box"))
    task.start()
    task.register_producer(as_producer([MAIL], task, streaming=True), streaming=True)
    task.cancel()
    await turns()
    assert task.future.cancelled()


class Plain:
    """A consumer with nothing beyond the protocol."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = 0

    def register_producer(self, producer: Any, streaming: bool) -> None:
        raise NotImplementedError

    def unregister_producer(self) -> None:
        self.ended += 1

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.received += data


async def test_adapters_work_for_any_consumer() -> None:
    """A pull adapter needs nothing of its consumer but the protocol's three methods."""
    consumer = Plain()
    producer = as_producer(io.BytesIO(MAIL), consumer)
    while not consumer.ended:
        if (later := producer.resume_producing()) is not None:
            await later
    assert (bytes(consumer.received), consumer.ended) == (MAIL, 1)


@settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    chunks=st.lists(st.binary(max_size=40) | st.sampled_from([b"\r", b"\n", b"\r\n", b"", BIG]), max_size=12),
    kind=st.sampled_from(sorted(KINDS)),
    way=st.sampled_from([appended, pulled, pushed]),
)
def test_any_chunking(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], kind: str, way: Way) -> None:
    """Whatever the chunks, the kind and the way in, the bytes stored are the bytes given."""
    tmp_path = tmp_path_factory.getbasetemp()

    async def deliver() -> Delivered:
        async with KINDS[kind](chunks, tmp_path) as message:
            return await way(Maildir(tmp_path / "any", durability=Durability.NONE), message)

    delivered = asyncio.run(deliver())
    assert_stored(delivered, b"".join(chunks))
    os.unlink(delivered.path)
