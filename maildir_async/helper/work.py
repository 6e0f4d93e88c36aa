"""What a helper process commits messages by: a queue like any other, and the threads that write streams."""

import errno
from asyncio import AbstractEventLoop
from functools import lru_cache, partial
from typing import Any, Final

from maildir_async.commit.admission import Admission
from maildir_async.commit.donation import Donation
from maildir_async.commit.entry import Chunks, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.queue import PATIENCE_S, Queue
from maildir_async.commit.streams import STREAM_THREADS, Watch
from maildir_async.disk.base import Base
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.streamfile import StreamFile
from maildir_async.disk.threads import Crew
from maildir_async.format.content import Content
from maildir_async.format.delivered import Durability
from maildir_async.format.names import UniqueNames

__all__ = ["Work"]

#: Whoever this works for bounds what is pending.
UNBOUNDED: Final = 2**62

#: Maildirs that are remembered, and sets of options.
MAILBOXES: Final = 4096
PLANS: Final = 64


class _GivenName(UniqueNames):
    """The one name that the other process has drawn, by which it can tell later what has become of the message."""

    __slots__ = ("_given",)

    def __init__(self, given: str) -> None:
        super().__init__(hostname="-")
        self._given = given

    def next(self) -> str:
        """Return it, however often."""
        return self._given


class _NoNames(UniqueNames):
    """Gives none: the other process could not find a message by a name of ours."""

    __slots__ = ()

    def next(self) -> str:
        """Refuse: whoever asks has found a file of the name that was drawn for his message."""
        raise FileExistsError(errno.EEXIST, "there is a file of the name that was drawn for the message")


class Work:
    """Whole messages and streams on their way to the disk, for all connections.

    Args:
        loop: the running one.
        disk: where all of it goes.
        syncfs: whether to sync file systems, not files.

    Attributes:
        streams: the threads that write streams.

    """

    def __init__(self, loop: AbstractEventLoop, disk: Disk, *, syncfs: bool) -> None:
        self.loop = loop
        self._disk = disk
        self._seen: object = None
        self._donation = Donation(lambda: self._queue.leading)
        watch = Watch(self._look, PATIENCE_S)
        self._queue = Queue(Admission(UNBOUNDED, UNBOUNDED), self._donation, watch, syncfs=syncfs)
        self.streams = Crew(STREAM_THREADS, "maildir-stream")
        self.mailbox = lru_cache(MAILBOXES)(self._make_mailbox)
        self._plain = lru_cache(PLANS)(self._make_plan)

    def plan(self, durability: str, flags: str, mtime_ns: int | None, prefix: bytes, *rest: Any) -> Plan:
        """Return what is asked for. A prefix, or a time, is hardly ever the same for two messages."""
        if prefix or mtime_ns is not None:
            return self._make_plan(durability, flags, mtime_ns, prefix, *rest)
        return self._plain(durability, flags, mtime_ns, prefix, *rest)

    def stream(self, mailbox: Mailbox, plan: Plan, name: str) -> StreamFile:
        """Return a file for a message that comes in chunks: it gets that *name* in ``tmp/``."""
        content = Content(prefix=plan.prefix, newline=plan.newline, strip_from_line=plan.strip_from_line)
        is_synced = plan.durability is not Durability.NONE
        return StreamFile(mailbox.directories, _GivenName(name), content, mode=mailbox.mode, is_synced=is_synced)

    def commit(self, mailbox: Mailbox, plan: Plan, name: str, chunks: Chunks, file: StreamFile | None = None) -> Entry:
        """Have a whole message published under *name*, and return it. Its future says when it has its outcome."""
        entry = Entry(mailbox, plan, chunks, self.loop, self.loop.create_future(), file=file)
        entry.name = name
        mailbox.enter()
        self._queue.turns.submit(entry)
        return entry

    def _make_mailbox(
        self, path: str, create: bool, mode: int, base: str, mount: str, root: str, inherit_mode: bool
    ) -> Mailbox:
        where = Base(base, mount)
        directories = partial(Directories, disk=self._disk, create=create, base=where, inherit_mode=inherit_mode)
        return Mailbox(directories(path, root=directories(root) if root else None), _no_names, mode)

    def _make_plan(self, durability: str, flags: str, mtime_ns: int | None, prefix: bytes, *rest: Any) -> Plan:
        return Plan(Durability(durability), flags, mtime_ns, prefix, *rest)

    def _look(self) -> bool:
        """Look after what may hang; return whether there is anything."""
        self._seen = self._queue.look(self._seen)
        return self._queue.leading


_no_names: Final = _NoNames(hostname="-")
