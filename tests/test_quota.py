"""The quota of a maildir: what it refuses, what it records, and that it never costs a message."""

import asyncio
import contextlib
import contextvars
import errno
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from maildir_async import (
    AppendError,
    Delivered,
    GroupCommit,
    Maildir,
    Quota,
    QuotaExceededError,
    UncertainAppendError,
    deliver,
)
from maildir_async.format.quota import LARGEST, Held, Limits, QuotaUsage, format_held, limits_of, parse_held
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import Gate, contents, forked

MESSAGE = b"x" * 100
LONG = b"y" * 600_000  # more than one chunk, so that it is written while it comes


def told(maildir: "Maildir | str | Path") -> Held:
    """Return what the file says."""
    path = maildir.path if isinstance(maildir, Maildir) else str(maildir)
    held = parse_held(Path(path, "maildirsize").read_bytes())
    assert held is not None
    return held


def there(path: "str | Path") -> tuple[int, int]:
    """Return the bytes and the number of the messages in a maildir and its folders."""
    files = [file for where in ("new", "cur") for file in Path(path).glob(f"**/{where}/*")]
    return sum(file.stat().st_size for file in files), len(files)


@pytest.mark.parametrize(
    ("data", "held"),
    [
        (b"1000S,10C\n0 0\n", Held(Limits(1000, 10), 0, 0, 1)),
        (b"1000S\n 500          2           \n-100 -1\n", Held(Limits(1000, 0), 400, 1, 2)),
        (b"10C,1000S\n1 1\n2 2\n3 3", Held(Limits(1000, 10), 3, 3, 2)),
        (b"0S\n7 1\n", Held(Limits(), 7, 1, 1)),
        (b"\n7 1\n", Held(Limits(), 7, 1, 1)),
        (b"", None),
        (b"1000S", None),
        (b"1000S\n", None),
        (b"1000S\n1 1\nx y\n", None),
        (b"1000S\n1\n", None),
        (b"1000S\n1 1 1\n", None),
        (b"1000S\n-1 0\n", None),
        (b"1000S\n0 -1\n", None),
        (b"1000S\n1 1\n\0\0\n", None),
        (b"\xff\n1 1\n", None),
        (b"garbage\n1 1\n", None),
        (b"1000S\n" + b"1 1\n" * 1300, None),
        (b"1000S\n99999999999999999999 1\n", None),
    ],
)
def test_what_a_file_says(data: bytes, held: Held | None) -> None:
    """A file is read as Courier's README says; one that may be wrong is counted anew."""
    assert parse_held(data) == held


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("2G", Limits(2**31, 0)),
        ("100", Limits(100, 0)),
        ("100s,5c", Limits(100, 5)),
        ("5C, 1k", Limits(1024, 5)),
        ("1.5GiB,5C", Limits(3 * 2**29, 5)),
        ("file", None),
    ],
)
def test_a_quota_as_people_write_it(text: str, limits: Limits | None) -> None:
    """Bytes with a unit or without, messages with a C, or what the file says."""
    assert limits_of(text) == limits


@pytest.mark.parametrize("text", ["", "much", "1G,2G", "1C,1C", "0", "-1", "1TB", "1.5C", "1,", "99999999999999999999"])
def test_what_is_no_quota(text: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(ValueError, match="quota"):
        limits_of(text)


def test_what_is_written_is_read() -> None:
    """A file that was written says what it was given."""
    for limits in (Limits(5, 6), Limits(5, 0), Limits(0, 6), Limits()):
        assert parse_held(format_held(limits, 3, 2)) == Held(limits, 3, 2, 1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"bytes": 0}, ValueError),
        ({"bytes": "1"}, TypeError),
        ({"messages": -1}, ValueError),
        ({"ignore": "Trash"}, TypeError),
        ({"ignore": [1]}, TypeError),
        ({"over": 452}, TypeError),
        ({"over": "452"}, ValueError),
        ({"over": "250 2.0.0 fine"}, ValueError),
        ({"over": "452 5.2.2 Mailbox full"}, ValueError),
        ({"over": "452 4.2.2 full\r\n250 ok"}, ValueError),
        ({"on_warning": 1}, TypeError),
        ({"warn_at": (0.0,)}, ValueError),
        ({"warn_at": (1.5,)}, ValueError),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    """Each error names the argument."""
    with pytest.raises(error, match=next(iter(options))):
        Quota(**options)


async def test_not_a_quota(tmp_path: Path) -> None:
    """A number is no quota."""
    with pytest.raises(TypeError, match="quota"):
        Maildir(tmp_path, quota=1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [{"bytes": 1000}, {"messages": 10}])
async def test_exactly_as_much_fits(tmp_path: Path, limit: dict[str, Any]) -> None:
    """What is equal to the limit fits, and a byte or a message more is refused before anything is written."""
    maildir = Maildir(tmp_path / "m", quota=Quota(**limit))
    for _ in range(10):
        await maildir.append(MESSAGE)
    with pytest.raises(QuotaExceededError) as refused:
        await maildir.append(b"" if "messages" in limit else b"x")
    assert refused.value.smtp_reply == "452 4.2.2 Mailbox full"
    assert refused.value.temporary
    assert refused.value.errno == errno.EDQUOT
    assert there(maildir.path) == (1000, 10)
    assert contents(maildir.path)["tmp"] == []
    assert (told(maildir).bytes, told(maildir).messages) == (1000, 10)


@pytest.mark.parametrize("message", [MESSAGE, LONG], ids=["short", "stream"])
@pytest.mark.parametrize("helper", [False, True], ids=["here", "helper"])
async def test_a_hundred_at_once_cannot_all_pass(tmp_path: Path, message: bytes, helper: bool) -> None:
    """As many of them are stored as fit, however many come at once, from several objects for the maildir."""
    commit = GroupCommit(helper_process=True) if helper else None
    maildirs = [Maildir(tmp_path / "m", quota=Quota(bytes=7 * len(message)), commit=commit) for _ in range(4)]
    appends = [maildirs[number % 4].append(message) for number in range(100)]
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert sum(isinstance(outcome, Delivered) for outcome in outcomes) == 7
    assert sum(isinstance(outcome, QuotaExceededError) for outcome in outcomes) == 93
    assert there(tmp_path / "m") == (7 * len(message), 7)
    assert told(tmp_path / "m").bytes == 7 * len(message)
    if commit is not None:
        await commit.aclose()


async def test_what_is_removed_makes_room_again(tmp_path: Path) -> None:
    """Over, with more than one line in the file: it is counted anew, and what has been removed meanwhile is free."""
    maildir = Maildir(tmp_path / "m", quota=Quota(bytes=250))
    first = await maildir.append(MESSAGE)
    await maildir.append(MESSAGE)
    os.unlink(first.path)
    await maildir.append(MESSAGE)
    with pytest.raises(QuotaExceededError):
        await maildir.append(MESSAGE)


async def test_counted_no_more_often_than_the_protocol_asks(tmp_path: Path) -> None:
    """One line that is fresh is believed; after 15 minutes it is not."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(bytes=150), disk=disk)
    await maildir.append(MESSAGE)
    with pytest.raises(QuotaExceededError):
        await maildir.append(MESSAGE)
    before = sum(call.operation == "listdir" for call in disk.calls)
    for _ in range(3):
        with pytest.raises(QuotaExceededError):
            await maildir.append(MESSAGE)
    assert sum(call.operation == "listdir" for call in disk.calls) == before
    for away in (-16 * 60, 16 * 60, 60 * 365 * 86400):  # before, and by a clock that was wrong
        then = time.time() + away
        for name in (tmp_path / "m" / "new").iterdir():
            name.unlink()
        os.utime(tmp_path / "m" / "maildirsize", (then, then))
        await maildir.append(MESSAGE)
        (tmp_path / "m" / "maildirsize").write_bytes(b"150S\n100 1\n")


async def test_counted_once_where_the_file_cannot_be_left(tmp_path: Path) -> None:
    """In a maildir that changes while it is counted, not each message of a batch lists all of it again."""
    changed = itertools.count()

    class Busy(FaultDisk):
        def listdir(self, path: str) -> list[str]:
            names = super().listdir(path)
            if path.endswith("/new"):  # somebody else delivers meanwhile
                Path(path, f"other{next(changed)},S=1").touch()
            return names

    disk = Busy()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=100), disk=disk)
    await maildir.create()
    await maildir.append_many([MESSAGE] * 50)
    assert next(changed) == 1
    assert not (tmp_path / "m" / "maildirsize").exists()
    assert there(maildir.path)[1] == 51


async def test_a_forked_child_has_reserved_nothing(tmp_path: Path) -> None:
    """What the parent has under way takes no room in the child, and holds no lock there."""
    gate = Gate()
    disk = FaultDisk(Fault("sync", gate=gate, path="tmp/"))
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=1), disk=disk)
    task = asyncio.ensure_future(maildir.append(MESSAGE))
    await gate.reached()

    def look() -> None:
        assert maildir.mailbox.quota is not None
        maildir.mailbox.quota.check(1)

    with pytest.raises(QuotaExceededError):
        await asyncio.to_thread(look)
    forked(look)
    gate.open()
    await task


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"1000S\n-5 3\n",
        b"\0" * 50,
        b"1000S\n" + b"1 1\n" * (LARGEST // 4),
        b"5S\n1 1\n",
        b"1000S\n",
        b"",
    ],
    ids=["garbage", "negative", "nul", "long", "other limits", "no sum", "empty"],
)
async def test_a_broken_file_is_counted_anew(tmp_path: Path, data: bytes) -> None:
    """Whatever others have left there, the next delivery puts it right, and is delivered without a warning."""
    await Maildir(tmp_path / "m").append(MESSAGE)
    (tmp_path / "m" / "maildirsize").write_bytes(data)
    delivered = await Maildir(tmp_path / "m", quota=Quota(bytes=1000)).append(MESSAGE)
    assert delivered.warnings == ()
    held = told(tmp_path / "m")
    assert (held.limits, held.bytes, held.messages) == (Limits(1000, 0), 200, 2)


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
async def test_what_is_no_file_is_a_warning(tmp_path: Path, kind: str) -> None:
    """A file that cannot be opened, or written, costs no mail; what it leads to is not touched."""
    maildir = Maildir(tmp_path / "m", quota=Quota(bytes=1000))
    await maildir.create()
    path, other = tmp_path / "m" / "maildirsize", tmp_path / "other"
    other.write_bytes(b"not ours\n")
    if kind == "symlink":
        path.symlink_to(other)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    for _ in range(3):
        await maildir.append(MESSAGE)
    assert there(maildir.path) == (300, 3)
    assert other.read_bytes() == b"not ours\n"


@pytest.mark.parametrize("operation", ["open_file", "read", "rename", "listdir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS])
async def test_a_quota_that_fails_costs_no_mail(tmp_path: Path, operation: str, number: int) -> None:
    """Whatever fails of the file, for ever, the messages are delivered, once each, and warnings say so.

    One that cannot be read can still be replaced, and is right then.
    """
    fault = Fault(operation, number, nth=0, path="" if operation == "listdir" else "maildirsize")
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(bytes=1000), disk=disk)
    await maildir.append(MESSAGE)
    disk.faults.append(fault)
    (tmp_path / "m" / "maildirsize").write_bytes(b"garbage")
    outcomes = [await maildir.append(MESSAGE) for _ in range(3)]
    assert there(maildir.path) == (400, 4)
    if operation == "read":
        assert told(maildir)[1:3] == (400, 4)
    else:
        assert any("maildirsize" in warning for delivered in outcomes for warning in delivered.warnings)


async def test_a_failed_delivery_gives_its_room_back(tmp_path: Path) -> None:
    """What was reserved for a message that failed, or was cancelled, is free again."""
    disk = FaultDisk(Fault("rename_noreplace", errno.EIO, nth=2, path="new"))
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=2), disk=disk)
    await maildir.append(MESSAGE)
    with pytest.raises(AppendError, match="Input/output"):
        await maildir.append(MESSAGE)
    task = asyncio.ensure_future(maildir.append(MESSAGE))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await maildir.append(MESSAGE)
    with pytest.raises(QuotaExceededError):
        await maildir.append(MESSAGE)


async def test_an_uncertain_message_counts(tmp_path: Path) -> None:
    """What is visible takes room, though its directory could not be synced."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=2), disk=disk)
    await maildir.append(MESSAGE)
    disk.faults.append(Fault("sync", errno.EIO, path="m/new"))
    with pytest.raises(UncertainAppendError):
        await maildir.append(MESSAGE)
    assert told(maildir).messages == 2


async def test_folders_share_the_quota_of_their_maildir(tmp_path: Path) -> None:
    """All folders count, and only the maildir has the file; those that are ignored take what comes."""
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=3))
    for folder in (None, "Archive/2024", "Entwürfe"):
        await maildir.append(MESSAGE, folder=folder)
    for folder in (None, "Archive/2024", "New"):
        with pytest.raises(QuotaExceededError):
            await maildir.append(MESSAGE, folder=folder)
    for folder in ("Trash", "Trash/old"):
        await maildir.append(MESSAGE, folder=folder)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("maildirsize")] == [Path("m/maildirsize")]
    held = told(maildir)
    os.unlink(tmp_path / "m" / "maildirsize")
    with pytest.raises(QuotaExceededError):
        await maildir.append(MESSAGE)
    assert told(maildir)[:3] == held[:3] == (Limits(0, 3), 300, 3)
    alone = Maildir(tmp_path / "m" / ".Archive.2024", quota=Quota(messages=3))
    with pytest.raises(QuotaExceededError):
        await alone.append(MESSAGE)


async def test_limits_out_of_the_file(tmp_path: Path) -> None:
    """Quota() keeps to what the file says, also when the rest of it is broken; without a file there is no limit."""
    maildir = Maildir(tmp_path / "m", quota=Quota())
    await maildir.append(MESSAGE)
    assert not (tmp_path / "m" / "maildirsize").exists()
    (tmp_path / "m" / "maildirsize").write_bytes(b"1000S,2C\nbroken\n")
    await maildir.append(MESSAGE)
    with pytest.raises(QuotaExceededError):
        await maildir.append(MESSAGE)
    assert told(maildir).limits == Limits(1000, 2)


@pytest.mark.parametrize("whose", ["own", "another's"])
async def test_what_is_counted_before_it_is_recorded_counts_once(tmp_path: Path, whose: str) -> None:
    """A message that is visible and not yet recorded, while all is counted anew, is not in the file twice.

    In another process that is another `Disk` here. What it counted is not believed, since Dovecot may have missed it.
    """
    gate = Gate()
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=100), disk=disk)
    theirs = disk if whose == "own" else FaultDisk()
    other = Maildir(maildir.path, quota=Quota(messages=100), commit=GroupCommit(), disk=theirs)
    await maildir.create()
    await maildir.check_room()
    disk.faults.append(Fault("sync", gate=gate, path="m/new"))
    task = asyncio.ensure_future(maildir.append(MESSAGE))
    await gate.reached()
    assert there(maildir.path) == (100, 1)
    with open(tmp_path / "m" / "maildirsize") as kept:  # whose inode is nobody else's as long as it is open
        os.unlink(kept.name)
        await other.append(MESSAGE)
        assert told(other)[1:3] == (200, 2)
        gate.open()
        await task
    for number in (3, 4):
        await maildir.append(MESSAGE)
        await maildir.check_room()
        assert told(maildir)[1:3] == there(maildir.path) == (100 * number, number)
    await other.append(MESSAGE)
    assert told(maildir)[1:3] == there(maildir.path) == (500, 5)
    await other.commit.aclose()


class _Caching(FaultDisk):
    """A disk of another machine, which says of a name what it last knew: so do FUSE and NFS, for a second or more."""

    cached: os.stat_result | None = None

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        if self.cached is not None and isinstance(path, str) and path.endswith("/maildirsize"):
            return self.cached
        return super().stat(path, directory)


async def test_a_count_elsewhere_behind_a_cached_name(tmp_path: Path) -> None:
    """A message that another machine has counted is not added to its file, though the old file's name is cached."""
    gate, disk = Gate(), _Caching()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=100), disk=disk)
    other = Maildir(maildir.path, quota=Quota(messages=100), commit=GroupCommit(), disk=FaultDisk())
    await maildir.append(MESSAGE)
    await maildir.check_room()
    disk.faults.append(Fault("sync", gate=gate, path="m/new"))
    task = asyncio.ensure_future(maildir.append(MESSAGE))
    await gate.reached()
    with open(tmp_path / "m" / "maildirsize") as kept:  # whose inode is nobody else's as long as it is open
        disk.cached = os.stat(kept.name)
        os.unlink(kept.name)
        await other.append(MESSAGE)
        gate.open()
        await task
        disk.cached = None
    await other.append(MESSAGE)
    assert told(other)[1:3] == there(maildir.path) == (400, 4)
    await other.commit.aclose()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("operation", ["open_file", "stat", "read", "write"])
async def test_a_file_that_another_machine_replaces_is_no_trouble(tmp_path: Path, operation: str, times: int) -> None:
    """ESTALE, wherever it comes and also when it comes again, costs no message a warning, and no count a message."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=100), disk=disk)
    other = Maildir(maildir.path, quota=Quota(messages=100), commit=GroupCommit(), disk=FaultDisk())
    for nth in range(1, 9):
        await other.append(MESSAGE)
        await other.check_room()
        disk.calls.clear()
        disk.faults[:] = [
            Fault(operation, errno.ESTALE, path="m/maildirsize", nth=number) for number in range(nth, nth + times)
        ]
        delivered = await maildir.append(MESSAGE)
        assert delivered.warnings == ()
        is_reached = disk.faults[0].seen >= nth
        disk.faults.clear()
        await other.append(MESSAGE)
        await other.check_room()
        assert told(other)[1:3] == there(maildir.path)
        if not is_reached:
            break
    assert 1 < nth < 9
    await other.commit.aclose()


@pytest.mark.parametrize(("operation", "nth"), [("open_file", 1), ("stat", 1), ("read", 1), ("read", 2), ("close", 1)])
async def test_what_is_added_while_the_file_is_read(tmp_path: Path, operation: str, nth: int) -> None:
    """A line that another process adds while the file is read counts for the next message, whenever it comes."""
    other = Maildir(tmp_path / "m", quota=Quota(messages=2), disk=FaultDisk())
    await other.append(MESSAGE)
    await other.check_room()  # counted

    def add() -> None:
        with Path(other.path, "maildirsize").open("ab") as file:
            file.write(b"100 1\n")
        Path(other.path, "new", "theirs").write_bytes(MESSAGE)

    disk = FaultDisk(Fault(operation, nth=nth, path="m/maildirsize", gate=add))
    maildir = Maildir(other.path, quota=Quota(messages=2), disk=disk)
    with contextlib.suppress(QuotaExceededError):
        await maildir.check_room()
    with pytest.raises(QuotaExceededError):
        await maildir.check_room()


async def test_what_was_wrong_with_a_file_that_is_gone(tmp_path: Path) -> None:
    """A line that could not be added is told of no more once the file is gone, and no reason to go without a file."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=100), disk=disk)
    await maildir.append_many([MESSAGE] * 2)
    disk.faults.append(Fault("write", errno.EIO, path="m/maildirsize"))
    await maildir.append(MESSAGE)
    assert not Path(maildir.path, "maildirsize").exists()
    assert (await maildir.append(MESSAGE)).warnings == ()
    assert told(maildir)[1:3] == there(maildir.path)


async def test_one_full_maildir_of_several(tmp_path: Path) -> None:
    """A message for several maildirs is refused for those that are full, and stored in the others."""
    full, other, third = (Maildir(tmp_path / name, quota=Quota(messages=2)) for name in ("full", "other", "third"))
    await full.append_many([MESSAGE, MESSAGE])
    for order in ([full, other, third], [third, full, other]):
        outcomes = {outcome.maildir: outcome for outcome in await deliver(LONG, order)}
        assert isinstance(outcomes[full].error, QuotaExceededError)
        assert outcomes[other].error is None
        assert outcomes[third].error is None
    assert told(other)[1:3] == told(third)[1:3] == (2 * len(LONG), 2)
    assert there(full.path)[1] == 2


async def test_a_transaction_is_refused_as_a_whole(tmp_path: Path) -> None:
    """All of its messages fit, or none is stored, and their room is free again."""
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=3))
    with pytest.raises(QuotaExceededError):
        await maildir.append_many([MESSAGE] * 4, atomic=True)
    assert there(maildir.path) == (0, 0)
    await maildir.append_many([MESSAGE] * 3, atomic=True)
    assert told(maildir).messages == 3


async def test_a_transaction_that_comes_to_nothing_takes_no_room(tmp_path: Path) -> None:
    """Given up before it is published, or taken back after: the file says what is there, and nothing is reserved."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=5), disk=disk)
    await maildir.append(MESSAGE)
    await maildir.append(MESSAGE)

    async def broken() -> AsyncIterator[bytes]:
        yield MESSAGE
        raise ValueError("broken")

    with pytest.raises(AppendError, match="broken"):
        await maildir.append_many([MESSAGE, MESSAGE, broken()], atomic=True)
    assert told(maildir)[1:3] == there(maildir.path) == (200, 2)
    disk.faults.append(Fault("rename_noreplace", errno.EIO, nth=2))
    with pytest.raises(AppendError, match="Input/output"):
        await maildir.append_many([MESSAGE, MESSAGE], atomic=True)
    assert told(maildir)[1:3] == there(maildir.path) == (200, 2)
    await maildir.append_many([MESSAGE] * 3, atomic=True)
    assert told(maildir)[1:3] == there(maildir.path) == (500, 5)


async def test_what_could_not_be_recorded_is_counted(tmp_path: Path) -> None:
    """A line that cannot be added to the file, or only in part, is missed once: the next message has all counted."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=5), disk=disk)
    await maildir.append(MESSAGE)
    for fault in (
        Fault("open_file", errno.EIO, path="maildirsize"),
        Fault("write", errno.ENOSPC, path="maildirsize"),
        Fault("write", errno.ENOSPC, path="maildirsize", nth=2),
    ):
        await maildir.append(MESSAGE)
        disk.faults[:] = [fault, Fault("write", path="maildirsize", shorten=2)]
        await maildir.append(MESSAGE)
        disk.faults.clear()
        await maildir.append(MESSAGE)
        assert told(maildir)[1:3] == there(maildir.path)
        for path in Path(maildir.path, "new").iterdir():
            path.unlink()
        Path(maildir.path, "maildirsize").unlink()


async def test_a_file_that_is_wrong_is_left_to_nobody(tmp_path: Path) -> None:
    """Where a line could not be added and there can be no count either, there is no file for others to believe."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=50), disk=disk)
    for _ in range(2):
        await maildir.append(MESSAGE)
    assert told(maildir)[1:3] == (200, 2)
    disk.faults[:] = [
        Fault("write", errno.ENOSPC, path="maildirsize"),
        Fault("rename", errno.ENOSPC, path="maildirsize"),
    ]
    await maildir.append(MESSAGE)
    await maildir.append(MESSAGE)
    disk.faults.clear()
    assert not Path(maildir.path, "maildirsize").exists()
    other = Maildir(maildir.path, quota=Quota(messages=50), disk=FaultDisk())
    await other.append(MESSAGE)
    await maildir.append(MESSAGE)
    assert told(maildir)[1:3] == there(maildir.path)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_folder_that_comes_while_it_is_counted(tmp_path: Path, fails: bool) -> None:
    """A count that others have overtaken with a new folder is not kept, nor believed if it cannot be removed."""
    gate, disk = Gate(), FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=50), disk=disk)
    other = Maildir(maildir.path, quota=Quota(messages=50), commit=GroupCommit(), disk=FaultDisk())
    await other.append(MESSAGE)
    await other.check_room()
    disk.faults[:] = [Fault("rename", gate=gate, path="maildirsize")]
    Path(maildir.path, "maildirsize").unlink()
    counting = asyncio.ensure_future(maildir.check_room())
    await gate.reached()
    await other.append_many([MESSAGE] * 2, folder="Later")
    disk.faults[:] = [Fault("unlink", errno.EIO, path="m/maildirsize")] if fails else []
    gate.open()
    await counting
    assert Path(maildir.path, "maildirsize").exists() is fails
    await maildir.append(MESSAGE)
    await maildir.append(MESSAGE)
    held = Path(maildir.path, "maildirsize")
    assert not held.exists() or told(maildir)[1:3] == (500, 5)
    await other.commit.aclose()


async def test_a_warning_when_a_part_is_passed(tmp_path: Path) -> None:
    """on_warning is called once for each part of the limit that is passed, with what is held."""
    warned: list[QuotaUsage] = []
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=4, warn_at=(0.5, 1), on_warning=warned.append))
    for _ in range(4):
        await maildir.append(MESSAGE)
    while len(warned) < 2:  # told to the loop, as the outcome is
        await asyncio.sleep(0)
    assert [(usage.messages, usage.fraction, usage.path) for usage in warned] == [
        (2, 0.5, maildir.path),
        (4, 1.0, maildir.path),
    ]


async def _stream() -> AsyncIterator[bytes]:
    yield LONG


@pytest.mark.parametrize("message", [MESSAGE, _stream], ids=["whole", "stream"])
async def test_a_warning_comes_in_the_context_of_who_delivers(tmp_path: Path, message: Any) -> None:
    """on_warning is called in the context of the message that passed the part."""
    whose = contextvars.ContextVar("whose", default="nobody")
    warned = list[str]()
    quota = Quota(messages=3, warn_at=(0.5,), on_warning=lambda _: warned.append(whose.get()))
    maildir = Maildir(tmp_path / "m", quota=quota)
    for name in ("alice", "bob", "carol"):
        context = contextvars.copy_context()
        context.run(whose.set, name)
        given = message() if callable(message) else message
        await asyncio.get_running_loop().create_task(maildir.append(given), context=context)
    while not warned:  # told to the loop, as the outcome is
        await asyncio.sleep(0)
    assert warned == ["bob"]


async def test_the_file_is_looked_at_once_a_round(tmp_path: Path) -> None:
    """A hundred messages at once cost a few looks; and one too many is refused only after another look."""
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=151), disk=disk)
    await maildir.append(MESSAGE)
    before = len(disk.calls)
    await maildir.append_many([MESSAGE] * 100, concurrency=100)
    assert (
        1 <= sum(call.operation == "stat" and call.path.endswith("maildirsize") for call in disk.calls[before:]) <= 20
    )

    def make_room() -> None:  # as another process would: fifty have gone, and ten of the next hundred can stay
        with Path(maildir.path, "maildirsize").open("ab") as file:
            file.write(b"-1000 -10\n")

    # Once fifty of the round have been written, and before any of the rest is.
    disk.faults.append(Fault("create", nth=50, gate=make_room, path="/tmp/"))
    outcomes = await maildir.append_many([MESSAGE] * 100, concurrency=100, return_exceptions=True)
    assert sum(isinstance(outcome, Delivered) for outcome in outcomes) == 60
    assert {type(outcome) for outcome in outcomes} == {Delivered, QuotaExceededError}


async def test_room_under_the_quota_can_be_asked_for(tmp_path: Path) -> None:
    """check_room tells that a message would be refused, without reserving anything."""
    maildir = Maildir(tmp_path / "m", quota=Quota(bytes=150, over="552 5.2.2 Mailbox full"))
    await maildir.append(MESSAGE)
    await maildir.check_room(50)
    with pytest.raises(QuotaExceededError, match="over its quota") as refused:
        await maildir.check_room(51)
    assert refused.value.smtp_reply == "552 5.2.2 Mailbox full"
    assert not refused.value.temporary
    await maildir.append(b"x" * 50)


def test_a_power_cut_at_every_call() -> None:
    """What append has returned for is there, whole, whatever has become of the file."""
    cut_at = 0
    while True:
        cut_at += 1
        disk = CrashDisk(cut_at=cut_at)
        maildir = Maildir("/m", quota=Quota(bytes=10_000), disk=disk)
        stored: list[Delivered] = []

        async def fill(maildir: Maildir = maildir, stored: list[Delivered] = stored) -> None:
            while len(stored) < 3:
                stored += [await maildir.append(MESSAGE)]

        with contextlib.suppress(Exception):
            asyncio.run(fill())
        for files in disk.after_power_cut(range(2)):
            assert all(files.get(delivered.path) == MESSAGE for delivered in stored)
        if disk.changes < cut_at:
            break
    assert len(stored) == 3


@pytest.mark.skipif(shutil.which("deliverquota") is None, reason="NOT TESTED: no deliverquota (package maildrop)")
async def test_courier_agrees(tmp_path: Path) -> None:
    """Courier's deliverquota and we add to one file, refuse for one limit, and count the same."""
    maildir = Maildir(tmp_path / "m", quota=Quota())
    await maildir.create()
    subprocess.run(["deliverquota", tmp_path / "m", "2000S,100C"], input=MESSAGE, check=True, timeout=60)
    for _ in range(4):
        await maildir.append(MESSAGE)
        await maildir.append(MESSAGE, folder="Lists")
        subprocess.run(["deliverquota", tmp_path / "m"], input=MESSAGE, check=True, timeout=60)
    held = told(maildir)
    assert (held.bytes, held.messages) == there(maildir.path)
    assert held.limits == Limits(2000, 100)
    await maildir.append(b"x" * (2000 - held.bytes))
    with pytest.raises(QuotaExceededError):
        await maildir.append(b"x")
    done = subprocess.run(["deliverquota", tmp_path / "m"], input=MESSAGE, capture_output=True, check=False, timeout=60)
    assert done.returncode == 77


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("doveadm") is None, reason="NOT TESTED: no doveadm (package dovecot-imapd)")
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: Dovecot runs as another user, for which root is wanted")
async def test_dovecot_agrees(tmp_path: Path) -> None:
    """After mixed deliveries of both, and after `doveadm quota recalc`, Dovecot counts what we count."""
    home, box = tmp_path / "home", tmp_path / "m"
    home.mkdir()
    (home / "mail").write_bytes(b"Subject: theirs\n\nbody\n")
    (home / "conf").write_text(
        f"base_dir = {home}/run\nstate_dir = {home}/state\nlog_path = {home}/log\nstats_writer_socket_path =\n"
        f"mail_location = maildir:{box}\nmail_plugins = quota\nssl = no\n"
        "mail_uid = nobody\nmail_gid = nogroup\nfirst_valid_gid = 0\n"
        "plugin {\n quota = maildir:User quota\n quota_rule = *:storage=1M:messages=5000\n"
        " quota_rule2 = Trash:ignore\n}\n"
    )

    def doveadm(*words: str) -> str:
        command = ["doveadm", "-c", str(home / "conf"), *words]
        environment = {"USER": "nobody", "HOME": str(home), "PATH": "/bin:/usr/bin"}
        done = subprocess.run(
            command,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            user="nobody",
            group="nogroup",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def counted() -> tuple[int, int]:
        """Return kilobytes, which Dovecot rounds up, and messages."""
        _, *rows = doveadm("-f", "tab", "quota", "get").splitlines()
        values = {name: int(value) for _, name, value, *_ in (row.split("\t") for row in rows)}
        return values["STORAGE"], values["MESSAGE"]

    maildir = Maildir(box, quota=Quota(bytes=2**20, messages=5000))
    await maildir.create()
    for path in [tmp_path, home, box, *tmp_path.rglob("*")]:
        shutil.chown(path, "nobody")
    for path in [*tmp_path.parents][:4]:
        path.chmod(path.stat().st_mode | 0o011)
    for number in range(10):
        ours = b"Subject: ours\n\n" + MESSAGE * number
        await maildir.append_many([ours] * 50, folder="Lists" if number % 2 else None)
        await maildir.append(MESSAGE, folder="Trash")
        doveadm("save", "-m", "INBOX", str(home / "mail"))
        held = told(maildir)
        assert counted() == (-(-held.bytes // 1024), held.messages)
    doveadm("quota", "recalc")
    held = told(maildir)
    assert held.messages == 510
    assert counted() == (-(-held.bytes // 1024), 510)
    await maildir.append(MESSAGE)
    assert told(maildir).messages == 511
    with pytest.raises(QuotaExceededError):
        await maildir.append(b"x" * 2**20)


async def test_a_message_that_hangs_while_the_maildir_is_counted(tmp_path: Path) -> None:
    """One that hung, about to be published, while this process counted, and was not seen then, is counted too."""
    gate, commit = Gate(), GroupCommit()
    commit.queue.patience_s = commit._watch._interval_s = 0.02
    disk = FaultDisk()
    maildir = Maildir(tmp_path / "m", quota=Quota(messages=100), disk=disk, commit=commit)
    await maildir.append(MESSAGE)
    disk.faults.append(Fault("rename_noreplace", gate=gate))
    hanging = asyncio.ensure_future(maildir.append(MESSAGE))
    await gate.reached()
    (tmp_path / "m" / "maildirsize").unlink(missing_ok=True)
    await maildir.append(MESSAGE)  # which has it counted
    gate.open()
    await hanging
    await maildir.append(MESSAGE)
    held = told(maildir)
    assert (held.bytes, held.messages) == there(tmp_path / "m")
