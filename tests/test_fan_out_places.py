"""A message for several maildirs has one place among the pending deliveries, from before its first byte to its end."""

import asyncio
import errno
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import BusyError, GroupCommit, Maildir, Outcome, deliver
from maildir_async.mailbox.fan_out import FanOut
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.testing import Fault, FaultDisk
from support import Gate, contents, forked, turns

MAIL: Final = b"Subject: all\n\nof you\n"
LONG: Final = b"a line of a long message\n" * 60_000  # 1.5 MB


def boxes(root: Path, commit: GroupCommit, count: int = 3, **options: Any) -> list[Maildir]:
    """Return maildirs of which one shares no file with the others."""
    modes = [0o640] + [0o600] * (count - 1)
    return [Maildir(root / f"user{at}", commit=commit, file_mode=mode, **options) for at, mode in enumerate(modes)]


def pending(commit: GroupCommit) -> tuple[int, int, int]:
    """Return messages that have a place, the bytes they may hold, and messages that wait."""
    found = commit.statistics()
    return found.pending, found.pending_bytes, found.waiting


def new(outcomes: list[Outcome]) -> list[list[bytes]]:
    return [contents(outcome.maildir.path).get("new", []) for outcome in outcomes]


FREE: Final = (0, 0, 0)


@pytest.mark.every_loop
@pytest.mark.parametrize("message", [MAIL, LONG], ids=["short", "long"])
async def test_one_place_from_the_first_byte_to_the_end(tmp_path: Path, message: bytes) -> None:
    """However many files it takes, a message has one place while it comes, and none when its outcomes are known."""
    commit = GroupCommit()
    async with FanOut(boxes(tmp_path, commit)) as fan_out:
        for start in range(0, len(message), 10_000):
            await fan_out.send(message[start : start + 10_000])
            assert pending(commit) == (1, 2 * CHUNK_SIZE, 0)
        outcomes = await fan_out.finish()
    assert pending(commit) == FREE
    assert new(outcomes) == [[message]] * 3


async def test_its_cost(tmp_path: Path) -> None:
    """Bytes count as many as they are, what comes bit by bit counts two chunks, and each further prefix as much."""
    commit = GroupCommit()
    gate = Gate()
    maildirs = boxes(tmp_path, commit, disk=FaultDisk(Fault("create", gate=gate)))
    delivering = asyncio.create_task(deliver(MAIL, maildirs))
    await gate.reached()
    assert pending(commit) == (1, len(MAIL), 0)
    gate.open()
    await delivering
    for prefixes, count in (([b"X: a\n"] * 3, 1), ([b"X: a\n", b"X: b\n", b"X: a\n"], 2)):
        async with FanOut(maildirs, prefixes=prefixes) as fan_out:
            await fan_out.open()
            assert pending(commit) == (1, count * 2 * CHUNK_SIZE, 0)
    assert pending(commit) == FREE


async def test_a_full_queue_is_told_before_anything_is_read(tmp_path: Path) -> None:
    """Without a place, nor a wait for one, the outcome is BusyError for all, and the source is not touched."""
    commit = GroupCommit(max_pending=1, wait=False)

    def untouched() -> Iterator[bytes]:
        pytest.fail("it has been read")
        yield b""

    async with FanOut(boxes(tmp_path, commit)) as holder:
        await holder.send(b"x")
        outcomes = await deliver(untouched(), boxes(tmp_path, commit))
        assert [type(outcome.error) for outcome in outcomes] == [BusyError] * 3
        refused = FanOut(boxes(tmp_path, commit))
        with pytest.raises(BusyError):
            await refused.open()
        await refused.send(LONG)
        assert [type(outcome.error) for outcome in await refused.finish()] == [BusyError] * 3
        implicit = FanOut(boxes(tmp_path, commit))
        await implicit.send(LONG)
        assert [type(outcome.error) for outcome in await implicit.finish()] == [BusyError] * 3
        assert pending(commit)[0] == 1
        assert all(outcome.delivered for outcome in await holder.finish())
    assert pending(commit) == FREE


async def test_one_of_two_queues_is_full(tmp_path: Path) -> None:
    """Maildirs of a queue that has a place get the message, whatever the others' queue says."""
    full, free = GroupCommit(max_pending=1, wait=False), GroupCommit(wait=False)
    async with Maildir(tmp_path / "holder", commit=full).open_append():
        maildirs = [*boxes(tmp_path / "full", full), *boxes(tmp_path / "free", free)]
        outcomes = await deliver(LONG, maildirs)
    assert [type(outcome.error) for outcome in outcomes] == [BusyError] * 3 + [type(None)] * 3
    assert new(outcomes) == [[]] * 3 + [[LONG]] * 3
    assert pending(full) == pending(free) == FREE


@pytest.mark.every_loop
async def test_a_place_is_waited_for(tmp_path: Path) -> None:
    """With wait=True a message past the bound is taken when there is a place, and has nothing in memory before."""
    commit = GroupCommit(max_pending=1)
    async with FanOut(boxes(tmp_path, commit)) as first:
        await first.send(LONG)
        waiting = asyncio.create_task(deliver(LONG, boxes(tmp_path, commit)))
        await turns()
        assert pending(commit)[::2] == (1, 1)
        await first.finish()
    assert new(await waiting) == [[LONG] * 2] * 3
    assert pending(commit) == FREE


@pytest.mark.every_loop
async def test_messages_for_two_queues_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Whatever the order of their maildirs, of messages for the same queues none keeps what another waits for."""
    one, two = GroupCommit(max_pending=1), GroupCommit(max_pending=1)
    both = [Maildir(tmp_path / "one", commit=one), Maildir(tmp_path / "two", commit=two)]
    orders = [both, both[::-1]] * 10
    async with asyncio.timeout(30):
        found = await asyncio.gather(*(deliver([LONG[:700_000], LONG[700_000:]], order) for order in orders))
    assert all(outcome.delivered for outcomes in found for outcome in outcomes)
    assert pending(one) == pending(two) == FREE


async def test_copies_and_further_tries_need_no_further_place(tmp_path: Path) -> None:
    """What cannot be linked, or made in the first maildir, goes on with the place that the message has."""
    commit = GroupCommit(max_pending=1, wait=False)
    faults = [Fault("link", error=errno.EXDEV, nth=0), Fault("create", error=errno.EACCES, nth=0, path="user1/")]
    maildirs = boxes(tmp_path, commit, 5, disk=FaultDisk(*faults))
    outcomes = await deliver([LONG[:700_000], LONG[700_000:]], maildirs)
    assert [outcome.error and outcome.error.errno for outcome in outcomes] == [None, errno.EACCES, None, None, None]
    assert pending(commit) == FREE


@pytest.mark.every_loop
@pytest.mark.parametrize("size", [0, 10, 1_000_000])
async def test_what_is_given_up_has_no_place(tmp_path: Path, size: int) -> None:
    """By an abort, a refusal, an exception, or being thrown away, at whatever point, the place is free at once."""
    commit = GroupCommit()

    async def begun() -> FanOut:
        fan_out = FanOut(boxes(tmp_path, commit))
        await fan_out.open()
        await fan_out.send(LONG[:size])
        assert pending(commit)[0] == 1
        return fan_out

    for _ in range(3):
        fan_out = await begun()
        fan_out.abort()
        assert pending(commit) == FREE
        await fan_out.finish()
        fan_out = await begun()
        fan_out.fail(BusyError("no"))
        assert pending(commit) == FREE
        await fan_out.finish()
        with pytest.raises(ZeroDivisionError):
            async with await begun():
                raise ZeroDivisionError
        assert pending(commit) == FREE
    closed = boxes(tmp_path, commit)
    for maildir in closed:
        await maildir.aclose()
    assert not any(outcome.delivered for outcome in await deliver(LONG, closed))
    assert pending(commit) == FREE


@pytest.mark.every_loop
async def test_waiting_for_a_place_can_be_cancelled(tmp_path: Path) -> None:
    """Whoever waits and is cancelled, or gives up, has no place, and keeps nobody from one."""
    commit = GroupCommit(max_pending=1)
    async with FanOut(boxes(tmp_path, commit)) as holder:
        await holder.open()
        waiting = asyncio.create_task(deliver(LONG, boxes(tmp_path, commit)))
        fan_out = FanOut(boxes(tmp_path, commit))
        opening = asyncio.create_task(fan_out.open())
        await turns()
        assert pending(commit)[::2] == (1, 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        fan_out.abort()
        await opening
        assert pending(commit)[::2] == (1, 0)
    assert pending(commit) == FREE


@pytest.mark.every_loop
async def test_a_message_that_cannot_be_withdrawn_keeps_its_place(tmp_path: Path) -> None:
    """Given up too late, in the hands of group commit, a message is pending until it is settled."""
    commit = GroupCommit()
    gate = Gate()
    fan_out = FanOut(boxes(tmp_path, commit, disk=FaultDisk(Fault("sync", gate=gate))))
    await fan_out.send(MAIL)
    finishing = asyncio.create_task(fan_out.finish())
    await gate.reached()
    fan_out.abort()
    assert pending(commit)[0] == 1
    gate.open()
    await finishing
    assert pending(commit) == FREE


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_a_loop_that_vanishes_frees_its_places(tmp_path: Path, size: int) -> None:
    """Closed with messages that come, or wait, a loop leaves no place taken, and nothing in tmp/."""
    commit = GroupCommit(max_pending=1)

    async def begin() -> None:
        fan_out = FanOut(boxes(tmp_path, commit))
        await fan_out.open()
        await fan_out.send(LONG[:size])
        stuck.extend([fan_out, asyncio.ensure_future(deliver(LONG, boxes(tmp_path, commit)))])
        await turns()
        assert pending(commit)[::2] == (1, 1)

    stuck: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but it is pending"
    loop.close()
    stuck.clear()
    assert commit.wait_idle(30)  # a thread that writes has what it writes for
    gc.collect()
    assert pending(commit) == FREE
    assert commit.wait_idle(30)
    assert not any(found for maildir in boxes(tmp_path, commit) for found in contents(maildir.path).values())


async def test_a_fork_takes_no_place_with_it(tmp_path: Path) -> None:
    """In a forked child nothing is pending, also when it lets go of what its parent has; the parent goes on."""
    commit = GroupCommit(max_pending=1, wait=False)
    async with FanOut(boxes(tmp_path, commit)) as fan_out:
        await fan_out.send(LONG)

        def child() -> list[tuple[int, int, int]]:
            before = pending(commit)
            holder = FanOut(boxes(tmp_path / "child", commit))
            asyncio.new_event_loop().run_until_complete(holder.open())
            for place in (fan_out._places or {}).values():
                place.release()
            return [before, pending(commit)]

        assert forked(child) == [[FREE, (1, 2 * CHUNK_SIZE, 0)]]
        assert pending(commit)[0] == 1
        assert all(outcome.delivered for outcome in await fan_out.finish())
    assert pending(commit) == FREE
