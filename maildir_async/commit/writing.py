"""WRITE, the first step of a round: each message goes into ``tmp/``. Blocks."""

import contextlib
import errno
import time
from collections.abc import Iterator
from typing import Final

from maildir_async.commit.batch import WRITE, Batch, Hand, LeftBehind, Tmp
from maildir_async.commit.entry import Entry
from maildir_async.disk.calls import OUT_OF_DESCRIPTORS, write_all
from maildir_async.disk.rights import files_rights, give
from maildir_async.disk.streamfile import NAME_TRIES, converted
from maildir_async.errors import QuotaExceededError
from maildir_async.format.content import Content, wire_size_of

__all__ = ["Writing", "complete_stream", "convert", "create", "give_letters", "give_rights", "rename", "write_rest"]

#: Messages in a round from which on it pays to open ``tmp/``: 1 µs for each that is created and moved, against 5 µs.
MANY: Final = 8


class Writing:
    """The step, for one batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._todo: Iterator[Entry] | None = None

    def work(self, hand: Hand) -> None:
        """Have each message in its file, from where another driver has left off."""
        todo = self._todo
        if todo is None:
            todo = self._todo = iter([entry for entry in self._batch.entries if entry.source is None])
            self._draw_names()
        tmps, is_alone, are_many = self._batch.tmps, len(self._batch.entries) == 1, len(self._batch.entries) >= MANY
        for entry in todo:
            hand[entry] = None
            failure: BaseException | None = None
            try:
                directories, plan = entry.mailbox.directories, entry.plan
                disk = directories.disk
                tmp = tmps.get((disk, directories.tmp))
                if plan.keywords:
                    give_letters(entry)
                if entry.file is not None:
                    complete_stream(entry)
                    if entry.mailbox.quota is not None:
                        entry.mailbox.quota.admit(entry, self._batch.look)
                else:
                    data = entry.chunks
                    if not plan.as_given or type(data) is not bytes:
                        data = convert(entry)
                    entry.size = size = len(data)
                    # CPython searches for one byte with memchr(3) where it replaces, and byte by byte elsewhere.
                    entry.wire_size = wire_size_of(data) if b"\r" in data else 2 * size - len(data.replace(b"\n", b""))
                    entry.name = name = f"{entry.name},S={size},W={entry.wire_size}"
                    entry.stage = "create"
                    if entry.mailbox.quota is not None:
                        entry.mailbox.quota.admit(entry, self._batch.look)
                    if tmp is None or tmp.fd is None:
                        fd = create(entry)
                    else:
                        try:
                            entry.fd = fd = disk.create(name, entry.mailbox.mode, tmp.fd)
                            entry.tmp_name = name
                        except (FileExistsError, FileNotFoundError):
                            fd = create(entry)
                    if entry.mailbox.sets_mode:
                        if entry.mailbox.inherits:
                            give_rights(entry, self._batch)
                        else:  # what the umask may have taken away
                            disk.chmod(fd, entry.mailbox.mode)
                    entry.stage = "write"
                    written = disk.write(fd, data) if data else 0
                    if written != size:
                        write_rest(entry, data, written)
                    entry.chunks = b""
                if plan.mtime_ns is not None:
                    # Only mtime: a sweeper that goes by atime must not find an old file in tmp/.
                    disk.utime(entry.fd, time.time_ns(), plan.mtime_ns)
                if entry.links:
                    for link in entry.links:
                        link.size, link.wire_size = entry.size, entry.wire_size
                        link.name = f"{link.name},S={link.size},W={link.wire_size}"
                        if link.mailbox.quota is not None:
                            admit_link(link, self._batch.look)
                if not is_alone and (tmp is None or (tmp.fd is None and are_many)):
                    self._look_at_tmp(entry)
            except BaseException as exc:
                failure = exc
            is_crowded = failure is not None and entry.fd < 0 and self._is_crowded(failure)
            if failure is not None and not is_crowded:
                entry.fail(failure)
            try:
                del hand[entry]
            except KeyError:
                if is_crowded and failure is not None:
                    entry.fail(failure)
                raise LeftBehind(entry, WRITE) from None
            self._batch.moves += 1
            if is_crowded:
                self._batch.postpone([entry, *todo])

    def _draw_names(self) -> None:
        """Give names to those that have none: in the order of publication, which is when the mail arrives."""
        entries = [entry for entry in self._batch.entries if not entry.name]
        if not entries:
            return
        names = entries[0].mailbox.names
        if len({id(entry.mailbox.names) for entry in entries}) == 1:
            for entry, name in zip(entries, names.take(len(entries)), strict=True):
                entry.name = name
        else:
            for entry in entries:
                entry.name = entry.mailbox.names.next()

    def _look_at_tmp(self, entry: Entry) -> None:
        """Find out what the first message in each ``tmp/`` tells of it; open it for those after the second."""
        directories = entry.mailbox.directories
        key = (directories.disk, directories.tmp)
        tmp = self._batch.tmps.get(key)
        if tmp is None:
            device = directories.disk.stat(entry.fd).st_dev
            self._batch.tmps.setdefault(key, Tmp(directories.disk, device))  # a thread that hung may have been faster
        else:
            with contextlib.suppress(OSError):  # by path, then, which tells what is wrong
                tmp.open(directories.tmp)

    def _is_crowded(self, failure: BaseException) -> bool:
        """Whether there are too many open files, and this round is about to close some."""
        if not isinstance(failure, OSError) or failure.errno not in OUT_OF_DESCRIPTORS:
            return False
        return any(entry.fd >= 0 for entry in self._batch.entries)


def give_letters(entry: Entry) -> None:
    """Have the letters of its keywords among its flags, durably defined, and those of each of its links among its.

    They come before the file: a message that gets none leaves nothing to be removed. Whichever of a message and its
    links gets none fails alone: the message then goes no further than its links need it.
    """
    for one in entry.family:
        if one.error is not None:
            continue
        stage, one.stage = one.stage, "create"
        try:
            try:
                letters = one.mailbox.keywords.letters(one.plan.keywords)
            except FileNotFoundError:
                for warning in one.mailbox.directories.make_missing():
                    one.warn(warning)
                letters = one.mailbox.keywords.letters(one.plan.keywords)
        except BaseException as exc:
            if isinstance(exc, OSError) and exc.errno in OUT_OF_DESCRIPTORS:
                raise  # which may be another round's
            if one is not entry:
                one.fail(exc)
            elif any(link.error is None for link in entry.links):
                entry.refusal = exc
            else:
                raise
        else:
            one.flags = "".join(sorted(one.plan.flags + letters))
            one.stage = stage


def admit_link(link: Entry, round_: object) -> None:
    """Have a link fail, and nothing else, whose maildir has no room for it under its quota."""
    assert link.mailbox.quota is not None
    try:
        link.mailbox.quota.admit(link, round_)
    except QuotaExceededError as exc:
        link.error = exc


def convert(entry: Entry) -> bytes:
    """Return what is to be stored: its prefix, and its bytes without an mbox line, with the line ends asked for."""
    plan, chunks = entry.plan, entry.chunks
    given = chunks if isinstance(chunks, bytes) else b"".join(chunks)
    if plan.as_given:
        return given
    content = Content(prefix=plan.prefix, newline=plan.newline, strip_from_line=plan.strip_from_line)
    return converted(content, given) + content.end()


def create(entry: Entry) -> int:
    """Make its file in ``tmp/``, by path, and first whatever is missing of the maildir; return the descriptor."""
    directories, made = entry.mailbox.directories, False
    for _ in range(NAME_TRIES):
        try:
            entry.fd = directories.disk.create(f"{directories.tmp}/{entry.name}", entry.mailbox.mode)
        except FileExistsError:
            rename(entry)
        except (FileNotFoundError, NotADirectoryError):
            if made:
                raise
            made = True
            for warning in directories.make_missing():
                entry.warn(warning)
            if entry.plan.keywords:  # what defined its letters may have been removed with the rest
                give_letters(entry)
                entry.stage = "create"
        else:
            entry.tmp_name = entry.name
            return entry.fd
    raise OSError(errno.EEXIST, "no free name in tmp/")


def give_rights(entry: Entry, batch: Batch) -> None:
    """Give its file, which has just been made, owner, group and mode as the maildir's directory says."""
    disk, path = entry.mailbox.directories.disk, entry.mailbox.directories.path
    rights = batch.rights.get((disk, path))
    if rights is None:
        rights = batch.rights[disk, path] = files_rights(disk, path)
    if warning := give(disk, entry.fd, rights):
        for member in entry.family:
            member.warn(warning)


def rename(entry: Entry) -> None:
    """Give it another name: there is a file that has this one."""
    entry.name = f"{entry.mailbox.names.next()},S={entry.size},W={entry.wire_size}"


def write_rest(entry: Entry, data: bytes, written: int) -> None:
    """Write what a write that was short has left."""
    if written <= 0:
        raise OSError(errno.EIO, "write made no progress")
    write_all(entry.mailbox.directories.disk, entry.fd, data[written:])


def complete_stream(entry: Entry) -> None:
    """Write the rest of a message that has a file already, and take that file over."""
    file = entry.file
    assert file is not None
    entry.stage = "write"
    tmp_name = file.name
    entry.tmp_name = tmp_name  # before it is the stream's no more: a sweeper has to know whose it is
    chunks = entry.chunks
    for warning in file.warnings:
        for member in entry.family:
            member.warn(warning)
    entry.fd = file.complete((chunks,) if isinstance(chunks, bytes) else chunks)
    entry.chunks = b""
    entry.size, entry.wire_size = file.content.size, file.content.wire_size
    entry.name = f"{entry.name},S={entry.size},W={entry.wire_size}"
