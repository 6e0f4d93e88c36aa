"""Looks at the file system, for what nobody but the disk knows: who has a maildir, and whether the store is there."""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from maildir_async.disk.directories import SUBDIRECTORIES
from maildir_async.disk.threads import Crew
from maildir_async.errors import NotAMaildirError

__all__ = ["first_maildir", "lookers"]

#: Looks whether maildirs are there. As many as may hang on dead mounts before nobody is looked up any more.
lookers: Final = Crew(16, "maildir-look")


def first_maildir(root: str, paths: Sequence[str]) -> str | None:
    """Return the first of *paths*, below *root*, that is a maildir, or one being made. Blocks.

    None if it is certain that none of them is there: each directory on the way to it has been seen, and the next name
    is taken by nothing. `NotAMaildirError` or OSError if that is not certain, for the store may be away: a wrong 550
    loses mail, and a wrong 451 costs a retry.
    """
    for path in paths:
        if _is_maildir(path):
            return path
        _check_absent(root, path)
    return None


def _is_maildir(path: str) -> bool:
    for name in SUBDIRECTORIES:
        try:
            if stat.S_ISDIR(os.stat(f"{path}/{name}").st_mode):
                return True
        except (FileNotFoundError, NotADirectoryError):
            pass
    return False


def _check_absent(root: str, path: str) -> None:
    """Raise an OSError or `NotAMaildirError` if it is not certain that nothing is at *path*."""
    at = root
    parts = path.removeprefix(f"{root}/").split("/")
    if not _is_directory(at):
        raise _away(f"{root} is not there")
    for part in parts:
        above, at = at, f"{at}/{part}"
        if not _is_directory(at):
            # A file system that has just been made has nothing in it either, and nobody's mail is lost there by a 451.
            if above == root and _is_empty(root):
                raise _away(f"{root} is empty: is it mounted?")
            return
    for name in SUBDIRECTORIES:
        _is_directory(f"{path}/{name}")


def _is_directory(path: str) -> bool:
    """Return False if nothing has that name. OSError or `NotAMaildirError` if it is taken by what is no directory."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        raise _away(f"{path} is a symbolic link that leads nowhere") from None
    except NotADirectoryError:
        raise _away(f"{path} is behind what is not a directory") from None
    if not stat.S_ISDIR(found.st_mode):
        raise _away(f"{path} is not a directory")
    return True


def _is_empty(path: str) -> bool:
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _away(reason: str) -> NotAMaildirError:
    return NotAMaildirError(f"the maildirs are out of reach: {reason}", errno=errno.ENOENT, stage="create")
