"""The directories of one maildir: made, found durable, listed, swept. Everything here blocks."""

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Final

from maildir_async.disk.base import Base
from maildir_async.disk.calls import UNSUPPORTED, Disk
from maildir_async.disk.rights import files_rights, give, share
from maildir_async.errors import NotAMaildirError, NotTrustedError

__all__ = ["Directories", "sync_directory", "unsyncable"]

#: The Maildir page gives no modes; every writer but stdlib keeps strangers out.
DIRECTORY_MODE: Final = 0o700

#: tmp/ comes last: a maildir that has one is whole.
SUBDIRECTORIES: Final = ("cur", "new", "tmp")

#: What makes a directory a folder of the maildir that it lies in (Maildir++).
MARKER: Final = "maildirfolder"
MARKER_MODE: Final = 0o600

_NOTHING: Final = Base()

#: What this process has found or made durable, itself and all above it: (disk, path of a directory) → its identity.
_durable: Final[dict[tuple[Disk, str], tuple[int, int, int]]] = {}

_DURABLE_MAX: Final = (
    32768  # directories, of about 300 bytes, two a maildir; a forgotten one costs two syncs at its next use
)


def sync_directory(disk: Disk, path: str) -> None:
    """Make the entries of a directory durable."""
    fd = disk.open_directory(path)
    try:
        disk.sync(fd)
    finally:
        disk.close(fd)


class Directories:
    """``tmp/``, ``new/`` and ``cur/`` of the maildir at *path*.

    Args:
        path: absolute.
        disk: the system calls.
        create: whether a delivery may make what is missing.
        base: what nothing is made without.
        root: of a folder, the maildir that it lies in.
        inherit_mode: whether what is made has the rights of the directory that it is made in.

    """

    __slots__ = ("base", "create", "cur", "disk", "inherit_mode", "is_whole", "new", "path", "root", "tmp")

    def __init__(
        self,
        path: str,
        *,
        disk: Disk,
        create: bool,
        base: Base = _NOTHING,
        root: "Directories | None" = None,
        inherit_mode: bool = False,
    ) -> None:
        self.path = path
        self.cur, self.new, self.tmp = (f"{path}/{name}" for name in SUBDIRECTORIES)
        self.disk = disk
        self.create = create
        self.base = base
        self.root = root
        self.inherit_mode = inherit_mode
        self.is_whole = False  # whether all three have been seen, by way of this object

    def subdirectory(self, name: str) -> str:
        """Return the path of ``tmp``, ``new`` or ``cur``."""
        return f"{self.path}/{name}"

    def device(self) -> int | str:
        """Return what is the same for all maildirs on one file system. Where that cannot be told, only for this one."""
        path = self.tmp
        while True:
            try:
                return self.disk.stat(f"{path}/.").st_dev  # of what a symbolic link leads to
            except FileNotFoundError:
                if path == os.path.dirname(path):
                    return self.path
                path = os.path.dirname(path)
            except OSError:
                return self.path

    def check_whole(self) -> list[str]:
        """Look whether all three are there, as a first use must: what is missing is made, or `NotAMaildirError`.

        A message needs but two of them, and a mail reader the third. Returns warnings, as `make` does.
        """
        warnings = self.make_missing() if self.missing() else []
        self.is_whole = True
        return warnings

    def make_missing(self) -> list[str]:
        """Make what a delivery found missing, if that is allowed; `NotAMaildirError` if not. Return warnings."""
        self.is_whole = False
        for path in (self.path, *map(self.subdirectory, SUBDIRECTORIES)):
            _durable.pop((self.disk, path), None)
        if self.create:
            return self.make()
        if missing := self.missing():
            raise self.incomplete(missing)
        return []

    def make(self) -> list[str]:
        """Make the maildir, or what is missing of it, durably: when this returns, ``new/`` and ``cur/`` are durable.

        From the outside in, and nothing is made in a directory whose own entry is not synced. So whoever dies on the
        way, or makes the same at the same time: a directory that has something in it is durable, and one that is
        empty may not be. Returns warnings: the parent of what was there already may not be open to this process.
        `NotAMaildirError` if something on the way is not a directory, or if there is nothing to make it in: a file
        system that is not mounted, say.
        """
        warnings = self.root.make() if self.root is not None and self.root.missing() else []
        existing, missing = self.path, list[str]()
        while not self.is_directory(existing):
            missing.append(existing)
            existing = os.path.dirname(existing)
        self.base.check(self.disk)
        if not missing:
            self.missing()  # raises before anything is made, if one of them is a file
        self.check_inside()
        warnings += self._make_durable(existing)
        for path in reversed(missing):
            warnings += self._make_directory(path)
            # Also if another has made it: he may have died since, and not have synced it.
            warnings += self._sync_holding([path] if path != self.path else [], os.path.dirname(path))
        unshared = self._make_marker() if self.root is not None else []
        for name in SUBDIRECTORIES:
            unshared += self._make_directory(self.subdirectory(name))
        untold = bool(warnings) and not missing  # by us: the first delivery will say it, if it finds it to be done
        also = self._sync_holding([] if untold else [self.cur, self.new], self.path)
        self.is_whole = True
        return (also if untold else warnings + also) + unshared

    def _make_durable(self, path: str) -> list[str]:
        """Sync what holds the entry of *path*, which is there, unless it is known to be durable. Return warnings."""
        identity = self._identity_of(path)
        if _durable.get((self.disk, path)) == identity:
            return []
        # "/.." rather than dirname: the path may be a symbolic link, and the entry to sync is the real one's.
        try:
            sync_directory(self.disk, f"{path}/..")
        except OSError as exc:
            if exc.errno not in UNSUPPORTED and not isinstance(exc, PermissionError):
                raise
            return [unsyncable(f"{path}/..", exc)]
        _remember(self.disk, path, identity)
        return []

    def _sync_holding(self, paths: Sequence[str], parent: str) -> list[str]:
        """Sync *parent*, and remember what it holds by *paths*: as it was before, for it may be replaced meanwhile.

        Where that cannot be, on a file system that syncs no directories, a warning is returned.
        """
        identities = [self._identity_of(path) for path in paths]
        try:
            sync_directory(self.disk, parent)
        except OSError as exc:
            if exc.errno not in UNSUPPORTED:
                raise
            return [unsyncable(parent, exc)]
        for path, identity in zip(paths, identities, strict=True):
            _remember(self.disk, path, identity)
        return []

    def _identity_of(self, path: str) -> tuple[int, int, int]:
        fd = self.disk.open_directory(path)
        try:
            return self.disk.identity(fd)
        finally:
            self.disk.close(fd)

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory, or a link to one; `NotAMaildirError` if there is something else."""
        try:
            fd = self.disk.open_directory(path)
        except FileNotFoundError:
            return False
        except NotADirectoryError as exc:
            raise self.not_a_maildir(path, exc) from None
        self.disk.close(fd)
        return True

    def _make_directory(self, path: str) -> list[str]:
        """Make a directory, unless it is there. Return warnings: it may not be given to the group it is to have."""
        try:
            self.disk.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            if not self.is_directory(path):
                raise self.not_a_maildir(path) from None  # a dangling symbolic link
        except NotADirectoryError as exc:
            raise self.not_a_maildir(path, exc) from None
        else:
            if self.inherit_mode:
                return share(self.disk, path, is_new_root=not path.startswith(f"{(self.root or self).path}/"))
        return []

    def _make_marker(self) -> list[str]:
        """Make the empty file by which a folder is known from a maildir of its own (Courier's maildirmake(1)).

        Returns warnings: it may not be given to the group it is to have.
        """
        try:
            fd = self.disk.create(f"{self.path}/{MARKER}", MARKER_MODE)
        except FileExistsError:
            return []
        try:
            warning = give(self.disk, fd, files_rights(self.disk, self.path)) if self.inherit_mode else None
        finally:
            self.disk.close(fd)
        return [warning] if warning else []

    def check_inside(self) -> None:
        """Raise `NotAMaildirError` for a folder that does not lie in its maildir: a symbolic link that leads out."""
        if self.root is None:
            return
        try:
            above = self.disk.stat(f"{self.path}/..")
        except FileNotFoundError:  # it is not there yet, or no more
            return
        root = self.disk.stat(f"{self.root.path}/.")
        if (above.st_dev, above.st_ino) != (root.st_dev, root.st_ino):
            raise NotAMaildirError(
                f"{self.path} is not a folder of {self.root.path}: it leads out of that",
                errno=errno.ELOOP,
                stage="create",
            )

    def not_a_maildir(self, path: str, exc: OSError | None = None) -> NotAMaildirError:
        """Return the error for a *path* that should be a directory and is something else, as *exc* says."""
        if isinstance(exc, NotTrustedError):
            return NotAMaildirError(f"{self.path} is not a maildir: {exc.strerror}", errno=exc.errno, stage="create")
        return NotAMaildirError(
            f"{self.path} is not a maildir: {path} is not a directory",
            errno=errno.ENOTDIR,
            stage="create",
        )

    def incomplete(self, missing: Sequence[str] = ()) -> NotAMaildirError:
        """Return the error for a maildir that is not there, or of which *missing*, at least, is not."""
        try:
            self.disk.stat(f"{self.path}/.")
        except FileNotFoundError:
            reason = "it does not exist"
        except OSError as exc:
            reason = f"it cannot be looked at: {exc.strerror}"
        else:
            reason = f"it has no {', '.join(f'{name}/' for name in missing or SUBDIRECTORIES)}"
        return NotAMaildirError(f"{self.path} is not a maildir: {reason}", errno=errno.ENOENT, stage="create")

    def missing(self) -> list[str]:
        """Return which of the three subdirectories are not there."""
        return [name for name in SUBDIRECTORIES if not self.is_there(self.subdirectory(name))]

    def is_there(self, path: str) -> bool:
        """Whether there is a directory, readable or not; `NotAMaildirError` if there is something else."""
        try:
            self.disk.stat(f"{path}/.")  # which follows a symbolic link, and asks for no right to read
        except FileNotFoundError:
            return False
        except NotADirectoryError as exc:
            raise self.not_a_maildir(path, exc) from None
        except PermissionError:
            pass  # closed to this process, as cur/ may be to a delivery agent
        return True

    def above(self, target: str, identity: tuple[int, int, int]) -> list[str]:
        """Return the directories above *target* (``new/`` or ``cur/``, now *identity*) that must be synced with it.

        To exist is not to be durable: whoever made this maildir may not have synced it. So the first time this
        process delivers to it, and again when it has been replaced, its root and the root's parent are synced too.
        What is further up has something in it, and is durable therefore: see `make`.
        """
        if _durable.get((self.disk, target)) == identity:
            return []
        paths = [self.path, f"{self.path}/.."]
        # A folder may be all that is in a maildir which somebody else has made.
        return paths if self.root is None else [*paths, f"{self.root.path}/.."]

    def found_durable(self, target: str, identity: tuple[int, int, int]) -> None:
        """Remember that what is `above` it has been synced."""
        _remember(self.disk, target, identity)

    def identity(self) -> tuple[object, ...]:
        """Return what is the same for two of these that stand for one maildir, by whatever path, and for no others.

        A maildir that is yet to be made is known by the deepest directory above it that is there. Where the system
        does not tell, by its path.
        """
        existing, below = self.path, list[str]()
        while True:
            try:
                found = self.disk.stat(f"{existing}/.")
            except FileNotFoundError:
                if existing == os.path.dirname(existing):
                    return (self.path,)
                existing, _, name = existing.rpartition("/")
                below.append(name)
            except OSError:
                return (self.path,)
            else:
                return (found.st_dev, found.st_ino, *below)


def unsyncable(path: str, exc: OSError) -> str:
    """Return the warning for a directory that is closed to us, as /home/alice/.. often is, or can be synced by nobody.

    Who made what it holds has to have synced it, if anybody can.
    """
    return f"{path} could not be {'opened to be ' if isinstance(exc, PermissionError) else ''}synced: {exc.strerror}"


def _remember(disk: Disk, path: str, identity: tuple[int, int, int]) -> None:
    while len(_durable) >= _DURABLE_MAX:
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread has just changed it
            _durable.pop(next(iter(_durable)), None)
    _durable[disk, path] = identity
