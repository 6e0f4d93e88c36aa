"""The record of one whole message: its own place in the queue, and in the end its outcome.

There is one for each message, however it came: made by `Maildir.append` for a message in memory, by an `AppendTask`
for one that was received bit by bit, and by a fan-out for each maildir that gets a link.
"""

import contextlib
import errno
import os
from asyncio import AbstractEventLoop, Future
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Final

from maildir_async.commit.admission import Place
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.calls import UNSUPPORTED, remove
from maildir_async.disk.refusals import explain
from maildir_async.disk.streamfile import StreamFile
from maildir_async.errors import MaildirError, Stage, UncertainAppendError, append_error
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, DeliveredDraft, Durability

__all__ = ["QUEUED", "SETTLED", "TAKEN", "TOLD", "WITHDRAWN", "Chunks", "Entry", "Plan"]

Chunks = bytes | Sequence[bytes | bytearray | memoryview]

#: What an entry may be, in this order: waiting, in a round, with its outcome, and known to its loop to have that; or
#: taken back by its owner while it was waiting.
QUEUED: Final = 0
TAKEN: Final = 1
SETTLED: Final = 2
TOLD: Final = 3
WITHDRAWN: Final = 4


class Plan:
    """What has been asked for a message, checked: the same object for all messages of which the same is asked.

    Attributes:
        durability: what it has to survive.
        flags: sorted letters; with any it goes to ``cur/``.
        mtime_ns: what to set the file's mtime to, or None.
        prefix: what to store before it.
        newline: what to do with line ends.
        keywords: IMAP keywords, which become letters among its flags.
        strip_from_line: whether a leading mbox ``From `` line is dropped.
        held: whether it is not to be published yet: group commit has done with it when it is synced and closed.
        as_given: whether the bytes given are those stored.

    """

    __slots__ = (
        "as_given",
        "durability",
        "flags",
        "held",
        "keywords",
        "mtime_ns",
        "newline",
        "prefix",
        "strip_from_line",
    )

    def __init__(
        self,
        durability: Durability,
        flags: str = "",
        mtime_ns: int | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        keywords: tuple[str, ...] = (),
        strip_from_line: bool = False,
    ) -> None:
        self.durability = durability
        self.flags = flags
        self.mtime_ns = mtime_ns
        self.prefix = prefix
        self.newline: Newline = newline
        self.keywords = keywords
        self.strip_from_line = strip_from_line
        self.held = False
        self.as_given = not prefix and newline == "keep" and not strip_from_line


class Entry:
    """A message that is whole.

    A message for several maildirs has *links*: entries of their own that are published as hard links to its file.
    Each has an outcome of its own; they share what comes before.

    Attributes:
        mailbox: where it goes.
        plan: what is asked for.
        chunks: its bytes, or what of them is not in `file` yet; empty once they are written.
        loop: of whoever waits for it.
        future: resolved on that loop, with None, once `delivered` or `error` stands.
        cost: bytes of its place among the pending, where `Admission.admit` has granted that; or else -1.
        place: its place, where it has an object of its own, or None.
        file: what has been written of it already, or None.
        links: see above.
        source: what this is a link to, or None.
        state: `QUEUED` and so on; changed by who has it: its loop and its round, and between them under a lock.
        flags: letters behind its name, which is in ``cur/`` if there are any: the plan's, and those of its keywords.
        generation: of the process it was made in; a forked child has another.
        stage: where it stands, or failed.
        name: its file's, in ``new/``, or in ``cur/`` with flags behind it.
        tmp_name: its file's in ``tmp/`` while it is there: the same, but for a stream.
        fd: its file's descriptor, while it is open.
        reserved: bytes that its maildir's quota keeps for it, or -1.
        context: of whoever delivers it, where a quota may have something to tell; or else None.
        quota_file: which ``maildirsize`` there was right before it was published.
        path: where it has been published, "" before.
        copy: of a message with links that cannot be: its file, to be copied and closed by whoever settles them.
        refusal: of a message whose links may be published: why it is not to be.
        fell_with_source: of a link: the message failed before it could be known what would become of this.

    """

    __slots__ = (
        *("chunks", "context", "copy", "cost", "delivered", "directory_id", "durability", "error", "fd"),
        *("fell_with_source", "file", "flags", "future", "generation", "links", "loop", "mailbox", "name", "path"),
        *("place", "plan", "quota_file", "refusal", "reserve_fd", "reserved", "size", "source", "stage", "state"),
        *("taken_at", "tmp_name", "warnings", "whole_at", "wire_size"),
    )

    def __init__(
        self,
        mailbox: Mailbox,
        plan: Plan,
        chunks: Chunks,
        loop: AbstractEventLoop,
        future: "Future[None]",
        *,
        place: Place | None = None,
        file: StreamFile | None = None,
        links: "Sequence[Entry]" = (),
    ) -> None:
        self.mailbox = mailbox
        self.plan = plan
        self.chunks = chunks
        self.loop = loop
        self.future = future
        self.cost = -1
        self.place = place
        self.file = file
        self.links = links
        self.source: Entry | None = None
        self.state = QUEUED
        self.generation = 0
        self.whole_at = 0.0
        self.taken_at = 0.0
        self.stage: Stage = "queue"
        self.name = ""
        self.tmp_name = ""  # of a file in tmp/ that has not been published
        self.fd = -1
        self.reserve_fd = -1  # another descriptor of the same, while links are made
        self.size = self.wire_size = 0
        self.path = ""
        self.directory_id: tuple[int, ...] | None = None  # the identity of the directory it was published in
        self.durability = plan.durability
        self.flags = plan.flags
        self.reserved = -1
        self.context = None if mailbox.quota is None else mailbox.quota.context()
        self.quota_file: tuple[int, int] = (0, 0)
        self.warnings: list[str] | None = None
        self.refusal: BaseException | None = None
        self.copy: BinaryIO | None = None
        self.fell_with_source = False
        self.delivered: Delivered | None = None
        self.error: MaildirError | None = None

    @property
    def family(self) -> "Iterator[Entry]":
        """All links, and then itself."""
        yield from self.links
        yield self

    def warn(self, warning: str) -> None:
        """Have it among the warnings of a message that is delivered."""
        if self.warnings is None:
            self.warnings = []
        self.warnings.append(warning)

    def fail(self, exc: BaseException) -> None:
        """Have it fail with *exc*, and remove its file from ``tmp/``. Links that have been made stay. Blocks."""
        if self.error is not None:
            return
        if isinstance(exc, PermissionError):
            self._explain(exc)
        self.error = append_error(exc, path=self.mailbox.directories.path, stage=self.stage)
        self.chunks = b""
        if self.reserved >= 0 and (quota := self.mailbox.quota) is not None:
            quota.give_back(self)
        for link in self.links:
            if link.error is None and not link.path:
                link.error = append_error(exc, path=link.mailbox.directories.path, stage=self.stage)
                link.fell_with_source = True
        try:
            note = self._discard()
        except BaseException as further:  # no memory, for one
            note = f"the file in tmp/ could not be removed: {type(further).__name__}: {further}"
        if note:
            self.error.add_note(note)

    def _explain(self, exc: PermissionError) -> None:
        directories = self.mailbox.directories
        paths = [directories.tmp, directories.cur if self.plan.flags else directories.new]
        explain(exc, directories.disk, paths if self.stage == "publish" else paths[:1])

    def _discard(self) -> str | None:
        disk = self.mailbox.directories.disk
        for fd in (self.fd, self.reserve_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):  # the file is going to be removed
                    disk.close(fd)
        self.fd = self.reserve_fd = -1
        file, self.file = self.file, None
        if file is not None and (note := file.discard()) is not None:
            return note
        name, self.tmp_name = self.tmp_name, ""
        if name:
            try:
                remove(disk, f"{self.mailbox.directories.tmp}/{name}")
            except FileNotFoundError:
                pass
            except OSError as exc:
                return f"the file in tmp/ could not be removed: {exc.strerror or exc}"
        return None

    def sync(self) -> None:
        """Have its bytes on the disk, or raise. Blocks.

        Never to be repeated: the kernel has marked the pages of a failed fsync clean, and the next one may report
        success for data that is lost (PostgreSQL's finding of 2018).
        """
        self.stage = "sync"
        self.mailbox.directories.disk.sync(self.fd)

    def sync_ended(self, failure: BaseException | None) -> None:
        """Called when the sync of its file has ended, with the *failure* of that, if it failed. Blocks."""
        if failure is not None:
            self.stage = "sync"
            self.fail(failure)

    def close_reserve(self) -> None:
        """Close what a link that hung has been left of the message's file: it has been tried. Blocks."""
        if self.source is not None and self.reserve_fd >= 0:
            fd, self.reserve_fd = self.reserve_fd, -1
            with contextlib.suppress(OSError):
                self.mailbox.directories.disk.close(fd)

    def disown(self) -> None:
        """In a forked child: close what is open, and do nothing else. The file is the parent's."""
        for fd in (self.fd, self.reserve_fd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.fd = self.reserve_fd = -1

    def give_up(self, exc: BaseException) -> None:
        """Have it fail with *exc*, by which its round has failed: a mistake of ours, or want of memory. Blocks."""
        if self.error is None:
            if self.path:
                self.directory_failed(OSError(errno.EIO, f"{type(exc).__name__}: {exc}"))
            else:
                self.fail(exc)

    def directory_failed(self, exc: BaseException) -> None:
        """Have it fail, though visible, as its directory's sync has; or warn, where there is no such sync."""
        if self.error is not None:
            return
        reason = (exc.strerror if isinstance(exc, OSError) else None) or f"{type(exc).__name__}: {exc}"
        number = exc.errno if isinstance(exc, OSError) else errno.EIO
        if number in UNSUPPORTED:
            self.durability = Durability.FILE
            self.warn(f"this file system cannot sync a directory: {reason}")
            return
        self.error = UncertainAppendError(
            f"{self.path} is visible, but syncing its directory failed: {reason}", path=self.path, errno=number
        )
        self.error.__cause__ = exc

    def conclude(self, now: float) -> None:
        """Give it its outcome: `delivered`, unless there is an `error`."""
        if self.error is not None or self.delivered is not None:
            return
        draft, plan = DeliveredDraft(), self.plan
        draft.path = self.path
        draft.key = self.name
        draft.folder = self.mailbox.folder
        draft.flags = plan.flags
        draft.keywords = plan.keywords
        draft.size = self.size
        draft.wire_size = self.wire_size
        draft.durability = self.durability
        draft.duplicate = False
        draft.queued_s = self.taken_at - self.whole_at
        draft.commit_s = now - self.taken_at
        draft.warnings = () if self.warnings is None else tuple(self.warnings)
        draft.__class__ = Delivered  # frozen from here on
        self.delivered = draft  # type: ignore[assignment]  # which it is now
