"""Faults that are real: the kernel has no room, no right, no descriptor, no memory, or a disk that errs.

Each has a program deliver while the fault is there, and another when it is gone. While it is: what cannot be delivered
is told by an error of the package, with the kernel's errno and a reply for the client, and leaves nothing.
When it is gone: the next delivery works, and all that was ever acknowledged is there, whole and once.
"""

import asyncio
import ctypes
import errno
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

from maildir_async import Maildir
from maildir_async.errors import MaildirError

from .checks import in_tmp, names_in, wrong_with
from .kills import Result
from .places import MIB, MissingError, bad_disk, mounted, read_only_by_force, remounted
from .scenarios import SCENARIOS, Tell, message
from .traced import Run, run_plain

__all__ = ["REAL", "MissingError"]

_ALONE: Final = SCENARIOS["alone"]


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]


async def _attempt(maildir: Maildir, name: str, tell: Tell, size: int = 3000, *, stream: bool = False) -> None:
    """Deliver one message, and tell of it, or of what the package raises: as ``!name``, with errno and reply."""
    content = message(name, size)
    await _attempt_with(maildir, name, tell, _chunks(content) if stream else content)


async def _attempt_with(maildir: Maildir, name: str, tell: Tell, content: bytes | AsyncIterator[bytes]) -> None:
    try:
        delivered = await maildir.append(content)
    except MaildirError as exc:
        number = getattr(exc, "errno", None)
        tell(f"!{name}", f"{errno.errorcode.get(number or 0)} {type(exc).__name__} {getattr(exc, 'smtp_reply', '')}")
    else:
        tell(name, delivered.path)


def _told(run: Run) -> list[tuple[str, str]]:
    return [each for each in run.told if not each[0].startswith("!")]


def _failed(run: Run) -> dict[str, str]:
    return {name[1:]: text for name, text in run.told if name.startswith("!")}


class _Case:
    """One case: what has been run in it, and what was wrong."""

    def __init__(self, name: str) -> None:
        self.result = Result(name)
        self._told = list[tuple[str, str]]()

    def run(self, what: str, job: Callable[[Tell], Awaitable[None]]) -> Run:
        """Run *job* in a process of its own; what it has acknowledged has to stay."""
        done = run_plain(job)
        if done.error or done.hung or done.signal:
            self.wrong(f"{what}: {done.error or ('it hangs' if done.hung else f'signal {done.signal}')}")
        self._told += _told(done)
        self.result.figures["acknowledged"] += len(_told(done))
        self.result.figures["errors told"] += len(_failed(done))
        self.result.slowest_s = max(self.result.slowest_s, done.seconds)
        return done

    def wrong(self, fault: str) -> None:
        """Have it known."""
        self.result.faults.append(fault)

    def expect(self, done: Run, *texts: str, at_least: int = 1) -> None:
        """So many have failed, each with one of *texts* at the beginning of what was told of it."""
        failed = _failed(done)
        if len(failed) < at_least:
            self.wrong(f"{len(failed)} have failed, of {at_least} that cannot have been delivered: {done.told}")
        for name, text in failed.items():
            if not text.startswith(texts):
                self.wrong(f"{name}: {text}, and not {' or '.join(texts)}")

    def look(self, place: Path, *, litter: int = 0, exact: bool = True) -> None:
        """Check all that has been acknowledged so far; with *exact*, nothing else is there."""
        self.result.faults += wrong_with(place, _ALONE, self._told)
        if len(left := in_tmp(place, _ALONE)) > litter:
            self.wrong(f"left in tmp/: {[path.name for path in left]}")
        if exact and (more := names_in(place, _ALONE) - {name for name, _ in self._told}):
            self.wrong(f"there, and not acknowledged: {sorted(more)}")


def _one(place: Path, name: str, size: int = 3000, *, stream: bool = False) -> Callable[[Tell], Awaitable[None]]:
    return lambda tell: _attempt(Maildir(place / "m"), name, tell, size, stream=stream)


def _several(place: Path, tag: str, count: int, size: int = 3000) -> Callable[[Tell], Awaitable[None]]:
    async def deliver(tell: Tell) -> None:
        maildir = Maildir(place / "m")
        await asyncio.gather(*(_attempt(maildir, f"{tag}{number}", tell, size) for number in range(count)))

    return deliver


def _fill(path: Path) -> None:
    """Take every block there is."""
    with open(path, "wb", buffering=0) as file:
        for size in (MIB, 4096, 512, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
        os.fsync(file.fileno())


def full_of_blocks(work: Path) -> Result:
    """Not a block is free: ENOSPC, and what was written is removed."""
    case = _Case("a full disk")
    with mounted(work, "ext4", size=16 * MIB, make=("-m", "0")) as (place, _):
        case.run("before", _one(place, "before"))
        _fill(place / "full")
        case.expect(case.run("full", _several(place, "full-", 8, 30_000)), "ENOSPC AppendError 452 4.3.1", at_least=8)
        stream = case.run("full, a stream", _one(place, "stream", 3 * MIB, stream=True))
        case.expect(stream, "ENOSPC AppendError 452 4.3.1")
        case.look(place)
        (place / "full").unlink()
        case.expect(case.run("after", _several(place, "after-", 8)), at_least=0)
        case.look(place)
    return case.result


def full_of_inodes(work: Path) -> Result:
    """There are blocks, and no inode."""
    case = _Case("a disk without inodes")
    with mounted(work, "ext4", size=16 * MIB, make=("-m", "0", "-N", "64")) as (place, _):
        case.run("before", _one(place, "before"))
        made = list[Path]()
        try:
            while True:
                made.append(place / f"full{len(made)}")
                made[-1].touch()
        except OSError:
            made.pop()
        case.expect(case.run("full", _several(place, "full-", 4)), "ENOSPC AppendError 452 4.3.1", at_least=4)
        case.look(place)
        for path in made:
            path.unlink()
        case.expect(case.run("after", _several(place, "after-", 4)), at_least=0)
        case.look(place)
    return case.result


def over_quota(work: Path) -> Result:
    """A quota of the file system: EDQUOT, which is the mailbox's want of room, not the disk's. Btrfs has one here.

    ext4's takes CONFIG_QFMT_V2, and XFS's CONFIG_XFS_QUOTA, which kernels of virtual machines often lack.
    """
    case = _Case("a quota of the file system")
    with mounted(work, "btrfs", size=256 * MIB) as (place, _):

        def btrfs(*arguments: str) -> None:
            done = subprocess.run(["btrfs", *arguments], capture_output=True, text=True)
            if done.returncode:
                raise MissingError(f"btrfs {arguments[0]}: {done.stderr.strip()}")

        btrfs("quota", "enable", str(place))
        btrfs("subvolume", "create", str(place / "m"))
        case.run("before", _one(place, "before"))
        btrfs("qgroup", "limit", "8M", str(place / "m"))
        case.expect(case.run("over", _one(place, "over", 12 * MIB, stream=True)), "EDQUOT AppendError 452 4.2.2")
        case.look(place)
        btrfs("qgroup", "limit", "none", str(place / "m"))
        case.expect(case.run("after", _one(place, "after", 12 * MIB, stream=True)), at_least=0)
        case.look(place)
    return case.result


def read_only(work: Path) -> Result:
    """The kernel finds an error in ext4 under load and makes it read-only: after fsck all acknowledged is there."""
    case = _Case("a disk that becomes read-only under load")
    with mounted(work, "ext4", options="errors=remount-ro") as (place, device):
        case.run("before", _one(place, "before"))

        async def load(tell: Tell) -> None:
            maildir = Maildir(place / "m")
            acknowledged = 0

            def count(name: str, path: str) -> None:
                nonlocal acknowledged
                acknowledged += not name.startswith("!")
                tell(name, path)

            async def writer(number: int) -> None:
                for each in range(10_000):
                    before = acknowledged
                    await _attempt(maildir, f"load-{number}-{each}", count, 20_000)
                    if acknowledged >= 100 and number == 0 and before < 10_000:
                        await asyncio.to_thread(_break_once, device)
                    if _is_read_only(place):
                        return

            await asyncio.gather(*map(writer, range(16)))

        case.expect(case.run("under load", load), "EROFS ", "EIO ", at_least=0)
        case.expect(case.run("read-only", _several(place, "later-", 4)), "EROFS AppendError 451 4.3.5", at_least=4)
        remounted(place, device, check=True)
        case.look(place, litter=16, exact=False)
        case.expect(case.run("after", _several(place, "after-", 4)), at_least=0)
        case.look(place, litter=16, exact=False)
        if case.result.figures["acknowledged"] < 100:
            case.wrong("it became read-only before there was a load")
    return case.result


def _break_once(device: str) -> None:
    if not _is_broken(device):
        read_only_by_force(device)


def _is_broken(device: str) -> bool:
    count = Path("/sys/fs/ext4") / Path(device).name / "errors_count"
    return count.exists() and count.read_text().strip() != "0"


def _is_read_only(place: Path) -> bool:
    try:
        (place / "probe").touch()
    except OSError:
        return True
    return False


def bad_sectors(work: Path) -> Result:
    """A disk that errs under ext4, where the message's own bytes are: kernel AIO's sync tells it, and of it alone."""
    case = _Case("bad sectors under messages")
    with bad_disk(work) as (disk, control), mounted(work, "ext4", on=disk) as (place, device):
        # A write of one file's blocks is not to be one with its neighbour's.
        (Path("/sys/block") / Path(device).name / "queue" / "nomerges").write_text("2")
        case.run("before", _one(place, "before"))
        for number in range(4):
            control.write_text("Subject: bad")

            async def mixed(tell: Tell, at: int = number) -> None:
                maildir = Maildir(place / "m")
                names = [f"{'bad' if each % 4 == 1 else 'good'}-{at}-{each}" for each in range(16)]
                await asyncio.gather(*(_attempt(maildir, name, tell, 20_000) for name in names))

            done = case.run("in a batch", mixed)
            case.expect(done, "EIO AppendError 451 4.3.0", at_least=4)
            wrongly = [name for name in _failed(done) if not name.startswith("bad")]
            if wrongly:
                case.wrong(f"failed with those beside them: {wrongly}")
            if any(name.startswith("bad") for name, _ in _told(done)):
                case.wrong("acknowledged, and not on the disk")
            case.expect(case.run("alone", _one(place, f"bad-{number}")), "EIO AppendError 451 4.3.0")
            case.look(place)
            control.write_text("")
            case.expect(case.run("after", _several(place, f"after-{number}-", 4)), at_least=0)
            case.look(place)
        remounted(place, device)
        case.look(place)
    return case.result


def bad_journal(work: Path) -> Result:
    """A disk that takes nothing any more, under load: the journal is given up, and what was acknowledged is there."""
    case = _Case("a disk that takes nothing any more")
    with bad_disk(work) as (disk, control), mounted(work, "ext4", on=disk) as (place, device):
        case.run("before", _several(place, "before-", 16))

        async def load(tell: Tell) -> None:
            maildir = Maildir(place / "m")

            async def writer(number: int) -> None:
                for each in range(20):
                    if (number, each) == (0, 10):
                        control.write_text("ALL")
                    await _attempt(maildir, f"load-{number}-{each}", tell, 20_000)

            await asyncio.gather(*map(writer, range(16)))

        # Once the journal has been given up, ext4 refuses everything with EIO or EROFS.
        case.expect(case.run("under load", load), "EIO ", "EROFS ", at_least=16)
        control.write_text("")
        remounted(place, device, check=True)
        case.look(place, litter=16, exact=False)
        case.expect(case.run("after", _several(place, "after-", 16)), at_least=0)
        case.look(place, litter=16, exact=False)
    return case.result


def without_aio(work: Path) -> Result:
    """Another process has all of ``fs.aio-max-nr``: threads sync, and nobody notices."""
    case = _Case("no kernel AIO left")
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _take_all_aio()
        os.write(theirs, b"x")
        signal.pause()
        os._exit(1)
    os.close(theirs)
    try:
        if os.read(ours, 1) != b"x":
            raise MissingError("no kernel AIO here")
        case.expect(case.run("none left", _several(work, "first-", 32)), at_least=0)
        case.look(work)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
    case.expect(case.run("after", _several(work, "after-", 32)), at_least=0)
    case.look(work)
    return case.result


def _take_all_aio() -> None:
    """Set contexts up until there are none: io_setup(2) says EAGAIN."""
    if os.uname().machine not in ("x86_64", "aarch64"):
        os._exit(1)
    call = ctypes.CDLL(None, use_errno=True).syscall
    number = 206 if os.uname().machine == "x86_64" else 0
    size = 4096
    while size:
        if call(ctypes.c_long(number), ctypes.c_long(size), ctypes.byref(ctypes.c_ulong())) < 0:
            size //= 2


def _limited(
    case: _Case, work: Path, kind: int, limit: Callable[[], int], *texts: str, size: int, count: int, at_least: int = 1
) -> Result:
    """Deliver in one process before, under, and after a limit of its own."""

    async def deliver(tell: Tell) -> None:
        maildir = Maildir(work / "m")
        await _attempt(maildir, "before", tell)
        hard = resource.getrlimit(kind)[1]
        soft = resource.getrlimit(kind)[0]
        resource.setrlimit(kind, (limit(), hard))
        try:
            jobs = (_attempt(maildir, f"under-{each}", tell, size, stream=size > 100_000) for each in range(count))
            await asyncio.gather(*jobs)
        finally:
            resource.setrlimit(kind, (soft, hard))
        await asyncio.gather(*(_attempt(maildir, f"after-{each}", tell, size) for each in range(8)))

    done = case.run("limited", deliver)
    case.expect(done, *texts, at_least=at_least)
    if sum(name.startswith("after") for name, _ in _told(done)) != 8:
        case.wrong(f"the limit is gone, and yet: {[text for name, text in _failed(done).items() if name[0] == 'a']}")
    case.look(work)
    return case.result


def few_descriptors(work: Path) -> Result:
    """RLIMIT_NOFILE: with a few free, all are delivered, a few at a time; with none, each is told so."""

    def free(count: int) -> Callable[[], int]:
        return lambda: max(map(int, os.listdir("/proc/self/fd"))) + 1 + count

    case = _Case("few descriptors")
    _limited(case, work, resource.RLIMIT_NOFILE, free(6), "EMFILE ", size=3000, count=200, at_least=0)
    if case.result.figures["errors told"]:
        case.wrong("six descriptors are enough for one message after the other")
    none = _Case("no descriptors")
    place = Path(tempfile.mkdtemp(dir=work))
    _limited(none, place, resource.RLIMIT_NOFILE, lambda: 0, "EMFILE AppendError 452 4.3.1", size=3000, count=20)
    case.result.faults += [f"none at all: {fault}" for fault in none.result.faults]
    case.result.figures += none.result.figures
    return case.result


def small_files(work: Path) -> Result:
    """RLIMIT_FSIZE: EFBIG (Python ignores SIGXFSZ), after a part of it has been written."""
    texts = ("EFBIG AppendError 552 5.3.4", "EFBIG AppendError 554", "EFBIG AppendError 5")
    case = _Case("small files")
    return _limited(case, work, resource.RLIMIT_FSIZE, lambda: 1_000_000, *texts, size=1_500_000, count=4, at_least=4)


def little_memory(work: Path) -> Result:
    """RLIMIT_AS: a thread cannot be started, or a chunk not be had; nothing is torn, nobody waits for ever."""

    def now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    case = _Case("little memory")

    async def deliver(tell: Tell) -> None:
        maildir = Maildir(work / "m")
        await _attempt(maildir, "before", tell)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        contents = [message(f"under-{each}", 1_500_000) for each in range(16)]
        for each, content in enumerate(contents):  # each time with half a mebibyte more
            resource.setrlimit(resource.RLIMIT_AS, (now() + each * MIB // 2, hard))
            await _attempt_with(maildir, f"under-{each}", tell, _chunks(content) if each % 2 else content)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        await asyncio.gather(*(_attempt(maildir, f"after-{each}", tell) for each in range(8)))

    done = case.run("limited", deliver)
    # "can't start new thread" has no errno: what is told is that it is temporary.
    case.expect(done, "ENOMEM ", "EAGAIN ", "None AppendError 451 4.3.0", at_least=0)
    if sum(name.startswith("after") for name, _ in _told(done)) != 8:
        case.wrong(f"there is memory again, and yet: {_failed(done)}")
    case.look(work)
    return case.result


REAL: Final[dict[str, Callable[[Path], Result]]] = {
    "full-blocks": full_of_blocks,
    "full-inodes": full_of_inodes,
    "file-system-quota": over_quota,
    "read-only": read_only,
    "bad-sectors": bad_sectors,
    "bad-journal": bad_journal,
    "no-aio": without_aio,
    "descriptors": few_descriptors,
    "file-size": small_files,
    "memory": little_memory,
}
