"""Each message of a round goes through each step once, and one thread answers for it; what hangs is left behind."""

import asyncio
import errno
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from maildir_async.commit.batch import OVER, PUBLISH, SYNC, WRITE, LeftBehind, Record, Syncable, names_in_use, settled
from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.rounds import Round
from maildir_async.commit.syncing import LOOKS
from maildir_async.commit.target import Target
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew
from maildir_async.errors import UncertainAppendError
from maildir_async.format.delivered import Durability
from maildir_async.format.names import UniqueNames
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import PATIENCE_S, Gate

SHORT_S = 0.004  # a patience that is soon over: what is tested does not depend on when
LONG_S = 60.0
BAD = b"cannot be synced"


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """The interpreter changes threads wherever it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Keeper:
    """Keeps what a round leaves behind in being synced."""

    def __init__(self, patience_s: float = LONG_S) -> None:
        self.patience_s = patience_s
        self.syncers = Crew(64, "syncs")
        self.left: list[tuple[Syncs, dict[int, Syncable], int]] = []

    def finish_syncs(self, syncs: Syncs, items: dict[int, Syncable], step: int) -> None:
        self.left.append((syncs, items, step))


class CountingDisk(CrashDisk):
    """Counts what is done to each file, by name. The sync of a bad one fails, and the next says that all is well.

    With *kernel* it has a kernel that makes those syncs.
    """

    def __init__(self, kernel: "Callable[[Sequence[int]], Syncs] | None" = None) -> None:
        super().__init__()
        self.done: Counter[tuple[str, str]] = Counter()
        self._kernel = kernel
        self._names: dict[int, str] = {}

    def create(self, path: str, mode: int, directory: int | None = None) -> int:
        fd = super().create(path, mode, directory)
        self._names[fd] = path.rpartition("/")[2]
        self.done["create", self._names[fd]] += 1
        return fd

    def open_directory(self, path: str) -> int:
        fd = super().open_directory(path)
        self._names[fd] = path
        return fd

    def sync(self, fd: int) -> None:
        self.done["sync", self._names[fd]] += 1
        if self._open[fd].data == BAD and self.done["sync", self._names[fd]] == 1:
            raise OSError(errno.EIO, "lost")
        super().sync(fd)

    def close(self, fd: int) -> None:
        self.done["close", self._names[fd]] += 1
        super().close(fd)

    def rename_noreplace(
        self, source: str, target: str, source_directory: int | None = None, target_directory: int | None = None
    ) -> None:
        super().rename_noreplace(source, target, source_directory, target_directory)
        self.done["publish", target.rpartition("/")[2]] += 1

    def unlink(self, path: str, directory: int | None = None) -> None:
        self.done["unlink", path.rpartition("/")[2]] += 1
        super().unlink(path, directory)

    def syncs_by_kernel(self, device: int) -> bool:
        return self._kernel is not None

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        if self._kernel is None or fds[0] not in self._names or self._open[fds[0]].is_directory:
            return None
        return self._kernel(fds)


def mailbox(disk: Disk, path: str = "/m") -> Mailbox:
    directories = Directories(path, disk=disk, create=True)
    directories.make()
    return Mailbox(directories, UniqueNames(), 0o600)


def entry(where: Mailbox, data: bytes = b"message", durability: Durability = Durability.FULL) -> Entry:
    loop: Any = None  # nobody is told here
    return Entry(where, Plan(durability), data, loop, asyncio.Future(loop=LOOP))


LOOP = asyncio.new_event_loop()


class Threads:
    """Runs jobs in threads of their own, and has the first failure of any."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def start(self, job: Callable[[], object]) -> None:
        def run() -> None:
            try:
                job()
            except BaseException as exc:
                self._failures.append(exc)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for failure in self._failures:
            raise failure


class Driver:
    """Drives a round as a leader does; a thread that was left behind finishes its item alone."""

    def __init__(self, round_: Round, keeper: Keeper) -> None:
        self._round = round_
        self._keeper = keeper
        self.left: list[tuple[Syncable | Record | None, int]] = []
        self.over = threading.Event()

    def drive(self) -> None:
        try:
            self._round.drive()
        except LeftBehind as left:
            self._round.came_back()
            self.left.append((left.item, left.step))
            if isinstance(left.item, Entry):
                Round.of_one(left.item, self._keeper, left.step).drive()
        else:
            self.over.set()


def check(disk: CountingDisk, entries: Sequence[Entry]) -> None:
    """Each has been written, synced and published once; one that could not be synced has failed once, and is gone."""
    for each in entries:
        is_bad = isinstance(each.error, Exception)
        done = {what: disk.done[what, each.name] for what in ("create", "sync", "close", "publish", "unlink")}
        expected = {"create": 1, "sync": 1, "close": 1, "publish": int(not is_bad), "unlink": int(is_bad)}
        assert done == expected
        assert bool(each.path) is not is_bad
        if each.error is not None:
            assert (each.error.stage, each.error.errno) == ("sync", errno.EIO)
    for found in disk.after_power_cut(range(3)):
        assert {each.path for each in entries if each.path} <= set(found), "published, and not durable"
    assert [disk._names[fd] for fd in disk._open] == []
    settled(entries)


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_every_message_is_taken_through_every_step_once(count: int) -> None:
    """A driver takes each message through each step exactly once, and then the round is over."""
    disk, keeper = CountingDisk(), Keeper()
    where = mailbox(disk)
    disk.done.clear()
    entries = [entry(where) for _ in range(count)]
    round_ = Round([*entries], keeper)
    assert names_in_use() == set(), "nobody has a name yet"
    round_.drive()
    check(disk, entries)
    assert disk.done["sync", "/m/new"] == 1
    assert round_.step == OVER
    assert round_.entries == entries
    assert round_.moves >= 2 * count
    assert not round_.depose(), "there is nobody to replace"
    assert (keeper.left, names_in_use()) == ([], set())


@pytest.mark.parametrize(
    ("operation", "path", "step", "nth"),
    [
        ("create", "m/tmp/", WRITE, 3),
        ("write", "m/tmp/", WRITE, 3),
        ("close", "m/tmp/", PUBLISH, 3),
        ("rename_noreplace", "m/new/", PUBLISH, 3),
        ("unlink", "m/tmp/", SYNC, 1),
    ],
)
def test_a_hanging_driver_is_deposed(tmp_path: Path, operation: str, path: str, step: int, nth: int) -> None:
    """A driver that hangs is left behind with what is in hand, which it finishes; another does the rest."""
    gate, keeper, threads = Gate(), Keeper(), Threads()
    disk = FaultDisk(Fault(operation, nth=nth, path=path, gate=gate))
    if operation == "unlink":
        disk.faults.append(Fault("sync", errno.EIO, nth=3, path=path))
    where = mailbox(disk, str(tmp_path / "m"))
    entries = [entry(where) for _ in range(11)]
    round_ = Round([*entries], keeper)
    first, second = Driver(round_, keeper), Driver(round_, keeper)
    threads.start(first.drive)
    LOOP.run_until_complete(gate.reached())
    assert round_.step == step
    assert round_.depose()
    assert not round_.depose(), "nobody drives"
    assert len(round_.entries) == 10
    [hanging] = set(entries) - set(round_.entries)
    assert {hanging.name, hanging.tmp_name} - {""} <= names_in_use()
    second.drive()
    assert second.over.is_set()
    assert all(each.path for each in round_.entries)
    assert (hanging.path, first.left) == ("", [])
    gate.open()
    threads.join()
    assert first.left == [(hanging, step)]
    if operation == "unlink":
        assert hanging.error is not None
        assert hanging.error.errno == errno.EIO
    else:
        assert hanging.path
    for what in ("create", "sync", "close"):
        assert sum(call.operation == what and "m/tmp/" in call.path for call in disk.calls) == 11, what
    assert sum(call.operation == "rename_noreplace" for call in disk.calls) == 11 - (operation == "unlink")
    settled(entries)
    assert names_in_use() == set()


@pytest.mark.parametrize("kind", ["lone file", "directory"])
def test_a_sync_that_a_driver_makes_itself_is_not_repeated(tmp_path: Path, kind: str) -> None:
    """A lone file or directory is synced by the driver. If that hangs, nobody syncs it again, whatever it comes to."""
    gate, keeper, threads = Gate(), Keeper(), Threads()
    path = "m/tmp/" if kind == "lone file" else "m/new"
    disk = FaultDisk(Fault("sync", errno.EIO, path=path, gate=gate))
    where = mailbox(disk, str(tmp_path / "m"))
    disk.calls.clear()
    disk.faults[0].seen = 0
    weak = entry(where, durability=Durability.NONE)
    entries = [entry(where), weak]
    round_ = Round([*entries], keeper)
    first, second = Driver(round_, keeper), Driver(round_, keeper)
    threads.start(first.drive)
    LOOP.run_until_complete(gate.reached())
    assert round_.depose()
    second.drive()
    assert second.over.is_set()
    assert (weak.error, bool(weak.path)) == (None, True)
    gate.open()
    threads.join()
    assert sum(call.operation == "sync" and path in call.path for call in disk.calls) == 1
    if kind == "lone file":
        assert entries[0].error is not None
        assert (entries[0].error.stage, entries[0].path) == ("sync", "")
    else:
        [(target, _)] = first.left
        assert isinstance(target, Target)
        assert target.entries == [entries[0]]
        assert isinstance(entries[0].error, UncertainAppendError)
        target.close()
    settled(entries)


class FakeSyncs:
    """Syncs that end when told, and as told."""

    def __init__(self, ended: Sequence[int] = (), *, failed: Sequence[int] = (), count: int = 0) -> None:
        self.ended: list[int] = [*failed, *ended]
        self.failures: dict[int, BaseException] = {number: OSError(errno.EIO, "no") for number in failed}
        self._count = count or len(self.ended)
        self.asked = 0
        self.left_behind = 0
        self._changed = threading.Condition()

    def end(self, number: int) -> None:
        with self._changed:
            self.ended.append(number)
            self._changed.notify_all()

    def wait(self, timeout_s: float | None) -> bool:
        with self._changed:
            self.asked += 1
            self.look()
            return self._changed.wait_for(lambda: len(self.ended) == self._count, timeout_s)

    def look(self) -> None:
        pass

    def leave_behind(self) -> None:
        self.left_behind += 1


@pytest.mark.parametrize("by_kernel", [False, True])
def test_deposing_at_any_moment(by_kernel: bool) -> None:
    """However often drivers are deposed, each message is taken through each step once, and no failure told twice."""

    def kernel(fds: Sequence[int]) -> Syncs:
        failed = []
        for number, fd in enumerate(fds):
            try:
                disk.sync(fd)
            except OSError:
                failed.append(number)
        return FakeSyncs([number for number in range(len(fds)) if number not in failed], failed=failed)

    deposed = 0
    for _ in range(60):
        disk, keeper, threads = CountingDisk(kernel if by_kernel else None), Keeper(), Threads()
        where = mailbox(disk)
        entries = [entry(where, BAD if number % 5 == 3 else b"message") for number in range(20)]
        round_ = Round([*entries], keeper)
        driver = Driver(round_, keeper)
        threads.start(driver.drive)
        while not driver.over.is_set():
            if round_.depose():
                threads.start(driver.drive)
        threads.join()
        for item, _ in driver.left:
            if isinstance(item, Target):  # which the queue does
                item.sync_above()
                item.close()
        left = [item for item, _ in driver.left if isinstance(item, Entry)]
        assert len(set(left)) == len(left)
        check(disk, entries)
        assert sum(each.error is not None for each in entries) == 4
        assert keeper.left == []
        deposed += len(driver.left)
    assert deposed, "nobody was ever deposed: this was no test"


def test_every_message_learns_how_its_sync_ended() -> None:
    """Messages on several disks are told of their own syncs, whichever end first."""
    groups = [FakeSyncs([2, 0], failed=[1]), FakeSyncs([1], failed=[0])]
    disks = [CountingDisk(lambda fds, syncs=syncs: syncs) for syncs in groups]  # type: ignore[misc]
    first, second = (mailbox(disk) for disk in disks)
    entries = [*[entry(first) for _ in range(3)], *[entry(second) for _ in range(2)]]
    Round([*entries], Keeper()).drive()
    assert [each.error is not None for each in entries] == [False, True, False, True, False]
    assert [bool(each.path) for each in entries] == [True, False, True, False, True]
    assert [syncs.failures for syncs in groups] == [{}, {}], "each has been told"


def test_nobody_who_asks_for_none_is_synced() -> None:
    """Where no message has to be synced there is nothing to wait for, and no directory is synced."""
    disk, keeper = CountingDisk(), Keeper()
    where = mailbox(disk)
    disk.done.clear()
    entries = [entry(where, durability=Durability.NONE) for _ in range(3)]
    Round([*entries], keeper).drive()
    assert all(each.path for each in entries)
    assert not any(operation == "sync" for operation, _ in disk.done)


def test_syncs_that_hang_are_left_behind() -> None:
    """The driver goes on without messages whose syncs do not end; whoever takes these has them, and what failed."""
    syncs = FakeSyncs(range(2, 19), failed=[19], count=20)
    disk, keeper = CountingDisk(lambda fds: syncs), Keeper(SHORT_S)
    where = mailbox(disk)
    entries = [entry(where) for _ in range(20)]
    round_ = Round([*entries], keeper)
    round_.drive()
    assert keeper.left == [(syncs, {0: entries[0], 1: entries[1]}, SYNC)]
    assert syncs.left_behind == 1
    assert [bool(each.path) for each in entries] == [False] * 2 + [True] * 17 + [False]
    assert [each.error is not None for each in entries] == [False] * 19 + [True]
    assert round_.entries == entries[2:]
    assert all(each.fd >= 0 for each in entries[:2]), "which is still being synced"
    assert {each.tmp_name for each in entries[:2]} <= names_in_use(), "nobody sweeps them away"
    for each in entries[:2]:
        each.sync_ended(OSError(errno.EIO, "at last") if each is entries[0] else None)
        Round.of_one(each, keeper, SYNC).drive()
    assert [bool(each.path) for each in entries[:2]] == [False, True]
    settled(entries)
    assert names_in_use() == set()
    assert disk.open_files == 0


class SlowSyncs(FakeSyncs):
    """One more has ended at every last look that a driver takes before its patience is over."""

    def look(self) -> None:
        if self.asked % LOOKS == 0:
            self.ended.append(len(self.ended))

    def wait(self, timeout_s: float | None) -> bool:
        return super().wait(0)


def test_syncs_of_which_some_end_are_waited_for() -> None:
    """No message is left behind while others still get synced, however long it takes in all."""
    disk, keeper = CountingDisk(lambda fds: SlowSyncs(count=40)), Keeper()
    where = mailbox(disk)
    entries = [entry(where) for _ in range(40)]
    Round([*entries], keeper).drive()
    assert keeper.left == []
    assert all(each.path for each in entries)
    settled(entries)


def test_a_driver_that_hangs_after_a_sync_is_deposed(tmp_path: Path) -> None:
    """What has failed and is not told yet is told by the next driver; the one that hangs finishes its own."""
    gate, keeper, threads = Gate(), Keeper(), Threads()
    syncs = FakeSyncs([3], failed=[0, 1, 2])

    class Kernel(FaultDisk):
        def syncs_by_kernel(self, device: int) -> bool:
            return True

        def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
            return syncs

    disk = Kernel(Fault("unlink", path="m/tmp/", gate=gate))
    where = mailbox(disk, str(tmp_path / "m"))
    entries = [entry(where) for _ in range(4)]
    round_ = Round([*entries], keeper)
    first, second = Driver(round_, keeper), Driver(round_, keeper)
    threads.start(first.drive)
    LOOP.run_until_complete(gate.reached())
    assert round_.depose()
    assert round_.entries == entries[1:]
    second.drive()
    assert [each.error is not None for each in entries[1:]] == [True, True, False]
    assert entries[3].path
    gate.open()
    threads.join()
    assert first.left == [(entries[0], SYNC)]
    assert entries[0].error is not None
    assert not any(each.path for each in entries[:3])
    assert not list((tmp_path / "m" / "tmp").iterdir())
    assert sum(call.operation == "unlink" for call in disk.calls) == 3
    settled(entries)


def test_directories_of_a_thread_that_hangs_stay_open() -> None:
    """What a thread that was left behind may be about to use is closed when that has come back, and not before."""
    disk, keeper = CountingDisk(), Keeper()
    where = mailbox(disk)
    entries = [entry(where) for _ in range(9)]
    round_ = Round([*entries], keeper)
    round_.hand = {entries[0]: None}
    assert round_.depose()
    round_.drive()
    assert [disk._names[fd] for fd in disk._open] == ["/m/tmp", "/m/new"]
    round_.came_back()
    assert disk.open_files == 0
    settled(entries)


def test_what_was_replaced_meanwhile_is_uncertain(tmp_path: Path) -> None:
    """A message that hung in being published, in a directory that is another by then, is not told to be durable."""
    disk = FaultDisk()
    where = mailbox(disk, str(tmp_path / "m"))
    for durability in (Durability.FULL, Durability.FILE):
        one = entry(where, durability=durability)
        Round([one], Keeper()).drive()
        (tmp_path / "m" / "new").rename(tmp_path / f"away {durability}")
        (tmp_path / "m" / "new").mkdir()
        Round.of_one(one, Keeper(), PUBLISH).drive()
        if durability is Durability.FULL:
            assert isinstance(one.error, UncertainAppendError)
            assert one.error.errno == errno.ESTALE
        else:
            assert one.error is None
