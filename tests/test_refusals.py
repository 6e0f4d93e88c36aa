"""What a delivery is refused by its error says, for the log; its SMTP reply does not."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from maildir_async import AppendError, GroupCommit, Maildir, UncertainAppendError
from maildir_async.testing import Fault, FaultDisk
from support import forked

as_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: it takes root to become another user")

ALICE: Final = 61001
VMAIL: Final = 61100
MAIL: Final = b"Subject: x\n\nbody\n"
LARGE: Final = b"x" * 1_500_000
REPLY: Final = "451 4.3.5 Mailbox temporarily unavailable"


@pytest.fixture
def box() -> Iterator[Path]:
    """A maildir that is Alice's, in a directory that everybody can enter."""
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        path = root / "home/box"
        for name in ("tmp", "new", "cur"):
            (path / name).mkdir(parents=True)
        for each in (root / "home", path, *path.iterdir()):
            try:
                os.chown(each, ALICE, ALICE)
            except OSError:
                pytest.skip("NOT TESTED: there are no other users here")
            each.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(root)


def refused(box: Path, message: bytes = MAIL, *, call: str = "append", **options: Any) -> tuple[str, ...]:
    """Have Alice, in her own group, deliver: return the text, reply, and stage of the error."""

    async def deliver() -> tuple[str, ...]:
        commit = GroupCommit()
        try:
            maildir = Maildir(box, commit=commit)
            await (maildir.append(message, **options) if call == "append" else getattr(maildir, call)(**options))
        except AppendError as exc:
            return str(exc), exc.smtp_reply, str(exc.stage)
        finally:
            await commit.aclose()
        raise AssertionError("it was not refused")

    def run() -> tuple[str, ...]:
        os.setgroups([])
        os.setgid(ALICE)
        os.setuid(ALICE)
        return anyio.run(deliver)

    (told,) = forked(run)
    return told


def shut(path: Path, mode: int, uid: int = 0, gid: int = 0) -> str:
    os.chown(path, uid, gid)
    path.chmod(mode)
    return str(path)


ROOTS: Final = "owned by 0(root):0(root) mode=0755)"


@as_root
@pytest.mark.parametrize("message", [MAIL, LARGE], ids=["short", "long"])
@pytest.mark.parametrize(("name", "stage"), [("tmp", "create"), ("new", "publish")])
def test_the_directory_that_cannot_be_written_to_is_named(box: Path, name: str, stage: str, message: bytes) -> None:
    """Who was refused, what is missing where, and whose that is; in the reply there is nothing of it."""
    where = shut(box / name, 0o755)
    who = f"Permission denied (euid={ALICE} egid={ALICE}"
    text = f"{box}: {stage} failed: {who} missing +w perm: {where} {ROOTS}"
    assert refused(box, message) == (text, REPLY, stage)


@as_root
@pytest.mark.parametrize("name", [".", "..", "tmp"])
def test_the_directory_that_cannot_be_entered_is_named(box: Path, name: str) -> None:
    """However far above the maildir's own it is: the path is walked up to it."""
    where = shut((box / name).resolve(), 0o700, 0, VMAIL)
    text, reply, _ = refused(box)
    assert text.endswith(f" missing +x perm: {where} owned by 0(root):{VMAIL} mode=0700)")
    assert reply == REPLY


@as_root
def test_a_directory_that_cannot_be_read_is_named(box: Path) -> None:
    """``new/`` is opened to be synced; that takes the right to read it, which a delivery agent may lack."""
    where = shut(box / "new", 0o733)
    text, reply, stage = refused(box)
    assert text.endswith(f" missing +r perm: {where} owned by 0(root):0(root) mode=0733)")
    assert (reply, stage) == (REPLY, "publish")


@as_root
def test_a_folder_that_cannot_be_made_names_the_maildir(box: Path) -> None:
    """For a message and for `create_folder`."""
    where = shut(box, 0o755)
    for call in ("append", "create_folder"):
        text, reply, stage = refused(box, call=call, folder="lists")
        assert text.endswith(f"missing +w perm: {where} {ROOTS}")
        assert (reply, stage) == (REPLY, "create")


@as_root
def test_a_group_that_the_process_is_not_in_is_named(box: Path) -> None:
    """It would have let it: so that is what is to be put right, and not the mode."""
    where = shut(box / "tmp", 0o2775, 0, VMAIL)
    text, _, _ = refused(box)
    assert text.endswith(f"missing +w perm: {where} owned by 0(root):{VMAIL} mode=2775, not in group {VMAIL})")


@as_root
def test_where_a_maildir_cannot_be_made_the_directory_is_named(box: Path) -> None:
    """The deepest one that is there: for a message, and for `create` and `check_room`."""
    where = shut(box.parent, 0o755)
    for call in ("append", "create", "check_room"):
        text, reply, stage = refused(box.parent / "other/user/Maildir", call=call)
        assert text.endswith(f"missing +w perm: {where} {ROOTS}")
        assert (reply, stage) == (REPLY, "create")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
async def test_where_the_modes_would_do_that_is_said(tmp_path: Path, number: int) -> None:
    """An ACL, an attribute, a security module: the error says that it is not the mode, and whose all is."""
    disk = FaultDisk(Fault("create", number, nth=0))
    with pytest.raises(AppendError) as failed:
        await Maildir(tmp_path / "box", disk=disk).append(MAIL)
    assert f"UNIX perms appear ok (ACL, file attribute or security module?): {tmp_path} owned by " in str(failed.value)
    assert f"euid={os.geteuid()}" in str(failed.value)
    assert failed.value.smtp_reply == REPLY


@pytest.mark.parametrize("message", [MAIL, LARGE], ids=["short", "long"])
async def test_a_disk_that_tells_nothing_further_changes_nothing(tmp_path: Path, message: bytes) -> None:
    """The looks fail too: the delivery fails as it has, and says who was refused."""
    box = Maildir(
        tmp_path / "box", disk=FaultDisk(Fault("create", errno.EACCES, nth=0), Fault("stat", errno.EIO, nth=0))
    )
    await Maildir(tmp_path / "box").create()
    with pytest.raises(AppendError, match=r"Permission denied \(euid=\d+\S* egid=\d+\S*\)$"):
        await box.append(message)


async def test_other_errors_are_looked_into_by_nobody(tmp_path: Path) -> None:
    """A full disk, or one that fails, is not asked again."""
    await Maildir(tmp_path / "box").append(MAIL)
    for number in (errno.ENOSPC, errno.EIO, errno.EROFS):
        disk = FaultDisk(Fault("create", number, nth=0))
        with pytest.raises(AppendError) as failed:
            await Maildir(tmp_path / "box", disk=disk).append(MAIL)
        assert not isinstance(failed.value, UncertainAppendError)
        assert "euid" not in str(failed.value)
        assert [call.operation for call in disk.calls if call.operation == "stat"] == []


@as_root
def test_a_refusal_on_the_way_in_smtp_tells_the_client_nothing(box: Path) -> None:
    """All of an error's text is the log's: a reply has neither path, nor name, nor number of a user."""
    shut(box / "tmp", 0o755)
    text, reply, _ = refused(box)
    for secret in (str(box), "root", str(ALICE), "0755"):
        assert secret in text
        assert secret not in reply


def test_names_are_told_where_there_are_any(box: Path) -> None:
    """Of users and groups that the system knows."""

    def job() -> str:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

        async def deliver() -> str:
            try:
                await Maildir(box).append(MAIL)
            except AppendError as exc:
                return str(exc)
            return ""

        return anyio.run(deliver)

    (told,) = forked(job)
    assert f"(euid=65534(nobody) egid=65534(nogroup) missing +w perm: {box}/tmp owned by {ALICE}:{ALICE}" in told
