"""`import_mail`: mail of other formats comes into a maildir, each message once, however often it is begun anew."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from maildir_async.commit.entry import Plan
from maildir_async.commit.waiting import UncancellableFuture, run_in_thread, until_done
from maildir_async.disk.paths import absolute
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.threads import Crew
from maildir_async.errors import (
    AppendError,
    KeywordsFullError,
    MaildirError,
    NotAMaildirError,
    UncertainAppendError,
    append_error,
)
from maildir_async.format.delivered import Delivered
from maildir_async.format.folders import parts_of
from maildir_async.format.names import process_tag
from maildir_async.format.options import check_bool, check_callback, check_path, moment_of
from maildir_async.mail_import.ahead import Ahead
from maildir_async.mail_import.mbox import DIALECTS, Dialect
from maildir_async.mail_import.messages import Found, is_large
from maildir_async.mail_import.report import ImportReport, Problems
from maildir_async.mail_import.session import JOURNAL, Session, Step, Task, refuse_overlap
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.whole import append_whole
from maildir_async.receive.spool import CHUNK_SIZE

if TYPE_CHECKING:
    from maildir_async.mail_import.process import ReadingProcess

__all__ = ["import_mail"]

T = TypeVar("T")

#: Messages in flight, which share the syncs of the disk. With 64, a large import takes a fifth longer.
CONCURRENCY: Final = 128


async def import_mail(
    source: str | os.PathLike[str],
    maildir: Maildir | str | os.PathLike[str],
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int | None, int], object] | None = None,
    folder: str | Sequence[str] | None = None,
    dialect: Dialect = "auto",
    journal: str | os.PathLike[str] | None = None,
    reading_process: bool | None = None,
) -> ImportReport:
    """Import all mail in *source* into *maildir*, and return what came of it.

    What was imported from the same source before, by its path, is not imported again: run anew after any interruption,
    a SIGKILL or a power cut, this comes to what it would have come to without. That is so whatever a mail reader has
    done with the messages meanwhile: what it has removed stays removed. A message that *source* has twice is imported
    twice. What mail readers write into a message (``Status`` and the like) makes no other message of it. A journal in
    the maildir remembers it.

    *source* is an mbox; a directory that is a Maildir, with folders, an MH folder, or has ``.eml`` files or mboxes in
    it, each with what lies below; an ``.eml`` file; or ``-``, standard input. Files may be compressed by gzip. Each
    directory below it, and each mbox in it, becomes a folder. Bytes are stored as they are, but for the quoting of an
    mbox. Flags, keywords and the time of arrival come along: of an mbox from ``Status``, ``X-Status``, ``X-Keywords``,
    ``X-Mozilla-Status`` and the From line (in UTC where it has no zone), else from names, sequences and mtime.

    What cannot be read, or is odd, is in the report with its place, and the rest is imported. A message is as durable
    as the maildir says. Memory is bounded, whatever the size of the source and of its messages.

    On cancellation, or any error raised, what has been imported stays. Nothing acts for the import any more then.

    Args:
        source: see above.
        maildir: where it goes, made at need.
        dry_run: look at all of it, and store nothing.
        on_progress: called on the loop with messages gone through, messages in all (None if not known) and their bytes.
        folder: the folder that all of it goes to, or below.
        dialect: how an mbox quotes: ``mboxo``, ``mboxrd``, ``mboxcl2``, or ``auto``, by which a message with a
            Content-Length that fits is taken as mboxcl2, and all others as mboxrd.
        journal: where it is remembered what has been imported; in the maildir by default.
        reading_process: whether a process of its own reads *source* and keeps the journal, where one can be had. If
            None, it does where *source* is large: 64 MiB, or 20,000 files. A dry run has none.

    Raises:
        TypeError, ValueError: an argument is not valid, or source and maildir lie one in the other.
        OSError: *source* cannot be opened.
        NotAMaildirError: there is no maildir, and none may be made.
        MaildirError: another import into it is under way, the journal cannot be used, or what reads has died.

    """
    check_bool("dry_run", dry_run)
    check_callback("on_progress", on_progress)
    if dialect not in DIALECTS:
        raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, not {dialect!r}")
    target = maildir if isinstance(maildir, Maildir) else Maildir(maildir)
    path = check_path(source)
    where = f"{target.path}/{JOURNAL}" if journal is None else absolute(check_path(journal))
    if reading_process is not None:
        check_bool("reading_process", reading_process)
    parts = parts_of(folder)
    target.mailbox_of(parts)  # raises what is wrong with it
    folders = [target.mailbox_of(name).directories.path for name in await target.folders()]
    task = Task(
        source=path,
        folder=parts,
        dialect=dialect,
        target=target.path,
        folders=tuple(folders),
        folder_encoding=target.folder_encoding,
        journal=where,
        tag=process_tag(),
        is_dry=dry_run,
    )
    return await _Import(target, task, on_progress, reading_process).run()


class _AlreadyThereError(Exception):
    """A message that was being stored is found to be there."""


class _Import:
    def __init__(
        self,
        target: Maildir,
        task: Task,
        on_progress: Callable[[int, int | None, int], object] | None,
        reading_process: bool | None,
    ) -> None:
        self._target = target
        self._task = task
        self._on_progress = on_progress
        self._reading_process = reading_process
        self._problems = Problems()
        self._crew = Crew(1, "maildir-import")
        self._loop = asyncio.get_running_loop()
        self._ahead = Ahead(self._read, self._until, self._count)
        self._published: list[tuple[bytes, str]] = []
        self._is_uncertain = False
        self._total: int | None = None
        self._imported = self._already_there = self._size = self._gone_through = 0

    async def run(self) -> ImportReport:
        await self._target.in_thread(partial(refuse_overlap, self._task.source, self._target.path))
        if not self._task.is_dry:
            await self._target.in_thread(self._target.mailbox.directories.check_whole)
        self._session = await self._target.in_thread(self._reader)
        is_finished = False
        try:
            self._total = await self._in_thread(self._session.begin)
            await self._import_all()
            is_finished = not self._is_uncertain
        finally:
            with anyio.CancelScope(shield=True):
                await self._close(is_finished=is_finished)
        problems = self._problems
        return ImportReport(
            imported=self._imported,
            already_there=self._already_there,
            failed=problems.failed,
            refused=problems.refused,
            size=self._size,
            problems=tuple(problems.first),
            problem_count=problems.count,
            dry_run=self._task.is_dry,
        )

    def _reader(self) -> "Session | ReadingProcess":
        """Return what reads the source. Blocks."""
        disk = self._target.mailbox.directories.disk
        wanted = self._reading_process
        if self._task.is_dry or type(disk) is not PosixDisk:
            wanted = False
        if is_large(self._task.source) if wanted is None else wanted:
            # Here, since few sources are large: it imports multiprocessing.
            from maildir_async.mail_import.process import ReadingProcess

            with contextlib.suppress(OSError):  # no process to be had
                return ReadingProcess(self._task, self._problems)
        return Session(self._task, disk, self._problems)

    async def _close(self, *, is_finished: bool) -> None:
        if (coming := self._ahead.coming) is not None:
            self._session.stop()  # or a source from which nothing comes would be waited for
            with contextlib.suppress(Exception):
                await until_done(coming)
        published, self._published = self._published, []
        try:
            await self._in_thread(partial(self._session.end, published, is_finished=is_finished))
        except MaildirError:
            if is_finished:
                raise

    async def _import_all(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                for _ in range(CONCURRENCY):
                    group.start_soon(self._work)
        except BaseExceptionGroup as exc:
            failure = exc.exceptions[0]
            raise failure from failure.__cause__

    async def _work(self) -> None:
        """Store one message after the other. All that do this share what has been read."""
        while (taken := await self._ahead.take()) is not None:
            message, ident = taken
            if not message.is_long:
                await self._store(message, ident)
                continue
            try:
                await self._store(message, ident)
            finally:
                self._ahead.go_on()

    def _read(self) -> "UncancellableFuture[Step]":
        published, self._published = self._published, []
        return run_in_thread(self._loop, self._crew, self._session.step, published)

    def _count(self, step: Step) -> None:
        self._already_there += step.already_there
        self._gone_through += step.size
        self._imported += step.looked_at
        self._size += step.looked_at_size
        self._gone_through += step.looked_at_size
        self._tell()

    async def _store(self, message: Found, ident: bytes) -> None:
        try:
            if not message.is_long:
                delivered = await self._append(message, message.first)
            else:
                idents = list[bytes]()
                delivered = await self._append(message, self._long(message, idents))
                ident = idents[0]
        except UncertainAppendError as exc:
            self._is_uncertain = True
            self._problems.refused_by(exc, message.path, message.offset)
        except NotAMaildirError:
            raise
        except AppendError as exc:
            if isinstance(exc.__cause__, _AlreadyThereError):
                self._already_there += 1
            elif exc.stage == "receive" and isinstance(exc.__cause__, OSError):
                self._problems.lost(message.path, message.offset, f"cannot be read on: {exc.__cause__.strerror}")
            else:
                self._problems.refused_by(exc, message.path, message.offset)
        else:
            self._published.append((ident, delivered.key))
            self._imported += 1
            self._size += delivered.size
            for warning in delivered.warnings:
                self._problems.odd(delivered.path, None, warning)
        if not message.is_long:
            self._gone_through += len(message.first)
        message.first = b""  # which errors may hold for a while
        self._tell()

    def _append(self, message: Found, content: Any) -> "Awaitable[Delivered]":
        target, folder, size = self._target, message.folder or None, len(message.first)
        if target.size_limit is None and not message.keywords and not message.is_long and size <= CHUNK_SIZE:
            # What `append` comes to, without what it has to look at in what users give it.
            mailbox = target.mailbox if folder is None else target.mailbox_of(folder)
            plan = Plan(target.durability, message.flags, message.received_ns)
            return append_whole(mailbox, target.commit, plan, message.first, size)
        return self._append_any(message, content)

    async def _append_any(self, message: Found, content: Any) -> Delivered:
        if message.is_long and message.keywords:
            await self._take_letters(message)
        received_at = None if message.received_ns is None else moment_of(message.received_ns)
        append = partial(
            self._target.append,
            content,
            folder=message.folder or None,
            flags=message.flags,
            received_at=received_at,
        )
        try:
            return await append(keywords=message.keywords)
        except KeywordsFullError as exc:
            if message.is_long:
                raise
            self._leave_keywords(message, exc)
            return await append()

    async def _take_letters(self, message: Found) -> None:
        """See to it that there are letters for the keywords of a message that cannot be begun anew without them."""
        mailbox = self._target.mailbox_of(message.folder or None)
        try:
            await self._in_thread(partial(mailbox.keywords.letters, message.keywords))
        except KeywordsFullError as exc:
            self._leave_keywords(message, exc)
        except (MaildirError, OSError):
            pass  # there may be no folder yet; all else the message itself comes upon

    def _leave_keywords(self, message: Found, exc: KeywordsFullError) -> None:
        message.keywords = ()
        self._problems.odd(message.path, message.offset, f"comes without its keywords: {exc}")

    async def _long(self, message: Found, idents: list[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield a long message. Whether it is there already is known at its end."""
        piece = message.first
        while piece:
            self._gone_through += len(piece)
            yield piece
            piece = await self._in_thread(self._session.more)
        ident = await self._in_thread(self._session.find_long)
        if ident is None:
            raise _AlreadyThereError
        idents.append(ident)

    def _tell(self) -> None:
        if self._on_progress is not None:
            done = self._imported + self._already_there + self._problems.failed
            self._on_progress(done, self._total, self._gone_through)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._until(run_in_thread(self._loop, self._crew, call))

    async def _until(self, future: "UncancellableFuture[T]") -> T:
        """Return what *future* comes to. A cancellation has reading end, and is raised when it has."""
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            self._session.stop()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise
        try:
            return future.result()
        except OSError as exc:
            if exc.filename is not None and exc.filename == self._task.source:
                raise
            above = os.path.dirname(self._task.journal)
            # The journal's own directory: where that is the maildir, it has been seen to be there.
            path = above if isinstance(exc, FileNotFoundError) else self._target.path
            raise append_error(exc, path=path, stage="create") from exc
