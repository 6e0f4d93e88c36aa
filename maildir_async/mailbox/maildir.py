"""The mailbox: what most programs use."""

import asyncio
import os
from collections.abc import AsyncIterable, Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, Self, TypeVar, Unpack, overload

from maildir_async.commit.batch import names_in_use
from maildir_async.commit.entry import Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.waiting import run_in_thread, until_done
from maildir_async.disk.base import base_of
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.paths import absolute
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.refusals import explained
from maildir_async.disk.room import check_room
from maildir_async.disk.streamfile import streams_in_use
from maildir_async.errors import append_error, busy_error
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.names import UniqueNames, names_for
from maildir_async.format.options import (
    DEADLINE,
    AppendOptions,
    MessageOptions,
    check_age,
    check_bool,
    check_callback,
    check_count,
    check_deadline,
    check_durability,
    check_file_mode,
    check_hostname,
    check_path,
    check_size_limit,
)
from maildir_async.group_commit import GroupCommit, default_commit
from maildir_async.helper.channel import names_in_use_by_helpers
from maildir_async.mailbox.index import Index
from maildir_async.mailbox.many import settle_many
from maildir_async.mailbox.statistics import MaildirStatistics, statistics_of
from maildir_async.mailbox.whole import append_whole, refuse_large
from maildir_async.receive.sources import check_message
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.submission import plan_of
from maildir_async.receive.task import AppendTask
from maildir_async.receive.user_code import CallersContext

__all__ = ["Maildir"]

T = TypeVar("T")

CLEAN_AGE: Final = timedelta(hours=36)  # "unchanged for 36 hours": the Maildir page
CONCURRENCY: Final = 64
_posix: Final = PosixDisk()


class Maildir:
    """A maildir to deliver to. Making this object touches nothing and needs no loop.

    One object may be used from any number of event loops and threads at once, and any number of objects may stand
    for the same directory. As an async context manager it waits for its deliveries on leaving (`aclose`).

    Args:
        path: the directory that holds ``tmp``, ``new`` and ``cur``. A relative one is taken from where the process
            stands now. What ``..`` means in it, after a symbolic link, is left to the system.
        create: whether to make it, or what is missing of it, when the first message comes.
        create_below: a directory that has to be there for that: only what is below it is made. `NotAMaildirError` else.
        require_mount: a directory that has to be a mount point for a delivery, likewise.
        durability: what messages survive when `append` returns; `Durability.FULL`, unless told to be weaker.
        commit: the `GroupCommit` to share syncs in; the process's own by default.
        file_mode: permission bits of message files, whatever the umask.
        size_limit: bytes of the largest message taken, or None.
        hostname: the last part of file names; the machine's name by default.
        names: where unique names come from, for tests with a clock of their own. Excludes *hostname*.
        inherit_mode: take mode and group of files from the directory, as Dovecot does.
        disk: the system calls, for tests: see `maildir_async.testing`.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = True,
        create_below: str | os.PathLike[str] | None = None,
        require_mount: str | os.PathLike[str] | None = None,
        durability: Durability = Durability.FULL,
        commit: GroupCommit | None = None,
        file_mode: int = 0o600,
        size_limit: int | None = None,
        hostname: str | None = None,
        names: UniqueNames | None = None,
        inherit_mode: bool = False,
        disk: Disk = _posix,
    ) -> None:
        if commit is not None and not isinstance(commit, GroupCommit):
            raise TypeError(f"commit must be a GroupCommit or None, not {commit!r}")
        if not callable(getattr(disk, "identity", None)):
            raise TypeError(f"disk must be a Disk, not {disk!r}")
        base = base_of(create_below, require_mount)
        may_make, inherits = check_bool("create", create), check_bool("inherit_mode", inherit_mode)
        where = absolute(check_path(path))
        directories = Directories(where, disk=disk, create=may_make, base=base, inherit_mode=inherits)
        self.mailbox = Mailbox(directories, _names(names, hostname), check_file_mode(file_mode))
        self.durability = check_durability(durability)
        self.size_limit = check_size_limit(size_limit)
        self._commit = commit
        self._plan = Plan(durability)  # of a message of which nothing else is asked

    @property
    def path(self) -> str:
        """Its absolute path."""
        return self.mailbox.directories.path

    @property
    def commit(self) -> GroupCommit:
        """The `GroupCommit` it shares syncs in."""
        if self._commit is None:
            self._commit = default_commit()
        return self._commit

    def __repr__(self) -> str:
        return f"Maildir({self.path!r}, durability={self.durability})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        await self.aclose()

    async def create(self) -> None:
        """Make the maildir, or what is missing of it, with mode 0700, durably, whatever ``create=`` said.

        It may exist, and others may be making it at the same time. `NotAMaildirError` if something on the way is not
        a directory, `AppendError` (stage ``create``) for what the system says.
        """
        await _in_thread(self, self.mailbox.directories.make)

    async def check_room(self, size: int = 0) -> None:
        """Raise what a message of *size* bytes would fail with, as far as that can be seen before it comes.

        `NotAMaildirError`; `AppendError` (stage ``create``) for a full disk or a directory without permission;
        `BusyError` if the `GroupCommit` is full and does not wait. Nothing is written, and nothing promised.
        """
        size = check_count("size", size, least=0)
        if self.commit.is_full and not self.commit.waits:
            raise busy_error()
        await _in_thread(self, partial(check_room, self.mailbox.directories, size))

    async def append(
        self,
        message: Any,
        *,
        flags: str = "",
        received_at: datetime | float | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        durability: Durability | None = None,
        size_limit: int | None = None,
        on_progress: Callable[[int], object] | None = None,
        deadline: timedelta = DEADLINE,
    ) -> Delivered:
        """Deliver *message*; return when it is whole in ``new/`` and as durable as asked for.

        On error the maildir is as it was, except after `UncertainAppendError`: then the message is visible. On
        cancellation it is as it was or the message is there, whole; nothing acts for it any more when this raises.

        Args:
            message: bytes-like; an `email.message.Message`; a binary file, which is read in a worker thread from
                where it stands and is not closed; anything with an async ``read(n)``; an anyio byte stream; an
                iterable or async iterable of bytes-like chunks. Never more than a few chunks of it are in memory.
            flags: letters out of DFPRST. With any, it goes to ``cur/``, which mail readers take as seen before.
            received_at: what to set the file's mtime to (IMAP's INTERNALDATE); the time of delivery if None.
            prefix: whole header lines to store before the message, each ended by LF or CRLF. Where the message begins
                with space or tab an empty line goes between, or it would continue the last of them.
            newline: ``keep`` the bytes as given; store ``lf`` or ``crlf`` line ends. Applies to *prefix* too.
            durability: another level than the maildir's.
            size_limit: another limit than the maildir's: bytes as given, without *prefix*.
            on_progress: called on the loop with the bytes stored so far, now and then, and when all are.
            deadline: how long the message may take to be received.

        Raises:
            TypeError: *message*, or a chunk of it, is not bytes.
            ValueError: an option is not valid.
            NotAMaildirError: there is no maildir, and none may be made.
            MessageTooLargeError: it passes the limit. If the size is known, nothing has been written.
            BusyError: too much is pending, and the `GroupCommit` was built not to wait.
            UncertainAppendError: it is visible, but a power cut may still lose it.
            AppendError: anything else that went wrong, in the source (stage ``receive``) or on the disk.

        """
        if type(message) is bytes and (size := len(message)) <= CHUNK_SIZE:
            commit, plan = self._commit or self.commit, self._plan
            is_plain = flags == "" and prefix == b"" and newline == "keep" and deadline is DEADLINE
            if not (is_plain and received_at is None and durability is None):
                check_deadline(deadline)
                level = self.durability if durability is None else durability
                plan = plan_of(level, flags=flags, received_at=received_at, prefix=prefix, newline=newline)
            limit = self.size_limit if size_limit is None else check_size_limit(size_limit)
            if limit is not None:
                refuse_large(self.mailbox, size, limit)
            if on_progress is None:
                return await append_whole(self.mailbox, commit, plan, message, size)
            check_callback("on_progress", on_progress)
            delivered = await append_whole(self.mailbox, commit, plan, message, size)
            CallersContext().show(asyncio.get_running_loop(), on_progress, delivered.size)
            return delivered
        if message is None:  # which an AppendTask takes, to be fed by hand
            check_message(message)
        return await AppendTask(
            self,
            message,
            flags=flags,
            received_at=received_at,
            prefix=prefix,
            newline=newline,
            durability=durability,
            size_limit=size_limit,
            on_progress=on_progress,
            deadline=deadline,
        )

    def open_append(self, **options: Unpack[AppendOptions]) -> AppendTask:
        """Return an `AppendTask` to feed by hand, as an async context manager.

        ::

            async with maildir.open_append() as task:
                await task.send(chunk)
            print(task.future.result())

        Leaving the block commits, and raises as `append` does; an exception in the block aborts. Options as `append`.
        """
        return AppendTask(self, **options)

    @overload
    async def append_many(
        self,
        messages: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = ...,
        on_progress: Callable[[int, int | None, int], object] | None = ...,
        return_exceptions: Literal[False] = ...,
        **options: Unpack[MessageOptions],
    ) -> list[Delivered]: ...
    @overload
    async def append_many(
        self,
        messages: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = ...,
        on_progress: Callable[[int, int | None, int], object] | None = ...,
        return_exceptions: Literal[True],
        **options: Unpack[MessageOptions],
    ) -> list[Delivered | Exception]: ...
    async def append_many(
        self,
        messages: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        on_progress: Callable[[int, int | None, int], object] | None = None,
        return_exceptions: bool = False,
        **options: Unpack[MessageOptions],
    ) -> "list[Delivered] | list[Delivered | Exception]":
        """Deliver *messages*, several at a time, and return what became of them in the order given.

        Each is delivered, or not, by itself: one that fails stops no other. When all are settled, the exception of the
        first (in the order given) that failed is raised; with *return_exceptions* it stands in that message's place.
        If this is cancelled, or *messages* itself raises, no further message is begun, and those in flight end as
        cancelled appends do.

        Args:
            messages: any that `append` takes, in an iterable or async iterable, which is read as needed.
            concurrency: how many are in flight at once. More of them share each sync.
            on_progress: called on the loop with messages settled, messages in all (None if not known) and bytes stored.
            return_exceptions: see above.
            options: those of `append`, for every message.

        """
        check_bool("return_exceptions", return_exceptions)
        settled = await settle_many(
            lambda message: self.append(message, **options), messages, concurrency=concurrency, on_progress=on_progress
        )
        if not return_exceptions:
            for outcome in settled:
                if isinstance(outcome, Exception):
                    raise outcome
        return settled

    async def index(self) -> Index:
        """Return a live list: the messages that exist, then each one that this object delivers from now on.

        An object whose index nobody holds keeps no list. A maildir that does not exist yet has no messages, unless
        it may not be made: `NotAMaildirError`.
        """
        index = Index()
        self.mailbox.listen(index)
        await _in_thread(self, lambda: index.load(self.mailbox.directories.messages()))
        return index

    async def clean_tmp(self, older_than: timedelta = CLEAN_AGE) -> list[str]:
        """Remove what deliveries that were killed have left in ``tmp/``, and return the paths removed.

        Only regular files whose ctime is older than *older_than*, and none that this process or its helper is writing,
        by whatever path. Less than 36 hours is safe only where no other process delivers to this maildir.
        """
        clean = partial(self.mailbox.directories.clean_tmp, check_age(older_than), _is_in_use)
        return await _in_thread(self, clean)

    def statistics(self) -> MaildirStatistics:
        """Return what has become of the messages given to this object. Never waits."""
        return statistics_of(self.mailbox)

    async def aclose(self) -> None:
        """Take no more messages (`MaildirError`), and return when those in flight, on any loop, are settled.

        A message that somebody is still feeding is waited for. Cancelling this stops the waiting, not the deliveries.
        """
        mailbox, loop = self.mailbox, asyncio.get_running_loop()
        mailbox.close()
        while mailbox.in_flight or mailbox.live_tasks():
            # Looked at again after a while: a loop that is closed with a delivery in flight tells nobody.
            await asyncio.wait([mailbox.drained(loop)], timeout=1.0)
        while self.commit.queue.turns.has_to_tell(loop):  # noqa: ASYNC110 it takes turns of the loop, and no event
            await asyncio.sleep(0)


async def _in_thread(maildir: Maildir, call: Callable[[], T]) -> T:
    """Return what a worker thread has *call* return, through cancellation of every kind. AppendError for an OSError."""
    try:
        call = partial(explained, maildir.mailbox.directories, call)
        return await until_done(run_in_thread(asyncio.get_running_loop(), maildir.commit.streams.crew, call))
    except OSError as exc:
        raise append_error(exc, path=maildir.path, stage="create") from exc


def _names(names: UniqueNames | None, hostname: str | None) -> UniqueNames:
    """Return where names come from: one of the two says that, or neither."""
    hostname = check_hostname(hostname)
    if names is None:
        return names_for(hostname)
    if not callable(getattr(names, "next", None)):
        raise TypeError(f"names must be UniqueNames or None, not {names!r}")
    if hostname is not None:
        raise ValueError("names brings its own hostname")
    return names


def _is_in_use(name: str) -> bool:
    """Whether this process, or its helper, is writing a file of that name in some ``tmp/``: no two have the same."""
    return name in names_in_use() or name in streams_in_use() or name.partition(",")[0] in names_in_use_by_helpers()
