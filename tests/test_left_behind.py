"""What hangs is left behind, and is finished alone: with the same promises, once, and without holding up anybody."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from look import Look, descriptors, until
from maildir_async import AppendError, Delivered, Durability, GroupCommit, Maildir, UncertainAppendError, deliver
from maildir_async.commit.batch import SYNC
from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.syncs import CallsSideBySide
from maildir_async.disk.threads import Crew
from maildir_async.format.names import UniqueNames
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import PATIENCE_S, Gate

SOON_S = 0.05  # a patience that is soon over: what is tested does not depend on when


def impatient(*, syncfs: bool = False) -> GroupCommit:
    commit = GroupCommit(syncfs=syncfs)
    commit.queue.patience_s = commit._watch._interval_s = SOON_S
    return commit


def existing(path: Path, **options: Any) -> Maildir:
    """A maildir that somebody else has made: it is not known to be durable."""
    for name in ("cur", "new", "tmp"):
        os.makedirs(path / name)
    return Maildir(path, **options)


class HangingDirectories(PosixDisk):
    """The sync of these directories, by the very paths that they are opened by, takes as long as the test wants."""

    def __init__(self, *paths: str) -> None:
        self.gates = {path: Gate() for path in paths}
        self._paths: dict[int, str] = {}

    def open_directory(self, path: str) -> int:
        fd = super().open_directory(path)
        self._paths[fd] = path
        return fd

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        fd = super().create(path, mode, directory)
        self._paths.pop(fd, None)
        return fd

    def sync(self, fd: int) -> None:
        if gate := self.gates.get(self._paths.get(fd, "")):
            gate()
        super().sync(fd)


async def test_two_directories_above_that_hang(tmp_path: Path) -> None:
    """A message is told when the last of the directories above it is durable, and once; others need not wait."""
    a, above_a = f"{tmp_path}/a", f"{tmp_path}/a/.."
    disk, commit = HangingDirectories(a, above_a), impatient()
    maildirs = [existing(tmp_path / name, disk=disk, commit=commit) for name in ("a", "apart/b")]  # no parent in common
    hanging, other = (asyncio.ensure_future(maildir.append(b"message")) for maildir in maildirs)
    await other
    disk.gates[a].open()
    await asyncio.sleep(4 * SOON_S)  # long enough for one that does not wait; one that does passes in any case
    assert not hanging.done()
    disk.gates[above_a].open()
    assert (await hanging).durability is Durability.FULL
    assert [maildir.statistics().in_flight for maildir in maildirs] == [0, 0]
    assert [maildir.statistics().delivered for maildir in maildirs] == [1, 1]
    assert commit.statistics().pending == 0
    assert commit.wait_idle(PATIENCE_S)
    assert not descriptors(tmp_path)


@pytest.mark.parametrize("first", [0, 1])
async def test_a_directory_above_that_hangs_and_fails(tmp_path: Path, first: int) -> None:
    """Whichever of several ends first, one that fails makes the message uncertain."""
    a, above_a = f"{tmp_path}/a", f"{tmp_path}/a/.."

    class Failing(HangingDirectories):
        def sync(self, fd: int) -> None:
            is_above = self._paths.get(fd) == above_a
            super().sync(fd)
            if is_above:
                raise OSError(errno.EIO, "lost")

    disk, commit = Failing(a, above_a), impatient()
    maildirs = [existing(tmp_path / name, disk=disk, commit=commit) for name in ("a", "apart/b")]  # no parent in common
    hanging, other = (asyncio.ensure_future(maildir.append(b"message")) for maildir in maildirs)
    await other
    for gate in [disk.gates[above_a], disk.gates[a]][:: 1 if first else -1]:
        gate.open()
        await asyncio.sleep(SOON_S)
    with pytest.raises(UncertainAppendError):
        await hanging
    assert (maildirs[0].statistics().in_flight, maildirs[0].statistics().uncertain) == (0, 1)


@pytest.mark.parametrize("durability", [Durability.FILE, Durability.NONE])
async def test_a_weaker_message_that_hangs_syncs_no_directory(tmp_path: Path, durability: Durability) -> None:
    """A message left behind in being published is told no failure of a sync that it has not asked for."""
    gate, commit = Gate(), impatient()
    disk = FaultDisk(Fault("rename_noreplace", path="a/new", gate=gate), Fault("sync", errno.EIO, nth=0, path="a/new"))
    await Maildir(tmp_path / "a").create()
    hanging = asyncio.ensure_future(
        Maildir(tmp_path / "a", disk=disk, commit=commit).append(b"message", durability=durability)
    )
    await gate.reached()
    await Maildir(tmp_path / "b", disk=disk, commit=commit).append(b"which goes on without it")
    gate.open()
    delivered = await hanging
    assert (delivered.durability, delivered.warnings) == (durability, ())


async def test_a_durable_message_that_hangs_syncs_its_directory(tmp_path: Path) -> None:
    """A message left behind in being published is durable when it is told, or uncertain."""
    await Maildir(tmp_path / "a").create()
    for error in (None, errno.EIO):
        gate, commit = Gate(), impatient()
        disk = FaultDisk(Fault("rename_noreplace", path="a/new", gate=gate), Fault("sync", error, path="a/new"))
        hanging = asyncio.ensure_future(Maildir(tmp_path / "a", disk=disk, commit=commit).append(b"message"))
        await gate.reached()
        await Maildir(tmp_path / "b", disk=disk, commit=commit).append(b"which goes on without it")
        gate.open()
        if error is None:
            assert (await hanging).durability is Durability.FULL
        else:
            with pytest.raises(UncertainAppendError):
                await hanging
        assert sum(call.operation == "sync" and call.path.endswith("a/new") for call in disk.calls) == 1


def submit(commit: GroupCommit, maildirs: list[Maildir]) -> list[Entry]:
    """Hand over a message for all of *maildirs*, and return its entries, those of the links before its own."""
    loop = asyncio.get_running_loop()
    links: list[Entry] = []
    for maildir in maildirs:
        entry = Entry(maildir.mailbox, Plan(Durability.FULL), b"message", loop, loop.create_future(), links=links)
        maildir.mailbox.enter()
        if maildir is not maildirs[-1]:
            entry.links = ()
            links.append(entry)
    for link in links:
        link.source = entry
    commit.submit(entry)
    return [*links, entry]


async def test_links_wait_for_a_file_system_that_hangs(tmp_path: Path) -> None:
    """With syncfs nothing of a message for several is visible before it has been synced, and each has it once."""
    gate, commit = Gate(), impatient(syncfs=True)
    for name in "abc":
        await Maildir(tmp_path / name).create()
    disk = FaultDisk(Fault("sync_file_system", gate=gate))
    a, b, c = maildirs = [Maildir(tmp_path / name, disk=disk, commit=commit) for name in "abc"]
    entries = [*submit(commit, [a, b]), *submit(commit, [c])]
    await gate.reached()
    await Maildir(tmp_path / "d", commit=commit).append(b"which goes on without them")
    assert not any(Look(maildir.path).messages() for maildir in maildirs)
    gate.open()
    await asyncio.wait([entry.future for entry in entries])
    assert all(entry.delivered for entry in entries)
    assert [Look(maildir.path).messages() for maildir in maildirs] == [[b"message"]] * 3
    assert [maildir.statistics().in_flight for maildir in maildirs] == [0, 0, 0]


async def test_a_file_system_that_fails_after_having_hung(tmp_path: Path) -> None:
    """Its messages fail, those for several too, and nothing is left of them."""
    gate, commit = Gate(), impatient(syncfs=True)
    for name in "abc":
        await Maildir(tmp_path / name).create()
    disk = FaultDisk(Fault("sync_file_system", errno.EIO, gate=gate))
    a, b, c = maildirs = [Maildir(tmp_path / name, disk=disk, commit=commit) for name in "abc"]
    entries = [*submit(commit, [a, b]), *submit(commit, [c])]
    await gate.reached()
    await Maildir(tmp_path / "d", commit=commit).append(b"which goes on without them")
    gate.open()
    await asyncio.wait([entry.future for entry in entries])
    assert [entry.error and (entry.error.stage, entry.error.errno) for entry in entries] == [("sync", errno.EIO)] * 3
    assert not any(Look(maildir.path).messages() or Look(maildir.path).names("tmp") for maildir in maildirs)


async def test_of_a_file_system_that_hung_each_message_goes_by_itself(tmp_path: Path) -> None:
    """One that hangs again, in being published, holds up none of those that were left behind with it."""
    gate, again, commit = Gate(), Gate(), impatient(syncfs=True)
    for name in "ab":
        await Maildir(tmp_path / name).create()
    disk = FaultDisk(Fault("sync_file_system", gate=gate), Fault("rename_noreplace", path="a/new", gate=again))
    a, b = (
        asyncio.ensure_future(Maildir(tmp_path / name, disk=disk, commit=commit).append(b"message")) for name in "ab"
    )
    await gate.reached()
    await Maildir(tmp_path / "d", commit=commit).append(b"which goes on without them")
    gate.open()
    await again.reached()
    await b
    assert not a.done()
    again.open()
    await a


async def test_cleaning_up_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    """Of two left behind in being synced, one fails, and its file cannot be removed for now: the other goes on."""
    sync_a, sync_b, unlink = Gate(), Gate(), Gate()
    disk, commit = FaultDisk(), impatient()
    for name in "ab":
        await Maildir(tmp_path / name).create()
    disk.faults += [
        Fault("sync", errno.EIO, path="/a/tmp/", gate=sync_a),
        Fault("sync", path="/b/tmp/", gate=sync_b),
        Fault("unlink", path="/a/tmp/", gate=unlink),
    ]
    a, b, c = (
        asyncio.ensure_future(Maildir(tmp_path / name, disk=disk, commit=commit).append(b"message")) for name in "abc"
    )
    await c
    sync_a.open()
    await unlink.reached()
    sync_b.open()
    await asyncio.wait_for(b, PATIENCE_S)
    assert not a.done()
    unlink.open()
    with pytest.raises(AppendError) as caught:
        await a
    assert (caught.value.stage, caught.value.errno) == ("sync", errno.EIO)
    assert [Look(tmp_path / name).names("tmp") for name in "abc"] == [[], [], []]


class Told:
    """An item whose sync was left behind."""

    def __init__(self) -> None:
        self.failures: list[BaseException | None] = []
        self.targets = self.entries = ()

    def sync_ended(self, failure: BaseException | None) -> None:
        self.failures.append(failure)


def test_what_ends_while_it_is_being_left_behind_waits_for_nobody() -> None:
    """A sync that ends in the moment in which it is left behind is finished then, and not with the next that ends."""
    first, hang = threading.Event(), threading.Event()
    queue, crew = GroupCommit().queue, Crew(4, "few")
    syncs = CallsSideBySide(crew, [lambda: first.wait(PATIENCE_S), lambda: hang.wait(PATIENCE_S)])
    items: list[Any] = [Told(), Told()]
    hanging = dict(enumerate(items))
    first.set()
    until(lambda: syncs.ended == [0])
    syncs.leave_behind()
    queue.finish_syncs(syncs, hanging, SYNC)
    until(lambda: items[0].failures == [None])
    assert items[1].failures == []
    hang.set()
    until(lambda: items[1].failures == [None])
    assert queue.committers.wait_idle(PATIENCE_S)
    assert crew.wait_idle(PATIENCE_S)
    assert crew._size == 4


async def test_two_disks_with_the_same_paths() -> None:
    """Maildirs on different disks have nothing to do with each other, even in one batch and by one path."""
    disks, commit = [CrashDisk() for _ in range(3)], GroupCommit()
    maildirs = [Maildir("/m", disk=disk, commit=commit) for disk in disks]
    for _ in range(2):
        appends = [maildir.append(b"%d" % number) for _ in range(3) for number, maildir in enumerate(maildirs)]
        delivered = await asyncio.gather(*appends)
    for number, disk in enumerate(disks):
        assert sorted(disk.files().values()) == [b"%d" % number] * 6
        assert all(one.path in found for one in delivered[number::3] for found in disk.after_power_cut())
        assert disk.open_files == 0


def test_who_begins_while_it_is_being_closed_is_counted_or_refused(tmp_path: Path) -> None:
    """A message that is refused because its maildir has just been closed is not waited for."""
    mailbox = Mailbox(Directories(str(tmp_path), disk=PosixDisk(), create=True), UniqueNames(), 0o600)

    class Closing:
        """A lock: as soon as it is let go, another thread closes the mailbox."""

        def __enter__(self) -> None: ...

        def __exit__(self, *args: object) -> None:
            mailbox.closed = True

    setattr(mailbox, "_lock", Closing())  # noqa: B010 another kind of lock
    assert mailbox.begin() is (mailbox.in_flight == 1)
    assert not mailbox.begin()
    assert mailbox.in_flight == 1


async def test_no_memory_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If settling a batch fails half-way, unforeseen, each message is counted once, and the next ones are delivered."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    commit = GroupCommit()
    maildir = Maildir(tmp_path / "m", commit=commit)
    await maildir.append(b"first use")
    original: Callable[..., None] = commit.donation.enough

    def failing() -> None:
        monkeypatch.setattr(commit.donation, "enough", original)
        raise MemoryError

    monkeypatch.setattr(commit.donation, "enough", failing)
    appends = [asyncio.ensure_future(maildir.append(b"message")) for _ in range(3)]
    await asyncio.wait(appends)
    assert all(isinstance(append.result(), Delivered) for append in appends)
    assert isinstance(await maildir.append(b"next"), Delivered)
    assert (maildir.statistics().in_flight, commit.statistics().pending) == (0, 0)


@pytest.mark.parametrize("flags", ["", "S"])
async def test_a_directory_stays_open_for_a_thread_that_hangs(tmp_path: Path, flags: str) -> None:
    """A message whose move hangs is not put into another directory, though its own was left behind and finished.

    Where there is no ``renameat2`` a move is two calls by the directory's descriptor. If that were closed in between,
    its number could be another directory's by then: the message would be acknowledged, and nobody would find it.
    """
    directory = "cur" if flags else "new"
    moving, syncing = Gate(), Gate()
    move = Fault("rename_noreplace", errno.EINVAL, nth=2, gate=moving)
    sync = Fault("sync", path=f"{tmp_path}/m/{directory}", gate=syncing)
    commit = impatient()
    maildir = existing(tmp_path / "m", disk=FaultDisk(move, sync), commit=commit)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    first, second = (asyncio.ensure_future(maildir.append(message, flags=flags)) for message in (b"first", b"second"))
    await moving.reached()
    await syncing.reached()
    await existing(tmp_path / "other", commit=commit).append(b"other")  # the sync has been left behind, too
    syncing.open()
    await first
    fds = [os.open(elsewhere, os.O_RDONLY) for _ in range(64)]  # some has the number of what was closed
    try:
        moving.open()
        delivered = await second
    finally:
        for fd in fds:
            os.close(fd)
    assert os.listdir(elsewhere) == []
    assert Path(delivered.path).read_bytes() == b"second"
    assert sorted(Look(maildir.path).messages()) == [b"first", b"second"]
    assert commit.wait_idle(PATIENCE_S)
    assert descriptors(tmp_path) == set()


async def test_what_is_left_behind_twice_is_told_when_its_directory_is_synced(tmp_path: Path) -> None:
    """A message that hung is finished alone; where a directory's sync hangs then, it alone is not told of yet."""
    writing, syncing, disk, commit = Gate(), Gate(), FaultDisk(), impatient()
    a, b, other = (Maildir(tmp_path / name, disk=disk, commit=commit) for name in ("a", "b", "other"))
    for maildir in (a, b, other):
        await maildir.append(b"first")
    disk.faults += [Fault("write", gate=writing), Fault("sync", gate=syncing, path=f"{a.path}/new")]
    sent = asyncio.ensure_future(deliver(b"for both", [a, b]))
    await writing.reached()
    await other.append(b"meanwhile")  # the round goes on, without what hangs
    writing.open()
    await syncing.reached()
    deadline = time.monotonic() + PATIENCE_S
    while b.statistics().delivered < 2:  # that directory is synced, and what could be told has been
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert (a.statistics().delivered, a.statistics().in_flight) == (1, 1)
    assert not sent.done()
    syncing.open()
    assert all(outcome.delivered is not None for outcome in await sent)
    assert [(maildir.statistics().delivered, maildir.statistics().in_flight) for maildir in (a, b)] == [(2, 0)] * 2
    assert commit.statistics().pending == 0
    assert commit.wait_idle(PATIENCE_S)
