"""One message to several maildirs: written once for each file system, and hard-linked into the others there.

The maildirs are grouped by file system. In each group the first that takes the message gets its file, synced once; the
others get a link to it, and each directory is synced as ever. Where a link cannot be (too many of them, a file system
that knows none, a boundary that its number did not show), the message is copied from that file. What becomes of one
maildir is no other's concern.
"""

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, Unpack

from maildir_async.commit.admission import Place
from maildir_async.commit.waiting import run_in_thread, until_done
from maildir_async.errors import AppendError, BusyError, MaildirError, busy_error
from maildir_async.format.content import check_prefix
from maildir_async.format.delivered import Delivered, Durability
from maildir_async.format.html import failure, fields_of, table
from maildir_async.format.options import MessageOptions
from maildir_async.format.results import Results
from maildir_async.group_commit import GroupCommit
from maildir_async.mailbox.fan_out_gates import key_for, pass_gates, tell_gates
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.shared_file import Part, SharedFile, find_same
from maildir_async.receive.messages import BytesLike, check_chunk
from maildir_async.receive.spool import CHUNK_SIZE

__all__ = ["FanOut", "Outcome"]

#: From strong to weak: a file that one maildir wants synced is synced, whatever the others ask.
_STRONGEST: Final = (Durability.FULL, Durability.FILE, Durability.NONE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a message in one maildir. One of `delivered` and `error` is None.

    Attributes:
        maildir: which.
        delivered: as `Maildir.append` returns it.
        error: as `Maildir.append` raises it.

    """

    maildir: Maildir
    delivered: Delivered | None
    error: MaildirError | None

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("maildir", self.maildir.path)]
        if self.delivered is not None:
            return table("Delivered", rows + fields_of(self.delivered))
        if self.error is not None:
            rows += [("error", failure(self.error)), ("smtp_reply", self.error.smtp_reply)]
        return table("Not delivered", rows)


class FanOut:
    """A message on its way to several maildirs: fed with `send`, ended with `finish`, or given up with `abort`.

    From `open` on until it is settled or given up it has a place among the pending deliveries of each `GroupCommit`;
    all that is done for it shares that. As an async context manager it gives up when the block raises, and waits until
    nothing acts for it any more.

    Args:
        maildirs: where to.
        prefixes: what is stored before the message in each of them, instead of the option *prefix* for all. Those
            that differ in it share no file.
        folders: where in each of them, instead of the option *folder* for all.
        options: as `deliver` has them. What is wrong with them is raised when the message begins to be stored.

    """

    def __init__(
        self,
        maildirs: Sequence[Maildir],
        *,
        prefixes: Sequence[bytes] | None = None,
        folders: Sequence[str | None] | None = None,
        **options: Unpack[MessageOptions],
    ) -> None:
        prefix = check_prefix(options.pop("prefix", b""))
        if prefixes is None:
            prefixes = [prefix] * len(maildirs)
        else:
            checked = {prefix: check_prefix(prefix) for prefix in set(prefixes)}
            prefixes = [checked[prefix] for prefix in prefixes]
        where = [options.pop("folder", None)] * len(maildirs) if folders is None else folders
        self._parts = [Part(*each) for each in zip(maildirs, prefixes, where, strict=True)]
        limits = [maildir.size_limit for maildir in maildirs if maildir.size_limit is not None]
        if options.get("size_limit") is None and limits:
            options["size_limit"] = min(limits)
        if options.get("durability") is None and maildirs:
            options["durability"] = min((maildir.durability for maildir in maildirs), key=_STRONGEST.index)
        duplicate_key = options.pop("duplicate_key", None)
        self._is_filtered = duplicate_key is not None
        self._key = None if duplicate_key is None else key_for(maildirs, duplicate_key)
        self._options = options
        #: What has come, until a file holds it: it may have to be given to another maildir than the first.
        self._head: list[bytes] | None = []
        self._head_size = 0
        self._places: dict[GroupCommit, Place] | None = None
        self._waiting: asyncio.Future[None] | None = None  # for one of them
        self._groups: list[SharedFile] | None = None
        self._over = False
        self._refusal: MaildirError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        self.abort()
        if exc_type is not GeneratorExit:  # or it is thrown away, with its loop
            await self._until_over()

    async def open(self, cost: int = 2 * CHUNK_SIZE) -> None:
        """Wait for a place among the pending deliveries. `send` and `finish` do so if nobody has.

        `BusyError` if no `GroupCommit` has one, nor waits; that is the outcome for every maildir then. When this is
        cancelled, or raises, it has none.

        Args:
            cost: bytes that the message may hold in memory; as many again for each further prefix.

        """
        if self._places is not None:
            raise RuntimeError("it has been opened before")
        self._places = {}
        cost *= len({part.prefix for part in self._parts}) or 1
        try:
            # In the same order for all: of two messages for the same two, neither waits for what the other has.
            for commit in sorted({part.maildir.commit for part in self._parts}, key=id):
                if not self._over:
                    await self._request_place(commit, cost)
        except BaseException:
            self.abort()
            raise
        if self._parts and not self._places and not self._over:
            self.abort()
            raise busy_error()

    async def _request_place(self, commit: GroupCommit, cost: int) -> None:
        loop = asyncio.get_running_loop()
        place = commit.request_place(cost, loop, self._wake, self._lost)
        if place is None:
            for part in self._parts:
                if part.maildir.commit is commit:
                    part.error = busy_error()
            return
        assert self._places is not None
        self._places[commit] = place
        while not (place.granted or self._over):  # it may be another place's grant that wakes this
            self._waiting = loop.create_future()
            await self._waiting

    def _lost(self) -> None:
        """Give back all places: the loop was closed while one was waited for. In any thread."""
        for place in list((self._places or {}).values()):
            place.release()

    async def send(self, data: BytesLike) -> None:
        """Take a chunk, and wait while the disk is behind. What fails is told by `finish`, and the rest is ignored.

        TypeError for a chunk that is not bytes.
        """
        check_chunk(data)
        await self._open_if_not_yet()
        if self._over:
            return
        chunk = data if isinstance(data, bytes) else bytes(data)
        if self._head is not None:
            self._head.append(chunk)
            self._head_size += len(chunk)
        if self._groups is None:
            if self._head_size > CHUNK_SIZE:
                await self._begin(whole=False)
            return
        for group in self._groups:
            await group.send(chunk, self._head)
        if not any(group.needs_head for group in self._groups):
            self._head = None

    def put_into(self, number: int, folder: str) -> None:
        """Have the message go to that folder of the maildir of that *number*. Before it is sent."""
        self._parts[number].put_into(folder)

    def fail(self, exc: MaildirError) -> None:
        """Refuse the message: *exc* is the outcome for every maildir. Too late after `finish`."""
        self._refusal = exc
        self.abort()

    def abort(self) -> None:
        """Give up. Never waits: what has been written is removed by worker threads. Too late after `finish`."""
        self._over = True
        for group in self._groups or ():
            group.cancel()
        self._release_places()

    async def finish(self) -> list[Outcome]:
        """The message is whole: return when each maildir has its outcome: an error, if it has been given up.

        When this is cancelled, what can still be is given up, and `outcomes` tells what has become of the message by
        the time that the cancellation is raised: it may have been too late.
        """
        failure: BaseException | None = None
        try:
            await self._settle()
        except (Exception, asyncio.CancelledError) as exc:
            failure = exc
        self.abort()
        await self._until_over()
        if failure is not None:
            raise failure
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """Return what has become of the message in each maildir, when `finish` has returned or raised."""

        def outcome(part: Part) -> Outcome:
            told = part.same_as or part
            error = self._refusal or told.error or _given_up(part)
            return Outcome(part.maildir, told.delivered, None if told.delivered else error)

        return Results(map(outcome, self._parts))

    async def _settle(self) -> None:
        await self._open_if_not_yet()
        if self._over:
            return
        if self._groups is None:
            await self._begin(whole=True)
        for group in self._groups or ():
            group.end()
        for group in self._groups or ():
            await group.settle(self._head)

    async def _until_over(self) -> None:
        """Return when nothing acts for the message any more: all of it, also when this is cancelled meanwhile."""
        interrupted: asyncio.CancelledError | None = None
        steps: list[Callable[[], Awaitable[None]]] = [group.until_over for group in self._groups or ()]
        if self._is_filtered:
            steps.append(partial(tell_gates, self._parts))
        for step in steps:
            try:
                await step()
            except asyncio.CancelledError as exc:
                interrupted = exc
        if interrupted is not None:
            raise interrupted

    async def _open_if_not_yet(self) -> None:
        if self._places is None and not self._over:
            with contextlib.suppress(BusyError):  # which is the outcome
                await self.open()

    def _release_places(self) -> None:
        for place in (self._places or {}).values():
            place.release()
        self._wake()

    def _wake(self) -> None:
        """Have `open` go on, which has a place now, or needs none any more."""
        if self._waiting is not None and not self._waiting.done():
            with contextlib.suppress(RuntimeError):  # a closed loop, which runs nobody that waits
                self._waiting.set_result(None)

    async def _begin(self, *, whole: bool) -> None:
        """Have the first maildir of each group take what has come."""
        assert self._places is not None
        parts = self._parts
        keys = list[object](part.maildir.commit for part in parts)
        if len({part.prefix for part in parts}) < len(parts):
            crew = parts[0].maildir.commit.streams.crew
            look = run_in_thread(asyncio.get_running_loop(), crew, partial(find_same, parts, self._places))
            keys = await until_done(look)
        if self._is_filtered:
            head, is_over = self._head or (), lambda: self._over
            asked = [part for part in parts if part.maildir.commit in self._places]
            await pass_gates(asked, self._key, head, self._options, whole=whole, is_over=is_over)
        if self._over:  # given up meanwhile
            return
        by_key: dict[object, list[Part]] = {}
        for key, part in zip(keys, parts, strict=True):
            if part.same_as is None and part.delivered is None and part.maildir.commit in self._places:
                by_key.setdefault((key, part.prefix), []).append(part)
        self._groups = [
            SharedFile(group, self._places[group[0].maildir.commit], self._options) for group in by_key.values()
        ]
        for group in self._groups:
            group.begin(self._head or [], whole=whole)


def _given_up(part: Part) -> MaildirError:
    text = f"{part.maildir.path}: the delivery was given up"
    return AppendError(text, errno=errno.ECANCELED, stage="receive")
