"""Whose privileges the daemon has: root's are dropped for a user's, for good, once the sockets are there."""

import grp
import os
import pwd
from dataclasses import dataclass

__all__ = ["Identity", "drop", "identity_of"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of the system.

    Attributes:
        uid, gid: numbers.
        name: of the account, by which its other groups are found; None for a number that nobody has.

    """

    uid: int
    gid: int
    name: str | None


def identity_of(user: str, group: str | None) -> Identity:
    """Return who *user* is, a name or a number, in *group* or his own. ValueError for who or what is not there."""
    try:
        account = pwd.getpwuid(int(user)) if user.isascii() and user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        account = None
    if account is None and not (user.isascii() and user.isdecimal()):
        raise ValueError(f"--user: there is no user {user!r}")
    uid = int(user) if account is None else account.pw_uid
    if group is not None:
        gid = _gid_of(group)
    elif account is not None:
        gid = account.pw_gid
    else:
        raise ValueError(f"--user: nobody has the number {user}, so --group is wanted")
    if not (0 <= uid < 2**32 - 1 and 0 <= gid < 2**32 - 1):
        raise ValueError(f"--user: no number of a user: {user}")
    return Identity(uid, gid, None if account is None else account.pw_name)


def _gid_of(group: str) -> int:
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"--group: there is no group {group!r}") from None


def drop(identity: Identity) -> None:
    """Become *identity*, in all of its ids (setresuid(2)), so that there is no way back. OSError if that fails.

    For a process with one thread. PermissionError if root could still be had.
    """
    if identity.name is not None:
        os.initgroups(identity.name, identity.gid)
    else:
        os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if os.getresuid() != (identity.uid,) * 3 or os.getresgid() != (identity.gid,) * 3:
        raise PermissionError("the privileges are not those that were asked for")
    if identity.uid:
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            return
        raise PermissionError("root's privileges could be had again")
