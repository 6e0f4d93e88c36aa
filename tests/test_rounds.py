"""A step's items are each done once, and have one thread that answers for each; what hangs is left behind."""

import errno
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from look import until
from maildir_async.commit.entry import Entry
from maildir_async.commit.rounds import LOOKS, Rest, Round, Step, Syncing
from maildir_async.disk.syncs import Outcome

SHORT_S = 0.004  # a patience that is soon over: what is tested does not depend on when
LONG_S = 60.0


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """The interpreter changes threads wherever it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Item:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.done = 0
        self.failure: BaseException | None = None

    def do(self) -> None:
        for _ in range(3):
            time.sleep(0)  # lets others come in between
        self.done += 1

    def sync_ended(self, failure: BaseException | None) -> None:
        self.failure = failure
        self.do()


def step_of(items: list[Any]) -> Step:
    return Step(lambda item: item.do(), items)


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
            thread.join(30)
            assert not thread.is_alive()
        for failure in self._failures:
            raise failure


class Hanging(Item):
    """Takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.release = threading.Event(), threading.Event()

    def do(self) -> None:
        self.begun.set()
        assert self.release.wait(30)
        super().do()


def test_every_item_is_done_once() -> None:
    """A driver does each item exactly once, and then the step is over."""
    for count in [0, 1, 2, 3, 40]:
        items = [Item() for _ in range(count)]
        step = step_of(items)
        assert step.work() is None
        assert step.work() is None
        assert [item.done for item in items] == [1] * count
        assert step.moves == count
        assert step.depose() == [], "there is nobody to replace"


def test_a_hanging_driver_is_deposed() -> None:
    """A driver that hangs is left behind with what is in hand; another does the rest."""
    hanging = Hanging()
    items = [hanging, *(Item() for _ in range(10))]
    step, threads = step_of(items), Threads()
    alone: list[Any] = []
    threads.start(lambda: alone.append(step.work()))
    assert hanging.begun.wait(30)
    left: list[Any] = step.depose()
    assert left == [hanging]
    assert step.depose() == []
    assert step.work() is None
    assert step.moves == 10
    assert alone == []
    hanging.release.set()
    threads.join()
    assert alone == [hanging]
    assert [item.done for item in items] == [1] * 11


def test_deposing_at_any_moment() -> None:
    """However often drivers are deposed while they work, each item is done once and has one who answers for it."""
    deposed = 0
    for number in range(150):
        items = [Item() for _ in range(30)]
        step = step_of(items) if number % 2 else syncing(FakeSyncs(range(30)), items)[0]
        threads = Threads()
        left: list[Any] = []
        alone: list[Any] = []
        over = threading.Event()

        def drive(
            step: Step = step, threads: Threads = threads, alone: list[Any] = alone, over: threading.Event = over
        ) -> None:
            if (behind := step.work()) is not None:
                alone.append(behind)
            else:
                over.set()

        threads.start(drive)
        while not over.is_set():
            if behind := step.depose():
                left += behind
                threads.start(drive)
        threads.join()
        left += step.depose()
        assert sorted(map(id, left)) == sorted(map(id, alone))
        assert [item.done for item in items] == [1] * 30
        assert step.moves == 30 - len(left)
        deposed += len(left)
    assert deposed, "nobody was ever deposed: this was no test"


class FakeSyncs:
    """Syncs that end when told, and as told."""

    def __init__(self, ended: Sequence[int] = (), *, failed: Sequence[int] = ()) -> None:
        self._news: deque[Outcome] = deque((number, None) for number in ended)
        self._news.extend((number, OSError(errno.EIO, "no")) for number in failed)
        self.asked = 0
        self._changed = threading.Condition()

    def end(self, number: int) -> None:
        with self._changed:
            self._news.append((number, None))
            self._changed.notify_all()

    def done(self, timeout_s: float | None) -> Sequence[Outcome]:
        with self._changed:
            self._changed.wait_for(lambda: self._news, timeout_s)
            found = list(self._news)
            self._news.clear()
            return found


def syncing(*groups: Any, patience_s: float = LONG_S) -> tuple[Syncing, list[Rest]]:
    """Return a step, and what it has left behind, given syncs and items in turns."""
    rests: list[Rest] = []
    pairs = zip(groups[::2], groups[1::2], strict=True)
    return Syncing(pairs, patience_s=patience_s, left_behind=rests.append), rests


def refuse(rest: Rest) -> None:
    raise AssertionError("something was left behind")


def test_every_item_learns_how_its_sync_ended() -> None:
    """Items of several disks are told of their own syncs, whichever end first."""
    first, second = [Item() for _ in range(3)], [Item() for _ in range(2)]
    step, _ = syncing(FakeSyncs([2, 0], failed=[1]), first, FakeSyncs([1], failed=[0]), second)
    assert step.work() is None
    assert step.moves == 5
    assert [item.done for item in first + second] == [1] * 5
    assert [item.failure is not None for item in first + second] == [False, True, False, True, False]


def test_a_step_without_syncs_is_over() -> None:
    """Where nothing could even be begun there is nothing to wait for."""
    step, _ = syncing()
    assert step.work() is None
    assert step.moves == 0


def test_syncs_that_hang_are_left_behind() -> None:
    """The driver goes on without items whose syncs do not end; whoever takes these gets each when it does."""
    items: list[Any] = [Item() for _ in range(20)]
    syncs = FakeSyncs(range(2, 20))
    step, rests = syncing(syncs, items, patience_s=SHORT_S)
    assert step.work() is None
    assert step.moves == 18
    [rest] = rests
    assert list(rest.items.values()) == items[:2]
    assert [item.done for item in items] == [0, 0] + [1] * 18
    syncs.end(1)
    assert list(rest.ended(None)) == [(items[1], None)]
    syncs.end(0)
    assert list(rest.ended(None)) == [(items[0], None)]
    assert not rest.items


class SlowSyncs(FakeSyncs):
    """One more has ended at every last look that a driver takes before its patience is over."""

    def done(self, timeout_s: float | None) -> Sequence[Outcome]:
        self.asked += 1
        return [] if self.asked % LOOKS else [(self.asked // LOOKS - 1, None)]


def test_syncs_of_which_some_end_are_waited_for() -> None:
    """No item is left behind while others still get synced, however long it takes in all."""
    items = [Item() for _ in range(40)]
    step, rests = syncing(SlowSyncs(), items)
    assert step.work() is None
    assert not rests
    assert [item.done for item in items] == [1] * 40


def test_a_driver_that_hangs_after_a_sync_is_deposed() -> None:
    """What has ended and is not told yet is told by the next driver; the one that hangs finishes its own."""
    hanging = Hanging()
    items = [hanging, Item(), Item()]
    late = FakeSyncs()
    step, _ = syncing(FakeSyncs([0, 1]), items[:2], late, items[2:])
    threads, alone = Threads(), list[Any]()
    threads.start(lambda: alone.append(step.work()))
    assert hanging.begun.wait(30)
    left: list[Any] = step.depose()
    assert left == [hanging]
    late.end(0)
    assert step.work() is None
    assert step.moves == 2
    hanging.release.set()
    threads.join()
    assert alone == [hanging]
    assert [item.done for item in items] == [1] * 3


class FakeEntry(Entry):
    """What a round needs of an entry for its first step."""

    def __init__(self, hang: Hanging | None = None) -> None:
        self.links = ()
        self.written = 0
        self._hang = hang

    def write(self) -> None:
        if self._hang is not None:
            self._hang.do()
        self.written += 1


def test_a_round_drops_what_is_left_behind() -> None:
    """A round whose driver hangs has none of the message in hand, and its new driver writes each of the others."""
    hang = Hanging()
    entries = [FakeEntry(), FakeEntry(hang), FakeEntry()]
    round_ = Round([*entries], patience_s=LONG_S, left_behind=refuse)
    step, threads = round_.step, Threads()
    assert step is not None
    alone: list[Any] = []
    threads.start(lambda: alone.append(step.work()))
    assert hang.begun.wait(30)
    until(lambda: round_.moves == (0, 1))
    assert round_.depose_hanging_driver()
    assert not round_.depose_hanging_driver()
    assert list(map(id, round_.entries)) == [id(entries[0]), id(entries[2])]
    assert step.work() is None
    hang.release.set()
    threads.join()
    assert list(map(id, alone)) == [id(entries[1])]
    assert [entry.written for entry in entries] == [1, 1, 1]
