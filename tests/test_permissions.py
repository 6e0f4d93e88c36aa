"""Permissions that change between the 354 and the end of a message: who is told what, and what is left.

First with errors as a file system gives them, then with directories of a process that is not root, whom nothing stops.
"""

import asyncio
import concurrent.futures.thread  # noqa: F401 for a process that may not read where it is
import ctypes  # noqa: F401 likewise
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from maildir_async import AppendError, Maildir
from maildir_async.smtp import Layout, Receipt, StreamingSMTP
from maildir_async.testing import Fault, FaultDisk
from support import contents, forked, some
from wire import KINDS, Client, Faulty, is_lmtp, serving, until, verbatim

T = TypeVar("T")

#: Which loop it is makes no difference to a disk.
one_loop: Final = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])

both_kinds: Final = pytest.mark.parametrize("kind", KINDS)

MAIL: Final = b"Subject: x\r\n\r\nbody\r\n"

#: More than a delivery keeps in memory: its file is in tmp/ while it comes.
LARGE: Final = b"x" * 1_500_000

#: What a mailbox that may not be written to is answered with: it may heal, and somebody has to see to it.
CONFIGURATION: Final = "451 4.3.5 Mailbox temporarily unavailable"


async def asked_for(client: Client, kind: Any, *users: str) -> None:
    """Have a message to these be asked for."""
    await client.begin(*(f"{user}@example.com" for user in users), hello="LHLO" if is_lmtp(kind) else "EHLO")
    assert (await client.ask("DATA")).startswith("354")


async def ended(client: Client, kind: Any, recipients: int, message: bytes = MAIL) -> list[str]:
    """Send (the rest of) the message, and return the codes of its replies."""
    client.say(message + b".\r\n")
    told = [await client.hear() for _ in range(recipients if is_lmtp(kind) else 1)]
    assert all(line.startswith("250 2.0.0 ") or line == CONFIGURATION for line in told), told
    return [line[:9] for line in told]


async def delivered(client: Client, kind: Any, user: str) -> bool:
    """Whether the session goes on, and has this user get a message."""
    await asked_for(client, kind, user)
    return await ended(client, kind, 1) == ["250 2.0.0"]


# With errors on purpose.

OPERATIONS: Final = ["create", "write", "sync", "open_directory", "rename_noreplace"]
ERRORS: Final = [errno.EACCES, errno.EPERM, errno.EROFS]


async def made(root: Path, *users: str) -> None:
    """Have so many maildirs, which deliveries have found durable."""
    for user in users:
        await Maildir(root / user).append(b"")
        shutil.rmtree(root / user / "new")
        (root / user / "new").mkdir()


@one_loop
@both_kinds
@pytest.mark.parametrize("half", [b"", LARGE], ids=["before it comes", "in the middle"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_may_not_be_done_any_more(
    tmp_path: Path, operation: str, number: int, half: bytes, kind: Any
) -> None:
    """451 4.3.5, nothing in tmp/ or new/, and the session goes on for others, and for the same user afterwards."""
    await made(tmp_path, "alice", "bob")
    disk = FaultDisk()
    async with serving(Faulty(disk, Layout(f"{tmp_path}/{{user}}")), kind) as server:
        client = await server.connect()
        await asked_for(client, kind, "bob")
        client.say(half)
        await until(lambda: bool(half) <= bool(contents(tmp_path / "bob")["tmp"]))
        disk.faults.append(Fault(operation, error=number, nth=0, path="bob/"))
        could_be = bool(half) and operation == "create"  # the file is open, and a file system asks no more
        assert await ended(client, kind, 1) == ["250 2.0.0" if could_be else "451 4.3.5"]
        assert contents(tmp_path / "bob")["tmp"] == []
        assert len(contents(tmp_path / "bob")["new"]) == could_be
        assert await delivered(client, kind, "alice")
        disk.faults.clear()
        assert await delivered(client, kind, "bob")


@one_loop
@both_kinds
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
async def test_a_maildir_that_may_not_be_made_again(tmp_path: Path, number: int, kind: Any) -> None:
    """Removed after the 354, where it may not be made: 451 4.3.5, and nothing is left of it."""
    await made(tmp_path, "alice", "bob")
    disk = FaultDisk(Fault("mkdir", error=number, nth=0, path="/bob"))
    async with serving(Faulty(disk, Layout(f"{tmp_path}/{{user}}", create=True)), kind) as server:
        client = await server.connect()
        await asked_for(client, kind, "bob")
        shutil.rmtree(tmp_path / "bob")
        assert await ended(client, kind, 1) == ["451 4.3.5"]
        assert not (tmp_path / "bob").exists()
        assert await delivered(client, kind, "alice")


@one_loop
@both_kinds
@pytest.mark.parametrize("users", [["alice", "bob"], ["bob", "alice"]], ids=" ".join)
@pytest.mark.parametrize("half", [b"", LARGE], ids=["before it comes", "in the middle"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
async def test_one_recipient_s_directory_is_no_other_s(
    tmp_path: Path, number: int, half: bytes, users: list[str], kind: Any
) -> None:
    """LMTP says 451 4.3.5 of one of two and 250 of the other; SMTP has the client send again to both."""
    await made(tmp_path, "alice", "bob")
    disk = FaultDisk()
    async with serving(Faulty(disk, Layout(f"{tmp_path}/{{user}}")), kind) as server:
        client = await server.connect()
        await asked_for(client, kind, *users)
        client.say(half)
        await until(lambda: bool(half) <= bool(contents(tmp_path / users[0])["tmp"]))
        for operation in ("link", "rename_noreplace"):
            disk.faults.append(Fault(operation, error=number, nth=0, path="bob/new/"))
        told = await ended(client, kind, 2)
        expected = {"alice": "250 2.0.0", "bob": "451 4.3.5"}
        assert told == ([expected[user] for user in users] if is_lmtp(kind) else ["451 4.3.5"])
        assert [len(contents(tmp_path / user)["new"]) for user in ("alice", "bob")] == [1, 0]
        assert [contents(tmp_path / user)["tmp"] for user in ("alice", "bob")] == [[], []]
        assert await delivered(client, kind, "alice")


async def test_what_cannot_be_removed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The receipt's reason, and without receipts the log, has what is left in tmp/, and why; the client has neither."""
    await made(tmp_path, "bob")
    faults = [Fault(operation, error=errno.EACCES, path="bob/") for operation in ("rename_noreplace", "unlink")]
    receipts: list[Receipt] = []
    for options in ({"on_receipt": receipts.append}, {}):
        disk = FaultDisk(*(replace(fault) for fault in faults))
        async with serving(Faulty(disk, tmp_path / "bob", **options)) as server:
            client = await server.connect()
            await asked_for(client, StreamingSMTP, "bob")
            assert await ended(client, StreamingSMTP, 1) == ["451 4.3.5"]
    (reason,) = [receipt.reason for receipt in receipts]
    assert reason.startswith(f"{tmp_path}/bob: publish failed: Permission denied (euid=")
    assert reason.endswith("); the file in tmp/ could not be removed: Permission denied")
    assert [record.getMessage() for record in caplog.records if record.name == "maildir_async.smtp"] == [
        f"a delivery to {tmp_path}/bob failed: {reason}"
    ]


# With real ones.

NOBODY: Final = 65534


def as_nobody(job: Callable[[], T]) -> T:
    """Return what *job* does in a process that is not root."""

    def run() -> T:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return job()

    (outcome,) = forked(run)
    return outcome


@pytest.fixture
def ground() -> Iterator[Path]:
    """A directory of somebody who is not root; pytest's own are closed to him."""
    path = Path(tempfile.mkdtemp())
    try:
        try:
            if os.getuid() == 0:
                os.chown(path, NOBODY, NOBODY)
            usable = as_nobody(lambda: os.access(path, os.R_OK | os.W_OK | os.X_OK))
        except (OSError, AssertionError):  # in a container that has no other user
            usable = False
        if not usable:
            pytest.skip("NOT TESTED: this process is root, cannot be anybody else, and root may do everything")
        yield path
    finally:
        shutil.rmtree(path)


def closed(directory: str, mode: int) -> Callable[[Path], None]:
    return lambda maildir: (maildir / directory).chmod(mode)


def gone(maildir: Path) -> None:
    shutil.rmtree(maildir)
    maildir.parent.chmod(0o500)


CHANGES: Final[dict[str, Callable[[Path], None]]] = {
    "new 0500": closed("new", 0o500),
    "new 0000": closed("new", 0),
    "tmp 0500": closed("tmp", 0o500),
    "tmp 0000": closed("tmp", 0),
    "maildir 0000": closed("", 0),
    "gone": gone,
}


def opened(maildir: Path) -> None:
    """Put it right again, as somebody does whom the log has told."""
    maildir.parent.chmod(0o700)
    for name in ("", "new", "tmp") if maildir.exists() else ():
        (maildir / name).chmod(0o700)


async def session(ground: Path, kind: Any, users: list[str], half: bytes, change: str) -> dict[str, Any]:
    """Have a message's maildir change under it, and return what came of it."""
    maildirs = {user: ground / user / "Maildir" for user in ("alice", "bob", "carol")}
    for maildir in maildirs.values():
        await Maildir(maildir).create()
    receipts: list[Receipt] = []
    layout: Any = Layout(f"{ground}/{{user}}/Maildir", create=True)
    found: dict[str, Any] = {}
    async with serving(verbatim(layout, on_receipt=receipts.append), kind) as server:
        client = await server.connect()
        await asked_for(client, kind, *users)
        client.say(half)
        await until(lambda: bool(half) <= bool(contents(maildirs[users[0]])["tmp"]))
        CHANGES[change](maildirs["bob"])
        found["told"] = await ended(client, kind, len(users))
        found["reasons"] = {receipt.address[:-12]: receipt.reason for receipt in receipts}
        found["carol"] = await delivered(client, kind, "carol")
        opened(maildirs["bob"])
        found["tmp"] = [user for user, maildir in maildirs.items() if contents(maildir).get("tmp")]
        found["new"] = [user for user, maildir in maildirs.items() if contents(maildir).get("new")]
        found["bob"] = await delivered(client, kind, "bob")
        found["swept"] = len(await Maildir(maildirs["bob"]).clean_tmp(older_than=timedelta()))
    return found


def outcome(ground: Path, kind: Any, users: str, half: bytes, change: str) -> dict[str, Any]:
    return as_nobody(lambda: asyncio.run(session(ground, kind, users.split(), half, change)))


@both_kinds
@pytest.mark.parametrize("change", CHANGES)
def test_a_maildir_that_is_closed_before_the_message_comes(ground: Path, kind: Any, change: str) -> None:
    """451 4.3.5, nothing is left, the session goes on for others, and for this one when it is open again."""
    found = outcome(ground, kind, "bob", b"", change)
    assert found.pop("reasons")["bob"].partition(" (euid=")[0].endswith(" failed: Permission denied")
    assert found == {"told": ["451 4.3.5"], "tmp": [], "new": ["carol"], "carol": True, "bob": True, "swept": 0}


@both_kinds
@pytest.mark.parametrize("change", CHANGES)
def test_a_maildir_that_is_closed_in_the_middle(ground: Path, kind: Any, change: str) -> None:
    """451 4.3.5; nothing is left but what nobody may remove any more, and that is told, and swept when it can be."""
    found = outcome(ground, kind, "bob", LARGE, change)
    left = change.startswith("tmp") or change == "maildir 0000"
    reason = found.pop("reasons")["bob"]
    assert "publish failed: Permission denied" in reason
    assert reason.endswith("; the file in tmp/ could not be removed: Permission denied") == left
    assert found.pop("tmp") == ["bob"] * left
    assert found == {"told": ["451 4.3.5"], "new": ["carol"], "carol": True, "bob": True, "swept": left}


#: The message is linked from the first one's tmp/ into both new/; before it comes, also the other way round.
TOGETHER: Final[list[tuple[str, bytes, str, str]]] = [
    ("alice bob", b"", "new 0500", "250 451"),
    ("alice bob", b"", "tmp 0500", "250 250"),  # which a link does not need
    ("alice bob", b"", "maildir 0000", "250 451"),
    ("alice bob", b"", "gone", "250 451"),
    ("bob alice", b"", "new 0500", "451 250"),
    ("bob alice", b"", "tmp 0500", "451 250"),
    ("bob alice", b"", "maildir 0000", "451 250"),
    ("bob alice", b"", "gone", "451 250"),
    ("alice bob", LARGE, "new 0500", "250 451"),
    ("alice bob", LARGE, "tmp 0500", "250 250"),
    ("alice bob", LARGE, "maildir 0000", "250 451"),
    ("alice bob", LARGE, "gone", "250 451"),
    ("bob alice", LARGE, "new 0500", "451 250"),
    ("bob alice", LARGE, "tmp 0500", "451 250"),
    ("bob alice", LARGE, "tmp 0000", "451 250"),  # copied from the file that is open
    ("bob alice", LARGE, "gone", "451 451"),
]


@both_kinds
@pytest.mark.parametrize(
    ("users", "half", "change", "codes"),
    some(TOGETHER, 3),
    ids=[f"{users}, {change}, {'in the middle' if half else 'before'}" for users, half, change, _ in TOGETHER],
)
def test_one_of_two_maildirs_is_closed(
    ground: Path, kind: Any, users: str, half: bytes, change: str, codes: str
) -> None:
    """LMTP tells what is true of each; SMTP has the client send again if it is not true of all."""
    found = outcome(ground, kind, users, half, change)
    replies = dict(zip(users.split(), codes.split(), strict=True))
    told = [reply[:3] for reply in found["told"]]
    assert told == (codes.split() if is_lmtp(kind) else [max(replies.values())])
    assert found["new"] == [*sorted(user for user, reply in replies.items() if reply == "250"), "carol"]
    assert [user for user, reason in found["reasons"].items() if reason] == [
        user for user, reply in replies.items() if reply == "451"
    ]
    left = bool(half) and users == "bob alice" and change.startswith("tmp")
    assert (found["tmp"], found["swept"]) == (["bob"] * left, left)
    assert found["carol"]
    assert found["bob"]


def test_a_closed_directory_is_told_before_a_message_comes(ground: Path) -> None:
    """Where a maildir would have to be made in a directory that may not be written to, `check_room` sees it."""

    def job() -> int | None:
        (ground / "root").mkdir(mode=0o500)
        try:
            asyncio.run(Maildir(ground / "root" / "user").check_room())
        except AppendError as exc:
            return exc.errno
        return None

    assert as_nobody(job) == errno.EACCES


def test_a_closed_directory_makes_nobody_unknown(ground: Path) -> None:
    """A permission may heal: a layout that may not look raises, and does not say that there is no such user."""

    async def look() -> object:
        return await Layout(f"{ground}/{{user}}/Maildir")("alice@example.com")

    def job() -> str:
        (ground / "alice").mkdir(mode=0)
        try:
            return f"found {asyncio.run(look())}"
        except PermissionError:
            return "may not look"

    assert as_nobody(job) == "may not look"
