"""What can be seen of a maildir before a message comes: whether it would have a place there. Everything here blocks."""

import errno
import os

from maildir_async.disk.directories import SUBDIRECTORIES, Directories

__all__ = ["check_room"]


def check_room(box: Directories, size: int) -> None:
    """Raise OSError or `NotAMaildirError` if a message of *size* bytes can be seen to have no place in *box* now.

    What is missing is no reason if a delivery may make it, and could. All that a delivery would meet is met here.
    """
    box.base.check_mount(box.disk)
    for name in ("tmp", "new"):
        path = box.subdirectory(name)
        try:
            _check_space(box, path, size)
        except FileNotFoundError:
            _check_making(box)
            return
        except NotADirectoryError as exc:
            raise box.not_a_maildir(path, exc) from None
    if not box.is_there(box.cur):  # which the first delivery wants too
        _check_making(box)


def _check_making(box: Directories) -> None:
    """Raise what making the maildir, or what is missing of it, can be seen to fail with."""
    if not box.create:
        raise box.incomplete(box.missing())
    box.base.check(box.disk)
    existing = box.path
    while not box.is_directory(existing):
        _check_absent(box, existing)
        existing = os.path.dirname(existing)
    if existing == box.path:
        for name in SUBDIRECTORIES:
            if not box.is_there(path := box.subdirectory(name)):
                _check_absent(box, path)
    _check_space(box, existing, 0)


def _check_absent(box: Directories, path: str) -> None:
    """Raise `NotAMaildirError` if the name is taken: by a symbolic link that leads nowhere."""
    try:
        box.disk.stat(path)
    except FileNotFoundError:
        return
    raise box.not_a_maildir(path)


def _check_space(box: Directories, path: str, size: int) -> None:
    if box.disk.room(path) < max(size, 1):  # nor has an empty message, if there is no room at all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
