"""One batch of messages on its way to the disk, and who has which of them in hand.

A round takes its messages through four steps, each finished before the next begins::

    WRITE              create in tmp/, write what is still in memory
    SYNC               of each file, side by side (one after another they would gain nothing on a journal),
                       or with ``syncfs`` one for each file system
    PUBLISH            close each, and move it into new/ or cur/
    SYNC_DIRECTORIES   of each directory that got messages, and of those above it that may not be durable

One thread drives it, by a plain loop over the messages for each step. What it does for one message may block; for that
time it has the message *in hand*. If it hangs, whoever notices leaves the message behind: it leaves the round, which
another thread drives on without it, and the thread that hangs finishes it alone. What hangs in being synced holds up
no thread: the driver leaves it behind. So a slow file delays nobody but itself.

An entry is put in hand and out of it by one operation of a dict, which the interpreter makes indivisible. Whoever takes
it out has it: the thread that put it there, unless somebody has left it behind before.
"""

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol

from maildir_async.commit.entry import Entry
from maildir_async.commit.publishing import publish
from maildir_async.commit.target import Above, FileSystem, Target
from maildir_async.commit.writing import complete_stream, convert, create, write_rest
from maildir_async.disk.calls import OUT_OF_DESCRIPTORS, Disk
from maildir_async.disk.syncs import CallsSideBySide, Syncs
from maildir_async.disk.threads import Crew
from maildir_async.format.content import wire_size_of
from maildir_async.format.delivered import Durability

__all__ = ["OVER", "PUBLISH", "SYNC", "SYNC_DIRECTORIES", "WRITE", "Item", "Round", "names_in_use"]

WRITE: Final = 0
SYNC: Final = 1
PUBLISH: Final = 2
SYNC_DIRECTORIES: Final = 3
OVER: Final = 4

#: How often a driver that waits for syncs looks whether any has ended meanwhile, in its patience.
LOOKS: Final = 4

#: Directories that a round holds open at once. With more, what has been published is synced before it goes on.
MOST_OPEN: Final = 128

Item = Entry | Target | Above | FileSystem

#: What the driver has in hand: one at most. None is what belongs to no message.
Hand = dict[Item | None, None]


class Keeper(Protocol):
    """Who keeps rounds going: `maildir_async.commit.queue.Queue`."""

    patience_s: float  # for which nothing may move before the rest is left behind
    syncers: Crew  # threads for syncs that the kernel does not do

    def finish_syncs(self, syncs: Syncs, items: dict[int, Item], step: int) -> None:
        """Wait, in a thread of its own, for the syncs of *items*, by their numbers, and finish each alone."""
        ...


class LeftBehind(Exception):  # noqa: N818 it is no error
    """The calling thread hung with *item* in hand, at *step*, and another drives the round by now."""

    def __init__(self, item: Item | None, step: int) -> None:
        super().__init__()
        self.item = item
        self.step = step


class _Tmp:
    """What a round knows of one ``tmp/``."""

    __slots__ = ("by_kernel", "device", "disk", "fd")

    def __init__(self, disk: Disk, device: int) -> None:
        self.disk = disk
        self.device = device
        self.by_kernel = disk.syncs_by_kernel(device)
        self.fd: int | None = None  # opened for the second message

    def close(self) -> None:
        """Close it. Never raises."""
        if self.fd is not None:
            with contextlib.suppress(OSError):  # nothing has been written by this descriptor
                self.disk.close(self.fd)


class Round:
    """A batch, and the step it is at.

    Args:
        entries: the messages, each after its links.
        keeper: who keeps it going.
        syncfs: whether to sync file systems, not files.
        step: the one to begin with.

    Attributes:
        entries: without those left behind.
        moves: what changes with every move.
        postponed: messages that there were no descriptors for, to be the next batch.

    """

    def __init__(self, entries: list[Entry], keeper: Keeper, *, syncfs: bool = False, step: int = WRITE) -> None:
        self.entries = entries
        self.moves = 0
        self.postponed: list[Entry] = []
        self.step = step
        self._keeper = keeper
        self._syncfs = syncfs
        self._hand: Hand = {}
        self._to_write: Iterator[Entry] | None = None
        self._to_publish: deque[Entry] | None = None
        self._tmps: dict[tuple[Disk, str], _Tmp] = {}
        self._targets: dict[tuple[Disk, str], Target] = {}  # where the next message for each path is published
        self._opened: list[Target] = []  # all of them, those too that have been replaced
        self._under_way: list[tuple[Syncs, list[Item]]] | None = None  # syncs, and what they are for
        self._are_targets_synced = False
        self._lock = threading.Lock()
        self._hanging = 0  # threads that were left behind, and have not come back
        self._to_close: list[Target | _Tmp] = []  # when they have
        _live.add(self)

    @classmethod
    def of_one(cls, entry: Entry, keeper: Keeper, step: int) -> "Round":
        """Return what takes an entry, left behind at *step*, through the steps that remain."""
        round_ = cls(list(entry.family) if step < PUBLISH else [entry], keeper, step=step + 1)
        if step == PUBLISH and entry.path and entry.error is None and entry.plan.durability is Durability.FULL:
            try:
                target = Target(entry.mailbox.directories, os.path.dirname(entry.path))
                round_._opened.append(target)
                if target.identity != entry.target:
                    raise OSError(errno.ESTALE, "it has been replaced meanwhile", target.path)
                target.entries.append(entry)
            except BaseException as exc:
                entry.directory_failed(exc)
        return round_

    # Driving.

    def drive(self) -> None:
        """Take it to its end, from where it stands.

        Raises `LeftBehind` if this thread was: the caller has to finish that item alone, and has no part in this round
        any more.
        """
        hand: Hand = {}
        self._hand = hand
        while self.step < OVER:
            if self.step == WRITE:
                self._write(hand)
            elif self.step == SYNC:
                self._sync(hand)
            elif self.step == PUBLISH:
                self._publish(hand)
            else:
                self._sync_directories(hand)
            self.step += 1
            self.moves += 1
        self.close()

    def depose(self) -> bool:
        """If the driver has something in hand, leave that behind and return True: somebody else must drive."""
        hand = self._hand
        for item in list(hand):
            try:
                del hand[item]
            except KeyError:
                continue
            with self._lock:
                self._hanging += 1
            if item is not None:
                self._drop([item])
            return True
        return False

    def close(self) -> None:
        """Let go of it: it is over, or has failed as a whole. Never raises."""
        opened, self._opened, self._targets = self._opened, [], {}
        tmps, self._tmps = list(self._tmps.values()), {}
        self._close_all([*tmps, *opened])
        _live.discard(self)

    def came_back(self) -> None:
        """A thread that was left behind has nothing to do with this any more."""
        with self._lock:
            self._hanging -= 1
            closing, self._to_close = ([], self._to_close) if self._hanging else (self._to_close, [])
        for opened in closing:
            opened.close()

    def _close_all(self, opened: list[Target | _Tmp]) -> None:
        """Close them, unless a thread that hangs may be about to use one: then the last of those does."""
        with self._lock:
            if self._hanging:
                self._to_close += opened
                return
        for each in opened:
            each.close()

    def disown(self) -> None:
        """In a forked child: close what the parent's round has open, and do nothing else."""
        for tmp in (*self._tmps.values(), *self._to_close):
            if isinstance(tmp, _Tmp) and tmp.fd is not None:
                with contextlib.suppress(OSError):
                    os.close(tmp.fd)
        for entry in self.entries:
            entry.disown()

    def _do(self, hand: Hand, item: Item | None, call: Callable[[], object]) -> None:
        """Make a call that may block, for a sync or after it, with *item* in hand. It must not raise."""
        hand[item] = None
        call()
        try:
            del hand[item]
        except KeyError:
            raise LeftBehind(item, SYNC) from None
        self.moves += 1

    def _drop(self, items: Iterable[Item]) -> None:
        """Have those leave the round, with all that hangs on them."""
        gone: set[Entry] = set()
        targets: set[Item] = set()
        for item in items:
            if isinstance(item, FileSystem):
                for entry in item.entries:
                    gone.update(entry.family)
            elif not isinstance(item, Entry):
                gone.update(item.entries)
                for target in item.targets if isinstance(item, Above) else (item,):
                    if target in targets:
                        target.holds.append(None)  # which waits for one more
                    targets.add(target)
            elif self.step < PUBLISH:
                gone.update(item.family)
            else:
                gone.add(item)
                if item.source is not None:  # its thread may be about to use this
                    item.reserve_fd, item.source.reserve_fd = item.source.reserve_fd, -1
        _left_behind.update(gone)
        self.entries = [entry for entry in self.entries if entry not in gone]
        self._opened = [target for target in self._opened if target not in targets]
        self._targets = {key: target for key, target in self._targets.items() if target not in targets}

    # WRITE.

    def _write(self, hand: Hand) -> None:
        todo = self._to_write
        if todo is None:
            todo = self._to_write = iter([entry for entry in self.entries if entry.source is None])
            self._draw_names()
        tmps, is_alone = self._tmps, len(self.entries) == 1
        for entry in todo:
            hand[entry] = None
            failure: BaseException | None = None
            try:
                directories, plan = entry.mailbox.directories, entry.plan
                disk = directories.disk
                tmp = tmps.get((disk, directories.tmp))
                if entry.file is not None:
                    complete_stream(entry)
                else:
                    data = entry.chunks
                    if not plan.as_given or type(data) is not bytes:
                        data = convert(entry)
                    entry.size = size = len(data)
                    # CPython searches for one byte with memchr(3) where it replaces, and byte by byte elsewhere.
                    entry.wire_size = wire_size_of(data) if b"\r" in data else 2 * size - len(data.replace(b"\n", b""))
                    entry.name = name = f"{entry.name},S={size},W={entry.wire_size}"
                    entry.stage = "create"
                    if tmp is None or tmp.fd is None:
                        fd = create(entry)
                    else:
                        try:
                            entry.fd = fd = disk.create(name, entry.mailbox.mode, tmp.fd)
                            entry.tmp_name = name
                        except (FileExistsError, FileNotFoundError):
                            fd = create(entry)
                    if entry.mailbox.mode & 0o077:  # what the umask may have taken away
                        disk.chmod(fd, entry.mailbox.mode)
                    entry.stage = "write"
                    written = disk.write(fd, data) if data else 0
                    if written != size:
                        write_rest(entry, data, written)
                    entry.chunks = b""
                if plan.mtime_ns is not None:
                    # Only mtime: a sweeper that goes by atime must not find an old file in tmp/.
                    disk.utime(entry.fd, time.time_ns(), plan.mtime_ns)
                if entry.links:
                    for link in entry.links:
                        link.size, link.wire_size = entry.size, entry.wire_size
                if not is_alone and (tmp is None or tmp.fd is None):
                    self._look_at_tmp(entry)
            except BaseException as exc:
                failure = exc
            is_crowded = failure is not None and entry.fd < 0 and self._is_crowded(failure)
            if failure is not None and not is_crowded:
                entry.fail(failure)
            try:
                del hand[entry]
            except KeyError:
                if is_crowded and failure is not None:
                    entry.fail(failure)
                raise LeftBehind(entry, WRITE) from None
            self.moves += 1
            if is_crowded:
                self._postpone([entry, *todo])

    def _draw_names(self) -> None:
        """Names in the order of publication, which is when the mail arrives. Some have been given theirs."""
        entries = [entry for entry in self.entries if not entry.name]
        if not entries:
            return
        names = entries[0].mailbox.names
        if all([entry.mailbox.names is names for entry in entries]):
            for entry, name in zip(entries, names.take(len(entries)), strict=True):
                entry.name = name
        else:
            for entry in entries:
                entry.name = entry.mailbox.names.next()

    def _look_at_tmp(self, entry: Entry) -> None:
        """Find out what the first message in each ``tmp/`` tells of it; open it for those after the second."""
        directories = entry.mailbox.directories
        key = (directories.disk, directories.tmp)
        tmp = self._tmps.get(key)
        if tmp is None:
            self._tmps[key] = _Tmp(directories.disk, directories.disk.stat(entry.fd).st_dev)
        else:
            with contextlib.suppress(OSError):  # by path, then, which tells what is wrong
                tmp.fd = directories.disk.open_directory(directories.tmp)

    def _tmp_of(self, entry: Entry) -> _Tmp:
        return self._tmps[entry.mailbox.directories.disk, entry.mailbox.directories.tmp]

    def _is_crowded(self, failure: BaseException) -> bool:
        """Whether there are too many open files, and this round is about to close some."""
        if not isinstance(failure, OSError) or failure.errno not in OUT_OF_DESCRIPTORS:
            return False
        return any(entry.fd >= 0 for entry in self.entries)

    def _postpone(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.stage = "queue"
            for member in entry.family:
                member.name = member.name.partition(",")[0]  # without the sizes, which are put behind it anew
                self.postponed.append(member)
        gone = set(self.postponed)
        self.entries = [entry for entry in self.entries if entry not in gone]

    # SYNC.

    def _sync(self, hand: Hand) -> None:
        if self._under_way is None:
            self._begin_file_syncs(hand)
        self._await_syncs(hand)

    def _begin_file_syncs(self, hand: Hand) -> None:
        files = [
            entry
            for entry in self.entries
            if entry.fd >= 0 and entry.error is None and entry.plan.durability is not Durability.NONE
        ]
        if len(files) == 1:  # its own sync is as good as one of the file system, and waits for nobody else's bytes
            self._do(hand, files[0], partial(_sync_one, files[0]))
        elif files and self._syncfs:
            by_device: dict[tuple[Disk, int], list[Entry]] = {}
            for entry in files:
                tmp = self._tmp_of(entry)
                by_device.setdefault((tmp.disk, tmp.device), []).append(entry)
            self._begin_syncs(hand, {}, [FileSystem(group) for group in by_device.values()])
        elif files:
            by_kernel: dict[Disk, tuple[list[Item], list[int]]] = {}
            by_threads: list[Item] = []
            for tmp, entry in [(self._tmp_of(entry), entry) for entry in files]:
                if tmp.by_kernel:
                    items, fds = by_kernel.setdefault(tmp.disk, ([], []))
                    items.append(entry)
                    fds.append(entry.fd)
                else:
                    by_threads.append(entry)
            self._begin_syncs(hand, by_kernel, by_threads)

    def _begin_syncs(
        self, hand: Hand, by_kernel: dict[Disk, tuple[list[Item], list[int]]], by_threads: list[Item]
    ) -> None:
        """Have all of them synced. One by itself is done here and now."""
        under_way = self._under_way = []
        for disk, (items, fds) in by_kernel.items():
            syncs = disk.kernel_syncs(fds, self._keeper.syncers)
            if syncs is None:
                by_threads = by_threads + items
            else:
                under_way.append((syncs, items))
        if len(by_threads) == 1 and not under_way:
            self._do(hand, by_threads[0], partial(_sync_one, by_threads[0]))
        elif by_threads:
            under_way.append((CallsSideBySide(self._keeper.syncers, [item.sync for item in by_threads]), by_threads))

    def _await_syncs(self, hand: Hand) -> None:
        """Wait for the syncs under way, and tell those that they failed for. Those that hang are left behind.

        Whoever drives on from any point within goes on from there: no failure is told twice, or to nobody.
        """
        idle, ended = 0, 0
        while self._under_way and idle < LOOKS:
            patience_s = self._keeper.patience_s / LOOKS / len(self._under_way)
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
            self._drop(hanging.values())
            syncs.leave_behind()
            self._under_way.pop(0)
            self._keeper.finish_syncs(syncs, hanging, self.step)
        self._under_way = None

    def _tell_failures(
        self, hand: Hand, syncs: Syncs, items: Sequence[Item], *, unless: dict[int, Item] | None = None
    ) -> None:
        for number in list(syncs.failures):
            if unless is None or number not in unless:
                item, failure = items[number], syncs.failures.pop(number)
                if isinstance(item, Entry | FileSystem):
                    self._do(hand, item, partial(item.sync_ended, failure))
                else:
                    item.sync_ended(failure)  # which does not block

    # PUBLISH.

    def _publish(self, hand: Hand) -> None:
        todo = self._to_publish
        if todo is None:
            todo = self._to_publish = deque(self.entries)
        targets, tmps = self._targets, self._tmps
        while todo:
            entry = todo.popleft()
            if entry.error is not None:
                continue
            directories, plan = entry.mailbox.directories, entry.plan
            disk, path = directories.disk, directories.cur if plan.flags else directories.new
            target = found = targets.get((disk, path))
            if target is None and len(self._opened) >= MOST_OPEN:
                todo.appendleft(entry)  # for whoever drives on, if this thread does not
                self._sync_directories(hand)
                todo.popleft()
                targets = self._targets
            hand[entry] = None
            failure: BaseException | None = None
            try:
                if target is None or plan.flags or entry.source is not None or entry.links:
                    found = publish(entry, path, target)
                else:
                    name = entry.name
                    fd, entry.fd, entry.stage = entry.fd, -1, "close"
                    disk.close(fd)
                    entry.stage = "publish"
                    tmp = tmps.get((disk, directories.tmp))
                    try:
                        if tmp is None or tmp.fd is None:
                            disk.rename_noreplace(f"{directories.tmp}/{entry.tmp_name}", name, None, target.fd)
                        else:
                            disk.rename_noreplace(entry.tmp_name, name, tmp.fd, target.fd)
                    except OSError:
                        found = publish(entry, path, target)
                    else:
                        entry.target = target.identity
                        entry.tmp_name = ""
                        entry.path = f"{path}/{name}"
            except BaseException as exc:
                failure = exc
            is_crowded = isinstance(failure, OSError) and failure.errno in OUT_OF_DESCRIPTORS and bool(self._opened)
            if failure is not None and not is_crowded:
                entry.fail(failure)
            try:
                del hand[entry]
            except KeyError:
                if found is not None and found is not target:
                    found.close()
                if is_crowded and failure is not None:
                    entry.fail(failure)
                raise LeftBehind(entry, PUBLISH) from None
            self.moves += 1
            if is_crowded:  # close those directories, and have another try
                todo.appendleft(entry)
                self._sync_directories(hand)
                targets = self._targets
            if found is not target and found is not None:
                targets[disk, path] = found
                self._opened.append(found)
            if entry.path and plan.durability is Durability.FULL and found is not None:
                found.entries.append(entry)

    # SYNC_DIRECTORIES.

    def _sync_directories(self, hand: Hand) -> None:
        """Sync the directories that are open, and close them."""
        if not self._are_targets_synced:
            if self._under_way is None:
                self._begin_directory_syncs(hand)
            self._await_syncs(hand)
            self._are_targets_synced = True
        with_entries = [target for target in self._opened if target.entries]
        if len(with_entries) == 1 and self._under_way is None:
            self._do(hand, with_entries[0], with_entries[0].sync_above)
        elif with_entries or self._under_way is not None:
            self._sync_above(hand, with_entries)
        opened, self._opened, self._targets = self._opened, [], {}
        self._are_targets_synced = False
        self._do(hand, None, partial(self._close_all, list(opened)))

    def _sync_above(self, hand: Hand, targets: list[Target]) -> None:
        """Sync what is above several targets: a parent that they have in common once."""
        above: dict[str, Above] = {}
        if self._under_way is None:
            for target in targets:
                for path in target.above:
                    above.setdefault(path, Above(path)).targets.append(target)
            if above:
                self._begin_syncs(hand, {}, list(above.values()))
        self._await_syncs(hand)
        for target in self._opened:  # without those left behind
            if target.entries:
                target.found_durable()

    def _begin_directory_syncs(self, hand: Hand) -> None:
        targets = [target for target in self._opened if target.entries]
        if len(targets) == 1:
            self._do(hand, targets[0], partial(_sync_one, targets[0]))
            return
        by_kernel: dict[Disk, tuple[list[Item], list[int]]] = {}
        by_threads: list[Item] = []
        for target in targets:
            if target.disk.syncs_by_kernel(target.identity[0]):
                items, fds = by_kernel.setdefault(target.disk, ([], []))
                items.append(target)
                fds.append(target.fd)
            else:
                by_threads.append(target)
        self._begin_syncs(hand, by_kernel, by_threads)


def _sync_one(item: Item) -> None:
    """Sync it, and tell it what that came to. Never raises."""
    failure: BaseException | None = None
    try:
        item.sync()
    except BaseException as exc:
        failure = exc
    item.sync_ended(failure)


_live: Final[set[Round]] = set()
_left_behind: Final[set[Entry]] = set()


def settled(entries: Iterable[Entry]) -> None:
    """Nothing acts for *entries* any more."""
    _left_behind.difference_update(entries)


def names_in_use() -> set[str]:
    """Return the names in ``tmp/`` that rounds of this process have given to files, or are about to."""
    entries = [entry for round_ in list(_live) for entry in round_.entries]
    entries += list(_left_behind)
    return {name for entry in entries for name in (entry.name, entry.tmp_name)}


def _leave_to_parent() -> None:
    for round_ in list(_live):
        round_.disown()
    for entry in list(_left_behind):
        entry.disown()
    _live.clear()
    _left_behind.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
