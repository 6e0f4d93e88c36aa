"""The mailbox: what most programs use."""

import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, Self, overload

from maildir_async.commit.entry import Plan
from maildir_async.disk.calls import Disk
from maildir_async.disk.posix import PosixDisk
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.folders import FolderEncoding
from maildir_async.format.given import given
from maildir_async.format.html import fields_of, table
from maildir_async.format.keywords import check_keywords
from maildir_async.format.names import UniqueNames
from maildir_async.format.options import DEADLINE, MessageOptions, check_bool, check_durability, check_size_limit
from maildir_async.format.quota import Quota
from maildir_async.format.results import Results
from maildir_async.group_commit import GroupCommit
from maildir_async.mailbox.appending import Appending
from maildir_async.mailbox.duplicates import DuplicateFilter
from maildir_async.mailbox.many import settle_many
from maildir_async.mailbox.transaction import append_atomically
from maildir_async.receive.messages import Message
from maildir_async.receive.task import AppendTask

__all__ = ["Maildir"]

_posix: Final = PosixDisk()


class Maildir(Appending):
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
        duplicates: what finds those of messages that are given a *duplicate_key*.
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
        duplicates: DuplicateFilter | None = None,
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
        if duplicates is not None and not isinstance(duplicates, DuplicateFilter):
            raise TypeError(f"duplicates must be a DuplicateFilter or None, not {given(duplicates)}")
        self.duplicates = duplicates
        self.durability = check_durability(durability)
        self.size_limit = check_size_limit(size_limit)
        self._plan = Plan(durability)

    def __repr__(self) -> str:
        return f"Maildir({self.path!r}, durability={self.durability})"

    def _repr_html_(self) -> str:
        """Return a table, for notebooks: what it is, and what this object has delivered. The disk is not looked at."""
        rows: list[tuple[str, object]] = [("path", self.path), ("durability", self.durability)]
        rows += [("size_limit", self.size_limit), ("duplicates", self.duplicates and self.duplicates.path)]
        return table("Maildir", rows + fields_of(self.statistics()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        await self.aclose()

    @overload
    async def append_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        concurrency: int = 64,
        on_progress: Callable[[int, int | None, int], object] | None = None,
        return_exceptions: Literal[False] = False,
        atomic: bool = False,
        folder: str | Sequence[str] | None = None,
        flags: str = "",
        keywords: Iterable[str] = (),
        received_at: datetime | float | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        strip_from_line: bool = False,
        durability: Durability | None = None,
        size_limit: int | None = None,
        deadline: timedelta = DEADLINE,
        duplicate_key: bytes | str | bool | None = None,
    ) -> list[Delivered]: ...
    @overload
    async def append_many(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        concurrency: int = 64,
        on_progress: Callable[[int, int | None, int], object] | None = None,
        return_exceptions: Literal[True],
        atomic: Literal[False] = False,
        folder: str | Sequence[str] | None = None,
        flags: str = "",
        keywords: Iterable[str] = (),
        received_at: datetime | float | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        strip_from_line: bool = False,
        durability: Durability | None = None,
        size_limit: int | None = None,
        deadline: timedelta = DEADLINE,
        duplicate_key: bytes | str | bool | None = None,
    ) -> list[Delivered | Exception]: ...
    async def append_many(  # noqa: D417 the options are explained at append
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        concurrency: int = 64,
        on_progress: Callable[[int, int | None, int], object] | None = None,
        return_exceptions: bool = False,
        atomic: bool = False,
        folder: str | Sequence[str] | None = None,
        flags: str = "",
        keywords: Iterable[str] = (),
        received_at: datetime | float | None = None,
        prefix: bytes = b"",
        newline: Newline = "keep",
        strip_from_line: bool = False,
        durability: Durability | None = None,
        size_limit: int | None = None,
        deadline: timedelta = DEADLINE,
        duplicate_key: bytes | str | bool | None = None,
    ) -> "list[Delivered] | list[Delivered | Exception]":
        """Deliver *messages*, several at a time, and return what became of them in the order given.

        Each is delivered, or not, by itself: one that fails stops no other. When all are settled, the exception of the
        first (in the order given) that failed is raised; with *return_exceptions* it stands in that message's place.
        If this is cancelled, or *messages* itself raises, no further message is begun, and those in flight end as
        cancelled appends do.

        Args:
            messages: any that `append` takes, in an iterable or async iterable, which is read as needed.
            concurrency: how many are in flight at once. More of them share each sync.
            on_progress: called on the loop with messages settled, messages in all (None until the last has been taken)
                and bytes stored. `maildir_async.notebook.Progress` shows them.
            return_exceptions: see above.
            atomic: deliver all or none: none is published before all are written and synced. What goes wrong before, or
                a cancellation, leaves none, and is raised; *on_progress* is told of messages written. Publishing is
                waited for once it has begun. A failure of that is raised when what was published has been removed
                again, with a note for each message that could not be: a reader may have moved it. A crash in the midst
                of it leaves some of the messages, each whole. This process does it all, whatever helper there is.
            folder: this and the further ones are the options of `append`, for every message.

        """
        options = MessageOptions(
            folder=folder,
            flags=flags,
            keywords=check_keywords(keywords),
            received_at=received_at,
            prefix=prefix,
            newline=newline,
            strip_from_line=strip_from_line,
            durability=durability,
            size_limit=size_limit,
            deadline=deadline,
            duplicate_key=duplicate_key,
        )
        check_bool("return_exceptions", return_exceptions)
        if check_bool("atomic", atomic):
            if return_exceptions:
                raise ValueError("atomic excludes return_exceptions: there is one outcome for all")
            if duplicate_key is not None:
                raise ValueError("atomic excludes duplicate_key: a message that is not stored is not one of all")
        AppendTask(self, **options)  # raises what is wrong with them, also where there are no messages
        if atomic:
            delivered = append_atomically(self, messages, options, concurrency=concurrency, on_progress=on_progress)
            return Results(await delivered)
        settled = await settle_many(
            lambda message: self.append(message, **options), messages, concurrency=concurrency, on_progress=on_progress
        )
        if not return_exceptions:
            for outcome in settled:
                if isinstance(outcome, Exception):
                    raise outcome
        return Results(settled)
