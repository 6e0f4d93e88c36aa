"""The file in ``tmp/`` of a message that is written while it comes, until it is whole. Everything here blocks."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from typing import Final

from maildir_async.disk.calls import Disk, remove, write_all
from maildir_async.disk.directories import Directories
from maildir_async.disk.refusals import explained
from maildir_async.disk.rights import files_rights, give
from maildir_async.errors import Stage
from maildir_async.format.content import Content
from maildir_async.format.names import UniqueNames

__all__ = ["NAME_TRIES", "StreamFile", "discard_all", "store", "streams_in_use"]

#: How many names are tried, in tmp/ and for publishing. A second try is a wonder already.
NAME_TRIES: Final = 16

#: Bytes converted and written at once: what a huge chunk is copied by.
SLICE: Final = 2**20

#: The same where line ends change, for which the interpreter lock is held: 0.15 ms.
CONVERTED_SLICE: Final = 2**17

_in_use: Final[dict[str, "StreamFile"]] = {}

# Held while a large chunk is converted, which keeps the interpreter lock. Several at once are no faster, and an event
# loop that has let go of that lock for a moment, to read from a socket, would wait for all of them and not for one.
_converting = threading.Lock()


def streams_in_use() -> set[str]:
    """Return the names in ``tmp/`` that streams of this process are writing to."""
    return set(_in_use)


def discard_all() -> None:
    """Discard every message of this process that is still being received."""
    for file in list(_in_use.values()):
        file.discard()


def _leave_to_parent() -> None:
    """Let go of what a fork has copied: the deliveries in flight, and their files, are the parent's."""
    global _converting
    _converting = threading.Lock()
    for file in list(_in_use.values()):
        file.disown()
    _in_use.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


def store(disk: Disk, fd: int, content: Content, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write all of *chunks*, converted as *content* says."""
    size = SLICE if content.newline == "keep" else CONVERTED_SLICE
    for chunk in chunks:
        if isinstance(chunk, bytes) and len(chunk) <= size:
            write_all(disk, fd, converted(content, chunk))
            continue
        view = memoryview(chunk)
        for start in range(0, len(view), size):
            write_all(disk, fd, converted(content, bytes(view[start : start + size])))


def converted(content: Content, chunk: bytes) -> bytes:
    """Return what *content* makes of a chunk. Large ones wait for each other."""
    if len(chunk) < CONVERTED_SLICE // 4:  # not worth mentioning
        return content.feed(chunk)
    with _converting:
        return content.feed(chunk)


class StreamFile:
    """A message on its way into ``tmp/``.

    The steps are `create`, `write` (any number of times) and `complete`; an OSError from any of them means that
    `discard` is all that may follow. `discard` may come at any time, from any thread: it waits for the step in
    progress, and no step does anything after it, or after `complete`.

    Attributes:
        name: of the file in ``tmp/``, "" before there is one.
        fd: its descriptor, or -1.
        content: what converts and counts the bytes.
        stage: the step it is at, or failed in.
        opened_at: when it was created (`time.monotonic`).
        warnings: what could not be as it should, but keeps no message from being delivered.

    """

    __slots__ = (
        *("_directories", "_is_synced", "_lock", "_mode", "_names", "_over", "_synced_to"),
        *("content", "fd", "name", "opened_at", "stage", "warnings"),
    )

    def __init__(
        self, directories: Directories, names: UniqueNames, content: Content, *, mode: int, is_synced: bool
    ) -> None:
        self._directories = directories
        self._names = names
        self._mode = mode
        self._is_synced = is_synced  # in the end, so that its writeback may begin early
        self._synced_to = 0  # bytes whose writeback has been started
        self._over = False
        self._lock = threading.Lock()  # a step in progress, against discard()
        self.content = content
        self.name = ""
        self.fd = -1
        self.stage: Stage = "queue"
        self.opened_at = 0.0
        self.warnings: list[str] = []

    @property
    def path(self) -> str:
        """Where it is, "" before it is there."""
        return f"{self._directories.tmp}/{self.name}" if self.name else ""

    def create(self) -> None:
        """Make the file in ``tmp/``, and first whatever is missing of the maildir."""
        explained(self._directories, self._create)

    def _create(self) -> None:
        with self._lock:
            self._begin("create")
            disk, made = self._directories.disk, False
            for _ in range(NAME_TRIES):
                name = self._names.next()
                _in_use[name] = self  # before it is there: a sweeper that sees it knows whose it is
                try:
                    self.fd = disk.create(f"{self._directories.tmp}/{name}", self._mode)
                except FileExistsError:
                    _in_use.pop(name, None)
                    continue
                except (FileNotFoundError, NotADirectoryError):
                    _in_use.pop(name, None)
                    if made:
                        raise
                    self.warnings += self._directories.make_missing()
                    made = True
                    continue
                except BaseException:
                    _in_use.pop(name, None)
                    raise
                self.name = name
                self.opened_at = time.monotonic()
                if self._directories.inherit_mode:
                    warning = give(disk, self.fd, files_rights(disk, self._directories.path))
                    self.warnings += [warning] if warning else []
                elif self._mode & 0o077:  # what the umask may have taken away
                    disk.chmod(self.fd, self._mode)
                return
            raise OSError(errno.EEXIST, "no free name in tmp/")

    def write(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write all of *chunks*, converted as the content policy says, and have their writeback started."""
        with self._lock:
            self._begin("write")
            disk = self._directories.disk
            store(disk, self.fd, self.content, chunks)
            if self._is_synced and (length := self.content.size - self._synced_to):
                disk.start_writeback(self.fd, self._synced_to, length)
                self._synced_to = self.content.size

    def complete(self, chunks: Sequence[bytes | bytearray | memoryview]) -> int:
        """Write the last of the message, and return the descriptor. The file belongs to the caller then."""
        with self._lock:
            self._begin("write")
            store(self._directories.disk, self.fd, self.content, chunks)
            write_all(self._directories.disk, self.fd, self.content.end())
            self._over = True
            fd, self.fd = self.fd, -1
            _in_use.pop(self.name, None)
            return fd

    def discard(self) -> str | None:
        """Close and remove the file, unless it is the caller's of `complete`; return what could not be done, if so."""
        with self._lock:
            if self._over:
                return None
            self._over = True
            disk, failure = self._directories.disk, None
            if self.fd >= 0:
                fd, self.fd = self.fd, -1
                with contextlib.suppress(OSError):  # the file is going to be removed
                    disk.close(fd)
            if self.name:
                try:
                    remove(disk, self.path)
                except FileNotFoundError:
                    pass
                except OSError as exc:
                    failure = f"the file in tmp/ could not be removed: {exc.strerror or exc}"
                finally:
                    _in_use.pop(self.name, None)
            return failure

    def disown(self) -> None:
        """Close the descriptor and do nothing else ever again: the file belongs to the process this forked from."""
        self._lock = threading.Lock()
        self._over = True
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1

    def _begin(self, stage: Stage) -> None:
        if self._over:
            raise OSError(errno.ECANCELED, "the delivery was aborted")
        self.stage = stage
