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

import pytest

from maildir_async.disk import kernel_aio
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.syncs import Syncs, call_side_by_side
from maildir_async.disk.threads import Crew

linux = pytest.mark.skipif(sys.platform != "linux", reason="kernel AIO is Linux's")


def fsync_all(fds: Sequence[int]) -> Syncs:
    syncs = kernel_aio.fsync_all(fds)
    if syncs is None:
        pytest.skip("this kernel, or this sandbox, has no kernel AIO: syncs are made by threads here")
    return syncs


def by_threads(fds: Sequence[int]) -> Syncs:
    return call_side_by_side([partial(os.fsync, fd) for fd in fds])


BOTH = pytest.mark.parametrize("start", [pytest.param(fsync_all, marks=linux), by_threads])


def all_of(syncs: Syncs) -> dict[int, BaseException | None]:
    found: dict[int, BaseException | None] = {}
    while some := syncs.done(None):
        for number, failure in some:
            assert number not in found, "told twice"
            found[number] = failure
    return found


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
    """However many there are, more than fit into one call too, each outcome is returned once, and then no more."""
    assert all_of(start(files(count))) == dict.fromkeys(range(count))


@BOTH
def test_all_within_the_time(files: Callable[[int], list[int]], start: Callable[..., Syncs]) -> None:
    """With time enough all are returned in one go; afterwards there is nothing to wait for."""
    syncs = start(files(200))
    assert sorted(syncs.done(60)) == [(number, None) for number in range(200)]
    assert not syncs.done(60)
    assert not syncs.done(None)


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
    for number, failure in start(fds).done(60):
        assert failure is None
        assert not is_on_its_way(fds[number])


def test_threads_do_not_wait_for_each_other() -> None:
    """One call that hangs holds up no other; what has ended is told when the time is up, the rest when it ends."""
    hang, begun = threading.Event(), threading.Event()

    def hanging() -> None:
        begun.set()
        assert hang.wait(30)
        raise OSError(errno.EIO, "at last")

    syncs = call_side_by_side([hanging, lambda: None, lambda: None])
    assert begun.wait(30)
    ended: list[int] = []
    while len(ended) < 2:
        ended += [number for number, _ in syncs.done(None)]
    assert sorted(ended) == [1, 2]
    assert not syncs.done(0)
    hang.set()
    [(number, failure)] = syncs.done(None)
    assert number == 0
    assert isinstance(failure, OSError)


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no thread, the calls are made all the same."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    called = threading.Event()
    monkeypatch.setattr("maildir_async.disk.syncs._crew", Crew(8, "none"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert all_of(call_side_by_side([called.set, lambda: None])) == {0: None, 1: None}
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
    assert kernel_aio.fsync_all(files(1)) is None
    assert all_of(PosixDisk().start_syncs(files(3))) == dict.fromkeys(range(3))
    monkeypatch.setattr(kernel_aio, "_calls", lambda: None)
    assert kernel_aio.fsync_all(files(1)) is None


@linux
def test_what_may_hang_for_ever_is_left_to_threads() -> None:
    """A file system without a block device, whose server may never answer, is synced by threads: they can be killed."""
    if os.statvfs("/dev/shm").f_blocks == 0 or os.major(os.stat("/dev/shm").st_dev):
        pytest.skip("no tmpfs here to see it by")
    fds = [os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY) for _ in range(3)]
    syncs = PosixDisk().start_syncs(fds)
    assert type(syncs).__module__ == "maildir_async.disk.syncs"
    assert all_of(syncs) == dict.fromkeys(range(3))
    for fd in fds:
        os.close(fd)


@linux
def test_what_the_kernel_does_not_take_is_synced_all_the_same(
    files: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel too old for these requests refuses each of them: then fsync(2) is called, and its outcome told."""
    fsync_all(files(1)).done(60)
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
def test_the_kernel_is_asked(files: Callable[[int], list[int]]) -> None:
    """The system's own disk has the kernel sync where that can; one whose `sync` is another has that called."""
    fsync_all(files(1)).done(60)  # skips where it cannot
    if not os.major(os.fstat(files(1)[0]).st_dev):
        pytest.skip("the temporary directory is on no block device of its own: threads sync it")
    assert type(PosixDisk().start_syncs(files(64))).__module__ == "maildir_async.disk.kernel_aio"
    synced: list[int] = []

    class Another(PosixDisk):
        def sync(self, fd: int) -> None:
            synced.append(fd)

    fds = files(5)
    assert all_of(Another().start_syncs(fds)) == dict.fromkeys(range(5))
    assert sorted(synced) == sorted(fds)
