"""Folders, keywords, quota, transactions, rights and duplicates, alone and all at once: whatever call goes wrong.

For each of them, power is lost, the process is killed, the call fails, or the delivery is cancelled, at every system
call from the first, which makes the maildir, to the last. After each a message is whole or absent, once, and nothing is
left: no file in ``tmp/``, no lock, no room reserved, no descriptor, no thread at work.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from look import descriptors
from maildir_async import (
    AppendError,
    DuplicateFilter,
    GroupCommit,
    Maildir,
    MaildirError,
    Quota,
    QuotaExceededError,
    UncertainAppendError,
)
from maildir_async.format.keywords import key, parse_keywords
from maildir_async.format.quota import parse_held
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import PATIENCE_S, forked, some
from test_cancel import Moment

MESSAGE: Final = b"Message-ID: <one@example.org>\n\nbody\n"
LONG: Final = b"Message-ID: <two@example.org>\n\n" + b"y" * 600_000  # in tmp/ before it is whole


async def _stream() -> AsyncIterator[bytes]:
    for start in range(0, len(LONG), 300_000):
        yield LONG[start : start + 300_000]


def _one(**options: Any) -> Callable[[Maildir], Awaitable[object]]:
    return lambda maildir: maildir.append(MESSAGE, **options)


def _both(**options: Any) -> Callable[[Maildir], Awaitable[object]]:
    return lambda maildir: maildir.append_many([MESSAGE, _stream()], atomic=True, concurrency=1, **options)


@dataclass(frozen=True)
class Feature:
    """What is delivered, and how.

    Attributes:
        deliver: delivers to a maildir.
        messages: what is there then.
        box: where, below the maildir.
        keywords: that they have.
        options: of the maildir.
        filters: whether what has been delivered is not stored again.

    """

    deliver: Callable[[Maildir], Awaitable[object]]
    messages: tuple[bytes, ...] = (MESSAGE,)
    box: str = ""
    keywords: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    filters: bool = False

    def maildir(self, root: str | Path, disk: Any, seen: Path) -> Maildir:
        """Return the maildir at *root*, by a group commit of its own."""
        duplicates = DuplicateFilter(seen) if self.filters else None
        return Maildir(root, disk=disk, commit=GroupCommit(), duplicates=duplicates, **self.options)


_EVERYTHING: Final[dict[str, Any]] = {"quota": Quota(messages=100_000), "inherit_mode": True}

FEATURES: Final = {
    "folder": Feature(_one(folder="x/y"), box=".x.y"),
    "keywords": Feature(_one(keywords=["k", "j"]), keywords=("k", "j")),
    "quota": Feature(_one(), options={"quota": Quota(messages=1000)}),
    "atomic": Feature(_both(), messages=(MESSAGE, LONG)),
    "inherit_mode": Feature(_one(), options={"inherit_mode": True}),
    "duplicates": Feature(_one(duplicate_key=True), filters=True),
    "all, atomic": Feature(
        _both(folder="x/y", keywords=["k", "j"]),
        messages=(MESSAGE, LONG),
        box=".x.y",
        keywords=("k", "j"),
        options=_EVERYTHING,
    ),
    "all, filtered": Feature(
        lambda maildir: maildir.append(_stream(), folder="x/y", keywords=["k", "j"], duplicate_key=True),
        messages=(LONG,),
        box=".x.y",
        keywords=("k", "j"),
        options=_EVERYTHING,
        filters=True,
    ),
}

#: Each call is heavy, or each third where a call takes long or there are many. In the other tier are a few calls of
#: what has all of it.
rigged = pytest.mark.parametrize(
    ("name", "first", "step"),
    [
        *(pytest.param(name, 1, 47, id=name) for name in FEATURES if name.startswith("all")),
        *(
            pytest.param(name, first, step, id=f"{name}, {first}", marks=pytest.mark.heavy)
            for name, step in ((name, {"all": 18, "key": 3}.get(name[:3], 1)) for name in FEATURES)
            for first in range(1, max(2, step - 1), 3)
        ),
    ],
)


def _found(files: dict[str, bytes], root: str) -> list[str]:
    """Return the paths of the messages below *root*."""
    return [path for path in files if path.startswith(root) and path.split("/")[-2] in ("new", "cur")]


def _check_messages(feature: Feature, files: dict[str, bytes], root: str) -> Counter[bytes]:
    """See that each message is whole, where it belongs, and has the letters of its keywords; return how often each."""
    box = f"{root}/{feature.box}".rstrip("/")
    defined = parse_keywords(files.get(f"{box}/dovecot-keywords", b""))
    count = Counter[bytes]()
    for path in _found(files, root):
        assert files[path] in feature.messages, f"{path} is torn"
        assert path.startswith(f"{box}/{'cur' if feature.keywords else 'new'}/")
        letters = path.rpartition(":2,")[2] if feature.keywords else ""
        assert {key(defined[ord(letter) - ord("a")]) for letter in letters} == {key(name) for name in feature.keywords}
        count[files[path]] += 1
    return count


def _files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _check_nothing_left(maildir: Maildir, root: Path) -> None:
    """See that nothing acts any more, and nothing is left but messages."""
    assert maildir.commit.wait_idle(PATIENCE_S)
    assert [*root.rglob("tmp/*"), *root.rglob("*.lock")] == []
    assert descriptors(root) == set()
    assert maildir.statistics().in_flight == 0
    _check_nothing_reserved(maildir)


def _check_nothing_reserved(maildir: Maildir) -> None:
    quota = maildir.mailbox.quota
    if quota is not None and (shared := quota._shared_one) is not None:
        assert (shared.reserved, shared.reserved_number) == (0, 0)


def _check_quota(maildir: Maildir, files: dict[str, bytes]) -> None:
    """See that the file, if there is one yet, says what is there."""
    if maildir.mailbox.quota is not None and f"{maildir.path}/maildirsize" in files:
        held = parse_held(files[f"{maildir.path}/maildirsize"])
        assert held is not None
        there = [len(files[path]) for path in _found(files, maildir.path)]
        assert (held.bytes, held.messages) == (sum(there), len(there))


async def _again(feature: Feature, root: Path, seen: Path, before: Counter[bytes], *, most: int = 1) -> None:
    """Deliver once more, as the next process would: with a filter each message is there then, and no more than that."""
    maildir = feature.maildir(root, FaultDisk(), seen)
    await feature.deliver(maildir)
    files = _files(root)
    count = _check_messages(feature, files, str(root))
    for message in feature.messages:
        if feature.filters:
            assert max(1, before[message]) <= count[message] <= max(most, before[message]), (before, count)
        else:
            assert count[message] == before[message] + 1
    await maildir.aclose()
    _check_nothing_left(maildir, root)


def _prepare(root: Path, feature: Feature) -> None:
    """Have a directory that is shared with a group, for what inherits its rights."""
    if feature.options.get("inherit_mode"):
        root.mkdir(mode=0o770)
        root.chmod(0o770)


# Power is lost.


@rigged
def test_a_power_cut_at_every_call(tmp_path: Path, name: str, first: int, step: int) -> None:
    """What has returned is there, whole, once, with its keywords; what is visible is whole."""
    feature = FEATURES[name]
    for cut_at in itertools.count(first, step):
        disk = CrashDisk(cut_at=cut_at)
        if feature.options.get("inherit_mode"):
            disk._cut_at = None
            disk.mkdir("/m", 0o770)
            disk._cut_at = cut_at + disk.changes
        maildir = feature.maildir("/m", disk, tmp_path / f"{cut_at}.sqlite")
        returned = False
        with contextlib.suppress(MaildirError):
            asyncio.run(_deliver_and_close(feature, maildir))
            returned = True
        for files in disk.after_power_cut(range(4)):
            count = _check_messages(feature, files, "/m")
            assert all(count[message] <= 1 for message in feature.messages)
            assert not returned or len(count) == len(feature.messages)
        assert disk.open_files == 0
        _check_nothing_reserved(maildir)
        assert maildir.commit.wait_idle(PATIENCE_S)
        if disk.changes < (disk._cut_at or 0):
            assert returned
            assert not [path for path in disk.files() if "/tmp/" in path or path.endswith(".lock")]
            _check_quota(maildir, disk.files())
            return


async def _deliver_and_close(feature: Feature, maildir: Maildir) -> None:
    try:
        await feature.deliver(maildir)
    finally:
        await maildir.aclose()


# The process is killed.


def _killed_at(feature: Feature, root: Path, seen: Path, nth: int) -> bool:
    """Have a process killed at its so-manyth call, and return whether it has made as many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads
        pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            disk = FaultDisk(Fault("", nth=nth, gate=lambda: os.kill(os.getpid(), signal.SIGKILL)))
            asyncio.run(_deliver_and_close(feature, feature.maildir(root, disk, seen)))
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@rigged
def test_killed_at_every_call(tmp_path: Path, name: str, first: int, step: int) -> None:
    """What is visible is whole, once; the next process waits for no lock, and delivers; litter in tmp/ is swept."""
    feature = FEATURES[name]
    for nth in itertools.count(first, step):
        root, seen = tmp_path / str(nth), tmp_path / f"{nth}.sqlite"
        _prepare(root, feature)
        was_killed = _killed_at(feature, root, seen, nth)
        count = _check_messages(feature, _files(root), str(root))
        assert all(number == 1 for number in count.values())
        litter, locks = list(root.rglob("tmp/*")), list(root.rglob("*.lock"))
        assert len(litter) <= len(feature.messages) + ("quota" in feature.options)  # a file that is counted into
        asyncio.run(_sweep(root, litter))
        for lock in locks:
            # One that nobody needs stays until somebody does; one without a process id yet is broken in two minutes.
            if not lock.read_bytes() or (root / feature.box / "dovecot-keywords").exists():
                lock.unlink()
        # Killed between a message's being there and its being remembered, it is stored again: never none.
        asyncio.run(_again(feature, root, seen, count, most=2))
        if not was_killed:
            assert len(count) == len(feature.messages)
            assert litter == []
            assert nth > 10
            return


async def _sweep(root: Path, litter: Iterable[Path]) -> None:
    if (root / "tmp").is_dir():  # or it is not a maildir yet
        removed = await Maildir(root).clean_tmp(timedelta(0))
        assert sorted(removed) == sorted(map(str, litter))


# A call fails.


@rigged
@pytest.mark.parametrize("number", some([errno.EIO, errno.ENOSPC, errno.EACCES], 3))
async def test_a_fault_at_every_call(tmp_path: Path, name: str, first: int, step: int, number: int) -> None:
    """All are there, or none is and nothing is left; what the quota counts is right after the next delivery."""
    feature = FEATURES[name]
    for nth in itertools.count(first, step):
        root, seen = tmp_path / str(nth), tmp_path / f"{nth}.sqlite"
        _prepare(root, feature)
        disk = FaultDisk(Fault("", number, nth=nth))
        maildir = feature.maildir(root, disk, seen)
        expected = Counter[bytes]()
        try:
            await feature.deliver(maildir)
            expected.update(feature.messages)
        except UncertainAppendError:
            expected.update(feature.messages)
        except AppendError:
            pass
        disk.faults.clear()
        _check_left_after_a_fault(maildir, root, disk.calls[nth - 1].path if len(disk.calls) >= nth else "")
        assert _check_messages(feature, _files(root), str(root)) == expected, disk.calls[nth - 1]
        over = len(disk.calls) < nth
        await feature.deliver(maildir)
        await maildir.append(b"no duplicate")
        _check_quota(maildir, _files(root))
        await maildir.aclose()
        _check_nothing_left(maildir, root)
        if over:
            assert nth > 10
            return


def _check_left_after_a_fault(maildir: Maildir, root: Path, path: str) -> None:
    if not path.endswith(".lock"):  # one that could not be removed is broken by the next
        _check_nothing_left(maildir, root)


# The delivery is cancelled.


async def _native(delivery: Awaitable[object], moment: Moment) -> None:
    task = asyncio.ensure_future(delivery)
    using = asyncio.ensure_future(moment.use(task.cancel))
    await asyncio.wait([task])
    using.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _scope(delivery: Awaitable[object], moment: Moment) -> None:
    with anyio.CancelScope() as scope:
        using = asyncio.ensure_future(moment.use(scope.cancel))
        await delivery
    using.cancel()


@rigged
@pytest.mark.parametrize("cancel", some([_native, _scope], 2), ids=["native", "scope"])
async def test_cancelled_at_every_call(
    tmp_path: Path, name: str, first: int, step: int, cancel: Callable[[Awaitable[object], Moment], Awaitable[None]]
) -> None:
    """When the cancellation is raised all are there, or none; nothing is left, and what the quota counts is right."""
    feature = FEATURES[name]
    for nth in itertools.count(first, step):
        root, seen = tmp_path / str(nth), tmp_path / f"{nth}.sqlite"
        _prepare(root, feature)
        moment = Moment()
        disk = FaultDisk(Fault("", nth=nth, gate=moment.gate))
        maildir = feature.maildir(root, disk, seen)
        await cancel(feature.deliver(maildir), moment)
        over, calls = len(disk.calls) < nth, len(disk.calls)
        _check_nothing_left(maildir, root)
        assert len(disk.calls) == calls, "a thread went on after the call had ended"
        count = _check_messages(feature, _files(root), str(root))
        assert count in ({}, Counter(feature.messages))
        _check_quota(maildir, _files(root))
        await maildir.aclose()
        await _again(feature, root, seen, count)
        if over:
            assert count
            assert nth > 10
            return


# Somebody removes it.


@rigged
async def test_removed_at_every_call(tmp_path: Path, name: str, first: int, step: int) -> None:
    """Whenever the folder, or the maildir, goes: what is told is true, nothing is left, and the next is delivered."""
    feature = FEATURES[name]
    for nth in itertools.count(first, step):
        root, seen = tmp_path / str(nth), tmp_path / f"{nth}.sqlite"
        _prepare(root, feature)
        box = root / feature.box

        def remove(box: Path = box) -> None:
            shutil.rmtree(box, ignore_errors=True)

        disk = FaultDisk(Fault("", nth=nth, gate=remove))
        maildir = feature.maildir(root, disk, seen)
        returned = True
        try:
            await feature.deliver(maildir)
        except MaildirError:
            returned = False
        over = len(disk.calls) < nth
        disk.faults.clear()  # the next delivery is not to be disturbed
        if box.exists():
            _check_nothing_left(maildir, root)
            count = _check_messages(feature, _files(root), str(root))
            # What had been published by then is gone with it.
            assert all(number == 1 for number in count.values())
            assert returned or not count
        await maildir.append_many([b"next"], folder=feature.box[1:].replace(".", "/"), atomic=True, keywords=["n"])
        await maildir.aclose()
        _check_nothing_left(maildir, root)
        assert sum(data == b"next" for data in _files(root).values()) == 1
        if over:
            assert returned
            assert count
            return


# Several at once.


async def _write_until_killed(root: Path, acknowledge: int, seed: int) -> None:
    """Deliver all kinds of messages side by side, and tell on a pipe of each that has been delivered."""
    dice = random.Random(seed)
    maildir = Maildir(root, **_EVERYTHING)

    async def writer(number: int) -> None:
        for count in itertools.count():
            folder = dice.choice([None, "x", "x/y", f"new{seed}-{count % 3}"])
            keywords = dice.sample(["a", "b", "c", f"of{seed % 5}"], dice.randint(0, 2))
            body = b"%d %d %d\n" % (seed, number, count) + b"x" * dice.choice([10, 5000, 600_000]) + b"\n-- end\n"
            if dice.random() < 0.3:
                delivered = await maildir.append_many([body, body], atomic=True, folder=folder, keywords=keywords)
            else:
                delivered = [await maildir.append(body, folder=folder, keywords=keywords)]
            for each in delivered:
                told = "\t".join([each.folder or "", each.key, str(each.size), ",".join(each.keywords)])
                os.write(acknowledge, told.encode() + b"\n")  # shorter than PIPE_BUF: in one piece

    await asyncio.gather(*map(writer, range(8)))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.heavy)])
def test_killed_with_all_kinds_in_hand(tmp_path: Path, kills: int) -> None:
    """What had been delivered is there, whole, with its keywords; nothing is torn; a count finds what is there."""
    root, dice = tmp_path / "m", random.Random(5)
    root.mkdir(mode=0o700)
    told: list[list[str]] = []
    for seed in range(kills):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: forking beside threads
            pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                asyncio.run(_write_until_killed(root, writer, seed))
            finally:
                os._exit(1)
        os.close(writer)
        said = [os.read(reader, 65536)]  # it is under way
        killer = threading.Timer(dice.uniform(0, 0.1), os.kill, (pid, signal.SIGKILL))
        killer.start()
        while piece := os.read(reader, 65536):
            said.append(piece)
        os.close(reader)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        killer.join()
        told += [line.split("\t") for line in b"".join(said).decode().splitlines()]
        for lock in root.rglob("*.lock"):
            if not lock.read_bytes():  # it had no process id yet, and would be waited for
                lock.unlink()
    files = _files(root)
    defined = {
        path.rpartition("/")[0]: parse_keywords(data)
        for path, data in files.items()
        if path.endswith("/dovecot-keywords")
    }
    there = dict[str, tuple[bytes, set[bytes]]]()
    for path in _found(files, str(root)):
        box, _, name = path.rpartition("/")
        assert files[path].endswith(b"\n-- end\n"), f"{path} is torn"
        letters = name.partition(":2,")[2]
        names = {key(defined[box.rpartition("/")[0]][ord(letter) - ord("a")]) for letter in letters}
        there[name.partition(":")[0]] = files[path], names
    for _, name, size, keywords in told:
        content, names = there[name]
        assert len(content) == int(size)
        assert names == {key(each) for each in keywords.split(",") if each}
    assert len(told) > kills
    litter = list(root.rglob("tmp/*"))
    assert len(litter) <= 3 * 8 * kills
    asyncio.run(_sweep(root, litter))
    (root / "maildirsize").unlink(missing_ok=True)
    maildir = Maildir(root, **_EVERYTHING)
    for folder in (None, *asyncio.run(maildir.folders())):
        asyncio.run(maildir.append(MESSAGE, folder=folder, keywords=["a", "new"]))  # for which a dead one's lock goes
    _check_quota(maildir, _files(root))
    _check_nothing_left(maildir, root)


@pytest.mark.parametrize("step", some([7, 1], 2))
def test_whoever_made_a_folder_was_killed(step: int) -> None:
    """Wherever he stood, and whatever he has not synced: what the next process delivers there survives a power cut."""
    feature = FEATURES["folder"]
    for nth in itertools.count(1, step):
        disk = CrashDisk()
        # A thread cannot be killed: nothing works for it any more, from there on.
        dying = FaultDisk(*(Fault("", errno.EIO, nth=later) for later in range(nth, nth + 200)), disk=disk)
        with contextlib.suppress(MaildirError):
            asyncio.run(_deliver_and_close(feature, feature.maildir("/box/m", dying, Path())))
        survivor = Maildir("/box/m", disk=FaultDisk(disk=disk), commit=GroupCommit())
        delivered = asyncio.run(survivor.append(b"x", folder="x/y"))
        for files in disk.after_power_cut():
            assert files.get(delivered.path) == b"x", nth
        if len(dying.calls) < nth:
            assert nth > 40
            return


async def test_what_the_helper_writes_in_a_folder_is_not_swept(tmp_path: Path) -> None:
    """clean_tmp takes what others have left in a folder, and nothing that the helper process is writing there."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(tmp_path / "m", commit=commit)
    await maildir.create_folder("x")
    litter = tmp_path / "m" / ".x" / "tmp" / "litter"
    litter.touch()
    async with maildir.open_append(folder="x") as task:
        await task.send(LONG)
        while len(names := os.listdir(litter.parent)) < 2:
            await asyncio.sleep(0.001)
        assert await maildir.clean_tmp(timedelta(0)) == [str(litter)]
        assert sorted(os.listdir(litter.parent)) == sorted({*names} - {"litter"})
    assert Path(task.future.result().path).read_bytes() == LONG
    assert os.listdir(litter.parent) == []
    await commit.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: a file of another's needs root")
async def test_a_quota_file_of_another_s(tmp_path: Path) -> None:
    """One that may not be read is replaced by one that is right, since the directory is the user's; no mail is lost."""
    root = tmp_path / "m"
    maildir = Maildir(root, quota=Quota(messages=2))
    await maildir.append_many([MESSAGE, MESSAGE])
    (root / "maildirsize").write_bytes(b"2C\n0 0\n")
    (root / "maildirsize").chmod(0o600)
    for each in [root, *root.rglob("*")]:
        if each.name != "maildirsize":
            shutil.chown(each, "nobody", "nogroup")
    for above in [*root.parents][:-1]:
        above.chmod(above.stat().st_mode | 0o011)

    def deliver() -> "tuple[str, tuple[str, ...]]":
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

        async def append() -> "tuple[str, tuple[str, ...]]":
            box = Maildir(root, quota=Quota(messages=3), commit=GroupCommit())
            delivered = await box.append(MESSAGE)
            with pytest.raises(QuotaExceededError):
                await box.append(MESSAGE)
            return delivered.path, delivered.warnings

        return asyncio.run(append())

    ((path, warned),) = await asyncio.to_thread(forked, deliver)
    assert Path(path).read_bytes() == MESSAGE
    assert warned == ()
    assert (root / "maildirsize").stat().st_uid == 65534
    held = parse_held((root / "maildirsize").read_bytes())
    assert held is not None
    assert (held.limits.messages, held.messages) == (3, 3)
