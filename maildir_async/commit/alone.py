"""What a round has left behind is finished alone: each by itself, in a thread of its own, and once. Blocks."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from maildir_async.commit.batch import Item, Keeper, Record, Syncable
from maildir_async.commit.entry import Entry
from maildir_async.commit.rounds import Round
from maildir_async.commit.target import FileSystem, Target
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

__all__ = ["Alone"]


class Owner(Keeper, Protocol):
    """Whose messages they are: `maildir_async.commit.queue.Queue`."""

    committers: Crew

    def settle(self, entries: list[Entry]) -> None:
        """Settle *entries*, for which nothing acts any more."""
        ...


class Alone:
    """Finishes what the rounds of *keeper* leave behind."""

    def __init__(self, keeper: Owner) -> None:
        self._keeper = keeper

    def finish_syncs(self, syncs: Syncs, items: dict[int, Syncable], step: int) -> None:
        """Wait for the syncs of *items*, by their numbers, and have each finished in a thread of its own."""
        while items:
            ended = [number for number in list(syncs.ended) if number in items]
            if not ended:  # some may have ended while they were left behind
                syncs.wait(None)
            for number in ended:
                item, failure = items.pop(number), syncs.failures.pop(number, None)
                for each in item.entries if isinstance(item, FileSystem) else (item,):
                    self.apart(partial(self._finish_synced, each, failure, step))

    def _finish_synced(self, item: Syncable, failure: BaseException | None, step: int) -> None:
        item.sync_ended(failure)
        self.finish(item, step)

    def apart(self, job: Callable[[], object]) -> None:
        """Have *job*, which may hang, done in a thread of its own, that nobody else lacks."""
        self._keeper.committers.widen(1)

        def run() -> None:
            try:
                job()
            finally:
                self._keeper.committers.widen(-1)

        try:
            self._keeper.committers.run(run)
        except RuntimeError:  # no other thread to be had: this one
            run()

    def finish(self, item: Item, step: int) -> None:
        """Take an item that was left behind at *step* through the steps that remain, and settle its entries."""
        if isinstance(item, Entry):
            round_ = Round.of_one(item, self._keeper, step)
            try:
                round_.drive()
            except BaseException as exc:
                for entry in round_.entries:
                    entry.give_up(exc)
                round_.close()
                raise
            finally:
                self._keeper.settle(round_.entries)  # as they are now: this round may have left some behind as well
            return
        if isinstance(item, Record):
            self._keeper.settle(item.entries)
            return
        if isinstance(item, FileSystem):
            for entry in item.entries:
                self.apart(partial(self.finish, entry, step))
            return
        if isinstance(item, Target):
            item.sync_above()
        for target in (item,) if isinstance(item, Target) else item.targets:
            if target.let_go():
                target.close_all([target])
                self._keeper.settle(target.entries)
