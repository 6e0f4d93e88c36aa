"""One batch of messages on its way to the disk, and who has which of them in hand.

A round takes its messages through five steps, each finished before the next begins::

    WRITE              create in tmp/, write what is still in memory
    SYNC               of each file, side by side (one after another they would gain nothing on a journal),
                       or with ``syncfs`` one for each file system
    PUBLISH            close each, and move it into new/ or cur/
    SYNC_DIRECTORIES   of each directory that got messages, and of those above it that may not be durable
    RECORD             what they take, where a maildir has a quota

One thread drives it, by a plain loop over the messages for each step. What it does for one message may block; for that
time it has the message *in hand*. If it hangs, whoever notices leaves the message behind: it leaves the round, which
another thread drives on without it, and the thread that hangs finishes it alone. What hangs in being synced holds up
no thread: the driver leaves it behind. So a slow file delays nobody but itself.
"""

import contextlib
import errno
import os
import time

from maildir_async.commit.batch import OVER, PUBLISH, SYNC, SYNC_DIRECTORIES, WRITE, Batch, Hand, Keeper, LeftBehind
from maildir_async.commit.entry import Entry
from maildir_async.commit.publishing import Publishing
from maildir_async.commit.recording import Recording
from maildir_async.commit.syncing import DirectorySyncing, FileSyncing
from maildir_async.commit.target import Target
from maildir_async.commit.writing import Writing
from maildir_async.format.delivered import Durability

__all__ = ["Round"]


class Round(Batch):
    """A batch, and what takes it through the steps.

    Args:
        entries: the messages, each after its links.
        keeper: who keeps it going.
        syncfs: whether to sync file systems, not files.
        step: the one to begin with.

    """

    def __init__(self, entries: list[Entry], keeper: Keeper, *, syncfs: bool = False, step: int = WRITE) -> None:
        super().__init__(entries, keeper, step)
        #: Seconds that whoever drove it has waited for syncs. A thread that was left behind adds nothing.
        self.sync_s = 0.0
        self._writing = Writing(self)
        self._syncing = FileSyncing(self, syncfs=syncfs)
        self._syncing_directories = DirectorySyncing(self)
        self._publishing = Publishing(self, self._syncing_directories)
        self._recording: Recording | None = None  # wanted by few

    @classmethod
    def of_one(cls, entry: Entry, keeper: Keeper, step: int) -> "Round":
        """Return what takes an entry, left behind at *step*, through the steps that remain."""
        round_ = cls(list(entry.family) if step < PUBLISH else [entry], keeper, step=step + 1)
        if step == PUBLISH and entry.source is not None and entry.reserve_fd >= 0:  # which it has taken along
            fd, entry.reserve_fd = entry.reserve_fd, -1
            with contextlib.suppress(OSError):  # all has been written, and closed, by another
                entry.source.mailbox.directories.disk.close(fd)
        if step == PUBLISH and entry.path and entry.error is None and entry.plan.durability is Durability.FULL:
            try:
                target = Target(entry.mailbox.directories, os.path.dirname(entry.path))
                round_.opened.append(target)
                if target.identity != entry.directory_id:
                    raise OSError(errno.ESTALE, "it has been replaced meanwhile", target.path)
                target.entries.append(entry)
            except BaseException as exc:
                entry.directory_failed(exc)
        return round_

    def drive(self) -> None:
        """Take it to its end, from where it stands.

        Raises `LeftBehind` if this thread was: the caller has to finish that item alone, and has no part in this round
        any more.
        """
        hand: Hand = {}
        self.hand = hand
        step = self.step
        try:
            while (step := self.step) < OVER:
                if step == WRITE:
                    self._writing.work(hand)
                elif step == SYNC:
                    began = time.monotonic()
                    self._syncing.work(hand)
                    self.sync_s += time.monotonic() - began
                elif step == PUBLISH:
                    self._publishing.work(hand)
                elif step == SYNC_DIRECTORIES:
                    began = time.monotonic()
                    self._syncing_directories.work(hand)
                    self.sync_s += time.monotonic() - began
                else:
                    for entry in self.entries:
                        if entry.reserved >= 0:
                            self._recording = recording = self._recording or Recording(self)
                            recording.work(hand)
                            break
                self.step += 1
                self.moves += 1
            self.do(hand, None, self.close)
        except LeftBehind as left:
            self.left_behind(hand)
            if isinstance(left.item, Entry):
                left.item.close_reserve()
            raise
        except BaseException as exc:  # a mistake of ours: if this thread drives no more, it is not the round's end
            has_left, item = self.left_behind(hand)
            if has_left:
                if isinstance(item, Entry):
                    item.close_reserve()
                raise LeftBehind(item, step) from exc
            raise
        # The steps and this would keep each other until the garbage collector comes.
        del self._writing, self._syncing, self._publishing, self._syncing_directories, self._recording
