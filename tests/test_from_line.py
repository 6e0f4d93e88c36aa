"""`strip_from_line`: the line that an mbox file has before each message is no part of it, and nothing else is lost."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async import GroupCommit, Maildir, MessageTooLargeError, deliver
from maildir_async.format.content import FROM_LINE_MOST, Content
from support import contents, reproducible, wire_size

LINE: Final = b"From alice@example.org Sun Nov 29 00:00:00 2026\n"
PREFIX: Final = b"Delivered-To: alice@example.org\n"
LONGEST: Final = b"From " + b"x" * (FROM_LINE_MOST - 6) + b"\n"

#: What is given, and what is stored of it.
TABLE: Final = [
    (LINE + b"Subject: x\n\nbody\n", b"Subject: x\n\nbody\n"),
    (LINE[:-1] + b"\r\nSubject: x\r\n", b"Subject: x\r\n"),
    (LINE, b""),
    (b"From \n", b""),
    (b"From \r\n", b""),
    (LINE * 2, LINE),
    (b"Subject: x\n" + LINE, b"Subject: x\n" + LINE),
    (b"\n" + LINE, b"\n" + LINE),
    (b">" + LINE, b">" + LINE),
    (b"From: alice@example.org\n", b"From: alice@example.org\n"),
    (b"from alice\n", b"from alice\n"),
    (b"From\n", b"From\n"),
    (b"From", b"From"),
    (b"Fro", b"Fro"),
    (b"From ", b"From "),
    (LINE[:-1], LINE[:-1]),
    (LINE[:-1] + b"\r", LINE[:-1] + b"\r"),
    (b"", b""),
    (LONGEST + b"x\n", b"x\n"),
    (b"From x" + LONGEST[5:] + b"x\n", b"From x" + LONGEST[5:] + b"x\n"),
]
POLICIES: Final = st.sampled_from(["keep", "lf", "crlf"])
PIECES: Final = st.sampled_from([b"F", b"Fr", b"From ", b"om ", b"m", b" ", b"\t", b"a", b"\r", b"\n", b"\r\n", b""])


def stored(chunks: list[bytes], prefix: bytes, newline: Literal["keep", "lf", "crlf"], *, strip: bool) -> bytes:
    """Return what is stored of *chunks*, with both sizes checked."""
    content = Content(prefix=prefix, newline=newline, strip_from_line=strip)
    found = b"".join([content.feed(chunk) for chunk in chunks]) + content.end()
    assert content.size == len(found)
    assert content.wire_size == len(found) + len(re.findall(rb"(?<!\r)\n", found))
    return found


@pytest.mark.parametrize(("message", "left"), TABLE)
def test_what_is_dropped(message: bytes, left: bytes) -> None:
    """One line, up to its LF, where the message begins with it and it is not too long; by one chunk or bytes alone."""
    assert stored([message], b"", "keep", strip=True) == left
    assert stored([bytes([byte]) for byte in message], b"", "keep", strip=True) == left
    assert stored([message], b"", "keep", strip=False) == message


@reproducible
@given(st.lists(PIECES, max_size=12), st.sampled_from([b"", PREFIX]), POLICIES)
def test_any_chunking(chunks: list[bytes], prefix: bytes, newline: Any) -> None:
    """Whatever the chunks, and the other options, what is stored is what they make of the rest by itself."""
    rest = re.sub(rb"\AFrom [^\n]*\n", b"", b"".join(chunks))
    assert stored(chunks, prefix, newline, strip=True) == stored([rest], prefix, newline, strip=False)


async def by_bytes(maildir: Maildir, message: bytes, **options: Any) -> None:
    await maildir.append(message, **options)


async def by_stream(maildir: Maildir, message: bytes, **options: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield message[:3]
        yield message[3:7]
        yield message[7:]

    await maildir.append(chunks(), **options)


async def by_hand(maildir: Maildir, message: bytes, **options: Any) -> None:
    async with maildir.open_append(**options) as task:
        await task.send(message[:3])
        await task.send(message[3:])


async def by_many(maildir: Maildir, message: bytes, **options: Any) -> None:
    await maildir.append_many([message], **options)


async def by_fan_out(maildir: Maildir, message: bytes, **options: Any) -> None:
    other = Maildir(f"{maildir.path}-2", commit=maildir.commit)
    for outcome in await deliver(message, [maildir, other], **options):
        assert outcome.error is None
    assert contents(other.path)["new"] == contents(maildir.path)["new"]


WAYS: Final = [by_bytes, by_stream, by_hand, by_many, by_fan_out]


@pytest.mark.parametrize(
    ("way", "process"),
    [
        *((way, False) for way in WAYS),
        *(pytest.param(way, True, marks=() if way in (by_bytes, by_stream) else pytest.mark.heavy) for way in WAYS),
    ],
)
async def test_every_way(tmp_path: Path, way: Callable[..., Any], process: bool) -> None:
    """However a message comes and whoever writes it, short or long: the prefix stands before what is left of it."""
    for count, rest in enumerate([b"Subject: x\n\nFrom here\n", b" y\n" + b"x" * 700_000 + b"\n"]):
        async with Maildir(tmp_path / str(count), commit=GroupCommit(helper_process=process)) as maildir:
            await way(maildir, LINE + rest, strip_from_line=True, prefix=PREFIX)
            await maildir.commit.aclose()
        separator = b"\n" if rest.startswith(b" ") else b""
        assert contents(maildir.path)["new"] == [PREFIX + separator + rest]
        (name,) = (path.name for path in (tmp_path / str(count) / "new").iterdir())
        whole = PREFIX + separator + rest
        assert f",S={len(whole)},W={wire_size(whole)}" in name


async def test_options(tmp_path: Path) -> None:
    """The limit counts what is given; what is no bool is refused; unless asked for, the line is stored as given."""
    maildir = Maildir(tmp_path / "box")
    with pytest.raises(MessageTooLargeError):
        await maildir.append(LINE + b"x", strip_from_line=True, size_limit=len(LINE))
    with pytest.raises(TypeError, match="strip_from_line must be True or False, not 1"):
        await maildir.append(LINE, strip_from_line=1)  # type: ignore[arg-type]
    await maildir.append(LINE)
    assert contents(maildir.path)["new"] == [LINE]
