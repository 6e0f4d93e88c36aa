"""Twisted's append task, seen from ours: what its own tests assert, what each of its members became, its defects cured.

No test here has a part of Twisted in it: they state, in our words and against our public names, what
``twisted.mail.maildir`` does, is to do, or should not have done.
"""

import asyncio
import errno
import io
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

from look import descriptors
from maildir_async import AppendError, AppendTask, Delivered, Maildir, as_producer
from maildir_async.format.names import UniqueNames
from maildir_async.format.states import State
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.testing import Call, Fault, FaultDisk, check_pull_producer, check_push_producer
from support import UNIQUE, Gate, ListedNames, contents, forked, tree, turns

NOTHING: dict[str, list[bytes]] = {"tmp": [], "new": [], "cur": []}
CHUNK = bytes(range(256)) * (CHUNK_SIZE // 256)  # enough to be written before the message is whole

#: The seams of Twisted's task (osopen, oswrite, osclose, osrename), and ours.
SEAMS = {"open": "create", "write": "write", "close": "close", "rename": "rename_noreplace"}


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return tmp_path / "box"


class Pull:
    """A pull producer: one chunk each time it is asked, then the end."""

    def __init__(self, task: AppendTask, *chunks: bytes) -> None:
        self.task = task
        self.chunks = list(chunks)
        self.asked = self.stopped = 0

    def resume_producing(self) -> None:
        self.asked += 1
        if self.chunks:
            self.task.write(self.chunks.pop(0))
        else:
            self.task.unregister_producer()

    def stop_producing(self) -> None:
        self.stopped += 1


class Push:
    """A push producer that writes nothing by itself, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def resume_producing(self) -> None:
        self.told.append("resume")

    def pause_producing(self) -> None:
        self.told.append("pause")

    def stop_producing(self) -> None:
        self.told.append("stop")


class Chunks:
    """A consumer that notes how it gets a message."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ended = False

    def register_producer(self, producer: Any, streaming: bool) -> None:
        raise AssertionError("nobody registers here")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sizes.append(len(data))

    def unregister_producer(self) -> None:
        self.ended = True


async def received(task: AppendTask) -> AppendTask:
    """Start a task and feed it so much that some of it is in tmp/."""
    await task.send(CHUNK)
    await task.send(CHUNK)  # returns when the first has been written
    assert task.bytes_written
    return task


def tmp_fault(box: Path, operation: str, number: int) -> Fault:
    """Return what fails an operation on the message's file, and not on the directories."""
    return Fault(operation, number, nth=0, path=str(box / ("new" if operation == "rename_noreplace" else "tmp")) + "/")


@pytest.fixture
def files() -> Iterator[Callable[[bytes], io.IOBase]]:
    """Makes temporary files that are rewound to their beginning."""
    with ExitStack() as stack:

        def make(message: bytes) -> Any:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(message)
            file.seek(0)
            return file

        yield make


class TestWhatTwistedTests:
    """The behaviour that Twisted's own tests assert, skipped ones included."""

    @pytest.mark.parametrize("kind", ["bytes", "file"])
    async def test_append(self, box: Path, files: Callable[[bytes], Any], kind: str) -> None:
        """Ten messages of 1 to 10 bytes are listed in append order; then rename, write and open fail in turn,
        each through the awaitable, and after each all is well again.
        """
        make: Callable[[bytes], Any] = files if kind == "file" else bytes
        disk = FaultDisk()
        maildir = Maildir(box, disk=disk)
        index = await maildir.index()
        for length in range(1, 11):
            await maildir.append(make(b"x" * length))
        assert [os.path.getsize(message.path) for message in index] == list(range(1, 11))
        for seam, number in (("rename", errno.EPERM), ("write", errno.ENOSPC), ("open", errno.EPERM)):
            disk.faults = [tmp_fault(box, SEAMS[seam], number)]
            future = AppendTask(maildir, make(b"lost")).start()  # never raises by itself
            with pytest.raises(AppendError) as caught:
                await future
            assert caught.value.errno == number
            disk.faults = []
            assert (contents(box)["tmp"], b"lost" in contents(box)["new"]) == ([], False)
            await maildir.append(make(seam.encode()))
        assert [Path(message.path).read_bytes() for message in index][10:] == [b"rename", b"write", b"open"]

    async def test_reopen_mailbox(self, box: Path) -> None:
        """A message appended is found by another mailbox object on the same directory, with its size and content."""
        await Maildir(box).append(b"message")
        [found] = await Maildir(box).index()
        assert (os.path.getsize(found.path), Path(found.path).read_bytes()) == (7, b"message")

    async def test_initializer(self, box: Path) -> None:
        """Making a maildir makes its three directories, closed to strangers; no .Trash, as Twisted's."""
        await Maildir(box).create()
        assert tree(box) == dict.fromkeys(("tmp", "new", "cur"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in (box, *box.iterdir())} == {0o700}

    async def test_name_generator(self, box: Path) -> None:
        """Under a fake clock 0.05 s apart the first name is less than the second, and both tell the clock's time."""
        now = iter(range(10**18, 2 * 10**18, 50_000_000))
        maildir = Maildir(box, names=UniqueNames(clock=lambda: next(now), hostname="host"))
        await maildir.create()
        first, second = [os.path.basename((await maildir.append(b"")).path) for _ in range(2)]
        assert first < second
        assert [name.split("P")[0] for name in (first, second)] == ["1000000000.M000000", "1000000000.M050000"]

    async def test_mailbox(self, box: Path) -> None:
        """The messages of a mailbox are listed in order, each under a key of its own."""
        maildir = Maildir(box)
        delivered = [await maildir.append(bytes([at])) for at in range(5)]
        index = await Maildir(box).index()
        assert [message.key for message in index] == [message.key for message in delivered]
        assert len({message.key for message in index}) == 5

    async def test_final_name(self, box: Path) -> None:
        """The final name ends with the real size, and the temporary name is gone."""
        task = AppendTask(Maildir(box), b"line\r\n" * 10)
        delivered = await task
        assert re.search(r",S=(\d+)", delivered.path)
        assert f",S={os.path.getsize(delivered.path)}," in delivered.path
        assert task.tmp_path is not None
        assert not os.path.exists(task.tmp_path)

    async def test_contents(self, box: Path) -> None:
        """The file has the Delivered-To line first and then the lines fed, each ended by LF."""
        async with Maildir(box).open_append(prefix=b"Delivered-To: alice@example.org\n") as task:
            for line in (b"From: bob", b"", b"body"):
                await task.send(line + b"\n")
        stored = Path(task.future.result().path).read_bytes()
        assert stored == b"Delivered-To: alice@example.org\nFrom: bob\n\nbody\n"

    async def test_interrupted_by_cancelling(self, box: Path) -> None:
        """A delivery whose task is cancelled while it is received removes its file, and nothing is in new/."""
        task = await received(AppendTask(Maildir(box)))
        waiting = asyncio.ensure_future(_awaited(task))
        await asyncio.sleep(0)
        assert len(contents(box)["tmp"]) == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (contents(box), task.state) == (NOTHING, State.ABORTED)

    async def test_interrupted_by_a_lost_connection(self, box: Path) -> None:
        """A delivery whose connection is lost fails, removes its file, and leaves nothing in new/."""
        reader = asyncio.StreamReader()
        reader.feed_data(3 * CHUNK)

        stored: list[int] = []

        def lose(so_far: int) -> None:
            stored.append(so_far)
            reader.set_exception(ConnectionResetError("connection lost"))

        with pytest.raises(AppendError) as caught:
            await Maildir(box).append(reader, on_progress=lose)
        assert stored  # some of it was in tmp/
        assert caught.value.stage == "receive"
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert contents(box) == NOTHING


async def _awaited(task: AppendTask) -> Delivered:
    return await task


class TestCounterparts:
    """Each member of Twisted's append task has its living counterpart: one test for each."""

    async def test_mailbox(self, box: Path) -> None:
        """``mbox`` is the Maildir: the message is in its index before the future resolves."""
        maildir = Maildir(box)
        index = await maildir.index()
        task = AppendTask(maildir, b"message")
        seen: list[list[str]] = []
        task.start().add_done_callback(lambda _: seen.append([message.path for message in index]))
        delivered = await task
        await turns(2)
        assert seen == [[delivered.path]]

    async def test_deferred(self, box: Path) -> None:
        """``defer`` is ``future``: an asyncio.Future of a Delivered, made by start, that any number may await."""
        task = AppendTask(Maildir(box), b"message")
        with pytest.raises(RuntimeError):
            task.future  # noqa: B018
        future = task.start()
        assert isinstance(future, asyncio.Future)
        assert future is task.future
        outcomes = [*await asyncio.gather(future, future, _awaited(task))]
        assert outcomes == [future.result()] * 3
        assert isinstance(outcomes[0], Delivered)

    async def test_scheduled_call(self, box: Path) -> None:
        """``openCall``, the next prod, is a question asked in each turn of the loop, until the end or an abort."""
        task = AppendTask(Maildir(box))
        producer = Pull(task, *[b"x"] * 5)
        task.register_producer(producer, False)
        asked = [producer.asked]
        while producer.asked < 4:
            await asyncio.sleep(0)
            asked.append(producer.asked)
        assert all(after - before <= 1 for before, after in pairwise(asked))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns()
        assert (producer.asked, producer.stopped) == (4, 1)

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO])
    async def test_message(self, box: Path, wrap: Callable[[bytes], Any]) -> None:
        """``msg`` is bytes-like or has a ``read``; a file is read from where it stands, and not closed."""
        message = wrap(b"message")
        if isinstance(message, io.BytesIO):
            message.seek(3)
        await AppendTask(Maildir(box), message)
        assert contents(box)["new"] == [b"sage" if isinstance(message, io.BytesIO) else b"message"]
        assert not getattr(message, "closed", False)

    async def test_temporary_name(self, box: Path) -> None:
        """``tmpname`` is ``tmp_path``: a unique name in tmp/ from the mailbox's generator, once there is a file."""
        maildir = Maildir(box, names=ListedNames("generated"))
        await maildir.create()  # or the first name is spent on finding out that tmp/ is missing
        task = AppendTask(maildir)
        assert task.tmp_path is None
        await received(task)
        assert task.tmp_path == f"{box}/tmp/generated"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_file_handle(self, box: Path) -> None:
        """``fh`` is a worker thread's handle: one descriptor while the message is received, none afterwards."""
        threads: set[int] = set()
        note = Fault("write", nth=0, gate=lambda: threads.add(threading.get_ident()))
        async with Maildir(box, disk=FaultDisk(note)).open_append() as task:
            await received(task)
            [descriptor] = descriptors(box)
            assert descriptor.endswith(f" {task.tmp_path}")
        assert descriptors(box) == set()
        assert threads
        assert threading.get_ident() not in threads

    async def test_file_sender(self) -> None:
        """``filesender`` is what as_producer returns: a pull or a push producer of the file, for any consumer."""
        message = b"a line\n" * 50_000
        await check_pull_producer(lambda consumer: as_producer(io.BytesIO(message), consumer), message)
        await check_push_producer(lambda consumer: as_producer(io.BytesIO(message), consumer, streaming=True), message)

    async def test_registered_producer(self, box: Path) -> None:
        """``myproducer`` is the one producer registered, until it unregisters; it is stopped once on failure."""
        task = AppendTask(Maildir(box))
        first, second = Push(), Push()
        task.register_producer(first, True)
        with pytest.raises(RuntimeError, match="registered"):
            task.register_producer(second, True)
        task.fail(ConnectionResetError())
        with pytest.raises(ConnectionResetError):
            await task
        assert (first.told[-1:], first.told.count("stop"), second.told) == (["stop"], 1, [])

    async def test_streaming_flag(self, box: Path) -> None:
        """``streaming`` tells push from pull: a push producer is never asked, it writes when it likes."""
        task = AppendTask(Maildir(box))
        producer = Push()
        task.register_producer(producer, True)
        await turns()
        assert producer.told == []
        task.write(b"pushed")
        task.unregister_producer()
        await task
        assert (contents(box)["new"], producer.told) == ([b"pushed"], [])

    @pytest.mark.parametrize("seam", SEAMS)
    async def test_seams(self, box: Path, seam: str) -> None:
        """``osopen``, ``oswrite``, ``osclose``, ``osrename`` are methods of one Disk: each is used, and can fail."""
        disk = FaultDisk()
        delivered = await Maildir(box, disk=disk).append(b"message")
        assert any(call.operation == SEAMS[seam] for call in disk.calls)
        disk.faults = [tmp_fault(box, SEAMS[seam], errno.EIO)]
        with pytest.raises(AppendError) as caught:
            await Maildir(box, disk=disk).append(b"lost")
        assert (caught.value.errno, caught.value.smtp_reply[:3]) == (errno.EIO, "451")
        assert tree(box / "new") == {os.path.basename(delivered.path): b"message"}
        assert contents(box)["tmp"] == []

    async def test_start_up(self, box: Path) -> None:
        """``startUp`` is ``start``: it begins in the call (a short message is whole when it returns), and only once."""
        task = AppendTask(Maildir(box), b"message")
        states = [task.state]
        task.start()
        states.append(task.state)
        assert states == [State.IDLE, State.COMMITTING]
        with pytest.raises(RuntimeError):
            task.start()
        await task
        with pytest.raises(RuntimeError):
            task.start()
        assert contents(box)["new"] == [b"message"]

    async def test_register_producer(self, box: Path) -> None:
        """``registerProducer`` is ``register_producer``: a pull producer is asked for its first chunk in the call."""
        task = AppendTask(Maildir(box))
        producer = Pull(task, b"one", b"two")
        task.register_producer(producer, False)
        assert (producer.asked, task.state) == (1, State.RECEIVING)
        await task
        assert (contents(box)["new"], producer.stopped) == ([b"onetwo"], 0)

    async def test_register_producer_and_cancel_at_once(self, box: Path) -> None:
        """A pull producer is stopped once also if the delivery is cancelled in the turn that registered it."""
        task = AppendTask(Maildir(box))
        producer = Pull(task, b"one", b"two")
        task.register_producer(producer, False)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (producer.asked, producer.stopped) == (1, 1)

    async def test_register_producer_too_late(self, box: Path) -> None:
        """A producer that is registered after an abort is stopped at once, and so is the one that was there before."""
        task = AppendTask(Maildir(box))
        producer, late = Pull(task, *[b"x"] * 10), Pull(task)
        task.register_producer(producer, False)
        await turns(2)
        task.cancel()
        task.register_producer(late, False)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (late.asked, late.stopped, producer.stopped) == (0, 1, 1)

    async def test_prod_producer(self, box: Path) -> None:
        """``prodProducer`` is the Feed: it asks a pull producer only while there is room, and again once there is."""
        gate = Gate()
        task = AppendTask(Maildir(box, disk=FaultDisk(Fault("write", gate=gate))))
        producer = Pull(task, *[CHUNK] * 5)
        task.register_producer(producer, False)
        await gate.reached()
        await turns()
        assert producer.asked == 2  # one chunk at the disk, one in memory
        gate.open()
        delivered = await task
        assert (producer.asked, delivered.size) == (6, 5 * len(CHUNK))

    async def test_unregister_producer(self, box: Path) -> None:
        """``unregisterProducer`` is ``unregister_producer``: it ends the message, which is then committed; once."""
        task = AppendTask(Maildir(box))
        task.register_producer(Push(), True)
        task.write(b"message")
        states = [task.state]
        task.unregister_producer()
        states.append(task.state)
        assert states == [State.RECEIVING, State.COMMITTING]
        with pytest.raises(RuntimeError):
            task.unregister_producer()
        assert (await task).size == 7

    async def test_write(self, box: Path) -> None:
        """``write`` takes a chunk without waiting, in call order; after the end it is ignored, text is a TypeError."""
        task = AppendTask(Maildir(box))
        for chunk in (b"a", bytearray(b"b"), b"", memoryview(b"c")):
            task.write(chunk)
        task.unregister_producer()
        task.write(b"ignored")
        await task
        assert contents(box)["new"] == [b"abc"]
        wrong = AppendTask(Maildir(box))
        with pytest.raises(TypeError, match="not str"):
            wrong.write("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not str"):
            await wrong

    async def test_fail(self, box: Path) -> None:
        """``fail`` ends the delivery with the exception given, once; the file is removed and the producer stopped."""
        task = AppendTask(Maildir(box))
        producer = Push()
        task.register_producer(producer, True)
        await received(task)
        error = ValueError("enough")
        assert task.fail(error)
        assert not task.fail(ValueError("again"))
        with pytest.raises(ValueError, match="enough") as caught:
            await task
        assert caught.value is error
        assert not task.fail(ValueError("later"))
        assert (contents(box), producer.told.count("stop"), descriptors(box)) == (NOTHING, 1, set())

    async def test_move_file_to_new(self, box: Path) -> None:
        """``moveFileToNew`` is publishing: under a fresh name, not before the message is whole, replacing nothing."""
        async with Maildir(box).open_append() as task:
            await received(task)
            assert contents(box)["new"] == []
            tmp_path = task.tmp_path
        delivered = task.future.result()
        assert contents(box) == {**NOTHING, "new": [2 * CHUNK]}
        assert tmp_path is not None
        assert os.path.basename(tmp_path) != delivered.key.split(",")[0]

    async def test_create_temp_file(self, box: Path) -> None:
        """``createTempFile`` makes a new file for the owner only, under a new name for each try, and no other's."""
        await Maildir(box).create()
        (box / "tmp" / "taken").write_bytes(b"another's")
        maildir = Maildir(box, names=ListedNames("taken", "free"))
        async with maildir.open_append() as task:
            await received(task)
            assert task.tmp_path == f"{box}/tmp/free"
            assert stat.S_IMODE(os.stat(task.tmp_path).st_mode) == 0o600
        assert contents(box) == {"tmp": [b"another's"], "new": [2 * CHUNK], "cur": []}


class TestDefectsCured:
    """Nineteen defects found in Twisted's delivery paths, none of which ours has."""

    async def test_t1_rename_does_not_replace(self, box: Path) -> None:
        """T-1: two messages that get the same name both survive."""
        await Maildir(box).create()
        for content in (b"1st", b"2nd"):
            await Maildir(box, names=ListedNames("same")).append(content)
        assert sorted(contents(box)["new"]) == [b"1st", b"2nd"]
        assert (box / "new" / "same,S=3,W=3").read_bytes() == b"1st"

    @pytest.mark.parametrize("chunks", [1, 3])
    async def test_t2_short_writes_are_continued(self, box: Path, chunks: int) -> None:
        """T-2: a disk that takes a few bytes at a time stores the whole message, streamed or not."""
        shorten = Fault("write", shorten=1 if chunks == 1 else 100_000, nth=0)
        message = b"0123456789" if chunks == 1 else chunks * CHUNK
        source: Any = message if chunks == 1 else io.BytesIO(message)
        delivered = await Maildir(box, disk=FaultDisk(shorten)).append(source)
        assert Path(delivered.path).read_bytes() == message

    async def test_t3_a_push_producer_that_goes_on_after_a_failure(self, box: Path) -> None:
        """T-3: after a failed write nothing is published, whatever the producer still writes and ends."""
        disk = FaultDisk(Fault("write", errno.ENOSPC, nth=2))
        maildir = Maildir(box, disk=disk)
        index = await maildir.index()
        task = AppendTask(maildir)
        producer = Push()
        task.register_producer(producer, True)
        task.write(CHUNK)
        task.write(CHUNK)
        with pytest.raises(AppendError) as caught:
            await task
        task.write(CHUNK)
        task.unregister_producer()
        await turns()
        assert (caught.value.errno, producer.told.count("stop")) == (errno.ENOSPC, 1)
        assert (contents(box), list(index)) == (NOTHING, [])

    @pytest.mark.parametrize("make", [lambda: b"message", lambda: io.BytesIO(3 * CHUNK)], ids=["bytes", "stream"])
    async def test_t4_file_and_directory_are_synced(self, box: Path, make: Callable[[], Any]) -> None:
        """T-4: the file is synced before it is visible, its directory before the caller hears of it."""
        disk = FaultDisk()
        task = AppendTask(Maildir(box, disk=disk), make())
        delivered = await task
        assert task.tmp_path is not None
        order = [
            Call("sync", task.tmp_path),
            Call("rename_noreplace", delivered.path),
            Call("sync", str(box / "new")),
        ]
        assert [call for call in disk.calls if call in order] == order
        writes = [at for at, call in enumerate(disk.calls) if call.operation == "write"]
        assert max(writes) < disk.calls.index(order[0])

    @pytest.mark.parametrize("size", [1, 3], ids=["bytes", "stream"])
    @pytest.mark.parametrize("operation", ["create", "chmod", "write", "utime", "sync", "close", "rename_noreplace"])
    async def test_t5_a_failure_leaves_nothing_behind(self, box: Path, operation: str, size: int) -> None:
        """T-5: whichever system call fails, no descriptor and no file in tmp/ is left."""
        disk = FaultDisk(tmp_fault(box, operation, errno.EIO))
        source: Any = b"message" if size == 1 else io.BytesIO(size * CHUNK)
        with pytest.raises(AppendError):
            await Maildir(box, disk=disk, file_mode=0o640).append(source, received_at=1)
        assert not any(contents(box).values())
        assert descriptors(box) == set()

    async def test_t6_the_loop_makes_no_system_call(self, box: Path) -> None:
        """T-6: no call of the disk, of whatever kind, is made on the loop's thread."""
        threads: set[int] = set()
        disk = FaultDisk(Fault("", nth=0, gate=lambda: threads.add(threading.get_ident())))
        maildir = Maildir(box, disk=disk, file_mode=0o640)
        await maildir.append(b"message", received_at=1, flags="S")
        await maildir.append(io.BytesIO(3 * CHUNK))
        task = await received(maildir.open_append())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await maildir.index()
        await maildir.clean_tmp()
        assert {call.operation for call in disk.calls} >= {"mkdir", "create", "write", "sync", "unlink", "listdir"}
        assert threads
        assert threading.get_ident() not in threads

    @pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EMFILE], ids=errno.errorcode.get)
    async def test_t7_only_a_taken_name_is_tried_again(self, box: Path, number: int) -> None:
        """T-7: any other error of open is told after one try, with its errno."""
        disk = FaultDisk(Fault("create", number, nth=0))
        with pytest.raises(AppendError) as caught:
            await Maildir(box, disk=disk).append(b"message")
        assert (caught.value.errno, caught.value.stage) == (number, "create")
        assert sum(call.operation == "create" for call in disk.calls) == 1

    def test_t8_forked_children_make_different_names(self, box: Path) -> None:
        """T-8: children of one process, with a clock that stands still and one pid, deliver under different names."""
        maildir = Maildir(box, names=UniqueNames(clock=lambda: 10**18, hostname="same", pid=lambda: 1))

        async def deliver() -> list[str]:
            return [(await maildir.append(b"x")).key.split(",")[0] for _ in range(5)]

        asyncio.run(deliver())
        keys = list(chain.from_iterable(forked(lambda: asyncio.run(deliver()), children=2)))
        assert len(set(keys)) == len(keys) == 10
        assert len(contents(box)["new"]) == 15

    async def test_t9_names_sort_as_delivered(self, box: Path) -> None:
        """T-9: M is microseconds, and names sort as the messages were delivered, past the tenth too."""
        maildir = Maildir(box, names=UniqueNames(clock=lambda: 10**18 + 999_990_000, hostname="host"))
        names = [os.path.basename((await maildir.append(b"")).path) for _ in range(25)]
        assert sorted(names) == names
        for name in names:
            found = UNIQUE.fullmatch(name.split(",")[0])
            assert found
            assert int(found["micros"]) < 1_000_000

    async def test_t10_cancelling_stops_the_delivery(self, box: Path) -> None:
        """T-10: to cancel the future is to cancel the delivery: its file is removed, and nothing is in new/."""
        task = await received(AppendTask(Maildir(box)))
        task.future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.future.cancelled()
        assert contents(box) == NOTHING

    @pytest.mark.parametrize("failing", [1, 2])
    async def test_t11_a_source_that_raises(self, box: Path, failing: int) -> None:
        """T-11: a read that raises, for the first chunk or a later one, fails the delivery and is not tried again."""

        class Source:
            reads = 0

            def read(self, size: int) -> bytes:
                self.reads += 1
                if self.reads == failing:
                    raise ValueError("unreadable")
                return b"x" * size

        source = Source()
        with pytest.raises(AppendError, match="unreadable") as caught:
            await Maildir(box).append(source)
        await turns()
        assert (caught.value.stage, source.reads) == ("receive", failing)
        assert not any(contents(box).values())

    @pytest.mark.parametrize("message", [b"", b"message"])
    async def test_t12_a_close_that_fails_is_told(self, box: Path, message: bytes) -> None:
        """T-12: an error of close, after an empty message too, is told through the result, and nothing is delivered."""
        future = AppendTask(Maildir(box, disk=FaultDisk(tmp_fault(box, "close", errno.EIO))), message).start()
        with pytest.raises(AppendError) as caught:
            await future
        assert (caught.value.errno, caught.value.stage) == (errno.EIO, "close")
        assert contents(box) == NOTHING

    async def test_t13_producers_are_paused_resumed_and_stopped(self, box: Path) -> None:
        """T-13: a push producer is paused while the disk is behind and resumed once, and a second one is refused."""
        gate = Gate()
        task = AppendTask(Maildir(box, disk=FaultDisk(Fault("write", gate=gate))))
        producer = Push()
        task.register_producer(producer, True)
        with pytest.raises(RuntimeError):
            task.register_producer(Push(), True)
        task.write(CHUNK)
        await gate.reached()
        assert producer.told == []
        task.write(CHUNK)
        task.write(b"ignores the pause")
        assert producer.told == ["pause"]
        gate.open()
        while len(producer.told) < 2:
            await asyncio.sleep(0)
        assert producer.told == ["pause", "resume"]
        task.unregister_producer()
        assert (await task).size == 2 * len(CHUNK) + 17
        assert producer.told == ["pause", "resume"]

    async def test_t14_large_messages_take_few_turns(self, box: Path) -> None:
        """T-14: messages begun together are delivered in the order of the calls, and 10 MiB are some twenty chunks."""
        maildir = Maildir(box)
        index = await maildir.index()
        sizes = [(10 - at) * 40_000 for at in range(10)]  # the largest, of most chunks, first
        await asyncio.gather(*(maildir.append(b"x" * size) for size in sizes))
        assert [os.path.getsize(message.path) for message in index] == sizes
        chunks = Chunks()
        producer = as_producer(bytes(10 * 2**20), chunks)
        while not chunks.ended:
            producer.resume_producing()
        assert sum(chunks.sizes) == 10 * 2**20
        assert len(chunks.sizes) <= 20

    @pytest.mark.parametrize("present", [(), ("new",), ("cur", "tmp")], ids=str)
    async def test_t15_a_half_made_maildir_is_repaired(self, box: Path, present: tuple[str, ...]) -> None:
        """T-15: whatever is missing of a maildir is made at the first delivery, and by create."""
        for name in ("", *present):
            (box / name).mkdir()
        await Maildir(box).append(b"message")
        assert contents(box) == {**NOTHING, "new": [b"message"]}
        (box / "cur").rmdir()
        await Maildir(box).create()
        assert (box / "cur").is_dir()

    @pytest.mark.parametrize("make", [lambda: "text", lambda: io.StringIO("text")], ids=["str", "StringIO"])
    async def test_t16_text_is_refused_up_front(self, box: Path, make: Callable[[], Any]) -> None:
        """T-16: a message of text is a TypeError that names its type, before anything is touched."""
        message = make()
        with pytest.raises(TypeError, match=f"not {type(message).__name__}"):
            await Maildir(box).append(message)
        with pytest.raises(TypeError, match=f"not {type(message).__name__}"):
            AppendTask(Maildir(box), message)
        assert not box.exists()

    # T-17 is a defect of Twisted's SMTP route alone: it opens a text file and writes bytes. What ours has of it is the
    # way an SMTP server feeds a message, line by line.
    async def test_t17_lines_of_bytes_are_what_is_fed(self, box: Path) -> None:
        """T-17: a message fed line by line is delivered, if the lines are bytes; text fails it and leaves nothing."""
        lines = [b"Subject: x\r\n", b"\r\n", b"body\r\n"]
        async with Maildir(box).open_append() as task:
            for line in lines:
                await task.send(line)
        assert contents(box)["new"] == [b"".join(lines)]
        with pytest.raises(TypeError, match="not str"):
            async with Maildir(box / "other").open_append() as task:
                await task.send("Subject: x\r\n")  # type: ignore[arg-type]
        assert not any(contents(box / "other").values())

    async def test_t18_line_ends_are_kept(self, box: Path) -> None:
        """T-18: CR, LF, CRLF and a last line without an end are stored as they come, in any cut."""
        message = b"a\r\nb\nc\rd\r\r\n\n\0\xffe"
        await Maildir(box).append(message)
        await Maildir(box).append([message[at : at + 1] for at in range(len(message))])
        assert contents(box)["new"] == [message, message]

    async def test_t19_the_result_tells_the_name(self, box: Path) -> None:
        """T-19: the result has the path, the key and the sizes; nobody has to look for the message."""
        delivered = await Maildir(box).append(b"a\nb\r\n", flags="SF")
        assert Path(delivered.path).read_bytes() == b"a\nb\r\n"
        assert os.path.basename(delivered.path) == f"{delivered.key}:2,FS"
        assert (delivered.size, delivered.wire_size, delivered.flags) == (5, 6, "FS")
