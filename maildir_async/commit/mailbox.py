"""A maildir as group commit knows it: where it is, how its files are named, and what has become of its messages."""

import contextlib
import os
import threading
import weakref
from asyncio import AbstractEventLoop, Future
from collections.abc import Sequence
from typing import Final, Protocol

from maildir_async.commit.allowance import Allowance
from maildir_async.commit.usage import Asking
from maildir_async.disk.directories import Directories
from maildir_async.disk.keywords import Keywords
from maildir_async.errors import UncertainAppendError
from maildir_async.format.delivered import Delivered
from maildir_async.format.names import UniqueNames

__all__ = ["Listener", "Mailbox"]


class Listener(Protocol):
    """Who wants to know of each message delivered: `maildir_async.mailbox.index.Index`."""

    def append(self, delivered: Delivered) -> None:
        """Called with each message, in a worker thread, in the order of publication."""
        ...


class Task(Protocol):
    """Who sees to a message that is not whole at once: `maildir_async.receive.delivery.Delivery`."""

    @property
    def is_orphan(self) -> bool:
        """Whether its loop has been closed."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether its message is in group commit, or has been."""
        ...


class Mailbox:
    """What is the same for all messages of one `maildir_async.Maildir`, and the count of them.

    Attributes:
        directories: where it is.
        names: where file names come from.
        mode: permission bits that message files are made with.
        inherits: whether they get those of the directory, and its group, before anything is written.
        sets_mode: whether they need more than to be made: it inherits, or the umask may have taken a bit away.
        quota: what it may still take, or None for as much as there is.
        folder: its name where it is a folder, as a person writes it; None for the maildir itself.
        listeners: who is told of each message delivered, if anybody is.
        closed: whether it takes no more messages.
        in_flight: whole messages that are not settled.
        tasks: what sees to messages that are not whole at once, until they have their outcome.
        delivered, uncertain, failed, bytes_stored: see `maildir_async.mailbox.statistics.MaildirStatistics`.

    """

    __slots__ = (
        *("__weakref__", "_drained", "_keywords", "_lock", "bytes_stored", "closed", "delivered", "directories"),
        *("failed", "folder", "in_flight", "inherits", "listeners", "mode", "names", "quota"),
        *("sets_mode", "tasks", "uncertain"),
    )

    def __init__(self, directories: Directories, names: UniqueNames, mode: int, *, folder: str | None = None) -> None:
        self.directories = directories
        self.names = names
        self._keywords: Keywords | None = None
        self.inherits = directories.inherit_mode
        self.mode = 0o600 if self.inherits else mode
        self.sets_mode = self.inherits or bool(mode & 0o077)
        self.folder = folder
        self.quota: Allowance | None = None
        self.listeners: weakref.WeakSet[Listener] | None = None
        self.closed = False
        self.delivered = self.uncertain = self.failed = self.bytes_stored = 0
        self._drained: list[tuple[AbstractEventLoop, Future[None]]] = []
        self.reset()
        _mailboxes.add(self)

    def reset(self) -> None:
        """Start anew, in a forked child: the parent's messages are not in flight here."""
        # The garbage collector may throw a delivery away whose loop is gone, in a thread that holds this.
        self._lock = threading.RLock()
        self.in_flight = 0
        self.tasks: weakref.WeakSet[Task] | None = None

    @property
    def keywords(self) -> Keywords:
        """The letters of its keywords, once they are wanted."""
        with self._lock:
            if self._keywords is None:
                self._keywords = Keywords(self.directories, self.mode)
            return self._keywords

    def begin(self) -> bool:
        """Count a message in; return False if it has been closed."""
        with self._lock:
            if self.closed:
                return False
            self.in_flight += 1
        return True

    def begin_task(self, task: Task) -> bool:
        """Count in a message that *task* is going to receive; return False if it has been closed."""
        with self._lock:
            if self.closed:
                return False
            if self.tasks is None:
                self.tasks = weakref.WeakSet()
            self.tasks.add(task)
        return True

    def end_task(self, task: Task, *, failed: bool) -> None:
        """Count out *task*, whose message has its outcome; one that *failed* before it was whole is counted as that."""
        with self._lock:
            if self.tasks is not None:
                self.tasks.discard(task)
            if failed:
                self.failed += 1
        self.tell_if_drained()

    def live_tasks(self) -> list[Task]:
        """Return the tasks that will come to an end: not those whose loop has been closed."""
        with self._lock:
            return [task for task in list(self.tasks or ()) if not task.is_orphan]

    def enter(self) -> None:
        """Count in an entry of a message that has begun before."""
        with self._lock:
            self.in_flight += 1

    def close(self) -> None:
        """Take no more messages: every one that has begun by now is counted in `in_flight`."""
        with self._lock:
            self.closed = True

    def listen(self, listener: Listener) -> None:
        """Tell *listener* of each message from now on, for as long as anybody holds it."""
        with self._lock:
            if self.listeners is None:
                self.listeners = weakref.WeakSet()
            self.listeners.add(listener)

    def record(self, entries: Sequence[Asking]) -> None:
        """Record what those of *entries* take that are there, unless that has been done. Never raises. Blocks."""
        if self.quota is not None:
            self.quota.settle(entries)

    def settled(self, entries: Sequence[Asking]) -> None:
        """Count the outcomes of *entries*, all of this mailbox, in the order of publication. In any thread.

        `tell_if_drained` is to follow, once their loops have been told. Blocks as `record` does, whose work is done if
        it has not been.
        """
        if self.quota is not None:
            self.record(entries)
        with self._lock:
            for entry in entries:
                if entry.delivered is not None:
                    self.delivered += 1
                    self.bytes_stored += entry.delivered.size
                elif isinstance(entry.error, UncertainAppendError):
                    self.uncertain += 1
                else:
                    self.failed += 1
            self.in_flight -= len(entries)
            listeners = list(self.listeners) if self.listeners else []
        for listener in listeners:
            for entry in entries:
                if entry.delivered is not None:
                    listener.append(entry.delivered)

    def withdrawn(self) -> None:
        """Count out a message that has come to nothing: refused, cancelled, or failed before it was whole."""
        with self._lock:
            self.in_flight -= 1
            self.failed += 1
        self.tell_if_drained()

    def drained(self, loop: AbstractEventLoop) -> "Future[None]":
        """Return a future of *loop*, the running one, that is done when nothing is in flight."""
        future: Future[None] = loop.create_future()
        with self._lock:
            self._drained.append((loop, future))
        self.tell_if_drained()
        return future

    def tell_if_drained(self) -> None:
        """Tell whoever waits for that if nothing is in flight."""
        if not self._drained or self.in_flight or self.live_tasks():
            return
        with self._lock:
            waiting, self._drained = self._drained, []
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there
                loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: "Future[None]") -> None:
    if not future.done():
        future.set_result(None)


_mailboxes: Final["weakref.WeakSet[Mailbox]"] = weakref.WeakSet()


def _start_afresh() -> None:
    for mailbox in list(_mailboxes):
        mailbox.reset()


os.register_at_fork(after_in_child=_start_afresh)
