"""The letters of a folder's keywords: ``dovecot-keywords``, read and added to as Dovecot does. Everything here blocks.

Index n is the letter n of the alphabet, and a name keeps its index for ever: so what has been read once stays true, and
only a name that is missing takes a lock.
"""

import contextlib
import errno
import math
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Final, NamedTuple

from maildir_async.disk.calls import UNSUPPORTED, write_all
from maildir_async.disk.directories import Directories, sync_directory
from maildir_async.disk.dotlock import Dotlock, Waiting, take
from maildir_async.disk.rights import files_rights, give
from maildir_async.errors import NotTrustedError, keywords_full_error
from maildir_async.format.keywords import MOST, format_keywords, key, parse_keywords

__all__ = ["Keywords"]

#: Bytes of the file: 26 lines of what Dovecot can read are far less.
_LARGEST: Final = 1 << 18

#: How often the file is opened when another machine replaces it while it is read (NFS and GlusterFS say ESTALE), and
#: seconds between two of these times: a name is cached for one second (FUSE's entry timeout, GlusterFS's default).
_TRIES: Final = 8
_PAUSE_S: Final = 0.25


class _Known(NamedTuple):
    """What the file has, or is to have."""

    version: tuple[int, int, float, int] | None  #: its device, inode, mtime and size; None while there is none
    names: dict[int, str]
    indices: dict[bytes, int]  #: by `key` of the name


class Keywords:
    """The keywords of the folder at *directories*. Any thread may ask.

    A sync that has failed is never believed when it is tried again: the file is replaced by a new one, first.

    Args:
        directories: where it is.
        mode: of the files that are made.
        waiting: for another's lock.

    """

    def __init__(self, directories: Directories, mode: int, waiting: Waiting | None = None) -> None:
        self._directories = directories
        self._disk = directories.disk
        self._path = f"{directories.path}/dovecot-keywords"
        self._uidlist_lock = f"{directories.path}/dovecot-uidlist.lock"
        self._mode = mode
        self._waiting = waiting or Waiting()
        self._known: _Known | None = None
        self._is_suspect = False  # a sync has failed: what the file has may be lost, whatever a further sync says
        self._waited_out: tuple[int, int, float] | None = None  # a lock that did not go
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Start anew, in a forked child: a thread of the parent's may hold this."""
        self._lock = threading.Lock()

    def letters(self, keywords: Sequence[str]) -> str:
        """Return the sorted letters of *keywords*, which are durably in the file when this returns.

        Names that are not there are added, under Dovecot's locks. Raises `KeywordsFullError` if there are no letters
        left, with nothing added; `NotAMaildirError` for a folder that leads out of its maildir, where nothing but the
        lock has been written; OSError with EAGAIN if another has the lock for too long; FileNotFoundError if there is
        no folder; and OSError as the system does, for a file that is a symbolic link, say. After any error the file
        has all that was in it before, and the locks are gone.
        """
        try:
            indices = self._current().indices
            if self._is_suspect or any(key(name) not in indices for name in keywords):
                indices = self._add(keywords)
        except NotTrustedError:
            raise
        except OSError as exc:
            # What is told of a message that fails is the reason and not the file, which is none of the message's.
            name = os.path.basename(exc.filename or self._path)
            raise OSError(exc.errno, f"{name}: {exc.strerror}", exc.filename or self._path) from exc
        return "".join(sorted({chr(ord("a") + indices[key(name)]) for name in keywords}))

    def rewrite(self) -> None:
        """Have the file hold what Dovecot understands of it, in order, and no other line. Raises as `letters` does."""
        if not self._lock.acquire(timeout=max(0.0, self._waiting.patience_s)):
            raise OSError(errno.EAGAIN, "others wait for the lock", self._uidlist_lock)
        try:
            lock = self._take_lock(max(0.0, self._waiting.patience_s))
            try:
                self._directories.check_inside()
                self._replace(self._read(), lock)
            finally:
                lock.release()
        finally:
            self._lock.release()

    def _current(self) -> _Known:
        """Return what the file has, which is durable; read only if the file is another than before."""
        known = self._known
        try:
            version = _version_of(self._disk.stat(self._path))
        except FileNotFoundError:
            version = None
        except OSError as exc:
            if exc.errno != errno.ESTALE:
                raise
            return self._read()
        return known if known is not None and known.version == version else self._read()

    def _read(self) -> _Known:
        """Return what the file has, durably. What has been replaced meanwhile by another machine is read again."""
        for number in range(_TRIES - 1):
            try:
                return self._read_once()
            except OSError as exc:
                if exc.errno != errno.ESTALE:
                    raise
            if number:
                self._waiting.sleep(_PAUSE_S)
        return self._read_once()

    def _read_once(self) -> _Known:
        disk, data, version = self._disk, b"", None
        with contextlib.suppress(FileNotFoundError):
            fd = disk.open_file(self._path)
            try:
                version = _version_of(disk.stat(fd))
                while len(data) < _LARGEST and (piece := disk.read(fd, _LARGEST - len(data), len(data))):
                    data += piece
                # Whoever has written it may not have synced its name: Dovecot leaves that to the kernel.
                self._sync(fd)
            finally:
                disk.close(fd)
        if len(data) >= _LARGEST:
            raise OSError(errno.EINVAL, "it is too large for a file of keywords", self._path)
        names = parse_keywords(data)
        known = self._known = _Known(version, names, {key(name): index for index, name in names.items()})
        return known

    def _sync(self, fd: int) -> None:
        try:
            self._disk.sync(fd)
        except OSError:
            self._is_suspect = True
            raise
        self._sync_directory()

    def _add(self, keywords: Sequence[str]) -> dict[bytes, int]:
        """Add what is missing of *keywords*; return the index of each name."""
        waiting = self._waiting
        began = waiting.elapsed()
        # One at a time in this process. Whoever waits here waits no longer than for the lock itself.
        if not self._lock.acquire(timeout=max(0.0, waiting.patience_s)):
            raise OSError(errno.EAGAIN, "others wait for the lock", self._uidlist_lock)
        try:
            lock = self._take_lock(max(0.0, waiting.patience_s - (waiting.elapsed() - began)))
            try:
                return self._add_locked(keywords, lock)
            finally:
                lock.release()
        finally:
            self._lock.release()

    def _take_lock(self, patience_s: float) -> Dotlock:
        """Take ``dovecot-uidlist.lock``, by which Dovecot guards both files.

        One that has been waited for in vain is not waited for again, until it has changed: messages that are behind it
        would each hold up a round of group commit, one after the other.
        """
        if self._waited_out is not None and self._lock_there() == self._waited_out:
            patience_s = 0.0
        given = self._waiting
        waiting = Waiting(patience_s, given.stale_s, given.clock, given.elapsed, given.sleep)
        try:
            protects = f"{self._directories.path}/dovecot-uidlist"
            lock = take(self._disk, self._uidlist_lock, self._mode, waiting, protects=protects)
        except OSError as exc:
            if exc.errno == errno.EAGAIN:
                self._waited_out = self._lock_there()
            raise
        self._waited_out = None
        return lock

    def _lock_there(self) -> tuple[int, int, float] | None:
        try:
            found = self._disk.stat(self._uidlist_lock)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime

    def _add_locked(self, keywords: Sequence[str], lock: Dotlock) -> dict[bytes, int]:
        self._directories.check_inside()  # with the lock, which is lost if the folder becomes a link from now on
        # A stat may be answered from a cache here (NFS, and FUSE as GlusterFS has it): only open(2) asks the server.
        known = self._read()
        names, indices = dict(known.names), dict(known.indices)
        free = [index for index in range(MOST) if index not in names]
        missing = {key(name): name for name in keywords if key(name) not in indices}
        for name in missing.values():
            if not free:
                raise keywords_full_error(self._directories.path, name)
            indices[key(name)] = free[0]
            names[free.pop(0)] = name
        if missing or self._is_suspect:
            self._replace(_Known(known.version, names, indices), lock)
        return indices

    def _replace(self, known: _Known, lock: Dotlock) -> None:
        """Put a file with the names of *known* in the place of the one whose version that has, durably."""
        disk, path, given = self._disk, f"{self._path}.lock", self._waiting
        # Who has the lock of the list has this one: what is there was left by one who died. Dovecot removes it too.
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path)
        waiting = Waiting(0.0, given.stale_s, given.clock, given.elapsed, given.sleep)
        file = take(disk, path, self._mode, waiting, protects=self._path, with_pid=False)
        try:
            if self._directories.inherit_mode:
                give(disk, file.fd, files_rights(disk, self._directories.path))
            write_all(disk, file.fd, format_keywords(known.names))
            if known.version is not None:
                # Dovecot reads the file again only if its mtime, in whole seconds, is another; and wants it to grow.
                least = math.floor(known.version[2]) + 1
                if disk.stat(file.fd).st_mtime < least:
                    disk.utime(file.fd, least * 10**9, least * 10**9)
            disk.sync(file.fd)
            version = _version_of(disk.stat(file.fd))
            file.close()
            lock.check()
            self._known = None  # whatever comes of it
            file.replace(self._path)
            self._sync_directory()
        finally:
            file.release()
        self._is_suspect = False
        self._known = _Known(version, known.names, known.indices)

    def _sync_directory(self) -> None:
        try:
            sync_directory(self._disk, self._directories.path)
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:  # there nobody can, and each message says so
                self._is_suspect = True
                raise


def _version_of(found: os.stat_result) -> tuple[int, int, float, int]:
    return found.st_dev, found.st_ino, found.st_mtime, found.st_size


_all: Final["weakref.WeakSet[Keywords]"] = weakref.WeakSet()


def _start_afresh() -> None:
    for keywords in list(_all):
        keywords.reset()


os.register_at_fork(after_in_child=_start_afresh)
