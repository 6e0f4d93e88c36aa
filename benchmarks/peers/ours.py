"""The library that all this is about."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.peers.kinds import NotHereError
from benchmarks.workload import Workload
from maildir_async import Durability, GroupCommit, Maildir, Quota


class Ours:
    """`Maildir.append`, with the process's own `GroupCommit` unless there are options to give it."""

    options: ClassVar[dict[str, Any]] = {}
    maildir_options: ClassVar[dict[str, Any]] = {}

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        make: Any = GroupCommit  # of a version that may not have the option yet
        try:
            self._commit: Any = make(**self.options) if self.options else None
        except TypeError as exc:
            raise NotHereError(f"not in this version: {exc}") from exc
        durability = Durability(workload.durability)
        options = {**self.maildir_options, "durability": durability, "commit": self._commit}
        self._maildirs = [Maildir(path, **options) for path in paths]

    async def start(self) -> None:
        """Nothing to start: threads come with the first message."""

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        await self._maildirs[maildir].append(message)

    async def stream(self, maildir: int, workload: Workload, number: int) -> None:
        """Deliver one message that comes in chunks."""
        await self._maildirs[maildir].append(workload.async_chunks(number))

    async def aclose(self) -> None:
        """Close."""
        for maildir in self._maildirs:
            await maildir.aclose()
        if hasattr(self._commit, "aclose"):
            await self._commit.aclose()


class Syncfs(Ours):
    """With one sync of the whole file system for each batch."""

    options: ClassVar[dict[str, Any]] = {"syncfs": True}


class Helper(Ours):
    """With the work done in another process."""

    options: ClassVar[dict[str, Any]] = {"helper_process": True}


class Folders(Ours):
    """Into folders of one maildir. In the place of each maildir is a link to one."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        super().__init__([os.path.dirname(paths[0])], workload)
        self._paths = paths
        self._folders = [os.path.basename(path) for path in paths]

    async def start(self) -> None:
        """Make the folders, as the maildirs have been made."""
        for path, folder in zip(self._paths, self._folders, strict=True):
            await self._maildirs[0].create_folder(folder)
            await asyncio.to_thread(shutil.rmtree, path)
            await asyncio.to_thread(os.symlink, f".{folder}", path)

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        await self._maildirs[0].append(message, folder=self._folders[maildir])


class WithQuota(Ours):
    """Into maildirs with a quota, which is not reached."""

    maildir_options: ClassVar[dict[str, Any]] = {"quota": Quota(bytes=10**15, messages=10**12)}
