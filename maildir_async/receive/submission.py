"""The boundary to group commit: a whole message becomes entries there, one for its file and one for each link to it."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import BinaryIO, Protocol

from maildir_async.commit.admission import Place
from maildir_async.commit.entry import Chunks, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.waiting import UncancellableFuture
from maildir_async.disk.streamfile import StreamFile
from maildir_async.format.content import Content, Newline, check_newline, check_prefix
from maildir_async.format.delivered import Durability
from maildir_async.format.given import given
from maildir_async.format.keywords import check_keywords
from maildir_async.format.names import check_flags
from maildir_async.format.options import check_bool, check_durability, nanoseconds
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.gate import Duplicates

__all__ = ["Maildir", "Submission", "check_maildir", "plan_of"]


def plan_of(
    durability: Durability,
    *,
    flags: str,
    received_at: datetime | float | None,
    prefix: bytes,
    newline: Newline,
    keywords: Iterable[str] = (),
    strip_from_line: bool = False,
) -> Plan:
    """Return the plan for a message of which this is asked. ValueError or TypeError for what is not valid."""
    return Plan(
        check_durability(durability),
        check_flags(flags),
        nanoseconds(received_at),
        check_prefix(prefix),
        check_newline(newline),
        check_keywords(keywords),
        check_bool("strip_from_line", strip_from_line),
    )


class Maildir(Protocol):
    """What a delivery needs of its `maildir_async.Maildir`."""

    durability: Durability
    size_limit: int | None

    @property
    def duplicates(self) -> Duplicates | None:
        """What finds messages that have been delivered before, if anything does."""
        ...

    def mailbox_of(self, folder: str | Sequence[str] | None) -> Mailbox:
        """Return what stands for one of its folders, or for itself. Nothing is touched."""
        ...

    @property
    def commit(self) -> GroupCommit:
        """Where its deliveries share syncs."""
        ...


def check_maildir(maildir: Maildir) -> Maildir:
    """Return *maildir*; TypeError unless it is one, as far as a look can tell."""
    if not callable(getattr(maildir, "mailbox_of", None)):
        raise TypeError(f"maildir must be a Maildir, not {given(maildir)}")
    return maildir


class Committer(Protocol):
    """What takes an entry: the `GroupCommit`, or the spool that has the beginning of its message."""

    def submit(self, entry: Entry) -> None:
        """Queue *entry*."""
        ...


class Submission:
    """One message in group commit, or on its way there.

    Attributes:
        mailbox: where it goes.
        plan: what is asked for.
        file: its file, if it is one of those that are written while they come.
        links: the message in the other maildirs, once it is whole: they outlive this.

    """

    def __init__(self, mailbox: Mailbox, plan: Plan) -> None:
        self.mailbox = mailbox
        self.plan = plan
        self.file: StreamFile | None = None
        self.links: Sequence[Entry] = ()
        self._linked: Sequence[Mailbox] = ()
        self._entry: Entry | None = None

    @property
    def is_made(self) -> bool:
        """Whether it is in group commit, or has been."""
        return self._entry is not None

    @property
    def is_linked(self) -> bool:
        """Whether there are to be links to it."""
        return bool(self._linked)

    @property
    def tmp_path(self) -> str | None:
        """Its file in ``tmp/``, once there has been one."""
        if self.file is not None and self.file.path:
            return self.file.path
        entry = self._entry
        name = "" if entry is None else entry.tmp_name or (entry.name if entry.path else "")
        return f"{self.mailbox.directories.tmp}/{name}" if name else None

    @property
    def bytes_written(self) -> int:
        """Bytes written to its file so far, prefix included."""
        if self._entry is not None and self._entry.size:
            return self._entry.size
        return 0 if self.file is None else self.file.content.size

    @property
    def copy(self) -> BinaryIO | None:
        """Its file, for links that could not be: whoever copies them closes it."""
        return None if self._entry is None else self._entry.copy

    @property
    def entry(self) -> Entry | None:
        """What it is in group commit, once it is whole."""
        return self._entry

    def open_file(self) -> StreamFile:
        """Return the file that it is to be written to while it comes. It is not there yet."""
        mailbox, plan = self.mailbox, self.plan
        self.file = StreamFile(
            mailbox.directories,
            mailbox.names,
            Content(prefix=plan.prefix, newline=plan.newline, strip_from_line=plan.strip_from_line),
            mode=mailbox.mode,
            is_synced=plan.durability is not Durability.NONE,
        )
        return self.file

    def link_into(self, mailboxes: Sequence[Mailbox]) -> None:
        """Have the message published in *mailboxes* too, as hard links to its file."""
        self._linked = mailboxes

    def make(
        self,
        chunks: Chunks,
        *,
        loop: AbstractEventLoop,
        commit: GroupCommit,
        place: Place | None,
        settled: Callable[[Entry], object],
        to: Committer,
    ) -> None:
        """Hand the message over: *chunks* are what its file does not have yet. *settled* is called on the loop."""
        self._entry = entry = self._entry_for(self.mailbox, loop, commit)
        entry.chunks = chunks
        entry.place = place
        entry.file = self.file if self.file is not None and self.file.name else None
        self.links = entry.links = [self._entry_for(mailbox, loop, commit) for mailbox in self._linked]
        for link in self.links:
            link.source = entry
        entry.future.add_done_callback(lambda _: settled(entry))
        to.submit(entry)

    def withdraw(self, commit: GroupCommit) -> bool:
        """Take it back, if it can still be; return whether group commit has nothing to do with it (any more)."""
        return self._entry is None or commit.withdraw(self._entry)

    def _entry_for(self, mailbox: Mailbox, loop: AbstractEventLoop, commit: GroupCommit) -> Entry:
        entry = Entry(mailbox, self.plan, b"", loop, UncancellableFuture(loop=loop))
        entry.generation = commit.admission.generation
        mailbox.enter()
        return entry
