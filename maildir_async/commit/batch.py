"""What the steps of a round work on: the messages, what is open, and what the driver has in hand.

An entry is put in hand and out of it by one operation of a dict, which the interpreter makes indivisible. Whoever takes
it out has it: the thread that put it there, unless somebody has left it behind before.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from maildir_async.commit.entry import Entry
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.target import Above, FileSystem, Roots, Target
from maildir_async.disk.calls import Disk
from maildir_async.disk.rights import Rights
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

__all__ = [
    "OVER",
    "PUBLISH",
    "RECORD",
    "SYNC",
    "SYNC_DIRECTORIES",
    "WRITE",
    "Batch",
    "Hand",
    "Item",
    "Keeper",
    "LeftBehind",
    "Record",
    "Syncable",
    "Tmp",
    "hold",
    "let_go",
    "names_in_use",
    "settled",
]

#: The steps, in their order: see `maildir_async.commit.rounds`.
WRITE: Final = 0
SYNC: Final = 1
PUBLISH: Final = 2
SYNC_DIRECTORIES: Final = 3
RECORD: Final = 4
OVER: Final = 5


class Record:
    """What a maildir with a quota has got in this round, to be recorded there at once."""

    __slots__ = ("entries", "mailbox")

    def __init__(self, mailbox: Mailbox, entries: list[Entry]) -> None:
        self.mailbox = mailbox
        self.entries = entries

    def make(self) -> None:
        """Record it. Never raises."""
        self.mailbox.record(self.entries)


Syncable = Entry | Target | Above | FileSystem
Item = Syncable | Record

#: What the driver has in hand: one at most. None is what belongs to no message.
Hand = dict[Item | None, None]


class Keeper(Protocol):
    """Who keeps rounds going: `maildir_async.commit.queue.Queue`."""

    patience_s: float  # for which nothing may move before the rest is left behind
    syncers: Crew  # threads for syncs that the kernel does not do

    def finish_syncs(self, syncs: Syncs, items: dict[int, Syncable], step: int) -> None:
        """Wait, in a thread of its own, for the syncs of *items*, by their numbers, and finish each alone."""
        ...


class LeftBehind(Exception):  # noqa: N818 it is no error
    """The calling thread hung with *item* in hand, at *step*, and another drives the round by now."""

    def __init__(self, item: Item | None, step: int) -> None:
        super().__init__()
        self.item = item
        self.step = step


class Tmp:
    """What a round knows of one ``tmp/``."""

    __slots__ = ("_to_open", "by_kernel", "device", "disk", "fd")

    def __init__(self, disk: Disk, device: int) -> None:
        self.disk = disk
        self.device = device
        self.by_kernel = disk.syncs_by_kernel(device)
        self.fd: int | None = None
        self._to_open = [None]

    def open(self, path: str) -> None:
        """Open it, unless that has been done: by a thread that hung in it, for one. Raises OSError."""
        fd = self.disk.open_directory(path)
        try:
            self._to_open.pop()  # by which alone it is decided who has, whatever other threads do
        except IndexError:
            self.disk.close(fd)
        else:
            self.fd = fd

    def close(self) -> None:
        """Close it. Never raises."""
        if self.fd is not None:
            with contextlib.suppress(OSError):  # nothing has been written by this descriptor
                self.disk.close(self.fd)


class Batch:
    """Messages that are taken to the disk together.

    Args:
        entries: the messages, each after its links.
        keeper: who keeps the round going.
        step: the one to begin with.

    Attributes:
        entries: without those left behind.
        moves: what changes with every move.
        postponed: messages that there were no descriptors for, to be the next batch.
        step: the one it is at.
        hand: what the driver has in hand.
        tmps: what is known of each ``tmp/``, by disk and path.
        targets: where the next message for each disk and path is published.
        opened: all targets, those too that have been replaced.
        rights: what files are to have, by disk and path of the maildir, for those that say so.
        roots: what the maildirs are that folders lie in.
        look: what stands for it where something is to be looked at once for all of its messages.

    """

    def __init__(self, entries: list[Entry], keeper: Keeper, step: int) -> None:
        self.entries = entries
        self.keeper = keeper
        self.step = step
        self.moves = 0
        self.postponed: list[Entry] = []
        self.hand: Hand = {}
        self.tmps: dict[tuple[Disk, str], Tmp] = {}
        self.targets: dict[tuple[Disk, str], Target] = {}
        self.opened: list[Target] = []
        self.rights: dict[tuple[Disk, str], Rights] = {}
        self.roots: Roots = {}
        self.look: Final = object()
        self._lock = threading.Lock()
        self._hanging = 0  # threads that were left behind, and have not come back
        self._to_close: list[Target | Tmp] = []  # when they have
        self._left: dict[int, Item | None] = {}  # what each of them has in hand, by the id of the hand
        _live.add(self)

    def depose(self) -> bool:
        """If the driver has something in hand, leave that behind and return True: somebody else must drive."""
        hand = self.hand
        with self._lock:  # whoever finds that he has been left behind waits for all of this
            for item in list(hand):
                try:
                    del hand[item]
                except KeyError:
                    continue
                self._hanging += 1
                self._left[id(hand)] = item
                if item is not None:
                    self.drop([item])
                return True
        return False

    def close(self) -> None:
        """Let go of it: it is over, or has failed as a whole. Never raises."""
        with self._lock:  # whoever does this may be deposed meanwhile, and what is open is closed once
            opened, self.opened, self.targets = self.opened, [], {}
            tmps, self.tmps = list(self.tmps.values()), {}
            _live.discard(self)
        self.close_all([*tmps, *opened])

    def left_behind(self, hand: Hand) -> tuple[bool, Item | None]:
        """Return whether the driver with *hand* has been left behind, and with what."""
        with self._lock:
            return id(hand) in self._left, self._left.pop(id(hand), None)

    def tmp_of(self, entry: Entry) -> Tmp:
        """Return what is known of the ``tmp/`` of a message that has been written."""
        directories = entry.mailbox.directories
        return self.tmps[directories.disk, directories.tmp]

    def came_back(self) -> None:
        """Called by a thread that was left behind, once it has nothing to do with this any more."""
        with self._lock:
            self._hanging -= 1
            if self._hanging:
                return
            closing, self._to_close = self._to_close, []
            if self not in _live:  # it has been closed, and two that hung may have found and opened one more since
                tmps, self.tmps = self.tmps, {}
                closing += tmps.values()
        for opened in closing:
            opened.close()

    def close_all(self, opened: Sequence[Target | Tmp]) -> None:
        """Close them, unless a thread that hangs may be about to use one: then the last of those does."""
        with self._lock:
            if self._hanging:
                self._to_close += opened
                return
        for each in opened:
            each.close()

    def disown(self) -> None:
        """In a forked child: close what the parent's round has open, and do nothing else."""
        for tmp in (*self.tmps.values(), *self._to_close):
            if isinstance(tmp, Tmp) and tmp.fd is not None:
                with contextlib.suppress(OSError):
                    os.close(tmp.fd)
        for entry in self.entries:
            entry.disown()

    def do(self, hand: Hand, item: Item | None, call: Callable[[], object]) -> None:
        """Make a call that may block, for a sync or after it, with *item* in hand. It must not raise."""
        hand[item] = None
        call()
        try:
            del hand[item]
        except KeyError:
            raise LeftBehind(item, SYNC) from None
        self.moves += 1

    def drop(self, items: Iterable[Item]) -> None:
        """Take *items* out of the round, with all that depends on them."""
        gone: set[Entry] = set()
        targets: set[Item] = set()
        for item in items:
            if isinstance(item, FileSystem):
                for entry in item.entries:
                    gone.update(entry.family)
            elif isinstance(item, Record):
                gone.update(item.entries)
            elif not isinstance(item, Entry):
                gone.update(item.entries)
                for target in item.targets if isinstance(item, Above) else (item,):
                    if target in targets:
                        target.holds.append(None)  # which waits for one more
                    target.close_all = self.close_all  # a thread that hangs may be about to publish in it
                    targets.add(target)
            elif self.step < PUBLISH:
                gone.update(item.family)
            else:
                gone.add(item)
                if item.source is not None:  # its thread may be about to use this
                    item.reserve_fd, item.source.reserve_fd = item.source.reserve_fd, -1
        _left_behind.update(gone)
        self.entries = [entry for entry in self.entries if entry not in gone]
        self.opened = [target for target in self.opened if target not in targets]
        self.targets = {key: target for key, target in self.targets.items() if target not in targets}

    def postpone(self, entries: list[Entry]) -> None:
        """Leave *entries* to the next batch."""
        for entry in entries:
            entry.stage = "queue"
            for member in entry.family:
                member.name = member.name.partition(",")[0]  # without the sizes, which are put behind it anew
                self.postponed.append(member)
        gone = set(self.postponed)
        self.entries = [entry for entry in self.entries if entry not in gone]


_live: Final[set[Batch]] = set()
_left_behind: Final[set[Entry]] = set()
_held: Final[set[Entry]] = set()


def hold(entry: Entry) -> None:
    """Remember that the file of *entry* stays in ``tmp/`` until somebody lets go of it: it is synced, and closed."""
    _held.add(entry)


def let_go(entries: Iterable[Entry]) -> None:
    """Forget *entries*: they are in another round, or gone."""
    _held.difference_update(entries)


def settled(entries: Iterable[Entry]) -> None:
    """Forget *entries*, for which nothing acts any more."""
    _left_behind.difference_update(entries)


def names_in_use() -> set[str]:
    """Return the names in ``tmp/`` that rounds of this process have given to files, or are about to."""
    entries = [entry for batch in list(_live) for entry in batch.entries]
    entries += [*list(_left_behind), *list(_held)]
    return {name for entry in entries for name in (entry.name, entry.tmp_name) if name}


def _leave_to_parent() -> None:
    for batch in list(_live):
        batch.disown()
    for entry in list(_left_behind):
        entry.disown()
    _live.clear()
    _left_behind.clear()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
