"""What has been delivered already: a table in an SQLite file that several processes share. Blocks.

No connection outlives a fork: SQLite's own state of a file, its locks above all, is wrong in a child
(https://www.sqlite.org/howtocorrupt.html, section 2.6). So whoever forks closes it before.
"""

import contextlib
import ctypes
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from maildir_async.disk.byte_locks import ByteLocks
from maildir_async.disk.calls import Disk

__all__ = ["Seen"]

T = TypeVar("T")

#: Seconds to wait for a database that another has locked. A batch waits once.
BUSY_S: Final = 2.0

#: Seconds between two tries where SQLite does not wait by itself.
BUSY_POLL_S: Final = 0.005

#: Rows removed at a time, so that no batch waits for long, and seconds between two such times once all is removed.
PURGE_ROWS: Final = 500
PURGE_EVERY_S: Final = 60.0

#: The byte that is locked by who sets a corrupt database aside: behind those of keys.
ASIDE: Final = 2**62

_BROKEN: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS seen (id BLOB PRIMARY KEY, path BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_at ON seen (at);
"""


class Seen:
    """Which ids have been remembered, each with a path, within the last *keep_s* seconds. For one thread at a time.

    A row that is from the future by more than that is none: a clock was wrong.

    Args:
        path: of the database, which is made with mode 0600. Beside it are SQLite's own files and ``<path>-claims``.
        keep_s: seconds.
        clock: seconds since the epoch.
        disk: makes the files, and sets a corrupt one aside. SQLite writes by itself.

    Attributes:
        locks: of ids, between processes.

    """

    def __init__(self, path: str, keep_s: float, clock: Callable[[], float], disk: Disk) -> None:
        self.locks = ByteLocks(f"{path}-claims", disk)
        self._path = path
        self._keep_s = keep_s
        self._clock = clock
        self._disk = disk
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._purge_at = 0.0
        self._is_lost = False

    def find(self, ids: Sequence[bytes]) -> tuple[dict[bytes, str], str | None]:
        """Return the path of each of *ids* that is remembered, and what has been done to a corrupt database.

        sqlite3.Error or OSError if it cannot be looked at. On disk nothing has changed but that.
        """
        return self._repaired(lambda connection: self._find(connection, ids))

    def remember(self, rows: Iterable[tuple[bytes, str]]) -> str | None:
        """Have each id remembered with its path, in one transaction; return as `find` does.

        On return they are in the database. They survive the process; a power cut may lose the newest.
        """
        rows = list(rows)
        return self._repaired(lambda connection: self._remember(connection, rows))[1]

    def disown(self, *, is_closed: bool) -> None:
        """In a forked child: begin anew. If the database was in use it stays as it is, and nothing is found any more.

        SQLite keeps what it knows of a file's locks for the process: it would be wrong for a new connection too.
        """
        self.locks.disown()
        self._is_lost = self._is_lost or not (is_closed or self._connection is None)
        if self._is_lost and self._connection is not None:
            # Not to be closed either, which its end would do.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None

    def close_all(self) -> None:
        """Close the database and the file of locks, which lets go of all of them."""
        self.close()
        self.locks.close()

    def close(self) -> None:
        """Close the database, which is opened again when it is needed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _find(self, connection: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, str]:
        now, found = self._clock(), dict[bytes, str]()
        for each in ids:
            row = connection.execute(
                # Where a disk has damaged one, it may be of any type.
                "SELECT path FROM seen WHERE id = ? AND at > ? AND at < ? AND typeof(path) = 'blob'",
                (each, now - self._keep_s, now + self._keep_s),
            ).fetchone()
            if row is not None:
                found[each] = os.fsdecode(row[0])
        return found

    def _remember(self, connection: sqlite3.Connection, rows: Sequence[tuple[bytes, str]]) -> None:
        now = self._clock()
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(
                "INSERT OR REPLACE INTO seen (id, path, at) VALUES (?, ?, ?)",
                [(each, os.fsencode(path), now) for each, path in rows],
            )
            if time.monotonic() >= self._purge_at:
                self._purge(connection, now)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # some failures have ended the transaction already
                connection.execute("ROLLBACK")
            raise

    def _purge(self, connection: sqlite3.Connection, now: float) -> None:
        removed = connection.execute(
            "DELETE FROM seen WHERE id IN (SELECT id FROM seen WHERE at <= ? OR at >= ? LIMIT ?)",
            (now - self._keep_s, now + self._keep_s, PURGE_ROWS),
        ).rowcount
        if removed < PURGE_ROWS:
            self._purge_at = time.monotonic() + PURGE_EVERY_S

    def _repaired(self, work: Callable[[sqlite3.Connection], T]) -> tuple[T, str | None]:
        """Return what *work* does, and, if the database was corrupt and had to be set aside, that."""
        try:
            return work(self._open()), None
        except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
            self.close()
            if not _is_broken(exc):
                raise
        except BaseException:
            self.close()
            raise
        warning = self._set_aside()
        try:
            return work(self._open()), warning
        except BaseException:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the database that is at the path now: another may have set one aside."""
        if self._is_lost:
            raise OSError("this process was forked from one that was using the database")
        identity = self._file_identity()
        if self._connection is not None:
            if identity is not None and identity == self._identity:
                return self._connection
            self.close()
        if identity is None:
            with contextlib.suppress(FileExistsError):
                # SQLite would make it with 0644; it takes an empty file for a new database.
                self._disk.close(self._disk.create(self._path, 0o600))
            identity = self._file_identity()
        connection = self._connection = self._set_up()
        self._identity = identity
        return connection

    def _set_up(self) -> sqlite3.Connection:
        """Return a new connection. Where others set theirs up just now, they are waited for, for `BUSY_S` seconds.

        SQLite's own timeout does not do that: who would have to wait for WAL while he has a lock himself is told at
        once that the database is locked (https://www.sqlite.org/c3ref/busy_handler.html).
        """
        until = time.monotonic() + BUSY_S
        while True:
            connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")  # where that cannot be, another mode does
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
            except sqlite3.DatabaseError as exc:
                connection.close()
                if _code(exc) != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                    raise
                time.sleep(BUSY_POLL_S)
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _file_identity(self) -> tuple[int, int] | None:
        try:
            status = self._disk.stat(self._path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _set_aside(self) -> str | None:
        """Rename a corrupt database, with what SQLite has beside it, unless another is at it, or has done it."""
        if not self.locks.lock(ASIDE):
            raise OSError(f"{self._path} is corrupt, and another process is setting it aside")
        try:
            try:
                # Looked at again, now that no other renames it: it may be the new one.
                with contextlib.closing(sqlite3.connect(self._path, timeout=BUSY_S)) as connection:
                    if connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                        return None
            except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
                if not _is_broken(exc):
                    raise
            aside = f"{self._path}.corrupt-{int(self._clock())}"
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self._disk.rename(self._path + suffix, aside + suffix)
            return f"the database of duplicates was corrupt, and has been set aside as {aside}"
        finally:
            self.locks.unlock(ASIDE)


def _is_broken(exc: sqlite3.DatabaseError | UnicodeDecodeError) -> bool:
    """Whether *exc* says that the file is no database, or a damaged one.

    What SQLite says of a damaged schema has a part of it, which may be no text: then it is that which Python says.
    """
    return isinstance(exc, UnicodeDecodeError) or _code(exc) in _BROKEN


def _code(exc: sqlite3.DatabaseError) -> int | None:
    """Return SQLite's primary result code, if it is from there."""
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
