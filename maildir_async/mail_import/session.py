"""What one import has on the disk: its source, its target, and the journal between the two. Blocks; for one thread."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import sync_directory
from maildir_async.disk.imported import Imported, Orphan, Wanted
from maildir_async.errors import MaildirError
from maildir_async.format.folders import FolderEncoding, directory_of, parts_of
from maildir_async.format.names import number_of
from maildir_async.mail_import.mbox import Dialect
from maildir_async.mail_import.messages import STDIN, Found, Messages, digest_of
from maildir_async.mail_import.report import Problems

__all__ = ["JOURNAL", "Session", "Step", "Task", "refuse_overlap"]

#: The journal's name in a maildir, where none is given.
JOURNAL: Final = "maildir-async-import.sqlite"

#: Messages that are read in one go, and bytes of them.
STEP_MESSAGES: Final = 128
STEP_BYTES: Final = 1 << 21

#: Seconds between two commits of the journal: of what has been published since, the next run has to read the files.
COMMIT_EVERY_S: Final = 1.0


class Task(NamedTuple):
    """What one import is to do. It can be pickled.

    Attributes:
        source: the path of what is imported, or `STDIN`. By it messages are known as being of the same source.
        folder: parts of the folder that all of it belongs to.
        dialect: of an mbox.
        target: the path of the maildir.
        folders: paths of the folders that it has.
        folder_encoding: how the names of folders are written there.
        journal: the journal's path.
        tag: of the process that publishes the messages.
        is_dry: whether nothing is to be changed.

    """

    source: str
    folder: tuple[str, ...]
    dialect: Dialect
    target: str
    folders: tuple[str, ...]
    folder_encoding: FolderEncoding
    journal: str
    tag: str
    is_dry: bool


class Step(NamedTuple):
    """Messages read in one go.

    Attributes:
        wanted: those to be stored, each with its ident. Only the last can be a long one.
        already_there: how many others there were.
        size: bytes of those.
        is_last: whether there are no more.
        looked_at: in a dry run, messages that would be stored; `wanted` is empty then.
        looked_at_size: bytes of those.

    """

    wanted: list[tuple[Found, bytes]]
    already_there: int
    size: int
    is_last: bool
    looked_at: int = 0
    looked_at_size: int = 0


class Session:
    """One import.

    Args:
        task: what it is to do.
        disk: looks at the maildir, and makes the journal.
        problems: what is odd is told to it.

    """

    def __init__(self, task: Task, disk: Disk, problems: Problems) -> None:
        self._task = task
        self._disk = disk
        self._problems = problems
        self._messages = Messages(task.source, task.folder, task.dialect, problems)
        self._source = os.fsencode(task.source if task.source == STDIN else os.path.realpath(task.source))
        self._journal = Imported(task.journal, disk, is_dry=task.is_dry)
        self._place = os.path.dirname(task.journal)
        self._each: Iterator[Found] = iter(())
        self._long: Found | None = None
        self._prefixes = dict[tuple[str, ...], bytes]()
        self._unfit = dict[tuple[str, ...], str]()  # why there can be no such folder
        self._committed_at = time.monotonic()

    def stop(self) -> None:
        """Have reading end with `StoppedError`, also where nothing comes. Any thread may call this."""
        self._messages.stop()

    def begin(self) -> int | None:
        """Find out what has been imported; return how many messages the source has, if that can be told.

        MaildirError if another import is under way, or if the journal cannot be used; OSError likewise.
        """
        if not self._task.is_dry:
            self._refuse_others()
        tags = self._journal.open()
        self._journal.begin(self._task.tag, list(self._orphans(tags)))
        if not self._task.is_dry:
            sync_directory(self._disk, self._place)
        total = self._messages.total()
        self._each = self._messages.each()
        return total

    def _refuse_others(self) -> None:
        """Refuse to have root's SQLite write where another user may put a symbolic link."""
        if os.geteuid() == 0 and self._disk.stat(f"{self._place}/.").st_uid != 0:
            reason = "belongs to another user: import as that user, or have the journal elsewhere"
            raise MaildirError(f"{self._place} {reason}", stage="create")

    def _orphans(self, tags: Sequence[str]) -> Iterator[Orphan]:
        """Yield what runs that did not end have published and not recorded, as far as it still is where it was."""
        for tag in tags:
            known = self._journal.numbers(tag)
            for path in (self._task.target, *self._task.folders):
                prefix = _prefix("" if path == self._task.target else os.path.basename(path))
                for where in ("new", "cur"):
                    yield from self._orphans_in(f"{path}/{where}", prefix, tag, known)

    def _orphans_in(self, path: str, prefix: bytes, tag: str, known: set[int]) -> Iterator[Orphan]:
        try:
            names = self._disk.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            number = number_of(name, tag)
            if number is not None and number not in known:
                try:
                    digest = digest_of(f"{path}/{name}")
                except FileNotFoundError:  # a reader has moved or removed it
                    continue
                known.add(number)
                yield Orphan(_half(prefix + digest), tag, number)

    def step(self, published: Sequence[tuple[bytes, str]]) -> Step:
        """Record what has been published, ident and key, and read on."""
        self.record(published)
        if self._long is not None:
            while self._messages.more():
                pass  # what a failed append has left
            self._long = None
        found, sizes, wanted, total, is_last = list[Found](), list[int](), list[Wanted](), 0, False
        while len(found) < STEP_MESSAGES and total < STEP_BYTES:
            message = next(self._each, None)
            if message is None:
                is_last = True
                break
            size, prefix = len(message.first), self._prefix_of(message)
            if message.is_long:
                if prefix is not None and not self._task.is_dry:
                    self._long = message
                    break
                while piece := self._messages.more():
                    size += len(piece)
            total += size
            if prefix is not None:
                found.append(message)
                sizes.append(size)
                wanted.append(self._wanted(prefix))
        return self._step(found, sizes, wanted, is_last=is_last)

    def _step(self, found: list[Found], sizes: list[int], wanted: list[Wanted], *, is_last: bool) -> Step:
        new, there_size = list[tuple[Found, bytes]](), 0
        for message, size, (ident, _), is_there in zip(found, sizes, wanted, self._journal.find(wanted), strict=True):
            if is_there:
                there_size += size
            else:
                new.append((message, ident))
        there = len(found) - len(new)
        if self._task.is_dry:
            return Step([], there, there_size, is_last, len(new), sum(sizes) - there_size)
        if self._long is not None:
            new.append((self._long, b""))
        return Step(new, there, there_size, is_last)

    def more(self) -> bytes:
        """Return the next bytes of the long message that the last step has come to; none at its end."""
        return self._messages.more()

    def find_long(self) -> bytes | None:
        """Return the ident of that message, which has been read to its end; None if it is there already."""
        prefix = None if self._long is None else self._prefix_of(self._long)
        assert prefix is not None
        wanted = self._wanted(prefix)
        return None if self._journal.find([wanted])[0] else wanted.ident

    def record(self, published: Sequence[tuple[bytes, str]]) -> None:
        """Record what has been published, ident and key.

        That survives this process from time to time only: rows lie anywhere in the file, and what is not recorded is
        found again by the names of this process.
        """
        self._record(published)
        if (now := time.monotonic()) - self._committed_at > COMMIT_EVERY_S:
            self._journal.commit()
            self._committed_at = now

    def _record(self, published: Sequence[tuple[bytes, str]]) -> None:
        if published:
            self._journal.record([(ident, number_of(key, self._task.tag)) for ident, key in published])

    def end(self, published: Sequence[tuple[bytes, str]], is_finished: bool) -> None:
        """Record what has been published, and close the journal."""
        try:
            self._record(published)
        except BaseException:
            is_finished = False
            raise
        finally:
            self._journal.close(is_finished=is_finished)
            self._messages.close()

    def _wanted(self, prefix: bytes) -> Wanted:
        """Return what stands for the message that was found last, which goes to the folder with that *prefix*."""
        content = _half(prefix + self._messages.digest())
        return Wanted(_half(self._source + b"\0" + content), content)

    def _prefix_of(self, message: Found) -> bytes | None:
        """Return what stands for the folder of *message*; None, after that has been told, if there can be none."""
        folder = message.folder
        if (prefix := self._prefixes.get(folder)) is None:
            if folder not in self._unfit:
                try:
                    parts = parts_of(folder)
                    name = directory_of(parts, self._task.folder_encoding) if parts else ""
                    return self._prefixes.setdefault(folder, _prefix(name))
                except ValueError as exc:
                    self._unfit[folder] = str(exc)
            self._problems.lost(message.path, message.offset, self._unfit[folder])
        return prefix


def _prefix(folder: str) -> bytes:
    """Return what stands for a folder, by what its directory is called."""
    return os.fsencode(folder) + b"\0"


def _half(data: bytes) -> bytes:
    """Return half of a hash, which is enough to tell one message from another."""
    return hashlib.sha256(data).digest()[:16]


def refuse_overlap(source: str, target: str) -> None:
    """Raise ValueError if the one is, or lies in, the other: what is imported would be imported."""
    if source == STDIN:
        return
    one: str = os.path.realpath(source)
    other: str = os.path.realpath(target)
    if one == other or one.startswith(f"{other}/"):
        raise ValueError(f"source is the maildir itself, or lies in it: {source!r}")
    if os.path.isdir(one):
        found = os.stat(one)
        above: str = other
        while True:
            try:
                seen = os.stat(above)
            except OSError:
                pass
            else:
                if (seen.st_dev, seen.st_ino) == (found.st_dev, found.st_ino):
                    raise ValueError(f"source is the maildir itself, or the maildir lies in it: {source!r}")
            if above == "/":
                return
            above = os.path.dirname(above)
