"""One message to several maildirs, whatever fails: who is told that it is there has it once, who is not has none."""

import asyncio
import errno
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from look import descriptors, until
from maildir_async import Durability, GroupCommit, Maildir, NotAMaildirError, Outcome, UncertainAppendError, deliver
from maildir_async.mailbox.fan_out import FanOut
from maildir_async.testing import Fault, FaultDisk
from support import contents, some

MAIL: Final = b"Subject: all\n\nof you\n"
LONG: Final = b"a line of a long message\n" * 22_000  # 550 kB: its file is begun while it comes
HUGE: Final = LONG * 6


async def stream(message: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(message), 100_000):
        yield message[start : start + 100_000]


KINDS: Final[dict[str, tuple[Callable[[], Any], bytes]]] = {
    "bytes": (lambda: MAIL, MAIL),
    "stream": (lambda: stream(LONG), LONG),
}

#: Every method that a fan-out calls, by what it has seen; a fault for one that is never called says so.
OPERATIONS: Final = (
    *("create", "chmod", "duplicate", "write", "start_writeback", "utime", "sync", "sync_file_system", "close"),
    *("rename_noreplace", "rename", "link", "link_open", "unlink", "mkdir", "open_directory", "stat", "identity"),
)
ERRNOS: Final = (
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EACCES, errno.EMLINK, errno.EXDEV),
    *(errno.EMFILE, errno.EEXIST, errno.EINVAL, errno.ENOTDIR),
)
LEVELS: Final = [(level, syncfs) for level in Durability for syncfs in (False, True)]


def boxes(root: Path, *names: str, **options: Any) -> list[Maildir]:
    return [Maildir(root / name, **options) for name in names]


def visible(maildir: Maildir) -> list[bytes]:
    found = contents(maildir.path)
    return found.get("new", []) + found.get("cur", [])


def check(outcomes: Sequence[Outcome], maildirs: Sequence[Maildir], message: bytes) -> None:
    """Told that it is there: exactly one copy. Told an error that is not uncertain: none. Nothing is left in tmp/."""
    assert [outcome.maildir for outcome in outcomes] == list(maildirs)
    for outcome in outcomes:
        assert (outcome.delivered is None) != (outcome.error is None)
        is_there = outcome.error is None or isinstance(outcome.error, UncertainAppendError)
        assert visible(outcome.maildir) == [message] * is_there, outcome
        assert contents(outcome.maildir.path).get("tmp", []) == [], outcome
        if outcome.delivered is not None:
            assert Path(outcome.delivered.path).read_bytes() == message


def dangling(root: Path, *names: str) -> None:
    """Make maildirs whose ``new`` leads nowhere."""
    for name in names:
        (root / name / "tmp").mkdir(parents=True)
        (root / name / "cur").mkdir()
        (root / name / "new").symlink_to(root / "nowhere")


@pytest.mark.parametrize("bad", [["alice"], ["alice", "bob"], ["bob"], ["alice", "carol"], ["carol"]], ids="-".join)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("level", "syncfs"), LEVELS)
def test_a_maildir_that_is_none_is_nobody_elses_concern(
    tmp_path: Path, bad: list[str], kind: str, level: Durability, syncfs: bool
) -> None:
    """Whichever of four have a ``new`` that leads nowhere, the others get one copy each, and are told so."""
    make, message = KINDS[kind]
    dangling(tmp_path, *bad)

    async def main() -> None:
        maildirs = boxes(tmp_path, "alice", "bob", "carol", "dave", commit=GroupCommit(syncfs=syncfs))
        outcomes = await deliver(make(), maildirs, durability=level)
        for outcome in outcomes:
            if os.path.basename(outcome.maildir.path) in bad:
                assert isinstance(outcome.error, NotAMaildirError)
                assert not os.listdir(f"{outcome.maildir.path}/tmp")
            else:
                check([outcome], [outcome.maildir], message)
                assert outcome.delivered is not None

    asyncio.run(main())
    until(lambda: not descriptors(tmp_path))


async def _fails(root: Path, kind: str, fault: Fault, level: Durability, *, syncfs: bool) -> None:
    make, message = KINDS[kind]
    disk = FaultDisk()
    maildirs = boxes(root, "alice", "bob", "carol", disk=disk, commit=GroupCommit(syncfs=syncfs), file_mode=0o640)
    for maildir in maildirs:
        await maildir.create()
    disk.faults.append(fault)
    check(await deliver(make(), maildirs, durability=level, received_at=1e9), maildirs, message)
    disk.faults.clear()


@pytest.mark.parametrize(("level", "syncfs"), some(LEVELS, len(LEVELS)))
@pytest.mark.parametrize("number", some(ERRNOS, len(ERRNOS)), ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("kind", "step"),
    [*(pytest.param(kind, 1, marks=pytest.mark.heavy) for kind in ("bytes", "stream")), ("stream", 4)],
)
def test_told_once_stored_once_whatever_fails(
    tmp_path: Path, kind: str, step: int, number: int, level: Durability, syncfs: bool
) -> None:
    """Each call fails in turn, in every durability, with `syncfs` and without: nobody has what he is not told of."""

    async def main() -> None:
        for operation in OPERATIONS:
            for late in (False, True):
                for nth in itertools.count(1, step):
                    fault = Fault(operation, number, nth=nth, late=late)
                    root = tmp_path / f"{operation}-{late}-{nth}"
                    if late and operation in ("create", "open_directory", "duplicate"):
                        break  # a descriptor that nobody has been told of: no call of the system's does that
                    await _fails(root, kind, fault, level, syncfs=syncfs)
                    shutil.rmtree(root)
                    if fault.seen < nth:
                        break

    asyncio.run(main())
    until(lambda: not descriptors(tmp_path))


@pytest.mark.parametrize(
    ("kind", "number", "names"),
    [
        pytest.param(
            kind,
            number,
            names,
            id=f"{errno.errorcode[number]}-{kind}-{names[0]}",
            marks=() if (kind, number, names) == ("stream", errno.EIO, ("alice",)) else pytest.mark.heavy,
        )
        for kind in KINDS
        for number in ERRNOS
        for names in (("alice",), ("bob", "carol"))
    ],
)
def test_told_once_stored_once_in_a_maildir_that_always_fails(
    tmp_path: Path, kind: str, number: int, names: tuple[str, ...]
) -> None:
    """A call that goes on failing in one of three maildirs, whichever, is that maildir's own failure."""
    make, message = KINDS[kind]

    async def main() -> None:
        for operation, name in itertools.product(OPERATIONS, names):
            root = tmp_path / f"{operation}-{name}"
            disk = FaultDisk()
            maildirs = boxes(root, "alice", "bob", "carol", disk=disk, commit=GroupCommit())
            for maildir in maildirs:
                await maildir.create()
            for directory in ("tmp/", "new"):
                disk.faults = [Fault(operation, number, nth=0, path=f"/{name}/{directory}")]
                if operation == "unlink" and directory == "tmp/":
                    continue  # then it is told, in a note, that something is left there
                outcomes = await deliver(make(), maildirs)
                disk.faults = []
                check(outcomes, maildirs, message)
                for maildir in maildirs:
                    for path in (Path(maildir.path) / "new").iterdir():
                        path.unlink()

    asyncio.run(main())
    until(lambda: not descriptors(tmp_path))


@pytest.mark.parametrize("moved", [["alice"], ["bob"], ["alice", "bob"], ["carol"]], ids="-".join)
def test_a_maildir_that_is_moved_away_while_a_stream_comes(tmp_path: Path, moved: list[str]) -> None:
    """Whichever it is: the others get the 3 MB once; and so does it, made anew, or it is told that it does not."""

    async def main() -> None:
        maildirs = boxes(tmp_path, "alice", "bob", "carol", commit=GroupCommit())
        for maildir in maildirs:
            await maildir.create()
        async with FanOut(maildirs) as fan_out:
            for start in range(0, len(HUGE), 100_000):
                if start == 2_000_000:
                    for name in moved:
                        (tmp_path / name).rename(tmp_path / f"{name}.away")
                await fan_out.send(HUGE[start : start + 100_000])
            outcomes = await fan_out.finish()
        check(outcomes, maildirs, HUGE)
        for outcome in outcomes:
            assert outcome.delivered is not None or os.path.basename(outcome.maildir.path) in moved
        for name in moved:  # what its tmp/ has is beyond reach, and for a sweeper
            assert visible(Maildir(tmp_path / f"{name}.away")) == []

    asyncio.run(main())
    until(lambda: not descriptors(tmp_path))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("whole", [True, False], ids=["there", "to be made"])
async def test_one_directory_by_two_paths_gets_one_copy(tmp_path: Path, kind: str, whole: bool) -> None:
    """Given twice, by whatever path, a maildir gets the message once: both are told so, with the same file."""
    make, message = KINDS[kind]
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    maildirs = boxes(tmp_path, "real/box", "other", "link/box", "real/box")
    if whole:
        await maildirs[0].create()
    outcomes = await deliver(make(), maildirs)
    for outcome in outcomes:
        assert outcome.delivered is not None
        assert visible(outcome.maildir) == [message]
    assert [outcome.maildir for outcome in outcomes] == maildirs
    assert len({os.path.realpath(outcome.delivered.path) for outcome in outcomes if outcome.delivered}) == 2
    assert outcomes[0].delivered == outcomes[2].delivered == outcomes[3].delivered


async def test_one_directory_with_two_prefixes_gets_two_copies(tmp_path: Path) -> None:
    """What is stored before the message makes it another one: a maildir given twice with two of them gets both."""
    maildirs = boxes(tmp_path, "box", "box")
    fan_out = FanOut(maildirs, prefixes=[b"Delivered-To: a\n", b"Delivered-To: b\n"])
    await fan_out.send(MAIL)
    assert all(outcome.delivered for outcome in await fan_out.finish())
    assert sorted(visible(maildirs[0])) == [b"Delivered-To: a\n" + MAIL, b"Delivered-To: b\n" + MAIL]


async def test_one_directory_in_two_group_commits_gets_one_copy(tmp_path: Path) -> None:
    """However they are set up: who of the two takes the message is the first that was given."""
    maildirs = [Maildir(tmp_path / "box", commit=GroupCommit(), file_mode=mode) for mode in (0o640, 0o600)]
    outcomes = await deliver(MAIL, maildirs)
    assert visible(maildirs[0]) == [MAIL]
    assert outcomes[0].delivered is not None
    assert outcomes[0].delivered == outcomes[1].delivered


async def test_all_who_stand_for_one_directory_have_one_outcome(tmp_path: Path) -> None:
    """An error is told to all, and so is a message that an open one has taken, to one that is closed or full."""
    dangling(tmp_path, "box")
    (tmp_path / "link").symlink_to(tmp_path / "box")
    outcomes = await deliver(MAIL, boxes(tmp_path, "box", "link"))
    assert [type(outcome.error) for outcome in outcomes] == [NotAMaildirError] * 2
    maildirs = boxes(tmp_path, "new", "new")
    await maildirs[0].aclose()
    outcomes = await deliver(MAIL, maildirs)
    assert outcomes[0].delivered is not None
    assert outcomes[0].delivered == outcomes[1].delivered
    assert visible(maildirs[1]) == [MAIL]
    busy = GroupCommit(max_pending=1, wait=False)
    async with FanOut(boxes(tmp_path, "other", commit=busy)) as holder:
        await holder.open()
        maildirs = [*boxes(tmp_path, "box2", commit=busy), *boxes(tmp_path, "box2")]
        outcomes = await deliver(MAIL, maildirs)
    assert outcomes[0].delivered is not None
    assert outcomes[0].delivered == outcomes[1].delivered
