"""What is done with a maildir besides delivering to it: made, listed, swept, counted, closed."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from maildir_async.commit.batch import names_in_use
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.waiting import run_in_thread, until_done
from maildir_async.disk.base import base_of
from maildir_async.disk.calls import Disk, check_disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.listing import clean_tmp, messages
from maildir_async.disk.paths import absolute
from maildir_async.disk.refusals import explained
from maildir_async.disk.room import check_room
from maildir_async.disk.streamfile import streams_in_use
from maildir_async.disk.subscriptions import subscribe_to
from maildir_async.errors import NotAMaildirError, append_error, busy_error
from maildir_async.format.folders import FolderEncoding, check_folder_encoding
from maildir_async.format.given import given
from maildir_async.format.names import UniqueNames, names_for
from maildir_async.format.options import (
    check_age,
    check_bool,
    check_count,
    check_file_mode,
    check_hostname,
    check_path,
)
from maildir_async.format.quota import Quota
from maildir_async.group_commit import GroupCommit, default_commit
from maildir_async.helper.channel import names_in_use_by_helpers
from maildir_async.mailbox.folders import Folders
from maildir_async.mailbox.index import Index
from maildir_async.mailbox.statistics import MaildirStatistics, statistics_of
from maildir_async.mailbox.watch import WatchedMessage, watch_messages

__all__ = ["CLEAN_AGE", "Upkeep", "is_in_use"]

T = TypeVar("T")

CLEAN_AGE: Final = timedelta(hours=36)  # "unchanged for 36 hours": the Maildir page


class Upkeep:
    """The part of `maildir_async.Maildir` that delivers nothing. Its arguments are explained there.

    Attributes:
        mailbox: the maildir itself, as group commit knows it.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool,
        create_below: str | os.PathLike[str] | None,
        require_mount: str | os.PathLike[str] | None,
        commit: GroupCommit | None,
        file_mode: int,
        hostname: str | None,
        folder_encoding: FolderEncoding,
        quota: Quota | None,
        names: UniqueNames | None,
        inherit_mode: bool,
        disk: Disk,
    ) -> None:
        if commit is not None and not isinstance(commit, GroupCommit):
            raise TypeError(f"commit must be a GroupCommit or None, not {given(commit)}")
        check_disk(disk)
        if quota is not None and not isinstance(quota, Quota):
            raise TypeError(f"quota must be a Quota or None, not {given(quota)}")
        base = base_of(create_below, require_mount)
        may_make, inherits = check_bool("create", create), check_bool("inherit_mode", inherit_mode)
        where = absolute(check_path(path))
        directories = Directories(where, disk=disk, create=may_make, base=base, inherit_mode=inherits)
        self.mailbox = Mailbox(directories, _names(names, hostname), check_file_mode(file_mode))
        self._folders = Folders(self.mailbox, check_folder_encoding(folder_encoding), quota)
        self._commit = commit

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

    @property
    def folder_encoding(self) -> FolderEncoding:
        """How the names of its folders are written on the disk."""
        return self._folders.encoding

    def mailbox_of(self, folder: str | Sequence[str] | None) -> Mailbox:
        """Return a folder as group commit knows it, or the maildir itself. Nothing is touched."""
        return self.mailbox if folder is None else self._folders.of(folder)

    async def create(self) -> None:
        """Make the maildir, or what is missing of it, durably, whatever ``create=`` said: with mode 0700, or what
        *inherit_mode* has it be.

        It may exist, and others may be making it at the same time. `NotAMaildirError` if something on the way is not
        a directory, `AppendError` (stage ``create``) for what the system says.
        """
        await self.in_thread(self.mailbox.directories.make)

    async def create_folder(self, folder: str | Sequence[str], *, subscribe: bool = False) -> None:
        """Make a Maildir++ folder, or what is missing of it, as `create` makes the maildir, which is made too.

        Args:
            folder: its name, parts with ``/`` between, or the parts themselves. Folders above it are not made: to
                Maildir++ each stands by itself.
            subscribe: whether IMAP clients are to show it: it is added to Dovecot's ``subscriptions`` in the maildir,
                durably, under Dovecot's lock. `AppendError` with EAGAIN (stage ``create``) where another has that for
                too long; the folder is there then.

        """
        check_bool("subscribe", subscribe)
        mailbox = self.mailbox_of(folder)
        directories = mailbox.directories
        await self.in_thread(partial(explained, directories, directories.make))
        if subscribe:
            await self.in_thread(partial(explained, directories, partial(subscribe_to, directories, mailbox.mode)))

    async def folders(self) -> list[str]:
        """Return the Maildir++ folders that are there, as a person writes them, sorted. The maildir itself is none.

        A directory whose name *folder_encoding* would not write is left out: no message can be given to it. A maildir
        that does not exist yet has none, unless it may not be made: `NotAMaildirError`.
        """
        return await self.in_thread(self._folders.existing)

    async def check_room(self, size: int = 0) -> None:
        """Raise what a message of *size* bytes would fail with, as far as that can be seen before it comes.

        `NotAMaildirError`; `AppendError` (stage ``create``) for a full disk or a directory without permission;
        `QuotaExceededError` by what ``maildirsize`` says; `BusyError` if the `GroupCommit` is full and does not wait.
        No message is written, and nothing promised.
        """
        size = check_count("size", size, least=0)
        if self.commit.is_full and not self.commit.waits:
            raise busy_error()
        await self.in_thread(partial(self._check_room, size))

    def _check_room(self, size: int) -> None:
        check_room(self.mailbox.directories, size)
        if self.mailbox.quota is not None:
            self.mailbox.quota.check(size)

    async def index(self, *, folder: str | Sequence[str] | None = None) -> Index:
        """Return a live list: the messages that exist, then each one that this object delivers from now on.

        Of the maildir itself, or of one *folder*. An object whose index nobody holds keeps no list. A maildir that does
        not exist yet has no messages, unless it may not be made: `NotAMaildirError`.
        """
        index, mailbox = Index(), self.mailbox_of(folder)
        mailbox.listen(index)
        await self.in_thread(lambda: index.load(messages(mailbox.directories)))
        return index

    def watch(
        self, folder: str | Sequence[str] | None = None, *, existing: bool = False, poll_s: float = 1.0
    ) -> AsyncGenerator[WatchedMessage, None]:
        """Return an async iterator over the messages that become visible from now on, whoever delivers them.

        Each once, by its key, in about the order in which they are published; one that a reader moves from ``new/`` to
        ``cur/``, or flags, is not told of again, and one that is removed before it was looked at may be left out. None
        is missed because this was being set up, was slow, or because the maildir was removed and made again; one that
        is not there yet is waited for. "From now on" is from when inotify watches, a moment after the first message has
        been asked for.

        With the library of the extra ``watch`` inotify tells. Where it is not installed, or there is no inotify to be
        had, directories are listed; and also where other machines may deliver, on a network file system. There, what is
        published in the tick of the clock (some milliseconds) in which the watch begins may count as coming after it.

        End it by cancelling, or by ``aclose()`` of what this returns: then no thread, descriptor or watch is left.

        Args:
            folder: the Maildir++ folder, or the maildir itself.
            existing: yield the messages that are there first, in the order of their arrival.
            poll_s: seconds between listings where inotify is not enough, or something is missing of the maildir.

        Raises:
            NotAMaildirError: a folder that leads out of the maildir.
            AppendError: what else the system says of directories that are there (stage ``create``).

        """
        mailbox = self.mailbox_of(folder)
        return watch_messages(mailbox.directories, mailbox.folder, self.in_thread, existing=existing, poll_s=poll_s)

    async def clean_tmp(self, older_than: timedelta = CLEAN_AGE) -> list[str]:
        """Remove what deliveries that were killed have left in ``tmp/``, also of folders, and return the paths removed.

        Only regular files whose ctime is older than *older_than*, and none that this process or its helper is writing,
        by whatever path. Less than 36 hours is safe only where no other process delivers to this maildir.
        """
        return await self.in_thread(partial(self._clean, check_age(older_than)))

    def _clean(self, older_than_s: float) -> list[str]:
        removed = clean_tmp(self.mailbox.directories, older_than_s, is_in_use)
        for folder in self._folders.existing():
            directories = self.mailbox_of(folder).directories
            with contextlib.suppress(NotAMaildirError):  # one that leads out of the maildir, or has just been removed
                directories.check_inside()
                removed += clean_tmp(directories, older_than_s, is_in_use)
        return removed

    def statistics(self) -> MaildirStatistics:
        """Return what has become of the messages given to this object, for all folders together. Never waits."""
        return statistics_of(self._folders.used())

    async def aclose(self) -> None:
        """Take no more messages (`MaildirError`), and return when those in flight, on any loop, are settled.

        A message that somebody is still feeding is waited for. Cancelling this stops the waiting, not the deliveries.
        """
        loop = asyncio.get_running_loop()
        self._folders.close()
        for mailbox in self._folders.used():
            while mailbox.in_flight or mailbox.live_tasks():
                # Looked at again after a while: a loop that is closed with a delivery in flight tells nobody.
                await asyncio.wait([mailbox.drained(loop)], timeout=1.0)
        while self.commit.queue.turns.has_to_tell(loop):  # noqa: ASYNC110 it takes turns of the loop, and no event
            await asyncio.sleep(0)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Return what a worker thread has *call* return. AppendError for an OSError. Cancellation of any kind waits."""
        call = partial(explained, self.mailbox.directories, call)
        try:
            return await until_done(run_in_thread(asyncio.get_running_loop(), self.commit.streams.crew, call))
        except OSError as exc:
            raise append_error(exc, path=self.path, stage="create") from exc


def _names(names: UniqueNames | None, hostname: str | None) -> UniqueNames:
    """Return where names come from: one of the two says that, or neither."""
    hostname = check_hostname(hostname)
    if names is None:
        return names_for(hostname)
    if not callable(getattr(names, "next", None)):
        raise TypeError(f"names must be UniqueNames or None, not {given(names)}")
    if hostname is not None:
        raise ValueError("names brings its own hostname")
    return names


def is_in_use(name: str) -> bool:
    """Whether this process, or its helper, is writing a file of that name in some ``tmp/``: no two have the same."""
    return name in names_in_use() or name in streams_in_use() or name.partition(",")[0] in names_in_use_by_helpers()
