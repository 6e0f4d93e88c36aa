"""A process with euid 0 delivers as the maildir's owner, and goes no way that he, or another, has laid for it.

The attacks are those of DESIGN.md, "As root". An attacker acts between two system calls of ours: a profiler has him act
before the n-th call that the disk's code makes, for each n.
"""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import GroupCommit, Maildir, NotAMaildirError, deliver
from maildir_async.disk import as_root, posix
from maildir_async.errors import AppendError, MaildirError
from maildir_async.smtp import Layout
from support import contents, forked, tree
from wire import KINDS, is_lmtp, serving, verbatim

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: it takes root to be a user's delivery agent")

ALICE: Final = 61001
BOB: Final = 61002
GROUP: Final = 61003
MAIL: Final = b"Subject: x\n\nbody\n"
LARGE: Final = b"x" * 1_500_000


class Site:
    """A directory of root's, below a sticky one that everybody can write to, with homes in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, uid in (("alice", ALICE), ("bob", BOB)):
            (root / name).mkdir(mode=0o711)
            os.chown(root / name, uid, GROUP)
        self.victim = root / "victim"  # what alice wants root to write to, or to delete from
        for name in ("tmp", "new", "cur"):
            (self.victim / name).mkdir(parents=True)
            (self.victim / name / "precious").write_bytes(b"precious")
        self.before = self.look()

    def box(self, user: str = "alice", **options: Any) -> Maildir:
        return Maildir(self.root / user / "Maildir", **options)

    def look(self) -> object:
        paths = [self.victim, *sorted(self.victim.rglob("*"))]
        return tree(self.victim), [
            (path, *(getattr(path.lstat(), name) for name in ("st_uid", "st_nlink", "st_mode"))) for path in paths
        ]


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        try:
            os.chown(root, ALICE, GROUP)
            os.chown(root, 0, 0)
        except OSError:
            pytest.skip("NOT TESTED: there are no other users here")
        yield Site(root)
    finally:
        shutil.rmtree(root)


def as_user(uid: int, job: Callable[[], Any]) -> Any:
    def run() -> Any:
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(uid)
        return job()

    (outcome,) = forked(run)
    return outcome


def owners(root: Path) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in [root, *root.rglob("*")]}


def lay(path: Path, target: Path, uid: int = ALICE) -> None:
    """Put a link of this user's at *path*, and keep aside what is there."""
    if os.path.lexists(path):
        path.rename(f"{path}.was")
    path.symlink_to(target)
    os.chown(path, uid, GROUP, follow_symlinks=False)


# Whose it is.


@pytest.mark.parametrize("message", [MAIL, LARGE], ids=["short", "long"])
@pytest.mark.parametrize(
    ("options", "helper"),
    [({}, False), ({"flags": "S", "received_at": 1e9}, False), ({}, True)],
    ids=["new", "cur", "helper"],
)
async def test_a_user_s_maildir_is_made_for_him_and_his_mail_is_his(
    site: Site, message: bytes, options: dict[str, Any], helper: bool
) -> None:
    """All that is made in his home is his, files are 0600 and directories 0700, and he can read and move his mail."""
    commit = GroupCommit(helper_process=helper)
    try:
        delivered = await site.box(commit=commit).append(message, **options)
    finally:
        if helper:
            await commit.aclose()
    assert owners(site.root / "alice") == {(ALICE, GROUP)}
    found = os.stat(delivered.path)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE((site.root / "alice/Maildir").stat().st_mode) == 0o700
    assert not options or found.st_mtime == 1e9

    def read() -> bytes:
        path = Path(delivered.path)
        return path.rename(path.parent.parent / "cur" / "read:2,S").read_bytes()

    assert as_user(ALICE, read) == message
    assert not delivered.warnings


@pytest.mark.parametrize("mode", [0o600, 0o640])
async def test_many_at_once(site: Site, mode: int) -> None:
    """So are those that a round creates by the open tmp/, with the mode and the group that are asked for."""
    box = site.box(file_mode=mode)
    await box.create()
    os.chown(site.root / "alice/Maildir/tmp", ALICE, GROUP + 1)
    await asyncio.gather(*(box.append(MAIL) for _ in range(100)))
    found = [path.stat() for path in (site.root / "alice/Maildir/new").iterdir()]
    assert len(found) == 100
    assert {(each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in found} == {(ALICE, GROUP + 1, mode)}


async def test_root_s_own_maildir_is_as_it_was(site: Site) -> None:
    """Below a sticky directory too, and reached by root's link from a directory that only root can write to."""
    (site.root / "link").symlink_to(site.root / "root")
    await Maildir(site.root / "root" / "a" / "b").append(MAIL)
    delivered = await Maildir(site.root / "link" / "a" / ".." / "a" / "b").append(LARGE)
    assert owners(site.root / "root") == {(0, 0)}
    assert Path(delivered.path).exists()


async def test_a_directory_of_root_s_in_a_user_s_home_counts_as_his(site: Site) -> None:
    """What is made in it is his, as what an older version has left half made."""
    (site.root / "alice/Maildir").mkdir()
    delivered = await site.box().append(MAIL)
    assert Path(delivered.path).stat().st_uid == ALICE


async def test_a_shared_directory_of_root_s_is_a_way_too(site: Site) -> None:
    """/var/mail is root's and its group can write there (Debian): a user's maildir in it is his."""
    (site.root / "mail").mkdir()
    (site.root / "mail").chmod(0o2775)
    (site.root / "mail/alice").mkdir()
    os.chown(site.root / "mail/alice", ALICE, GROUP)
    delivered = await Maildir(site.root / "mail/alice").append(MAIL)
    assert Path(delivered.path).stat().st_uid == ALICE


@pytest.mark.parametrize("message", [MAIL, LARGE], ids=["short", "long"])
async def test_a_link_never_crosses_users(site: Site, message: bytes) -> None:
    """Each of several users has a file of his own; two maildirs of one user's share theirs."""
    paths = [site.root / name for name in ("alice/1", "bob/1", "root", "alice/2", "bob/2")]
    outcomes = await deliver(message, [Maildir(path) for path in paths])
    assert [outcome.error for outcome in outcomes] == [None] * 5
    found = [os.stat(outcome.delivered.path) for outcome in outcomes if outcome.delivered]
    assert [each.st_uid for each in found] == [ALICE, BOB, 0, ALICE, BOB]
    assert {each.st_size for each in found} == {len(message)}
    for one in found:
        assert {other.st_uid for other in found if other.st_ino == one.st_ino} == {one.st_uid}


def test_an_open_file_is_linked_for_its_owner_alone(site: Site) -> None:
    """EXDEV, as between two file systems: it is copied then."""
    disk = posix.PosixDisk()
    fds = {}
    for name, uid in (("alice", ALICE), ("bob", BOB), (".", 0)):
        fds[uid] = disk.create(f"{site.root}/{name}/file", 0o600)
    for uid, fd in fds.items():
        for name, other in (("alice", ALICE), ("bob", BOB), (".", 0)):
            directory = disk.open_directory(f"{site.root}/{name}")
            try:
                if uid == other:
                    disk.link_open(fd, "link", directory)
                else:
                    with pytest.raises(OSError, match="cross-device"):
                        disk.link_open(fd, "link", directory)
            finally:
                disk.close(directory)
    for uid, fd in fds.items():
        assert (os.fstat(fd).st_uid, os.fstat(fd).st_nlink) == (uid, 2)
        disk.close(fd)


def test_a_file_without_a_name_is_its_owners(site: Site) -> None:
    """In a user's directory it is his before it has a name, and its name is his; in root's it is root's."""
    disk = posix.PosixDisk()
    for name, uid in (("alice", ALICE), ("bob", BOB), (".", 0)):
        fd = disk.create_unnamed(f"{site.root}/{name}", 0o600)
        assert (os.fstat(fd).st_uid, os.fstat(fd).st_nlink) == (uid, 0)
        disk.link_open(fd, f"{site.root}/{name}/link")
        assert (os.fstat(fd).st_uid, os.fstat(fd).st_nlink) == (uid, 1)
        disk.close(fd)


def test_a_directory_that_cannot_be_closed_is_no_failure(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made in it is there, so it is told: a file that nobody knew of would be left, and its descriptor."""
    close = os.close

    def closes_and_fails(fd: int) -> None:
        close(fd)
        raise OSError(5, "Input/output error")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", closes_and_fails)
        fd = posix.PosixDisk().create(f"{site.root}/alice/file", 0o600)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    close(fd)


async def test_an_owner_that_cannot_be_set_fails_the_delivery(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it: no file in tmp/, and no directory that was made for it."""

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(AppendError) as failed:
        await site.box().append(MAIL)
    assert failed.value.smtp_reply == "451 4.3.5 Mailbox temporarily unavailable"
    assert list((site.root / "alice").iterdir()) == []
    monkeypatch.undo()
    await site.box().create()
    monkeypatch.setattr(os, "fchown", refuse)
    for message in (MAIL, LARGE):
        with pytest.raises(AppendError):
            await site.box().append(message)
    assert contents(site.root / "alice/Maildir") == {"tmp": [], "new": [], "cur": []}


def test_the_user_is_asked_with_each_path(site: Site) -> None:
    """A process that has dropped its privilege since the maildir was made delivers as it is now."""
    box = site.box(commit=GroupCommit())
    asyncio.run(box.append(MAIL))
    assert len(as_user(ALICE, lambda: asyncio.run(site.box().append(MAIL)).path)) > 0

    def seteuid() -> list[int]:
        box = site.box()
        os.seteuid(ALICE)
        asyncio.run(box.append(MAIL))
        os.seteuid(0)
        lay(site.root / "alice/Maildir/new", site.victim / "new")
        with pytest.raises(NotAMaildirError):
            asyncio.run(box.append(MAIL))
        return [0]

    assert forked(seteuid) == [[0]]
    assert site.look() == site.before


# Where root does not go.

WAYS: Final[dict[str, Callable[[Maildir], Awaitable[object]]]] = {
    "append": lambda box: box.append(MAIL),
    "append with flags": lambda box: box.append(MAIL, flags="S"),
    "append long": lambda box: box.append(LARGE),
    "append many": lambda box: box.append_many([MAIL] * 12),
    "create": lambda box: box.create(),
    "check_room": lambda box: box.check_room(),
    "clean_tmp": lambda box: box.clean_tmp(older_than=timedelta()),
    "index": lambda box: box.index(),
}

#: What has to do with what: cur/ is looked at once, before a message comes, and otherwise for messages with flags.
CONCERNS: Final[dict[str, list[str]]] = {
    "new": [way for way in WAYS if way not in ("clean_tmp", "append with flags")],
    "tmp": list(WAYS),
    "cur": ["append with flags", "create", "check_room", "index"],
    "": list(WAYS),
    "..": list(WAYS),
}


async def refused(site: Site, way: str, path: Path) -> None:
    with pytest.raises(NotAMaildirError, match="and this process is root") as failed:
        await WAYS[way](Maildir(path))
    assert failed.value.smtp_reply == "451 4.3.5 Mailbox temporarily unavailable"
    assert site.look() == site.before


@pytest.mark.parametrize("place", list(CONCERNS))
@pytest.mark.parametrize("way", list(WAYS))
async def test_a_link_of_a_user_s(site: Site, way: str, place: str) -> None:
    """NotAMaildirError that says why, 451 4.3.5; nothing is written or removed where it leads to, nor is it made."""
    home = site.root / "alice"
    (home / "dir").mkdir()
    os.chown(home / "dir", ALICE, GROUP)
    await Maildir(home / "dir/Maildir").create()
    target = site.victim / place if place in ("new", "tmp", "cur") else site.victim
    if place == "..":
        (target / "Maildir").symlink_to("..")
        site.before = site.look()
        lay(home / "dir", target)
    else:
        lay(home / "dir/Maildir" / place, target)
    if way in CONCERNS[place]:
        await refused(site, way, home / "dir/Maildir")
    else:
        await WAYS[way](Maildir(home / "dir/Maildir"))
        assert site.look() == site.before


@pytest.mark.parametrize("place", ["new", "tmp", ""])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_what_a_client_is_told(site: Site, kind: Any, place: str) -> None:
    """451 4.3.5 at RCPT (RFC 3463 §3.4, system incorrectly configured), and the session goes on for others."""
    for user in ("alice", "bob"):
        await site.box(user).create()
    lay(site.root / "alice/Maildir" / place, site.victim / place)
    layout: Any = Layout(f"{site.root}/{{user}}/Maildir")
    async with serving(verbatim(layout), kind) as server:
        client = await server.connect()
        await client.ask("LHLO x" if is_lmtp(kind) else "EHLO x")
        await client.ask("MAIL FROM:<a@example.com>")
        assert await client.ask("RCPT TO:<alice@example.com>") == "451 4.3.5 Mailbox temporarily unavailable"
        assert (await client.ask("RCPT TO:<bob@example.com>")).startswith("250")
    assert site.look() == site.before


@pytest.mark.parametrize("place", ["new", "tmp", "cur", ""])
async def test_another_user_s_directory(site: Site, place: str) -> None:
    """A tmp, new, cur or maildir that belongs to another than where it lies is not delivered to."""
    await site.box().create()
    os.chown(site.root / "alice/Maildir" / place, BOB, GROUP)
    for way in CONCERNS[place]:
        await refused(site, way, site.root / "alice/Maildir")


async def test_root_s_link_where_others_can_write(site: Site) -> None:
    """Not followed: who can write there could have moved it, or linked it, to where it is."""
    for name, mode in (("sticky", 0o1777), ("group", 0o775)):
        (site.root / name).mkdir()
        (site.root / name).chmod(mode)
        (site.root / name / "Maildir").symlink_to(site.victim)
        await refused(site, "append", site.root / name / "Maildir")


async def test_the_directories_of_two_users_in_one_of_root_s(site: Site) -> None:
    """Alice's file is not moved into bob's new/, which root has put beside her tmp/."""
    box = Maildir(site.root / "box")
    await box.create()
    os.chown(site.root / "box/tmp", ALICE, GROUP)
    os.chown(site.root / "box/new", BOB, GROUP)
    for message in (MAIL, LARGE):
        with pytest.raises(NotAMaildirError, match="from uid 61001 to uid 61002"):
            await box.append(message)
    assert contents(site.root / "box") == {"tmp": [], "new": [], "cur": []}


async def test_root_s_maildir_that_a_user_has_put_another_for(site: Site) -> None:
    """What only root could change is known for a second; below a sticky directory it is looked at again each time."""
    (site.root / "sticky").mkdir()
    (site.root / "sticky").chmod(0o1777)
    path = site.root / "sticky/Maildir"
    await Maildir(path).append(MAIL)
    shutil.rmtree(path)
    path.mkdir()
    os.chown(path, ALICE, GROUP)
    for name in ("tmp", "new", "cur"):
        lay(path / name, site.victim / name)
    await refused(site, "append", path)


# Sweeping.


async def test_sweeping_takes_what_either_has_left(site: Site) -> None:
    """A file of root's, who was killed before it was the user's, and one of the user's."""
    await site.box().create()
    for name, uid in (("1", 0), ("2", ALICE)):
        path = site.root / "alice/Maildir/tmp" / name
        path.write_bytes(b"")
        os.chown(path, uid, GROUP)
    assert len(await site.box().clean_tmp(older_than=timedelta())) == 2
    assert contents(site.root / "alice/Maildir")["tmp"] == []


async def test_sweeping_leaves_root_s_files_in_root_s_directory(site: Site) -> None:
    """A user can have moved root's directory, and renamed it tmp/: only his own files are removed from it."""
    await site.box().create()
    tmp = site.root / "alice/Maildir/tmp"
    os.chown(tmp, 0, 0)
    (tmp / "precious").write_bytes(b"precious")
    with pytest.raises(AppendError, match="not permitted"):
        await site.box().clean_tmp(older_than=timedelta())
    await site.box().append(MAIL)
    assert contents(site.root / "alice/Maildir")["tmp"] == [b"precious"]


@pytest.mark.parametrize("command", [["clean", "--older-than", "0"], ["deliver"]], ids=lambda words: words[0])
def test_the_commands(site: Site, command: list[str]) -> None:
    """They refuse, say why, and do nothing."""
    asyncio.run(site.box().create())
    lay(site.root / "alice/Maildir/tmp", site.victim / "tmp")
    words = [sys.executable, "-m", "maildir_async", *command, str(site.root / "alice/Maildir")]
    done = subprocess.run(words, input=MAIL, capture_output=True, check=False, timeout=30)
    assert done.returncode != 0
    assert b"is a symbolic link that another than root can have made" in done.stderr
    assert site.look() == site.before


# Between two calls.


class Attack:
    """Acts once, before the *nth* system call that the disk's code makes, in the thread that makes it."""

    def __init__(self, nth: int, act: Callable[[], object]) -> None:
        self._left = nth
        self._act = act
        self.has_acted = False

    def profile(self, frame: Any, event: str, argument: Any) -> None:
        if event == "c_call" and not self.has_acted and is_of_the_disk(frame, argument):
            self._left -= 1
            if self._left <= 0:
                self.has_acted = True
                self._act()


def is_of_the_disk(frame: Any, function: Any) -> bool:
    """Whether *function* is a system call of the disk's code, or what precedes renameat2, which no profiler sees."""
    if function.__module__ != "posix" and function.__name__ != "encode":
        return False
    for _ in range(4):  # the tests' own detector of calls on the loop comes between
        if frame is None:
            return False
        if frame.f_code.co_filename in (as_root.__file__, posix.__file__):
            return True
        frame = frame.f_back
    return False


async def outcome_of(way: str, box: Maildir, attack: Attack) -> None:
    threading.setprofile(attack.profile)  # for the threads of a new GroupCommit
    try:
        await WAYS[way](box)
    except MaildirError:
        pass
    finally:
        threading.setprofile(None)
        await box.aclose()


@pytest.mark.parametrize("place", ["tmp", "new", "Maildir"])
@pytest.mark.parametrize("way", ["append", "append long", "append many", "create", "clean_tmp"])
@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.heavy)], ids=["some", "each"])
@pytest.mark.parametrize("inherit_mode", [False, pytest.param(True, marks=pytest.mark.heavy)], ids=["", "inherit"])
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_a_directory_is_swapped_between_two_calls(
    site: Site, way: str, place: str, step: int, inherit_mode: bool
) -> None:
    """Before whichever call a link takes its place: nothing is written, made, given away, opened to a group, or removed
    where it leads.
    """
    (site.root / "alice").chmod(0o2771)
    path = site.root / "alice/Maildir"
    swapped = path if place == "Maildir" else path / place
    target = site.victim if place == "Maildir" else site.victim / place
    for nth in range(1, 10_000, step):
        if way != "create":
            await Maildir(path).create()
            (path / "tmp/old").write_bytes(b"")
        attack = Attack(nth, lambda: lay(swapped, target) if swapped.parent.exists() else None)
        await outcome_of(way, Maildir(path, commit=GroupCommit(), inherit_mode=inherit_mode), attack)
        assert site.look() == site.before, nth
        shutil.rmtree(site.root / "alice")
        (site.root / "alice").mkdir()
        os.chown(site.root / "alice", ALICE, GROUP)
        (site.root / "alice").chmod(0o2771)
        if not attack.has_acted:
            assert nth > 10
            return
    raise AssertionError("it makes no end of calls")


def test_a_directory_is_swapped_while_it_is_made(site: Site) -> None:
    """One of root's that the user puts in its place is not given to him, nor one of his."""
    home = site.root / "alice"
    for uid, content in ((0, "precious"), (ALICE, None)):
        other = home / "other"
        other.mkdir()
        os.chown(other, uid, uid)
        if content:
            (other / content).write_bytes(b"precious")

        made: list[Path] = []

        def profile(frame: Any, event: str, argument: Any, other: Path = other, made: list[Path] = made) -> None:
            if event == "c_return" and argument.__name__ == "mkdir" and not made:
                made.append((home / "Maildir").rename(home / "aside"))
                other.rename(home / "Maildir")

        sys.setprofile(profile)
        try:
            with pytest.raises(NotADirectoryError, match="was replaced while it was made"):
                posix.PosixDisk().mkdir(str(home / "Maildir"), 0o700)
        finally:
            sys.setprofile(None)
        assert made
        assert (home / "Maildir").stat().st_uid == uid
        shutil.rmtree(home / "Maildir")
        shutil.rmtree(home / "aside")
