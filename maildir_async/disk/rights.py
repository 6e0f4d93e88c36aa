"""Whom messages belong to and who may read them, where a maildir's directory says that (``inherit_mode``). Blocks.

As Dovecot takes them (``mailbox_list_get_permissions``): files have the read and write bits of the directory, and its
group, unless that may do the same as everybody may. Where the group cannot be had, Dovecot leaves the bits as they are
(``maildir_create_tmp``); here the group that a file or directory has instead may do no more than others may.
"""

import errno
import os
import stat
from typing import Final, NamedTuple

from maildir_async.disk.calls import UNSUPPORTED, Disk

__all__ = ["UNCHANGEABLE", "Rights", "files_rights", "give", "made_rights", "share", "without_group"]

#: How a system says that a file may not have a group: who asks is not in it, or the file system has none.
UNCHANGEABLE: Final = UNSUPPORTED | {errno.EPERM, errno.EACCES}


class Rights(NamedTuple):
    """What the files in a directory are to have.

    Attributes:
        mode: their permission bits.
        uid: the owner, or -1 for whoever makes them.
        gid: the group, or -1 for any.
        by_kernel: whether the directory has them get that group (setgid).

    """

    mode: int
    uid: int
    gid: int
    by_kernel: bool


def files_rights(disk: Disk, path: str) -> Rights:
    """Return what message files have in the maildir at *path*: never a bit to execute. Raises OSError."""
    found = disk.stat(f"{path}/.")  # of what a symbolic link leads to
    mode = stat.S_IMODE(found.st_mode) & 0o666 | 0o600
    gid = found.st_gid if _group_matters(mode) else -1
    uid = found.st_uid or -1 if os.geteuid() == 0 else -1
    return Rights(mode, uid, gid, gid != -1 and bool(found.st_mode & stat.S_ISGID))


def made_rights(disk: Disk, path: str, *, is_new_root: bool) -> tuple[int, int]:
    """Return the permission bits and the group (or -1) of a directory that is made in the one at *path*.

    Those of that one, if it is a maildir. What a maildir is made in is none: it is not for others, unless the directory
    hands on its group (setgid), and then with what the group may do there. Dovecot takes the bits of others too, then.
    """
    found = disk.stat(f"{path}/.")
    mode = stat.S_IMODE(found.st_mode) & 0o777 | 0o700
    if is_new_root:
        mode = mode & 0o770 if found.st_mode & stat.S_ISGID else 0o700
    return mode, found.st_gid if _group_matters(mode) else -1


def give(disk: Disk, fd: int, rights: Rights) -> str | None:
    """Give a file that has just been made, with mode 0600, its *rights*; return a warning if the group is refused.

    At no moment may anybody more than in the end. OSError if it cannot be given to its owner, or not to the group for
    another reason than that this process may not: a quota, for one.
    """
    mode, warning = rights.mode, None
    if rights.uid != -1 or rights.gid != -1:
        found = disk.stat(fd)
        gid = rights.gid if rights.gid != found.st_gid else -1
        if rights.uid not in (-1, found.st_uid):
            disk.chown(fd, rights.uid, gid)
        elif gid != -1:
            try:
                disk.chown(fd, -1, gid)
            except OSError as exc:
                if exc.errno not in UNCHANGEABLE:
                    raise
                mode, warning = without_group(mode), _refused_group("the file", gid, exc)
    if mode != 0o600:
        disk.chmod(fd, mode)
    return warning


def share(disk: Disk, path: str, *, is_new_root: bool) -> list[str]:
    """Give the directory at *path*, which has just been made with mode 0700, what `made_rights` says; return warnings.

    Where another process has begun to fill it meanwhile it stays as it is, and so with what has no rights to give.
    """
    mode, gid = made_rights(disk, os.path.dirname(path), is_new_root=is_new_root)
    if mode == 0o700 and gid == -1:
        return []
    try:
        disk.share(path, mode, gid)
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:
            return [f"{path} was not shared: it is in use already, or another than was made"]
        if exc.errno != errno.EPERM:
            raise
        return [_refused_group(path, gid, exc)]
    return []


def without_group(mode: int) -> int:
    """Return *mode* with no more rights for the group than for others."""
    return mode & ~0o070 | (mode & 0o070) & ((mode & 0o007) << 3)


def _refused_group(what: str, gid: int, exc: OSError) -> str:
    """Return the warning for *what* cannot be given to the group."""
    return f"{what} could not be given to group {gid} (egid={os.getegid()}): {exc.strerror}"


def _group_matters(mode: int) -> bool:
    return (mode & 0o070) >> 3 != mode & 0o007
