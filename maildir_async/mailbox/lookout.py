"""Which messages have become visible in a maildir, by notices and by listings. Everything here blocks."""

import errno
import os
import stat
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from maildir_async.disk.calls import OUT_OF_DESCRIPTORS
from maildir_async.disk.directories import Directories
from maildir_async.disk.listing import arrival
from maildir_async.disk.shared import is_shared
from maildir_async.format.names import key_of
from maildir_async.format.read_names import letters_of, said_size
from maildir_async.mailbox.inotify import Notices, open_notices

__all__ = ["Lookout", "WatchedMessage"]

#: Device, inode number and date of ``new/`` and of ``cur/``, if they are there.
_Stamps = list[tuple[int, int, int] | None]

#: Messages that one hop into a thread may bring back.
SOME: Final = 256

#: Seconds after which directories are listed though inotify has told nothing: it tells of no directory further up that
#: has been moved away, and what has been removed need not be remembered.
LISTED_AGAIN_S: Final = 60.0

_CLOCK_REALTIME_COARSE: Final = 5  # linux/time.h; Python has no name for it

#: There is no such directory now: there may be again. ESTALE: another NFS client has removed it.
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


@dataclass(frozen=True, slots=True)
class WatchedMessage:
    """A message that has become visible.

    Attributes:
        path: where it was seen, in ``new/`` or ``cur/``. A mail reader may have moved it since.
        key: its name before any ``:``; this stays when a reader moves it or sets flags.
        folder: the Maildir++ folder, None for the maildir itself.
        flags: its flag letters, sorted; those of keywords too.
        size: bytes stored: as its name says, or else the file.

    """

    path: str
    key: str
    folder: str | None
    flags: str
    size: int


class Lookout:
    """Looks for the messages of one maildir or folder. Everything here blocks; one thread at a time.

    Directories are watched first and listed after that, so what is published in between is told of by one or by both;
    and listed again whenever notices may have been lost. A message is known by its key, so it is told of once.

    Args:
        directories: of that maildir or folder.
        folder: what messages say.
        existing: whether to tell of the messages that are there.
        poll_s: seconds between listings where inotify is not enough.

    """

    def __init__(self, directories: Directories, folder: str | None, *, existing: bool, poll_s: float) -> None:
        self._directories = directories
        self._folder = folder
        self._existing = existing
        self._poll_s = poll_s
        self._notices: Notices | None = None
        self._pending = deque[str]()  # paths of what may be new
        self._known = set[str]()  # keys of what has been told, or is not to be
        self._absent = set[str]()  # those of them that the last listing did not have
        self._has_begun = False
        self._list_at = 0.0  # when there is to be a look at the directories, by the monotonic clock
        self._list_anyway_at = 0.0  # when they are to be listed though they look the same
        self._stamps: list[_Stamps] = []  # of the last two looks

    @property
    def fd(self) -> int | None:
        """What can be read when it is worth to `look`, if there is such a thing."""
        return self._notices.fd if self._notices is not None else None

    @property
    def has_more(self) -> bool:
        """Whether it is worth to `look` at once."""
        notices = self._notices
        return bool(self._pending) or (notices is not None and (notices.has_more or notices.lost))

    @property
    def patience_s(self) -> float:
        """Seconds after which it is worth to `look` anyway."""
        return max(0.0, self._list_at - time.monotonic())

    def look(self) -> list[WatchedMessage]:
        """Return some messages that have not been told of yet, in about the order in which they were published.

        OSError for what the system says of directories that are there. They may as well not be there.
        """
        if not self._pending:
            self._collect()
        return self._take()

    def close(self) -> None:
        """Watch no longer."""
        if self._notices is not None:
            self._notices.close()

    def _collect(self) -> None:
        """Find what may be new."""
        if not self._has_begun:
            self._begin()
            return
        notices = self._notices
        if notices is not None:
            self._pending.extend(notice.path for notice in notices.take(4 * SOME) if notice.arrived)
        is_lost = notices is not None and notices.lost
        if is_lost or time.monotonic() >= self._list_at:
            while notices is not None and notices.has_more:  # or a message removed since might be told of again
                self._pending.extend(notice.path for notice in notices.take(4 * SOME) if notice.arrived)
            self._list_again(must=is_lost or (notices is not None and notices.lost))

    def _begin(self) -> None:
        """Find what is there, and what has come since this began to watch."""
        began = _file_time()
        is_whole = self._stand()
        there = self._list()
        told = list[str]()
        came = dict[str, bool]()  # whether a key has come from elsewhere, and not been moved by a mail reader
        notices = self._notices
        if notices is not None:
            notices.has_more = True
            while notices.has_more:
                for notice in notices.take(4 * SOME):
                    came.setdefault(_key(notice.path), notice.arrived)
                    if notice.arrived:
                        told.append(notice.path)
        if not self._existing:
            self._known = {key for key in there if not came.get(key)}
            if not is_whole or (notices is not None and notices.lost):
                self._known -= self._since(began, there)
        self._pending.extend(path for key, path in there.items() if key not in self._known)
        self._pending.extend(told)
        self._has_begun = True

    def _list_again(self, *, must: bool) -> None:
        self._stand()
        if not self._has_changed() and not must and time.monotonic() < self._list_anyway_at:
            return
        try:
            there = self._list()
        except OSError as exc:
            if exc.errno not in OUT_OF_DESCRIPTORS:
                raise
            self._list_at = time.monotonic() + self._poll_s  # others will close some
            return
        self._pending.extend(path for key, path in there.items() if key not in self._known)
        # A listing may miss a name that is changed meanwhile (readdir(3)); two in succession do not.
        absent = self._known.difference(there)
        self._known -= absent & self._absent
        self._absent = absent & self._known

    def _stand(self) -> bool:
        """Watch the directories that are there now; return whether nothing can happen in them that is not told of."""
        directories = self._directories
        is_whole = False
        if self._notices is None or self._notices.fd is None:
            self._notices = open_notices()
        if self._notices is not None:
            try:
                is_whole = self._notices.stand(directories.path, directories.new, directories.cur)
            except OSError:  # ENOSPC: too many watches; EACCES. What is wrong with a directory, its listing tells.
                self._notices.close()
                self._notices = None
        is_whole = is_whole and not any(map(is_shared, (directories.new, directories.cur)))
        self._list_at = time.monotonic() + (LISTED_AGAIN_S if is_whole else self._poll_s)
        return is_whole

    def _list(self) -> dict[str, str]:
        """Return the path of each message by its key, in the order of arrival."""
        directories = self._directories
        self._list_anyway_at = time.monotonic() + LISTED_AGAIN_S
        found = dict[str, str]()
        for directory in (directories.new, directories.cur):  # as a message goes
            try:
                directories.check_inside()
                names = directories.disk.listdir(directory)
            except OSError as exc:
                if exc.errno not in _MISSING:
                    raise
                continue
            found.update((key_of(name), f"{directory}/{name}") for name in names)
        return {key: found[key] for key in sorted(found, key=arrival)}

    def _has_changed(self) -> bool:
        """Whether something has come or gone since the last look, or the one before: two changes may have one date."""
        stamps: _Stamps = []
        for directory in (self._directories.new, self._directories.cur):
            try:
                found = self._directories.disk.stat(f"{directory}/.")
            except OSError as exc:
                if exc.errno not in _MISSING:
                    raise
                stamps.append(None)
            else:
                stamps.append((found.st_dev, found.st_ino, found.st_mtime_ns))
        before, self._stamps = self._stamps, [*self._stamps[-1:], stamps]
        return before != [stamps, stamps]

    def _since(self, began: float, there: dict[str, str]) -> set[str]:
        """Return the keys of what was published since then, by the file system's clock, as well as that can be told."""
        directories, since = self._directories, set[str]()
        changed = [path for path in (directories.new, directories.cur) if self._changed(f"{path}/.") >= began]
        for key, path in there.items():
            if os.path.dirname(path) in changed and self._changed(path) >= began:
                since.add(key)
        return since

    def _changed(self, path: str) -> float:
        try:
            return self._directories.disk.stat(path).st_ctime
        except OSError:
            return 0.0

    def _take(self) -> list[WatchedMessage]:
        taken = list[WatchedMessage]()
        while self._pending and len(taken) < SOME:
            path = self._pending.popleft()
            key = _key(path)
            if key in self._known or key.startswith("."):  # every reader skips those
                continue
            try:
                message = self._message(path, key)
            except OSError as exc:
                if exc.errno not in _MISSING:
                    raise
                continue  # moved, which is told of too, or removed
            if message is not None:
                self._known.add(key)
                taken.append(message)
        return taken

    def _message(self, path: str, key: str) -> WatchedMessage | None:
        name = os.path.basename(path)
        size = said_size(key)
        if size is None:
            found = self._directories.disk.stat(path)
            if stat.S_ISDIR(found.st_mode):
                return None
            size = found.st_size
        return WatchedMessage(path, key, self._folder, "".join(sorted(set(letters_of(name)))), size)


def _key(path: str) -> str:
    return key_of(os.path.basename(path))


def _file_time() -> float:
    """Return the earliest date that a file can have that is changed from now on: the last tick of the kernel's clock.

    (Linux 6.13 and later may give a file the exact time.)
    """
    return time.clock_gettime(_CLOCK_REALTIME_COARSE) if sys.platform == "linux" else time.time()
