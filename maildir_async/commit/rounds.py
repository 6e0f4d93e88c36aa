"""One batch of messages on its way to the disk, and who has which of them in hand.

A round takes its messages through four steps, each finished before the next begins::

    write             create in tmp/, write what is still in memory
    sync              of each file, side by side (one after another they would gain nothing on a journal),
                      or with ``syncfs`` one for each file system
    publish           close each, and move it into new/ or cur/
    sync_directory    of each directory that got messages, side by side

One thread drives it. If that hangs on a message, whoever notices leaves the message behind: it leaves the round, which
another thread drives on without it, and the thread that hangs finishes it alone. What hangs in being synced holds up
no thread: the driver leaves it behind. So a slow file delays nobody but itself.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from maildir_async.commit.entry import Entry, families
from maildir_async.commit.target import Files, Target, by_file_system, sync_now
from maildir_async.disk.posix import Disk
from maildir_async.disk.syncs import Syncs, call_side_by_side
from maildir_async.format.delivered import Durability

__all__ = ["Round", "Step", "Syncing"]

Item = Entry | Files | Target

#: How often a driver that waits for syncs looks whether any has ended meanwhile, in its patience.
LOOKS: Final = 4


class Step:
    """One step of a round: what is to be done, what is in hand, and what is done.

    Takes no lock for each item: every change is one operation of a deque or a dict, which the interpreter makes
    indivisible. Whoever removes an item from where it is in hand has it: the thread that took it there, unless
    somebody has left it behind before.
    """

    def __init__(self, do: Callable[[Any], object], items: Sequence[Item]) -> None:
        self._do = do
        self._todo = deque(items)
        self._in_hand: dict[Item, None] = {}  # of the thread that drives the round: one at most
        self.moves = 0  # how many items are done; that it stands still is how a hang is noticed

    def work(self) -> Item | None:
        """Do what is to be done, until nothing is left.

        Returns None then; but if an item was left behind while this thread had it in hand, that one: the caller has
        to finish it alone, and has no part in this round any more.
        """
        do, todo, in_hand = self._do, self._todo, self._in_hand
        while True:
            try:
                item = todo.popleft()
            except IndexError:
                return None
            in_hand[item] = None
            do(item)
            try:
                del in_hand[item]
            except KeyError:
                return item
            self.moves += 1

    def depose(self) -> list[Item]:
        """If the driver has an item in hand, leave that behind, and return it."""
        behind: list[Item] = []
        for item in list(self._in_hand):
            try:
                del self._in_hand[item]
            except KeyError:
                continue
            behind.append(item)
        return behind


class Syncing(Step):
    """A step whose items are synced side by side.

    Args:
        groups: each some syncs under way, and the items they are for, in the same order.
        patience_s: seconds for which nothing may have ended before the rest is left behind.
        left_behind: told of a group and the items in it that were.

    """

    def __init__(
        self,
        groups: Iterable[tuple[Syncs, Sequence[Any]]],
        *,
        patience_s: float,
        left_behind: Callable[["Rest"], object],
    ) -> None:
        super().__init__(self._end, ())
        self._rests = [Rest(syncs, items) for syncs, items in groups]
        self._failures: dict[Item, BaseException | None] = {}
        self._patience_s = patience_s
        self._left_behind = left_behind

    def work(self) -> Item | None:
        """As `Step.work`: items are done in the order in which their syncs end."""
        while (behind := super().work()) is None and self._rests:
            self._wait()
        return behind

    def _wait(self) -> None:
        """Wait until something has ended; if nothing does, leave all that is left behind."""
        for _ in range(LOOKS):
            for rest in self._rests:
                for item, failure in rest.ended(self._patience_s / LOOKS if not self._todo else 0):
                    self._failures[item] = failure
                    self._todo.append(item)
            self._rests = [rest for rest in self._rests if rest.items]
            if self._todo or not self._rests:
                return
        rests, self._rests = self._rests, []
        for rest in rests:
            self._left_behind(rest)

    def _end(self, item: Any) -> None:
        item.sync_ended(self._failures.pop(item))


class Rest:
    """Syncs under way, and the items that they are for, but for those that have been returned."""

    def __init__(self, syncs: Syncs, items: Sequence[Item]) -> None:
        self._syncs = syncs
        self.items = dict(enumerate(items))

    def ended(self, timeout_s: float | None) -> Iterator[tuple[Item, BaseException | None]]:
        """Wait as `Syncs.done` does, and yield what has ended."""
        for number, failure in self._syncs.done(timeout_s):
            yield self.items.pop(number), failure


class Round:
    """A batch, and the step it is at.

    Args:
        entries: the messages.
        syncfs: whether to sync file systems, not files.
        patience_s: see `Syncing`.
        left_behind: told of what is left behind in being synced, which has left the round.

    """

    def __init__(
        self,
        entries: list[Entry],
        *,
        patience_s: float,
        left_behind: Callable[[Rest], object],
        syncfs: bool = False,
    ) -> None:
        self._syncfs = syncfs
        self._patience_s = patience_s
        self._left_behind = left_behind
        # Without those left behind. A link comes after what it is a link to, which takes it along.
        self.entries = families(entries)
        self._targets: dict[str, Target] = {}
        self._number = 0
        self.step: Step | None = Step(self._write, entries)  # None: it is over

    @property
    def moves(self) -> tuple[int, int]:
        """What changes with every move."""
        step = self.step
        return self._number, step.moves if step else 0

    def advance(self) -> None:
        """Go to the next step. Only the driver calls this, when the step before is done."""
        self._number += 1
        match self._number:
            case 1:
                files = [entry for entry in self.entries if entry.wants_sync]
                # For a lone message its own sync is as good, and does not wait for what others have written.
                if self._syncfs and len(files) > 1:
                    self.step = self._syncing(by_threads=by_file_system(files))
                else:
                    self.step = self._syncing(files)
            case 2:
                whole = [entry for entry in self.entries if entry.error is None and entry.tmpfile.source is None]
                self.step = Step(self._publish, whole)
            case 3:
                for entry in self.entries:
                    # Weaker levels have been given what they asked for: a failure here is none of theirs.
                    if entry.tmpfile.published and entry.tmpfile.durability is Durability.FULL:
                        self._targets[entry.tmpfile.target].entries.append(entry)
                known, fresh = list[Target](), list[Target]()
                for target in self._targets.values():
                    if target.full():
                        (known if target.is_known else fresh).append(target)
                self.step = self._syncing(known, by_threads=fresh)
            case _:
                self.step = None

    def _syncing(self, items: Sequence[Entry | Target] = (), *, by_threads: Sequence[Files | Target] = ()) -> Step:
        """Return the step that syncs *items*, and what takes more than one call by threads."""
        if len(items) + len(by_threads) == 1:
            return Step(sync_now, [*items, *by_threads])
        groups = _begun(items)
        if by_threads:
            groups.append((call_side_by_side([item.sync for item in by_threads]), by_threads))
        return Syncing(groups, patience_s=self._patience_s, left_behind=self._leave_behind)

    def _leave_behind(self, rest: Rest) -> None:
        self._drop(rest.items.values())
        self._left_behind(rest)

    def depose_hanging_driver(self) -> bool:
        """If the driver has an item in hand, leave that behind and return True: somebody else must drive."""
        behind = self.step.depose() if self.step is not None else []
        if behind:
            self._targets = dict(self._targets)  # who is left behind adds no more to these
            self._drop(behind)
        return bool(behind)

    @staticmethod
    def finish_alone(item: Item) -> Sequence[Entry]:
        """Take an item that was left behind through the steps that remain, and return its entries, to be settled."""
        if isinstance(item, Entry):
            if item.wants_sync:
                sync_now(item)
            _publish_alone(item)
            return list(item.family)
        if isinstance(item, Target):
            return item.entries
        for entry in item.entries:
            _publish_alone(entry)
        return families(item.entries)

    def _drop(self, behind: Iterable[Item]) -> None:
        gone: set[Entry] = set()
        for item in behind:
            if isinstance(item, Target):
                gone.update(item.entries)
            else:
                for entry in (item,) if isinstance(item, Entry) else item.entries:
                    gone.update(entry.family)
        if gone:
            self.entries = [entry for entry in self.entries if entry not in gone]

    def _write(self, entry: Entry) -> None:
        entry.write()
        if self._syncfs:
            entry.find_device()

    def _publish(self, entry: Entry) -> None:
        targets = self._targets
        target_of = partial(_target_in, targets)
        entry.publish_links(target_of)
        entry.publish(target_of(entry))
        if targets is not self._targets:  # left behind: what has been opened since then is nobody's
            for target in {*targets.values()} - {*self._targets.values()}:
                target.close()


def _target_in(targets: dict[str, Target], entry: Entry) -> Target:
    """Return the one of *targets* that *entry* is to be published in; a new one, if there is none."""
    target = targets.get(entry.tmpfile.target)
    if target is None:
        target = targets[entry.tmpfile.target] = Target(entry)
    return target


def _publish_alone(entry: Entry) -> None:
    """Publish an entry with its links, unless that is done, and sync the directories."""
    targets: dict[str, Target] = {}
    target_of = partial(_target_in, targets)
    if entry.error is None and not entry.tmpfile.published:
        entry.publish_links(target_of)
        entry.publish(target_of(entry))
    for member in entry.family:
        if member.tmpfile.published and member.tmpfile.durability is Durability.FULL:
            target = target_of(member)
            target.entries.append(member)
            try:
                target.open()
            except BaseException as exc:
                member.give_up(exc)
    for target in targets.values():
        sync_now(target)


def _begun(items: Iterable[Entry | Target]) -> list[tuple[Syncs, Sequence[Item]]]:
    """Begin to sync *items*, those on one disk together."""
    by_disk: dict[Disk, tuple[list[int], list[Entry | Target]]] = {}
    for item in items:
        try:
            fd = item.begin_sync()
        except BaseException as exc:
            item.sync_ended(exc)
            continue
        fds, those = by_disk.setdefault(item.disk, ([], []))
        fds.append(fd)
        those.append(item)
    return [(disk.start_syncs(fds), those) for disk, (fds, those) in by_disk.items()]
