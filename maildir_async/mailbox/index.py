"""A live list of a maildir's messages, for those who want one: Twisted's ``mbox.list``."""

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, overload

from maildir_async.format.delivered import Delivered
from maildir_async.format.names import key_of
from maildir_async.format.read_names import letters_of

__all__ = ["Existing", "Index"]


@dataclass(frozen=True, slots=True)
class Existing:
    """A message that was there when the index was made.

    Attributes:
        path: where it was then, in ``new/`` or ``cur/``.
        key: its name before any ``:``.
        flags: its flag letters.

    """

    path: str
    key: str
    flags: str


class Index(Sequence[Delivered | Existing]):
    """The messages that existed, in the order of their names, then each one delivered since, in publish order.

    It grows by itself, before the future of the append resolves, as long as it is referenced; it never shrinks, and
    does not see what others deliver, move or remove. Any thread may read it.
    """

    def __init__(self) -> None:
        _indexes.add(self)
        self._lock = threading.Lock()
        self._messages: list[Delivered | Existing] = []
        self._listed: dict[str, Existing] = {}  # a message may be listed, and be told as delivered after that

    def load(self, paths: Iterable[str]) -> None:
        """Put what existed first, less what was delivered while it was being listed."""
        # One that a reader moved from new/ to cur/ meanwhile is listed twice: it is where it was seen last.
        listed = {message.key: message for message in map(_existing, paths)}
        with self._lock:
            arrived = {message.key for message in self._messages}
            existing = [message for key, message in listed.items() if key not in arrived]
            self._messages[:0] = existing
            self._listed = {message.key: message for message in existing}

    def append(self, delivered: Delivered) -> None:
        """Add a message just delivered; it takes the place of itself, if the listing came upon it before."""
        with self._lock:
            if listed := self._listed.pop(delivered.key, None):
                self._messages.remove(listed)
            self._messages.append(delivered)

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, position: int) -> Delivered | Existing: ...
    @overload
    def __getitem__(self, position: slice) -> "list[Delivered | Existing]": ...
    def __getitem__(self, position: int | slice) -> "Delivered | Existing | list[Delivered | Existing]":
        return self._messages[position]

    def __repr__(self) -> str:
        return f"<Index of {len(self)} messages>"


def _existing(path: str) -> Existing:
    name = os.path.basename(path)
    return Existing(path, key_of(name), letters_of(name))


def _renew_locks() -> None:
    for index in list(_indexes):
        index._lock = threading.Lock()  # pyright: ignore[reportPrivateUsage] this module's own


_indexes: Final["weakref.WeakSet[Index]"] = weakref.WeakSet()
os.register_at_fork(after_in_child=_renew_locks)
