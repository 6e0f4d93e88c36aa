"""What lies in a maildir: its messages, its folders, and what ``tmp/`` has too much. Everything here blocks."""

import os
import stat
import time
from collections.abc import Callable

from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories

__all__ = ["arrival", "clean_tmp", "folders", "is_folder", "messages"]


def messages(directories: Directories) -> list[str]:
    """Return the paths of all messages, in the order Dovecot would number them.

    What is missing holds none, if a delivery may make it; or else this is not a maildir: `NotAMaildirError`.
    """
    missing = directories.missing() if directories.create else []
    paths = [
        f"{directories.subdirectory(where)}/{name}"
        for where in ("new", "cur")
        if where not in missing
        for name in _listdir(directories, where)
        if not name.startswith(".")  # every reader skips these
    ]
    return sorted(paths, key=lambda path: arrival(os.path.basename(path)))


def clean_tmp(directories: Directories, older_than_s: float, is_in_use: Callable[[str], bool]) -> list[str]:
    """Remove files in ``tmp/`` whose ctime is older than *older_than_s* seconds, and return their paths.

    By ctime, as Dovecot and Courier do: atime is not kept on noatime mounts, and mtime can be set at will.
    Other sweepers, and deliveries that end meanwhile, are no error.

    Args:
        directories: of the maildir.
        older_than_s: that age.
        is_in_use: whether this process is writing a file of that name, by whatever path. Asked last, since the
            file may have been begun after it was asked about others; who writes one says so before he makes it.

    """
    removed: list[str] = []
    now = time.time()
    for name in _listdir(directories, "tmp"):
        path = f"{directories.tmp}/{name}"
        try:
            found = directories.disk.stat(path)
            if not stat.S_ISREG(found.st_mode) or now - found.st_ctime <= older_than_s or is_in_use(name):
                continue
            directories.disk.unlink(path)
        except FileNotFoundError:
            continue
        removed.append(path)
    return removed


def folders(directories: Directories) -> list[str]:
    """Return the names of the directories in a maildir that may be folders: they begin with one dot, and hold ``cur/``.

    A maildir that is not there has none, if a delivery may make it; or else this is no maildir: `NotAMaildirError`.
    """
    try:
        names = directories.disk.listdir(directories.path)
    except FileNotFoundError:
        if directories.create:
            return []
        raise directories.incomplete() from None
    except NotADirectoryError as exc:
        raise directories.not_a_maildir(directories.path, exc) from None
    return [
        name
        for name in names
        if name.startswith(".")
        and not name.startswith("..")
        and is_folder(directories.disk, f"{directories.path}/{name}")
    ]


def is_folder(disk: Disk, path: str) -> bool:
    """Whether the directory at *path* holds ``cur/``, which may be closed to this process."""
    try:
        disk.stat(f"{path}/cur/.")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        pass
    return True


def _listdir(directories: Directories, name: str) -> list[str]:
    try:
        return directories.disk.listdir(directories.subdirectory(name))
    except FileNotFoundError:
        raise directories.incomplete([name]) from None
    except NotADirectoryError as exc:
        raise directories.not_a_maildir(directories.subdirectory(name), exc) from None


def arrival(name: str) -> tuple[int, int, str]:
    """Return what Dovecot sorts new mail by: the leading seconds, the number after M in the middle field, the name."""
    seconds, _, rest = name.partition(".")
    middle = rest.partition(".")[0]
    micros = middle.partition("M")[2]
    digits = micros[: len(micros) - len(micros.lstrip("0123456789"))]
    return (int(seconds) if seconds.isdecimal() else 0, int(digits) if digits else 0, name)
