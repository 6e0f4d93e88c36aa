"""The library that all this is about."""

from collections.abc import Sequence
from typing import Any, ClassVar

from benchmarks.peers.kinds import NotHereError
from benchmarks.workload import Workload
from maildir_async import Durability, GroupCommit, Maildir


class Ours:
    """`Maildir.append`, with the process's own `GroupCommit` unless there are options to give it."""

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        make: Any = GroupCommit  # of a version that may not have the option yet
        try:
            self._commit: Any = make(**self.options) if self.options else None
        except TypeError as exc:
            raise NotHereError(f"not in this version: {exc}") from exc
        durability = Durability(workload.durability)
        self._maildirs = [Maildir(path, durability=durability, commit=self._commit) for path in paths]

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
