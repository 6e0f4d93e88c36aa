"""The mailbox: what most programs use."""

import asyncio
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, Self, Unpack, overload

from maildir_async.commit.entry import Plan
from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import PosixDisk
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.folders import FolderEncoding
from maildir_async.format.names import UniqueNames
from maildir_async.format.options import (
    DEADLINE,
    AppendOptions,
    MessageOptions,
    check_bool,
    check_callback,
    check_deadline,
    check_durability,
    check_size_limit,
)
from maildir_async.format.quota import Quota
from maildir_async.group_commit import GroupCommit
from maildir_async.mailbox.many import settle_many
from maildir_async.mailbox.transaction import append_atomically
from maildir_async.mailbox.upkeep import Upkeep
from maildir_async.mailbox.whole import append_whole, refuse_large
from maildir_async.receive.sources import check_message
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.submission import plan_of
from maildir_async.receive.task import AppendTask
from maildir_async.receive.user_code import CallersContext

__all__ = ["Maildir"]

CONCURRENCY: Final = 64
_posix: Final = PosixDisk()


class Maildir(Upkeep):
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
        folder_encoding: how the names of Maildir++ folders are written on the disk: IMAP's modified ``utf-7``, which
            Dovecot expects, or ``utf-8`` with Courier's escapes.
        quota: what the maildir and its folders may hold. Kept by this process, whatever its helper does.
        names: where unique names come from, for tests with a clock of their own. Excludes *hostname*.
        inherit_mode: whether messages, and directories that are made, have the mode and group of the directory, as
            Dovecot has it, and as root its owner; *file_mode* is of no account then. A refused group is a warning.
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
        folder_encoding: FolderEncoding = "utf-7",
        quota: Quota | None = None,
        names: UniqueNames | None = None,
        inherit_mode: bool = False,
        disk: Disk = _posix,
    ) -> None:
        super().__init__(
            path,
            create=create,
            create_below=create_below,
            require_mount=require_mount,
            commit=commit,
            file_mode=file_mode,
            hostname=hostname,
            folder_encoding=folder_encoding,
            quota=quota,
            names=names,
            inherit_mode=inherit_mode,
            disk=disk,
        )
        self.durability = check_durability(durability)
        self.size_limit = check_size_limit(size_limit)
        self._plan = Plan(durability)  # of a message of which nothing else is asked

    def __repr__(self) -> str:
        return f"Maildir({self.path!r}, durability={self.durability})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        await self.aclose()

    async def append(
        self,
        message: Any,
        *,
        folder: str | Sequence[str] | None = None,
        flags: str = "",
        keywords: Iterable[str] = (),
        received_at: datetime | float | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        strip_from_line: bool = False,
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
            folder: a Maildir++ folder to deliver to, made at first use where *create* allows it: parts with ``/``
                between, or the parts themselves. The maildir itself if None, ``""`` or ``INBOX``.
            flags: letters out of DFPRST. With any, it goes to ``cur/``, which mail readers take as seen before.
            keywords: IMAP keywords such as ``$Forwarded``, kept by letters that the folder's ``dovecot-keywords`` gives
                them. With any, it goes to ``cur/``.
            received_at: what to set the file's mtime to (IMAP's INTERNALDATE); the time of delivery if None.
            prefix: whole header lines to store before the message, each ended by LF or CRLF. Where the message begins
                with space or tab an empty line goes between, or it would continue the last of them.
            newline: ``keep`` the bytes as given; store ``lf`` or ``crlf`` line ends. Applies to *prefix* too.
            strip_from_line: whether a leading mbox ``From `` line is dropped.
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
            mailbox = self.mailbox if folder is None else self.mailbox_of(folder)
            is_plain = flags == "" and keywords == () and prefix == b"" and newline == "keep" and deadline is DEADLINE
            if not (is_plain and received_at is None and durability is None and strip_from_line is False):
                check_deadline(deadline)
                plan = plan_of(
                    self.durability if durability is None else durability,
                    flags=flags,
                    received_at=received_at,
                    prefix=prefix,
                    newline=newline,
                    keywords=keywords,
                    strip_from_line=strip_from_line,
                )
            limit = self.size_limit if size_limit is None else check_size_limit(size_limit)
            if limit is not None:
                refuse_large(mailbox, size, limit)
            if on_progress is None:
                return await append_whole(mailbox, commit, plan, message, size)
            check_callback("on_progress", on_progress)
            delivered = await append_whole(mailbox, commit, plan, message, size)
            CallersContext().show(asyncio.get_running_loop(), on_progress, delivered.size)
            return delivered
        if message is None:  # which an AppendTask takes, to be fed by hand
            check_message(message)
        return await AppendTask(
            self,
            message,
            folder=folder,
            flags=flags,
            keywords=keywords,
            received_at=received_at,
            prefix=prefix,
            newline=newline,
            strip_from_line=strip_from_line,
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
        atomic: bool = ...,
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
        atomic: Literal[False] = ...,
        **options: Unpack[MessageOptions],
    ) -> list[Delivered | Exception]: ...
    async def append_many(
        self,
        messages: Iterable[Any] | AsyncIterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        on_progress: Callable[[int, int | None, int], object] | None = None,
        return_exceptions: bool = False,
        atomic: bool = False,
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
            atomic: deliver all or none: none is published before all are written and synced. What goes wrong before, or
                a cancellation, leaves none, and is raised; *on_progress* is told of messages written. Publishing is
                waited for once it has begun. A failure of that is raised when what was published has been removed
                again, with a note for each message that could not be: a reader may have moved it. A crash in the midst
                of it leaves some of the messages, each whole. This process does it all, whatever helper there is.
            options: those of `append`, for every message.

        """
        check_bool("return_exceptions", return_exceptions)
        if check_bool("atomic", atomic):
            if return_exceptions:
                raise ValueError("atomic excludes return_exceptions: there is one outcome for all")
            return await append_atomically(self, messages, options, concurrency=concurrency, on_progress=on_progress)
        settled = await settle_many(
            lambda message: self.append(message, **options), messages, concurrency=concurrency, on_progress=on_progress
        )
        if not return_exceptions:
            for outcome in settled:
                if isinstance(outcome, Exception):
                    raise outcome
        return settled
