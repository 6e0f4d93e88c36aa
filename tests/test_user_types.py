"""What type checkers make of a user's program: mypy and pyright, both strict, accept all that is taken and no other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

import maildir_async

pytestmark = pytest.mark.heavy  # each checker reads the whole package, and what that imports

PACKAGE: Final = Path(maildir_async.__file__).parents[1]

#: A line whose comment is "refused" has an error, and no other line has.
PROGRAM: Final = """
import asyncio
import gzip
import io
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.mime.text import MIMEText
from mailbox import mbox

import aiofiles
import anyio
from anyio.abc import ByteReceiveStream, ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.file import FileReadStream

from maildir_async import (
    AppendTask, CommitStatistics, Delivered, GroupCommit, Index, Maildir, MaildirStatistics, Message, Newline, Outcome,
    as_producer, deliver,
)


async def chunks() -> AsyncIterator[bytes]:
    yield b"one"


def blocks() -> Iterator[bytes | memoryview]:
    yield b"one"


class Upload:
    async def read(self, size: int = -1) -> bytes:
        return b""


async def bytes_of_all_kinds(maildir: Maildir) -> Delivered:
    await maildir.append(bytearray(b"x"))
    await maildir.append(memoryview(b"x"))
    return await maildir.append(b"x")


async def email_messages(maildir: Maildir) -> None:
    await maildir.append(EmailMessage())
    await maildir.append(MIMEText("x"))
    await maildir.append(message_from_bytes(b"x"))
    await maildir.append(message_from_bytes(b"x", policy=policy.default))
    for message in mbox("archive"):
        await maildir.append(message)


async def files(maildir: Maildir) -> None:
    await maildir.append(io.BytesIO(b"x"))
    await maildir.append(sys.stdin.buffer)
    with open("x", "rb") as file, open("x", "rb", 0) as raw, gzip.open("x") as packed:
        await maildir.append(file)
        await maildir.append(raw)
        await maildir.append(packed)
    with tempfile.TemporaryFile() as temporary, tempfile.SpooledTemporaryFile() as spooled:
        await maildir.append(temporary)
        await maildir.append(spooled)


async def streams(
    maildir: Maildir, reader: asyncio.StreamReader, receiving: ByteReceiveStream, both: ByteStream
) -> None:
    await maildir.append(reader)
    await maildir.append(receiving)
    await maildir.append(both)
    await maildir.append(BufferedByteReceiveStream(both))
    await maildir.append(await FileReadStream.from_path("x"))
    await maildir.append(Upload())
    async with aiofiles.open("x", "rb") as handle, await anyio.open_file("x", "rb") as file:
        await maildir.append(handle)
        await maildir.append(file)
    process = await asyncio.create_subprocess_exec("true", stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await maildir.append(process.stdout)
    sending, receiver = anyio.create_memory_object_stream[bytes](1)
    await sending.send(b"x")
    await maildir.append(receiver)


async def iterables(maildir: Maildir) -> None:
    await maildir.append([b"one", b"two"])
    await maildir.append((b"one", bytearray(b"two")))
    await maildir.append(blocks())
    await maildir.append(chunks())
    await maildir.append(chunk async for chunk in chunks())


async def the_rest(maildir: Maildir, message: Message, newline: Newline = "lf") -> None:
    await maildir.append(message, newline=newline, flags="S", keywords=["a"], folder=["Archive", "2024"])
    many: list[Message] = [b"x", EmailMessage(), message]
    delivered: list[Delivered] = await maildir.append_many(many, flags="S")
    settled: list[Delivered | Exception] = await maildir.append_many(chunks(), return_exceptions=True)
    outcomes: list[Outcome] = await deliver(message, [maildir], durability=None)
    async with maildir.open_append(received_at=0, on_progress=print) as task:
        await task.send(b"x")
    other = AppendTask(maildir, message)
    other.register_producer(as_producer(message, other), False)
    index: Index = await maildir.index()
    mail: MaildirStatistics = maildir.statistics()
    commit: CommitStatistics = GroupCommit().statistics()
    print(delivered, settled, outcomes, index, mail, commit)


def is_strict(value) -> None:  # refused
    print("not by a checker that lets everything pass")


async def refused(maildir: Maildir, size: int | None) -> None:
    await maildir.append("text")  # refused
    await maildir.append(123)  # refused
    await maildir.append(None)  # refused
    await maildir.append(["text"])  # refused
    await maildir.append(io.StringIO("text"))  # refused
    await maildir.append(open("x"))  # refused
    await maildir.append(aiofiles.open("x", "rb"))  # refused
    await maildir.append(anyio.Path("x"))  # refused
    await deliver(3.5, [maildir])  # refused
    await deliver("text", [maildir])  # refused
    await deliver(b"x", maildir)  # refused
    await maildir.append_many(b"x")  # refused
    await maildir.append_many("text")  # refused
    await maildir.append_many(["text"])  # refused
    await maildir.append_many([b"x"], return_exceptions=True, atomic=True)  # refused
    AppendTask(maildir, "text")  # refused
    as_producer("text", AppendTask(maildir))  # refused
    maildir.open_append(flag="S")  # refused
    maildir.open_append(size_limit="50M")  # refused
    await maildir.append(b"x", newline="LF")  # refused
    await maildir.append(b"x", durability="full")  # refused
    await deliver(b"x", [maildir], on_progress=print)  # refused
    async with maildir.open_append() as task:
        await task.send("text")  # refused
"""


def wanted() -> set[int]:
    return {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# refused")}


def check(checker: str, directory: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", checker, *options],
        cwd=directory,
        env=os.environ | {"MYPYPATH": str(PACKAGE), "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_mypy_refuses_what_is_no_message(tmp_path: Path) -> None:
    """`mypy --strict` finds an error in each line that has one, and in no other."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    said = check("mypy", tmp_path, "--strict", "--no-incremental", "--cache-dir", os.devnull, program.name)

    assert {int(line) for line in re.findall(r"^program\.py:(\d+): error:", said, re.MULTILINE)} == wanted(), said


def test_pyright_refuses_what_is_no_message(tmp_path: Path) -> None:
    """So does pyright in its strict mode."""
    (tmp_path / "program.py").write_text(PROGRAM)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(PACKAGE)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    said = check("pyright", tmp_path, "--outputjson", "--pythonpath", sys.executable)

    found: list[dict[str, Any]] = json.loads(said)["generalDiagnostics"]
    assert {each["range"]["start"]["line"] + 1 for each in found} == wanted(), said
