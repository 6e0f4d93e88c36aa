"""The folders of one maildir that messages have been given to: each stands for itself in group commit."""

from collections.abc import Sequence
from typing import Final

from maildir_async.commit.allowance import Allowance
from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.directories import Directories
from maildir_async.disk.listing import folders
from maildir_async.format.folders import FolderEncoding, directory_of, folder_of, parts_of
from maildir_async.format.quota import Quota

__all__ = ["Folders"]


class Folders:
    """The maildir itself, and its Maildir++ folders by name. Any thread may use it.

    Args:
        root: the maildir itself.
        encoding: how the names of folders are written on the disk.
        quota: what all of them together may hold, or None.

    """

    def __init__(self, root: Mailbox, encoding: FolderEncoding, quota: Quota | None) -> None:
        self.root: Final = root
        self.encoding: Final = encoding
        self._quota = quota
        if quota is not None:
            root.quota = self._allowance(root, quota)
        self._by_directory: dict[str, Mailbox] = {}
        self._by_name: dict[str, Mailbox] = {}  # as callers have written it

    def of(self, folder: str | Sequence[str] | None) -> Mailbox:
        """Return what stands for *folder*, the same object each time. ValueError or TypeError for what is no name."""
        if type(folder) is str and (known := self._by_name.get(folder)) is not None:
            return known
        parts = parts_of(folder)
        if not parts:
            return self.root
        name = directory_of(parts, self.encoding)
        found = self._by_directory.get(name)
        if found is None:
            found = self._by_directory.setdefault(name, self._make(name, "/".join(parts)))
        if type(folder) is str:  # and no subclass, which may say another name tomorrow
            self._by_name[folder] = found
        return found

    def used(self) -> list[Mailbox]:
        """Return what stands for the maildir and for each folder that has been asked for."""
        return [self.root, *list(self._by_directory.values())]

    def existing(self) -> list[str]:
        """Return the folders that are there, sorted, but for names that are written otherwise. Blocks."""
        names = folders(self.root.directories)
        return sorted(folder for name in names if (folder := folder_of(name, self.encoding)) is not None)

    def close(self) -> None:
        """Have none of them take any more messages."""
        for mailbox in self.used():
            mailbox.close()

    def _make(self, name: str, folder: str) -> Mailbox:
        root = self.root
        above = root.directories
        path = f"{above.path}/{name}"
        directories = Directories(
            path,
            disk=above.disk,
            create=above.create,
            base=above.base,
            root=above,
            inherit_mode=above.inherit_mode,
        )
        mailbox = Mailbox(directories, root.names, root.mode, folder=folder)
        if self._quota is not None and not self._quota.ignores(folder):
            mailbox.quota = self._allowance(mailbox, self._quota)
        if root.closed:
            mailbox.close()
        return mailbox

    def _allowance(self, mailbox: Mailbox, quota: Quota) -> Allowance:
        return Allowance(quota, mailbox.directories, mailbox.names, mailbox.mode, self.encoding)
