"""With ``inherit_mode`` a maildir's directory says whom its messages belong to, and who may read them.

What takes other users is done as root, by children that become those users.
"""

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from maildir_async import AppendError, GroupCommit, Maildir, deliver
from maildir_async.disk.posix import PosixDisk
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import forked, umask

as_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: it takes root to become other users")

ALICE: Final = 61001  # the users, each with a group of his own of that number
BOB: Final = 61002
CAROL: Final = 61003
VMAIL: Final = 61100  # a group

MAIL: Final = b"Subject: x\n\nbody\n"
LARGE: Final = b"x" * 1_500_000

messages: Final = pytest.mark.parametrize("message", [MAIL, LARGE], ids=["short", "long"])


def made(path: Path, mode: int, uid: int = -1, gid: int = -1) -> Path:
    """Make a maildir whose directory has this owner, group and mode, and whose others are the owner's alone."""
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True, mode=0o700)
        os.chown(path / name, uid, -1)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def mode_of(path: str | os.PathLike[str]) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def looked(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    found = os.stat(path)
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


@pytest.fixture
def site() -> Iterator[Path]:
    """A directory that every user can enter."""
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        try:
            os.chown(root, ALICE, VMAIL)
            os.chown(root, 0, 0)
        except OSError:
            pytest.skip("NOT TESTED: there are no other users here")
        yield root
    finally:
        shutil.rmtree(root)


def as_user(uid: int, job: Callable[[], Any], *, groups: tuple[int, ...] = (), mask: int = 0o077) -> Any:
    """Return what *job* returns in a child that has become this user, with his own group and these."""

    def run() -> Any:
        os.setgroups(groups)
        os.setgid(uid)
        os.setuid(uid)
        os.umask(mask)
        return job()

    (outcome,) = forked(run)
    return outcome


def appended(path: Path, message: bytes = MAIL, **options: Any) -> tuple[str, tuple[int, int, int], tuple[str, ...]]:
    """Deliver on a loop of its own: return where the message is, what it is like, and the warnings."""

    async def append() -> Any:
        commit = GroupCommit(helper_process=options.pop("helper", False))
        try:
            return await Maildir(path, inherit_mode=True, commit=commit, **options).append(message)
        finally:
            await commit.aclose()

    delivered = anyio.run(append)
    assert Path(delivered.path).read_bytes() == message
    return delivered.path, looked(delivered.path), delivered.warnings


# The mode.

MODES: Final = [
    (0o700, 0o600),
    (0o770, 0o660),
    (0o750, 0o640),
    (0o755, 0o644),
    (0o777, 0o666),
    (0o2770, 0o660),
    (0o1777, 0o666),
    (0o711, 0o600),
]


@pytest.mark.parametrize("mask", [0, 0o077])
@pytest.mark.parametrize("helper", [False, True], ids=["", "helper"])
async def test_files_have_the_read_and_write_bits_of_the_directory(tmp_path: Path, mask: int, helper: bool) -> None:
    """Whole or in chunks, by this process or its helper, whatever the umask and the file_mode: and never an x."""
    commit = GroupCommit(helper_process=helper)
    try:
        with umask(mask):
            for mode, expected in MODES:
                path = made(tmp_path / f"{mode:o}", mode)
                box = Maildir(path, inherit_mode=True, file_mode=0o604, commit=commit)
                for message in (MAIL, LARGE):
                    for _ in range(2):
                        delivered = await box.append(message)
                        assert (mode_of(delivered.path), delivered.warnings) == (expected, ())
    finally:
        await commit.aclose()


async def test_without_it_nothing_is_taken_from_the_directory(tmp_path: Path) -> None:
    """The mode is the file_mode, and the directory is not looked at."""
    disk = FaultDisk()
    path = made(tmp_path / "box", 0o770)
    box = Maildir(path, file_mode=0o640, disk=disk)
    await box.append(MAIL)  # which finds it durable
    before = len(disk.calls)
    delivered = await box.append(MAIL)
    assert mode_of(delivered.path) == 0o640
    assert [call.operation for call in disk.calls[before:] if call.path == f"{path}/."] == []


async def test_the_directory_is_looked_at_once_a_round(tmp_path: Path) -> None:
    """A hundred messages at once cost a few looks; and its mode counts as it is by then."""
    disk = FaultDisk()
    path = made(tmp_path / "box", 0o770)
    box = Maildir(path, inherit_mode=True, disk=disk)
    await box.append(MAIL)
    path.chmod(0o750)
    before = len(disk.calls)
    outcomes = await box.append_many([MAIL] * 100, concurrency=100)
    assert {mode_of(delivered.path) for delivered in outcomes} == {0o640}
    looks = [call for call in disk.calls[before:] if call.operation == "stat" and call.path == f"{path}/."]
    assert 1 <= len(looks) <= 10


@pytest.mark.parametrize("bad", [1, None, "yes"])
def test_it_is_a_bool(tmp_path: Path, bad: Any) -> None:
    """TypeError otherwise."""
    with pytest.raises(TypeError, match="inherit_mode"):
        Maildir(tmp_path, inherit_mode=bad)


# Several maildirs.


@messages
async def test_maildirs_that_differ_in_it_share_no_file(tmp_path: Path, message: bytes) -> None:
    """Each has the mode of its own directory; those with the same share one file."""
    modes = [0o770, 0o700, 0o770, 0o755]
    boxes = [Maildir(made(tmp_path / str(n), mode), inherit_mode=True) for n, mode in enumerate(modes)]
    outcomes = await deliver(message, [*boxes, Maildir(made(tmp_path / "plain", 0o770))])
    paths = [outcome.delivered.path for outcome in outcomes if outcome.delivered is not None]
    assert [mode_of(path) for path in paths] == [0o660, 0o600, 0o660, 0o644, 0o600]
    inodes = [os.stat(path).st_ino for path in paths]
    assert inodes[0] == inodes[2]
    assert len(set(inodes)) >= 3


@as_root
@messages
async def test_maildirs_of_different_groups_share_no_file(site: Path, message: bytes) -> None:
    """The group of each is its directory's."""
    boxes = [
        Maildir(made(site / str(n), 0o770, gid=gid), inherit_mode=True) for n, gid in enumerate([VMAIL, BOB, VMAIL])
    ]
    outcomes = await deliver(message, boxes)
    found = [looked(outcome.delivered.path) for outcome in outcomes if outcome.delivered is not None]
    assert found == [(0o660, 0, VMAIL), (0o660, 0, BOB), (0o660, 0, VMAIL)]


# What is made.


@pytest.mark.parametrize("mask", [0, 0o077])
async def test_a_new_maildir_is_for_nobody_else(tmp_path: Path, mask: int) -> None:
    """Below a directory that does not hand on its group, it is 0700 and its messages are 0600."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with umask(mask):
        delivered = await Maildir(tmp_path / "open/user/Maildir", inherit_mode=True).append(MAIL)
    names = ["user", "user/Maildir", *(f"user/Maildir/{name}" for name in ("tmp", "new", "cur"))]
    assert [mode_of(tmp_path / "open" / name) for name in names] == [0o700] * 5
    assert mode_of(delivered.path) == 0o600


@pytest.mark.parametrize("mask", [0, 0o077])
@messages
async def test_a_new_maildir_in_a_setgid_directory_is_for_the_group(tmp_path: Path, mask: int, message: bytes) -> None:
    """It and all below it have the group's bits and go on handing on the group, and strangers get nothing."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    with umask(mask):
        delivered = await Maildir(tmp_path / "shared/user/Maildir", inherit_mode=True).append(message)
    names = ["user", "user/Maildir", *(f"user/Maildir/{name}" for name in ("tmp", "new", "cur"))]
    assert [mode_of(tmp_path / "shared" / name) for name in names] == [0o2770] * 5
    assert (mode_of(delivered.path), delivered.warnings) == (0o660, ())


async def test_what_is_missing_of_a_maildir_gets_its_rights(tmp_path: Path) -> None:
    """A ``cur/`` that is made anew is as open as the maildir; one that is there stays as it is."""
    path = made(tmp_path / "box", 0o750)
    (path / "cur").rmdir()
    with umask(0o077):
        await Maildir(path, inherit_mode=True).append(MAIL)
    assert [mode_of(path / name) for name in ("tmp", "new", "cur")] == [0o700, 0o700, 0o750]


@messages
@pytest.mark.parametrize("helper", [False, True], ids=["", "helper"])
async def test_a_folder_is_as_open_as_its_maildir_and_then_as_its_own_directory(
    tmp_path: Path, message: bytes, helper: bool
) -> None:
    """Made with the bits of the maildir, marker too; its messages are as its own directory says."""
    path = made(tmp_path / "box", 0o750)
    commit = GroupCommit(helper_process=helper)
    try:
        with umask(0o077):
            box = Maildir(path, inherit_mode=True, commit=commit)
            delivered = await box.append(message, folder="lists")
            assert (mode_of(delivered.path), delivered.warnings) == (0o640, ())
            assert [mode_of(path / ".lists" / name) for name in (".", "tmp", "new", "cur")] == [0o750] * 4
            assert mode_of(path / ".lists/maildirfolder") == 0o640
            (path / ".lists").chmod(0o770)
            assert mode_of((await box.append(message, folder="lists")).path) == 0o660
            assert mode_of((await box.append(message)).path) == 0o640
            outcomes = await deliver(message, [box, Maildir(made(tmp_path / "two", 0o750), inherit_mode=True)])
            assert {mode_of(outcome.delivered.path) for outcome in outcomes if outcome.delivered} == {0o640}
    finally:
        await commit.aclose()


def test_only_an_empty_directory_of_one_s_own_is_shared(tmp_path: Path) -> None:
    """Whoever can write to what it lies in can have put another there, which nobody is to look into."""
    disk = PosixDisk()
    for name, number in (("full", errno.ENOTEMPTY), ("link", errno.ENOTDIR), ("file", errno.ENOTDIR)):
        path = tmp_path / name
        if name == "full":
            (path / "private").mkdir(parents=True)
            path.chmod(0o700)
        elif name == "link":
            (tmp_path / "private").mkdir(mode=0o700)
            path.symlink_to("private")
        else:
            path.write_bytes(b"")
        with pytest.raises(OSError, match=os.strerror(number)):
            disk.share(str(path), 0o777, -1)
    assert [mode_of(tmp_path / name) for name in ("full", "private")] == [0o700, 0o700]


async def test_a_maildir_that_is_in_use_before_it_is_shared_stays_closed(tmp_path: Path) -> None:
    """Another process has begun to fill it: the delivery goes on, and warns."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2770)
    path = tmp_path / "shared/box"
    disk = FaultDisk(Fault("share", path=str(path), gate=lambda: (path / "cur").mkdir(mode=0o700)))
    delivered = await Maildir(path, inherit_mode=True, disk=disk).append(MAIL)
    assert f"{path} was not shared: it is in use already, or another than was made" in delivered.warnings
    assert (mode_of(path) & 0o777, mode_of(delivered.path)) == (0o700, 0o600)


async def test_power_is_lost_while_a_shared_maildir_is_made() -> None:
    """What has been delivered is there afterwards, also where the directories had to be given their rights."""
    outcomes = set[bool]()
    for cut_at in range(2, 40):
        disk = CrashDisk(cut_at=cut_at)
        disk.mkdir("/box", 0o770)
        try:
            delivered = await Maildir("/box", inherit_mode=True, disk=disk).append(MAIL)
        except AppendError:
            outcomes.add(False)
            continue
        outcomes.add(True)
        assert disk.stat("/box/cur").st_mode & 0o777 == 0o770
        for files in disk.after_power_cut():
            assert files[delivered.path] == MAIL
    assert outcomes == {True, False}


# Other users.


@as_root
@messages
@pytest.mark.parametrize("helper", [False, True], ids=["", "helper"])
def test_root_gives_a_user_s_mail_to_him_and_his_group(site: Path, message: bytes, helper: bool) -> None:
    """Owner, group and mode are those of the directory."""
    path = made(site / "alice", 0o750, ALICE, VMAIL)
    _, found, warnings = appended(path, message, helper=helper)
    assert (found, warnings) == ((0o640, ALICE, VMAIL), ())


@as_root
def test_root_opens_no_directory_that_is_not_the_user_s(site: Path) -> None:
    """One of root's, empty or not, that the user has put where his was made."""
    path = made(site / "alice", 0o770, ALICE, VMAIL)
    for other, number in (("mine", errno.ENOTEMPTY), ("link", errno.ENOTDIR)):
        (path / "mine").mkdir(mode=0o700, exist_ok=True)
        (path / "link").unlink(missing_ok=True)
        (path / "link").symlink_to("mine")
        with pytest.raises(OSError, match=os.strerror(number)):
            PosixDisk().share(str(path / other), 0o770, VMAIL)
    assert looked(path / "mine") == (0o700, 0, 0)


@as_root
@messages
@pytest.mark.parametrize("mask", [0, 0o077])
def test_a_second_user_of_the_group_reads_the_message_and_a_stranger_does_not(
    site: Path, message: bytes, mask: int
) -> None:
    """A shared maildir, group vmail: what one of the group delivers another of it can read and remove."""
    path = made(site / "shared", 0o770, ALICE, VMAIL)
    for name in ("tmp", "new", "cur"):
        os.chown(path / name, ALICE, VMAIL)
        (path / name).chmod(0o770)
    delivered, found, warnings = as_user(ALICE, lambda: appended(path, message), groups=(VMAIL,), mask=mask)
    assert (found, warnings) == ((0o660, ALICE, VMAIL), ())

    def read() -> object:
        try:
            return Path(delivered).read_bytes()
        except OSError as exc:
            return type(exc)

    assert as_user(CAROL, read) is PermissionError
    assert as_user(BOB, read, groups=(VMAIL,)) == message
    as_user(BOB, lambda: os.unlink(delivered), groups=(VMAIL,))


@as_root
@messages
def test_a_setgid_maildir_is_made_and_shared(site: Path, message: bytes) -> None:
    """Made by one of the group below /var/vmail (02770, group vmail), delivered to by another, read by either."""
    site.chmod(0o2775)
    os.chown(site, 0, VMAIL)
    path = site / "user"
    delivered, found, warnings = as_user(ALICE, lambda: appended(path, message), groups=(VMAIL,))
    assert (found, warnings) == ((0o660, ALICE, VMAIL), ())
    assert [looked(path / name) for name in (".", "tmp", "new", "cur")] == [(0o2770, ALICE, VMAIL)] * 4
    second, found, warnings = as_user(BOB, lambda: appended(path, message), groups=(VMAIL,))
    assert (found, warnings) == ((0o660, BOB, VMAIL), ())
    assert as_user(BOB, Path(delivered).read_bytes, groups=(VMAIL,)) == message
    assert as_user(ALICE, Path(second).read_bytes, groups=(VMAIL,)) == message


@as_root
@messages
@pytest.mark.parametrize(("mode", "expected"), [(0o770, 0o600), (0o775, 0o664 & ~0o020), (0o777, 0o666)])
def test_a_group_that_is_refused_opens_nothing_to_another(site: Path, message: bytes, mode: int, expected: int) -> None:
    """The user is not in the directory's group. His mail is delivered, with a warning that names both groups, and his
    own group, which is not meant, may do no more than others may.
    """
    path = made(site / "box", mode, ALICE, VMAIL)
    (path / "cur").rmdir()
    _, found, warnings = as_user(ALICE, lambda: appended(path, message))
    assert found == (expected, ALICE, ALICE)
    assert looked(path / "cur") == ({0o770: 0o700, 0o775: 0o755, 0o777: 0o777}[mode], ALICE, ALICE)
    if mode == 0o777:
        assert warnings == ()
    else:
        assert len(warnings) == 2
        assert all(f"group {VMAIL} (egid={ALICE})" in warning for warning in warnings)
        assert "/box/cur could not" in warnings[0] or "/box/cur could not" in warnings[1]


@as_root
@messages
async def test_a_group_that_cannot_be_given_for_another_reason_fails_the_delivery(site: Path, message: bytes) -> None:
    """A quota of the group's, say: the error is the file system's, and nothing is left."""
    path = made(site / "box", 0o770, gid=VMAIL)
    box = Maildir(path, inherit_mode=True, disk=FaultDisk(Fault("chown", errno.EDQUOT)))
    with pytest.raises(AppendError, match="create failed") as failed:
        await box.append(message)
    assert failed.value.smtp_reply == "452 4.2.2 Mailbox full"
    assert [os.listdir(path / name) for name in ("tmp", "new", "cur")] == [[], [], []]


@as_root
@pytest.mark.heavy
def test_dovecot_takes_the_same(site: Path) -> None:
    """In maildirs of each mode and group, what Dovecot saves and makes has the mode and the group of what we do."""
    doveadm = shutil.which("doveadm")
    if doveadm is None:
        pytest.skip("NOT TESTED WITH DOVEADM: it is not installed (apt-get install dovecot-imapd)")
    home = site / "home"
    home.mkdir()
    os.chown(home, ALICE, ALICE)
    (home / "mail").write_bytes(MAIL)
    settings = {
        "base_dir": home / "run",
        "state_dir": home / "state",
        "log_path": home / "log",
        "stats_writer_socket_path": "",
        "ssl": "no",
    }
    (home / "conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))

    def saved(path: Path) -> None:
        environment = {"USER": "alice", "HOME": str(home), "PATH": "/bin:/usr/bin"}
        # The control files and indexes are elsewhere: Dovecot would have them in the maildir.
        place = f"-omail_location=maildir:{path}:INDEX={home}/index/{path.name}:CONTROL={home}/control/{path.name}"
        subprocess.run([doveadm, "-c", home / "conf", place, "save", home / "mail"], env=environment, check=True)

    for mode in (0o700, 0o750, 0o770, 0o755, 0o775, 0o777, 0o2770, 0o2750, 0o711):
        for gid in (ALICE, VMAIL):
            ours, theirs = (made(site / f"{whose}{mode:o}-{gid}", 0o700, ALICE, gid) for whose in ("ours", "theirs"))
            for path in (ours, theirs):
                (path / "cur").rmdir()
                for name in ("tmp", "new"):
                    os.chown(path / name, ALICE, gid)
                    (path / name).chmod(mode)
                path.chmod(mode)
            as_user(ALICE, partial(appended, ours), groups=(VMAIL,))
            as_user(ALICE, partial(saved, theirs), groups=(VMAIL,))
            found = [
                (looked(path / "cur"), [looked(file) for name in ("new", "cur") for file in (path / name).iterdir()])
                for path in (ours, theirs)
            ]
            assert found[0] == found[1], (oct(mode), gid)
            assert len(found[0][1]) == 1
