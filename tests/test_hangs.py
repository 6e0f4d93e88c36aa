"""A disk that hangs, in whichever call: it holds up nobody but the message, or the directory, that the call is for."""

import asyncio
import errno
import os
import time
from collections.abc import Coroutine
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final

import pytest

from look import descriptors, until
from maildir_async import (
    Delivered,
    Durability,
    GroupCommit,
    Maildir,
    MaildirError,
    Quota,
    UncertainAppendError,
    deliver,
)
from maildir_async.commit import target
from maildir_async.format.quota import parse_held
from maildir_async.testing import Fault, FaultDisk
from order import OrderDisk
from support import PATIENCE_S, Gate, contents

NAMES: Final = ("a", "b", "c")


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is soon given up. Nothing that is tested here depends on when."""
    for module in ("commit.queue", "group_commit"):
        monkeypatch.setattr(f"maildir_async.{module}.PATIENCE_S", 0.05)


#: What has to go wrong before the calls come that are made only then.
SCENARIOS: Final[dict[str, list[Fault]]] = {
    "all is well": [],
    "syncfs": [],
    "first use": [],
    "no renameat2": [Fault("rename_noreplace", errno.EINVAL, nth=0)],
    "nor links": [Fault("rename_noreplace", errno.EINVAL, nth=0), Fault("link", errno.EPERM, nth=0)],
    "a lost reply": [Fault("rename_noreplace", errno.EIO, nth=2, late=True)],
    "failures": [Fault("write", errno.EIO, nth=2), Fault("sync", errno.EIO, nth=3), Fault("close", errno.EIO, nth=4)],
    "quota": [],
    "quota, counted anew": [Fault("read", errno.EIO, nth=0, path="maildirsize")],
    "an odd one": [Fault("create", errno.ENOENT, nth=0, path="/b/"), Fault("link", errno.ENOENT, nth=1)],
}


class Batch:
    """Messages for three maildirs that go together: short ones, with links, with flags, and one that is a stream."""

    def __init__(self, root: Path, scenario: str) -> None:
        self.disk = OrderDisk()
        self.commit = GroupCommit(syncfs=scenario == "syncfs")
        self._quota = Quota(messages=100) if scenario.startswith("quota") else None
        self.maildirs = {name: self._maildir(root / name) for name in NAMES}
        self.other = self._maildir(root / "other")
        self._faults = [
            Fault(fault.operation, fault.error, nth=fault.nth, path=fault.path, late=fault.late)
            for fault in SCENARIOS[scenario]
        ]
        self._is_first_use = scenario == "first use"
        self.tasks: dict[str, list[asyncio.Future[Any]]] = {}

    def _maildir(self, path: Path) -> Maildir:
        return Maildir(path, disk=self.disk, commit=self.commit, file_mode=0o640, quota=self._quota)

    async def begin(self, *faults: Fault) -> None:
        """Have all of them begun, with more faults than those of the scenario."""
        if not self._is_first_use:
            for maildir in self.maildirs.values():
                await maildir.append(b"first use")
        await self.other.append(b"first use")
        self.disk.calls.clear()
        self.disk.faults += [*faults, *self._faults]
        for name, maildir in self.maildirs.items():
            self.tasks[name] = [
                asyncio.ensure_future(message)
                for message in (
                    maildir.append(f"{name} 1".encode()),
                    maildir.append(f"{name} 2".encode(), flags="S", received_at=1e9),
                    maildir.append(f"{name} 3".encode()),
                )
            ]
        self.tasks["all"] = [asyncio.ensure_future(deliver(b"all", list(self.maildirs.values())))]

    @property
    def hanging(self) -> set[str]:
        """Whose messages are not all settled."""
        return {name for name, tasks in self.tasks.items() if not all(task.done() for task in tasks)}

    async def settled(self) -> None:
        """Wait for all, and see that what is told of each is true."""
        told: list[tuple[bytes, Delivered | BaseException]] = []
        for name, tasks in self.tasks.items():
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
            if name == "all":
                outcomes: Any = results[0]
                told += [(b"all", outcome.delivered or outcome.error) for outcome in outcomes]
            else:
                told += [(f"{name} {number}".encode(), result) for number, result in enumerate(results, 1)]
        there = sorted(
            message for maildir in self.maildirs.values() for message in _messages(maildir) if message != b"first use"
        )
        assert there == sorted(
            message for message, result in told if isinstance(result, Delivered | UncertainAppendError)
        )
        assert all(isinstance(result, Delivered | MaildirError) for _, result in told), told
        self.disk.check([result for _, result in told if isinstance(result, Delivered)])
        assert not any(contents(maildir.path).get("tmp") for maildir in self.maildirs.values())


def _messages(maildir: Maildir) -> list[bytes]:
    found = contents(maildir.path)
    return found.get("new", []) + found.get("cur", [])


async def _within_seconds(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def _hangs_at(root: Path, scenario: str, nth: int) -> str | None:
    """Have the so-manyth call hang; return which it was, if there were so many."""
    gate = Gate()
    batch = Batch(root, scenario)
    fault = Fault("", nth=nth, gate=gate)
    await batch.begin(fault)
    await _within_seconds(lambda: gate.is_reached or not batch.hanging)
    which = f"{batch.disk.calls[nth - 1]}" if gate.is_reached else None
    if which is None or "sync_file_system" in which:  # for which all wait together
        gate.open()
    # All are settled but those of one maildir, or of the one message that goes to all of them.
    await _within_seconds(lambda: len(batch.hanging - {"all"}) <= 1)
    # Those that come later are delivered too, wherever to; but what a quota counts is counted one after the other.
    batch.disk.faults.clear()
    busy = {name for name in batch.maildirs if scenario.startswith("quota") and f"{root}/{name}" in f"{which}"}
    free = [maildir for name, maildir in batch.maildirs.items() if name not in busy]
    others = [batch.other.append(b"later"), *(maildir.append(b"first use") for maildir in free)]
    later = await asyncio.wait_for(asyncio.gather(*others), PATIENCE_S)
    batch.disk.check(later)
    gate.open()
    await batch.settled()
    assert await asyncio.to_thread(batch.commit.wait_idle, PATIENCE_S)
    return which


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("step", [31, pytest.param(3, marks=pytest.mark.heavy)])
def test_whatever_call_hangs_the_others_are_delivered(tmp_path: Path, scenario: str, step: int) -> None:
    """Each call in turn hangs until all others have been delivered; then what is told of its message is true."""
    before = len(os.listdir("/proc/self/fd"))
    hung = set[str]()
    nth = 1
    while which := asyncio.run(_hangs_at(tmp_path / str(nth), scenario, nth)):
        hung.add(which.split("'")[1])
        until(lambda: not descriptors(tmp_path))
        assert not target._open
        nth += max(step, 5) if scenario.startswith("quota") else step  # which asks for more at each call
    assert len(hung) > (4 if step == 3 else 2), hung
    until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)  # what the kernel's own syncs go by may stay


def _settle(*awaitables: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.wait_for(asyncio.gather(*awaitables), PATIENCE_S)


@pytest.mark.parametrize("same", [True, False], ids=["in the same group commit", "in another"])
async def test_seventy_hung_syncs_stop_no_healthy_disk(tmp_path: Path, same: bool) -> None:
    """However many syncs hang on one disk, messages on another are synced side by side, and delivered."""
    gate = Gate()
    hangs, commit = GroupCommit(), GroupCommit()
    disk = FaultDisk(Fault("sync", gate=gate, nth=0, path="/hangs/tmp/"))
    maildir = Maildir(tmp_path / "hangs", commit=hangs, disk=disk)
    await maildir.create()
    hanging: list[asyncio.Future[Any]] = []
    for number in range(70):
        hanging.append(asyncio.ensure_future(maildir.append(b"%d" % number)))
        if number % 10 == 9:  # in rounds of ten
            await _within_seconds(lambda: sum(call.operation == "sync" for call in disk.calls) >= len(hanging))
    healthy = Maildir(tmp_path / "healthy", commit=hangs if same else commit, disk=FaultDisk())
    for _ in range(3):
        await _settle(*(healthy.append(b"%d" % number) for number in range(40)))
    assert not any(task.done() for task in hanging)
    gate.open()
    await asyncio.wait_for(asyncio.gather(*hanging), PATIENCE_S)
    assert len(contents(maildir.path)["new"]) == 70
    assert await asyncio.to_thread(hangs.wait_idle, PATIENCE_S)
    until(lambda: not descriptors(tmp_path))


async def test_blocked_pipes_stop_no_message_of_another_group_commit(tmp_path: Path) -> None:
    """However many callers' files block their readers, another group commit has threads to read one of its own."""
    blocked, healthy = (
        Maildir(tmp_path / "blocked", commit=GroupCommit()),
        Maildir(tmp_path / "m", commit=GroupCommit()),
    )
    pipes = [os.pipe() for _ in range(64)]
    files = [os.fdopen(reader, "rb", buffering=0) for reader, _ in pipes]
    reading = [asyncio.ensure_future(blocked.append(file)) for file in files]
    try:
        await _within_seconds(lambda: blocked.commit.readers.threads == 64)
        message = EmailMessage()
        message["Subject"] = "not blocked"
        await _settle(healthy.append(message))
        await _settle(healthy.append(b"x" * 600_000), healthy.append([b"y"]))
        with open(__file__, "rb") as source:
            await _settle(healthy.append(source))
    finally:
        for _, writer in pipes:
            os.close(writer)
        await asyncio.wait_for(asyncio.gather(*reading), PATIENCE_S)
        for file in files:
            file.close()


@pytest.mark.parametrize("where", ["/new/", "/new"], ids=["rename", "directory"])
async def test_each_that_was_left_behind_goes_its_own_way(tmp_path: Path, where: str) -> None:
    """Of two whose syncs hang, and end, the one that hangs again does not hold the other."""
    syncs, again = Gate(), Gate()
    disk = FaultDisk()
    commit = GroupCommit()
    a, b, c = (Maildir(tmp_path / name, disk=disk, commit=commit) for name in "abc")
    for maildir in (a, b, c):
        await maildir.append(b"first use")
    operation = "rename_noreplace" if where == "/new/" else "sync"
    disk.faults += [Fault("sync", gate=syncs, path=f"/{name}/tmp/") for name in "ab"]
    disk.faults.append(Fault(operation, gate=again, path=f"/a{where}"))
    hanging, other, third = (asyncio.ensure_future(maildir.append(b"message")) for maildir in (a, b, c))
    await asyncio.wait_for(third, PATIENCE_S)
    assert [hanging.done(), other.done()] == [False, False]
    syncs.open()
    await asyncio.wait_for(other, PATIENCE_S)
    await again.reached()
    assert not hanging.done()
    again.open()
    await asyncio.wait_for(hanging, PATIENCE_S)
    assert await asyncio.to_thread(commit.wait_idle, PATIENCE_S)


@pytest.mark.parametrize("durability", [Durability.FULL, Durability.FILE])
@pytest.mark.parametrize("operation", ["create", "write", "chmod"])
async def test_what_is_left_behind_before_its_sync_is_synced(
    tmp_path: Path, operation: str, durability: Durability
) -> None:
    """A message that hangs in being written is finished alone: synced before it is published, or not published."""
    gate, disk = Gate(), OrderDisk()
    commit = GroupCommit()
    maildir = Maildir(tmp_path / "m", disk=disk, commit=commit, file_mode=0o640, durability=durability)
    await maildir.append(b"first use")
    disk.faults.append(Fault(operation, gate=gate, nth=2))
    hanging = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(3)]
    done, pending = await asyncio.wait(hanging, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(pending)) in ((2, 1), (1, 2))
    disk.faults.append(Fault("sync", errno.EIO, path="/m/tmp/"))
    gate.open()
    results = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(result) for result in results].count(Delivered) == 2
    assert sorted(contents(maildir.path)["new"]) == sorted([b"first use", b"0", b"2"])
    assert contents(maildir.path)["tmp"] == []
    with suppress(MaildirError):
        await maildir.append(b"the next")


@pytest.mark.parametrize("operation", ["open_file", "write", "stat"])
async def test_a_quota_that_cannot_be_recorded_holds_up_nobody_else(tmp_path: Path, operation: str) -> None:
    """While writing to `maildirsize` hangs, other maildirs get their mail, and can be closed; then it is recorded."""
    gate, commit, disk = Gate(), GroupCommit(), FaultDisk()
    maildir = Maildir(tmp_path / "m", commit=commit, disk=disk, quota=Quota(messages=10))
    other = Maildir(tmp_path / "other", commit=commit, disk=disk, quota=Quota(messages=10))
    for each in (maildir, other, maildir, other):
        await each.append(b"first use")
    nth = 3 if operation == "stat" else 1  # when it is admitted, before it is recorded, and after
    disk.faults.append(Fault(operation, gate=gate, path=f"{tmp_path}/m/maildirsize", nth=nth))
    hung = asyncio.ensure_future(maildir.append(b"hung"))
    await gate.reached()
    assert sorted(contents(maildir.path)["new"]) == [b"first use", b"first use", b"hung"]
    await _settle(*(other.append(b"%d" % number) for number in range(5)))
    await _settle(other.aclose())
    closing = asyncio.ensure_future(maildir.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    assert not hung.done()
    gate.open()
    assert isinstance(await hung, Delivered)
    await closing
    assert await asyncio.to_thread(commit.wait_idle, PATIENCE_S)
    for each, messages in ((maildir, 3), (other, 7)):
        held = parse_held(Path(each.path, "maildirsize").read_bytes())
        assert held is not None
        assert held.messages == messages
