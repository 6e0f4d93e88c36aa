"""What has to be true after each schedule, and nothing else has to."""

import contextlib
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from maildir_async import AppendTask, Delivered, Durability, GroupCommit, UncertainAppendError
from maildir_async.commit.batch import Batch, names_in_use
from maildir_async.commit.entry import Entry
from maildir_async.commit.rounds import Round
from maildir_async.commit.target import Target
from maildir_async.disk import threads as library_threads
from maildir_async.disk.streamfile import StreamFile, streams_in_use
from maildir_async.format.quota import parse_held
from maildir_async.mailbox.transaction import Ledger
from maildir_async.receive.delivery import Delivery as LibraryDelivery
from maildir_async.receive.feed import Feed
from maildir_async.receive.reception import Reception

from .deliveries import ABSENT, DOUBLE, EITHER, ONCE, Delivery, body_of
from .schedules import Schedule
from .world import Found, World, look

__all__ = ["faults_of"]

#: What anyio's scopes and asyncio's queues say that are thrown away after their loop.
_THROWN_AWAY: Final = ("no running event loop", "Event loop is closed", "Not currently running on any")

#: Of which none may be left.
_OWN_TYPES: Final = (*(AppendTask, LibraryDelivery, Entry, Batch, Round, Target, Ledger, StreamFile, Reception, Feed),)


def faults_of(root: Path, schedule: Schedule) -> list[str]:
    """Run *schedule* in *root*, an empty directory, and return what is wrong then."""
    threads, objects, descriptors = _threads(), _objects(), _descriptors()
    faults = list[str]()
    with _heard(faults), _short_lived_threads():
        world = World(root)
        try:
            for each in schedule:
                world.do(each)
            world.calm()
            _check(world)
            world.end()
            _check_quota(world)
        finally:
            world.let_go()
        faults += world.faults
        del world
        if not any("come to its end" in fault for fault in faults):
            faults += _left(root, threads, objects, descriptors)
    body_of.cache_clear()
    return faults


def _left(
    root: Path, threads: set[threading.Thread], objects: set[tuple[int, str]], descriptors: set[str]
) -> Iterator[str]:
    """Yield what is not back where it was: threads, descriptors, what the library holds in memory."""
    yield from _unless_soon(lambda: sorted(thread.name for thread in _threads() - threads), "a thread is left")
    gc.collect()  # what an exception's traceback keeps goes with that
    yield from _unless_soon(lambda: sorted(name for _, name in _objects() - objects), "in memory is left")
    yield from _unless_soon(lambda: sorted(_descriptors() - descriptors), "a descriptor is left")
    yield from _unless_soon(lambda: sorted(names_in_use() | streams_in_use()), "a name is still in use")


def _unless_soon(left: Callable[[], list[str]], what: str) -> Iterator[str]:
    """Yield a fault, *what* it is, unless nothing is *left* in a moment."""
    deadline = time.monotonic() + 2
    while found := left():
        if time.monotonic() > deadline:
            yield f"{what}: {dict(Counter(found))}"
            return
        gc.collect()
        time.sleep(0.002)


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(("maildir-", "storm-"))}


def _objects() -> set[tuple[int, str]]:
    gc.collect()
    return {(id(each), type(each).__name__) for each in gc.get_objects() if type(each) in _OWN_TYPES}


def _descriptors() -> set[str]:
    found = set[str]()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if not target.startswith("/proc/"):
                found.add(f"{fd} {target}")
    return found


@contextlib.contextmanager
def _heard(faults: list[str]) -> Iterator[None]:
    """Have what nobody has caught among the *faults*."""

    def in_thread(args: threading.ExceptHookArgs, /) -> None:
        faults.append(f"in a thread: {args.exc_value!r}")

    def unraisable(args: Any, /) -> None:
        if any(words in str(args.exc_value) for words in _THROWN_AWAY):
            return
        faults.append(f"nobody could be told: {args.exc_value!r}, {args.err_msg} {args.object!r}")

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = in_thread, unraisable
    try:
        yield
        gc.collect()
    finally:
        threading.excepthook, sys.unraisablehook = before


@contextlib.contextmanager
def _short_lived_threads() -> Iterator[None]:
    """Have idle threads end at once, so that one that stays has something to do; and have them take turns often."""
    before, interval_s = library_threads.IDLE_S, sys.getswitchinterval()
    library_threads.IDLE_S = 0.01  # type: ignore[misc]
    sys.setswitchinterval(0.0003)
    try:
        yield
    finally:
        library_threads.IDLE_S = before  # type: ignore[misc]
        sys.setswitchinterval(interval_s)


def _check(world: World) -> None:
    """See that what is told of each message is true, and that nothing else is there."""
    faults = world.faults
    there = look(world.root, faults)
    found = there + world.removed
    known = set[tuple[int, int]]()
    for delivery in world.deliveries.values():
        _check_delivery(world, delivery, found)
        known |= {(message.number, box) for message in delivery.messages for box in delivery.boxes}
    for child in world.children.values():
        for message in child.messages:
            known.add((message.number, child.box))
            _check_count(world, f"child: m{message.number}", child.verdicts[message.number], message.number, child.box)
    for (number, box, folder), count in found.items():
        if count > 1:
            faults.append(f"m{number} is {count} times in b{box} {folder}")
        if (number, box) not in known:
            faults.append(f"m{number} is in b{box}, where it does not belong")
    _check_keys(world)
    _check_tmp(world)
    for commit in world.commits:
        faults += _unless_soon(partial(_places, commit), "places are kept")
    for maildir in world.maildirs:
        if maildir.statistics().in_flight:
            faults.append(f"in flight: {maildir.statistics()}")
        quota = maildir.mailbox.quota
        shared = None if quota is None else quota._shared_one
        if shared is not None and (shared.reserved, shared.reserved_number) != (0, 0):
            faults.append(f"the quota keeps {shared.reserved} bytes of {shared.reserved_number}")


def _places(commit: GroupCommit) -> list[str]:
    now = commit.statistics()
    return [str(now)] if (now.pending, now.pending_bytes, now.waiting, now.queued) != (0, 0, 0, 0) else []


def _counts(world: World) -> Counter[tuple[int, int]]:
    counts = Counter[tuple[int, int]]()
    for (number, box, _), count in (look(world.root, world.faults) + world.removed).items():
        counts[number, box] += count
    return counts


def _check_count(world: World, what: str, verdict: str, number: int, box: int) -> None:
    count = _counts(world)[number, box]
    if {ONCE: count != 1, ABSENT: count != 0, DOUBLE: count != 0, EITHER: count > 1}[verdict]:
        world.faults.append(f"{what} is {count} times in b{box}, and was to be there: {verdict}")


def _check_delivery(world: World, delivery: Delivery, found: Found) -> None:
    faults, counts = world.faults, Counter[tuple[int, int]]()
    for (number, box, folder), count in found.items():
        counts[number, box] += count
        if number in {each.number for each in delivery.messages}:
            wanted = "" if delivery.folder is None else "." + delivery.folder.replace("/", ".")
            if folder != wanted:
                faults.append(f"m{number} is in the folder {folder!r}, not in {wanted!r}")
    verdicts = delivery.verdicts()
    for message, box, verdict in verdicts:
        count = counts[message.number, box]
        if {ONCE: count != 1, ABSENT: count != 0, DOUBLE: count != 0, EITHER: count > 1}[verdict]:
            told = delivery.error if delivery.result is None else delivery.result
            faults.append(
                f"{delivery.how}: m{message.number} is {count} times in b{box}, and was to be there: {verdict}"
                f" ({told!r}, {getattr(told, '__notes__', '')})"
            )
        was = delivery.left_at is None or (message.number, box) in delivery.left_at
        if count and not was and not delivery.is_vanished:
            faults.append(f"{delivery.how}: m{message.number} came to b{box} after its delivery had ended")
    if delivery.is_atomic:
        there = {counts[message.number, box] for message, box, _ in verdicts}
        is_noted = any(verdict == EITHER for *_, verdict in verdicts) and delivery.error is not None
        if len(there) > 1 and not (is_noted and "taken back" in str(getattr(delivery.error, "__notes__", ""))):
            faults.append(f"a transaction of {len(delivery.messages)} is there in part: {delivery.error!r}")
    _check_future(delivery, faults)
    if world.knows_syncs:
        for each in delivery.result if isinstance(delivery.result, list) else [delivery.result]:
            delivered = getattr(each, "delivered", each)
            _check_durable(world, delivery, delivered)


def _check_durable(world: World, delivery: Delivery, delivered: object) -> None:
    if not isinstance(delivered, Delivered) or delivered.duplicate or delivered.durability is not Durability.FULL:
        return
    if delivered.warnings and any("cannot sync" in warning for warning in delivered.warnings):
        return
    if missing := world.disk.is_durable(delivered.key):
        world.faults.append(f"{delivery.how}: {delivered.path} is told to be durable: {missing}")


def _check_future(delivery: Delivery, faults: list[str]) -> None:
    """What is raised, and what the task's future says, are the same."""
    task, producer = delivery.append_task, delivery.producer
    if task is None or delivery.is_vanished:
        return
    if delivery.error is not None or delivery.result is not None or delivery.guard:
        try:
            future = task.future
        except RuntimeError:
            return  # given up before its start
        if not future.done():
            faults.append(f"{delivery.how}: the future of {delivery.messages[0]} is pending")
        elif delivery.result is not None and (future.cancelled() or future.exception() or future.result() is None):
            faults.append(f"{delivery.how}: the future does not say {delivery.result!r}")
        elif isinstance(delivery.error, UncertainAppendError) and future.exception() is None:
            faults.append(f"{delivery.how}: the future does not say {delivery.error!r}")
    if producer is not None:
        if producer.stops > 1:
            faults.append(f"{delivery.how}: the producer was stopped {producer.stops} times")
        if producer.has_ended and producer.stops and isinstance(delivery.result, Delivered):
            faults.append(f"{delivery.how}: the producer of a message that is delivered was stopped")
        if producer.pushing is not None and delivery.result is not None and producer.pauses > producer.resumes + 1:
            faults.append(f"{delivery.how}: {producer.pauses} pauses, and {producer.resumes} resumptions")


def _check_keys(world: World) -> None:
    """Of one key one message is told as stored, and what is told as a duplicate has another that is there."""
    stored = Counter[tuple[object, ...]]()
    counts = _counts(world)
    by_key: dict[tuple[object, ...], list[int]] = {}
    for delivery in world.deliveries.values():
        if delivery.key is None:
            continue
        for message, box, verdict in delivery.verdicts():
            key: tuple[object, ...] = (delivery.key, box, delivery.folder)
            stored[key] += verdict == ONCE and isinstance(delivery.result, Delivered) and not delivery.result.warnings
            by_key.setdefault(key, []).append(counts[message.number, box])
    for key, count in stored.items():
        if count > 1:
            world.faults.append(f"{count} of the key {key} were stored")
    for delivery in world.deliveries.values():
        if delivery.key is not None:
            for message, box, verdict in delivery.verdicts():
                if verdict == DOUBLE and not sum(by_key[delivery.key, box, delivery.folder]):
                    world.faults.append(f"m{message.number} was taken for a duplicate of none")


def _check_tmp(world: World) -> None:
    """Nothing is left in tmp/, nor a lock: but for what a killed process, or a failing removal, has left.

    What was coming on a loop that was closed goes when that is noticed, which is soon.
    """
    if not world.has_failing_unlink:
        world.faults += _unless_soon(partial(_litter, world), "in tmp/ is left")


def _litter(world: World) -> list[str]:
    killed = {child.pid for child in world.children.values() if child.was_killed}
    return [
        str(path.relative_to(world.root))
        for path in [*world.root.rglob("tmp/*"), *world.root.rglob("*.lock")]
        if not any(f"P{pid}Q" in path.name for pid in killed)
    ]


def _check_quota(world: World) -> None:
    """The file that says what the maildir holds, if there is one, says what is there."""
    if world.quota is None:
        return
    for box, maildir in enumerate(world.maildirs):
        try:
            held = parse_held(Path(maildir.path, "maildirsize").read_bytes())
        except FileNotFoundError:
            continue
        sizes = [
            path.stat().st_size
            for path in Path(maildir.path).rglob("*")
            if path.is_file() and path.parent.name in ("new", "cur")
        ]
        if held is None or (held.bytes, held.messages) != (sum(sizes), len(sizes)):
            world.faults.append(f"maildirsize of b{box} says {held}; there are {sum(sizes)} bytes in {len(sizes)}")
