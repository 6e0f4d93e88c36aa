"""One whole message in group commit. Its steps block."""

import contextlib
import errno
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from maildir_async.commit.admission import Place
from maildir_async.disk.posix import UNLINKABLE, UNSUPPORTED, Disk
from maildir_async.disk.tmpfile import TmpFile
from maildir_async.errors import MaildirError, UncertainAppendError, append_error
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.names import key_of

__all__ = ["Entry", "families"]


class Directory(Protocol):
    """Where an entry is published: `maildir_async.commit.target.Target`."""

    def open(self) -> None:
        """Have it found, if it is not yet."""
        ...

    def close(self) -> None:
        """Have it found anew."""
        ...


class Entry:
    """A message on its way through group commit, and in the end its outcome: `delivered` or `error`.

    The steps `write`, `sync_ended` and `publish` never raise: one that fails discards the message and keeps the error.

    A message for several maildirs has *links*, entries of their own that are published as hard links to its file just
    before that is moved. Each has an outcome of its own; they share what comes before.
    """

    __slots__ = (
        "_unsynced",
        "chunks",
        "copy",
        "delivered",
        "device",
        "error",
        "links",
        "loop",
        "place",
        "record",
        "settle",
        "synced",
        "taken",
        "taken_at",
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
        place: Place | None,
        settle: Callable[["Entry"], object],
        record: Callable[["Entry"], object],
        links: Sequence["Entry"] = (),
    ) -> None:
        self.tmpfile = tmpfile
        self.links = links
        self.copy: BinaryIO | None = None  # of a link that cannot be: the file, for whoever settles this to close
        self.chunks = chunks  # what is not in the file yet
        self.loop = loop
        self.place = place
        self.settle = settle  # called on the loop, with this
        self.record = record  # called in a worker thread before that, in the order of publication
        self.whole_at = time.monotonic()
        self.device = 0  # of the file, where that is needed
        self.synced = False  # or tried to be
        self._unsynced = False  # published, but its directory cannot be synced on this file system
        self.taken = False
        self.taken_at = 0.0
        self.withdrawn = False
        self.delivered: Delivered | None = None
        self.error: MaildirError | None = None

    def take(self) -> None:
        """Begin with it: from here on it cannot be withdrawn."""
        now = time.monotonic()
        for entry in self.family:
            entry.taken = True
            entry.taken_at = now

    @property
    def family(self) -> Iterator["Entry"]:
        """Itself, and all links to it."""
        yield self
        yield from self.links

    def write(self) -> None:
        """Have the whole message in ``tmp/``."""
        try:
            self.tmpfile.complete(self.chunks)
            self.chunks = ()
        except BaseException as exc:
            self.fail(exc)

    def find_device(self) -> None:
        """Find out which file system its file is on."""
        try:
            if self.error is None:
                self.device = self.tmpfile.device()
        except BaseException as exc:
            self.fail(exc)

    @property
    def disk(self) -> Disk:
        """The disk it is on."""
        return self.tmpfile.directories.disk

    @property
    def wants_sync(self) -> bool:
        """Whether the sync of its file is still to be done."""
        tmpfile = self.tmpfile
        return (
            self.error is None
            and not self.synced
            and tmpfile.durability is not Durability.NONE
            and tmpfile.source is None  # a link has its bytes in the file it is a link to
        )

    def begin_sync(self) -> int:
        """Return the descriptor to sync. Never done twice, nor with `sync`: see `TmpFile.sync`."""
        self.synced = True
        return self.tmpfile.begin_sync()

    def sync(self) -> None:
        """Have its bytes on the disk, or raise."""
        self.synced = True
        self.tmpfile.sync()

    def sync_ended(self, failure: BaseException | None) -> None:
        """Learn what its sync came to."""
        if failure is not None:
            self.fail(failure)

    def publish(self, target: Directory) -> None:
        """Have it closed, and in its target directory, which is opened before: what is synced is what was changed."""
        try:
            self.tmpfile.close()
            self._publish(target)
        except BaseException as exc:
            self.fail(exc)

    def _publish(self, target: Directory) -> None:
        for last_try in (False, True):
            try:
                if self.tmpfile.durability is Durability.FULL:
                    self.tmpfile.stage = "publish"
                    target.open()
                elif not self.tmpfile.directories.is_whole:
                    self.tmpfile.warnings += self.tmpfile.directories.check_whole()
                self.tmpfile.publish()
            except FileNotFoundError:
                if last_try:
                    raise
                self.tmpfile.warnings += self.tmpfile.directories.make_missing()
                target.close()  # what is open may be a directory that has been removed
            else:
                return

    def publish_links(self, target_of: Callable[["Entry"], Directory]) -> None:
        """Have each link published, while the file is still in ``tmp/``: a reader may move it out of ``new/`` at once.

        If some cannot be, the file is opened, for whoever is to copy it.
        """
        copy: BinaryIO | None = None
        for link in self.links:
            link.publish(target_of(link))
            if link.error is None or link.error.errno not in UNLINKABLE or link.error.stage != "publish":
                continue
            if copy is None:
                with contextlib.suppress(OSError):  # the link's own error stands then
                    copy = self.tmpfile.directories.disk.open_to_read(self.tmpfile.path)
            link.copy = copy

    def fail(self, exc: BaseException) -> None:
        """Not delivered, for *exc*: remove what there is of it. Links that are published by then stay."""
        for link in self.links:
            if link.error is None and not link.tmpfile.published:
                link.tmpfile.stage = self.tmpfile.stage
                link.fail(exc)
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
            if self.error is None:
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
        """Say what came of it: `delivered`, unless there is an `error`."""
        tmpfile = self.tmpfile
        if self.error is None:
            content = tmpfile.content
            self.delivered = Delivered(
                tmpfile.published,
                key_of(tmpfile.name),
                None,
                tmpfile.flags,
                content.size,
                content.wire_size,
                Durability.FILE if self._unsynced else tmpfile.durability,
                self.taken_at - self.whole_at,
                time.monotonic() - self.taken_at,
                tuple(tmpfile.warnings),
            )
        self.answered()

    def answered(self) -> None:
        """Its outcome stands: give its place up, and tell whoever keeps count."""
        if self.place is not None:
            self.place.release()
        try:
            self.record(self)
        except BaseException as exc:  # a mistake of ours, by which nobody else may lose his answer
            threading.excepthook(threading.ExceptHookArgs((type(exc), exc, None, threading.current_thread())))


def families(entries: Iterable[Entry]) -> list[Entry]:
    """Return *entries*, each followed by the links to it."""
    return [member for entry in entries for member in entry.family]
