"""Watching: each message that becomes visible is told of once, whoever delivers it, and nothing is left behind."""

import asyncio
import errno
import gc
import itertools
import os
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncinotify
import pytest

from maildir_async import AppendError, Maildir, NotAMaildirError, WatchedMessage
from maildir_async.disk.shared import is_shared
from maildir_async.mailbox.lookout import Lookout
from maildir_async.testing.faults import Fault, FaultDisk
from support import PATIENCE_S, Gate, forked

#: Longer than a test may take: nothing is seen by polling.
NEVER_S = 1000.0
SOON_S = 0.01

COARSE = 5  # CLOCK_REALTIME_COARSE, which Python has no name for: no file is dated earlier


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture(params=["inotify", "polling"])
def poll_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Runs a test by inotify alone, and by polling where the library is not installed."""
    if request.param == "inotify":
        return NEVER_S
    monkeypatch.setitem(sys.modules, "asyncinotify", None)
    return SOON_S


def make(root: Path) -> None:
    for name in ("tmp", "new", "cur"):
        (root / name).mkdir(parents=True, exist_ok=True)


def put(root: Path, name: str, where: str = "new", body: bytes = b"x") -> None:
    """Deliver as any program does."""
    (root / "tmp" / name).write_bytes(body)
    (root / "tmp" / name).rename(root / where / name)


def next_tick() -> None:
    """Return when all that was done before has an earlier date than the kernel's coarse clock shows."""
    now = time.time()
    while time.clock_gettime(COARSE) <= now:
        pass


numbers = itertools.count()


class Watching:
    """Reads a watch in a task, from when it watches until it is left."""

    def __init__(self, maildir: Maildir, **options: Any) -> None:
        self.seen = list[WatchedMessage]()
        self.watch = maildir.watch(**options)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.watch:
            self.seen.append(message)

    async def keys(self, count: int) -> list[str]:
        """Return the keys of the messages seen, once there are so many; none must follow by itself."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.seen) < count:
            if self.task.done():
                self.task.result()
            assert time.monotonic() < deadline, f"seen: {[message.key for message in self.seen]}"
            await asyncio.sleep(0.002)
        return [message.key for message in self.seen]


@asynccontextmanager
async def watching(root: Path, *, disk: Any = None, **options: Any) -> AsyncIterator[Watching]:
    """Watch *root*; it watches when this is entered: a message that came before that has been seen then."""
    maildir = Maildir(root, **({} if disk is None else {"disk": disk}))
    found = Watching(maildir, **options)
    try:
        yield found
    finally:
        found.task.cancel()
        with suppress(asyncio.CancelledError):
            await found.task


async def begun(found: Watching, root: Path) -> None:
    """Return when it watches, and has told of all so far: it is given messages until it has told of the last."""
    sent = list[str]()
    while not sent or not {message.key for message in found.seen} & set(sent):
        sent.append(f"0.begun{next(numbers)}")
        put(root, sent[-1])
        await asyncio.sleep(0.01)
    await told_of(found, sent[-1])
    found.seen.clear()


async def told_of(found: Watching, key: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while key not in {message.key for message in found.seen}:
        assert time.monotonic() < deadline, f"{key} is not in {[message.key for message in found.seen]}"
        await asyncio.sleep(0.002)


@pytest.mark.every_loop
async def test_each_message_once_in_its_order(root: Path, poll_s: float) -> None:
    """Messages are told of in the order of their publication, whatever directory they come to, and by what method."""
    put(root, "1.there")
    async with watching(root, poll_s=poll_s) as found:
        await begun(found, root)
        for number in range(10):
            put(root, f"{number + 2}.n", "cur" if number % 3 == 0 else "new")
        assert await found.keys(10) == [f"{number + 2}.n" for number in range(10)]


async def test_what_is_told_of_a_message(root: Path, poll_s: float) -> None:
    """Path, key, folder, sorted flags, and the size that its name has, or else its file."""
    async with watching(root, poll_s=poll_s) as found:
        await begun(found, root)
        put(root, "2.a,S=123,W=130:2,SaF", "cur", b"body")
        put(root, "3.b", "new", b"body")
        await found.keys(2)
    cur, new = root / "cur" / "2.a,S=123,W=130:2,SaF", root / "new" / "3.b"
    assert found.seen == [
        WatchedMessage(str(cur), "2.a,S=123,W=130", None, "FSa", 123),
        WatchedMessage(str(new), "3.b", None, "", 4),
    ]


async def test_the_existing_ones_come_first_if_asked_for(root: Path, poll_s: float) -> None:
    """They come in the order of arrival, from both directories; hidden files and directories are no messages."""
    for name, where in (("3.c", "new"), ("1.a:2,S", "cur"), ("2.M5.b", "new"), ("2.M30.b", "cur"), (".hidden", "new")):
        put(root, name, where)
    (root / "new" / "0.directory").mkdir()
    async with watching(root, existing=True, poll_s=poll_s) as found:
        assert await found.keys(4) == ["1.a", "2.M5.b", "2.M30.b", "3.c"]
        put(root, "4.d")
        assert (await found.keys(5))[4:] == ["4.d"]


async def test_what_comes_while_it_is_set_up_is_told_of(root: Path, poll_s: float) -> None:
    """A message published between the steps of the set-up is told of; what was there, and a reader moves, is not."""
    put(root, "1.there")
    put(root, "2.there")
    next_tick()
    for directory in ("new", "cur"):
        gate = Gate()
        disk = FaultDisk(Fault("listdir", path=f"/{directory}", gate=gate))
        async with watching(root, disk=disk, poll_s=poll_s) as found:
            await gate.reached()
            put(root, f"3.{directory}")
            if poll_s == NEVER_S and directory == "new":  # one who polls cannot tell: he may tell of it
                (root / "new" / "1.there").rename(root / "cur" / "1.there:2,")
            gate.open()
            assert await found.keys(1) == [f"3.{directory}"]
            put(root, f"4.{directory}")
            assert await found.keys(2) == [f"3.{directory}", f"4.{directory}"]
        next_tick()


async def test_what_a_reader_moves_is_told_of_once(root: Path, poll_s: float) -> None:
    """A message that goes from new/ to cur/, and is flagged there, is told of once, however soon that happens."""
    async with watching(root, poll_s=poll_s) as found:
        await begun(found, root)
        for number in range(10, 60):
            put(root, f"{number}.m")
            (root / "new" / f"{number}.m").rename(root / "cur" / f"{number}.m:2,")
            (root / "cur" / f"{number}.m:2,").rename(root / "cur" / f"{number}.m:2,S")
        put(root, "60.m")
        assert await found.keys(51) == [f"{number}.m" for number in range(10, 61)]
        for number in range(10, 60):
            (root / "cur" / f"{number}.m:2,S").rename(root / "cur" / f"{number}.m:2,RS")
        put(root, "61.m")
        assert (await found.keys(52))[51:] == ["61.m"]


async def test_a_maildir_removed_and_made_again(root: Path, poll_s: float) -> None:
    """It is waited for: what the new one has is told of, and what comes to it."""
    async with watching(root, poll_s=SOON_S) as found:
        await begun(found, root)
        for number in range(1, 4):
            if number == 2:
                root.rename(root.with_name(f"old{number}"))
            else:
                shutil.rmtree(root)
            make(root)
            put(root, f"{number}.first")
            await found.keys(2 * number - 1)
            put(root, f"{number}.second")
            await found.keys(2 * number)
    assert [message.key for message in found.seen] == [
        f"{n}.{which}" for n in (1, 2, 3) for which in ("first", "second")
    ]


async def test_one_that_is_not_there_yet_is_waited_for(tmp_path: Path, poll_s: float) -> None:
    """Whatever it has once it is there has come since."""
    root = tmp_path / "above" / "m"
    async with watching(root, poll_s=SOON_S) as found:
        await asyncio.sleep(0.03)
        make(tmp_path / "away")
        put(tmp_path / "away", "1.a")
        root.parent.mkdir()
        (tmp_path / "away").rename(root)
        assert await found.keys(1) == ["1.a"]
        put(root, "2.b")
        assert await found.keys(2) == ["1.a", "2.b"]


class Overflowing(asyncinotify.Inotify):
    """The kernel's queue as it is when it has been full: what came is lost, and the last event says so."""

    is_full = False

    def sync_get(self) -> asyncinotify.Event | None:
        event = super().sync_get()
        if event is None or not type(self).is_full:
            return event
        while super().sync_get() is not None:
            pass
        type(self).is_full = False
        return asyncinotify.Event(watch=None, mask=asyncinotify.Mask.Q_OVERFLOW, cookie=0, name=None)


async def test_what_an_overflow_loses_is_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an overflow of the queue each message that it had is told of all the same, and none twice."""
    monkeypatch.setattr(asyncinotify, "Inotify", Overflowing)
    async with watching(root, poll_s=NEVER_S) as found:
        await begun(found, root)
        put(root, "1.a")
        await found.keys(1)
        monkeypatch.setattr(Overflowing, "is_full", True)
        for number in range(2, 30):
            put(root, f"{number}.b")
        put(root, "30.c", "cur")
        assert await found.keys(30) == ["1.a", *(f"{number}.b" for number in range(2, 30)), "30.c"]
        put(root, "31.d")
        assert (await found.keys(31))[30:] == ["31.d"]


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOSPC])
async def test_it_polls_where_inotify_has_its_limit(root: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Too many instances or watches: directories are listed, until there is one to be had."""
    refuse = True
    called = "add_watch" if error == errno.ENOSPC else "__init__"
    original = getattr(asyncinotify.Inotify, called)

    def limited(*args: Any, **options: Any) -> Any:
        if refuse:
            raise OSError(error, os.strerror(error))
        return original(*args, **options)

    monkeypatch.setattr(asyncinotify.Inotify, called, limited)
    # An instance that was never made has nothing to close.
    async with watching(root, poll_s=SOON_S) as found:
        await begun(found, root)
        put(root, "1.a")
        assert await found.keys(1) == ["1.a"]
        refuse = False
        put(root, "2.b")
        assert await found.keys(2) == ["1.a", "2.b"]


def descriptors_of(root: Path) -> tuple[int, int]:
    """Return how many inotify instances there are, and how many files of a maildir are open.

    Not how many descriptors there are in all: those that other tests have left to the garbage go meanwhile.
    """
    instances = files = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{name}")
            instances += what == "anon_inode:inotify"
            files += what.startswith(str(root))
    return instances, files


@pytest.mark.every_loop
@pytest.mark.parametrize("how", ["cancel", "aclose", "break"])
async def test_nothing_is_left_when_it_ends(root: Path, how: str) -> None:
    """No descriptor, watch or reader, whether it is cancelled while it waits, closed between messages, or dropped."""
    gc.collect()
    before = descriptors_of(root)
    put(root, "1.a")
    watch = Maildir(root).watch(existing=True, poll_s=NEVER_S)
    assert (await anext(watch)).key == "1.a"
    assert descriptors_of(root)[0] == before[0] + 1
    if how == "cancel":
        task = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif how == "aclose":
        await watch.aclose()
    else:
        del watch
        gc.collect()
        deadline = time.monotonic() + PATIENCE_S
        while descriptors_of(root) != before and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
    assert descriptors_of(root) == before


@pytest.mark.parametrize("step", ["/new", "/cur"])
async def test_a_cancellation_in_the_set_up_waits_for_its_thread(root: Path, step: str) -> None:
    """When the cancellation has reached the caller, no thread looks at the maildir, and no descriptor is left."""
    before = descriptors_of(root)
    gate = Gate()
    disk = FaultDisk(Fault("listdir", path=step, gate=gate))
    task = asyncio.ensure_future(anext(Maildir(root, disk=disk).watch()))
    await gate.reached()
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert descriptors_of(root) == before


def test_a_loop_that_ends_ends_it(root: Path) -> None:
    """asyncio.run closes what is open on its loop."""
    before = descriptors_of(root)
    put(root, "1.a")
    held = list[object]()

    async def main() -> None:
        watch = Maildir(root).watch(existing=True)
        held.append(watch)
        await anext(watch)

    asyncio.run(main())
    assert descriptors_of(root) == before


async def test_several_at_once_of_folders_too(root: Path) -> None:
    """Each of several watches tells of all; one of a folder, only of that, with its name."""
    maildir = Maildir(root)
    await maildir.create_folder("Ärger/2024")
    async with (
        watching(root, poll_s=NEVER_S) as one,
        watching(root, poll_s=NEVER_S) as two,
        watching(root, folder="Ärger/2024", poll_s=NEVER_S) as folder,
    ):
        for found, path in ((folder, root / ".&AMQ-rger.2024"), (two, root), (one, root)):
            await begun(found, path)
        put(root, "0.last")
        for found in (one, two):
            await told_of(found, "0.last")
            found.seen.clear()
        first = await maildir.append(b"a")
        second = await maildir.append(b"b", folder="Ärger/2024", flags="S")
        assert await one.keys(1) == await two.keys(1) == [first.key]
        assert await folder.keys(1) == [second.key]
        (told,) = folder.seen
        assert (told.path, told.folder, told.flags, told.size) == (second.path, "Ärger/2024", "S", second.size)


async def test_an_error_of_the_disk_is_raised(root: Path) -> None:
    """A directory that cannot be listed is an error that says so; descriptors that are short are waited for."""
    disk = FaultDisk(Fault("listdir", errno.EIO))
    with pytest.raises(AppendError, match="Input/output error"):
        await anext(Maildir(root, disk=disk).watch())
    disk = FaultDisk(Fault("listdir", errno.EMFILE, nth=5))
    async with watching(root, disk=disk, poll_s=SOON_S) as found:
        await begun(found, root)
        shutil.rmtree(root)
        make(root)
        put(root, "1.a")
        assert await found.keys(1) == ["1.a"]


async def test_a_folder_that_leads_out_is_refused(root: Path, tmp_path: Path) -> None:
    """A folder that is a symbolic link out of the maildir is not watched."""
    make(tmp_path / "other")
    (root / ".out").symlink_to(tmp_path / "other")
    with pytest.raises(NotAMaildirError):
        await anext(Maildir(root).watch("out"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"existing": 1}, TypeError),
        ({"poll_s": "1"}, TypeError),
        ({"poll_s": 0}, ValueError),
        ({"folder": "a//b"}, ValueError),
    ],
)
async def test_options_are_checked_at_once(root: Path, options: dict[str, Any], error: type[Exception]) -> None:
    """What is wrong with one is raised by the call itself, by its name."""
    with pytest.raises(error, match=next(iter(options))):
        Maildir(root).watch(**options)


def test_which_file_systems_are_shared(tmp_path: Path) -> None:
    """A local one is not, and one that is not there cannot be told."""
    assert not is_shared(str(tmp_path))
    assert not is_shared("/proc")
    assert not is_shared(str(tmp_path / "nothing"))


class HidingDisk(FaultDisk):
    """A listing that misses a name, as one may while that is changed."""

    hidden = ""

    def listdir(self, path: str) -> list[str]:
        return [name for name in super().listdir(path) if name != self.hidden]


def looked(lookout: Lookout, times: int = 1) -> list[str]:
    found = list[WatchedMessage]()
    for _ in range(times):
        time.sleep(2 * lookout.patience_s)  # not to be right: so that it is due
        while True:
            found += lookout.look()
            if not lookout.has_more:
                break
    return [message.key for message in found]


def test_what_has_gone_is_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are kept only of messages that are there; one that a single listing misses is not told of twice."""
    monkeypatch.setitem(sys.modules, "asyncinotify", None)
    disk = HidingDisk()
    lookout = Lookout(Maildir(root, disk=disk).mailbox.directories, None, existing=True, poll_s=0.001)
    put(root, "1.a")
    put(root, "2.b")
    assert looked(lookout) == ["1.a", "2.b"]
    disk.hidden = "1.a"
    put(root, "3.c")
    assert looked(lookout) == ["3.c"]
    disk.hidden = ""
    put(root, "4.d")
    assert looked(lookout) == ["4.d"]
    (root / "new" / "1.a").unlink()
    assert looked(lookout, 2) == []
    put(root, "1.a")
    assert looked(lookout) == ["1.a"]


def test_polling_lists_what_has_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large maildir in which nothing happens is not listed over and over again."""
    monkeypatch.setitem(sys.modules, "asyncinotify", None)
    disk = FaultDisk()
    lookout = Lookout(Maildir(root, disk=disk).mailbox.directories, None, existing=True, poll_s=0.001)
    put(root, "1.a")
    assert looked(lookout, 5) == ["1.a"]

    def listings() -> int:
        return sum(call.operation == "listdir" for call in disk.calls)

    before = listings()
    assert looked(lookout, 10) == []
    assert listings() == before
    put(root, "2.b", "cur")
    assert looked(lookout) == ["2.b"]


async def test_a_forked_child_takes_nothing_from_its_parent(root: Path) -> None:
    """The child has no descriptor of it; the parent goes on."""
    async with watching(root, poll_s=NEVER_S) as found:
        await begun(found, root)
        assert descriptors_of(root)[0] >= 1
        assert forked(lambda: descriptors_of(root)[0]) == [0]
        put(root, "1.a")
        assert await found.keys(1) == ["1.a"]


def move_what_comes(root: Path, ended: threading.Event) -> None:
    """Do what a mail reader does: move what is new to cur/, and flag it."""
    while True:
        is_last = ended.is_set()
        for name in sorted(os.listdir(root / "new")):
            os.rename(root / "new" / name, root / "cur" / f"{name}:2,")
            os.rename(root / "cur" / f"{name}:2,", root / "cur" / f"{name}:2,S")
        if is_last:
            return


@pytest.mark.heavy
@pytest.mark.parametrize("moves", [False, True], ids=["kept", "moved"])
async def test_a_burst_that_overflows_the_queue(root: Path, poll_s: float, moves: bool) -> None:
    """20,000 messages while the loop is held up, more than the kernel keeps notices for: each is told of once."""
    async with watching(root, poll_s=poll_s) as found:
        await begun(found, root)
        ended = threading.Event()
        reader = threading.Thread(target=move_what_comes, args=(root, ended))
        if moves:
            reader.start()
        for number in range(20_000):
            put(root, f"{number:05}.m,S=1" if number % 2 else f"{number:05}.m")
        ended.set()
        await found.keys(20_000)
        if moves:
            reader.join()
        put(root, "20000.last")
        await told_of(found, "20000.last")
        keys = [message.key for message in found.seen]
    assert len(keys) == len(set(keys)) == 20_001


WRITER = """
import asyncio, sys, time
from maildir_async import Durability, Maildir

async def main():
    maildir = Maildir(sys.argv[1], durability=Durability.NONE)
    began = time.monotonic()
    for number in range(int(sys.argv[2])):
        await maildir.append(b"message")
        await asyncio.sleep(max(0, began + number / int(sys.argv[3]) - time.monotonic()))

asyncio.run(main())
"""


@pytest.mark.heavy
async def test_another_process_at_fifty_a_second(root: Path, poll_s: float) -> None:
    """1,000 messages by another process, with a mail reader at work: each is told of once, within 3 s."""
    late = list[float]()
    ended = threading.Event()
    reader = threading.Thread(target=move_what_comes, args=(root, ended))
    async with watching(root, poll_s=poll_s if poll_s == NEVER_S else 1.0) as found:
        await begun(found, root)
        reader.start()
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, root, "1000", "50")
        try:
            done = 0
            while done < 1000:
                await asyncio.sleep(0.005)
                for message in found.seen[done:]:
                    seconds, micros = message.key.split(".")[:2]
                    late.append(time.time() - int(seconds) - int(micros[1:7]) / 1e6)
                done = len(found.seen)
                assert writer.returncode in (None, 0)
        finally:
            ended.set()
            reader.join()
            if writer.returncode is None:
                writer.kill()
            await writer.wait()
    assert len({message.key for message in found.seen}) == len(found.seen) == 1000
    assert max(late) < 3
