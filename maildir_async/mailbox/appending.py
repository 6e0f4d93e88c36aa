"""One message delivered to a maildir."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from maildir_async.commit.entry import Plan
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.options import DEADLINE, check_callback, check_deadline, check_size_limit
from maildir_async.mailbox.duplicates import DuplicateFilter
from maildir_async.mailbox.upkeep import Upkeep
from maildir_async.mailbox.whole import append_whole, refuse_large
from maildir_async.receive.messages import Message, check_message
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.receive.submission import plan_of
from maildir_async.receive.task import AppendTask
from maildir_async.receive.user_code import CallersContext

__all__ = ["Appending"]


class Appending(Upkeep):
    """The part of `maildir_async.Maildir` that delivers one message, with what is asked for where a message asks not.

    Attributes:
        durability: what messages survive.
        size_limit: bytes of the largest message taken, or None.
        duplicates: what finds those of messages that have a *duplicate_key*, or None.

    """

    durability: Durability
    size_limit: int | None
    duplicates: DuplicateFilter | None
    _plan: Plan  # of a message of which nothing else is asked

    async def append(
        self,
        message: Message,
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
        duplicate_key: bytes | str | bool | None = None,
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
            deadline: how long the message may take to be received: 24 hours (`DEADLINE`), unless told.
            duplicate_key: what is the same for messages of which only the first is to be stored, by the maildir's
                `DuplicateFilter`: bytes or text, or True for the Message-ID (without one, or with one that does not end
                in the first 64 KiB, the message is stored). It is looked up when the message is whole.

        Raises:
            TypeError: *message*, or a chunk of it, is not bytes.
            ValueError: an option is not valid.
            NotAMaildirError: there is no maildir, and none may be made.
            MessageTooLargeError: it passes the limit. If the size is known, nothing has been written.
            BusyError: too much is pending, and the `GroupCommit` was built not to wait.
            UncertainAppendError: it is visible, but a power cut may still lose it.
            AppendError: anything else that went wrong, in the source (stage ``receive``) or on the disk.

        """
        if type(message) is bytes and (size := len(message)) <= CHUNK_SIZE and duplicate_key is None:
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
        # An AppendTask takes None, to be fed by hand.
        if message is None:  # pyright: ignore[reportUnnecessaryComparison] callers need not be type-checked
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
            duplicate_key=duplicate_key,
        )

    def open_append(
        self,
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
        duplicate_key: bytes | str | bool | None = None,
    ) -> AppendTask:
        """Return an `AppendTask` to feed by hand, as an async context manager.

        ::

            async with maildir.open_append() as task:
                await task.send(chunk)
            print(task.future.result())

        Leaving the block commits, and raises as `append` does; an exception in the block aborts. Options are those
        of `append`.
        """
        return AppendTask(
            self,
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
            duplicate_key=duplicate_key,
        )
