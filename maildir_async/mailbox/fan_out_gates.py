"""The gates of one message to several maildirs, each of which has a filter of its own, or none."""

import asyncio
from collections.abc import Callable, Sequence

from maildir_async.format.content import Content
from maildir_async.format.delivered import Durability
from maildir_async.format.options import MessageOptions, check_duplicate_key
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.shared_file import Part
from maildir_async.receive.gated import duplicate_of
from maildir_async.receive.submission import plan_of

__all__ = ["key_for", "pass_gates", "tell_gates"]


def key_for(maildirs: Sequence[Maildir], duplicate_key: bytes | str | bool) -> bytes | None:
    """Return the key, or None for the Message-ID. What is wrong with it is raised as by an append.

    ValueError if none of *maildirs* has a filter. In those that have none nothing is looked for.
    """
    key = check_duplicate_key(duplicate_key)
    if all(maildir.duplicates is None for maildir in maildirs):
        raise ValueError("duplicate_key needs a filter: Maildir(..., duplicates=DuplicateFilter(...))")
    return key


async def pass_gates(
    parts: Sequence[Part],
    key: bytes | None,
    head: Sequence[bytes],
    options: MessageOptions,
    *,
    whole: bool,
    is_over: Callable[[], bool],
) -> None:
    """Give each of *parts* that has the message already its outcome, and the others with a filter their gates.

    *head* is what has come of the message: all of it if it is *whole*. On return, and if this is cancelled, every gate
    that has been passed is known to its part; `tell_gates` is to follow.
    """
    first_of = dict[tuple[str, str], Part]()
    for part in parts:
        if part.same_as is None and part.maildir.duplicates is not None:
            first = first_of.setdefault((part.maildir.duplicates.path, part.mailbox.directories.path), part)
            if first is not part:  # with another prefix
                part.same_as = first
    # In the same order for all: of two messages for the same two, neither waits for what the other has.
    for _, part in sorted(first_of.items(), key=lambda item: item[0]):
        if is_over():
            return
        assert part.maildir.duplicates is not None
        gate = part.maildir.duplicates.gate(part.mailbox, key)
        for chunk in head:
            gate.observe(chunk)
        first_path = await gate.enter()
        if first_path is None:
            part.gate = gate
            continue
        plan = plan_of(
            options.get("durability") or Durability.FULL,
            flags=options.get("flags", ""),
            received_at=options.get("received_at"),
            prefix=part.prefix,
            newline=options.get("newline", "keep"),
            keywords=options.get("keywords", ()),
            strip_from_line=options.get("strip_from_line", False),
        )
        content = Content(prefix=plan.prefix, newline=plan.newline, strip_from_line=plan.strip_from_line)
        if whole:
            for chunk in head:
                content.feed(chunk)
            content.end()
        part.delivered = duplicate_of(first_path, part.mailbox, plan, content.size, content.wire_size)


async def tell_gates(parts: Sequence[Part]) -> None:
    """Have what has been delivered remembered, and let the others go: also when this is cancelled meanwhile."""
    interrupted: asyncio.CancelledError | None = None
    for part in parts:
        gate, part.gate = part.gate, None
        if gate is not None and part.delivered is not None:
            try:
                part.delivered = await gate.remember(part.delivered)
            except asyncio.CancelledError as exc:
                interrupted = exc
        elif gate is not None:
            gate.leave()
    if interrupted is not None:
        raise interrupted
