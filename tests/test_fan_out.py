"""One message to several maildirs: one file, independent outcomes, and the promises of a single append for each."""

import asyncio
import errno
import itertools
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import anyio
import pytest

import maildir_async
from maildir_async import (
    AppendError,
    BusyError,
    Durability,
    GroupCommit,
    Maildir,
    MaildirError,
    MessageTooLargeError,
    NotAMaildirError,
    Outcome,
    UncertainAppendError,
    deliver,
)
from maildir_async.mailbox.fan_out import FanOut
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import Gate, contents, turns

MAIL: Final = b"Subject: all\n\nof you\n"
LONG: Final = b"a line of a long message\n" * 43_000  # more than 1 MiB: its file is begun while it comes


async def stream(message: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(message), 100_000):
        yield message[start : start + 100_000]


KINDS: Final[dict[str, tuple[Callable[[], Any], bytes]]] = {
    "bytes": (lambda: MAIL, MAIL),
    "stream": (lambda: stream(LONG), LONG),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[Callable[[], Any], bytes]:
    return KINDS[request.param]


def boxes(root: Path, count: int, **options: Any) -> list[Maildir]:
    return [Maildir(root / f"user{number}", **options) for number in range(count)]


def links(outcomes: Sequence[Outcome]) -> list[int]:
    return [os.stat(outcome.delivered.path).st_nlink for outcome in outcomes if outcome.delivered]


def check(outcomes: Sequence[Outcome], maildirs: Sequence[Maildir], message: bytes) -> None:
    """Each maildir has the message once or not at all, as its outcome says, and nothing else."""
    assert [outcome.maildir for outcome in outcomes] == list(maildirs)
    for outcome in outcomes:
        assert (outcome.delivered is None) == (outcome.error is not None)
        found = contents(outcome.maildir.path)
        visible = outcome.delivered is not None or isinstance(outcome.error, UncertainAppendError)
        assert found.get("new", []) == ([message] if visible else [])
        assert found.get("tmp", []) == []
        if outcome.delivered is not None:
            assert outcome.delivered.path.startswith(outcome.maildir.path + "/new/")
            assert outcome.delivered.size == len(message)


async def test_one_file_for_all(tmp_path: Path, kind: tuple[Callable[[], Any], bytes]) -> None:
    """On one file system all maildirs have the same file, under names of their own."""
    make, message = kind
    maildirs = boxes(tmp_path, 5)
    outcomes = await deliver(make(), maildirs, durability=Durability.FULL)
    check(outcomes, maildirs, message)
    assert links(outcomes) == [5] * 5
    assert len({outcome.delivered.key for outcome in outcomes if outcome.delivered}) == 5


async def test_no_maildir_and_one(tmp_path: Path) -> None:
    """With none there is no outcome; with one it is an append."""
    assert await deliver(MAIL, []) == []
    (maildir,) = boxes(tmp_path, 1)
    check(await deliver(MAIL, [maildir]), [maildir], MAIL)


async def test_options(tmp_path: Path) -> None:
    """The options of append are for all: flags put it into cur/, the prefix is stored once, mtime is set."""
    maildirs = boxes(tmp_path, 3)
    outcomes = await deliver(MAIL, maildirs, flags="S", prefix=b"X: y\r\n", newline="lf", received_at=1_000_000_000)
    for outcome in outcomes:
        assert outcome.delivered is not None
        assert outcome.delivered.path.endswith(":2,S")
        assert Path(outcome.delivered.path).read_bytes() == b"X: y\n" + MAIL
        assert os.stat(outcome.delivered.path).st_mtime == 1_000_000_000
    with pytest.raises(ValueError, match="flags"):
        await deliver(MAIL, maildirs, flags="?")
    with pytest.raises(TypeError, match="str"):
        await deliver(cast(Any, "text"), maildirs)
    with pytest.raises(TypeError, match="int"):
        await deliver([b"a", cast(Any, 1)], maildirs)
    assert all(len(contents(maildir.path)["cur"]) == 1 and not contents(maildir.path)["new"] for maildir in maildirs)


@pytest.mark.parametrize("message", [MAIL, LONG], ids=["short", "long"])
async def test_prefixes_of_their_own(tmp_path: Path, message: bytes) -> None:
    """Each maildir has the prefix that is for it; those with the same one share a file."""
    maildirs = boxes(tmp_path, 4)
    prefixes = [b"X: a\n", b"X: b\n", b"X: a\n", b""]
    async with FanOut(maildirs, prefixes=prefixes, newline="lf") as fan_out:
        await fan_out.send(message[:1_000_000])
        await fan_out.send(message[1_000_000:])
        outcomes = await fan_out.finish()
    for maildir, prefix in zip(maildirs, prefixes, strict=True):
        assert contents(maildir.path) == {"tmp": [], "new": [prefix + message], "cur": []}
    assert links(outcomes) == [2, 1, 2, 1]
    with pytest.raises(ValueError, match="prefix"):
        FanOut(maildirs, prefixes=[b"X: a\n"] * 3 + [b"\n"])
    with pytest.raises(ValueError, match="argument"):
        FanOut(maildirs, prefixes=[b""] * 3)


@pytest.mark.parametrize("many", [100, pytest.param(1000, marks=pytest.mark.heavy)])
def test_many_maildirs_cost_one_write_and_one_sync(tmp_path: Path, many: int) -> None:
    """One file is made, written and synced once; each directory is synced once."""

    async def main() -> Counter[str]:
        disk = FaultDisk()
        maildirs = boxes(tmp_path, many, disk=disk)
        await deliver(b"first, which makes them", maildirs)
        disk.calls.clear()
        outcomes = await deliver(MAIL, maildirs)
        assert all(outcome.delivered for outcome in outcomes)
        return Counter(call.operation for call in disk.calls)

    calls = asyncio.run(main())
    assert (calls["create"], calls["write"], calls["rename_noreplace"], calls["link"]) == (1, 1, 1, many - 1)
    assert calls["sync"] == many + 1


async def test_outcomes_are_independent(tmp_path: Path, kind: tuple[Callable[[], Any], bytes]) -> None:
    """A path that is a file, one that may not be made, one whose directories are gone: the others have the message."""
    make, message = kind
    (tmp_path / "file").write_bytes(b"")
    maildirs = [
        Maildir(tmp_path / "file"),
        Maildir(tmp_path / "missing", create=False),
        *boxes(tmp_path, 2),
        Maildir(tmp_path / "file" / "below"),
    ]
    outcomes = await deliver(make(), maildirs)
    assert [type(outcome.error) for outcome in outcomes] == [
        NotAMaildirError,
        NotAMaildirError,
        type(None),
        type(None),
        NotAMaildirError,
    ]
    check(outcomes[2:4], maildirs[2:4], message)
    assert links(outcomes) == [2, 2]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EDQUOT, errno.ENOENT])
async def test_the_first_maildir_fails_alone(
    tmp_path: Path, kind: tuple[Callable[[], Any], bytes], number: int
) -> None:
    """If no file can be made in the first maildir, the second one gets it."""
    make, message = kind
    disk = FaultDisk(Fault("create", error=number, nth=0, path="user0/"))
    maildirs = boxes(tmp_path, 3, disk=disk)
    outcomes = await deliver(make(), maildirs)
    check(outcomes, maildirs, message)
    assert [outcome.error and outcome.error.errno for outcome in outcomes] == [number, None, None]


async def test_a_full_disk_is_told_to_all(tmp_path: Path, kind: tuple[Callable[[], Any], bytes]) -> None:
    """What the file system says of the one file, it says to all."""
    make, message = kind
    maildirs = boxes(tmp_path, 3, disk=FaultDisk(Fault("write", error=errno.ENOSPC)))
    outcomes = await deliver(make(), maildirs)
    check(outcomes, maildirs, message)
    assert [outcome.error and outcome.error.smtp_reply[:9] for outcome in outcomes] == ["452 4.3.1"] * 3


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.EPERM])
async def test_what_cannot_be_linked_is_copied(
    tmp_path: Path, kind: tuple[Callable[[], Any], bytes], number: int
) -> None:
    """Past a boundary, or too many links, there is another copy, with everything the first one has."""
    make, message = kind
    faults = [Fault("link", error=number, nth=0, path=f"user{at}/") for at in (2, 3)]
    maildirs = boxes(tmp_path, 5, disk=FaultDisk(*faults))
    outcomes = await deliver(make(), maildirs, prefix=b"X: y\n", newline="lf")
    check(outcomes, maildirs, b"X: y\n" + message)
    assert links(outcomes) == [3, 3, 1, 1, 3]  # of the two, the second cannot be linked to the first either


async def test_a_file_system_without_links(tmp_path: Path) -> None:
    """Where there are none at all, each maildir has a copy."""
    maildirs = boxes(tmp_path, 4, disk=FaultDisk(Fault("link", error=errno.EPERM, nth=0)))
    outcomes = await deliver(MAIL, maildirs)
    check(outcomes, maildirs, MAIL)
    assert links(outcomes) == [1] * 4


async def test_several_file_systems(tmp_path: Path, open_shm: Path, kind: tuple[Callable[[], Any], bytes]) -> None:
    """Each has a file of its own."""
    make, message = kind
    maildirs = [*boxes(tmp_path, 2), *boxes(open_shm, 3)]
    outcomes = await deliver(make(), maildirs)
    check(outcomes, maildirs, message)
    assert links(outcomes) == [2, 2, 3, 3, 3]


async def test_a_file_system_that_fails_fails_alone(tmp_path: Path, open_shm: Path) -> None:
    """One that is full in the middle of a stream does not keep it from the other."""
    disk = FaultDisk(Fault("write", error=errno.ENOSPC, nth=2, path=str(tmp_path)))
    maildirs = [*boxes(tmp_path, 2, disk=disk), *boxes(open_shm, 2, disk=disk)]
    outcomes = await deliver(stream(LONG), maildirs)
    check(outcomes, maildirs, LONG)
    assert [outcome.error is None for outcome in outcomes] == [False, False, True, True]


@pytest.fixture
def open_shm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil
    import tempfile

    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat(tmp_path_factory.getbasetemp()).st_dev:
        pytest.skip("NOT TESTED: there is no second file system at /dev/shm")
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


async def test_modes_are_not_shared(tmp_path: Path) -> None:
    """Maildirs whose files have other permissions have a file of their own."""
    maildirs = [*boxes(tmp_path, 2), Maildir(tmp_path / "group", file_mode=0o640)]
    outcomes = await deliver(MAIL, maildirs)
    check(outcomes, maildirs, MAIL)
    assert links(outcomes) == [2, 2, 1]


async def test_size_limit_and_source_errors(tmp_path: Path) -> None:
    """A message too large for one is refused for all; a source that raises fails all, and leaves nothing."""
    maildirs = [*boxes(tmp_path, 2), Maildir(tmp_path / "small", size_limit=10)]
    outcomes = await deliver(MAIL, maildirs)
    check(outcomes, maildirs, MAIL)
    assert {type(outcome.error) for outcome in outcomes} == {MessageTooLargeError}

    async def broken() -> AsyncIterator[bytes]:
        yield LONG
        raise OSError(errno.EIO, "no more")

    outcomes = await deliver(broken(), maildirs[:2])
    check(outcomes, maildirs[:2], LONG)
    assert [outcome.error and outcome.error.stage for outcome in outcomes] == ["receive"] * 2


async def test_a_closed_maildir_and_a_full_queue(tmp_path: Path) -> None:
    """A maildir that takes no more is one outcome; a queue that is full is that of all."""
    maildirs = boxes(tmp_path, 3)
    await maildirs[0].aclose()
    outcomes = await deliver(MAIL, maildirs)
    check(outcomes, maildirs, MAIL)
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]

    gate = Gate()
    commit = GroupCommit(max_pending=1, wait=False)
    first = asyncio.create_task(
        Maildir(tmp_path / "first", commit=commit, disk=FaultDisk(Fault("create", gate=gate))).append(MAIL)
    )
    await gate.reached()
    outcomes = await deliver(MAIL, boxes(tmp_path / "busy", 2, commit=commit))
    assert [type(outcome.error) for outcome in outcomes] == [BusyError] * 2
    gate.open()
    await first


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EROFS])
@pytest.mark.parametrize("modes", [[0o600], [0o600, 0o640], [0o600] * 40], ids=["alone", "beside another", "many"])
async def test_a_failed_stream_is_not_kept(tmp_path: Path, modes: list[int], number: int) -> None:
    """Where no file can be made nothing of a stream is kept in memory, whether it goes on to another maildir or not."""
    disk = FaultDisk(Fault("create", error=number, nth=0, path="user"))
    maildirs = [
        Maildir(tmp_path / ("other" if mode == 0o640 else f"user{at}"), file_mode=mode, disk=disk)
        for at, mode in enumerate(modes)
    ]
    size, count = 2**18, 128
    tracemalloc.start()
    try:
        async with FanOut(maildirs) as fan_out:
            for _ in range(count):
                await fan_out.send(bytes(bytearray(size)))
            _, most = tracemalloc.get_traced_memory()
            outcomes = await fan_out.finish()
    finally:
        tracemalloc.stop()
    assert most < 8 * 2**20  # of 32 MiB
    check(outcomes, maildirs, bytes(size * count))
    assert [outcome.error and outcome.error.errno for outcome in outcomes] == [
        None if mode == 0o640 else number for mode in modes
    ]


async def test_a_directory_that_cannot_be_synced_is_uncertain_alone(tmp_path: Path) -> None:
    """One whose directory cannot be synced has the message, and says that it may be lost."""
    maildirs = boxes(tmp_path, 3, disk=FaultDisk(Fault("sync", error=errno.EIO, nth=0, path="user1/new")))
    outcomes = await deliver(MAIL, maildirs)
    check(outcomes, maildirs, MAIL)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), UncertainAppendError, type(None)]


@pytest.mark.parametrize("operation", ["link", "rename_noreplace", "sync"])
def test_a_hanging_call_delays_no_other_message(tmp_path: Path, operation: str) -> None:
    """While one message hangs in a link, others are delivered; in the end each maildir has its outcome."""

    async def main() -> None:
        gate = Gate()
        path = {"link": "user1/", "rename_noreplace": "user0/", "sync": "user1/new"}[operation]
        commit = GroupCommit()
        maildirs = boxes(tmp_path, 3, disk=FaultDisk(Fault(operation, gate=gate, path=path)), commit=commit)
        for maildir in maildirs:
            await maildir.create()
        hanging = asyncio.create_task(deliver(MAIL, maildirs))
        await gate.reached()
        await Maildir(tmp_path / "other", commit=commit).append(MAIL)
        assert not hanging.done()
        gate.open()
        check(await hanging, maildirs, MAIL)

    asyncio.run(main())


async def test_statistics_and_index(tmp_path: Path) -> None:
    """Every maildir counts its message, and its live index has it."""
    maildirs = boxes(tmp_path, 3)
    indexes = [await maildir.index() for maildir in maildirs]
    outcomes = await deliver(MAIL, maildirs)
    assert [maildir.statistics().delivered for maildir in maildirs] == [1, 1, 1]
    assert [[entry.path for entry in index] for index in indexes] == [
        [outcome.delivered.path] for outcome in outcomes if outcome.delivered
    ]


async def test_with_a_helper_process(tmp_path: Path, kind: tuple[Callable[[], Any], bytes]) -> None:
    """A message for several is linked in this process, whatever its `GroupCommit` does with others."""
    make, message = kind
    commit = GroupCommit(helper_process=True)
    maildirs = boxes(tmp_path, 3, commit=commit)
    outcomes = await deliver(make(), maildirs)
    check(outcomes, maildirs, message)
    assert links(outcomes) == [3, 3, 3]
    assert commit.statistics().helper_pid is None
    await commit.aclose()


@pytest.mark.parametrize("size", [100_000, pytest.param(len(LONG), marks=pytest.mark.heavy)])
def test_power_cut_at_every_call(size: int) -> None:
    """Whenever the power goes, each acknowledged message survives, and no visible one is torn: with copies too."""
    for number, message in itertools.product((0, errno.EXDEV), (MAIL, LONG[:size])):
        for cut_at in itertools.count(1):
            crash = CrashDisk(cut_at=cut_at)
            disk = FaultDisk(*([Fault("link", error=number, nth=0, path="user1/")] if number else []), disk=crash)
            maildirs = [Maildir(f"/mail/user{at}", disk=disk, commit=GroupCommit()) for at in range(1)]
            commit = maildirs[0].commit
            maildirs += [Maildir(f"/mail/user{at}", disk=disk, commit=commit) for at in range(1, 3)]
            outcomes = asyncio.run(deliver(stream(message), maildirs))
            for found in crash.after_power_cut():
                for outcome in outcomes:
                    if outcome.delivered is not None:
                        assert found.get(outcome.delivered.path) == message, "an acknowledged message is lost or torn"
                for path, content in found.items():
                    assert "/tmp/" in path or content == message, "a torn message is visible"
            assert crash.open_files == 0
            if crash.changes < cut_at:
                assert all(outcome.delivered for outcome in outcomes)
                break


class NoFileSync(CrashDisk):
    def sync(self, fd: int) -> None:
        if self._open[fd].is_directory:
            super().sync(fd)


class NoSyncOfOneDirectory(CrashDisk):
    def sync(self, fd: int) -> None:
        if fd != self._spared:
            super().sync(fd)

    _spared = -1

    def open_directory(self, path: str) -> int:
        fd = super().open_directory(path)
        if path.endswith("user2/new"):
            self._spared = fd
        return fd


@pytest.mark.parametrize("broken", [NoFileSync, NoSyncOfOneDirectory])
def test_the_rig_notices(broken: type[CrashDisk]) -> None:
    """A protocol without the file's sync, or that of one directory, is caught by the look above."""
    disk = broken()
    maildirs = [Maildir(f"/mail/user{at}", disk=disk) for at in range(3)]
    outcomes = asyncio.run(deliver(MAIL, maildirs))
    lost = [
        outcome
        for found in disk.after_power_cut()
        for outcome in outcomes
        if outcome.delivered is not None and found.get(outcome.delivered.path) != MAIL
    ]
    assert lost


CALLS: Final = ("create", "write", "sync", "close", "link", "rename_noreplace", "open_directory", "mkdir")


@pytest.mark.parametrize(
    ("message", "number"),
    [
        pytest.param(
            message,
            number,
            id=f"{errno.errorcode[number]}-{message}",
            marks=() if (message, number) == ("bytes", errno.EIO) else pytest.mark.heavy,
        )
        for message in KINDS
        for number in (errno.EIO, errno.EXDEV, errno.ENOSPC, errno.EACCES)
    ],
)
def test_every_call_fails(tmp_path: Path, message: str, number: int) -> None:
    """Whichever call fails, each maildir is as its outcome says, and no file is left open or in tmp/."""
    make, content = KINDS[message]
    for operation in CALLS:
        for nth in itertools.count(1):
            fault = Fault(operation, error=number, nth=nth)
            maildirs = boxes(tmp_path / f"{operation}{nth}", 3, disk=FaultDisk(fault), commit=GroupCommit())
            outcomes = asyncio.run(deliver(make(), maildirs))
            for outcome in outcomes:
                assert outcome.error is None or isinstance(outcome.error, MaildirError)
            check(outcomes, maildirs, content)
            if fault.seen < nth:
                break


@pytest.mark.parametrize(
    ("message", "step"),
    [("bytes", 3), *(pytest.param(message, 1, marks=pytest.mark.heavy) for message in ("bytes", "stream"))],
)
def test_cancelled_at_every_disk_call(tmp_path: Path, message: str, step: int) -> None:
    """A cancelled call leaves each maildir with the whole message or none, and nothing acts afterwards."""
    make, content = KINDS[message]

    async def cancelled_at(root: Path, nth: int) -> bool:
        gate = Gate()
        disk = FaultDisk(Fault("", gate=gate, nth=nth))
        maildirs = boxes(root, 3, disk=disk, commit=GroupCommit())
        task = asyncio.create_task(deliver(make(), maildirs))
        reached = asyncio.create_task(gate.reached())
        await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            gate.open()
            reached.cancel()
            await asyncio.wait([reached])
            return False
        task.cancel()
        await turns()
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        calls = len(disk.calls)
        for maildir in maildirs:
            found = contents(maildir.path)
            assert found.get("tmp", []) == []
            assert found.get("new", []) in ([], [content])
        await turns()
        assert len(disk.calls) == calls, "something acted after the call had been cancelled"
        return True

    for nth in itertools.count(1, step):
        if not asyncio.run(cancelled_at(tmp_path / str(nth), nth)):
            break


@pytest.mark.parametrize(
    ("message", "number", "by_scope", "step"),
    [
        pytest.param("stream", None, False, 4, id="stream-native-some"),
        pytest.param("stream", None, False, 1, id="stream-native", marks=pytest.mark.heavy),
        pytest.param("bytes", errno.EXDEV, True, 1, id="bytes-copied-anyio", marks=pytest.mark.heavy),
        pytest.param("bytes", None, False, 1, id="bytes-native", marks=pytest.mark.heavy),
        pytest.param("stream", errno.EXDEV, True, 1, id="stream-copied-anyio", marks=pytest.mark.heavy),
    ],
)
def test_what_a_cancelled_finish_has_done_is_known(
    tmp_path: Path, message: str, number: int | None, by_scope: bool, step: int
) -> None:
    """Cancelled at any call, and again, it raises only when each outcome is true, and nothing acts any more."""
    content = KINDS[message][1]

    async def cancelled_at(root: Path, nth: int) -> bool:
        gate = Gate()
        disk = FaultDisk()
        maildirs = [*boxes(root, 3, disk=disk), Maildir(root / "other", file_mode=0o640, disk=disk)]
        fan_out = FanOut(maildirs)
        for start in range(0, len(content), 100_000):
            await fan_out.send(content[start : start + 100_000])
        disk.faults += [Fault("", gate=gate, nth=nth), *([Fault("link", error=number, nth=0)] if number else [])]
        scope = anyio.CancelScope()

        async def finish() -> None:
            with scope:
                await fan_out.finish()

        task = asyncio.create_task(finish())
        while not (gate.is_reached or task.done()):
            await asyncio.sleep(0.001)
        was_reached = not task.done()
        for _ in range(2):
            (scope if by_scope else task).cancel()
            await turns()
        gate.open()
        await asyncio.wait([task])
        calls = len(disk.calls)
        check(fan_out.outcomes(), maildirs, content)
        assert task.cancelled() == (was_reached and not by_scope)
        await turns()
        assert len(disk.calls) == calls, "something acted after the call had been cancelled"
        return was_reached

    for nth in itertools.count(1, step):
        if not asyncio.run(cancelled_at(tmp_path / str(nth), nth)):
            break


@pytest.mark.every_loop
async def test_abort_in_the_middle(tmp_path: Path) -> None:
    """What is given up leaves nothing, at whatever point; finishing afterwards tells the refusal."""
    for count in range(20):
        maildirs = boxes(tmp_path / str(count), 3)
        async with FanOut(maildirs) as fan_out:
            for start in range(0, count * 100_000, 100_000):
                await fan_out.send(LONG[start : start + 100_000])
            fan_out.abort()
        assert all(not any(contents(maildir.path).values()) for maildir in maildirs)
    refusal = AppendError("no", stage="receive")
    fan_out = FanOut(maildirs)
    await fan_out.send(LONG)
    fan_out.fail(refusal)
    assert [outcome.error for outcome in await fan_out.finish()] == [refusal] * 3
    assert all(not any(contents(maildir.path).values()) for maildir in maildirs)


@pytest.mark.every_loop
@pytest.mark.parametrize("size", [0, 10, 1_000_000])
async def test_what_is_given_up_is_no_success(tmp_path: Path, size: int) -> None:
    """After an abort each outcome is a temporary error, however much had come."""
    maildirs = boxes(tmp_path, 3)
    fan_out = FanOut(maildirs)
    await fan_out.send(LONG[:size])
    fan_out.abort()
    outcomes = await fan_out.finish()
    check(outcomes, maildirs, LONG)
    assert [outcome.error and outcome.error.temporary for outcome in outcomes] == [True] * 3


#: Where the package is imported from.
ROOT = Path(maildir_async.__file__).parents[1]


async def test_a_common_parent_is_synced_once(tmp_path: Path) -> None:
    """Maildirs that exist, and are used for the first time, have what they share above them synced once."""
    maildirs = boxes(tmp_path, 10)
    for maildir in maildirs:
        await maildir.create()
    program = (
        "import asyncio, sys\n"
        "from maildir_async import Maildir, deliver\n"
        "from maildir_async.testing import FaultDisk\n"
        "disk = FaultDisk()\n"
        "asyncio.run(deliver(b'message', [Maildir(path, disk=disk) for path in sys.argv[1:]]))\n"
        "print(*sorted(call.path for call in disk.calls if call.operation == 'sync'), sep='\\n')\n"
    )
    command = [sys.executable, "-c", program, *(maildir.path for maildir in maildirs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    synced = done.stdout.split()
    assert len([path for path in synced if path.endswith("/..")]) == 1
    assert len(synced) == 1 + 10 + 10 + 1  # the file; each new/; each maildir; what they have in common


async def test_links_tell_how_long_they_waited(tmp_path: Path) -> None:
    """Each outcome has the times of its own delivery, a link too, which became whole with its source."""
    before = time.monotonic()
    outcomes = await deliver(MAIL, [Maildir(tmp_path / name) for name in "abc"])
    took = time.monotonic() - before
    for outcome in outcomes:
        assert outcome.delivered is not None
        assert 0 <= outcome.delivered.queued_s + outcome.delivered.commit_s <= took
