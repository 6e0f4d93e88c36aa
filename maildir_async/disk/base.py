"""What has to be there for a maildir to be made: the directories that a site has made by hand. Blocks."""

import os
from typing import NamedTuple

from maildir_async.disk.calls import Disk
from maildir_async.disk.paths import absolute
from maildir_async.errors import NotAMaildirError
from maildir_async.format.options import check_path

__all__ = ["Base", "base_of"]


class Base(NamedTuple):
    """What nothing is made without. Where it is missing the store is away, which may heal.

    Attributes:
        directory: an absolute path; only what is below it is made. "" for none.
        mount: a directory that has to be a mount point. "" for none.

    """

    directory: str = ""
    mount: str = ""

    def check(self, disk: Disk) -> None:
        """Raise `NotAMaildirError` if it is not there, OSError if that cannot be seen."""
        self.check_mount(disk)
        if not self.directory:
            return
        try:
            disk.stat(f"{self.directory}/.")  # which follows a symbolic link, and fails for what is no directory
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise _away(self.directory, "is not there", exc.errno) from None

    def check_mount(self, disk: Disk) -> None:
        """Raise `NotAMaildirError` if the mount point is none now, OSError if that cannot be seen.

        One has another device than its parent, or is its own parent, as `os.path.ismount` has it. So a directory that
        is mounted a second time, below a mount point of the same file system, is none.
        """
        if not self.mount:
            return
        try:
            found, above = disk.stat(f"{self.mount}/."), disk.stat(f"{self.mount}/..")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise _away(self.mount, "is not there", exc.errno) from None
        if found.st_dev == above.st_dev and found.st_ino != above.st_ino:
            raise _away(self.mount, "is not a mount point", None)


def base_of(directory: str | os.PathLike[str] | None, mount: str | os.PathLike[str] | None) -> Base:
    """Return the base that these paths are of, relative ones taken from where the process stands now."""
    given = (("create_below", directory), ("require_mount", mount))
    return Base(*(absolute(check_path(path, name)) if path is not None else "" for name, path in given))


def _away(path: str, reason: str, number: int | None) -> NotAMaildirError:
    return NotAMaildirError(f"the maildirs are out of reach: {path} {reason}", errno=number, stage="create")
