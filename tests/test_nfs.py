"""What NFS does to a delivery, on a disk that answers as it does: stale handles, lost replies, silly renames."""

import errno
from pathlib import Path

import pytest

from look import Look, chunks_of, descriptors
from maildir_async import AppendError, Delivered, Maildir, Quota, UncertainAppendError
from maildir_async.testing import Fault, FaultDisk

MESSAGE = b"Subject: over the network\n\n" + b"x" * 1000


def _network_disk(*faults: Fault) -> FaultDisk:
    """Return a disk without renameat2(RENAME_NOREPLACE) and O_TMPFILE, as NFS is."""
    return FaultDisk(
        *faults,
        Fault("rename_noreplace", errno.EINVAL, nth=0),
        Fault("create_unnamed", errno.EOPNOTSUPP, nth=0),
    )


async def _deliver(maildir: Maildir, what: str) -> Delivered | AppendError:
    try:
        return await maildir.append(chunks_of(MESSAGE, 100)() if what == "stream" else MESSAGE)
    except AppendError as exc:
        return exc


@pytest.mark.parametrize("what", ["bytes", "stream", pytest.param("quota", marks=pytest.mark.heavy)])
@pytest.mark.parametrize(
    ("number", "late"),
    [(errno.ESTALE, False), (errno.ESTALE, True), (errno.EEXIST, True)],
    ids=["stale", "stale-though-done", "there-since-done"],
)
async def test_any_call_that_fails_or_loses_its_reply(tmp_path: Path, what: str, number: int, late: bool) -> None:
    """Whichever call fails, done or not: acknowledged is there once and whole, refused is not, uncertain says so."""
    quota = Quota(bytes=2**30) if what == "quota" else None
    for nth in range(1, 100):
        path = tmp_path / str(nth)
        disk = _network_disk()
        maildir = Maildir(path, disk=disk, quota=quota)
        await maildir.append(b"first use")
        disk.calls.clear()
        fault = Fault("", number, nth=nth, late=late)
        disk.faults.insert(0, fault)
        result = await _deliver(maildir, what)
        failed = disk.calls[nth - 1] if fault.seen >= nth else None
        messages = [message for message in Look(path).messages() if message != b"first use"]
        if isinstance(result, Delivered):
            assert messages == [MESSAGE], failed
            assert Path(result.path).read_bytes() == MESSAGE
        elif isinstance(result, UncertainAppendError):
            assert messages in ([MESSAGE], []), failed
        else:
            assert messages == [], failed
            assert result.temporary
        if failed is None or failed.operation not in (("create",) if late else ("unlink",)):
            Look(path).assert_tmp_empty()
        elif not late:  # what cannot be removed stays, and is told of
            assert isinstance(result, Delivered)
            assert "could not be removed" in result.warnings[0]
        # A file whose creation was told as a failure is nobody's, and goes stale.
        if not late:  # else the disk that pretends has opened what nobody knows of
            assert not descriptors(path), failed
        disk.faults.remove(fault)
        assert isinstance(await maildir.append(b"afterwards"), Delivered)
        if failed is None:
            break
    assert nth > 5


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", ["sync", "close"])
@pytest.mark.parametrize("what", ["bytes", "stream"])
async def test_what_the_server_says_only_at_last(tmp_path: Path, what: str, operation: str, number: int) -> None:
    """A write that was taken, and is refused at fsync or at close, is never acknowledged, and leaves nothing."""
    disk = _network_disk()
    maildir = Maildir(tmp_path / "m", disk=disk)
    await maildir.append(b"first use")
    disk.faults.insert(0, Fault(operation, number, path="/m/tmp/"))
    result = await _deliver(maildir, what)
    assert type(result) is AppendError
    assert (result.errno, result.stage) == (number, operation)
    assert Look(maildir.path).messages() == [b"first use"]
    Look(maildir.path).assert_tmp_empty()


@pytest.mark.parametrize("what", ["bytes", "stream"])
async def test_a_link_whose_reply_was_lost(tmp_path: Path, what: str) -> None:
    """A link that was made, and is told as EEXIST when the client asks again, is one delivery, and told of."""
    disk = _network_disk(Fault("link", errno.EEXIST, late=True))
    delivered = await _deliver(Maildir(tmp_path / "m", disk=disk), what)
    assert isinstance(delivered, Delivered)
    assert any("published in spite of" in warning for warning in delivered.warnings)
    assert Look(tmp_path / "m").messages() == [MESSAGE]
    Look(tmp_path / "m").assert_tmp_empty()


@pytest.mark.parametrize("what", ["bytes", "stream"])
async def test_nothing_is_removed_while_it_is_open(tmp_path: Path, what: str) -> None:
    """The file in tmp/ is closed before it is unlinked: of an open one an NFS client makes a ``.nfsXXXX`` there."""
    disk = _network_disk()
    await _deliver(Maildir(tmp_path / "m", disk=disk), what)
    about = [call.operation for call in disk.calls if "/m/tmp/" in call.path]
    assert about.index("close") < about.index("unlink")


async def test_silly_renames_are_no_messages(tmp_path: Path) -> None:
    """A ``.nfsXXXX`` in new/, cur/ or tmp/, a file that some client has open still, counts for no quota, and stays."""
    maildir = Maildir(tmp_path / "m", disk=_network_disk(), quota=Quota(messages=2))
    await maildir.append(MESSAGE)
    for where in ("new", "cur", "tmp"):
        (tmp_path / "m" / where / ".nfs000000000012d68700000001").write_bytes(MESSAGE)
    (tmp_path / "m" / "maildirsize").unlink(missing_ok=True)  # counted anew
    assert isinstance(await maildir.append(MESSAGE), Delivered)
    for where in ("new", "cur", "tmp"):
        assert (tmp_path / "m" / where / ".nfs000000000012d68700000001").exists()
