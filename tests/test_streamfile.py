"""`StreamFile`: the file in tmp/ of a message that is written while it comes."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.streamfile import CONVERTED_SLICE, NAME_TRIES, SLICE, StreamFile, discard_all, streams_in_use
from maildir_async.errors import NotAMaildirError
from maildir_async.format.content import Content
from maildir_async.format.names import UniqueNames
from maildir_async.testing import Fault, FaultDisk
from support import UNIQUE, ListedNames, contents, forked, tree, umask

MESSAGE = b"Subject: x\r\n\r\nbody\n"
NOW_NS = 1_700_000_000 * 10**9

#: The steps, in order.
STEPS: list[tuple[str, Callable[[StreamFile], object]]] = [
    ("create", StreamFile.create),
    ("write", lambda file: file.write([MESSAGE])),
    ("complete", lambda file: file.complete([])),
]
NAMES = [name for name, _ in STEPS]


def stream(box: Path, disk: Disk | None = None, names: UniqueNames | None = None, **options: Any) -> StreamFile:
    given = {"mode": 0o600, "is_synced": True, **options}
    content = given.pop("content", None) or Content()
    create = given.pop("create", True)
    where = Directories(str(box), disk=disk or PosixDisk(), create=create)
    return StreamFile(where, names or UniqueNames(hostname="host"), content, **given)


def take(file: StreamFile, upto: str) -> Any:
    """Take the steps up to and with one, and return what that returns."""
    result: object = None
    for name, step in STEPS[: NAMES.index(upto) + 1]:
        result = step(file)
        if name == "create":
            assert file.name in streams_in_use()
    return result


def complete(file: StreamFile) -> bytes:
    """Complete it, and return what is stored."""
    os.close(file.complete([]))
    return Path(file.path).read_bytes()


def descriptors() -> list[str]:
    return os.listdir("/dev/fd")


@pytest.fixture
def box(tmp_path: Path) -> Path:
    box = tmp_path / "box"
    Directories(str(box), disk=PosixDisk(), create=True).make()
    return box


# The steps.


def test_steps(box: Path) -> None:
    """A stream is written under a unique name in tmp/; complete, it belongs to whoever asked, with its descriptor."""
    before = descriptors()
    file = stream(box)
    assert (file.path, file.stage) == ("", "queue")
    fd = take(file, "complete")
    assert UNIQUE.fullmatch(file.name)
    assert file.path == f"{box}/tmp/{file.name}"
    assert contents(box) == {"tmp": [MESSAGE], "new": [], "cur": []}
    assert (file.content.size, file.content.wire_size) == (len(MESSAGE), len(MESSAGE) + 1)
    assert (file.fd, streams_in_use()) == (-1, set())
    assert file.discard() is None
    assert os.fstat(fd).st_size == len(MESSAGE), "it is not the stream's to remove, or to close"
    assert contents(box)["tmp"] == [MESSAGE]
    os.close(fd)
    assert descriptors() == before


@pytest.mark.parametrize("is_synced", [True, False])
def test_system_calls(box: Path, is_synced: bool) -> None:
    """The bytes are written, and the writeback of those that will be synced started: nothing else is done."""
    disk = FaultDisk()
    os.close(take(stream(box, disk, is_synced=is_synced), "complete"))
    hint = ["start_writeback"] if is_synced else []
    assert [call.operation for call in disk.calls] == ["create", "write", *hint]


def test_stage_tells_where_it_stands(box: Path) -> None:
    """``stage`` is the step it is at, or failed in, in the words of the errors."""
    file = stream(box)
    seen = [str(file.stage)]
    for _, step in STEPS:
        step(file)
        seen.append(file.stage)
    assert seen == ["queue", "create", "write", "write"]


@pytest.mark.parametrize(("mode", "mask"), [(0o600, 0), (0o600, 0o027), (0o640, 0o077), (0o664, 0o022)])
def test_mode_is_exact(box: Path, mode: int, mask: int) -> None:
    """A message file has the mode asked for, whatever the umask takes away or leaves."""
    file = stream(box, mode=mode)
    with umask(mask):
        take(file, "create")
    assert stat.S_IMODE(os.stat(file.path).st_mode) == mode
    file.discard()


def test_content_policy_applies(box: Path) -> None:
    """Prefix and line ends are stored as the policy says, a CR kept back at the end too, and the sizes are of that."""
    file = stream(box, content=Content(prefix=b"A: b\n", newline="crlf"))
    file.create()
    file.write([b"x\r", b"\ny\n", b"z\r"])
    assert complete(file) == b"A: b\r\nx\r\ny\r\nz\r"
    assert (file.content.size, file.content.wire_size) == (14, 14)


@pytest.mark.parametrize(("newline", "size"), [("keep", SLICE), ("lf", CONVERTED_SLICE)])
def test_chunks_of_every_kind(box: Path, newline: Any, size: int) -> None:
    """Chunks of any bytes-like kind, and none at all, are stored in order; a huge one is written piece by piece."""
    huge = b"0123456" * (2 * size // 7 + 1)
    most = 0

    class Measuring(PosixDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            nonlocal most
            most = max(most, len(data))
            return super().write(fd, data)

    file = stream(box, Measuring(), content=Content(newline=newline))
    file.create()
    file.write([b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], b""])
    file.write([])
    file.write([huge, bytearray(huge), memoryview(huge)])
    assert complete(file) == b"abc" + 3 * huge
    assert most == size


def test_writeback_covers_each_byte_once(box: Path) -> None:
    """The writeback that is started early covers all that has been streamed without a gap, and nothing twice."""
    ranges = list[tuple[int, int]]()

    class Noting(PosixDisk):
        def start_writeback(self, fd: int, offset: int, length: int) -> None:
            ranges.append((offset, length))

    file = stream(box, Noting(), content=Content(newline="lf"))
    file.create()
    for chunk in (b"abc", b"", b"de\r", b"f\r"):
        file.write([chunk])
    os.close(file.complete([]))
    assert ranges == [(0, 3), (3, 2), (5, 2)], "what ends the message is synced at once"


# Making what is missing.


@pytest.mark.parametrize("missing", ["", "tmp"])
def test_create_makes_the_maildir(tmp_path: Path, missing: str) -> None:
    """What is missing of the maildir is made when the first file is."""
    box = tmp_path / "a" / "box"
    if missing:
        (box / "new").mkdir(parents=True)
    os.close(take(stream(box), "complete"))
    assert contents(box)["tmp"] == [MESSAGE]
    assert sorted(os.listdir(box)) == ["cur", "new", "tmp"]


@pytest.mark.parametrize("create", [True, False])
def test_create_through_a_file_is_refused(tmp_path: Path, create: bool) -> None:
    """A file on the way is a NotAMaildirError, and so is a missing maildir that may not be made; nothing is made."""
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    for path in (tmp_path / "file" / "box", *([] if create else [tmp_path / "none"])):
        with pytest.raises(NotAMaildirError):
            stream(path, create=create).create()
    assert (tree(tmp_path), streams_in_use()) == (before, set())


def test_create_makes_the_maildir_once(box: Path) -> None:
    """A directory that is still missing after it was made is the system's error, and not made for ever."""
    disk = FaultDisk(Fault("create", errno.ENOENT, nth=0))
    with pytest.raises(FileNotFoundError):
        stream(box, disk).create()
    assert sum(call.operation == "create" for call in disk.calls) == 2


# Names that are taken.


def test_collision_in_tmp(box: Path) -> None:
    """A file in tmp/ with the name that is generated survives; the message takes the next name."""
    (box / "tmp" / "taken").write_bytes(b"planted")
    file = stream(box, names=ListedNames("taken", "free"))
    file.create()
    assert file.path == f"{box}/tmp/free"
    file.discard()
    assert tree(box / "tmp") == {"taken": b"planted"}


def test_collision_with_real_names(box: Path) -> None:
    """With a clock that stands still the next name can be foretold and planted, and both files survive."""
    names = UniqueNames(clock=lambda: NOW_NS, hostname="host")
    found = UNIQUE.fullmatch(names.next())
    assert found
    count = int(found["count"])
    foretold = [
        f"1700000000.M{ahead:06}P{found['pid']}Q{count + ahead}R{found['random']}.host" for ahead in range(1, 3)
    ]
    (box / "tmp" / foretold[0]).write_bytes(b"planted")
    file = stream(box, names=names)
    take(file, "write")
    assert file.name == foretold[1]
    assert tree(box / "tmp") == {foretold[0]: b"planted", foretold[1]: MESSAGE}
    file.discard()


def test_names_that_are_all_taken(box: Path) -> None:
    """A directory where every name tried exists is an EEXIST after a bounded number of tries, and keeps its file."""
    (box / "tmp" / "taken").write_bytes(b"planted")
    with pytest.raises(FileExistsError):
        stream(box, names=ListedNames(*["taken"] * NAME_TRIES)).create()
    assert (tree(box / "tmp"), streams_in_use()) == ({"taken": b"planted"}, set())


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EMFILE, errno.EROFS], ids=errno.errorcode.get)
def test_only_a_taken_name_is_tried_again(box: Path, number: int) -> None:
    """Any other error than EEXIST is raised at the first try, with its errno."""
    disk = FaultDisk(Fault("create", number, nth=0))
    file = stream(box, disk)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        file.create()
    assert caught.value.errno == number
    assert [call.operation for call in disk.calls if call.operation != "stat"] == ["create"]
    file.discard()


def test_it_is_in_use_before_it_is_there(box: Path) -> None:
    """A sweeper that sees the file knows whose it is, from the first moment."""
    seen: list[set[str]] = []
    file = stream(box, FaultDisk(Fault("create", gate=lambda: seen.append(streams_in_use()))))
    file.create()
    assert seen == [{file.name}]
    file.discard()


# Discarding.


@pytest.mark.parametrize("upto", ["", *NAMES[:-1]])
def test_discard_leaves_nothing(box: Path, upto: str) -> None:
    """Discarded after any step before it is complete, a message leaves no file, no descriptor, and nothing in use."""
    before = descriptors()
    file = stream(box)
    if upto:
        take(file, upto)
    assert file.discard() is None
    assert file.discard() is None
    assert contents(box) == {"tmp": [], "new": [], "cur": []}
    assert (descriptors(), streams_in_use()) == (before, set())


@pytest.mark.parametrize(
    ("operation", "upto", "mode"),
    [("create", "create", 0o600), ("chmod", "create", 0o640), ("write", "write", 0o600)],
)
def test_discard_after_a_failure(box: Path, operation: str, upto: str, mode: int) -> None:
    """Whichever system call fails, discarding leaves no file and no descriptor, and closes none twice."""
    before = descriptors()
    disk = FaultDisk(Fault(operation, errno.EIO))
    file = stream(box, disk, mode=mode)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        take(file, upto)
    assert file.discard() is None
    assert contents(box) == {"tmp": [], "new": [], "cur": []}
    assert (descriptors(), streams_in_use()) == (before, set())
    assert sum(call.operation == "close" for call in disk.calls) == (operation != "create")


def test_discard_tells_what_it_could_not_do(box: Path) -> None:
    """A file that cannot be removed is told about; one that a sweeper has taken is not, nor a close that fails."""
    for fault, told in [
        (Fault("unlink", errno.EROFS), True),
        (Fault("unlink", errno.ENOENT, late=True), False),
        (Fault("close", errno.EIO), False),
    ]:
        file = stream(box, FaultDisk(fault))
        take(file, "write")
        told_of = file.discard()
        assert (told_of is not None) is told
        assert not told or os.strerror(errno.EROFS) in str(told_of)
        assert file.name not in streams_in_use()


@pytest.mark.parametrize("name", NAMES)
def test_no_step_after_discard(box: Path, name: str) -> None:
    """A step after discarding raises ECANCELED and does not touch the disk."""
    disk = FaultDisk()
    file = stream(box, disk)
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


def test_no_step_after_it_is_complete(box: Path) -> None:
    """What has been handed over is written to no more."""
    file = stream(box)
    os.close(take(file, "complete"))
    for _, step in STEPS:
        with pytest.raises(OSError, match="aborted"):
            step(file)
    assert contents(box)["tmp"] == [MESSAGE]


@pytest.mark.parametrize(("operation", "upto"), [("create", "create"), ("write", "write"), ("write", "complete")])
def test_discard_waits_for_a_step_in_progress(box: Path, operation: str, upto: str) -> None:
    """Discarding while another thread is inside a system call waits for it, and then removes what it left."""
    inside, go_on = threading.Event(), threading.Event()
    events, fds = list[str](), list[int]()

    def gate() -> None:
        inside.set()
        assert go_on.wait(30)
        events.append("step")

    def last() -> None:
        if upto == "complete":
            fds.append(file.complete([b"end"]))
        else:
            STEPS[NAMES.index(upto)][1](file)

    before = descriptors()
    file = stream(box, FaultDisk(Fault(operation, nth=1 + (upto == "complete"), gate=gate)))
    if at := NAMES.index(upto):
        take(file, NAMES[at - 1])
    stepping = threading.Thread(target=last)

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
    # Completing had begun first, so it wins; before that, nothing is left.
    assert contents(box)["tmp"] == ([MESSAGE + b"end"] if upto == "complete" else [])
    for fd in fds:
        os.close(fd)
    assert (descriptors(), streams_in_use()) == (before, set())


def test_discard_all(box: Path) -> None:
    """Every message of the process that is not complete is discarded, and no other."""
    done, coming = stream(box), [stream(box) for _ in range(3)]
    os.close(take(done, "complete"))
    for file in coming:
        take(file, "write")
    assert len(streams_in_use()) == 3
    discard_all()
    assert tree(box / "tmp") == {done.name: MESSAGE}
    assert streams_in_use() == set()


# Forks.


def test_a_fork_leaves_the_file_to_the_parent(box: Path) -> None:
    """A child has nothing in use and no descriptor of the parent's file, and neither removes nor writes it."""
    file = stream(box)
    take(file, "write")

    def child() -> tuple[set[str], bool, str | None, int | None, bool]:
        in_child = streams_in_use()
        inherited = any(os.path.samestat(os.stat(file.path), found) for found in map(os.stat, _open_files()))
        discard_all()
        told = file.discard()
        try:
            file.complete([])
        except OSError as exc:
            return in_child, inherited, told, exc.errno, os.path.exists(file.path)
        raise AssertionError("a child has completed its parent's file")

    assert forked(child) == [(set(), False, None, errno.ECANCELED, True)]
    assert streams_in_use() == {file.name}
    assert complete(file) == MESSAGE


def _open_files() -> list[str]:
    return [name for fd in os.listdir("/dev/fd") if os.path.exists(name := f"/dev/fd/{fd}")]


def test_a_fork_amid_a_step_leaves_the_child_free(box: Path) -> None:
    """A child forked while a thread of the parent is writing does not wait for that thread, which it has not."""
    inside, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        inside.set()
        assert go_on.wait(30)

    file = stream(box, FaultDisk(Fault("write", gate=gate)))
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
