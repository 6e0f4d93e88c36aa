"""One file for several maildirs: written for the first that takes it, then linked into the others, or copied."""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Container, Sequence
from functools import partial
from typing import Any, BinaryIO

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import WITHDRAWN
from maildir_async.commit.publishing import wants_copy
from maildir_async.commit.waiting import run_in_thread, until_done
from maildir_async.disk.calls import UNLINKABLE
from maildir_async.disk.directories import Directories
from maildir_async.disk.rights import files_rights
from maildir_async.errors import MaildirError, NotAMaildirError, append_error
from maildir_async.format.delivered import Delivered
from maildir_async.format.options import MessageOptions
from maildir_async.format.states import State
from maildir_async.group_commit import GroupCommit
from maildir_async.mailbox.maildir import Maildir
from maildir_async.receive.gate import Gate
from maildir_async.receive.task import AppendTask

__all__ = ["Part", "SharedFile", "find_same"]


class Part:
    """One maildir's part of a message: what is stored before it there, and what became of it.

    Attributes:
        maildir: which.
        folder: which of its folders, or itself.
        mailbox: that, as group commit knows it.
        prefix: what is stored before the message.
        same_as: another that stands for the same directory and gets the message; the outcome is that one's.
        gate: what it has passed, and has to be told of its outcome, if it has been looked for duplicates.
        delivered, error: the outcome, once it is known.

    """

    __slots__ = ("delivered", "error", "folder", "gate", "mailbox", "maildir", "prefix", "same_as")

    def __init__(self, maildir: Maildir, prefix: bytes, folder: str | Sequence[str] | None) -> None:
        self.maildir = maildir
        self.put_into(folder)
        self.prefix = prefix
        self.same_as: Part | None = None
        self.gate: Gate | None = None
        self.delivered: Delivered | None = None
        self.error: MaildirError | None = None

    def put_into(self, folder: str | Sequence[str] | None) -> None:
        """Have the message go to that folder. ValueError or TypeError for what is no name."""
        self.mailbox = self.maildir.mailbox_of(folder)
        self.folder = folder


def find_same(parts: Sequence[Part], commits: Container[GroupCommit]) -> list[object]:
    """Find which of *parts* are for one directory, and return for each what those have in common that can share a
    file. Blocks.

    Of those for one directory the first that can take a message does: it is open, and has a place in its group commit,
    one of *commits*.
    """
    found: dict[object, Part] = {}
    for part in sorted(parts, key=lambda part: not _takes(part, commits)):
        directories = part.mailbox.directories
        first = found.setdefault((directories.disk, directories.identity(), part.prefix), part)
        if first is not part:
            part.same_as = first
    keys: list[object] = []
    for part in parts:
        mailbox = part.mailbox
        device = mailbox.directories.device() if part.same_as is None else None
        rights = _rights_in(mailbox.directories) if mailbox.inherits else mailbox.mode
        keys.append((mailbox.directories.disk, part.maildir.commit, rights, device))
    return keys


def _rights_in(directories: Directories) -> object:
    """Return what is the same for maildirs whose files are to have the same owner, group and mode.

    Of one that is yet to be made that is not known: it shares no file.
    """
    try:
        return files_rights(directories.disk, directories.path)
    except OSError:
        return directories.path


def _takes(part: Part, commits: Container[GroupCommit]) -> bool:
    return part.maildir.commit in commits and not part.mailbox.closed


class SharedFile:
    """Maildirs on one file system. The first of them has the message appended, the others linked."""

    def __init__(self, parts: list[Part], place: Place, options: MessageOptions) -> None:
        self._parts = parts  # without an outcome yet
        self._place = place  # the message's
        self._crew = parts[0].maildir.commit.streams.crew
        self._options: MessageOptions = {**options, "prefix": parts[0].prefix}
        self._task: AppendTask | None = None  # for the first of them
        self._is_lost = False  # it has failed where no other maildir does better
        self._is_given_up = False  # nothing is to be begun any more
        self._file: BinaryIO | None = None  # to copy from, for those that could not be linked

    @property
    def needs_head(self) -> bool:
        """Whether what has come may have to be given to another maildir than the one that has it."""
        if self._task is None or self._is_lost or len(self._parts) == 1:
            return False
        return self._task.tmp_path is None

    def begin(self, head: Sequence[bytes], *, whole: bool) -> bool:
        """Have *head*, or with *whole* a message that is no more than that, appended to the first that takes it.

        Return whether there is one.
        """
        if not self._append(b"".join(head) if whole else None):
            return False
        if not whole:
            assert self._task is not None
            for chunk in head:
                self._task.write(chunk)
        return True

    async def send(self, chunk: bytes, head: Sequence[bytes] | None) -> None:
        """Append one chunk more. *head* is all that has come, with this, if there may be no file yet."""
        if self._task is None or self._is_lost:
            return
        error = await _error_of(self._task.send(chunk))
        while error is not None and self._may_move(error, head is not None):
            self._drop_first(error)
            if not self.begin(head or (), whole=False):
                return
            # Waited for, since all that comes is kept until there is one that takes it.
            error = await _error_of(self._task.until_file())
        self._is_lost = error is not None

    def end(self) -> None:
        """Called when the message is whole."""
        if self._task is not None and self._task.state is State.RECEIVING:
            self._task.unregister_producer()

    def cancel(self) -> None:
        """Give up, if that can still be done."""
        self._is_given_up = True
        if self._task is not None:
            self._task.cancel()

    async def until_over(self) -> None:
        """Give up, and return when nothing acts for the message any more and what has become of it is known.

        Cancellation of every kind waits for that too.
        """
        self.cancel()
        task, interrupted = self._task, None
        if task is not None:
            # Neither lets a cancellation through before it is over; then it does, and the other must come all the same.
            for over in (task.__aexit__(None, asyncio.CancelledError(), None), _until_links_over(task)):
                try:
                    await over
                except asyncio.CancelledError as exc:
                    interrupted = exc
            left = self._conclude(task, *_outcome_of(task))
            for part, error in left:
                part.error = error
            self._task, self._parts = None, []
        self._close_file()
        if interrupted is not None:
            raise interrupted

    async def settle(self, head: Sequence[bytes] | None) -> None:
        """Return when all have their outcomes. *head* is the whole message, unless there has been a file for it."""
        while self._task is not None:
            task, error, delivered = self._task, None, None
            try:
                delivered = await task
            except MaildirError as exc:
                error = exc
            except BaseException as exc:
                if not isinstance(exc, GeneratorExit):  # or it is thrown away, with its loop
                    await _until_links_over(task)
                raise
            await _until_links_over(task)
            left = self._conclude(task, delivered, error)
            self._task = None
            self._parts = [part for part, why in left if self._may_go_on(part, why, head is not None)]
            if self._parts:
                if self._file is not None:
                    await self._rewind(self._file)
                    self._append(self._file)
                else:
                    self._append(b"".join(head or ()))
        self._close_file()

    def _conclude(
        self, task: AppendTask, delivered: Delivered | None, error: MaildirError | None
    ) -> list[tuple[Part, MaildirError | None]]:
        """Take the outcomes that stand, of the first and of the links, now that *task* is over.

        Return those that have none, each with the error that has come in its way: the message has failed before it was
        linked for them, or it could not be linked and has to be copied.
        """
        first, *others = self._parts
        first.delivered, first.error = delivered, error
        if task.copy is not None:
            self._close_file()
            self._file = task.copy
        if not task.links or task.links[0].state == WITHDRAWN:
            return [(part, error) for part in others]
        left: list[tuple[Part, MaildirError | None]] = []
        for part, link in zip(others, task.links, strict=True):
            if link.fell_with_source or (wants_copy(link) and self._file is not None):
                left.append((part, link.error))
            else:
                part.delivered, part.error = link.delivered, link.error
        return left

    def _may_go_on(self, part: Part, error: MaildirError | None, message_is_here: bool) -> bool:
        """Whether *part*, which *error* came in the way of, is to get the message in another way.

        If not, that is its outcome.
        """
        is_linkable = error is not None and error.stage == "publish" and error.errno in UNLINKABLE
        has_message = self._file is not None or message_is_here
        if not self._is_given_up and has_message and error is not None and (is_linkable or _is_its_own(error)):
            return True
        part.error = error
        return False

    def _append(self, message: Any) -> bool:
        """Start with the first of the maildirs that is open; return whether there is one."""
        options = self._options.copy()
        if self._file is not None:  # which has them already
            options |= {"prefix": b"", "newline": "keep", "strip_from_line": False, "size_limit": None}
        while self._parts and not self._is_given_up:
            first, *others = self._parts
            options["folder"] = first.folder
            self._task = AppendTask(first.maildir, message, **options)
            place = self._place.share()
            self._task.take_place(place)
            if others:
                self._task.link_into([part.mailbox for part in others])
            try:
                self._task.begin()
            except MaildirError as exc:  # it has been closed
                place.release()
                self._drop_first(exc)
            else:
                return True
        return False

    def _may_move(self, error: MaildirError, message_is_here: bool) -> bool:
        """Whether another maildir may do better than the first, which has failed with *error* while it received."""
        return _is_its_own(error) and message_is_here and len(self._parts) > 1

    def _drop_first(self, error: MaildirError) -> None:
        self._parts.pop(0).error = error
        self._task = None

    async def _rewind(self, file: BinaryIO) -> None:
        commit = self._parts[0].maildir.commit
        await until_done(run_in_thread(asyncio.get_running_loop(), commit.streams.crew, partial(file.seek, 0)))

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(RuntimeError):  # no thread to be had: the garbage collector closes it
                self._crew.run(file.close)


def _is_its_own(error: MaildirError) -> bool:
    """Whether what has failed in one maildir says nothing of another on the same file system."""
    return isinstance(error, NotAMaildirError) or error.stage == "create" or error.errno == errno.EDQUOT


async def _until_links_over(task: AppendTask) -> None:
    """Return when each link of *task* has its outcome, through cancellation of every kind."""
    for link in task.links:
        if link.state != WITHDRAWN and not link.future.done():
            await until_done(link.future)


async def _error_of(step: Awaitable[None]) -> MaildirError | None:
    try:
        await step
    except MaildirError as exc:
        return exc
    return None


def _outcome_of(task: AppendTask) -> tuple[Delivered | None, MaildirError | None]:
    """Return what has become of the message of a task that is over; neither, if it was cancelled in time."""
    if task.future.cancelled():
        return None, None
    exc = task.future.exception()
    if exc is None:
        return task.future.result(), None
    return None, append_error(exc, path="", stage="receive")
