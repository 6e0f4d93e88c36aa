"""SYNC and SYNC_DIRECTORIES, the second and the last step of a round. Blocks.

Syncs are under way side by side. What hangs in one holds up no thread: after a while in which nothing ends, the driver
leaves it behind.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

from maildir_async.commit.batch import Batch, Hand, Syncable
from maildir_async.commit.entry import Entry
from maildir_async.commit.target import Above, FileSystem, Target
from maildir_async.disk.calls import Disk
from maildir_async.disk.syncs import CallsSideBySide, Syncs
from maildir_async.format.delivered import Durability

__all__ = ["DirectorySyncing", "FileSyncing", "sync_one"]

#: How often a driver that waits for syncs looks whether any has ended meanwhile, in its patience.
LOOKS: Final = 4

#: Items that the kernel can sync by itself, with their descriptors, on each disk.
ByKernel = dict[Disk, tuple[list[Syncable], list[int]]]


class _SideBySide:
    """Syncs under way, and what they are for.

    Whoever drives on from any point within goes on from there: nothing is synced twice, and no failure is told twice,
    or to nobody.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._under_way: list[tuple[Syncs, list[Syncable]]] | None = None

    def _begin_syncs(self, hand: Hand, by_kernel: ByKernel, by_threads: list[Syncable]) -> None:
        """Have all of them synced. One by itself is done here and now."""
        under_way = self._under_way = []
        for disk, (items, fds) in by_kernel.items():
            syncs = disk.kernel_syncs(fds, self._batch.keeper.syncers)
            if syncs is None:
                by_threads = by_threads + items
            else:
                under_way.append((syncs, items))
        if len(by_threads) == 1 and not under_way:
            self._batch.do(hand, by_threads[0], partial(sync_one, by_threads[0]))
        elif by_threads:
            under_way.append(
                (CallsSideBySide(self._batch.keeper.syncers, [item.sync for item in by_threads]), by_threads)
            )

    def _await_syncs(self, hand: Hand) -> None:
        """Wait for the syncs under way, and tell those that they failed for. Those that hang are left behind."""
        idle, ended = 0, 0
        while self._under_way and idle < LOOKS:
            patience_s = self._batch.keeper.patience_s / LOOKS / len(self._under_way)
            over = [group for group in self._under_way if group[0].wait(patience_s)]
            for group in over:
                self._tell_failures(hand, *group)
                self._under_way.remove(group)
            now = sum([len(syncs.ended) for syncs, _ in self._under_way])
            idle = 0 if over or now > ended else idle + 1
            ended = now
        while self._under_way:
            syncs, items = self._under_way[0]
            hanging = dict(enumerate(items))
            for number in list(syncs.ended):
                del hanging[number]
            self._tell_failures(hand, syncs, items, unless=hanging)
            self._batch.drop(hanging.values())
            syncs.leave_behind()
            self._under_way.pop(0)
            self._batch.keeper.finish_syncs(syncs, hanging, self._batch.step)
        self._under_way = None

    def _tell_failures(
        self, hand: Hand, syncs: Syncs, items: Sequence[Syncable], *, unless: dict[int, Syncable] | None = None
    ) -> None:
        for number in list(syncs.failures):
            if unless is None or number not in unless:
                item, failure = items[number], syncs.failures.pop(number)
                if isinstance(item, Entry | FileSystem):
                    self._batch.do(hand, item, partial(item.sync_ended, failure))
                else:
                    item.sync_ended(failure)  # which does not block


class FileSyncing(_SideBySide):
    """The bytes of each message.

    Args:
        batch: the messages.
        syncfs: whether to sync file systems, not files.

    """

    def __init__(self, batch: Batch, *, syncfs: bool) -> None:
        super().__init__(batch)
        self._syncfs = syncfs

    def work(self, hand: Hand) -> None:
        """Have the bytes of each message on the disk, where that is asked for."""
        if self._under_way is None:
            self._begin_file_syncs(hand)
        self._await_syncs(hand)

    def _begin_file_syncs(self, hand: Hand) -> None:
        files = [
            entry
            for entry in self._batch.entries
            if entry.fd >= 0 and entry.error is None and entry.plan.durability is not Durability.NONE
        ]
        if len(files) == 1:  # its own sync is as good as one of the file system, and waits for nobody else's bytes
            self._batch.do(hand, files[0], partial(sync_one, files[0]))
        elif files and self._syncfs:
            by_device: dict[tuple[Disk, int], list[Entry]] = {}
            for entry in files:
                tmp = self._batch.tmp_of(entry)
                by_device.setdefault((tmp.disk, tmp.device), []).append(entry)
            self._begin_syncs(hand, {}, [FileSystem(group) for group in by_device.values()])
        elif files:
            by_kernel: ByKernel = {}
            by_threads: list[Syncable] = []
            for tmp, entry in [(self._batch.tmp_of(entry), entry) for entry in files]:
                if tmp.by_kernel:
                    items, fds = by_kernel.setdefault(tmp.disk, ([], []))
                    items.append(entry)
                    fds.append(entry.fd)
                else:
                    by_threads.append(entry)
            self._begin_syncs(hand, by_kernel, by_threads)


class DirectorySyncing(_SideBySide):
    """The directories that have got messages, and those above them that may not be durable."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        self._are_targets_synced = False

    def work(self, hand: Hand) -> None:
        """Sync the directories that are open, and close them."""
        if not self._are_targets_synced:
            if self._under_way is None:
                self._begin_directory_syncs(hand)
            self._await_syncs(hand)
            self._are_targets_synced = True
        with_entries = [target for target in self._batch.opened if target.entries]
        if len(with_entries) == 1 and self._under_way is None:
            self._batch.do(hand, with_entries[0], with_entries[0].sync_above)
        elif with_entries or self._under_way is not None:
            self._sync_above(hand, with_entries)
        opened, self._batch.opened, self._batch.targets = self._batch.opened, [], {}
        self._are_targets_synced = False
        self._batch.do(hand, None, partial(self._batch.close_all, list(opened)))

    def _sync_above(self, hand: Hand, targets: list[Target]) -> None:
        """Sync what is above several targets: a parent that they have in common once."""
        above: dict[object, Above] = {}
        if self._under_way is None:
            for target in targets:
                for key, path in target.above.items():
                    above.setdefault((target.disk, key), Above(path)).targets.append(target)
            if above:
                self._begin_syncs(hand, {}, list(above.values()))
        self._await_syncs(hand)
        for target in self._batch.opened:  # without those left behind
            if target.entries:
                target.found_durable()

    def _begin_directory_syncs(self, hand: Hand) -> None:
        targets = [target for target in self._batch.opened if target.entries]
        if len(targets) == 1:
            self._batch.do(hand, targets[0], partial(sync_one, targets[0]))
            return
        by_kernel: ByKernel = {}
        by_threads: list[Syncable] = []
        for target in targets:
            if target.disk.syncs_by_kernel(target.identity[0]):
                items, fds = by_kernel.setdefault(target.disk, ([], []))
                items.append(target)
                fds.append(target.fd)
            else:
                by_threads.append(target)
        self._begin_syncs(hand, by_kernel, by_threads)


def sync_one(item: Syncable) -> None:
    """Sync it, and tell it what that came to. Never raises."""
    failure: BaseException | None = None
    try:
        item.sync()
    except BaseException as exc:
        failure = exc
    item.sync_ended(failure)
