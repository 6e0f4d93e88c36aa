"""Several syncs at once: each has its own outcome, whether the kernel makes them or threads do."""

import array
import errno
import fcntl
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from look import until
from maildir_async.disk import kernel_aio
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.syncs import CallsSideBySide, Syncs
from maildir_async.disk.threads import Crew
from support import PATIENCE_S

linux = pytest.mark.skipif(sys.platform != "linux", reason="kernel AIO is Linux's")


def fsync_all(fds: Sequence[int], crew: Crew | None = None) -> Syncs:
    syncs = kernel_aio.fsync_all([*fds], crew or Crew(64, "threads"))
    if syncs is None:
        pytest.skip("this kernel, or this sandbox, has no kernel AIO: syncs are made by threads here")
    return syncs


def by_threads(fds: Sequence[int], crew: Crew | None = None) -> Syncs:
    return CallsSideBySide(crew or Crew(64, "threads"), [partial(os.fsync, fd) for fd in fds])


BOTH = pytest.mark.parametrize("start", [pytest.param(fsync_all, marks=linux), by_threads])


def outcomes_of(syncs: Syncs) -> dict[int, BaseException | None]:
    """Return what is known by now; nothing is told twice."""
    assert len(set(syncs.ended)) == len(syncs.ended)
    assert set(syncs.failures) <= set(syncs.ended)
    return {number: syncs.failures.get(number) for number in syncs.ended}


def all_of(syncs: Syncs) -> dict[int, BaseException | None]:
    assert syncs.wait(PATIENCE_S)
    return outcomes_of(syncs)


def refuse_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Callable[[int], list[int]]]:
    opened: list[int] = []

    def make(count: int) -> list[int]:
        fds = [os.open(tmp_path / f"{number}", os.O_WRONLY | os.O_CREAT) for number in range(count)]
        opened.extend(fds)
        for fd in fds:
            os.write(fd, b"x" * 5000)
        return fds

    yield make
    for fd in opened:
        os.close(fd)


@BOTH
@pytest.mark.parametrize("count", [0, 1, 2, 64, 300])
def test_each_has_an_outcome(files: Callable[[int], list[int]], start: Callable[..., Syncs], count: int) -> None:
    """However many there are, more than fit into one call too, each has its outcome once."""
    syncs = start(files(count))
    assert all_of(syncs) == dict.fromkeys(range(count))
    for timeout_s in (PATIENCE_S, None):
        assert syncs.wait(timeout_s), "there is nothing more to wait for"
    assert outcomes_of(syncs) == dict.fromkeys(range(count))


@BOTH
def test_one_that_fails_fails_alone(files: Callable[[int], list[int]], start: Callable[..., Syncs]) -> None:
    """What cannot be synced has its errno; those before and after it are synced."""
    reader, writer = os.pipe()
    fds = files(4)
    outcomes = all_of(start([writer, fds[0], fds[1], reader, 999_999, fds[2], fds[3], writer]))
    failed = {number: exc.errno for number, exc in outcomes.items() if isinstance(exc, OSError)}
    assert failed == {0: errno.EINVAL, 3: errno.EINVAL, 4: errno.EBADF, 7: errno.EINVAL}
    assert len(outcomes) == 8
    os.close(reader)
    os.close(writer)


@BOTH
def test_directories(tmp_path: Path, start: Callable[..., Syncs]) -> None:
    """Directories are synced as files are."""
    fds = [os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY) for _ in range(3)]
    assert all_of(start(fds)) == dict.fromkeys(range(3))
    for fd in fds:
        os.close(fd)


FS_IOC_FIEMAP = 0xC020660B  # linux/fiemap.h
DELALLOC, LAST = 0x4, 0x1


def is_on_its_way(fd: int) -> bool:
    """Whether some of a file has no place on the disk yet."""
    request = array.array("B", struct.pack("=QQLLLL", 0, 2**63, 0, 0, 8, 0) + bytes(8 * 56))
    fcntl.ioctl(fd, FS_IOC_FIEMAP, request)
    count = struct.unpack_from("=QQLLLL", request)[3]
    flags = [struct.unpack_from("=QQQQQLLLL", request, 32 + 56 * number)[5] for number in range(count)]
    return any(flag & DELALLOC for flag in flags)


@linux
@BOTH
def test_the_bytes_are_written_out(files: Callable[[int], list[int]], start: Callable[..., Syncs]) -> None:
    """A file whose sync has ended has all of its bytes on the disk, no more in memory only."""
    fds = files(20)
    try:
        if not all(map(is_on_its_way, fds)):
            pytest.skip("this file system gives each byte its place when it is written: nothing to be seen here")
    except OSError as exc:
        pytest.skip(f"this file system does not tell where its bytes are: {exc.strerror}")
    for number, failure in all_of(start(fds)).items():
        assert failure is None
        assert not is_on_its_way(fds[number])


class Hanging:
    """A call that takes as long as the test wants, and fails then."""

    def __init__(self) -> None:
        self.begun, self.release = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.release.wait(PATIENCE_S)
        raise OSError(errno.EIO, "at last")


def test_threads_do_not_wait_for_each_other() -> None:
    """One call that hangs holds up no other; what has ended can be seen by then, the rest when it ends."""
    hanging, crew = Hanging(), Crew(8, "few")
    syncs = CallsSideBySide(crew, [hanging, *[lambda: None] * 40])
    assert hanging.begun.wait(PATIENCE_S)
    until(lambda: len(syncs.ended) == 40)
    assert not syncs.wait(0)
    assert outcomes_of(syncs) == dict.fromkeys(range(1, 41))
    syncs.leave_behind()
    hanging.release.set()
    assert syncs.wait(None)
    assert isinstance(outcomes_of(syncs)[0], OSError)
    assert crew.wait_idle(PATIENCE_S)


def test_who_is_left_behind_has_a_thread_more() -> None:
    """Calls that hang take no thread from others for good: not from their own group's, nor from the next one's."""
    crew, hang = Crew(3, "few"), [Hanging() for _ in range(5)]
    syncs = CallsSideBySide(crew, [*hang, *[lambda: None] * 40])
    assert all(each.begun.wait(PATIENCE_S) for each in hang[:3])
    assert not syncs.wait(0)
    assert not syncs.ended, "all threads hang"
    syncs.leave_behind()
    until(lambda: len(syncs.ended) == 40)
    assert all(each.begun.wait(PATIENCE_S) for each in hang)
    assert all_of(CallsSideBySide(crew, [lambda: None] * 40)) == dict.fromkeys(range(40))
    assert not syncs.wait(None), "which has seen all that have ended now"
    for number in (4, 0, 2, 1, 3):
        hang[number].release.set()
        assert syncs.wait(None) is (number == 3), "one more has ended"
        assert syncs.ended[-1] == number
    assert sorted(syncs.failures) == [0, 1, 2, 3, 4]
    assert crew.wait_idle(PATIENCE_S)
    assert crew._size == 3, "with as many as before"


def test_one_that_ends_as_it_is_left_behind_costs_no_thread() -> None:
    """A call that has ended just before its group is left behind had no thread more, and gives none up."""

    class Ended(list[int]):
        def append(self, number: int) -> None:
            super().append(number)
            if number == 0:
                leaving = threading.Thread(target=syncs.leave_behind)
                leaving.start()
                leaving.join(0.05)  # long enough for one that need not wait; one that must passes in any case

    class Watched(CallsSideBySide):
        def _begin(self, threads: int) -> None:
            if not self._is_left_behind:
                self.ended = Ended()
            super()._begin(threads)

    crew, hanging, first = Crew(2, "few"), Hanging(), threading.Event()
    syncs = Watched(crew, [lambda: first.wait(PATIENCE_S), hanging])
    assert hanging.begun.wait(PATIENCE_S)
    first.set()
    until(lambda: syncs._is_left_behind)
    until(lambda: crew._unfinished == 1)
    assert crew._size == 3
    hanging.release.set()
    assert crew.wait_idle(PATIENCE_S)
    assert crew._size == 2


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no thread, the calls are made all the same."""
    called = threading.Event()
    monkeypatch.setattr(threading.Thread, "start", refuse_thread)
    assert all_of(CallsSideBySide(Crew(8, "none"), [called.set, lambda: None])) == {0: None, 1: None}
    assert called.is_set()


@linux
def test_contexts_are_used_again(files: Callable[[int], list[int]]) -> None:
    """One after another, any number of syncs needs one context of the kernel's; at the same time, one each."""
    fds = files(3)
    all_of(fsync_all(fds))
    before = len(kernel_aio._contexts)
    for _ in range(20):
        all_of(fsync_all(fds))
    assert len(kernel_aio._contexts) == before
    several = [fsync_all(fds) for _ in range(before + 2)]
    for syncs in several:
        assert all_of(syncs) == dict.fromkeys(range(3))
    assert len(kernel_aio._contexts) == before + 2


@linux
def test_a_forked_child_has_contexts_of_its_own(files: Callable[[int], list[int]]) -> None:
    """A child begins without the parent's contexts, which are not its own, and can sync."""
    fds = files(3)
    all_of(fsync_all(fds))
    child = os.fork()
    if not child:
        fine = not kernel_aio._contexts and all_of(fsync_all(fds)) == dict.fromkeys(range(3))
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@linux
def test_without_kernel_aio_threads_sync(files: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has none, or no more, to give, syncs are made by threads, and nobody notices."""

    def refuse(calls: object) -> None:
        raise OSError(errno.EAGAIN, "fs.aio-max-nr is reached")

    monkeypatch.setattr(kernel_aio, "_Context", refuse)
    monkeypatch.setattr(kernel_aio, "_contexts", [])
    crew = Crew(8, "threads")
    assert kernel_aio.fsync_all(files(1), crew) is None
    assert PosixDisk().kernel_syncs(files(1), crew) is None
    monkeypatch.setattr(kernel_aio, "_machine", None)
    assert kernel_aio.fsync_all(files(1), crew) is None


@linux
def test_what_may_hang_for_ever_is_left_to_threads() -> None:
    """A file system without a block device, whose server may never answer, is synced by threads: they can be killed."""
    if os.statvfs("/dev/shm").f_blocks == 0 or os.major(os.stat("/dev/shm").st_dev):
        pytest.skip("no tmpfs here to see it by")
    assert not PosixDisk().syncs_by_kernel(os.stat("/dev/shm").st_dev)


@linux
def test_what_the_kernel_does_not_take_is_synced_all_the_same(
    files: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel too old for these requests refuses each of them: then fsync(2) is called, and its outcome told."""
    all_of(fsync_all(files(1)))
    called: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        called.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)

    def refuse(self: object, fds: object, first: int) -> int:
        raise OSError(errno.EINVAL, "no such request")

    monkeypatch.setattr(kernel_aio._Context, "submit", refuse)
    reader, writer = os.pipe()
    fds = [*files(3), writer]
    outcomes = all_of(fsync_all(fds))
    assert sorted(called) == sorted(fds)
    assert {number: type(failure) for number, failure in outcomes.items()} == {
        **dict.fromkeys(range(3), type(None)),
        3: OSError,
    }
    os.close(reader)
    os.close(writer)


@linux
def test_some_that_the_kernel_does_not_take(files: Callable[[int], list[int]]) -> None:
    """The kernel refuses what is no file that is open: its neighbours are synced, whatever their number and order."""
    fds = files(60)
    bad = dict.fromkeys([0, 7, 8, 59], 999_999)
    outcomes = all_of(fsync_all([bad.get(number, fd) for number, fd in enumerate(fds)]))
    assert sorted(outcomes) == list(range(60))
    failed = {number: exc.errno for number, exc in outcomes.items() if isinstance(exc, OSError)}
    assert failed == dict.fromkeys(bad, errno.EBADF)


@linux
def test_a_failure_that_has_been_taken_is_not_told_again(files: Callable[[int], list[int]]) -> None:
    """Whoever has taken a failure out has it: looking again does not bring it back, whoever made the call."""
    fds = files(2)
    syncs = fsync_all([fds[0], 999_999, fds[1]])
    assert isinstance(all_of(syncs)[1], OSError)
    del syncs.failures[1]
    assert syncs.wait(0)
    assert syncs.failures == {}


@linux
def test_what_fails_while_it_is_looked_at_has_failed(files: Callable[[int], list[int]]) -> None:
    """A call that fails between two looks at the threads that make it never counts as ended without its failure."""

    class InBetween:
        """Ends, in another thread as it were, when it is asked what has ended."""

        failures: ClassVar[dict[int, BaseException]] = {}

        def wait(self, timeout_s: float | None) -> bool:
            return False

        @property
        def ended(self) -> list[int]:
            self.failures.setdefault(0, OSError(errno.EIO, "lost"))
            return [0]

    syncs = fsync_all([999_999, *files(2)])
    setattr(syncs, "_calls", InBetween())  # noqa: B010 a private attribute, of a class that is not told here
    assert isinstance(all_of(syncs)[0], OSError)


class EventsOf:
    """A kernel's context: what has been begun ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.events: list[tuple[int, int]] = []

    def submit(self, fds: list[int], first: int) -> int:
        self.begun += range(first, first + len(fds))
        return len(fds)

    def wait(self, at_least: int, timeout_s: float | None) -> tuple[list[int], list[int]]:
        events, self.events = self.events, []
        return [number for number, _ in events], [result for _, result in events]


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> EventsOf:
    context = EventsOf()
    monkeypatch.setattr(kernel_aio, "_contexts", [context])
    return context


@linux
def test_an_error_of_the_kernel_is_that_files(context: EventsOf) -> None:
    """What the kernel reports for one file, and only once, is that file's failure and nobody else's."""
    syncs = fsync_all([10, 11, 12])
    context.events = [(2, 0), (1, -errno.EIO)]
    assert not syncs.wait(0)
    assert {number: getattr(failure, "errno", None) for number, failure in outcomes_of(syncs).items()} == {
        2: None,
        1: errno.EIO,
    }
    context.events = [(0, 0)]
    assert syncs.wait(0)
    assert sorted(syncs.failures) == [1]


@linux
def test_more_than_a_context_takes_wait_in_line(context: EventsOf) -> None:
    """A context gets no more than it takes at once, and the next ones as those end."""
    syncs = fsync_all([*range(10, 10 + 2 * kernel_aio.DEPTH + 5)])
    assert context.begun == list(range(kernel_aio.DEPTH))
    context.events = [(0, 0), (5, 0)]
    assert not syncs.wait(0)
    assert context.begun == list(range(kernel_aio.DEPTH + 2))
    while not syncs.wait(0):
        context.events = [(number, 0) for number in context.begun if number not in syncs.ended]
    assert sorted(syncs.ended) == list(range(2 * kernel_aio.DEPTH + 5))


@linux
def test_a_context_whose_syncs_hang_is_nobody_elses(context: EventsOf) -> None:
    """As long as the kernel is at a sync, its context is not used again: what ends would be taken for another's."""
    syncs = fsync_all([10, 11])
    context.events = [(0, 0)]
    assert not syncs.wait(0)
    syncs.leave_behind()
    assert kernel_aio._contexts == []
    context.events = [(1, -errno.EIO)]
    assert syncs.wait(None)
    [free] = kernel_aio._contexts
    assert id(free) == id(context)
    assert isinstance(outcomes_of(syncs)[1], OSError)


@linux
def test_the_kernel_is_asked(files: Callable[[int], list[int]]) -> None:
    """The system's own disk has the kernel sync where that can; one whose `sync` is another has that called."""
    all_of(fsync_all(files(1)))  # skips where it cannot
    device = os.fstat(files(1)[0]).st_dev
    if not os.major(device):
        pytest.skip("the temporary directory is on no block device of its own: threads sync it")

    class Another(PosixDisk):
        def sync(self, fd: int) -> None:
            pass

    assert PosixDisk().syncs_by_kernel(device)
    assert not Another().syncs_by_kernel(device)
    syncs = PosixDisk().kernel_syncs(files(64), Crew(8, "threads"))
    assert syncs is not None
    assert all_of(syncs) == dict.fromkeys(range(64))
