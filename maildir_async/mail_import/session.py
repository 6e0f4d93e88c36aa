"""What one import has on the disk: its source, its target, and the journal between the two. Blocks; for one thread."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from maildir_async.disk.directories import Directories, sync_directory
from maildir_async.disk.imported import Imported, Orphan, Wanted
from maildir_async.errors import MaildirError
from maildir_async.format.names import number_of, process_tag
from maildir_async.mail_import.messages import STDIN, Found, Messages, digest_of
from maildir_async.mail_import.report import Problems

__all__ = ["JOURNAL", "Session", "Step", "refuse_overlap"]

#: The journal's name in a maildir, where none is given.
JOURNAL: Final = "maildir-async-import.sqlite"

#: Messages that are read in one go, and bytes of them.
STEP_MESSAGES: Final = 128
STEP_BYTES: Final = 1 << 21

#: Seconds between two commits of the journal: of what has been published since, the next run has to read the files.
COMMIT_EVERY_S: Final = 1.0


class Step(NamedTuple):
    """Messages read in one go.

    Attributes:
        wanted: those to be stored, each with its ident. Only the last can be one that is not read whole.
        already_there: how many others there were.
        size: bytes of those.
        is_last: whether there are no more.

    """

    wanted: list[tuple[Found, bytes]]
    already_there: int
    size: int
    is_last: bool


class Session:
    """One import.

    Args:
        messages: of the source.
        source: its path, by which messages are known as being of the same source.
        target: the maildir.
        folders: those that it has.
        name_of: returns what the directory of a folder is called; ValueError for one that there cannot be.
        journal: the journal's path.
        is_dry: whether nothing is to be changed.
        problems: what is odd is told to it.

    """

    def __init__(
        self,
        messages: Messages,
        source: str,
        target: Directories,
        folders: Sequence[Directories],
        name_of: Callable[[tuple[str, ...]], str],
        journal: str,
        problems: Problems,
        *,
        is_dry: bool,
    ) -> None:
        self._messages = messages
        self._source = os.fsencode(source if source == STDIN else os.path.realpath(source))
        self._target = target
        self._folders = folders
        self._name_of = name_of
        self._journal = Imported(journal, target.disk, is_dry=is_dry)
        self._place = os.path.dirname(journal)
        self._problems = problems
        self._is_dry = is_dry
        self._tag = process_tag()
        self._each: Iterator[Found] = iter(())
        self._long: Found | None = None
        self._names = dict[tuple[str, ...], str]()
        self._unfit = dict[tuple[str, ...], str]()  # why there can be no such folder
        self._committed_at = time.monotonic()

    def begin(self) -> int | None:
        """Find out what has been imported; return how many messages the source has, if that can be told.

        MaildirError if another import is under way, or if the journal cannot be used; OSError likewise.
        """
        if not self._is_dry:
            self._refuse_others()
        tags = self._journal.open()
        self._journal.begin(self._tag, list(self._orphans(tags)))
        if not self._is_dry:
            sync_directory(self._target.disk, self._place)
        total = self._messages.total()
        self._each = self._messages.each()
        return total

    def _refuse_others(self) -> None:
        """Refuse to have root's SQLite write where another user may put a symbolic link."""
        if os.geteuid() == 0 and self._target.disk.stat(f"{self._place}/.").st_uid != 0:
            reason = "belongs to another user: import as that user, or have the journal elsewhere"
            raise MaildirError(f"{self._place} {reason}", stage="create")

    def _orphans(self, tags: Sequence[str]) -> Iterator[Orphan]:
        """Yield what runs that did not end have published and not recorded, as far as it still is where it was."""
        for tag in tags:
            known = self._journal.numbers(tag)
            for directories in (self._target, *self._folders):
                folder = os.path.basename(directories.path) if directories is not self._target else ""
                for where in ("new", "cur"):
                    yield from self._orphans_in(directories.subdirectory(where), folder, tag, known)

    def _orphans_in(self, path: str, folder: str, tag: str, known: set[int]) -> Iterator[Orphan]:
        try:
            names = self._target.disk.listdir(path)
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
                yield Orphan(_content(folder, digest), tag, number)

    def step(self, published: Sequence[tuple[bytes, str]]) -> Step:
        """Record what has been published, ident and key, and read on."""
        self.record(published)
        if self._long is not None:
            while self._long.more():
                pass  # what a failed append has left
            self._long = None
        found, size, is_last = list[tuple[Found, Wanted]](), 0, False
        while len(found) < STEP_MESSAGES and size < STEP_BYTES:
            message = next(self._each, None)
            if message is None:
                is_last = True
                break
            if message.rest is not None:
                if not self._is_dry and self._folder_of(message) is not None:
                    self._long = message
                    break
                while piece := message.more():
                    message.size += len(piece)
            size += len(message.first)
            wanted = self._wanted(message)
            if wanted is not None:
                found.append((message, wanted))
        answers = self._journal.find([wanted for _, wanted in found])
        is_there = [message.size for (message, _), answer in zip(found, answers, strict=True) if answer]
        new = [(message, wanted.ident) for (message, wanted), answer in zip(found, answers, strict=True) if not answer]
        if self._long is not None:
            new.append((self._long, b""))
        return Step(new, len(is_there), sum(is_there), is_last)

    def find_long(self, message: Found) -> bytes | None:
        """Return the ident of a message that has been read to its end now; None if it is not to be stored."""
        wanted = self._wanted(message)
        return None if wanted is None or self._journal.find([wanted])[0] else wanted.ident

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
            self._journal.record([(ident, number_of(key, self._tag)) for ident, key in published])

    def end(self, published: Sequence[tuple[bytes, str]], *, is_finished: bool) -> None:
        """Record what has been published, and close the journal."""
        try:
            self._record(published)
        except BaseException:
            is_finished = False
            raise
        finally:
            self._journal.close(is_finished=is_finished)
            self._messages.close()

    def _wanted(self, message: Found) -> Wanted | None:
        """Return what stands for *message*; None, after that has been told, if it can be in no folder."""
        folder = self._folder_of(message)
        if folder is None:
            reason = self._unfit[message.folder]
            self._problems.lost(message.path, message.offset, reason)
            return None
        content = _content(folder, message.digest())
        return Wanted(hashlib.sha256(self._source + b"\0" + content).digest()[:16], content)

    def _folder_of(self, message: Found) -> str | None:
        """Return what the directory of its folder is called; None if there can be none, for which `_unfit` has why."""
        parts = message.folder
        if (name := self._names.get(parts)) is None and parts not in self._unfit:
            try:
                name = self._names[parts] = self._name_of(parts)
            except ValueError as exc:
                self._unfit[parts] = str(exc)
        return name


def _content(folder: str, digest: bytes) -> bytes:
    """Return what stands for a message with that digest in that folder."""
    return hashlib.sha256(os.fsencode(folder) + b"\0" + digest).digest()[:16]


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
