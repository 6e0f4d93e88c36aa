"""A message never continues a header of the prefix that it is stored after: by whatever way it comes."""

import email
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP

from maildir_async import GroupCommit, Maildir, deliver
from maildir_async.smtp import MaildirHandler, StreamingLMTP, StreamingSMTP
from support import contents
from wire import serving

PREFIX: Final = b"Delivered-To: alice@example.org\n"

#: A first line that would be part of the last header before it; short, and long enough to be written while it comes.
MESSAGES: Final = [b" evil\nSubject: x\n\nbody\n", b"\tevil\n" + (b"x" * 69 + b"\n") * 2**13]


async def chunks(message: bytes) -> AsyncIterator[bytes]:
    yield b""
    yield message[:1]
    yield b""
    yield message[1:]


async def by_bytes(maildir: Maildir, message: bytes) -> None:
    await maildir.append(message, prefix=PREFIX)


async def by_stream(maildir: Maildir, message: bytes) -> None:
    await maildir.append(chunks(message), prefix=PREFIX)


async def by_hand(maildir: Maildir, message: bytes) -> None:
    async with maildir.open_append(prefix=PREFIX) as task:
        task.write(b"")
        await task.send(message[:1])
        await task.send(message[1:])


async def by_fan_out(maildir: Maildir, message: bytes) -> None:
    other = Maildir(f"{maildir.path}-2", commit=maildir.commit)
    for outcome in await deliver(chunks(message), [maildir, other], prefix=PREFIX):
        assert outcome.error is None
    assert contents(other.path)["new"] == contents(maildir.path)["new"]


def check(path: Path, line_end: bytes, prefix: bytes | None, message: bytes) -> None:
    """Look at the one message in *path*, its sizes in its name among it."""
    (stored,) = contents(path)["new"]
    if prefix is not None:
        assert stored == prefix + line_end + message
    assert stored.endswith(line_end * 2 + message)
    assert "evil" not in str(email.message_from_bytes(stored).items())
    (name,) = (file.name for file in (path / "new").iterdir())
    sizes = re.search(r",S=(\d+),W=(\d+)", name)
    assert sizes is not None
    assert int(sizes[1]) == len(stored)
    assert int(sizes[2]) == len(stored.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("way", [by_bytes, by_stream, by_hand, by_fan_out])
@pytest.mark.parametrize("message", MESSAGES, ids=["short", "long"])
@pytest.mark.parametrize("process", [False, True], ids=["here", "helper"])
async def test_an_append(tmp_path: Path, way: Callable[..., Any], message: bytes, process: bool) -> None:
    """By bytes, a stream, by hand or to several maildirs; by this process or the helper."""
    async with Maildir(tmp_path / "box", commit=GroupCommit(helper_process=process)) as maildir:
        await way(maildir, message)
        await maildir.commit.aclose()
    check(tmp_path / "box", b"\n", PREFIX, message)


@pytest.mark.parametrize("kind", [SMTP, LMTP, StreamingSMTP, StreamingLMTP])
@pytest.mark.parametrize("newline", ["lf", "keep"])
@pytest.mark.parametrize("message", MESSAGES, ids=["short", "long"])
async def test_by_smtp(tmp_path: Path, kind: Any, newline: Any, message: bytes) -> None:
    """By DATA, and by BDAT in pieces, the trace headers are a header by themselves."""
    line_end = b"\r\n" if newline == "keep" else b"\n"
    sent, stored = message.replace(b"\n", b"\r\n"), message.replace(b"\n", line_end)
    streaming = kind in (StreamingSMTP, StreamingLMTP)
    hello = "LHLO" if issubclass(kind, LMTP) else "EHLO"
    for count, by_bdat in enumerate([False, True] if streaming else [False]):
        handler = MaildirHandler(tmp_path / str(count), newline=newline)
        async with serving(handler, kind) as server:
            client = await server.connect()
            await client.begin("alice@example.org", hello=hello)
            if by_bdat:
                assert (await client.ask("BDAT 0")).startswith("250 ")
                assert (await client.ask(b"BDAT 1\r\n" + sent[:1])).startswith("250 ")
                told = await client.ask(b"BDAT %d LAST\r\n" % len(sent[1:]) + sent[1:])
            else:
                assert (await client.ask("DATA")).startswith("354 ")
                told = await client.ask(sent + b".\r\n")
            assert told.startswith("250 "), told
        check(tmp_path / str(count), line_end, None, stored)
