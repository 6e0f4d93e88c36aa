"""A real writer process is killed with SIGKILL at random moments under load, many times over.

Every writer is a fork of one that has delivered already, so this also runs the library in forked children.
"""

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from look import Look
from maildir_async import Delivered, Maildir

IN_FLIGHT = 24


def _message(name: str, size: int) -> bytes:
    """Return a message that tells whether it is whole: its first line gives its length, its last line ends it."""
    body = b"x" * size
    head = b"Subject: %s %d\n\n" % (name.encode(), size)
    return head + body + b"\n-- end\n"


def _is_whole(content: bytes) -> bool:
    head = content.partition(b"\n")[0]
    return content.endswith(b"x\n-- end\n") and len(content) == len(head) + 2 + int(head.split()[-1]) + 8


async def _write_until_killed(path: Path, acknowledge: int, seed: int) -> None:
    """Deliver, many at a time, short and streamed, and tell the name of each message on a pipe once append returned."""
    dice = random.Random(seed)
    maildir = Maildir(path)

    async def stream(message: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(message), 200_000):
            yield message[start : start + 200_000]

    async def writer(number: int) -> None:
        while True:
            size = 600_000 if dice.random() < 0.1 else dice.randint(1, 5000)
            message = _message(f"{seed}-{number}", size)
            given: Any = stream(message) if size > 5000 else message
            delivered = await maildir.append(given, flags="S" if dice.random() < 0.2 else "")
            assert isinstance(delivered, Delivered)
            os.write(acknowledge, delivered.key.encode() + b"\n")  # shorter than PIPE_BUF: in one piece

    await asyncio.gather(*map(writer, range(IN_FLIGHT)))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [15, pytest.param(60, marks=pytest.mark.heavy)])
def test_killed_at_any_moment(tmp_path: Path, kills: int) -> None:
    """What a killed process had acknowledged is whole in the maildir, nothing there is torn, and litter is swept."""
    path = tmp_path / "m"
    asyncio.run(_deliver_one(path))
    look = Look(path)
    acknowledged: set[str] = set()
    litter = 0
    dice = random.Random(7)
    for seed in range(kills):
        before = len(look.names("tmp"))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                asyncio.run(_write_until_killed(path, writer, seed))
            finally:
                os._exit(1)
        os.close(writer)
        first = os.read(reader, 65536)  # it is under way
        killer = threading.Timer(dice.uniform(0, 0.03), os.kill, (pid, signal.SIGKILL))
        killer.start()
        told = [first]
        while piece := os.read(reader, 65536):
            told.append(piece)
        os.close(reader)
        _, status = os.waitpid(pid, 0)
        killer.join()
        assert os.WTERMSIG(status) == signal.SIGKILL
        acknowledged.update(b"".join(told).decode().split())
        now = len(look.names("tmp"))
        assert now - before <= IN_FLIGHT, "more than one file in tmp/ for a delivery in flight"
        litter += now - before
        if seed % 50 == 49 or seed == kills - 1:
            _check_and_empty(look, acknowledged)
    assert litter > kills / 10, "the moments were chosen too kindly"


def _check_and_empty(look: Look, acknowledged: set[str]) -> None:
    present = {}
    for where in ("new", "cur"):
        for name in look.names(where):
            present[name.partition(":")[0]] = look.path / where / name
    assert acknowledged <= present.keys(), sorted(acknowledged - present.keys())[:3]
    for key, file in present.items():
        assert _is_whole(file.read_bytes()), key
        file.unlink()
    foreign = look.path / "tmp" / "young"  # made after the litter, so it stays
    left = look.names("tmp")

    async def sweep() -> list[str]:
        maildir = Maildir(look.path)
        assert await maildir.clean_tmp() == []  # nothing is 36 hours old
        removed = await maildir.clean_tmp(older_than=timedelta(0))
        async with maildir.open_append() as task:  # one in use by this process
            await task.send(b"x" * 600_000)
            while task.bytes_written == 0:
                await asyncio.sleep(0.001)
            foreign.touch()
            assert await maildir.clean_tmp(older_than=timedelta(hours=1)) == []
            assert await maildir.clean_tmp(older_than=timedelta(0)) in ([str(foreign)], [])
            assert look.names("tmp")
        return removed

    removed = asyncio.run(sweep())
    assert sorted(map(os.path.basename, removed)) == left
    for where in ("new", "cur"):
        for name in look.names(where):
            (look.path / where / name).unlink()
    foreign.unlink(missing_ok=True)
    acknowledged.clear()


async def _deliver_one(path: Path) -> None:
    maildir = Maildir(path)
    delivered = await maildir.append(_message("first", 10))
    os.unlink(delivered.path)
