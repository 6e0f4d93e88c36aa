"""The boundary to group commit: a whole message becomes entries there, one for its file and one for each link to it."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Sequence
from typing import Protocol

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Entry
from maildir_async.disk.directories import Directories
from maildir_async.disk.tmpfile import TmpFile
from maildir_async.format.delivered import Durability
from maildir_async.format.names import UniqueNames
from maildir_async.format.states import State
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.buffer import Chunk

__all__ = ["Counted", "Mailbox", "Submission"]


class Counted(Protocol):
    """What a maildir counts: a `maildir_async.receive.delivery.Delivery`."""

    state: State

    @property
    def is_orphan(self) -> bool:
        """Whether its loop has been closed: it will not be settled, whatever becomes of its message."""
        ...


class Mailbox(Protocol):
    """What a delivery needs of its `maildir_async.Maildir`."""

    directories: Directories
    names: UniqueNames
    file_mode: int
    durability: Durability
    size_limit: int | None

    @property
    def commit(self) -> GroupCommit:
        """Where its deliveries share syncs."""
        ...

    def begun(self, delivery: Counted) -> None:
        """Count *delivery*, which starts; raise MaildirError if none may."""
        ...

    def ended(self, delivery: Counted) -> None:
        """Count *delivery* no longer: it has an outcome."""
        ...

    def record(self, entry: Entry) -> None:
        """Count what has become of *entry*: in a worker thread, in the order of publication."""
        ...


class Committer(Protocol):
    """What takes an entry: the `GroupCommit`, or the spool that has the beginning of its message."""

    def submit(self, entry: Entry) -> None:
        """Queue *entry*."""
        ...


class Submission:
    """One message in group commit, or on its way there.

    Attributes:
        links: the message in the other maildirs, once it is whole: they outlive this.

    """

    def __init__(self, maildir: Mailbox, tmpfile: TmpFile) -> None:
        self._maildir = maildir
        self._tmpfile = tmpfile
        self._linked: Sequence[Mailbox] = ()
        self._link_settled: Callable[[Entry], object] = id
        self._entry: Entry | None = None
        self.links: Sequence[Entry] = ()

    @property
    def is_made(self) -> bool:
        """Whether it is in group commit, or has been."""
        return self._entry is not None

    def link_into(self, mailboxes: Sequence[Mailbox], settled: Callable[[Entry], object]) -> None:
        """Have the message published in *mailboxes* too, as hard links to its file."""
        self._linked, self._link_settled = mailboxes, settled
        self._tmpfile.links = True

    def make(
        self,
        chunks: Sequence[Chunk],
        *,
        loop: AbstractEventLoop,
        place: Place | None,
        settled: Callable[[Entry], object],
        to: Committer,
    ) -> None:
        """Hand the message over: *chunks* are what its file does not have yet. *settled* is called on the loop."""
        self.links = [self._link(mailbox, loop) for mailbox in self._linked]
        self._entry = Entry(
            self._tmpfile,
            chunks,
            loop=loop,
            place=place,
            settle=settled,
            record=self._maildir.record,
            links=self.links,
        )
        to.submit(self._entry)

    def withdraw(self, commit: GroupCommit) -> bool:
        """Take it back, if it can still be; return whether group commit has nothing to do with it (any more)."""
        return self._entry is None or commit.withdraw(self._entry)

    def let_go(self) -> None:
        """Drop the entry, which has come to its end."""
        self._entry = None

    def _link(self, mailbox: Mailbox, loop: AbstractEventLoop) -> Entry:
        file = self._tmpfile
        link = TmpFile(
            mailbox.directories,
            mailbox.names,
            file.content,
            mode=file.mode,
            flags=file.flags,
            mtime_ns=file.mtime_ns,
            durability=file.durability,
            source=file,
        )
        return Entry(link, (), loop=loop, place=None, settle=self._link_settled, record=mailbox.record)
