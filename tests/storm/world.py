"""The world of a storm: its maildirs, loops, disks and processes, and what each step does to them."""

import asyncio
import errno
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from maildir_async import Delivered, DuplicateFilter, GroupCommit, Maildir, Quota
from maildir_async.disk.posix import PosixDisk
from maildir_async.testing import Fault

from .deliveries import Delivery, Message, body_of, options_of
from .disk import Gate, StormDisk
from .loops import Loop, rest
from .loops import turns as take_turns
from .processes import Child
from .schedules import Step

__all__ = ["PATIENCE_S", "Found", "World", "look"]

#: Seconds after which what has not come to its end hangs.
PATIENCE_S = 60.0

#: Seconds without progress after which a round goes on without what hangs.
SOON_S: Final = 0.008

#: Which messages are there: message, maildir, folder as its directory's name: how often.
Found = Counter[tuple[int, int, str]]


class World:
    """All there is while one schedule runs.

    Args:
        root: an empty directory.

    Attributes:
        faults: what has been found wrong so far.
        deliveries: by their first message.
        children: other processes.
        removed: what the reader has removed.
        is_read: whether it has removed anything.
        swept: what the sweeper has removed from ``tmp/``.

    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults = list[str]()
        self.deliveries = dict[int, Delivery]()
        self.children = dict[int, Child]()
        self.removed: Found = Counter()
        self.gates = dict[int, Gate]()
        self.commits = list[GroupCommit]()
        self.maildirs = list[Maildir]()
        self.upkeep = list[asyncio.Task[Any]]()
        self.has_failing_unlink = False
        self.loops = [Loop(self.faults, apart=False), Loop(self.faults, apart=True)]
        self.disk: StormDisk = StormDisk()
        self.quota: Quota | None = None
        self.is_helped = False
        self.knows_syncs = True

    # What there is.

    def do(self, this: Step) -> None:
        """Make one step. One that is about what is not there does nothing."""
        method: Callable[..., None] = getattr(self, f"_{this.kind}")
        method(**this.what)
        self.note_ends()

    def _world(
        self,
        *,
        boxes: int = 1,
        made: bool = False,
        quota: int | None = None,
        filters: bool = False,
        max_pending: int = 4096,
        wait: bool = True,
        helper: bool = False,
        syncfs: bool = False,
        kernel: bool = False,
        commits: int = 1,
    ) -> None:
        self.is_helped = helper
        self.disk = StormDisk(kernel=kernel)
        self.knows_syncs = not kernel and not helper
        for _ in range(commits):
            commit = GroupCommit(max_pending=max_pending, wait=wait, syncfs=syncfs, helper_process=helper)
            commit.queue.patience_s = commit._watch._interval_s = SOON_S
            self.commits.append(commit)
        self.quota = None if quota is None else Quota(messages=quota)
        for box in range(boxes):
            if made:
                for name in ("tmp", "new", "cur"):
                    os.makedirs(self.root / f"b{box}" / name, mode=0o700)
            self.maildirs.append(self.maildir(box, filters=filters))
        self.filters = filters

    def maildir(self, box: int, *, filters: bool = False) -> Maildir:
        """Return an object for a maildir."""
        disk = PosixDisk() if self.is_helped else self.disk
        return Maildir(
            self.root / f"b{box}",
            disk=disk,
            commit=self.commits[box % len(self.commits)],
            quota=self.quota,
            duplicates=DuplicateFilter(self.root / "seen.sqlite") if filters else None,
        )

    # Deliveries.

    def _start(
        self,
        how: str,
        numbers: Sequence[int],
        boxes: Sequence[int],
        size: int,
        *,
        loop: int = 0,
        folder: str | None = None,
        guard: str | None = None,
        keywords: Sequence[str] = (),
        flags: str = "",
        durability: str | None = None,
        key: str | None = None,
        atomic: bool = False,
    ) -> None:
        boxes = [box for box in boxes if box < len(self.maildirs)]
        if not boxes:
            return
        delivery = Delivery(
            how,
            loop,
            [Message(number, size) for number in numbers],
            [self.maildirs[box] for box in boxes],
            boxes,
            folder,
            options_of(keywords=keywords, flags=flags, durability=durability, key=key),
            guard,
            key,
            atomic,
        )
        self.deliveries[numbers[0]] = delivery
        delivery.task = self.loops[loop].create_task(delivery.run())

    def _append(self, *, number: int, box: int, size: int, **options: Any) -> None:
        self._start("append", [number], [box], size, **options)

    def _task(self, *, number: int, box: int, size: int, **options: Any) -> None:
        self._start("task", [number], [box], size, **options)

    def _stream(self, *, number: int, box: int, size: int, how: str, **options: Any) -> None:
        self._start(how, [number], [box], size, **options)

    def _many(self, *, numbers: list[int], box: int, size: int, **options: Any) -> None:
        self._start("many", numbers, [box], size, **options)

    def _fan_out(self, *, number: int, size: int, **options: Any) -> None:
        self._start("fan_out", [number], range(len(self.maildirs)), size, **options)

    def _feed(self, *, number: int, end: str = "") -> None:
        delivery = self.deliveries.get(number)
        if delivery is not None and not delivery.is_over:

            async def feed() -> None:
                delivery.feed(end)

            self._on(delivery.loop, feed)

    def _cancel(self, *, number: int, how: str) -> None:
        delivery = self.deliveries.get(number)
        if delivery is None or delivery.is_over:
            return

        async def cancel() -> None:
            for _ in range(3 if how == "again" else 1):
                delivery.cancel(how)
                await asyncio.sleep(0)

        self._on(delivery.loop, cancel)

    # Loops.

    def _on(self, loop: int, coroutine: Callable[[], Any]) -> None:
        self.loops[loop].begin(coroutine)
        self.loops[loop].end()

    def _both(self, coroutine: Callable[[], Any]) -> None:
        for loop in reversed(self.loops):  # the one in this thread last
            loop.begin(coroutine)
        for loop in self.loops:
            loop.end()

    def _run(self, *, turns: int) -> None:
        self._both(lambda: take_turns(turns))

    def _rest(self) -> None:
        """Let all that can happen happen: until no call of a disk has been made for a moment."""
        deadline = time.monotonic() + 20 * SOON_S
        calls = -1
        while calls != len(self.disk.calls) and time.monotonic() < deadline:
            calls = len(self.disk.calls)
            self._both(lambda: rest(SOON_S / 4))

    def _close(self, *, loop: int) -> None:
        for delivery in self.deliveries.values():
            if delivery.loop == loop and not delivery.is_over:
                delivery.vanish()
        if loop == 0:
            self.upkeep.clear()
        self.loops[loop].vanish()

    # The disk.

    def _fault(self, *, operation: str, error: str, nth: int = 1, path: str = "", late: bool = False) -> None:
        self.has_failing_unlink |= operation == "unlink"
        self.disk.faults.append(Fault(operation, getattr(errno, error), nth=nth, path=path, late=late))

    def _hang(self, *, number: int, operation: str, nth: int = 1, path: str = "", error: str = "") -> None:
        self.has_failing_unlink |= bool(error) and operation in ("", "unlink")
        gate = self.gates[number] = Gate()
        fails_with = getattr(errno, error) if error else None
        self.disk.faults.append(Fault(operation, fails_with, nth=nth, path=path, gate=gate))

    def _open(self, *, number: int) -> None:
        if number in self.gates:
            self.gates[number].open()

    def _slow(self, *, operation: str) -> None:
        self.disk.faults.append(Fault(operation, nth=0, gate=lambda: time.sleep(0.002)))

    def _shorten(self, *, nth: int, to: int) -> None:
        self.disk.faults.append(Fault("write", nth=nth, shorten=to))

    def _heal(self) -> None:
        self.disk.faults = [fault for fault in self.disk.faults if isinstance(fault.gate, Gate)]

    # Others at the maildir.

    def _read(self, *, box: int) -> None:
        """As a mail reader has seen it: what is in new/ goes to cur/."""
        for new in sorted(self.root.glob(f"b{box}/**/new")):
            for name in os.listdir(new):
                os.rename(new / name, new.parent / "cur" / f"{name}:2,S")

    def _remove(self, *, box: int, count: int) -> None:
        """As a reader expunges: a few of those that are there."""
        if self.is_helped:  # what is gone when its helper dies is delivered anew, as it has to be
            return
        self._read(box=box)
        for path in sorted(self.root.glob(f"b{box}/**/cur/*"))[:count]:
            self.removed[_which(self.root, path, self.faults)] += 1
            os.unlink(path)
        (self.root / f"b{box}" / "maildirsize").unlink(missing_ok=True)

    def _sweep(self, *, box: int) -> None:
        """Sweep tmp/, where no other process delivers."""
        if box < len(self.maildirs) and all(child.is_over for child in self.children.values()):
            task = self.loops[0].create_task(self._swept(self.maildirs[box]))
            self.upkeep.append(task)

    async def _swept(self, maildir: Maildir) -> None:
        try:
            await maildir.clean_tmp(timedelta())
        except Exception:  # an error of the disk
            return

    def _aclose(self, *, box: int) -> None:
        if box < len(self.maildirs):
            self.upkeep.append(self.loops[0].create_task(self.maildirs[box].aclose()))

    def _fork(self, *, numbers: list[int], box: int) -> None:
        """A child goes on with the same objects, and ends before anything else happens."""
        if box >= len(self.maildirs):
            return
        maildir = self.maildirs[box]

        async def deliver(message: Message) -> Delivered:
            self.disk.start_afresh()
            return await maildir.append(message.body)

        child = self.children[numbers[0]] = Child([Message(number, 50) for number in numbers], box, deliver)
        child.wait()

    def _other(self, *, numbers: list[int], box: int) -> None:
        """Another process begins to deliver, with objects of its own."""
        if box >= len(self.maildirs):
            return
        path, quota = self.maildirs[box].path, self.quota

        async def deliver(message: Message) -> Delivered:
            return await Maildir(path, quota=None if quota is None else quota).append(message.body)

        self.children[numbers[0]] = Child([Message(number, 50) for number in numbers], box, deliver)

    def _kill(self, *, number: int) -> None:
        if number in self.children:
            self.children[number].kill()

    def _kill_helper(self) -> None:
        for commit in self.commits:
            pid = commit.statistics().helper_pid
            if pid is not None:
                os.kill(pid, 9)

    # Its end.

    def note_ends(self) -> None:
        """Look where the messages of deliveries that have just ended are."""
        ended = [each for each in self.deliveries.values() if each.left_at is None and each.is_over]
        if not ended:
            return
        found = look(self.root, self.faults) + self.removed
        there = {(number, box) for number, box, _ in found}
        for delivery in ended:
            delivery.left_at = there if not delivery.is_vanished else set()

    def calm(self) -> None:
        """Heal all that is wrong, and see everything through to its end."""
        self.disk.faults.clear()
        for gate in self.gates.values():
            gate.open()
        for delivery in self.deliveries.values():
            if not delivery.is_over:
                delivery.feed("end")
        self._until(lambda: all(delivery.is_over for delivery in self.deliveries.values()), "a delivery")
        for child in self.children.values():
            child.wait()
            self.faults += child.faults
        for maildir in self.maildirs:
            self.upkeep.append(self.loops[0].create_task(maildir.aclose()))
        self._until(lambda: all(task.done() for task in self.upkeep), "upkeep")
        for task in self.upkeep:
            if not task.done():
                continue
            if not task.cancelled() and (exc := task.exception()) is not None:
                self.faults.append(f"upkeep failed: {exc!r}")
        self.upkeep.clear()
        for commit in self.commits:
            if not commit.wait_idle(PATIENCE_S):
                self.faults.append("a worker thread does not come to its end")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                self.faults.append(f"{what} does not come to its end")
                for delivery in self.deliveries.values():
                    if not delivery.is_over:
                        self.faults.append(f"  {delivery.how} of {[each.number for each in delivery.messages]}")
                self.faults += _standing()
                return
            self._both(lambda: rest(0.0005))
            self.note_ends()

    def end(self) -> None:
        """Deliver once more to each maildir, and close all."""

        async def once_more() -> None:
            for box in range(len(self.maildirs)):
                maildir = self.maildir(box)
                try:
                    await asyncio.wait_for(maildir.append(Message(-1 - box, 30).body), PATIENCE_S)
                except Exception as exc:
                    if not (self.quota is not None and "quota" in str(exc)):
                        self.faults.append(f"the maildir takes no more: {exc!r}")
                await asyncio.wait_for(maildir.aclose(), PATIENCE_S)
            for commit in self.commits:
                await asyncio.wait_for(commit.aclose(), PATIENCE_S)

        self._on(0, once_more)
        for loop in self.loops:
            loop.close()

    def let_go(self) -> None:
        """Open what holds, kill what runs: also after a mistake of the rig."""
        for gate in self.gates.values():
            gate.open()
        for child in self.children.values():
            child.kill()


def _standing() -> list[str]:
    """Return where the library's threads stand."""
    frames = sys._current_frames()
    return [
        f"  {thread.name}: " + " < ".join(f"{each.name}:{each.lineno}" for each in reversed(stack[-6:]))
        for thread in threading.enumerate()
        if thread.name.startswith("maildir-") and (frame := frames.get(thread.ident or 0)) is not None
        if (stack := traceback.extract_stack(frame))
    ]


def look(root: Path, faults: list[str]) -> Found:
    """Return which messages are there; what is torn is a fault."""
    found: Found = Counter()
    for directory, names, files in os.walk(root):
        if os.path.basename(directory) not in ("new", "cur"):
            names[:] = [name for name in names if name != "tmp"]
            continue
        for name in files:
            path = Path(directory, name)
            try:
                found[_which(root, path, faults)] += 1
            except FileNotFoundError:  # taken back
                continue
    return found


def _which(root: Path, path: Path, faults: list[str]) -> tuple[int, int, str]:
    """Return which message a file is."""
    content = path.read_bytes()
    box, *folder = path.relative_to(root).parts[:-2]
    head = content[:40].partition(b"\n")[0]
    try:
        number, size = map(int, head.removeprefix(b"m").split())
    except ValueError:
        number, size = -1000, 0
    if content != body_of(number, size):
        fault = f"torn: {path.relative_to(root)}: {len(content)} bytes of {head[:20]!r}"
        if fault not in faults:
            faults.append(fault)
    return number, int(box.removeprefix("b")), folder[0] if folder else ""
