"""What one maildir may still take under its quota, as this process knows it. Everything here blocks.

A message is admitted before its file is made: what it will take is reserved. When it has its outcome the reservation is
either recorded in ``maildirsize`` or given back. All objects of this process for one maildir and one `Quota` share what
is reserved, so that many deliveries at once cannot all pass.
"""

import contextlib
import errno
import os
import threading
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Sequence
from typing import Final, Protocol

from maildir_async.disk.directories import Directories
from maildir_async.disk.maildirsize import Version, count, read, record, root_of, version_of
from maildir_async.errors import MaildirError, QuotaExceededError
from maildir_async.format.delivered import Delivered
from maildir_async.format.folders import FolderEncoding, folder_of
from maildir_async.format.names import UniqueNames
from maildir_async.format.quota import Limits, Quota, QuotaUsage

__all__ = ["Allowance"]

#: Seconds for which what the file says is believed when a message is too much for it, if it has one line: the protocol.
BELIEVED_S: Final = 15 * 60

#: The same where there was no file to leave it in, since the maildir changed while it was counted: not each message of
#: a batch is to list all of it again.
UNKEPT_S: Final = 5.0


class Asking(Protocol):
    """A message: `maildir_async.commit.entry.Entry`."""

    size: int
    reserved: int  # bytes that are reserved for it, or -1
    path: str  # where it has been published, or ""
    loop: AbstractEventLoop
    delivered: Delivered | None
    error: MaildirError | None

    def warn(self, warning: str) -> None:
        """Have it among the warnings of a message that is delivered."""
        ...


class _Shared:
    """What all objects for one maildir and one set of limits have in common.

    Attributes:
        lock: held while the file is looked at, counted anew, or added to.
        counts: held while what is reserved is changed. Who has it waits for nothing.
        size, number: what the maildir holds.
        limits: what it may hold.
        lines: of the file.
        version: of the file that these are from; None if there is none.
        counted_at: when it was counted, or the file was written (seconds since the epoch).
        reserved, reserved_number: for messages admitted and not settled.
        is_wrong: whether something could not be recorded: it is to be counted anew.
        is_kept: whether the last count could be left in the file.
        trouble: why the file is not as it should be, or "".

    """

    __slots__ = (
        *("__weakref__", "counted_at", "counts", "is_kept", "is_known", "is_wrong", "limits", "lines"),
        *("lock", "number", "reserved", "reserved_number", "size", "trouble", "version"),
    )

    def __init__(self) -> None:
        self.limits = Limits()
        self.size = self.number = self.lines = 0
        self.version: Version | None = None
        self.counted_at = 0.0
        self.is_known = self.is_wrong = False
        self.is_kept = True
        self.trouble = ""
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Start anew, in a forked child: what is reserved is for the parent's messages."""
        self.lock = threading.Lock()
        self.counts = threading.Lock()
        self.reserved = self.reserved_number = 0

    def take_out(self, entry: Asking) -> int:
        """Return what is reserved for *entry*, and reserve it no more. With `counts` held."""
        size, entry.reserved = entry.reserved, -1
        if size < 0:
            return 0
        self.reserved -= size
        self.reserved_number -= 1
        return size


class Allowance:
    """The quota of one mailbox: of a maildir, or of a folder in it.

    Args:
        quota: what is allowed.
        directories: of the mailbox.
        names: where the name comes from that a new file has in ``tmp/``.
        mode: of a new file.
        encoding: how the names of folders are written.

    """

    def __init__(
        self, quota: Quota, directories: Directories, names: UniqueNames, mode: int, encoding: FolderEncoding
    ) -> None:
        self.quota: Final = quota
        self._directories = directories
        self._names = names
        self._mode = mode
        self._encoding: FolderEncoding = encoding
        self._root: str | None = None
        self._shared_one: _Shared | None = None

    def admit(self, entry: Asking) -> None:
        """Reserve what *entry* takes; `QuotaExceededError` if that is too much. A broken file is only a warning."""
        if entry.reserved >= 0:  # in a round that has left it to this one
            return
        size = entry.size
        shared = self._shared()
        with shared.lock:
            self._look(shared, size)
            with shared.counts:
                shared.reserved += size
                shared.reserved_number += 1
                entry.reserved = size
            trouble = shared.trouble
        if trouble:
            entry.warn(f"maildirsize is not kept: {trouble}")

    def check(self, size: int) -> None:
        """Raise `QuotaExceededError` if a message of *size* bytes is too much now. Nothing is reserved."""
        shared = self._shared()
        with shared.lock:
            self._look(shared, size)

    def give_back(self, entry: Asking) -> None:
        """Give back what is reserved for *entry*, which has come to nothing, unless that has been done."""
        shared = self._shared()
        with shared.counts:  # and not the file, which may be on a disk that hangs
            shared.take_out(entry)

    def settle(self, entries: Sequence[Asking]) -> None:
        """Record those of *entries* that are there, by one line, and give back what failed ones have. Never raises."""
        entries = [entry for entry in entries if entry.reserved >= 0]
        there = [entry for entry in entries if entry.path]
        for entry in entries:
            if entry.error is not None and not entry.path:
                self.give_back(entry)
        if not there:
            return
        shared = self._shared()
        with shared.lock:
            with shared.counts:
                sizes = [shared.take_out(entry) for entry in there]
            size, number, last = sum(sizes), len(sizes), there[-1]
            before = self._usage(shared)
            self._record(shared, size, number)
            after = self._usage(shared)
        is_passed = any(before.fraction < part <= after.fraction for part in self.quota.warn_at)
        if is_passed and self.quota.on_warning is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
                last.loop.call_soon_threadsafe(self.quota.on_warning, after)

    def _shared(self) -> _Shared:
        shared = self._shared_one
        if shared is None:
            root = self._root = root_of(self._directories)
            key = (self._directories.disk, root, self.quota.limits, self.quota.ignore)
            with _finding:
                shared = _by_maildir.get(key)
                if shared is None:
                    shared = _by_maildir[key] = _Shared()
            self._shared_one = shared
        return shared

    def _usage(self, shared: _Shared) -> QuotaUsage:
        return QuotaUsage(self._root or "", shared.size, shared.number, *shared.limits)

    def _look(self, shared: _Shared, size: int) -> None:
        """Raise `QuotaExceededError` if *size* bytes more are too much, also when it is counted anew."""
        self._learn(shared)
        if not self._is_over(shared, size):
            return
        if shared.lines > 1 or _age(shared) > BELIEVED_S:
            self._count(shared)
            if not self._is_over(shared, size):
                return
        raise QuotaExceededError(
            f"{self._root} is over its quota: it holds {shared.size} bytes in {shared.number} messages, and"
            f" {shared.reserved} bytes are being delivered; {size} more are past {_told(shared.limits)}",
            reply=self.quota.over,
        )

    def _is_over(self, shared: _Shared, size: int) -> bool:
        return shared.limits.refuse(shared.size + shared.reserved + size, shared.number + shared.reserved_number + 1)

    def _learn(self, shared: _Shared) -> None:
        """Know what the file says now: it is read if it is another than before, and counted anew if it has to be."""
        disk, root = self._directories.disk, self._root or ""
        try:
            if shared.is_known and shared.version is not None and version_of(disk, root) == shared.version:
                return
            found = read(disk, root)
        except FileNotFoundError:
            self._learn_without(shared)
            return
        except OSError as exc:
            shared.trouble = exc.strerror or str(exc)
            self._learn_without(shared)
            return
        shared.trouble = ""
        limits = self.quota.limits
        if found.held is None or shared.is_wrong or (limits is not None and found.held.limits != limits):
            shared.limits = found.limits
            self._count(shared)
            return
        shared.limits = found.held.limits
        shared.size, shared.number, shared.lines = found.held.bytes, found.held.messages, found.held.lines
        shared.version, shared.counted_at, shared.is_known = found.version, found.mtime, True

    def _learn_without(self, shared: _Shared) -> None:
        """Know what the maildir holds where no file says so: it is counted, and that is believed for a while."""
        if self.quota.limits is None:  # and nothing else says what it may hold
            shared.limits, shared.version, shared.is_known = Limits(), None, True
            return
        believed_s = BELIEVED_S if shared.trouble else UNKEPT_S
        if not shared.is_known or shared.version is not None or _age(shared) > believed_s:
            self._count(shared)

    def _count(self, shared: _Shared) -> None:
        if self.quota.limits is not None:
            shared.limits = self.quota.limits
        disk, root = self._directories.disk, self._root or ""
        shared.is_wrong = shared.is_kept = False
        try:
            counted = count(
                self._directories,
                root,
                shared.limits,
                name=self._names.next(),
                mode=self._mode,
                ignores=self._ignores,
            )
        except (OSError, MaildirError) as exc:  # it cannot be listed: what is known has to do
            shared.trouble = str(exc)
            shared.version, shared.counted_at, shared.is_known, shared.lines = None, time.time(), True, 1
            return
        shared.size, shared.number, shared.lines = counted.bytes, counted.messages, 1
        failure = counted.failure
        is_absent = failure is not None and failure.errno == errno.ENOENT  # the maildir is about to be made
        shared.counted_at, shared.is_known, shared.version = time.time(), not is_absent, None
        shared.trouble = "" if failure is None or is_absent else failure.strerror or str(failure)
        if counted.is_kept:
            shared.is_kept = True
            with contextlib.suppress(OSError):
                shared.version = version_of(disk, root)

    def _ignores(self, directory: str) -> bool:
        return self.quota.ignores(folder_of(directory, self._encoding))

    def _record(self, shared: _Shared, size: int, number: int) -> None:
        """Add a line to the file, if there is one: whoever finds none counts."""
        disk, root, before = self._directories.disk, self._root or "", shared.version
        shared.size += size
        shared.number += number
        shared.lines += 1
        try:
            is_same = before is not None and version_of(disk, root) == before
            version = record(disk, root, size, number)
        except FileNotFoundError:
            shared.version = None
        except OSError as exc:
            shared.version, shared.trouble = None, exc.strerror or str(exc)
            shared.is_wrong = shared.is_kept  # or each message would list all of it, for nothing
        else:
            shared.version = version if is_same else None
            shared.is_known = is_same


def _age(shared: _Shared) -> float:
    """Return the seconds since it was counted; a clock that was wrong then, or is now, makes it old."""
    return abs(time.time() - shared.counted_at)


def _told(limits: Limits) -> str:
    told = [f"{limit} {what}" for limit, what in zip(limits, ("bytes", "messages"), strict=True) if limit]
    return " and ".join(told)


_finding = threading.Lock()
_all: Final["weakref.WeakSet[_Shared]"] = weakref.WeakSet()
_by_maildir: Final["weakref.WeakValueDictionary[object, _Shared]"] = weakref.WeakValueDictionary()


def _start_afresh() -> None:
    global _finding
    _finding = threading.Lock()
    for shared in list(_all):
        shared.reset()


os.register_at_fork(after_in_child=_start_afresh)
