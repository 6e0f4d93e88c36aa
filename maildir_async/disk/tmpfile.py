"""One message's file, from its creation in ``tmp/`` until it is published or discarded. Everything here blocks."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from typing import Final

from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import link_new, publish, write_all
from maildir_async.errors import Stage
from maildir_async.format.content import Content
from maildir_async.format.delivered import Durability
from maildir_async.format.names import UniqueNames, file_name

__all__ = ["TmpFile", "discard_all", "in_use"]

#: How many names are tried, in tmp/ and for publishing. A second try is a wonder already.
NAME_TRIES: Final = 16

#: Bytes converted and written at once: what a huge chunk is copied by.
SLICE: Final = 2**20

#: The same where line ends change, for which the interpreter lock is held: 0.15 ms.
CONVERTED_SLICE: Final = 2**17

_in_use: Final[dict[str, "TmpFile"]] = {}

# Held while a large chunk is converted, which keeps the interpreter lock. Several at once are no faster, and an event
# loop that has let go of that lock for a moment, to read from a socket, would wait for all of them and not for one.
_converting = threading.Lock()


def in_use() -> set[str]:
    """Return the paths in ``tmp/`` that this process is writing to."""
    return set(_in_use)


def discard_all() -> None:
    """Discard every message of this process that is not published yet."""
    for tmpfile in list(_in_use.values()):
        tmpfile.discard()


def _leave_to_parent() -> None:
    """Let go of what a fork has copied: the deliveries in flight, and their files, are the parent's."""
    global _converting
    _converting = threading.Lock()
    for tmpfile in list(_in_use.values()):
        tmpfile.disown()
    _in_use.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class TmpFile:
    """A message on its way through ``tmp/``.

    The steps are `create`, `write` (any number of times), `seal`, `sync`, `publish`; an OSError from any of them
    means that `discard` is all that may follow. `discard` may come at any time, from any thread: it waits for the
    step in progress, and no step does anything after it.
    """

    __slots__ = (
        "_fd",
        "_lock",
        "_over",
        "_synced_to",
        "_unique",
        "content",
        "directories",
        "durability",
        "flags",
        "links",
        "mode",
        "mtime_ns",
        "name",
        "names",
        "opened_at",
        "path",
        "published",
        "source",
        "stage",
        "target",
        "warnings",
    )

    def __init__(
        self,
        directories: Directories,
        names: UniqueNames,
        content: Content,
        *,
        mode: int,
        flags: str,
        mtime_ns: int | None,
        durability: Durability,
        source: "TmpFile | None" = None,
    ) -> None:
        self.directories = directories
        self.names = names
        self.content = content
        self.mode = mode
        self.flags = flags
        self.mtime_ns = mtime_ns
        self.durability = durability
        self.source = source  # what this is to be a hard link to, if it is to be one
        self.links = False  # whether there are any to this
        self.target = directories.cur if flags else directories.new  # only cur/ may hold names with flags
        self.path = ""  # in tmp/, once it is there
        self.published = ""  # in new/ or cur/, once it is there
        self.name = ""  # the last part of that
        self.stage: Stage = "queue"  # the step it is at, or failed in
        self.warnings: list[str] = []
        self._unique = ""  # what to publish it as; "" for a name that is made then
        self._fd = -1
        self.opened_at = 0.0
        self._synced_to = 0  # bytes whose writeback has been started
        self._over = False  # published or discarded
        self._lock = threading.Lock()  # a step in progress, against discard()

    def create(self) -> None:
        """Make the file in ``tmp/``, and first whatever is missing of the maildir."""
        with self._lock:
            self._create()

    def write(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write all of *chunks*, converted as the content policy says, and have their writeback started."""
        with self._lock:
            self._write(chunks)
            self._start_writeback()

    def complete(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        """Have the whole message in ``tmp/``: make the file if there is none, write what is missing, set its times.

        Its bytes are final then.
        """
        with self._lock:
            if self._fd < 0:
                # Published at once, in the order in which names are made, it can keep this one.
                self._unique = self._create()
            self._write(chunks)
            self._store(self.content.end())
            if self.mtime_ns is not None:
                # Only mtime: a sweeper that goes by atime must not find an old file in tmp/.
                self.directories.disk.utime(self._fd, time.time_ns(), self.mtime_ns)

    def sync(self) -> None:
        """Make the bytes durable. Never to be repeated: the kernel has marked the pages of a failed fsync clean,
        and the next one may report success for data that is lost (PostgreSQL's finding of 2018).
        """
        with self._lock:
            self._begin("sync")
            self.directories.disk.sync(self._fd)

    def begin_sync(self) -> int:
        """Return the descriptor, for a `sync` that somebody else makes. It stays open, but for a `discard`."""
        with self._lock:
            self._begin("sync")
            return self._fd

    def device(self) -> int:
        """Return the number of the file system it is on."""
        with self._lock:
            self._begin("sync")
            return self.directories.disk.stat(self._fd).st_dev

    def sync_file_system(self) -> None:
        """Make all that its file system holds durable. What failed since this file was opened is told, as by `sync`."""
        with self._lock:
            self._begin("sync")
            self.directories.disk.sync_file_system(self._fd)

    def close(self) -> None:
        """Close the descriptor, before publishing: some file systems report a lost write only here (close(2))."""
        if self.source is not None:
            return
        with self._lock:
            self._begin("close")
            fd, self._fd = self._fd, -1
            self.directories.disk.close(fd)

    def publish(self) -> None:
        """Move the file into its target directory under a fresh name with its sizes and flags; replace nothing."""
        with self._lock:
            self._begin("publish")
            disk, content = self.directories.disk, self.content
            for _ in range(NAME_TRIES):
                # A new name, not a stream's in tmp/: names sort by publication, which is when the mail arrived.
                unique, self._unique = self._unique or self.names.next(), ""
                name = file_name(unique, content.size, content.wire_size, self.flags)
                target = f"{self.target}/{name}"
                try:
                    warning = None
                    if self.source is None:
                        warning = publish(disk, self.path, target)
                    else:
                        link_new(disk, self.source.path, target)
                except FileExistsError:
                    continue
                break
            else:
                raise OSError(errno.EEXIST, f"no free name in {self.target}")
            self._over = True
            self.published = target
            self.name = name
            _in_use.pop(self.path, None)
            if warning:
                self.warnings.append(warning)

    def publish_as(self, unique: str) -> None:
        """Have it published under a name that is given, not made."""
        self._unique = unique

    def adopt(self, path: str) -> None:
        """Learn that a helper process has published the message, which is at *path* now."""
        self._over = True
        self.published = path
        self.target, _, self.name = path.rpartition("/")

    def discard(self) -> str | None:
        """Close and remove the file unless it is published; return what could not be done, if anything."""
        with self._lock:
            if self._over:
                return None
            self._over = True
            disk, failure = self.directories.disk, None
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                with contextlib.suppress(OSError):  # the file is going to be removed
                    disk.close(fd)
            if self.path:
                try:
                    disk.unlink(self.path)
                except FileNotFoundError:
                    pass
                except OSError as exc:
                    failure = f"the file in tmp/ could not be removed: {exc.strerror or exc}"
                finally:
                    _in_use.pop(self.path, None)
            return failure

    def disown(self) -> None:
        """Close the descriptor and do nothing else ever again: the file belongs to the process this forked from."""
        self._lock = threading.Lock()
        self._over = True
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _begin(self, stage: Stage) -> None:
        if self._over:
            raise OSError(errno.ECANCELED, "the delivery was aborted")
        self.stage = stage

    def _create(self) -> str:
        self._begin("create")
        made = False
        for _ in range(NAME_TRIES):
            unique = self.names.next()
            path = f"{self.directories.tmp}/{unique}"
            _in_use[path] = self  # before it exists: a sweeper that finds it must find it here as well
            try:
                self._fd = self.directories.disk.create(path, self.mode)
            except BaseException as exc:
                _in_use.pop(path, None)
                if isinstance(exc, FileExistsError):
                    continue
                if made or not isinstance(exc, (FileNotFoundError, NotADirectoryError)):
                    raise
                self.warnings += self.directories.make_missing()
                made = True
                continue
            self.path = path
            self.opened_at = time.monotonic()
            if self.mode & 0o077:  # what the umask may have taken away
                self.directories.disk.chmod(self._fd, self.mode)
            return unique
        raise OSError(errno.EEXIST, "no free name in tmp/")

    def _write(self, chunks: Sequence[bytes | bytearray | memoryview]) -> None:
        self._begin("write")
        size = SLICE if self.content.newline == "keep" else CONVERTED_SLICE
        for chunk in chunks:
            if isinstance(chunk, bytes) and len(chunk) <= size:
                self._store(self._converted(chunk))
                continue
            view = memoryview(chunk)
            for start in range(0, len(view), size):
                self._store(self._converted(bytes(view[start : start + size])))

    def _converted(self, chunk: bytes) -> bytes:
        if len(chunk) < CONVERTED_SLICE // 4:  # not worth mentioning
            return self.content.feed(chunk)
        with _converting:
            return self.content.feed(chunk)

    def _store(self, data: bytes) -> None:
        if data:
            write_all(self.directories.disk, self._fd, data)

    def _start_writeback(self) -> None:
        if self.durability is Durability.NONE:
            return
        length = self.content.size - self._synced_to
        if length:
            self.directories.disk.start_writeback(self._fd, self._synced_to, length)
            self._synced_to = self.content.size
