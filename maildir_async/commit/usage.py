"""What this process knows of the quota of a maildir: shared by all objects that deliver to it."""

import os
import threading
import weakref
from asyncio import AbstractEventLoop
from contextvars import Context
from typing import Final, Protocol

from maildir_async.disk.maildirsize import Version
from maildir_async.errors import MaildirError
from maildir_async.format.delivered import Delivered
from maildir_async.format.quota import Limits

__all__ = ["Asking", "Shared", "shared_by"]


class Asking(Protocol):
    """A message: `maildir_async.commit.entry.Entry`."""

    size: int
    reserved: int  # bytes that are reserved for it, or -1
    path: str  # where it has been published, or ""
    quota_file: tuple[int, int]  # right before it was published: `Shared.inode` and `Shared.counts`
    loop: AbstractEventLoop
    context: Context | None  # of whoever delivers it
    delivered: Delivered | None
    error: MaildirError | None

    def warn(self, warning: str) -> None:
        """Have it among the warnings of a message that is delivered."""
        ...


class Shared:
    """What all objects for one maildir and one set of limits have in common.

    Attributes:
        lock: held while the file is looked at, counted anew, or added to.
        reserving: held while what is reserved is changed. Who has it waits for nothing.
        size, number: what the maildir holds.
        limits: what it may hold.
        lines: of the file.
        version: of the file that these are from; None if there is none.
        counts: how often this process has counted, and left the file there.
        own: inode of the last of these files: a number that the next file may have again.
        inode: of the file that is known, or was last: 0 for none.
        looked_for: the round that the file was last looked at for.
        counted_at: when it was counted, or the file was written (seconds since the epoch).
        reserved, reserved_number: for messages admitted and not settled.
        is_wrong: whether something could not be recorded: it is to be counted anew.
        is_kept: whether the last count could be written; if the maildir changed meanwhile, it was removed again.
        trouble: why the file is not as it should be, or "".

    """

    __slots__ = (
        *("__weakref__", "counted_at", "counts", "inode", "is_kept", "is_known", "is_wrong", "limits", "lines"),
        *("lock", "looked_for", "number", "own", "reserved", "reserved_number", "reserving", "size", "trouble"),
        "version",
    )

    def __init__(self) -> None:
        self.limits = Limits()
        self.size = self.number = self.lines = self.own = self.counts = self.inode = 0
        self.version: Version | None = None
        self.counted_at = 0.0
        self.is_known = self.is_wrong = False
        self.is_kept = True
        self.looked_for: object = None
        self.trouble = ""
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Start anew, in a forked child: what is reserved is for the parent's messages."""
        self.lock = threading.Lock()
        self.reserving = threading.Lock()
        self.reserved = self.reserved_number = 0

    def take_out(self, entry: Asking) -> int:
        """Return what is reserved for *entry*, and reserve it no more. With `reserving` held."""
        size, entry.reserved = entry.reserved, -1
        if size < 0:
            return 0
        self.reserved -= size
        self.reserved_number -= 1
        return size


def shared_by(key: object) -> Shared:
    """Return what is known for *key*, which stands for a maildir and its limits."""
    with _finding:
        shared = _by_maildir.get(key)
        if shared is None:
            shared = _by_maildir[key] = Shared()
    return shared


_finding = threading.Lock()
_all: Final["weakref.WeakSet[Shared]"] = weakref.WeakSet()
_by_maildir: Final["weakref.WeakValueDictionary[object, Shared]"] = weakref.WeakValueDictionary()


def _start_afresh() -> None:
    global _finding
    _finding = threading.Lock()
    for shared in list(_all):
        shared.reset()


os.register_at_fork(after_in_child=_start_afresh)
