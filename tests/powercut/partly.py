"""A disk that leaves out a part of the protocol: what the rig must find."""

import os
import stat
from typing import Final

from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew

__all__ = ["PARTS", "PartlyDisk"]

#: What can be taken out of the protocol.
PARTS: Final = ("file-sync", "directory-sync", "parent-sync", "order")


class PartlyDisk(PosixDisk):
    """The real disk, but one part of the protocol is missing. All syncs are fsync(2), by threads."""

    def __init__(self, without: str) -> None:
        self._without = without
        self._postponed = list[int]()

    def syncs_by_kernel(self, device: int) -> bool:
        return False

    def kernel_syncs(self, fds: list[int], crew: Crew) -> Syncs | None:
        return None

    def sync(self, fd: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        if self._without == "file-sync" and not is_directory:
            return
        if self._without == "directory-sync" and is_directory:
            return
        if self._without == "parent-sync" and is_directory and not _is_target(fd):
            return
        if self._without == "order":
            if not is_directory:  # the file is synced after its rename, and after its directory
                self._postponed.append(os.dup(fd))
                return
            postponed, self._postponed = self._postponed, []
            super().sync(fd)
            for each in postponed:
                os.fsync(each)
                os.close(each)
            return
        super().sync(fd)


def _is_target(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith(("/new", "/cur"))
