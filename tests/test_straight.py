"""`Straight`, the way of a message to one maildir: gathered until it is whole or longer than a chunk, and its place."""

import asyncio
import errno
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import GroupCommit, Maildir, UncertainAppendError
from maildir_async.errors import BusyError
from maildir_async.smtp.straight import COST, Straight
from maildir_async.testing import Fault, FaultDisk
from support import Gate, contents, turns
from wire import until

CHUNK: Final = 512 * 1024
both_sizes: Final = pytest.mark.parametrize("size", [10, CHUNK, CHUNK + 1, 3 * CHUNK])


def straight(maildir: Maildir, **options: Any) -> Straight:
    return Straight(maildir, b"X: y\n", newline="lf", deadline=timedelta(hours=1), **options)


async def sent(message: Straight, size: int) -> bytes:
    """Send a message of so many bytes, in ten pieces, and return what is to be stored."""
    content = (b"x" * (size - 2)) + b"\r\n"
    await message.open()
    step = -(-size // 10)
    for begin in range(0, size, step):
        await message.send(content[begin : begin + step])
    return b"X: y\n" + content[:-2] + b"\n"


@both_sizes
async def test_a_message_is_stored_whole(tmp_path: Path, size: int) -> None:
    """Whatever its size; it holds one place from the beginning to the end."""
    commit = GroupCommit(wait=False)
    message = straight(Maildir(tmp_path / "m", commit=commit))
    stored = await sent(message, size)
    assert (commit.statistics().pending, commit.statistics().pending_bytes) == (1, COST)
    (outcome,) = await message.finish()
    assert outcome.delivered is not None
    assert outcome.error is None
    assert commit.statistics().pending == 0
    assert contents(tmp_path / "m") == {"tmp": [], "new": [stored], "cur": []}


async def test_nothing_is_begun_for_a_message_that_is_no_longer_than_a_chunk(tmp_path: Path) -> None:
    """No file, no directory, no thread, until it is whole; a longer one has its file while it comes."""
    commit = GroupCommit()
    message = straight(Maildir(tmp_path / "m", commit=commit))
    await sent(message, CHUNK)
    await turns()
    assert commit.statistics().threads == 0
    assert not (tmp_path / "m").exists()
    await message.send(b"x")
    await until(lambda: bool(contents(tmp_path / "m").get("tmp")))
    message.abort()
    await until(lambda: not contents(tmp_path / "m")["tmp"])


@both_sizes
@pytest.mark.parametrize("finished", [False, True])
async def test_a_message_that_is_given_up_leaves_nothing(tmp_path: Path, size: int, finished: bool) -> None:
    """Nor a place; what comes afterwards is ignored, and its outcome is an error."""
    commit = GroupCommit()
    message = straight(Maildir(tmp_path / "m", commit=commit))
    await sent(message, size)
    message.abort()
    await message.send(b"more")
    outcomes = await message.finish() if finished else message.outcomes()
    assert [outcome.delivered for outcome in outcomes] == [None]
    assert outcomes[0].error is not None
    await until(lambda: not any(contents(tmp_path / "m").values()))
    assert commit.statistics().pending == 0


@both_sizes
async def test_the_truth_is_told_after_a_cancellation(tmp_path: Path, size: int) -> None:
    """`finish` raises it only when it is known what has become of the message; `outcomes` tells that."""
    gate = Gate()
    commit = GroupCommit()
    disk = FaultDisk(Fault("rename_noreplace", gate=gate))
    message = straight(Maildir(tmp_path / "m", commit=commit, disk=disk))
    await Maildir(tmp_path / "m").create()
    stored = await sent(message, size)
    finishing = asyncio.create_task(message.finish())
    await gate.reached()
    for _ in range(3):
        finishing.cancel()
        await turns()
    assert not finishing.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    (outcome,) = message.outcomes()
    assert outcome.delivered is not None
    assert outcome.error is None
    assert contents(tmp_path / "m")["new"] == [stored]
    assert commit.statistics().pending == 0


@both_sizes
async def test_a_failure_is_the_outcome(tmp_path: Path, size: int) -> None:
    """It is not raised: a full disk is told as it is, and so is a directory that could not be synced."""
    commit = GroupCommit()
    await Maildir(tmp_path / "m").create()
    disk = FaultDisk(Fault("write", error=errno.ENOSPC, nth=0))
    message = straight(Maildir(tmp_path / "m", commit=commit, disk=disk))
    await sent(message, size)
    (outcome,) = await message.finish()
    assert outcome.delivered is None
    assert outcome.error is not None
    assert outcome.error.errno == errno.ENOSPC
    assert commit.statistics().pending == 0
    assert not any(contents(tmp_path / "m").values())


async def test_an_uncertain_outcome_is_told_as_one(tmp_path: Path) -> None:
    """The message is visible, and may be lost in a power cut."""
    warm = Maildir(tmp_path / "m")
    await warm.append(b"x")
    disk = FaultDisk(Fault("sync", error=errno.EIO, path="/new", nth=0))
    message = straight(Maildir(tmp_path / "m", disk=disk, create=False))
    await sent(message, 10)
    (outcome,) = await message.finish()
    assert isinstance(outcome.error, UncertainAppendError)
    assert outcome.delivered is None
    assert len(contents(tmp_path / "m")["new"]) == 2


async def test_a_place_is_waited_for_or_refused(tmp_path: Path) -> None:
    """Where the `GroupCommit` waits, `open` does, and gives that up when it is cancelled; else it is `BusyError`."""
    commit = GroupCommit(max_pending=1)
    first, second, third = (straight(Maildir(tmp_path / "m", commit=commit)) for _ in range(3))
    await first.open()
    waiting = [asyncio.create_task(message.open()) for message in (second, third)]
    await turns()
    waiting[0].cancel()
    await turns()
    assert commit.statistics().waiting == 1
    first.abort()
    await waiting[1]
    third.abort()
    assert commit.statistics().pending == 0
    busy = GroupCommit(max_pending=1, wait=False)
    held, refused = (straight(Maildir(tmp_path / "m", commit=busy)) for _ in range(2))
    await held.open()
    with pytest.raises(BusyError):
        await refused.open()
    assert [type(outcome.error) for outcome in refused.outcomes()] == [BusyError]
    held.abort()
