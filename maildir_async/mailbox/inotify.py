"""What inotify(7) tells of a maildir's directories, by the library of the extra `watch`. Everything here blocks."""

import importlib
import os
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify, Mask

__all__ = ["Notice", "Notices", "open_notices"]

#: Full-sized events that are read at once; those of usual names are a third of that.
_CACHE: Final = 128

#: inotify(7). Numbers, since the library may not be there, and its flags take microseconds to compare.
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE_SELF, _MOVE_SELF = 0x40, 0x80, 0x100, 0x400, 0x800
_UNMOUNT, _Q_OVERFLOW, _IGNORED, _ONLYDIR, _ISDIR = 0x2000, 0x4000, 0x8000, 0x1000000, 0x40000000

_ARRIVED: Final = _CREATE | _MOVED_TO
_GONE: Final = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED
_OF_ROOT: Final = _ARRIVED | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_OF_MESSAGES: Final = _OF_ROOT | _MOVED_FROM


class Notice(NamedTuple):
    """A name has come into a directory, or has been moved out of it.

    Attributes:
        path: its path.
        arrived: whether it has come.

    """

    path: str
    arrived: bool


class Notices:
    """One inotify instance, which watches a maildir's root, ``new/`` and ``cur/``. One thread at a time.

    Nothing is lost between `stand` and `take` without `lost` saying so.

    Attributes:
        lost: whether something has happened that no `Notice` tells of: the queue was full, or a directory has gone, has
            been moved or has come. Then the directories have to `stand` again and to be listed after that.
        has_more: whether `take` has left some.

    """

    def __init__(self, inotify: "Inotify", mask: "type[Mask]") -> None:
        self._inotify: Inotify | None = inotify
        self._mask = mask
        self._watched: dict[int, str] = {}  # by the number of its watch, the path of a directory; the root's is ""
        self.lost = False
        self.has_more = False
        _all.add(self)

    @property
    def fd(self) -> int | None:
        """What can be read when there is something to `take`; None after `close`, and in a forked child."""
        return self._inotify.fd if self._inotify is not None else None

    def stand(self, root: str, *paths: str) -> bool:
        """Watch the directories that are at these paths now, and no others; return whether all are there.

        OSError for what else the system says, ENOSPC where there are too many watches.
        """
        self.lost = False
        is_whole = True
        watched = dict[int, str]()
        if self._inotify is None:
            return False
        for path, mask in ((root, _OF_ROOT), *((path, _OF_MESSAGES) for path in paths)):
            try:
                # A directory that is watched already has the same number again.
                watch = self._inotify.add_watch(path, self._mask(mask))
            except (FileNotFoundError, NotADirectoryError):
                is_whole = False
            else:
                watched[watch.wd] = path if path != root else ""
        for watch in self._inotify.watches:
            if watch.wd not in watched:
                with suppress(OSError):  # it has gone with its directory
                    self._inotify.rm_watch(watch)
        self._watched = watched
        return is_whole

    def take(self, most: int) -> list[Notice]:
        """Return what there is to be told of messages, about *most* at a time, in the order in which it happened."""
        taken = list[Notice]()
        self.has_more = False
        if self._inotify is None:
            return taken
        while (event := self._inotify.sync_get()) is not None:
            self._tell(event, taken)
            if len(taken) >= most:
                self.has_more = True
                break
        return taken

    def _tell(self, event: "Event", taken: list[Notice]) -> None:
        mask = int(event.mask)
        if mask & _Q_OVERFLOW:
            self.lost = True
        watch = event.watch
        directory = self._watched.get(watch.wd) if watch is not None else None
        if directory is None:
            return  # of one that is watched no longer
        if mask & _GONE:
            self.lost = True
        elif event.name is None:
            return
        elif directory == "":
            if event.name.name in ("new", "cur"):
                self.lost = True
        elif not mask & _ISDIR:
            taken.append(Notice(f"{directory}/{event.name}", bool(mask & _ARRIVED)))

    def close(self) -> None:
        """Let go of it all. It may take the kernel some milliseconds."""
        self.lost = True
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.close()


def open_notices() -> Notices | None:
    """Return a new one, or None where there is no inotify, no library for it, or no more of it to be had."""
    if sys.platform != "linux":
        return None
    try:
        library = importlib.import_module("asyncinotify")
        return Notices(library.Inotify(cache_size=_CACHE, sync_timeout=0), library.Mask)
    except (ImportError, RuntimeError, OSError):  # it is not installed; finds no C library; EMFILE
        return None


def _close_in_child() -> None:
    for notices in list(_all):
        notices.close()  # or the child would take what is for its parent


_all: "Final[weakref.WeakSet[Notices]]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_in_child)
