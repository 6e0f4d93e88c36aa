"""Faults put into the library on purpose: each is to be found by the short form."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from maildir_async.commit.admission import Admission
from maildir_async.commit.batch import Batch
from maildir_async.commit.entry import QUEUED, WITHDRAWN, Entry
from maildir_async.commit.queue import Queue

__all__ = ["PLANTED", "Planted"]


class Planted(NamedTuple):
    """One fault.

    Attributes:
        plant: puts it into the library of this process.
        why: what is wrong then.

    """

    plant: Callable[[], None]
    why: str


def _told_too_early() -> None:
    def directory_failed(self: Entry, exc: BaseException) -> None:
        """Say nothing."""

    Entry.directory_failed = directory_failed  # type: ignore[method-assign]


def _withdrawn_is_published() -> None:
    def withdraw(self: Queue, entry: Entry) -> bool:
        with self._lock:
            return entry.state in (QUEUED, WITHDRAWN)

    Queue.withdraw = withdraw  # type: ignore[method-assign]


def _left_open() -> None:
    def came_back(self: Batch) -> None:
        """Close nothing."""

    Batch.came_back = came_back  # type: ignore[method-assign]


def _forgotten() -> None:
    take = Queue._take

    def forgetful(self: Queue, count: int) -> list[Entry]:
        batch = take(self, count)
        return batch[:-1] if len(batch) > 3 and not batch[-1].links else batch

    Queue._take = forgetful  # type: ignore[method-assign]


def _place_kept() -> None:
    def give_back(self: Admission, count: int, cost: int) -> None:
        """Give back what a batch had, and not what a message had that is taken back."""
        if count > 1:
            whole(self, count, cost)

    whole = Admission.give_back
    Admission.give_back = give_back  # type: ignore[method-assign]


def _litter() -> None:
    def discard(self: Entry) -> str | None:
        """Close the file, and leave it."""
        disk = self.mailbox.directories.disk
        if self.fd >= 0:
            disk.close(self.fd)
        self.fd = -1
        return None

    Entry._discard = discard  # type: ignore[method-assign]


def _dropped_in_silence() -> None:
    drop = Batch.drop

    def partly(self: Batch, items: Iterable[Any]) -> None:
        """Leave behind, and go on with the same message too."""
        entries = self.entries
        drop(self, items)
        self.entries = entries

    Batch.drop = partly  # type: ignore[method-assign]


PLANTED: Final = {
    "told-too-early": Planted(_told_too_early, "a message is delivered though its directory could not be synced"),
    "withdrawn-is-published": Planted(_withdrawn_is_published, "a message that is taken back is published"),
    "left-open": Planted(_left_open, "what a thread that hung had to use is never closed"),
    "forgotten": Planted(_forgotten, "the last message of a batch is forgotten"),
    "place-kept": Planted(_place_kept, "a message that is alone, or taken back, keeps its place"),
    "litter": Planted(_litter, "the file of a message that failed stays"),
    "left-and-kept": Planted(_dropped_in_silence, "a message that hangs is finished twice"),
}
