"""What has been imported into a maildir already: a journal, in an SQLite file. Blocks.

A message is known by its *ident*, and there may be several of one ident, since a mailbox may truly hold the same
message twice: *copies* are counted. A run of an import goes through its source and asks for one message after the
other; the n-th of an ident is there already if n copies have been recorded.

A message is published before it is recorded, since the two cannot be one step. So the journal says durably which
process's names the messages of a run have, before the first is published, and records of each message by which name it
was published. What a run that was killed has published and not recorded, the next one finds by its name in the maildir,
and knows by its content. (`Orphan`)
"""

import contextlib
import ctypes
import os
import sqlite3
import stat
import weakref
from collections.abc import Generator, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from maildir_async.disk.calls import Disk
from maildir_async.errors import MaildirError

__all__ = ["Imported", "Orphan", "Wanted"]

#: Seconds to wait for another import to end.
BUSY_S: Final = 1.0

#: Idents asked for at once: SQLite of old takes 999.
ASKED_MOST: Final = 500

#: Idents that may have no row yet. More of them than are in flight are of messages that could not be stored.
NEW_MOST: Final = 4096

_VERSION: Final = 1

_DAMAGED: Final = "it is damaged; without it all is imported anew"

T = TypeVar("T", int, str)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS imported
    (ident BLOB PRIMARY KEY, copies INTEGER NOT NULL, seen INTEGER NOT NULL, run INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY AUTOINCREMENT, tag TEXT NOT NULL, unfinished INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS published (tag TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (tag, number))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orphans (content BLOB NOT NULL, tag TEXT NOT NULL, number INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS orphans_content ON orphans (content);
"""


class Wanted(NamedTuple):
    """A message that a source has.

    Attributes:
        ident: what stands for it.
        content: what stands for its content in the folder that it goes to.

    """

    ident: bytes
    content: bytes


class Orphan(NamedTuple):
    """A message that a run which did not end has published and not recorded.

    Attributes:
        content: as of `Wanted`.
        tag: of the process that made its name.
        number: of the name.

    """

    content: bytes
    tag: str
    number: int


class Imported:
    """The journal at *path*, which this has for itself while it is open. For one thread at a time.

    Args:
        path: where it is; made with mode 0600.
        disk: makes the file. SQLite writes by itself.
        is_dry: whether all that is done is undone at the end, and a file that is not there is not made.

    """

    def __init__(self, path: str, disk: Disk, *, is_dry: bool = False) -> None:
        self._path = path
        self._disk = disk
        self._is_dry = is_dry
        self._connection: sqlite3.Connection | None = None
        self._run = 0
        self._tag = ""
        self._has_orphans = False
        self._new = dict[bytes, int]()  # idents that have no row yet, and how many of each this run has seen
        _all.add(self)

    def open(self) -> list[str]:
        """Open it, and return the tags of the processes whose runs have not ended.

        MaildirError if another import has it (EAGAIN), or if it is damaged: without it, what has been imported would be
        imported again. OSError as the system does.
        """
        with self._told():
            connection = self._connection = self._connect()
            if not self._is_dry:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")
            connection.execute("PRAGMA temp_store = FILE")
            connection.execute("PRAGMA cache_size = -8192")
            connection.execute("PRAGMA wal_autocheckpoint = 4096")  # pages: each one waits for the disk
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise MaildirError(f"{self._path} was made by another version of this program", stage="create")
            if version == 0:
                connection.executescript(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute("SELECT DISTINCT tag FROM runs WHERE unfinished").fetchall()
            return [self._as(str, tag) for (tag,) in rows]

    def numbers(self, tag: str) -> set[int]:
        """Return which names of a process are known: recorded, or found as those of orphans."""
        query = "SELECT number FROM published WHERE tag = ? UNION SELECT number FROM orphans WHERE tag = ?"
        with self._told():
            return {self._as(int, number) for (number,) in self._open().execute(query, (tag, tag))}

    def begin(self, tag: str, orphans: Iterable[Orphan]) -> None:
        """Begin a run, whose messages this process, of that *tag*, publishes. That is durable when this returns.

        *orphans* are all those of the runs that have not ended. They are kept until a source has them: it may be that
        of another run.
        """
        with self._told():
            connection = self._open()
            connection.executemany("INSERT INTO orphans VALUES (?, ?, ?)", orphans)
            self._has_orphans = connection.execute("SELECT EXISTS (SELECT * FROM orphans)").fetchone()[0] == 1
            connection.execute("UPDATE runs SET unfinished = 0")
            connection.execute("DELETE FROM published WHERE tag != ?", (tag,))
            done = connection.execute("INSERT INTO runs (tag, unfinished) VALUES (?, 1)", (tag,))
            self._run, self._tag = done.lastrowid or 0, tag
            if not self._is_dry:
                connection.execute("COMMIT")
                # What WAL leaves to the next checkpoint is made durable by one.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.execute("BEGIN IMMEDIATE")

    def find(self, wanted: Sequence[Wanted]) -> list[bool]:
        """Return of each of *wanted*, in the order of the source, whether it is there already."""
        with self._told():
            connection, answers, changed = self._open(), list[bool](), dict[bytes, tuple[int, int]]()
            rows = self._rows(connection, [ident for ident, _ in wanted])
            for ident, content in wanted:
                row = rows.get(ident)
                copies, seen = (0, self._new.get(ident, 0) + 1) if row is None else (row[0], row[1] + 1)
                if (is_there := seen <= copies) is False and self._has_orphans and self._adopt(connection, content):
                    is_there, copies = True, copies + 1
                if row is None and not copies:
                    self._new[ident] = seen  # its row is written when a copy of it is recorded
                else:
                    self._new.pop(ident, None)
                    rows[ident] = changed[ident] = (copies, seen)
                answers.append(is_there)
            self._write(connection, changed)
            if len(self._new) > NEW_MOST:  # of messages that could not be stored
                self._write(connection, {ident: (0, seen) for ident, seen in self._new.items()})
                self._new.clear()
            return answers

    def _rows(self, connection: sqlite3.Connection, idents: list[bytes]) -> dict[bytes, tuple[int, int]]:
        """Return of those of *idents* that have a row how many copies there are, and how many this run has seen."""
        found = dict[bytes, tuple[int, int]]()
        for at in range(0, len(idents), ASKED_MOST):
            some = idents[at : at + ASKED_MOST]
            marks = ",".join("?" * len(some))
            query = f"SELECT ident, copies, seen, run FROM imported WHERE ident IN ({marks})"
            for ident, copies, seen, run in connection.execute(query, some):
                copies, seen = self._as(int, copies), self._as(int, seen)
                found[ident] = (copies, seen if run == self._run else 0)
        return found

    def _write(self, connection: sqlite3.Connection, rows: dict[bytes, tuple[int, int]]) -> None:
        run = self._run
        connection.executemany(
            "INSERT OR REPLACE INTO imported VALUES (?, ?, ?, ?)",
            [(ident, copies, seen, run) for ident, (copies, seen) in rows.items()],
        )

    def _adopt(self, connection: sqlite3.Connection, content: bytes) -> bool:
        row = connection.execute(
            "SELECT rowid, tag, number FROM orphans WHERE content = ? LIMIT 1", (content,)
        ).fetchone()
        if row is None:
            return False
        connection.execute("DELETE FROM orphans WHERE rowid = ?", (row[0],))
        connection.execute("INSERT OR REPLACE INTO published VALUES (?, ?)", row[1:])
        return True

    def record(self, published: Sequence[tuple[bytes, int | None]]) -> None:
        """Remember what has been published: ident, and number of the name, where it has one of this process."""
        with self._told():
            connection = self._open()
            run, new = self._run, self._new
            connection.executemany(
                "INSERT INTO imported VALUES (?, 1, ?, ?) ON CONFLICT (ident) DO UPDATE SET copies = copies + 1",
                [(ident, new.pop(ident, 1), run) for ident, _ in published],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO published VALUES (?, ?)",
                [(self._tag, number) for _, number in published if number is not None],
            )

    def commit(self) -> None:
        """Have what was recorded survive the process; a power cut may lose the newest."""
        with self._told():
            if not self._is_dry:
                self._open().execute("COMMIT")
                self._open().execute("BEGIN IMMEDIATE")

    def close(self, *, is_finished: bool) -> None:
        """Close it. Of a run that is finished no message is to be looked for any more."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with self._told(), contextlib.closing(connection):
            if not connection.in_transaction:  # it could not be opened
                return
            if self._is_dry:
                connection.execute("ROLLBACK")
                return
            if is_finished:
                connection.execute("UPDATE runs SET unfinished = 0")
                connection.execute("DELETE FROM published")
                connection.execute("DELETE FROM runs WHERE run < ?", (self._run,))
            connection.execute("COMMIT")

    def disown(self) -> None:
        """In a forked child: leave it alone. To close it would take its locks from the parent."""
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise MaildirError(f"{self._path} is not open in this process")
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        try:
            found = self._disk.stat(self._path)
        except FileNotFoundError:
            if self._is_dry:
                return _connected("")  # a file of SQLite's own, which has no name
            with contextlib.suppress(FileExistsError):
                # SQLite would make it with 0644; it takes an empty file for a new database.
                self._disk.close(self._disk.create(self._path, 0o600))
            found = self._disk.stat(self._path)
        if not stat.S_ISREG(found.st_mode):
            raise MaildirError(f"{self._path} is no regular file", stage="create")
        return _connected(self._path)

    def _as(self, kind: type[T], value: object) -> T:
        """Return what a column has; MaildirError if a disk has made another type of it, or no number of anything."""
        if not isinstance(value, kind) or (isinstance(value, int) and not 0 <= value < 2**53):
            raise MaildirError(f"{self._path}: {_DAMAGED}", stage="create")
        return value

    @contextlib.contextmanager
    def _told(self) -> Generator[None, None, None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as exc:
            # What SQLite says of a damaged schema has a part of it, which may be no text.
            code = sqlite3.SQLITE_CORRUPT
            if isinstance(exc, sqlite3.Error):
                code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                reason = "another import into this maildir is under way"
            elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                reason = _DAMAGED
            else:
                reason = str(exc)
            raise MaildirError(f"{self._path}: {reason}", stage="create") from exc


def _connected(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


_all: Final["weakref.WeakSet[Imported]"] = weakref.WeakSet()


def _disown_all() -> None:
    for each in list(_all):
        each.disown()


os.register_at_fork(after_in_child=_disown_all)
