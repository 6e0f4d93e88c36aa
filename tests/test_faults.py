"""Every system call of a delivery fails, with every errno a disk has: what is told is true, nothing is left."""

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from look import Look, chunks_of, descriptors
from maildir_async import AppendError, Delivered, GroupCommit, Maildir, UncertainAppendError
from maildir_async.testing import Fault, FaultDisk
from support import some

ERRNOS = {
    errno.EIO: "451 4.3.0",
    errno.ENOSPC: "452 4.3.1",
    errno.EDQUOT: "452 4.2.2",
    errno.EMFILE: "452 4.3.1",
    errno.EACCES: "451 4.3.5",
    errno.EROFS: "451 4.3.5",
    errno.ESTALE: "451 4.2.0",
    errno.EINTR: "451 4.3.0",
}
STAGES = {
    "create": "create",
    "chmod": "create",
    "write": "write",
    "utime": "write",
    "sync": "sync",
    "close": "close",
    "open_directory": "publish",
    "stat": "publish",
    "identity": "publish",
    "rename_noreplace": "publish",
}
LONG = b"0123456789abcdef" * 65536 + b"tail"  # two chunks and a rest: create and write are hops of their own

# A call on a path in tmp/, or one that publishes, is about one message; one on new/ is about all that arrive there.
ABOUT_ONE = {"create", "chmod", "write", "utime", "sync", "close", "rename_noreplace"}


async def _deliver(maildir: Maildir, messages: list[Any]) -> list[Delivered | Exception]:
    deliveries = [maildir.append(message, received_at=1_000_000_000) for message in messages]
    results = await asyncio.gather(*deliveries, return_exceptions=True)
    return [result for result in results if not isinstance(result, BaseException) or isinstance(result, Exception)]


def _maildir(path: Path, disk: FaultDisk) -> Maildir:
    return Maildir(path, disk=disk, commit=GroupCommit(), file_mode=0o640)


async def _calls(path: Path, make: Callable[[], list[Any]]) -> list[tuple[str, bool]]:
    """Return which calls deliveries make into a maildir that is known to be durable: name, and whether on tmp/."""
    disk = FaultDisk()
    maildir = _maildir(path, disk)
    await maildir.append(b"first use")
    disk.calls.clear()
    await _deliver(maildir, make())
    return sorted(
        {(call.operation, f"{path}/tmp/" in call.path) for call in disk.calls if call.operation != "start_writeback"}
    )


@pytest.mark.parametrize("number", some(ERRNOS, 3), ids=errno.errorcode.get)
@pytest.mark.parametrize("what", ["one", "batch", "stream"])
def test_every_call_fails(tmp_path: Path, what: str, number: int) -> None:
    """Whichever call fails: AppendError with its errno, stage and reply, nothing left; or the message, truthfully."""

    def make() -> list[Any]:
        if what == "one":
            return [b"one message"]
        if what == "stream":
            return [chunks_of(LONG, 100_000)()]
        return [b"%d of 16" % i for i in range(16)]

    async def main() -> None:
        calls = await _calls(tmp_path / "dry", make)
        assert {"create", "write", "sync", "close", "rename_noreplace", "open_directory"} <= {name for name, _ in calls}
        for operation, on_tmp in calls:
            # The 7th of 16 such calls; in a lone delivery the only one. (nth counts from when the fault is set.)
            for nth in (
                {1, 7} if what == "batch" and operation in ABOUT_ONE and (on_tmp or operation[0] == "r") else {1}
            ):
                await fail(operation, on_tmp, nth)

    async def fail(operation: str, on_tmp: bool, nth: int) -> None:
        disk = FaultDisk()
        maildir = _maildir(tmp_path / f"{operation}-{on_tmp}-{nth}", disk)
        look = Look(maildir.path)
        await maildir.append(b"first use")
        before = look.names("new")
        disk.faults.append(Fault(operation, number, nth=nth, path=f"{maildir.path}/{'tmp/' if on_tmp else 'new'}"))
        results = await _deliver(maildir, make())
        look.assert_tmp_empty()
        assert not descriptors(tmp_path)
        names = set(look.names("new")) - set(before)
        failed = [result for result in results if isinstance(result, Exception)]
        if operation == "close" and not on_tmp:  # the directory's: it has been synced
            assert not failed
            assert all("closing" in result.warnings[0] for result in results if isinstance(result, Delivered))
        elif operation == "sync" and not on_tmp:
            assert len(failed) == len(results)
            for exc in failed:
                assert isinstance(exc, UncertainAppendError)
                assert (exc.errno, exc.stage, exc.smtp_reply[:9]) == (number, "sync_directory", "451 4.3.0")
                assert Path(exc.path).exists()
        else:
            # Too many open files: those there are get closed, and the message has another try.
            assert len(failed) == 1 or (number == errno.EMFILE and not failed)
            for exc in failed:
                assert type(exc) is AppendError
                assert (exc.errno, exc.stage) == (
                    number,
                    "write" if on_tmp and operation == "stat" else STAGES[operation],
                )
                assert exc.smtp_reply.startswith(ERRNOS[number])
                assert exc.temporary
                assert str(tmp_path) not in exc.smtp_reply
        visible = [result for result in results if isinstance(result, Delivered | UncertainAppendError)]
        assert {Path(result.path).name for result in visible} == names
        # The next delivery finds nothing broken.
        assert isinstance(await maildir.append(b"afterwards"), Delivered)

    asyncio.run(main())


@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
async def test_every_call_of_a_first_delivery_fails(tmp_path: Path, number: int) -> None:
    """Where the maildir has yet to be made, each call that fails leaves no message, or is told as uncertain."""
    dry = FaultDisk()
    await _maildir(tmp_path / "dry" / "a" / "b", dry).append(b"message")
    for nth, call in enumerate(dry.calls, 1):
        if call.operation == "start_writeback":
            continue
        maildir = _maildir(tmp_path / f"m{nth}" / "a" / "b", FaultDisk(Fault("", number, nth=nth)))
        look = Look(maildir.path)
        (result,) = await asyncio.gather(maildir.append(b"message"), return_exceptions=True)
        if isinstance(result, Delivered | UncertainAppendError):
            assert look.messages() == [b"message"]
        else:
            assert isinstance(result, AppendError), result
            assert result.errno == number
            assert look.messages() == []
        look.assert_tmp_empty()
        assert not descriptors(tmp_path)


@pytest.mark.parametrize("what", ["one", "stream"])
async def test_short_writes_are_completed(tmp_path: Path, what: str) -> None:
    """A disk that writes seven bytes at a time stores the whole message."""
    message = b"Subject: short writes\n\n" + b"x" * 100 if what == "one" else LONG[: 2**19 + 1000]
    disk = FaultDisk(Fault("write", nth=0, shorten=7 if what == "one" else 4000))
    maildir = Maildir(tmp_path / "m", disk=disk)
    delivered = await maildir.append(chunks_of(message, 5000)() if what == "stream" else message)
    assert Path(delivered.path).read_bytes() == message
    assert delivered.size == len(message)


async def test_write_that_makes_no_progress_is_an_error(tmp_path: Path) -> None:
    """A disk that writes nothing, and says so, is not asked for ever."""
    maildir = Maildir(tmp_path / "m", disk=FaultDisk(Fault("write", nth=0, shorten=0)))
    with pytest.raises(AppendError) as caught:
        await maildir.append(b"message")
    assert caught.value.errno == errno.EIO
    Look(maildir.path).assert_tmp_empty()


async def test_failed_sync_is_not_repeated(tmp_path: Path) -> None:
    """After a failed file sync nothing syncs that file again: the second would report success for lost data."""
    disk = FaultDisk(Fault("sync", errno.EIO, path="m/tmp/"))
    maildir = Maildir(tmp_path / "m", disk=disk)
    with pytest.raises(AppendError):
        await maildir.append(b"message")
    assert [call.operation for call in disk.calls if "m/tmp/" in call.path].count("sync") == 1


STEPS = [
    ("create", "m/tmp/"),
    ("write", "m/tmp/"),
    ("sync", "m/tmp/"),
    ("close", "m/tmp/"),
    ("rename_noreplace", "m/new/"),
]


@pytest.mark.parametrize(("operation", "path"), STEPS)
def test_hanging_call_delays_nobody_else(tmp_path: Path, operation: str, path: str) -> None:
    """One message whose system call hangs is delivered when that returns; the fifteen beside it long before."""

    async def main() -> None:
        hangs, release = threading.Event(), threading.Event()

        def gate() -> None:
            hangs.set()
            assert release.wait(60)

        disk = FaultDisk()
        maildir = Maildir(tmp_path / "m", disk=disk, commit=GroupCommit())
        await maildir.append(b"first use")
        disk.faults.append(Fault(operation, path=path, nth=5, gate=gate))
        deliveries = [asyncio.ensure_future(maildir.append(b"%d" % number)) for number in range(16)]
        done, pending = await asyncio.wait(deliveries, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 15 and pending:
            more, pending = await asyncio.wait(pending, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            assert more, "the others wait for the one that hangs"
            done |= more
        assert hangs.is_set()
        assert len(pending) == 1
        await maildir.append(b"and those that come later are delivered too")
        assert len(Look(maildir.path).names("new")) == 17 or operation == "rename_noreplace"
        release.set()
        await asyncio.gather(*pending)
        assert len(Look(maildir.path).messages()) == 18
        Look(maildir.path).assert_tmp_empty()
        assert not descriptors(tmp_path)

    asyncio.run(main())


async def test_directory_that_cannot_be_synced_here_is_told_as_a_warning(tmp_path: Path) -> None:
    """Where the file system has no directory sync, a message is delivered, at the level that was reached."""
    disk = FaultDisk(Fault("sync", errno.EINVAL, nth=0, path="/new"))
    delivered = await Maildir(tmp_path / "m", disk=disk).append(b"message")
    assert delivered.durability.name == "FILE"
    assert "cannot sync a directory" in delivered.warnings[0]


async def test_tmp_file_that_cannot_be_removed_after_link_is_told_as_a_warning(tmp_path: Path) -> None:
    """An error after the message is visible never reads as if it were not delivered."""
    disk = FaultDisk(Fault("rename_noreplace", errno.EINVAL, nth=0), Fault("unlink", errno.EIO, nth=0))
    maildir = Maildir(tmp_path / "m", disk=disk)
    delivered = await maildir.append(b"message")
    assert Look(maildir.path).messages() == [b"message"]
    assert "could not be removed" in delivered.warnings[0]
