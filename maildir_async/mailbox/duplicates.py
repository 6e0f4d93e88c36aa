"""`DuplicateFilter`: what has been delivered to a maildir is not stored there again.

A delivery *claims* its key before it is committed, and lets go of it when it has its outcome. Within this process the
claims are in a table; the one who has a key there also asks for a lock on a byte of a file, which keeps other
processes out and which the kernel lets go of if this one dies. Who has both looks into the database. A key is
remembered when its delivery has succeeded and before its claim ends: so no two of the same key are ever stored, unless
a process is killed between the two.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from maildir_async.commit.mailbox import Mailbox
from maildir_async.disk.calls import Disk, check_disk
from maildir_async.disk.paths import absolute
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.seen import Seen
from maildir_async.format.delivered import Delivered
from maildir_async.format.given import given
from maildir_async.format.message_id import Head
from maildir_async.format.options import check_keep, check_path
from maildir_async.mailbox.claims import BUSY, Claim, Claims, Failed
from maildir_async.receive.messages import BytesLike

__all__ = ["DuplicateFilter", "Gate"]

_posix: Final = PosixDisk()

#: Seconds between two questions for a key that another process has.
POLL_S: Final = 0.015
#: Seconds after which one who waits in this process looks whether the other's loop has been closed.
LOOK_AGAIN_S: Final = 1.0
#: Seconds after which a message is delivered although another of its key is under way: a client waits for ten minutes
#: (RFC 5321, 4.5.3.2.6), and a process may have been stopped.
PATIENCE_S: Final = 300.0


class DuplicateFilter:
    """Remembers what has been delivered, in an SQLite file, so that it is not delivered again.

    ::

        maildir = Maildir("Mail", duplicates=DuplicateFilter("seen.sqlite"))
        delivered = await maildir.append(message, duplicate_key=True)  # by the Message-ID

    What has been delivered to the same maildir (by its absolute path) and folder with the same key, within *keep*, is
    not stored again: `Delivered.duplicate` is True, and `path` that of the first. Of deliveries of one key at the same
    time, in any tasks, loops, threads and processes that share the file, one is stored, and the others wait for it. If
    it fails, the next one is. A key is remembered once its message is as durable as asked for, and not after
    `UncertainAppendError`: the message may be gone.

    No message is lost by it: a process that is killed between publishing and remembering, or a power cut, may let one
    be stored twice. If the file cannot be used the message is delivered, and `Delivered.warnings` says so. A damaged
    one is renamed to ``<path>.corrupt-<time>``, and a new one begun. Where another process holds a key for more than
    five minutes the message is delivered too.

    Making this object touches nothing. It may be used from several loops and threads at once, by any number of
    maildirs, and after a fork. (A fork waits for what it has in hand.) Across processes the file has to be on a file
    system that knows locks.

    Args:
        path: the database, made when it is needed; its directory has to exist. Beside it are ``<path>-claims``, and
            SQLite's own files.
        keep: how long a key is remembered.
        clock: seconds since the epoch, for tests.
        disk: the system calls, for tests; SQLite has its own.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: timedelta = timedelta(days=7),
        clock: Callable[[], float] = time.time,
        disk: Disk = _posix,
    ) -> None:
        self.path: Final = absolute(check_path(path))
        if not callable(clock):
            raise TypeError(f"clock must be callable, not {given(clock)}")
        self._claims = Claims(Seen(self.path, check_keep(keep), clock, check_disk(disk)))

    def __repr__(self) -> str:
        return f"DuplicateFilter({self.path!r})"

    def gate(self, mailbox: Mailbox, key: bytes | None) -> "Gate":
        """Return what decides on one message to *mailbox*: by its Message-ID if *key* is None. Touches nothing."""
        return Gate(self._claims, mailbox, key)


class Gate:
    """What decides on one message. On one loop; see `maildir_async.receive.gate.Gate`."""

    def __init__(self, claims: Claims, mailbox: Mailbox, key: bytes | None) -> None:
        self._claim: Claim | None = None
        self._claims = claims
        self._target = os.fsencode(mailbox.directories.path)
        self._key = key
        self._head = Head() if key is None else None
        self._warnings: list[str] = []

    def __del__(self) -> None:
        self.leave()  # thrown away with its loop

    @property
    def ident(self) -> bytes | None:
        """What stands for the maildir and the key, once the head of the message has been seen; None without a key."""
        key = self._key if self._head is None else self._head.message_id()
        return None if key is None else hashlib.blake2b(self._target + b"\0" + key, digest_size=24).digest()

    def observe(self, chunk: BytesLike) -> None:
        """Look at the next chunk of the message."""
        if self._head is not None:
            self._head.observe(chunk)

    async def enter(self) -> str | None:
        """Return the path of the one delivered before, or None if this is to be delivered."""
        ident = self.ident
        if ident is None:
            return None
        loop, until = asyncio.get_running_loop(), time.monotonic() + PATIENCE_S
        while True:
            claim = self._claims.claim(ident, loop)
            if isinstance(claim, Claim):
                self._claim = claim
                break
            await asyncio.wait([claim], timeout=LOOK_AGAIN_S)
            answer = claim.result() if claim.done() else None
            if isinstance(answer, str):
                return answer
            if isinstance(answer, Failed):
                self._unfiltered(answer)
                return None
            if time.monotonic() >= until:
                self._unfiltered(Failed("another delivery of this message does not end"))
                return None
        try:
            return await self._look(claim, until)
        except BaseException:
            self.leave()
            raise

    async def _look(self, claim: Claim, until: float) -> str | None:
        while (answer := await self._claims.ask(claim)) is BUSY:
            if time.monotonic() >= until:
                answer = Failed("another process's delivery of this message does not end")
                break
            await asyncio.sleep(POLL_S)
        if isinstance(answer, Failed):
            self._unfiltered(answer)
            return None
        if answer.warning is not None:
            self._warnings.append(answer.warning)
        if answer.first is not None:
            self._end(answer.first)
        first: str | None = answer.first
        return first

    async def remember(self, delivered: Delivered) -> Delivered:
        """Have it remembered, and let the others go. Cancelled or not, both is done on return."""
        if self._claim is not None:
            try:
                answer = await self._claims.ask(self._claim, delivered.path)
            finally:
                self._end(delivered.path)
            if isinstance(answer, Failed):
                self._warnings.append(f"the message could not be remembered, to find duplicates of it: {answer.reason}")
            elif answer is not None:
                self._warnings.append(answer)
        if not self._warnings:
            return delivered
        return replace(delivered, warnings=(*delivered.warnings, *self._warnings))

    def leave(self) -> None:
        """Let the others go."""
        self._end(None)

    def _unfiltered(self, failed: Failed) -> None:
        """Have it delivered, with a warning, whatever has been delivered before."""
        self._warnings.append(f"duplicates of the message were not looked for: {failed.reason}")
        self._end(failed)

    def _end(self, answer: str | Failed | None) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            self._claims.let_go(claim, answer)
