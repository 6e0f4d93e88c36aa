"""Faults that have been, each with its kind: none of them comes back."""

import asyncio
import errno
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from look import descriptors, until
from maildir_async import AppendTask, Delivered, GroupCommit, Maildir, MaildirError, UncertainAppendError
from maildir_async.commit.entry import Entry
from maildir_async.commit.rounds import Round
from maildir_async.disk import directories
from maildir_async.format.names import UniqueNames
from maildir_async.testing import Fault, FaultDisk
from order import OrderDisk
from support import PATIENCE_S, Gate, contents, turns

# Durable, and its directory never synced.


async def _appended(maildirs: list[Maildir], disk: OrderDisk, **options: Any) -> list[Delivered | BaseException]:
    """Have two messages delivered to each of *maildirs*, in one round, and see that those told durable are."""
    messages = [maildir.append(b"%d" % number, **options) for maildir in maildirs for number in range(2)]
    results = await asyncio.wait_for(asyncio.gather(*messages, return_exceptions=True), PATIENCE_S)
    assert all(isinstance(result, Delivered | MaildirError) for result in results), results
    return list(results)


@pytest.mark.parametrize("flags", ["", "S"])
@pytest.mark.parametrize("more", [0, 1, 2])
async def test_what_is_published_is_synced_whatever_becomes_of_the_next(tmp_path: Path, more: int, flags: str) -> None:
    """The next message finds the directory gone, and it cannot be opened anew: the first is synced all the same."""
    disk = OrderDisk()
    maildirs = [Maildir(tmp_path / name, disk=disk, commit=GroupCommit()) for name in "a"]
    await maildirs[0].append(b"first use", flags=flags)
    disk.faults += [Fault("rename_noreplace", errno.ENOENT, nth=nth) for nth in range(2, 3 + more)]
    where = f"/a/{'cur' if flags else 'new'}"
    disk.faults += [Fault("open_directory", errno.EMFILE, nth=nth, path=where) for nth in range(2, 6)]
    results = await _appended(maildirs, disk, flags=flags)
    assert isinstance(results[0], Delivered)
    disk.check(result for result in results if isinstance(result, Delivered))


@pytest.mark.parametrize("operation", ["rename_noreplace", "sync", "close", "open_directory"])
async def test_a_maildir_that_is_renamed_between_two_messages(tmp_path: Path, operation: str) -> None:
    """Wherever each message then is: its directory has been synced after it was published there."""
    for nth in range(1, 8):
        disk = OrderDisk()
        root = tmp_path / str(nth)
        maildir = Maildir(root / "m", disk=disk, commit=GroupCommit())
        await maildir.append(b"first use")
        gate = lambda root=root: (root / "m").rename(root / "away")  # noqa: E731
        disk.faults.append(Fault(operation, nth=nth, gate=gate))
        results = await _appended([maildir], disk)
        for result in results:
            if isinstance(result, Delivered):
                path = Path(result.path)
                if not path.exists():
                    path = root / "away" / path.relative_to(root / "m")
                found, directory = path.stat(), path.parent.stat()
                where = (directory.st_dev, directory.st_ino)
                at = disk.events.index(("publish", (found.st_dev, found.st_ino), where))
                assert ("sync", where, where) in disk.events[at:], "told durable, and its directory not synced"
            else:
                assert isinstance(result, MaildirError)


# A leader that crashes, or was deposed.

crashes: Final = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Defect(BaseException):
    """What no code of ours expects."""


def _raise() -> None:
    raise Defect


async def _afterwards(
    tmp_path: Path, maildir: Maildir, results: list[Any], sent: list[bytes], *, closes: bool = True
) -> None:
    """Each has its answer, which is true; the next messages find a leader; nothing is left open, or in tmp/."""
    there = contents(maildir.path)
    for message, result in zip(sent, results, strict=True):
        assert isinstance(result, Delivered | MaildirError), result
        assert there.get("new", []).count(message) == isinstance(result, Delivered | UncertainAppendError)
    await asyncio.wait_for(maildir.append(b"the next"), PATIENCE_S)
    assert await asyncio.to_thread(maildir.commit.wait_idle, PATIENCE_S)
    assert maildir.statistics().in_flight == 0
    assert maildir.commit.statistics().pending == 0
    if closes:  # or it was a close that did not
        until(lambda: not descriptors(tmp_path), 5)


@crashes
@pytest.mark.parametrize("first_use", [True, False])
async def test_a_defect_at_any_call(tmp_path: Path, first_use: bool) -> None:
    """Whatever a call raises that no call may: all get their answers, and the next batch a leader."""
    for nth in range(1, 200):
        disk = FaultDisk()
        maildir = Maildir(tmp_path / str(nth), disk=disk, commit=GroupCommit())
        if not first_use:
            await maildir.append(b"first use")
        fault = Fault("", nth=nth, gate=_raise)
        disk.calls.clear()
        disk.faults.append(fault)
        sent = [b"%d" % number for number in range(3)]
        messages = [asyncio.ensure_future(maildir.append(message)) for message in sent]
        results = await asyncio.wait_for(asyncio.gather(*messages, return_exceptions=True), PATIENCE_S)
        disk.faults.clear()
        closes = fault.seen < nth or disk.calls[nth - 1].operation != "close"
        await _afterwards(tmp_path / str(nth), maildir, results, sent, closes=closes)
        if fault.seen < nth:
            break
    else:
        raise AssertionError("it never came to an end")


@crashes
@pytest.mark.parametrize("where", ["names", "round", "driving", "memory"])
async def test_a_leader_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A mistake of ours, or no memory, wherever: all get their answers, and those who wait by then a new leader."""
    gate = Gate()
    disk = FaultDisk(Fault("sync", gate=gate, path="/m/tmp/"))
    maildir = Maildir(tmp_path / "m", disk=disk, commit=GroupCommit())
    await maildir.create()
    calls = 0

    def once(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == (2 if where != "names" else 1):
                raise MemoryError if where == "memory" else RuntimeError("a defect")
            return original(*args, **kwargs)

        return call

    first = asyncio.ensure_future(maildir.append(b"first"))
    if where in ("round", "memory"):
        monkeypatch.setattr("maildir_async.commit.queue.Round", once(Round))
    elif where == "driving":
        monkeypatch.setattr(Round, "drive", once(Round.drive))
    await gate.reached()
    if where == "names":
        monkeypatch.setattr(UniqueNames, "take", once(UniqueNames.take))
    sent = [b"%d" % number for number in range(200)]  # more than one batch
    messages = [asyncio.ensure_future(maildir.append(message)) for message in sent]
    await turns()
    gate.open()
    results = await asyncio.wait_for(asyncio.gather(*messages, return_exceptions=True), PATIENCE_S)
    assert isinstance(await first, Delivered)
    assert calls
    assert any(isinstance(result, Delivered) for result in results), "no new leader came"
    assert any(isinstance(result, MaildirError) for result in results)
    await _afterwards(tmp_path, maildir, results, sent)


@crashes
@pytest.mark.parametrize("operation", ["create", "write", "close", "rename_noreplace", "open_directory", "stat"])
async def test_a_deposed_thread_that_fails_ends_no_living_round(tmp_path: Path, operation: str) -> None:
    """What hung, and then raises what nobody expects, fails alone, while the round that it was in is still at work."""
    hangs, living = Gate(), Gate()

    def fail() -> None:
        hangs()
        raise Defect

    commit = GroupCommit()
    commit.queue.patience_s = commit._watch._interval_s = 0.05
    disk = FaultDisk()
    maildirs = [Maildir(tmp_path / name, disk=disk, commit=commit) for name in "ab"]
    for maildir in maildirs:
        await maildir.append(b"first use")
    disk.faults += [Fault(operation, gate=fail, path="/a/"), Fault("sync", gate=living, path="/b/new")]
    hanging = [asyncio.ensure_future(maildirs[0].append(b"%d" % number)) for number in range(2)]
    others = [asyncio.ensure_future(maildirs[1].append(b"%d" % number)) for number in range(3)]
    await hangs.reached()
    await living.reached()
    hangs.open()
    results = await asyncio.wait_for(asyncio.gather(*hanging, return_exceptions=True), PATIENCE_S)
    assert not any(isinstance(result, Defect) for result in results)
    living.open()
    assert all(isinstance(result, Delivered) for result in await asyncio.wait_for(asyncio.gather(*others), PATIENCE_S))
    await _afterwards(tmp_path, maildirs[0], results, [b"0", b"1"], closes=operation != "close")


# What is not wanted any more leaves nothing.


async def test_withdrawn_messages_leave_nothing_in_the_queue(tmp_path: Path) -> None:
    """While a disk hangs, hundreds of messages come and are cancelled: neither they nor their bytes are kept."""
    gate, message = Gate(), bytes(bytearray(1000))
    commit = GroupCommit(max_pending=100_000)
    commit._watch._interval_s = 1000.0  # or what hangs would be left behind
    maildir = Maildir(tmp_path / "m", disk=FaultDisk(Fault("create", gate=gate)), commit=commit)
    hanging = asyncio.ensure_future(maildir.append(b"hangs"))
    await gate.reached()
    before = sys.getrefcount(message)
    for _ in range(3):
        tasks = [asyncio.ensure_future(maildir.append(message)) for _ in range(200)]
        await turns(3)
        assert commit.statistics().queued == 200
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        tasks.clear()
    del task
    await turns(3)
    gc.collect()  # a traceback has what was passed to it
    assert sys.getrefcount(message) == before
    assert commit.statistics().queued == len(commit.queue) == 0
    assert commit.statistics().pending == 1
    assert sum(type(found) is Entry for found in gc.get_objects()) < 10
    gate.open()
    await hanging
    assert contents(maildir.path)["new"] == [b"hangs"]


async def test_a_withdrawn_message_keeps_no_bytes(tmp_path: Path) -> None:
    """Also for who keeps the task, or waits with it, nothing of the message is held."""
    gate, message = Gate(), bytes(bytearray(1000))
    commit = GroupCommit()
    commit._watch._interval_s = 1000.0
    maildir = Maildir(tmp_path / "m", disk=FaultDisk(Fault("create", gate=gate)), commit=commit)
    hanging = asyncio.ensure_future(maildir.append(b"hangs"))
    await gate.reached()
    before = sys.getrefcount(message)
    tasks = [AppendTask(maildir, message) for _ in range(100)]
    for task in tasks:
        task.start()
    await turns(3)
    for task in tasks:
        assert task.cancel()
    await turns(3)
    gc.collect()
    assert sys.getrefcount(message) == before
    gate.open()
    await hanging


def test_a_stream_that_is_thrown_away_leaves_no_file(tmp_path: Path) -> None:
    """Where no watch looks, its finalizer has the file removed: the loop is closed, and nobody holds the task."""
    commit = GroupCommit()
    commit._watch._interval_s = 1000.0
    maildir = Maildir(tmp_path / "m", commit=commit)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        task = AppendTask(maildir)
        await task.send(b"x" * 600_000)
        await task.until_file()
        while not task.bytes_written:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(commit.wait_idle, PATIENCE_S)

    loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    assert len(contents(maildir.path)["tmp"]) == 1
    loop.close()
    del loop
    gc.collect()
    until(lambda: contents(maildir.path)["tmp"] == [], 10)
    until(lambda: not descriptors(tmp_path), 10)


async def test_maildirs_that_cannot_be_made_are_not_remembered(tmp_path: Path) -> None:
    """However many are tried in vain, nothing of them is kept."""
    (tmp_path / "file").touch()
    commit = GroupCommit()
    before = len(directories._durable)
    for number in range(500):
        for path in (tmp_path / "file" / str(number), tmp_path / "none" / str(number)):
            with pytest.raises(MaildirError):
                await Maildir(path, commit=commit, create="none" not in path.parts).append(b"message")
    gc.collect()
    assert len(directories._durable) <= before
    assert sum(type(found) is Entry for found in gc.get_objects()) < 10


@pytest.mark.parametrize("linked", [False, True])
async def test_a_sweeper_beside_eight_appenders(tmp_path: Path, linked: bool) -> None:
    """Nothing is old enough to be taken from those who are writing it: by whatever path, no delivery fails."""
    maildir = Maildir(tmp_path / "m", commit=GroupCommit())
    await maildir.create()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    sweeper = Maildir(tmp_path / ("link" if linked else "m"))
    over = False

    async def sweep() -> None:
        while not over:
            await sweeper.clean_tmp(timedelta(0))

    sweeping = asyncio.ensure_future(sweep())
    async with maildir.open_append() as task:
        for _ in range(10):
            await asyncio.gather(*(maildir.append(b"%d" % number) for number in range(8)))
            await task.send(b"x" * 200_000)
    over = True
    await sweeping
    assert len(contents(maildir.path)["new"]) == 81


# Half-made maildirs, and the end of the process.


@pytest.mark.parametrize("missing", ["cur", "new", "tmp"])
@pytest.mark.parametrize("flags", ["", "S"])
async def test_a_half_made_maildir_is_repaired_by_its_first_message(tmp_path: Path, missing: str, flags: str) -> None:
    """Whichever of the three is missing, and wherever the message goes: all are there when it is told delivered."""
    for name in {"cur", "new", "tmp"} - {missing}:
        (tmp_path / "m" / name).mkdir(parents=True)
    await Maildir(tmp_path / "m").append(b"message", flags=flags)
    assert sorted(os.listdir(tmp_path / "m")) == ["cur", "new", "tmp"]


def _run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)


AT_EXIT: Final = """
import asyncio, sys
from maildir_async import Maildir

async def main():
    maildir = Maildir(sys.argv[1])
    for number in range(200):
        asyncio.ensure_future(maildir.append(b"%d" % number))
    stream = maildir.open_append()
    await stream.send(b"x" * 600_000)
    while not stream.bytes_written:
        await asyncio.sleep(0.001)

loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda *_: None)
loop.run_until_complete(main())
"""


def test_at_the_end_of_the_process_deliveries_are_seen_through(tmp_path: Path) -> None:
    """What group commit has is delivered whole, what was being received is removed, and nothing is left in tmp/."""
    ended = _run(AT_EXIT, tmp_path / "m")
    assert ended.returncode == 0, ended.stderr
    found = contents(tmp_path / "m")
    assert found["tmp"] == []
    assert sorted(found["new"]) == sorted(b"%d" % number for number in range(200))


# Cold processes.

COLD: Final = """
import asyncio, resource, sys
from maildir_async import Maildir, deliver
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))

async def main():
    root, count = sys.argv[1], int(sys.argv[4])
    if sys.argv[3] == "append":
        maildir = Maildir(root)
        results = await asyncio.gather(*(maildir.append(b"%d" % at) for at in range(count)), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
    else:
        outcomes = await deliver(b"message", [Maildir(f"{root}/{at}") for at in range(count)])
        failed = [outcome.error for outcome in outcomes if outcome.error]
    assert not failed, (len(failed), failed[0])

asyncio.run(main())
"""


@pytest.mark.parametrize(("limit", "how", "count"), [(80, "append", 100), (128, "deliver", 300)])
def test_a_cold_process_with_few_descriptors(tmp_path: Path, limit: int, how: str, count: int) -> None:
    """More messages, or more maildirs, than it may have files open: all are delivered."""
    ended = _run(COLD, tmp_path, limit, how, count)
    assert ended.returncode == 0, ended.stderr


NO_IMPORTS: Final = """
import asyncio, email.message, errno, os, sys
import anyio
from datetime import timedelta
from maildir_async import GroupCommit, Maildir, MaildirError, deliver
from maildir_async.format.names import UniqueNames
from maildir_async.testing import Fault, FaultDisk

root = sys.argv[1]

async def main():
    await Maildir(f"{root}/first").append(b"first")
    message = email.message.EmailMessage()  # which imports what it needs by itself
    message["Subject"] = "no imports"
    message.set_content("at all: \\u00e4")
    if sys.argv[2] == "chroot":
        os.chroot(root)
        os.chdir("/")
        where = "/"
    else:
        where = root
    sys.path.clear()
    sys.path_importer_cache.clear()
    before = set(sys.modules)
    files = []
    if sys.argv[2] == "full":
        while True:
            try:
                files.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(30):  # for the deliveries themselves
            os.close(files.pop())

    async def chunks():
        for _ in range(20):
            yield b"x" * 100_000

    maildir = Maildir(f"{where}/m")
    await maildir.append(message)
    await maildir.append(chunks())
    await maildir.append(b"x", flags="S", received_at=1e9, prefix=b"X: y\\n", newline="crlf")
    await maildir.append_many([b"1", b"2"])
    assert all(outcome.delivered for outcome in await deliver(chunks(), [maildir, Maildir(f"{where}/n")]))
    for number in (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE):
        for operation in ("create", "write", "sync", "rename_noreplace", "open_directory"):
            disk = FaultDisk(Fault(operation, number, nth=0))
            for content in (b"x", chunks()):
                try:
                    await Maildir(f"{where}/o", disk=disk, commit=GroupCommit()).append(content)
                except MaildirError as exc:
                    str(exc), exc.smtp_reply, exc.temporary
                else:
                    raise AssertionError((number, operation))
            await deliver(b"x", [Maildir(f"{where}/o{at}", disk=disk) for at in range(2)])
    for turns in range(4):
        for content in (b"x", chunks(), message):
            task = asyncio.ensure_future(maildir.append(content))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
    with anyio.move_on_after(0):
        await maildir.append(chunks())
    send, receive = anyio.create_memory_object_stream(5)
    await send.send(b"x")
    send.close()
    await maildir.append(receive)
    await maildir.index()
    await maildir.clean_tmp(timedelta(0))
    await maildir.check_room()
    maildir.statistics(), repr(maildir)
    await maildir.aclose()
    for fd in files:
        os.close(fd)
    return sorted(set(sys.modules) - before)

found = asyncio.run(main())
assert not found, found
"""


@pytest.mark.parametrize("how", ["path", "full", "chroot"])
def test_nothing_is_imported_late(tmp_path: Path, how: str) -> None:
    """After the first message: neither errors, cancellations, streams nor email messages import anything."""
    if how == "chroot" and os.geteuid():
        pytest.skip("NOT TESTED: only root may chroot")
    script = NO_IMPORTS
    if how == "full":
        script = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n" + script
    ended = _run(script, tmp_path, how)
    assert ended.returncode == 0, ended.stderr[-3000:]


# Left for good, for want of a descriptor.


@pytest.mark.parametrize("kind", ["whole", "stream", "atomic"])
async def test_a_file_is_removed_once_there_are_descriptors(tmp_path: Path, kind: str) -> None:
    """As root the way to a user's file takes some: a failed message waits for them, and leaves nothing behind."""

    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 600_000
        await asyncio.to_thread(until, lambda: bool(contents(tmp_path / "m").get("tmp")))
        raise ValueError("no more")

    disk = FaultDisk(*(Fault("unlink", errno.EMFILE, nth=number) for number in (1, 2, 3)))
    maildir = Maildir(tmp_path / "m", disk=disk)
    if kind == "stream":
        with pytest.raises(MaildirError, match="no more"):
            await maildir.append(failing())
    else:
        disk.faults.append(Fault("rename_noreplace", errno.EIO, nth=2 if kind == "atomic" else 1))
        with pytest.raises(MaildirError) as failure:
            await (maildir.append_many([b"1", b"2"], atomic=True) if kind == "atomic" else maildir.append(b"1"))
        assert not hasattr(failure.value, "__notes__")
    assert contents(maildir.path) == {"cur": [], "new": [], "tmp": []}
    assert sum(call.operation == "unlink" for call in disk.calls) >= 4
