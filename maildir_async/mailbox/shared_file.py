"""One file for several maildirs: written for the first that takes it, then linked into the others, or copied."""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, TypeVar

import anyio

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Entry
from maildir_async.commit.waiting import UncancellableFuture, run_in_thread
from maildir_async.errors import MaildirError, NotAMaildirError, append_error
from maildir_async.format.delivered import Delivered
from maildir_async.format.options import MessageOptions
from maildir_async.format.states import State
from maildir_async.mailbox.maildir import Maildir
from maildir_async.receive.task import AppendTask

__all__ = ["SharedFile", "Target", "in_thread"]

T = TypeVar("T")


class Target:
    """One maildir, what is stored before the message there, and what became of it."""

    __slots__ = ("delivered", "error", "maildir", "prefix")

    def __init__(self, maildir: Maildir, prefix: bytes) -> None:
        self.maildir = maildir
        self.prefix = prefix
        self.delivered: Delivered | None = None
        self.error: MaildirError | None = None


class SharedFile:
    """Maildirs on one file system. The first of them has the message appended, the others linked."""

    def __init__(self, targets: list[Target], place: Place, options: MessageOptions) -> None:
        self._targets = targets  # without an outcome yet
        self._place = place  # the message's
        self._crew = targets[0].maildir.commit.stream_crew
        self._options: MessageOptions = {**options, "prefix": targets[0].prefix}
        self._task: AppendTask | None = None  # for the first of them
        self._is_lost = False  # it has failed where no other maildir does better
        self._is_given_up = False  # nothing is to be begun any more
        self._file: BinaryIO | None = None  # to copy from, for those that could not be linked
        self._settled = 0  # links
        self._links_over: UncancellableFuture[None] | None = None

    @property
    def needs_head(self) -> bool:
        """Whether what has come may have to be given to another maildir than the one that has it."""
        if self._task is None or self._is_lost or len(self._targets) == 1:
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
        """The message is whole."""
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
            for over in (task.__aexit__(None, asyncio.CancelledError(), None), self._until_links_over(task)):
                try:
                    await over
                except asyncio.CancelledError as exc:
                    interrupted = exc
            self._conclude(task, *_outcome_of(task))
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
            finally:
                await self._until_links_over(task)
            if error is not None and self._may_move(error, head is not None or self._file is not None):
                self._drop_first(error)
                await self._rewind()
                self._append(self._file if self._file is not None else b"".join(head or ()))
                continue
            self._conclude(task, delivered, error)
            if self._targets:
                await self._rewind()
                self._append(self._file)
        self._close_file()

    def _conclude(self, task: AppendTask, delivered: Delivered | None, error: MaildirError | None) -> None:
        """*task* is over: who has no outcome yet by that is to get a copy."""
        first, *others = self._targets
        first.delivered, first.error = delivered, error
        self._targets, self._task = self._outcomes(others, task.links, error), None

    def _outcomes(self, others: list[Target], links: Sequence[Entry], error: MaildirError | None) -> list[Target]:
        """Take the outcomes of *links*, and return the targets that are to get a copy instead."""
        if not links or not links[0].taken:
            for target in others:
                target.error = error
            return []
        left: list[Target] = []
        for target, link in zip(others, links, strict=True):
            target.delivered, target.error = link.delivered, link.error
            if link.copy is not None:
                self._close_file(unless=link.copy)
                self._file = link.copy
                left.append(target)
        return left

    def _append(self, message: Any) -> bool:
        """Start with the first of the maildirs that is open; return whether there is one."""
        options = self._options.copy()
        if self._file is not None:  # which has them already
            options |= {"prefix": b"", "newline": "keep", "size_limit": None}
        while self._targets and not self._is_given_up:
            first, *others = self._targets
            self._settled, self._links_over = 0, None
            self._task = AppendTask(first.maildir, message, **options)
            place = self._place.share()
            self._task.take_place(place)
            if others:
                self._task.link_into([target.maildir for target in others], self._link_settled)
            try:
                self._task.begin()
            except MaildirError as exc:  # it has been closed
                place.release()
                self._drop_first(exc)
            else:
                return True
        return False

    def _may_move(self, error: MaildirError, message_is_here: bool) -> bool:
        """Whether another maildir may do better than the first, which has failed with *error*."""
        is_its_own = isinstance(error, NotAMaildirError) or error.stage == "create" or error.errno == errno.EDQUOT
        return is_its_own and message_is_here and len(self._targets) > 1

    def _drop_first(self, error: MaildirError) -> None:
        self._targets.pop(0).error = error
        self._task = None

    def _link_settled(self, entry: Entry) -> None:
        self._settled += 1
        if self._links_over is not None and self._task is not None and self._settled == len(self._task.links):
            self._links_over.set_result(None)

    async def _until_links_over(self, task: AppendTask) -> None:
        links = task.links
        if links and links[0].taken and self._settled < len(links):
            if self._links_over is None:
                self._links_over = UncancellableFuture(loop=asyncio.get_running_loop())
            with anyio.CancelScope(shield=True):
                await self._links_over

    async def _rewind(self) -> None:
        if self._file is not None:
            await in_thread(self._targets[0].maildir, partial(self._file.seek, 0))

    def _close_file(self, unless: BinaryIO | None = None) -> None:
        if self._file is not None and self._file is not unless:
            file, self._file = self._file, None
            with contextlib.suppress(RuntimeError):  # no thread to be had: the garbage collector closes it
                self._crew.run(file.close)


async def in_thread(maildir: Maildir, call: Callable[[], T]) -> T:
    """Return what a worker thread has *call* return, and wait for that through cancellation of every kind."""
    outcome = run_in_thread(asyncio.get_running_loop(), maildir.commit.stream_crew, call)
    with anyio.CancelScope(shield=True):
        await outcome
    return outcome.result()


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
