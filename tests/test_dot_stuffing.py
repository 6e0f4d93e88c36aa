"""`maildir_async.smtp.dot_stuffing`, and the reader that goes by it: in any chunking, the message that was sent."""

import asyncio
import gc
import re
import weakref
from collections.abc import Iterable, Iterator
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maildir_async.smtp import wire
from maildir_async.smtp.dot_stuffing import TERMINATOR, LineLimit, Unstuffer, begun
from maildir_async.smtp.wire import each_chunk, each_octet
from support import reproducible

#: Texts in which nearly everything is part of a terminator, or looks like it.
tricky: Final = st.lists(
    st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"\r\n.", b"\r\n.\r", b".\r\n", b"..", b"x", b"\0", b"\xff"])
).map(b"".join)
cuts: Final = st.lists(st.integers(0, 40), max_size=12)


def lines_of(text: bytes) -> list[bytes]:
    """Return the lines of *text*, each but perhaps the last with its CRLF, and no other line end."""
    return re.findall(rb"(?s:.*?)\r\n|(?s:.+)\Z", text)


def stuffed(message: bytes) -> bytes:
    """Return *message* as a client sends it, line by line."""
    assert not message or message.endswith(b"\r\n")
    return b"".join(b"." + line if line.startswith(b".") else line for line in lines_of(message)) + b".\r\n"


def unstuffed(wire: bytes) -> bytes:
    """Return what a server makes of *wire*, line by line."""
    return b"".join(line.removeprefix(b".") for line in lines_of(wire))


def received(wire: bytes) -> tuple[bytes, bytes] | None:
    """Return the message that *wire* begins with, and what comes after it; None if it has no end."""
    seen = b""
    for line in lines_of(wire):
        seen += line
        if line == b".\r\n":
            return unstuffed(seen[:-3]), wire[len(seen) :]
    return None


def cut(text: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Yield *text* in pieces of these sizes, the rest being the last."""
    start = 0
    for size in sizes:
        yield text[start : start + size]
        start += size
    yield text[start:]


@reproducible
@given(tricky, cuts)
def test_stuffing_is_undone_in_any_chunking(text: bytes, sizes: list[int]) -> None:
    """However the chunks are cut, the first dot of each line goes, and nothing else does."""
    message = text + b"\r\n"
    unstuffer = Unstuffer()
    assert b"".join(map(unstuffer.feed, cut(stuffed(message)[:-3], sizes))) == message
    unstuffer = Unstuffer()
    assert b"".join(map(unstuffer.feed, cut(text, sizes))) == unstuffed(text)


@reproducible
@given(tricky)
def test_the_beginning_of_a_terminator_is_seen(text: bytes) -> None:
    """Exactly so many bytes at the end may become a terminator as are its beginning."""
    longest = max(length for length in range(6) if text[len(text) - length :] == TERMINATOR[:length])
    assert begun(text) == longest


async def read(pieces: Iterable[bytes], limit: int, *, eof: bool = True) -> tuple[bytes, bytes]:
    """Return the message read from *pieces*, which come one at a time, and what is left."""
    reader = asyncio.StreamReader(limit=limit)
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)
        await asyncio.sleep(0)

    async def feed() -> None:
        for piece in pieces:
            reader.feed_data(piece)
            await asyncio.sleep(0)
        if eof:
            reader.feed_eof()

    feeding = asyncio.create_task(feed())
    try:
        await each_chunk(reader, take)
    finally:
        await feeding
    unstuffer = Unstuffer()
    return b"".join(map(unstuffer.feed, chunks)), await reader.read()


@reproducible
@given(tricky, tricky, cuts, st.sampled_from([1, 2, 4, 5, 7, 64]))
@example(b"", b".\r\n", [1, 1, 1], 1)
@example(b"\r\n", b"", [1, 1, 1, 1], 64)
@example(b"\r\n\r\n", b"QUIT\r\n", [], 64)
@example(b".\r\r\n", b"", [4], 64)
@example(b"..\r\n", b"\r\n.\r\n", [2, 1], 1)
def test_a_message_ends_at_its_terminator_in_any_chunking(
    text: bytes, after: bytes, sizes: list[int], limit: int
) -> None:
    """Whatever comes in whatever pieces, a message ends where a reader by lines sees its end, and the rest is left."""
    message = text + b"\r\n" if text else b""
    wire = stuffed(message)
    assert received(wire + after) == (message, after)
    assert asyncio.run(read(cut(wire + after, sizes), limit)) == (message, after)


@reproducible
@given(tricky, cuts, st.sampled_from([1, 5, 64]))
def test_any_bytes_are_read_as_by_lines(wire: bytes, sizes: list[int], limit: int) -> None:
    """What no client ought to send is read as a reader by lines would: to the same end, or to none."""
    expected = received(wire)
    if expected is None:
        with pytest.raises(asyncio.IncompleteReadError):
            asyncio.run(read(cut(wire, sizes), limit))
    else:
        assert asyncio.run(read(cut(wire, sizes), limit)) == expected


SMUGGLED: Final = b"MAIL FROM:<evil@example.com>\r\n"


@pytest.mark.parametrize("end", [b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\r\n\0.\r\n"])
async def test_nothing_but_crlf_dot_crlf_ends_a_message(end: bytes) -> None:
    """SMTP smuggling: what some server takes for the end of a message is text here, kept byte for byte."""
    message = b"text" + end + SMUGGLED
    assert await read([message, b".\r\nNOOP\r\n"], 64) == (unstuffed(message), b"NOOP\r\n")
    assert await read([end + SMUGGLED, b".\r\nNOOP\r\n"], 64) == (unstuffed(end + SMUGGLED), b"NOOP\r\n")


async def test_an_end_at_the_very_beginning_is_no_bare_one() -> None:
    """Right after DATA, a dot ends the message only if CRLF follows it."""
    assert await read([b".\n" + SMUGGLED + b".\r\n"], 64) == (b"\n" + SMUGGLED, b"")
    assert await read([b".\r" + SMUGGLED + b".\r\n"], 64) == (b"\r" + SMUGGLED, b"")
    assert await read([b".\r\n" + SMUGGLED], 64) == (b"", SMUGGLED)


async def test_chunks_are_large() -> None:
    """A long message comes in pieces of at least the reader's limit, not in lines."""
    reader = asyncio.StreamReader(limit=1000)
    sizes: list[int] = []

    async def take(chunk: bytes) -> None:
        sizes.append(len(chunk))

    reader.feed_data((b"x" * 58 + b"\r\n") * 1000 + b".\r\n")
    await each_chunk(reader, take)
    assert sizes == [60_000 - 2, 2]


@pytest.mark.every_loop
@pytest.mark.parametrize("text", [b"\r" * 50_000, b"\r\n" * 25_000, b"\r\n.\r" * 12_500, b".\r\r\n" * 12_500])
async def test_what_is_read_in_small_steps_keeps_nobody_waiting(text: bytes) -> None:
    """Text that might end at every byte is read a few bytes at a time; others have their turns meanwhile."""
    reader = asyncio.StreamReader()
    turns = 0
    is_over = False

    async def count() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            await asyncio.sleep(0)

    async def take(chunk: bytes) -> None:
        assert len(chunk) <= 4096 + 5 or not text.endswith(b"\r\n")

    counting = asyncio.create_task(count())
    reader.feed_data(text + b"\r\n.\r\n")
    await each_chunk(reader, take)
    is_over = True
    await counting
    assert turns >= len(text) // 4096 - 1


async def test_octets_are_counted() -> None:
    """`each_octet` reads so many, wherever they are cut, and no more; the client's going is an error."""
    reader = asyncio.StreamReader()
    taken: list[bytes] = []

    async def take(chunk: bytes) -> None:
        taken.append(chunk)

    reader.feed_data(b"0123456789")
    await each_octet(reader, 4, take)
    await each_octet(reader, 0, take)
    await each_octet(reader, 2)
    assert b"".join(taken) == b"0123"
    assert await reader.readexactly(1) == b"6"
    reader.feed_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await each_octet(reader, 4, take)


# Lines.


@reproducible
@given(st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"x", b"xx", b"xxxxx"])).map(b"".join), cuts, st.integers(3, 9))
def test_a_line_is_too_long_in_any_chunking(text: bytes, sizes: list[int], limit: int) -> None:
    """A line with its CRLF that is longer than the limit is seen, and no other is, however the text is cut."""
    lines = LineLimit(limit)
    admitted = all(lines.admits(piece) for piece in cut(text, sizes))
    assert admitted == all(len(line) <= limit for line in lines_of(text))


def test_the_limit_is_the_longest_line_there_may_be() -> None:
    """Lines of exactly 1,000 octets pass, one of 1,001 does not, within a chunk and across two."""
    longest = b"x" * 998 + b"\r\n"
    assert LineLimit(1000).admits(longest * 100)
    assert not LineLimit(1000).admits(longest * 100 + b"x" + longest)
    for at in range(1000):
        lines = LineLimit(1000)
        assert lines.admits(longest + longest[:at])
        assert lines.admits(longest[at:])
        lines = LineLimit(1000)
        assert not (lines.admits(longest[:at]) and lines.admits(b"x" + longest[at:]))


def test_a_limit_that_cannot_be() -> None:
    """A limit that no line could keep to is a ValueError."""
    with pytest.raises(ValueError, match="2 octets"):
        LineLimit(2)


async def test_one_large_chunk_a_turn() -> None:
    """However many large messages come at once, one chunk of one is taken in a turn of the loop; each has its turn, and
    none is kept by one that is given up.
    """
    turn, taken = 0, list[tuple[int, int]]()

    async def receive(number: int) -> None:
        reader = asyncio.StreamReader(limit=64)

        async def take(chunk: bytes) -> None:
            if not chunk.endswith(b"\r\n"):
                taken.append((turn, number))
                reader.feed_data(b"x" * 100 if len(taken) < 50 else b"\r\n.\r\n")

        reader.feed_data(b"x" * 200)
        await each_chunk(reader, take)

    messages = [asyncio.create_task(receive(number)) for number in range(5)]
    for _ in range(200):
        await asyncio.sleep(0)
        turn += 1
        if turn == 3:
            messages[3].cancel()
    assert [message.done() for message in messages] == [True] * 5
    assert messages[3].cancelled()
    assert len({turn for turn, _ in taken}) == len(taken)
    whole = [number for _, number in taken[10:40]]
    assert all(set(whole[at : at + 4]) == {0, 1, 2, 4} for at in range(len(whole) - 3))


def test_a_loop_is_not_kept_by_who_waited_on_it() -> None:
    """One that is dropped with large messages on their way is freed, and nothing of it is left here."""

    async def receive() -> None:
        reader = asyncio.StreamReader(limit=64)
        reader.feed_data(b"x" * 1000)

        async def take(chunk: bytes) -> None:
            reader.feed_data(chunk)

        await each_chunk(reader, take)

    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(receive()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    assert len(wire._turns) == 1
    dropped = weakref.ref(loop)
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as is meant
    del loop, tasks, task
    gc.collect()
    assert dropped() is None
    assert not wire._turns
