"""What one maildir may still take under its quota, as this process knows it. Everything here blocks.

A message is admitted before its file is made: what it will take is reserved. When it has its outcome the reservation is
either recorded in ``maildirsize`` or given back. All objects of this process for one maildir and one `Quota` share what
is reserved, so that many deliveries at once cannot all pass.
"""

import contextlib
import errno
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Final

from maildir_async.commit.usage import Asking, Shared, shared_by
from maildir_async.disk.directories import Directories
from maildir_async.disk.maildirsize import count, read, record, remove, root_of, version_of
from maildir_async.errors import MaildirError, QuotaExceededError
from maildir_async.format.folders import FolderEncoding, folder_of
from maildir_async.format.names import UniqueNames
from maildir_async.format.quota import Limits, Quota, QuotaUsage

__all__ = ["Allowance"]

#: Seconds for which what the file says is believed when a message is too much for it, if it has one line: the protocol.
BELIEVED_S: Final = 15 * 60

#: The same where there was no file to leave it in, since the maildir changed while it was counted: not each message of
#: a batch is to list all of it again.
UNKEPT_S: Final = 5.0

#: There is no such file, or it is not the one any more: another machine has replaced it, time and again.
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})


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
        self._shared_one: Shared | None = None

    def context(self) -> Context | None:
        """Return the caller's context, in which ``on_warning`` is to be called, if there is one."""
        return None if self.quota.on_warning is None else copy_context()

    def admit(self, entry: Asking, round_: object) -> None:
        """Reserve what *entry* takes; `QuotaExceededError` if that is too much. A broken file is only a warning.

        The file is looked at once for all messages of a *round*, and once more before one of them is refused.
        """
        if entry.reserved >= 0:  # in a round that has left it to this one
            return
        size = entry.size
        shared = self._shared()
        with shared.lock:
            if shared.looked_for is not round_ or self._is_over(shared, size):
                self._look(shared, size)
                shared.looked_for = round_
            with shared.reserving:
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

    def is_passed_by(self, size: int) -> bool:
        """Whether a message of *size* bytes is too much by what this process knows. No I/O: `check` has to be asked."""
        shared = self._shared_one
        return shared is not None and shared.is_known and self._is_over(shared, size)

    def give_back(self, entry: Asking) -> None:
        """Give back what is reserved for *entry*, which has come to nothing, unless that has been done."""
        shared = self._shared()
        with shared.reserving:  # and not the file, which may be on a disk that hangs
            shared.take_out(entry)

    def about_to_publish(self, entry: Asking) -> None:
        """Note which file is known right before *entry* can be seen. One that is there later may have counted it."""
        shared = self._shared()
        entry.quota_file = shared.inode, shared.counts

    def settle(self, entries: Sequence[Asking]) -> None:
        """Record those of *entries* that are there, by one line, and give back what failed ones have. Never raises."""
        entries = [entry for entry in entries if entry.reserved >= 0]
        there = [entry for entry in entries if entry.path]
        for entry in entries:
            if entry.error is not None and not entry.path:
                self.give_back(entry)
        if not there:
            return
        shared, last = self._shared(), there[-1]
        came: dict[tuple[int, int], tuple[int, int]] = {}  # bytes and messages, by the file that there was
        with shared.lock:
            with shared.reserving:
                for entry in there:
                    size, number = came.get(entry.quota_file, (0, 0))
                    came[entry.quota_file] = size + shared.take_out(entry), number + 1
            before = self._usage(shared)
            self._record(shared, came)
            after = self._usage(shared)
        is_passed = any(before.fraction < part <= after.fraction for part in self.quota.warn_at)
        if is_passed and self.quota.on_warning is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop has nobody left to tell
                last.loop.call_soon_threadsafe(self.quota.on_warning, after, context=last.context)

    def _shared(self) -> Shared:
        shared = self._shared_one
        if shared is None:
            root = self._root = root_of(self._directories)
            shared = self._shared_one = shared_by((self._directories.disk, root, self.quota.limits, self.quota.ignore))
        return shared

    def _usage(self, shared: Shared) -> QuotaUsage:
        return QuotaUsage(self._root or "", shared.size, shared.number, *shared.limits)

    def _look(self, shared: Shared, size: int) -> None:
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

    def _is_over(self, shared: Shared, size: int) -> bool:
        return shared.limits.refuse(shared.size + shared.reserved + size, shared.number + shared.reserved_number + 1)

    def _learn(self, shared: Shared) -> None:
        """Know what the file says now: it is read if it is another than before, and counted anew if it has to be."""
        disk, root = self._directories.disk, self._root or ""
        try:
            if shared.is_known and shared.version is not None and version_of(disk, root) == shared.version:
                return
            found = read(disk, root)
        except OSError as exc:
            if exc.errno not in _GONE:
                shared.trouble = exc.strerror or str(exc)
            else:
                shared.inode = 0
                if shared.is_kept:  # what was wrong with the file is gone as well
                    shared.trouble = ""
                if shared.is_wrong:  # this process has removed it, to have it counted
                    shared.is_known = False
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
        shared.inode = found.version[1]

    def _learn_without(self, shared: Shared) -> None:
        """Know what the maildir holds where no file says so: it is counted, and that is believed for a while."""
        if self.quota.limits is None:  # and nothing else says what it may hold
            shared.limits, shared.version, shared.is_known = Limits(), None, True
            return
        believed_s = BELIEVED_S if shared.trouble else UNKEPT_S
        if not shared.is_known or shared.version is not None or _age(shared) > believed_s:
            self._count(shared)

    def _count(self, shared: Shared) -> None:
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
        if not shared.trouble:
            shared.inode = 0
        shared.is_kept, shared.is_wrong = failure is None, counted.is_wrong
        if counted.is_kept:
            with contextlib.suppress(OSError):
                shared.version = version_of(disk, root)
                shared.own = shared.inode = shared.version[1]
                shared.counts += 1

    def _ignores(self, directory: str) -> bool:
        return self.quota.ignores(folder_of(directory, self._encoding))

    def _record(self, shared: Shared, came: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Add a line to the file, if there is one: whoever finds none counts.

        Where there has been a count since a message was about to be published nobody knows whether it is in: others may
        have counted (Dovecot does not see what comes in the second of its count), and where this process has, the
        message may have hung before it could be seen. So that file goes, and is counted anew.
        """
        disk, root = self._directories.disk, self._root or ""
        size, number = (sum(each) for each in zip(*came.values(), strict=True))
        shared.size += size
        shared.number += number
        shared.lines += 1
        try:
            recorded = record(disk, root, size, number, lambda inode: _is_in_doubt(inode, shared, came))
        except FileNotFoundError:
            shared.version, shared.inode = None, 0
        except OSError as exc:
            shared.version, shared.trouble = None, exc.strerror or str(exc)
            shared.is_wrong = shared.is_kept  # or each message would list all of it, for nothing
            with contextlib.suppress(OSError):
                remove(disk, root)  # it lacks this, or ends in a part of a line: nobody is to believe it
        else:
            if recorded is None:
                shared.version, shared.inode, shared.is_known = None, 0, False
                return
            before, after = recorded
            shared.is_known = before == shared.version
            shared.version, shared.inode = (after if shared.is_known else None), after[1]


def _is_in_doubt(inode: int, shared: Shared, came: Iterable[tuple[int, int]]) -> bool:
    """Whether the file of that inode may have counted any of what came: what `Asking.quota_file` says of each."""
    if inode == shared.own:
        return any(counts != shared.counts for _, counts in came)
    return any(inode != then for then, _ in came)


def _age(shared: Shared) -> float:
    """Return the seconds since it was counted; a clock that was wrong then, or is now, makes it old."""
    return abs(time.time() - shared.counted_at)


def _told(limits: Limits) -> str:
    told = [f"{limit} {what}" for limit, what in zip(limits, ("bytes", "messages"), strict=True) if limit]
    return " and ".join(told)
