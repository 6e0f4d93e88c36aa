"""One batch of messages on its way to the disk, and who has which of them in hand.

A round takes its messages through four steps, each finished before the next begins::

    write             one thread     create in tmp/, write what is still in memory, start its writeback
    sync              side by side   the file sync of each (one after another they would gain nothing on a journal)
    publish           one thread     move each into new/ or cur/
    sync_directory    side by side   one sync for each directory that got messages

A thread that has a message in hand may hang on it. Whoever notices calls `Round.leave_behind`: what is in hand
leaves the round, which goes on without it, and the thread that hangs finishes it alone. So a slow file delays
nobody but itself.
"""

import contextlib
import errno
import os
import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from maildir_async.admission import Place
from maildir_async.delivered import Delivered, Durability
from maildir_async.directories import identity_of, sync_directory
from maildir_async.disk import UNSUPPORTED
from maildir_async.errors import MaildirError, Stage, UncertainAppendError, append_error
from maildir_async.names import key_of
from maildir_async.tmpfile import TmpFile

__all__ = ["STEPS", "Entry", "Round", "Target"]


class Entry:
    """One whole message in group commit, and in the end its outcome: `delivered` or `error`."""

    __slots__ = (
        "_published_at",
        "_taken_at",
        "_unsynced",
        "chunks",
        "delivered",
        "error",
        "loop",
        "place",
        "record",
        "settle",
        "taken",
        "tmpfile",
        "whole_at",
        "withdrawn",
    )

    def __init__(
        self,
        tmpfile: TmpFile,
        chunks: Sequence[bytes | bytearray | memoryview],
        *,
        loop: AbstractEventLoop,
        place: Place,
        settle: Callable[["Entry"], object],
        record: Callable[["Entry"], object],
    ) -> None:
        self.tmpfile = tmpfile
        self.chunks = chunks  # what is not in the file yet
        self.loop = loop
        self.place = place
        self.settle = settle  # called on the loop, with this
        self.record = record  # called in a worker thread before that, in the order of publication
        self.whole_at = time.monotonic()
        self._taken_at = 0.0
        self._unsynced = False  # published, but its directory cannot be synced on this file system
        self.taken = False
        self.withdrawn = False
        self.delivered: Delivered | None = None
        self.error: MaildirError | None = None

    def take(self) -> None:
        """Begin with it: from here on it cannot be withdrawn."""
        self.taken = True
        self._taken_at = time.monotonic()

    def attempt(self, step: Callable[["Entry"], object]) -> None:
        """Do one step; if it fails, discard the message and keep the error. Never raises."""
        if self.error is not None:
            return
        try:
            step(self)
        except BaseException as exc:
            self.fail(exc)

    def write(self) -> None:
        """Have the whole message in ``tmp/``."""
        if not self.tmpfile.is_open:
            self.tmpfile.create()
        self.tmpfile.write(self.chunks)
        self.chunks = ()
        self.tmpfile.seal()

    def sync(self) -> None:
        """Have its bytes on the disk, as far as was asked for, and the file closed."""
        if self.tmpfile.durability is not Durability.NONE:
            self.tmpfile.sync()
        self.tmpfile.close()

    def publish(self, target: "Target") -> None:
        """Have it in its target directory, which is opened before so that what is synced is what was changed."""
        for last_try in (False, True):
            try:
                self.tmpfile.stage = "publish"
                if self.tmpfile.durability is Durability.FULL:
                    target.open()
                self.tmpfile.publish()
            except FileNotFoundError:
                if last_try:
                    raise
                self.tmpfile.directories.make_missing()
                target.close()  # what is open may be a directory that has been removed
            else:
                return

    def fail(self, exc: BaseException) -> None:
        """Not delivered, for *exc*: remove what there is of it."""
        self.error = append_error(exc, path=self.tmpfile.directories.path, stage=self.tmpfile.stage)
        self.chunks = ()
        try:
            note = self.tmpfile.discard()
        except BaseException as further:  # no memory, for one
            note = f"the file in tmp/ could not be removed: {type(further).__name__}: {further}"
        if note:
            self.error.add_note(note)

    def give_up(self, exc: BaseException) -> None:
        """Its round has failed as a whole, by a mistake of ours or for want of memory."""
        if not self.tmpfile.published:
            self.fail(exc)
        elif self.error is None:
            self.directory_synced(OSError(errno.EIO, f"{type(exc).__name__}: {exc}"), ())

    def directory_synced(self, exc: OSError | None, warnings: Iterable[str]) -> None:
        """Learn what the sync of its directory came to."""
        self.tmpfile.warnings.extend(warnings)
        if exc is None:
            return
        reason = exc.strerror or str(exc)
        if exc.errno in UNSUPPORTED:
            self._unsynced = True
            self.tmpfile.warnings.append(f"this file system cannot sync a directory: {reason}")
            return
        path = self.tmpfile.published
        self.error = UncertainAppendError(
            f"{path} is visible, but syncing its directory failed: {reason}", path=path, errno=exc.errno
        )
        self.error.__cause__ = exc

    def conclude(self) -> None:
        """Make the outcome known to the threads' side: `delivered`, unless there is an `error`."""
        tmpfile = self.tmpfile
        if self.error is None:
            self.delivered = Delivered(
                path=tmpfile.published,
                key=key_of(tmpfile.published.rpartition("/")[2]),
                folder=None,
                flags=tmpfile.flags,
                size=tmpfile.content.size,
                wire_size=tmpfile.content.wire_size,
                durability=Durability.FILE if self._unsynced else tmpfile.durability,
                queued_s=self._taken_at - self.whole_at,
                commit_s=time.monotonic() - self._taken_at,
                warnings=tuple(tmpfile.warnings),
            )
        self.place.release()
        try:
            self.record(self)
        except BaseException as exc:  # a mistake of ours, by which nobody else may lose his answer
            threading.excepthook(threading.ExceptHookArgs((type(exc), exc, None, threading.current_thread())))


class Target:
    """A directory that gets messages, to be synced once for all of them."""

    __slots__ = ("_directories", "_fd", "_identity", "_lock", "_over", "_path", "entries")

    def __init__(self, entry: Entry) -> None:
        self._directories = entry.tmpfile.directories
        self._path = entry.tmpfile.target
        self._fd = -1
        self._over = False  # synced: whoever opens it only now has been left behind, and has another of its own
        self._lock = threading.Lock()
        self._identity = (0, 0)
        self.entries: list[Entry] = []

    def open(self) -> None:
        """Open it, if it is not yet."""
        with self._lock:
            if self._fd < 0:
                disk = self._directories.disk
                fd = disk.open_directory(self._path)
                try:
                    self._identity = identity_of(disk, fd)
                except OSError:
                    disk.close(fd)
                    raise
                self._fd = fd
                _open_targets.add(self)
                if self._over:
                    self._close()

    def close(self) -> None:
        """Close it, to be opened anew."""
        with self._lock, contextlib.suppress(OSError):  # nothing has been synced by this descriptor
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _open_targets.discard(self)
            self._directories.disk.close(fd)

    def disown(self) -> None:
        """Close it and do nothing else: it belongs to the process this forked from."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def sync(self) -> None:
        """Sync and close it, and tell its entries. Never raises."""
        self._over = True
        if self._fd < 0:  # it could not be opened: its entries have failed. Or somebody hangs in opening it.
            return
        disk, warnings = self._directories.disk, list[str]()
        failure: OSError | None = None
        try:
            disk.sync(self._fd)
            above = self._directories.above(self._path, self._identity)
            for path in above:
                try:
                    sync_directory(disk, path)
                except PermissionError as exc:
                    # Its parent may be closed to us, as /home/alice/.. often is. Who made it has to have synced it.
                    warnings.append(f"{path} could not be opened to be synced: {exc.strerror}")
            if above:
                self._directories.found_durable(self._path, self._identity)
        except OSError as exc:
            failure = exc
        except BaseException as exc:
            failure = OSError(errno.EIO, f"{type(exc).__name__}: {exc}")
        try:
            self._close()
        except OSError as exc:
            warnings.append(f"closing {self._path} failed: {exc.strerror}")
        for entry in self.entries:
            if entry.error is None:
                entry.directory_synced(failure, warnings)


_open_targets: Final[set[Target]] = set()


def _close_parents_directories() -> None:
    """In a forked child: close what the parent's batches have open."""
    for target in list(_open_targets):
        target.disown()
    _open_targets.clear()


os.register_at_fork(after_in_child=_close_parents_directories)


STEPS: Final[tuple[Stage, ...]] = ("write", "sync", "publish", "sync_directory")
SIDE_BY_SIDE: Final = frozenset({"sync", "sync_directory"})


class Round:
    """A batch, the step it is at, and what of that step is to be done, and is in hand.

    Invariants, whenever the lock is free: an item is in at most one of `_todo` and `_in_hand`; whoever drives the
    round has at most one item in hand, `_drivers_item`; what was left behind is in none of them, nor in `entries`.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self._lock = threading.Lock()
        self._in_hand_empty = threading.Condition(self._lock)
        self.entries = entries
        self.step = 0
        self.moves = 0  # items given back; that it stands still is how a hang is noticed
        self._targets: dict[str, Target] = {}
        self._todo: deque[Entry | Target] = deque(entries)
        self._in_hand: set[Entry | Target] = set()
        self._drivers_item: Entry | Target | None = None

    @property
    def over(self) -> bool:
        """Whether all steps are done."""
        return self.step == len(STEPS)

    @property
    def helpers_wanted(self) -> int:
        """How many threads could help the driver with this step."""
        return len(self._todo) - 1 if not self.over and STEPS[self.step] in SIDE_BY_SIDE else 0

    def work(self, step: int, *, driving: bool = False) -> list[Entry] | None:
        """Do what is to be done of *step*, until nothing is left that nobody has in hand.

        Returns None then; but if an item was left behind while this thread had it in hand, finishes that item
        alone and returns its entries, to be settled by the caller, whose part in this round is over.
        """
        while (item := self._take(step, driving=driving)) is not None:
            self._do(item, step)
            if not self._give_back(item):
                return self._finish_alone(item, step)
        return None

    def advance(self, patience_s: float) -> None:
        """Wait for the helpers, leave behind those that hang, and go to the next step. Only the driver calls this."""
        with self._lock:
            while self._in_hand:
                moves = self.moves
                if not self._in_hand_empty.wait(patience_s) and moves == self.moves:
                    self._leave_behind()
            self.step += 1
            if self.over:
                return
            if STEPS[self.step] == "sync_directory":
                for entry in self.entries:
                    # Weaker levels have been given what they asked for: a failure here is none of theirs.
                    target = self._targets.get(entry.tmpfile.target)
                    if target is not None and entry.tmpfile.published and entry.tmpfile.durability is Durability.FULL:
                        target.entries.append(entry)
                self._todo.extend(self._targets.values())
            else:
                self._todo.extend(entry for entry in self.entries if entry.error is None)

    def depose_hanging_driver(self) -> bool:
        """If the driver has an item in hand, leave that behind and return True: somebody else must drive."""
        with self._lock:
            if self._drivers_item is None:
                return False
            self._leave_behind()
            return True

    def _take(self, step: int, *, driving: bool) -> Entry | Target | None:
        with self._lock:
            if step != self.step or not self._todo:
                return None
            item = self._todo.popleft()
            self._in_hand.add(item)
            if driving:
                self._drivers_item = item
            return item

    def _give_back(self, item: Entry | Target) -> bool:
        with self._lock:
            self.moves += 1
            if item not in self._in_hand:
                return False
            self._in_hand.remove(item)
            if item is self._drivers_item:
                self._drivers_item = None
            if not self._in_hand:
                self._in_hand_empty.notify_all()
            return True

    def _leave_behind(self) -> None:
        gone: set[Entry] = set()
        for item in self._in_hand:
            gone.update(item.entries if isinstance(item, Target) else (item,))
        self.entries = [entry for entry in self.entries if entry not in gone]
        self._in_hand.clear()
        self._drivers_item = None

    def _do(self, item: Entry | Target, step: int) -> None:
        if isinstance(item, Target):
            item.sync()
        elif STEPS[step] == "write":
            item.attempt(Entry.write)
        elif STEPS[step] == "sync":
            item.attempt(Entry.sync)
        else:
            with self._lock:
                target = self._targets.get(item.tmpfile.target)
                if target is None:
                    target = self._targets[item.tmpfile.target] = Target(item)
            item.attempt(lambda entry: entry.publish(target))

    def _finish_alone(self, item: Entry | Target, step: int) -> list[Entry]:
        if isinstance(item, Target):
            return item.entries
        target = Target(item)
        if STEPS[step] == "write":
            item.attempt(Entry.sync)
        if STEPS[step] != "publish":
            item.attempt(lambda entry: entry.publish(target))
        if item.tmpfile.published and item.tmpfile.durability is Durability.FULL:
            target.entries.append(item)
            try:
                target.open()
            except BaseException as exc:
                item.give_up(exc)
        target.sync()
        return [item]
