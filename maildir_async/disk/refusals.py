"""Who was refused, and by which directory: what somebody has to know who is to put it right. Blocks.

The system says "Permission denied" and no more. As Dovecot's ``eacces_error_get`` does, the path is walked up to the
directory that refuses, and its owner, group and mode stand in the error beside those of the process. That is for a log:
no SMTP reply is made of it.
"""

import errno
import grp
import os
import pwd
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeVar

from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories

__all__ = ["explain", "explained"]

T = TypeVar("T")

_TOLD: Final = " (euid="

_NOTHING: Final = (0, "")
_UNKNOWN: Final = 1
_LIKELY: Final = 2
_CERTAIN: Final = 3

_R: Final = 0o4
_W: Final = 0o2  # in a digit of a mode
_X: Final = 0o1


def explain(exc: BaseException, disk: Disk, paths: Sequence[str]) -> None:
    """If *exc* is a refusal (EACCES, EPERM), have its text say who was refused, and by which of the directories *paths*
    or above them. Never raises.

    Only to be called by the thread that has met it: the disk has just answered, and is asked again.
    """
    if not isinstance(exc, PermissionError) or _TOLD in str(exc.strerror):
        return
    _, found = max((_refusal(disk, path) for path in paths), key=_certainty)
    groups = f"egid={_named(os.getegid(), _group)}"
    who = f"{_TOLD}{_named(os.geteuid(), _user)} {groups}"
    exc.strerror = f"{exc.strerror or os.strerror(exc.errno or errno.EACCES)}{who}{f' {found}' if found else ''})"


def explained(directories: Directories, call: Callable[[], T]) -> T:
    """Return what *call* does, which is about *directories*; what it is refused is explained."""
    try:
        return call()
    except PermissionError as exc:
        explain(exc, directories.disk, (directories.tmp, directories.new, directories.cur))
        raise


def _certainty(refusal: tuple[int, str]) -> int:
    return refusal[0]


def _refusal(disk: Disk, path: str) -> tuple[int, str]:
    """Return what keeps something from being made in the directory at *path*, and how certain that is, by its mode."""
    here: str = path
    below = ""
    while True:
        try:
            found = disk.stat(f"{here}/.")  # which takes the right to search it
        except PermissionError:
            below = here
        except FileNotFoundError:
            below = ""  # it is to be made
        except OSError:
            return _NOTHING
        else:
            break
        if here in ("/", ""):
            return _CERTAIN, f"missing +x perm: {here}"
        here = os.path.dirname(here)
    try:
        if below:
            found = disk.stat(below)
            return _CERTAIN, _described(f"missing +x perm: {below}", found, _X)
    except OSError:
        return _CERTAIN, f"missing +x perm: {below}"
    if not _may(found, _W):
        return _CERTAIN, _described(f"missing +w perm: {here}", found, _W)
    if not _may(found, _R):  # what is published is synced by a descriptor that can be read; nothing in tmp/ is
        return _LIKELY, _described(f"missing +r perm: {here}", found, _R)
    return _UNKNOWN, _described(f"UNIX perms appear ok (ACL, file attribute or security module?): {here}", found)


def _described(what: str, found: os.stat_result, wanted: int = 0) -> str:
    owner, group = _named(found.st_uid, _user), _named(found.st_gid, _group)
    text = f"{what} owned by {owner}:{group} mode={found.st_mode & 0o7777:04o}"
    if wanted and found.st_mode >> 3 & wanted and os.geteuid() != found.st_uid and not _is_in(found.st_gid):
        text += f", not in group {group}"
    return text


def _may(found: os.stat_result, wanted: int) -> bool:
    """Whether this process may, by the mode alone."""
    uid = os.geteuid()
    if uid == 0:
        return True
    digit = 6 if uid == found.st_uid else 3 if _is_in(found.st_gid) else 0
    return bool(found.st_mode >> digit & wanted)


def _is_in(gid: int) -> bool:
    return gid == os.getegid() or gid in os.getgroups()


def _named(number: int, name_of: Callable[[int], str]) -> str:
    try:
        name = name_of(number)
    except (KeyError, OSError):  # there is none; or no descriptor to look it up with
        name = ""
    return f"{number}({name})" if name else str(number)


# Remembered: a directory service may be slow, and there is one refusal for each message.


@lru_cache(1024)
def _user(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


@lru_cache(1024)
def _group(gid: int) -> str:
    return grp.getgrgid(gid).gr_name
