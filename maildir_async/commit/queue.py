"""The queue of whole messages, and the thread that takes them to the disk.

One worker thread leads: it takes everything that is waiting as one `Round`, and what arrives meanwhile is the next.
Nothing waits for a timer, and a lone message goes at once.
"""

import contextlib
import errno
import threading
import time
from asyncio import AbstractEventLoop
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Final

from maildir_async.commit.admission import Admission
from maildir_async.commit.alone import Alone
from maildir_async.commit.batch import LeftBehind, Syncable, settled
from maildir_async.commit.donation import Donation
from maildir_async.commit.entry import QUEUED, SETTLED, TAKEN, WITHDRAWN, Entry
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.rounds import Round
from maildir_async.commit.streams import Watch
from maildir_async.commit.turns import Turns
from maildir_async.disk.streamfile import StreamFile
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew
from maildir_async.errors import AppendError

__all__ = ["PATIENCE_S", "Queue"]

#: Messages in one batch. Past 64 the gain is small (research: 20 % at 128 on ext4, none on XFS); it bounds the
#: descriptors a batch holds: one for each message and two for each maildir.
MAX_BATCH: Final = 128

#: Threads that drive rounds: one does, and each message that hangs takes another until it ends.
COMMITTERS: Final = 128

#: Threads that sync side by side where the kernel does not by itself.
SYNCERS: Final = 64

#: Seconds without any progress after which a round goes on without the messages that hang.
PATIENCE_S: Final = 0.5


class Queue:
    """Whole messages of one `maildir_async.GroupCommit`, from being handed over until they are settled.

    Args:
        admission: what gives places among the pending, which are given back here.
        donation: what lends worker threads time of a busy loop.
        watch: what notices a round that hangs.
        syncfs: whether to sync file systems, not files.

    Attributes:
        leading: whether a thread is at work.
        batches, messages: taken so far.
        sync_s: seconds that the batches have waited for the disk to sync. Written by the thread that leads.
        committers, syncers: its threads.
        turns: what hands entries over from their loops, and tells these.

    """

    def __init__(self, admission: Admission, donation: Donation, watch: Watch, *, syncfs: bool) -> None:
        self._admission = admission
        self._donation = donation
        self._watch = watch
        self._syncfs = syncfs
        self.patience_s = PATIENCE_S
        self.committers = Crew(COMMITTERS, "maildir-commit")
        self.syncers = Crew(SYNCERS, "maildir-sync")
        self._alone = Alone(self)
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child: the parent's messages are not waiting here."""
        # The garbage collector may throw a delivery away whose loop is gone, in a thread that holds this.
        self._lock = threading.RLock()
        self._waiting: dict[Entry, None] = {}  # in order; one that is withdrawn leaves it at once
        self._postponed: list[Entry] = []  # taken, and left for the next round
        self.turns = Turns(self._hand_over, self._take_back)
        self._round: Round | None = None
        self.leading = False
        self.batches = 0
        self.messages = 0
        self.sync_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    # On the loop.

    def withdraw(self, entry: Entry) -> bool:
        """Take *entry* back, and its place, if no round has begun with it; return whether that is so."""
        with self._lock:
            is_first = entry.state == QUEUED
            if is_first:
                for member in entry.family:
                    member.state = WITHDRAWN
                entry.chunks = b""
                self._waiting.pop(entry, None)
            is_back = entry.state == WITHDRAWN
        if is_first and entry.generation == self._admission.generation:  # or it is the parent's of this process
            if entry.cost >= 0:
                self._admission.give_back(1, entry.cost)
            elif entry.place is not None:
                entry.place.release()
            for member in entry.family:
                member.mailbox.withdrawn()
        return is_back

    def _take_back(self, entry: Entry) -> None:
        """Take back *entry*, whose loop was closed in the turn in which it submitted it. In any thread."""
        if entry.file is not None and entry.generation == self._admission.generation:
            with contextlib.suppress(RuntimeError):  # no thread to be had: whoever began the file may remove it yet
                self.committers.run(partial(self._discard, entry, entry.file))
                return
        self.withdraw(entry)

    def _discard(self, entry: Entry, file: StreamFile) -> None:
        try:
            file.discard()
        finally:
            self.withdraw(entry)

    def _hand_over(self, entries: list[Entry]) -> None:
        self._donation.watch(entries[0].loop)
        self.enqueue(entries)

    # In any thread.

    def enqueue(self, entries: list[Entry]) -> None:
        """Have *entries* taken to the disk."""
        with self._lock:
            self._waiting.update([(entry, None) for entry in entries if entry.state == QUEUED])
            lead, self.leading = not self.leading and bool(self._waiting), self.leading or bool(self._waiting)
        if lead:
            self._watch.keep()
            try:
                self.committers.run(self._lead)
            except RuntimeError as exc:
                self._refuse(exc)

    def _refuse(self, exc: RuntimeError) -> None:
        """Fail what is queued: there is no thread, and the system gives none."""
        with self._lock:
            self.leading = False
            entries = self._take(len(self._waiting))
        for entry in entries:
            entry.fail(AppendError(f"no worker thread could be started: {exc}", errno=errno.EAGAIN, stage="queue"))
        self.settle(entries)

    def _take(self, count: int) -> list[Entry]:
        """Take the first *count* messages: from here on they cannot be withdrawn. Called with the lock held."""
        waiting = self._waiting
        if count >= len(waiting):
            batch = list(waiting)
            waiting.clear()
        else:
            batch = list(islice(waiting, count))
            for entry in batch:
                del waiting[entry]
        now = time.monotonic()
        for entry in batch:
            entry.state = TAKEN
            entry.taken_at = now
        if any(map(_LINKS, batch)):
            batch = [member for entry in batch for member in entry.family]
            for entry in batch:
                entry.state = TAKEN
                entry.taken_at = now
                if entry.source is not None:  # a link, whole when that is
                    entry.whole_at = entry.source.whole_at
        return batch

    # The leader.

    def _lead(self, round_: Round | None = None) -> None:
        """Take rounds to the disk until nothing is waiting. Runs in one worker thread at a time."""
        batch: list[Entry] = []
        try:
            while True:
                if round_ is None:
                    batch = self._next_batch()
                    if not batch:
                        return
                    round_ = self._round = Round(batch, self, syncfs=self._syncfs)
                round_.drive()
                self.sync_s += round_.sync_s
                self._postponed = round_.postponed
                self.settle(round_.entries)
                self._round = round_ = None
                batch = []
        except LeftBehind as left:  # this thread hung, and another leads by now
            try:
                if round_ is not None:
                    round_.came_back()
                if left.item is not None:
                    self._alone.finish(left.item, left.step)
            finally:
                self.committers.widen(-1)
        except BaseException as exc:  # a mistake of ours, or no memory: all get an answer, and the next one a leader
            self._crashed(round_, batch, exc)
            raise

    def _next_batch(self) -> list[Entry]:
        with self._lock:
            batch, self._postponed = self._postponed, []
            if not batch:
                batch = self._take(MAX_BATCH)
            if batch:
                self.batches += 1
                self.messages += sum([entry.source is None for entry in batch])
            else:
                self.leading = False
            return batch

    def _crashed(self, round_: Round | None, batch: list[Entry], exc: BaseException) -> None:
        failed = batch if round_ is None else [*round_.entries, *round_.postponed]
        for entry in failed:
            entry.give_up(exc)
        if round_ is not None:
            round_.close()
        self.settle([entry for entry in failed if entry.state < SETTLED])
        with self._lock:
            self._round = None
            self._postponed = []  # they have failed
            self.leading = again = bool(self._waiting) or bool(self._postponed)
        if again:
            self.committers.run(self._lead)

    def look(self, seen: object) -> object:
        """Leave behind what the leader has in hand, if all is as *seen* at the last look; return what it is now."""
        round_ = self._round
        now = None if round_ is None else (round_, round_.step, round_.moves)
        if round_ is not None and now == seen:
            with self._lock:  # of two that look, one
                hangs = round_ is self._round and round_.depose()
            if hangs:
                self.committers.widen(1)  # the thread that hangs holds up nobody
                try:
                    self.committers.run(partial(self._lead, round_))
                except RuntimeError:  # no other thread to be had
                    self._lead(round_)
        return now

    def finish_syncs(self, syncs: Syncs, items: dict[int, Syncable], step: int) -> None:
        """Have those of *items*, by their numbers, whose syncs hang finished, each when its sync has ended."""
        self._alone.apart(partial(self._alone.finish_syncs, syncs, items, step))

    # The end.

    def settle(self, entries: list[Entry]) -> None:
        """Count *entries*, for which nothing acts any more, give their places back, and have their loops told."""
        if not entries:
            return
        now = time.monotonic()
        mailbox, loop = entries[0].mailbox, entries[0].loop
        count, cost, is_one_mailbox, is_one_loop = 0, 0, True, True
        for entry in entries:
            entry.conclude(now)
            entry.state = SETTLED
            if entry.cost >= 0:
                count += 1
                cost += entry.cost
            elif entry.place is not None:
                entry.place.release()
            if entry.mailbox is not mailbox:
                is_one_mailbox = False
            if entry.loop is not loop:
                is_one_loop = False
        try:
            settled(entries)
            if count:
                self._admission.give_back(count, cost)
            groups = {mailbox: entries} if is_one_mailbox else _by_mailbox(entries)
            for mailbox, those in groups.items():
                mailbox.settled(those)
            self._donation.enough()
        finally:  # whatever else goes wrong, they are told
            by_loop = {loop: entries} if is_one_loop else _by_loop(entries)
            for theirs, told in by_loop.items():
                # A closed loop has nobody left to tell; the messages are where the promises say.
                with contextlib.suppress(RuntimeError):
                    theirs.call_soon_threadsafe(self.turns.tell, told)
        for mailbox in groups:
            mailbox.tell_if_drained()


_LINKS: Final = attrgetter("links")


def _by_mailbox(entries: list[Entry]) -> dict[Mailbox, list[Entry]]:
    groups: dict[Mailbox, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.mailbox, []).append(entry)
    return groups


def _by_loop(entries: list[Entry]) -> dict[AbstractEventLoop, list[Entry]]:
    groups: dict[AbstractEventLoop, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.loop, []).append(entry)
    return groups
