"""A whole message on its way through tmp/ to new/ or cur/: which calls are made, under which name, and what is left."""

import asyncio
import errno
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from maildir_async import Maildir, UncertainAppendError
from maildir_async.commit.batch import names_in_use
from maildir_async.commit.entry import Entry, Plan
from maildir_async.commit.mailbox import Mailbox
from maildir_async.commit.rounds import Round
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.streamfile import NAME_TRIES, StreamFile, streams_in_use
from maildir_async.disk.syncs import Syncs
from maildir_async.disk.threads import Crew
from maildir_async.format.content import Content
from maildir_async.format.delivered import Durability
from maildir_async.format.names import UniqueNames
from maildir_async.testing import Fault, FaultDisk
from support import UNIQUE, ListedNames, contents, tree, umask

MESSAGE = b"Subject: x\r\n\r\nbody\n"
NOW_NS = 1_700_000_000 * 10**9
LOOP = asyncio.new_event_loop()

#: How many messages a round has: one goes by paths, and of many those after the second by open directories.
COUNTS = pytest.mark.parametrize("count", [1, 12])


class Keeper:
    """Nothing hangs here."""

    patience_s = 60.0

    def __init__(self) -> None:
        self.syncers = Crew(4, "syncs")

    def finish_syncs(self, syncs: Syncs, items: object, step: int) -> None:
        raise AssertionError("something was left behind")


def mailbox(box: Path, disk: Disk | None = None, names: UniqueNames | None = None, *, mode: int = 0o600) -> Mailbox:
    return Mailbox(
        Directories(str(box), disk=disk or PosixDisk(), create=True), names or UniqueNames(hostname="host"), mode
    )


def entry(where: Mailbox, plan: Plan | None = None, chunks: Any = MESSAGE, file: StreamFile | None = None) -> Entry:
    future = asyncio.Future[None](loop=LOOP)
    return Entry(where, plan or Plan(Durability.FULL), chunks, LOOP, future, file=file)


def delivered(*entries: Entry) -> Any:
    """Take them through a round, and return the last."""
    Round(list(entries), Keeper()).drive()
    assert names_in_use() == set()
    return entries[-1]


def descriptors() -> list[str]:
    return os.listdir("/dev/fd")


@pytest.fixture
def box(tmp_path: Path) -> Path:
    box = tmp_path / "box"
    Directories(str(box), disk=PosixDisk(), create=True).make()
    return box


# The way.


@COUNTS
@pytest.mark.parametrize(("flags", "where"), [("", "new"), ("FS", "cur")])
def test_whole_messages(box: Path, flags: str, where: str, count: int) -> None:
    """They go through tmp/ to new/, or with flags to cur/, under a unique name with sizes and flags."""
    before = descriptors()
    disk = FaultDisk()
    entries = [entry(mailbox(box, disk), Plan(Durability.FULL, flags)) for _ in range(count)]
    delivered(*entries)
    assert contents(box) == {"tmp": [], "new": [], "cur": [], where: [MESSAGE] * count}
    for one in entries:
        assert one.error is None
        unique, _, rest = os.path.basename(one.path).partition(",")
        assert UNIQUE.fullmatch(unique)
        assert rest == f"S={len(MESSAGE)},W={len(MESSAGE) + 1}" + (":2,FS" if flags else "")
        assert one.path.startswith(f"{box}/{where}/")
        assert (one.size, one.wire_size) == (len(MESSAGE), len(MESSAGE) + 1)
    assert (descriptors(), entries[0].warnings) == (before, None)
    in_tmp = [os.path.basename(call.path) for call in disk.calls if call.operation == "create"]
    assert in_tmp == [one.name for one in entries]


@pytest.mark.parametrize("durability", Durability)
def test_system_calls(box: Path, durability: Durability) -> None:
    """The file is made, written, synced, closed, published, and its directory synced: in this order, and no more."""
    disk = FaultDisk()
    delivered(entry(mailbox(box, disk)))
    disk.calls.clear()
    delivered(entry(mailbox(box, disk), Plan(durability)))
    sync = [] if durability is Durability.NONE else ["sync"]
    directory = ["sync"] if durability is Durability.FULL else []
    assert [call.operation for call in disk.calls] == [
        *("create", "write", *sync, "close", "open_directory", "identity", "rename_noreplace", *directory, "close"),
    ]


def test_a_stream_becomes_a_whole_message(box: Path) -> None:
    """What was written while it came is taken over with its last chunks, and has another name where it is published."""
    where = mailbox(box)
    file = StreamFile(where.directories, where.names, Content(newline="crlf"), mode=0o600, is_synced=True)
    file.create()
    file.write([b"a\n", b"b\r"])
    one = entry(where, Plan(Durability.FULL, newline="crlf"), [b"\n", bytearray(b"c\r")], file)
    seen: list[bool] = []
    name = file.name
    one_disk = where.directories.disk
    real = one_disk.sync

    def sync(fd: int) -> None:
        seen.append(name in names_in_use() | streams_in_use())
        real(fd)

    setattr(one_disk, "sync", sync)  # noqa: B010 a method may not be assigned to
    delivered(one)
    assert contents(box) == {"tmp": [], "new": [b"a\r\nb\r\nc\r"], "cur": []}
    assert one.name.endswith(",S=8,W=8")
    assert name.partition(",")[0] != one.name.partition(",")[0]
    assert seen[0], "nobody sweeps it away in between"
    assert (file.discard(), streams_in_use(), one.chunks) == (None, set(), b"")


@COUNTS
@pytest.mark.parametrize(("mode", "mask"), [(0o600, 0), (0o600, 0o027), (0o640, 0o077), (0o664, 0o022)])
def test_mode_is_exact(box: Path, mode: int, mask: int, count: int) -> None:
    """A message file has the mode asked for, whatever the umask takes away or leaves."""
    where = mailbox(box, mode=mode)
    with umask(mask):
        one = delivered(*(entry(where) for _ in range(count)))
    assert stat.S_IMODE(os.stat(one.path).st_mode) == mode


def test_mtime_is_set_and_atime_is_not(box: Path) -> None:
    """The mtime is the one given, to the nanosecond; the atime is now, so that no sweeper takes it for old."""
    began = time.time()
    found = os.stat(delivered(entry(mailbox(box), Plan(Durability.FULL, mtime_ns=123_456_789_012))).path)
    assert found.st_mtime_ns == 123_456_789_012
    assert found.st_atime >= began - 1


@pytest.mark.parametrize("chunks", [b"x\r\ny\nz\r", [b"x\r", bytearray(b"\ny"), memoryview(b"\nz\r"), b""]])
def test_content_policy_applies(box: Path, chunks: Any) -> None:
    """Prefix and line ends are stored as the plan says, a CR kept back at the end too, and the sizes are of that."""
    one = delivered(entry(mailbox(box), Plan(Durability.FULL, prefix=b"A: b\n", newline="crlf"), chunks))
    assert contents(box)["new"] == [b"A: b\r\nx\r\ny\r\nz\r"]
    assert one.path.endswith(",S=14,W=14")


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\nb", b"\r\n\n\r", b"\r", b"\n\r\n\n"])
def test_sizes(box: Path, data: bytes) -> None:
    """Both sizes in the name are true, whatever the line ends, and an empty message is one."""
    one = delivered(entry(mailbox(box), chunks=data))
    wire = len(data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert one.name.endswith(f",S={len(data)},W={wire}")
    assert contents(box)["new"] == [data]


@COUNTS
@pytest.mark.parametrize("missing", ["", "tmp", "new", "cur"])
def test_what_is_missing_is_made(tmp_path: Path, missing: str, count: int) -> None:
    """What is missing of the maildir is made with the first message, or while others are on their way."""
    box = tmp_path / "a" / "box"
    if missing:
        for name in {"tmp", "new", "cur"} - {missing}:
            (box / name).mkdir(parents=True)
    where = mailbox(box)
    delivered(*(entry(where) for _ in range(count)))
    assert len(contents(box)["new"]) == count
    assert sorted(os.listdir(box)) == ["cur", "new", "tmp"]


# Names that are taken.


@COUNTS
def test_collision_in_tmp(box: Path, count: int) -> None:
    """A file in tmp/ with the name that is generated survives; the message takes another."""
    planted = f"taken,S={len(MESSAGE)},W={len(MESSAGE) + 1}"
    (box / "tmp" / planted).write_bytes(b"planted")
    names = ListedNames(*[f"fine{number}" for number in range(count - 1)], "taken", "free")
    one = delivered(*(entry(where) for where in [mailbox(box, names=names)] for _ in range(count)))
    assert one.path.startswith(f"{box}/new/free,")
    assert tree(box / "tmp") == {planted: b"planted"}


@COUNTS
@pytest.mark.parametrize(("flags", "where", "suffix"), [("", "new", ""), ("S", "cur", ":2,S")])
@pytest.mark.parametrize("refused", [(), ("rename_noreplace",)], ids=["renameat2", "link"])
def test_collision_when_publishing(
    box: Path, flags: str, where: str, suffix: str, refused: tuple[str, ...], count: int
) -> None:
    """A message with the name that is generated survives whole; the new one is published under another."""
    planted = box / where / f"taken,S={len(MESSAGE)},W={len(MESSAGE) + 1}{suffix}"
    planted.write_bytes(b"planted")
    disk = FaultDisk(*(Fault(name, errno.EINVAL, nth=0) for name in refused))
    there = mailbox(box, disk, ListedNames(*[f"fine{number}" for number in range(count - 1)], "taken", "free"))
    one = delivered(*(entry(there, Plan(Durability.FULL, flags)) for _ in range(count)))
    assert planted.read_bytes() == b"planted"
    assert one.path == f"{box}/{where}/free{planted.name.removeprefix('taken')}"
    assert sorted(contents(box)[where]) == sorted([MESSAGE] * count + [b"planted"])
    assert contents(box)["tmp"] == []


def test_names_that_are_all_taken(box: Path) -> None:
    """A directory where every name tried exists is an EEXIST after a bounded number of tries, and keeps its file."""
    planted = f"taken,S={len(MESSAGE)},W={len(MESSAGE) + 1}"
    for where in ("tmp", "new"):
        (box / where / planted).write_bytes(b"planted")
        one = delivered(entry(mailbox(box, names=ListedNames(*["taken"] * (NAME_TRIES + 1)))))
        assert one.error is not None
        assert one.error.errno == errno.EEXIST
        assert tree(box / where) == {planted: b"planted"}
        os.unlink(box / where / planted)


@COUNTS
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_only_a_taken_name_is_tried_again(box: Path, number: int, count: int) -> None:
    """Any other error than EEXIST is the message's at the first try, with its errno."""
    for operation in ("create", "rename_noreplace"):
        disk = FaultDisk()
        delivered(entry(mailbox(box, disk)))
        disk.calls.clear()
        disk.faults.append(Fault(operation, number, nth=count))
        one = delivered(*(entry(where) for where in [mailbox(box, disk)] for _ in range(count)))
        assert one.error is not None
        assert one.error.errno == number
        assert sum(call.operation == operation for call in disk.calls) == count


@COUNTS
@pytest.mark.parametrize("late", [errno.EIO, errno.ENOENT, errno.EEXIST], ids=errno.errorcode.get)
def test_an_error_that_hides_a_success_is_a_warning(box: Path, count: int, late: int) -> None:
    """A message that has been published, in spite of what the call says, is delivered, and told of."""
    disk = FaultDisk(Fault("rename_noreplace", late, nth=count, late=True))
    one = delivered(*(entry(where) for where in [mailbox(box, disk)] for _ in range(count)))
    assert one.error is None
    [warning] = one.warnings
    assert "published in spite of" in warning
    assert len(contents(box)["new"]) == count
    assert os.path.exists(one.path)


def test_a_warning_of_publishing_is_kept(box: Path) -> None:
    """What goes wrong after the message is visible is a warning."""
    disk = FaultDisk(Fault("rename_noreplace", errno.EINVAL, nth=0), Fault("unlink", errno.EIO, nth=2))
    where = mailbox(box, disk)
    entries = [entry(where) for _ in range(3)]
    delivered(*entries)
    assert [one.warnings is not None and "tmp/" in one.warnings[0] for one in entries] == [False, True, False]
    assert contents(box)["new"] == [MESSAGE] * 3


# What fails.


@COUNTS
@pytest.mark.parametrize(
    ("operation", "stage"),
    [
        ("create", "create"),
        ("chmod", "create"),
        ("write", "write"),
        ("utime", "write"),
        ("sync", "sync"),
        ("close", "close"),
        ("rename_noreplace", "publish"),
    ],
)
def test_what_fails_leaves_nothing(box: Path, operation: str, stage: str, count: int) -> None:
    """Whichever call fails, the message leaves no file and no descriptor, and is closed once; the others are there."""
    Directories(str(box), disk=PosixDisk(), create=True).make()
    before = descriptors()
    disk = FaultDisk(
        Fault(operation, errno.EIO, nth=count, path="" if operation == "rename_noreplace" else "/box/tmp/")
    )
    where = mailbox(box, disk, mode=0o640)
    entries = [entry(where, Plan(Durability.FULL, mtime_ns=1)) for _ in range(count)]
    delivered(*entries)
    [failed] = [one for one in entries if one.error is not None]
    assert failed.error is not None
    assert (failed.error.stage, failed.error.errno) == (stage, errno.EIO)
    assert contents(box) == {"tmp": [], "new": [MESSAGE] * (count - 1), "cur": []}
    assert descriptors() == before
    closed = [call for call in disk.calls if call.operation == "close" and "/box/tmp/" in call.path]
    assert len(closed) == count - (operation == "create")
    assert failed.chunks == b""


def test_what_cannot_be_removed_is_told(box: Path) -> None:
    """A file that cannot be removed is told about; one that a sweeper has taken is not, nor a close that fails."""
    for fault, told in [
        (Fault("unlink", errno.EROFS), True),
        (Fault("unlink", errno.ENOENT, late=True), False),
        (Fault("close", errno.EIO), False),
    ]:
        one = delivered(entry(mailbox(box, FaultDisk(Fault("write", errno.EIO), fault))))
        notes = getattr(one.error, "__notes__", [])
        assert bool(notes) is told
        assert not told or os.strerror(errno.EROFS) in notes[0]


@pytest.mark.parametrize("progress", [0, -1])
def test_a_short_write_is_gone_on_with(box: Path, progress: int) -> None:
    """A short write is the file system's right; one without progress is EIO, and not an endless loop."""
    assert delivered(entry(mailbox(box, FaultDisk(Fault("write", shorten=3, nth=0))))).error is None
    assert contents(box)["new"] == [MESSAGE]

    class Stuck(PosixDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            return progress

    one = delivered(entry(mailbox(box, Stuck())))
    assert (one.error.stage, one.error.errno) == ("write", errno.EIO)
    assert contents(box)["tmp"] == []


def test_collision_with_real_names(box: Path) -> None:
    """With a clock that stands still the next name can be foretold and planted, and both messages survive."""
    names = UniqueNames(clock=lambda: NOW_NS, hostname="host")
    found = UNIQUE.fullmatch(names.next())
    assert found
    count = int(found["count"])
    foretold = [
        f"1700000000.M{ahead:06}P{found['pid']}Q{count + ahead}R{found['random']}.host" for ahead in range(1, 4)
    ]
    sizes = f",S={len(MESSAGE)},W={len(MESSAGE) + 1}"
    (box / "tmp" / f"{foretold[0]}{sizes}").write_bytes(b"planted")
    (box / "new" / f"{foretold[1]}{sizes}").write_bytes(b"planted")
    one = delivered(entry(mailbox(box, names=names)))
    assert os.path.basename(one.path) == f"{foretold[2]}{sizes}"
    assert contents(box) == {"tmp": [b"planted"], "new": [b"planted", MESSAGE], "cur": []}


async def test_a_failed_sync_is_no_durable_directory(tmp_path: Path) -> None:
    """The next message to a maildir whose first sync has failed has all of it synced that is above it."""
    for name in ("tmp", "new", "cur"):
        (tmp_path / "m" / name).mkdir(parents=True)
    disk = FaultDisk(Fault("sync", errno.EIO, path="/m/new"))
    maildir = Maildir(tmp_path / "m", disk=disk)
    with pytest.raises(UncertainAppendError):
        await maildir.append(b"first")
    disk.calls.clear()
    await maildir.append(b"second")
    synced = [call.path for call in disk.calls if call.operation == "sync"]
    assert {f"{tmp_path}/m", f"{tmp_path}/m/.."} <= set(synced)
    disk.calls.clear()
    await maildir.append(b"third")
    assert f"{tmp_path}/m" not in [call.path for call in disk.calls if call.operation == "sync"]
