"""A delivery that stores its message only if none with the same key has been: decided when the message is whole."""

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from maildir_async.commit.entry import Chunks, Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.format.content import Content
from maildir_async.format.delivered import Delivered
from maildir_async.format.names import key_of
from maildir_async.format.options import check_duplicate_key
from maildir_async.format.states import Event
from maildir_async.receive.delivery import Delivery
from maildir_async.receive.gate import Gate
from maildir_async.receive.messages import BytesLike
from maildir_async.receive.submission import Maildir
from maildir_async.receive.user_code import failure_of

__all__ = ["GatedDelivery", "duplicate_of", "gated"]


def gated(maildir: Maildir, mailbox: Mailbox, duplicate_key: bytes | str | bool) -> "Callable[..., GatedDelivery]":
    """Return what makes a delivery to *mailbox* with that key.

    TypeError or ValueError for a key that is not valid, ValueError for a *maildir* without a filter.
    """
    key = check_duplicate_key(duplicate_key)
    if maildir.duplicates is None:
        raise ValueError("duplicate_key needs a filter: Maildir(..., duplicates=DuplicateFilter(...))")
    return partial(GatedDelivery, gate=maildir.duplicates.gate(mailbox, key))


class GatedDelivery(Delivery):
    """A delivery with a *gate* between the end of its message and group commit. Its other arguments are as there.

    A message that turns out to be a duplicate is given up as if it had been aborted, and ends as delivered.
    """

    def __init__(
        self,
        maildir: Maildir,
        mailbox: Mailbox,
        plan: Plan,
        *,
        gate: Gate,
        size_limit: int | None,
        on_progress: Callable[[int], object] | None,
        deadline: timedelta,
    ) -> None:
        super().__init__(maildir, mailbox, plan, size_limit=size_limit, on_progress=on_progress, deadline=deadline)
        self._gate = gate
        self._at_gate: asyncio.Task[str | None] | asyncio.Task[Delivered] | None = None
        self._duplicate: Delivered | None = None

    def take(self, chunk: BytesLike) -> None:
        """Take a chunk. Ignored after the end or an abort."""
        self._gate.observe(chunk)
        super().take(chunk)

    def _commit_if_written(self) -> None:
        if self._at_gate is None:
            super()._commit_if_written()

    def _submit(self, chunks: Chunks) -> None:
        if isinstance(chunks, bytes):  # a message that was whole at once
            self._gate.observe(chunks)
        self._at_gate = entering = self._loop.create_task(self._gate.enter())
        entering.add_done_callback(lambda _: self._entered(entering, chunks))

    def _entered(self, entering: asyncio.Task[str | None], chunks: Chunks) -> None:
        self._at_gate = None
        # The loop cancels all tasks before it ends.
        failure = asyncio.CancelledError() if entering.cancelled() else entering.exception()
        if self.verdict is not None:  # given up meanwhile
            self._end_if_quiet()
        elif failure is not None:
            self._abort(failure if isinstance(failure, asyncio.CancelledError) else failure_of(failure))
        elif (first := entering.result()) is None:
            super()._submit(chunks)
        else:
            self._give_up_as(duplicate_of(first, self.submission.mailbox, self.submission.plan, *self._sizes(chunks)))

    def _give_up_as(self, duplicate: Delivered) -> None:
        self._duplicate = duplicate
        self.verdict = _DuplicateError()
        if self.place is not None:
            self.place.release()
        if self.reception is not None:
            self.reception.give_up()
        self._end_if_quiet()

    def _sizes(self, chunks: Chunks) -> tuple[int, int]:
        """Return what would have been stored, in both sizes; 0 for what only the helper process knows."""
        file, plan = self.submission.file, self.submission.plan
        content = Content(prefix=plan.prefix, newline=plan.newline, strip_from_line=plan.strip_from_line)
        if file is not None:
            content = file.content
        if content.size and not content.wire_size:
            return 0, 0
        for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
            content.feed(bytes(chunk))
        content.end()
        return content.size, content.wire_size

    def _settled(self, entry: Entry) -> None:
        if entry.delivered is None or self.verdict is not None:
            super()._settled(entry)
            return
        self._at_gate = remembering = self._loop.create_task(self._gate.remember(entry.delivered))
        remembering.add_done_callback(lambda _: self._remembered(remembering, entry))

    def _remembered(self, remembering: asyncio.Task[Delivered], entry: Entry) -> None:
        self._at_gate = None
        if not remembering.cancelled() and remembering.exception() is None:
            entry.delivered = remembering.result()
        super()._settled(entry)

    def _abort(self, verdict: BaseException) -> bool:
        is_given_up = super()._abort(verdict)
        if is_given_up and self._at_gate is not None:
            self._at_gate.cancel()
        return is_given_up

    def _end_if_quiet(self) -> None:
        if self._at_gate is not None:
            return
        if self._duplicate is None:
            super()._end_if_quiet()
        elif not (self.reception is not None and self.reception.busy) and not self._is_over:
            self._end(Event.COMMIT, self._duplicate)

    @property
    def _is_over(self) -> bool:
        return self.ending is None or self.ending.done()

    def _end(self, event: Event, outcome: Delivered | BaseException) -> None:
        self._gate.leave()
        super()._end(event, outcome)


class _DuplicateError(Exception):
    """The verdict on a message that is stored already. Nobody sees it."""


def duplicate_of(first: str, mailbox: Mailbox, plan: Plan, size: int, wire_size: int) -> Delivered:
    """Return what is told of a message that was asked for by *plan*, and is the same as *first*."""
    return Delivered(
        path=first,
        key=key_of(os.path.basename(first)),
        folder=mailbox.folder,
        flags=plan.flags,
        keywords=plan.keywords,
        size=size,
        wire_size=wire_size,
        durability=plan.durability,
        duplicate=True,
        queued_s=0.0,
        commit_s=0.0,
    )
