import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from maildir_async.disk.tmpfile import NAME_TRIES, SLICE, TmpFile, discard_all, in_use

from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.errors import NotAMaildirError
from maildir_async.format.content import Content
from maildir_async.format.delivered import Durability
from maildir_async.format.names import UniqueNames
from maildir_async.testing import Fault, FaultDisk
from support import UNIQUE, ListedNames, contents, forked, tree, umask

MESSAGE = b"Subject: x\r\n\r\nbody\n"
NOW_NS = 1_700_000_000 * 10**9

#: A delivery's steps, in order.
STEPS: list[tuple[str, Callable[[TmpFile], object]]] = [
    ("create", TmpFile.create),
    ("write", lambda file: file.write([MESSAGE])),
    ("complete", lambda file: file.complete([])),
    ("sync", TmpFile.sync),
    ("close", TmpFile.close),
    ("publish", TmpFile.publish),
]
NAMES = [name for name, _ in STEPS]


def tmpfile(box: Path, disk: Disk | None = None, names: UniqueNames | None = None, **options: Any) -> TmpFile:
    given = {"mode": 0o600, "flags": "", "mtime_ns": None, "durability": Durability.FULL, **options}
    content = given.pop("content", None) or Content()
    create = given.pop("create", True)
    where = Directories(str(box), disk=disk or PosixDisk(), create=create)
    return TmpFile(where, names or UniqueNames(hostname="host"), content, **given)


def take(file: TmpFile, upto: str) -> None:
    """Take the steps up to and with one."""
    for name, step in STEPS[: NAMES.index(upto) + 1]:
        step(file)
        if name == "create":
            assert file.path in in_use()


def descriptors() -> list[str]:
    return os.listdir("/dev/fd")


@pytest.fixture
def box(tmp_path: Path) -> Path:
    box = tmp_path / "box"
    Directories(str(box), disk=PosixDisk(), create=True).make()
    return box


# The steps.


@pytest.mark.parametrize(("flags", "where"), [("", "new"), ("FS", "cur")])
def test_steps(box: Path, flags: str, where: str) -> None:
    """A message goes through tmp/ to new/, or with flags to cur/, under a new name with its sizes and flags."""
    before = descriptors()
    file = tmpfile(box, flags=flags)
    take(file, "publish")
    assert contents(box) == {"tmp": [], "new": [], "cur": [], where: [MESSAGE]}
    unique, _, rest = os.path.basename(file.published).partition(",")
    assert UNIQUE.fullmatch(unique)
    assert rest == f"S={len(MESSAGE)},W={len(MESSAGE) + 1}" + (":2,FS" if flags else "")
    assert unique != os.path.basename(file.path)
    assert (Path(file.published).parent, Path(file.path).parent) == (box / where, box / "tmp")
    assert (in_use(), descriptors(), file.warnings) == (set(), before, [])


@pytest.mark.parametrize("durability", Durability)
def test_system_calls(box: Path, durability: Durability) -> None:
    """The bytes are written, their writeback started, the file synced and closed, and then published: in this order."""
    disk = FaultDisk()
    take(tmpfile(box, disk, durability=durability), "publish")
    hint = [] if durability is Durability.NONE else ["start_writeback"]
    assert [call.operation for call in disk.calls] == [
        *("create", "write", *hint, "sync", "close", "rename_noreplace"),
    ]


def test_stage_tells_where_it_stands(box: Path) -> None:
    """``stage`` is the step it is at, or failed in, in the words of the errors."""
    file = tmpfile(box)
    seen = [str(file.stage)]
    for _, step in STEPS:
        step(file)
        seen.append(file.stage)
    assert seen == ["queue", "create", "write", "write", "sync", "close", "publish"]


@pytest.mark.parametrize(("mode", "mask"), [(0o600, 0), (0o600, 0o027), (0o640, 0o077), (0o664, 0o022)])
def test_mode_is_exact(box: Path, mode: int, mask: int) -> None:
    """A message file has the mode asked for, whatever the umask takes away or leaves."""
    file = tmpfile(box, mode=mode)
    with umask(mask):
        take(file, "create")
    assert stat.S_IMODE(os.stat(file.path).st_mode) == mode
    file.discard()


def test_mtime_is_set_and_atime_is_not(box: Path) -> None:
    """The mtime is the one given, to the nanosecond; the atime is now, so that no sweeper takes it for old."""
    began = time.time()
    file = tmpfile(box, mtime_ns=123_456_789_012)
    take(file, "complete")
    in_tmp = os.stat(file.path)
    assert in_tmp.st_mtime_ns == 123_456_789_012
    assert in_tmp.st_atime >= began - 1
    for _, step in STEPS[3:]:
        step(file)
    assert os.stat(file.published).st_mtime_ns == 123_456_789_012


def test_content_policy_applies(box: Path) -> None:
    """Prefix and line ends are stored as the policy says, a CR kept back at the end too, and the sizes are of that."""
    file = tmpfile(box, content=Content(prefix=b"A: b\n", newline="crlf"))
    file.create()
    file.write([b"x\r", b"\ny\n", b"z\r"])
    file.complete([])
    file.close()
    file.publish()
    assert contents(box)["new"] == [b"A: b\r\nx\r\ny\r\nz\r"]
    assert file.published.endswith(",S=14,W=14")


def test_chunks_of_every_kind(box: Path) -> None:
    """Chunks of any bytes-like kind, and none at all, are stored in order; a huge one is written piece by piece."""
    huge = os.urandom(2 * SLICE + 5)
    most = 0

    class Measuring(PosixDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            nonlocal most
            most = max(most, len(data))
            return super().write(fd, data)

    file = tmpfile(box, Measuring())
    file.create()
    file.write([b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b""])
    file.write([])
    file.write([huge, bytearray(huge), memoryview(huge)])
    file.complete([])
    file.close()
    file.publish()
    assert contents(box)["new"] == [b"abc" + 3 * huge]
    assert most == SLICE


def test_writeback_covers_each_byte_once(box: Path) -> None:
    """The writeback that is started early covers all that has been streamed without a gap, and nothing twice."""
    ranges = list[tuple[int, int]]()

    class Noting(PosixDisk):
        def start_writeback(self, fd: int, offset: int, length: int) -> None:
            ranges.append((offset, length))

    file = tmpfile(box, Noting(), content=Content(newline="lf"))
    file.create()
    for chunk in (b"abc", b"", b"de\r", b"f\r"):
        file.write([chunk])
    file.complete([])
    assert ranges == [(0, 3), (3, 2), (5, 2)], "what ends the message is synced at once"
    file.discard()


# Making what is missing.


@pytest.mark.parametrize("missing", ["", "tmp"])
def test_create_makes_the_maildir(tmp_path: Path, missing: str) -> None:
    """What is missing of the maildir is made when the first file is."""
    box = tmp_path / "a" / "box"
    if missing:
        (box / "new").mkdir(parents=True)
    take(tmpfile(box), "publish")
    assert len(contents(box)["new"]) == 1
    assert sorted(os.listdir(box)) == ["cur", "new", "tmp"]


@pytest.mark.parametrize("create", [True, False])
def test_create_through_a_file_is_refused(tmp_path: Path, create: bool) -> None:
    """A file on the way is a NotAMaildirError, and so is a missing maildir that may not be made; nothing is made."""
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    for path in (tmp_path / "file" / "box", *([] if create else [tmp_path / "none"])):
        with pytest.raises(NotAMaildirError):
            tmpfile(path, create=create).create()
    assert (tree(tmp_path), in_use()) == (before, set())


def test_create_makes_the_maildir_once(box: Path) -> None:
    """A directory that is still missing after it was made is the system's error, and not made for ever."""
    disk = FaultDisk(Fault("create", errno.ENOENT, nth=0))
    with pytest.raises(FileNotFoundError):
        tmpfile(box, disk).create()
    assert sum(call.operation == "create" for call in disk.calls) == 2


# Names that are taken.


def test_collision_in_tmp(box: Path) -> None:
    """A file in tmp/ with the name that is generated survives; the message takes the next name."""
    (box / "tmp" / "taken").write_bytes(b"planted")
    file = tmpfile(box, names=ListedNames("taken", "free"))
    file.create()
    assert file.path == f"{box}/tmp/free"
    file.discard()
    assert tree(box / "tmp") == {"taken": b"planted"}


@pytest.mark.parametrize(("flags", "where", "suffix"), [("", "new", ""), ("S", "cur", ":2,S")])
@pytest.mark.parametrize("refused", [(), ("rename_noreplace",)], ids=["renameat2", "link"])
def test_collision_when_publishing(box: Path, flags: str, where: str, suffix: str, refused: tuple[str, ...]) -> None:
    """A message with the name that is generated survives whole; the new one is published under the next name."""
    planted = box / where / f"taken,S={len(MESSAGE)},W={len(MESSAGE) + 1}{suffix}"
    planted.write_bytes(b"planted")
    disk = FaultDisk(*(Fault(name, errno.EINVAL, nth=0) for name in refused))
    take(tmpfile(box, disk, ListedNames("tmpname", "taken", "free"), flags=flags), "publish")
    assert planted.read_bytes() == b"planted"
    assert contents(box)[where] == [MESSAGE, b"planted"]
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
    (box / "tmp" / foretold[0]).write_bytes(b"planted")
    (box / "new" / f"{foretold[2]},S={len(MESSAGE)},W={len(MESSAGE) + 1}").write_bytes(b"planted")
    file = tmpfile(box, names=names)
    take(file, "publish")
    assert os.path.basename(file.path) == foretold[1]
    assert contents(box) == {"tmp": [b"planted"], "new": [b"planted", MESSAGE], "cur": []}


def test_names_that_are_all_taken(box: Path) -> None:
    """A directory where every name tried exists is an EEXIST after a bounded number of tries, and keeps its file."""
    (box / "tmp" / "taken").write_bytes(b"planted")
    with pytest.raises(FileExistsError):
        tmpfile(box, names=ListedNames(*["taken"] * NAME_TRIES)).create()
    (box / "new" / "taken,S=0,W=0").write_bytes(b"planted")
    file = tmpfile(box, names=ListedNames("free", *["taken"] * NAME_TRIES))
    file.create()
    with pytest.raises(FileExistsError):
        file.publish()
    assert file.discard() is None
    assert contents(box) == {"tmp": [b"planted"], "new": [b"planted"], "cur": []}


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EMFILE, errno.EROFS], ids=errno.errorcode.get)
def test_only_a_taken_name_is_tried_again(box: Path, number: int) -> None:
    """Any other error than EEXIST is raised at the first try, with its errno."""
    for operation in ("create", "rename_noreplace"):
        disk = FaultDisk(Fault(operation, number, nth=0))
        file = tmpfile(box, disk)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            take(file, "publish")
        assert caught.value.errno == number
        assert sum(call.operation == operation for call in disk.calls) == 1
        file.discard()


def test_a_warning_of_publishing_is_kept(box: Path) -> None:
    """What goes wrong after the message is visible is a warning: it is published, and no longer in use."""
    disk = FaultDisk(Fault("rename_noreplace", errno.EINVAL), Fault("unlink", errno.EIO))
    file = tmpfile(box, disk)
    take(file, "publish")
    [warning] = file.warnings
    assert "tmp/" in warning
    assert contents(box)["new"] == [MESSAGE]
    assert file.path not in in_use()


# Discarding.


@pytest.mark.parametrize("upto", ["", *NAMES[:-1]])
def test_discard_leaves_nothing(box: Path, upto: str) -> None:
    """Discarded after any step before publishing, a message leaves no file, no descriptor, and nothing in use."""
    before = descriptors()
    file = tmpfile(box)
    if upto:
        take(file, upto)
    assert file.discard() is None
    assert file.discard() is None
    assert contents(box) == {"tmp": [], "new": [], "cur": []}
    assert (descriptors(), in_use()) == (before, set())


def test_discard_spares_what_is_published(box: Path) -> None:
    """Discarding a published message does nothing."""
    file = tmpfile(box)
    take(file, "publish")
    assert file.discard() is None
    assert contents(box)["new"] == [MESSAGE]


@pytest.mark.parametrize(
    ("operation", "upto", "mode"),
    [
        ("create", "create", 0o600),
        ("chmod", "create", 0o640),
        ("write", "write", 0o600),
        ("utime", "complete", 0o600),
        ("sync", "sync", 0o600),
        ("close", "close", 0o600),
        ("rename_noreplace", "publish", 0o600),
    ],
)
def test_discard_after_a_failure(box: Path, operation: str, upto: str, mode: int) -> None:
    """Whichever system call fails, discarding leaves no file and no descriptor, and closes none twice."""
    before = descriptors()
    disk = FaultDisk(Fault(operation, errno.EIO))
    file = tmpfile(box, disk, mode=mode, mtime_ns=1)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        take(file, upto)
    assert file.discard() is None
    assert contents(box) == {"tmp": [], "new": [], "cur": []}
    assert (descriptors(), in_use()) == (before, set())
    assert sum(call.operation == "close" for call in disk.calls) == (operation != "create")


def test_discard_tells_what_it_could_not_do(box: Path) -> None:
    """A file that cannot be removed is told about; one that a sweeper has taken is not, nor a close that fails."""
    for fault, told in [
        (Fault("unlink", errno.EROFS), True),
        (Fault("unlink", errno.ENOENT, late=True), False),
        (Fault("close", errno.EIO), False),
    ]:
        file = tmpfile(box, FaultDisk(fault))
        take(file, "write")
        told_of = file.discard()
        assert (told_of is not None) is told
        assert not told or os.strerror(errno.EROFS) in str(told_of)
        assert file.path not in in_use()


@pytest.mark.parametrize("name", NAMES)
def test_no_step_after_discard(box: Path, name: str) -> None:
    """A step after discarding raises ECANCELED and does not touch the disk."""
    disk = FaultDisk()
    file = tmpfile(box, disk)
    at = NAMES.index(name)
    if at:
        take(file, NAMES[at - 1])
    file.discard()
    calls = len(disk.calls)
    with pytest.raises(OSError, match="aborted") as caught:
        STEPS[at][1](file)
    assert caught.value.errno == errno.ECANCELED
    assert len(disk.calls) == calls
    assert contents(box) == {"tmp": [], "new": [], "cur": []}


@pytest.mark.parametrize(
    ("operation", "upto"), [("create", "create"), ("write", "write"), ("sync", "sync"), ("rename_noreplace", "publish")]
)
def test_discard_waits_for_a_step_in_progress(box: Path, operation: str, upto: str) -> None:
    """Discarding while another thread is inside a system call waits for it, and then removes what it left."""
    inside, go_on = threading.Event(), threading.Event()
    events = list[str]()

    def gate() -> None:
        inside.set()
        assert go_on.wait(30)
        events.append("step")

    before = descriptors()
    file = tmpfile(box, FaultDisk(Fault(operation, gate=gate)))
    at = NAMES.index(upto)
    if at:
        take(file, NAMES[at - 1])
    stepping = threading.Thread(target=STEPS[at][1], args=(file,))

    def discard() -> None:
        file.discard()
        events.append("discarded")

    discarding = threading.Thread(target=discard)
    stepping.start()
    assert inside.wait(30)
    discarding.start()
    discarding.join(0.05)  # long enough to catch one that does not wait; one that waits passes in any case
    assert discarding.is_alive()
    go_on.set()
    stepping.join()
    discarding.join()
    assert events == ["step", "discarded"]
    # Publishing had begun first, so it wins; before that, nothing is left.
    assert contents(box) == {"tmp": [], "new": [MESSAGE] if upto == "publish" else [], "cur": []}
    assert (descriptors(), in_use()) == (before, set())


def test_discard_all(box: Path) -> None:
    """Every message of the process that is not published is discarded, and no other."""
    published, unpublished = tmpfile(box), [tmpfile(box) for _ in range(3)]
    take(published, "publish")
    for file in unpublished:
        take(file, "write")
    assert len(in_use()) == 3
    discard_all()
    assert contents(box) == {"tmp": [], "new": [MESSAGE], "cur": []}
    assert in_use() == set()


# Forks.


def test_a_fork_leaves_the_file_to_the_parent(box: Path) -> None:
    """A child has nothing in use and no descriptor of the parent's file, and neither removes nor writes it."""
    file = tmpfile(box)
    take(file, "complete")

    def child() -> tuple[set[str], bool, str | None, int | None, bool]:
        in_child = in_use()
        inherited = any(os.path.samestat(os.stat(file.path), found) for found in map(os.stat, _open_files()))
        discard_all()
        told = file.discard()
        try:
            file.publish()
        except OSError as exc:
            return in_child, inherited, told, exc.errno, os.path.exists(file.path)
        raise AssertionError("a child has published its parent's file")

    assert forked(child) == [(set(), False, None, errno.ECANCELED, True)]
    assert in_use() == {file.path}
    for _, step in STEPS[3:]:
        step(file)
    assert contents(box) == {"tmp": [], "new": [MESSAGE], "cur": []}


def _open_files() -> list[str]:
    return [name for fd in os.listdir("/dev/fd") if os.path.exists(name := f"/dev/fd/{fd}")]


def test_a_fork_amid_a_step_leaves_the_child_free(box: Path) -> None:
    """A child forked while a thread of the parent is writing does not wait for that thread, which it has not."""
    inside, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        inside.set()
        assert go_on.wait(30)

    file = tmpfile(box, FaultDisk(Fault("write", gate=gate)))
    file.create()
    writing = threading.Thread(target=file.write, args=([MESSAGE],))
    writing.start()
    assert inside.wait(30)
    try:
        assert forked(file.discard) == [None]
        assert os.path.exists(file.path)
    finally:
        go_on.set()
        writing.join()
    assert Path(file.path).read_bytes() == MESSAGE
    file.discard()
