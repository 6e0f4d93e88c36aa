"""IMAP keywords by ``dovecot-keywords``: the file, its locks, and messages that carry its letters."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async import AppendError
from maildir_async.disk.directories import Directories
from maildir_async.disk.dotlock import Waiting, take
from maildir_async.disk.keywords import Keywords
from maildir_async.disk.subscriptions import subscribe
from maildir_async.errors import KeywordsFullError
from maildir_async.format.keywords import check_keywords, format_keywords, key, parse_keywords
from maildir_async.format.subscriptions import with_subscription
from maildir_async.testing import Fault, FaultDisk
from support import PATIENCE_S, Gate, forked, reproducible, umask

ATOM = st.text("".join(chr(c) for c in range(33, 127) if chr(c) not in '(){%*"\\]'), min_size=1, max_size=50)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), ()),
        (["$Forwarded"], ("$Forwarded",)),
        (["$Junk", "work", "$JUNK", "Work"], ("$Junk", "work")),
        (iter(["b", "a"]), ("b", "a")),
        ([chr(ord("a") + i) for i in range(26)] * 2, tuple("abcdefghijklmnopqrstuvwxyz")),
        (["x" * 50], ("x" * 50,)),
    ],
)
def test_keywords_keep_their_order_and_first_spelling(given: Any, kept: tuple[str, ...]) -> None:
    """Keywords are kept as given, once each, whatever their case."""
    assert check_keywords(given) == kept


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            "",
            " ",
            "a b",
            "\\Seen",
            "a\\b",
            "(a",
            "a)",
            "{1}",
            "%",
            "*",
            'a"',
            "a]",
            "a\n",
            "a\0",
            "\x7f",
            "é",
            "\u017f",
        ),
        *("\udc80", "x" * 51),
    ],
)
def test_what_imap_forbids_is_refused(wrong: str) -> None:
    """What is no atom, or longer than Dovecot takes, is a ValueError that shows it."""
    with pytest.raises(ValueError, match="keywords"):
        check_keywords(["fine", wrong])


@pytest.mark.parametrize("wrong", ["$Junk", b"$Junk", None, 7, [7], [b"a"], [None]])
def test_what_is_no_sequence_of_strings_is_refused(wrong: Any) -> None:
    """A single string is not taken for a sequence of its characters, and nothing else for strings."""
    with pytest.raises(TypeError, match="keywords"):
        check_keywords(wrong)


def test_more_than_26_are_refused() -> None:
    """There are 26 letters."""
    with pytest.raises(ValueError, match="at most 26"):
        check_keywords([f"k{i}" for i in range(27)])


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", {}),
        (b"0 a\n1 b\n", {0: "a", 1: "b"}),
        (b"0 a\n1 b", {0: "a"}),
        (b"0 a\r\n", {0: "a"}),
        (b"nothing\n\n0\n0 \n 1\n1  x\n", {1: " x"}),
        (b"25 z\n26 no\n-1 no\n+2 no\n99999999999999999999 no\n\xb2 no\n", {25: "z"}),
        (b"0 Work\n1 WORK\n2 x\n", {0: "Work", 2: "x"}),
        (b"0 a\n0 b\n", {0: "b"}),
        (b"007 bond\n", {7: "bond"}),
        (b"3 \xe9\n4 \xc9\n", {3: "\xe9", 4: "\xc9"}),
        (b"0 a\n1 " + b"x" * 2000 + b"\n2 c\n", {0: "a"}),
        (b"0 a\0b\n", {0: "a"}),
        (b"9" * 5000 + b" x\n", {}),
    ],
)
def test_the_file_is_read_as_dovecot_reads_it(data: bytes, names: dict[int, str]) -> None:
    """What Dovecot skips is skipped, and what it keeps is kept."""
    assert parse_keywords(data) == names


@reproducible
@given(st.dictionaries(st.integers(0, 25), ATOM, max_size=26))
def test_a_file_that_is_written_is_read_back(names: dict[int, str]) -> None:
    """Names go through the file unchanged, each by its index."""
    unique = {key(name): index for index, name in reversed(names.items())}
    names = {index: names[index] for index in unique.values()}
    assert parse_keywords(format_keywords(names)) == names


@reproducible
@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    """Whatever the file has, it is read without an error, and what was understood once is understood again."""
    names = parse_keywords(data)
    assert len({key(name) for name in names.values()}) == len(names) <= 26
    assert parse_keywords(format_keywords(names)) == names


def _keywords(root: Path, *faults: Fault, **waiting: Any) -> Keywords:
    """Return those of the folder at *root*, with no patience unless it is given."""
    for name in ("cur", "new", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    directories = Directories(str(root), disk=FaultDisk(*faults), create=False)
    return Keywords(directories, 0o600, Waiting(**{"patience_s": 0.0, **waiting}))


def _locks(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.endswith(".lock")]


def test_names_get_the_first_free_letters_and_keep_them(tmp_path: Path) -> None:
    """A name that is missing gets the lowest free letter; one that is there, in whatever case, keeps its own."""
    (tmp_path / "dovecot-keywords").write_bytes(b"0 $Junk\n2 work\n")
    keywords = _keywords(tmp_path)
    assert keywords.letters(["WORK", "later", "$junk", "last"]) == "abcd"
    assert (tmp_path / "dovecot-keywords").read_bytes() == b"0 $Junk\n1 later\n2 work\n3 last\n"
    assert keywords.letters(["last", "LAST"]) == "d"
    assert _locks(tmp_path) == []


def test_letters_that_are_there_take_no_lock(tmp_path: Path) -> None:
    """Once the file has been read, a message whose keywords are in it costs one stat."""
    keywords = _keywords(tmp_path)
    keywords.letters(["a", "b"])
    disk = keywords._disk
    assert isinstance(disk, FaultDisk)
    disk.calls.clear()
    assert keywords.letters(["b"]) == "b"
    assert [call.operation for call in disk.calls] == ["stat"]


def test_a_change_by_another_is_seen(tmp_path: Path) -> None:
    """What another has written is read before it is used, and synced: it may not be durable yet."""
    keywords, other = _keywords(tmp_path), _keywords(tmp_path)
    assert keywords.letters(["mine"]) == "a"
    assert other.letters(["theirs"]) == "b"
    disk = keywords._disk
    assert isinstance(disk, FaultDisk)
    disk.calls.clear()
    assert keywords.letters(["theirs"]) == "b"
    assert [call.path for call in disk.calls if call.operation == "sync"] == [
        f"{tmp_path}/dovecot-keywords",
        str(tmp_path),
    ]
    (tmp_path / "dovecot-keywords").unlink()
    assert keywords.letters(["theirs"]) == "a"


@pytest.mark.parametrize("operation", ["open_file", "read", "stat", "sync"])
def test_a_file_that_another_machine_replaces_is_read_again(tmp_path: Path, operation: str) -> None:
    """ESTALE, which network file systems say of a file that was replaced meanwhile, is no failure of the message."""
    (tmp_path / "dovecot-keywords").write_text("0 $Forwarded\n")
    fault = Fault(operation, errno.ESTALE, path="dovecot-keywords")
    assert _keywords(tmp_path, fault).letters(["$Forwarded"]) == "a"
    assert fault.seen > 1


def test_a_file_that_stays_stale_is_an_error(tmp_path: Path) -> None:
    """What is stale each time that it is opened is told, and not tried for ever."""
    slept: list[float] = []
    (tmp_path / "dovecot-keywords").write_text("0 $Forwarded\n")
    with pytest.raises(OSError, match="dovecot-keywords") as caught:
        _keywords(tmp_path, Fault("open_file", errno.ESTALE, nth=0), sleep=slept.append).letters(["$Forwarded"])
    assert sum(slept) > 1  # for which a name is cached
    assert caught.value.errno == errno.ESTALE


def test_the_27th_has_no_letter(tmp_path: Path) -> None:
    """Where all letters are taken the error is permanent, a ValueError too, and nothing is added."""
    keywords = _keywords(tmp_path)
    keywords.letters([f"k{i}" for i in range(25)])
    before = (tmp_path / "dovecot-keywords").read_bytes()
    with pytest.raises(KeywordsFullError) as caught:
        keywords.letters(["one", "another"])
    assert isinstance(caught.value, AppendError)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.temporary, caught.value.stage, caught.value.errno) == (False, "create", errno.ENOSPC)
    assert (tmp_path / "dovecot-keywords").read_bytes() == before
    assert keywords.letters(["one"]) == "z"
    assert _locks(tmp_path) == []


def test_each_change_makes_the_mtime_grow_by_a_second(tmp_path: Path) -> None:
    """Dovecot compares whole seconds of the mtime, and nothing else: of two changes in one second it would miss one."""
    keywords, path = _keywords(tmp_path), tmp_path / "dovecot-keywords"
    seconds = []
    for name in ("a", "b", "c"):
        keywords.letters([name])
        seconds.append(int(path.stat().st_mtime))
    os.utime(path, (4_200_000_000, 4_200_000_000))  # in 2103
    keywords.letters(["d"])
    seconds.append(int(path.stat().st_mtime))
    assert sorted(set(seconds)) == seconds
    assert seconds[-1] == 4_200_000_001


def test_the_file_has_the_mode_of_the_messages(tmp_path: Path) -> None:
    """A reader that may read the messages may read what their letters mean, whatever the umask."""
    keywords = _keywords(tmp_path)
    keywords._mode = 0o660
    with umask(0o077):
        keywords.letters(["a"])
    assert (tmp_path / "dovecot-keywords").stat().st_mode & 0o777 == 0o660


def test_lines_that_dovecot_skips_go_at_the_next_change(tmp_path: Path) -> None:
    """A corrupt file costs nothing that Dovecot would have kept, and is whole after the next change, as with it."""
    path = tmp_path / "dovecot-keywords"
    path.write_bytes(b"garbage\n0 a\n99 b\n\xff\xfe\n3 d\n4 torn")
    keywords = _keywords(tmp_path)
    assert keywords.letters(["d"]) == "d"
    assert path.read_bytes().startswith(b"garbage")
    assert keywords.letters(["torn"]) == "b"
    assert path.read_bytes() == b"0 a\n1 torn\n3 d\n"


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "directory", "huge"])
def test_what_is_no_plain_file_is_an_error(tmp_path: Path, kind: str) -> None:
    """A file of keywords that is a link, or no file, is neither followed nor replaced."""
    path = tmp_path / "dovecot-keywords"
    if kind in ("symlink", "dangling"):
        target = tmp_path / "elsewhere"
        if kind == "symlink":
            target.write_bytes(b"0 a\n")
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    before = path.lstat()
    with pytest.raises(OSError, match=r"keywords|symbolic"):
        _keywords(tmp_path).letters(["a"])
    assert path.lstat() == before
    assert _locks(tmp_path) == []


@pytest.mark.parametrize("name", ["dovecot-uidlist.lock", "subscriptions.lock"])
def test_a_live_lock_is_waited_for_and_not_broken(tmp_path: Path, name: str) -> None:
    """A lock whose process lives stays, however old it is, and what waits for it fails with EAGAIN in the end."""
    keywords = _keywords(tmp_path, patience_s=0.01)
    lock = tmp_path / name
    lock.write_text(f"{os.getppid()}:{os.uname().nodename}")
    os.utime(lock, (1, 1))
    with pytest.raises(OSError, match="another has the lock") as caught:
        if name.startswith("sub"):
            subscribe(keywords._directories, ["a"], waiting=Waiting(patience_s=0.01))
        else:
            keywords.letters(["a"])
    assert caught.value.errno == errno.EAGAIN
    assert _locks(tmp_path) == [name]
    assert not (tmp_path / "dovecot-keywords").exists()
    lock.unlink()
    assert keywords.letters(["a"]) == "a"


def test_a_lock_that_did_not_go_is_not_waited_for_again(tmp_path: Path) -> None:
    """The first message waits for all of its patience, and those behind it for none, until the lock is another."""
    waits: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    keywords = _keywords(tmp_path, patience_s=5.0, sleep=sleep, elapsed=lambda: now[0])
    lock = tmp_path / "dovecot-uidlist.lock"
    lock.write_text(f"{os.getppid()}:{os.uname().nodename}")
    for number in range(3):
        with pytest.raises(BlockingIOError):
            keywords.letters(["a"])
        if number == 0:
            assert 5 <= sum(waits) < 6
            waits.clear()
    assert waits == []
    os.utime(lock, (7, 7))  # it is still at work
    with pytest.raises(BlockingIOError):
        keywords.letters(["a"])
    assert 5 <= sum(waits) < 6


@pytest.mark.parametrize(
    ("text", "age_s", "is_stale"),
    [
        ("", 121, True),
        ("", 119, False),
        ("{dead}:{host}", 3, True),
        ("{dead}:{host}", 1, False),
        ("{dead}:elsewhere", 119, False),
        ("{dead}:elsewhere", 121, True),
        ("{us}:{host}", 3, True),  # of another process that had our id, before this host was started again
        ("{alive}:{host}", 10_000, False),
        ("garbage", 121, True),
        ("garbage", 119, False),
        ("0:{host}", 119, False),
        ("-1:{host}", 119, False),
    ],
)
def test_a_stale_lock_is_broken_as_dovecot_breaks_it(tmp_path: Path, text: str, age_s: float, is_stale: bool) -> None:
    """Stale is what has not changed for 120 seconds, or whose process, of this host, does not exist."""
    (dead,) = forked(os.getpid)
    lock = tmp_path / "dovecot-uidlist.lock"
    lock.write_text(text.format(dead=dead, us=os.getpid(), alive=os.getppid(), host=os.uname().nodename))
    began = lock.stat().st_mtime
    keywords = _keywords(tmp_path, clock=lambda: began + age_s, sleep=lambda _: None)
    if is_stale:
        assert keywords.letters(["a"]) == "a"
        assert _locks(tmp_path) == []
    else:
        with pytest.raises(BlockingIOError):
            keywords.letters(["a"])
        assert _locks(tmp_path) == ["dovecot-uidlist.lock"]


def test_a_lock_is_not_stale_while_the_list_changes(tmp_path: Path) -> None:
    """Whoever has the lock of a large list may be at work on the list, and does not touch the lock."""
    lock = tmp_path / "dovecot-uidlist.lock"
    lock.touch()
    (tmp_path / "dovecot-uidlist").touch()
    os.utime(tmp_path / "dovecot-uidlist", (lock.stat().st_mtime + 100,) * 2)
    keywords = _keywords(tmp_path, clock=lambda: lock.stat().st_mtime + 130, sleep=lambda _: None)
    with pytest.raises(BlockingIOError):
        keywords.letters(["a"])


@pytest.mark.parametrize("error", [None, errno.EOPNOTSUPP, errno.EISDIR])
def test_a_lock_is_never_without_its_process(tmp_path: Path, error: int | None) -> None:
    """Killed at any call, a process leaves no lock that says nobody's name: that one would hold others up for long.

    Only where a file cannot be without a name does the lock get its process when it is there already.
    """
    seen = set[bytes]()

    class Looking(FaultDisk):
        def _call(self, operation: str, path: str | int, call: Callable[[], Any]) -> Any:
            try:
                return super()._call(operation, path, call)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    seen.add((tmp_path / "dovecot-uidlist.lock").read_bytes())

    disk = Looking(*([] if error is None else [Fault("create_unnamed", error), Fault("create_unnamed", error)]))
    lock = take(disk, f"{tmp_path}/dovecot-uidlist.lock", 0o644, Waiting(0), protects=f"{tmp_path}/dovecot-uidlist")
    ours = f"{os.getpid()}:{os.uname().nodename}".encode()
    assert seen == ({ours} if error is None else {ours, b""})
    assert stat.S_IMODE(os.stat(lock.path).st_mode) == 0o644
    with pytest.raises(BlockingIOError):
        take(disk, lock.path, 0o600, Waiting(0), protects=f"{tmp_path}/dovecot-uidlist")
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("error", "late"), [(errno.ENOENT, False), (errno.EPERM, False), (errno.EIO, True)])
def test_a_lock_that_cannot_be_linked_is_made_by_its_name(tmp_path: Path, error: int, late: bool) -> None:
    """Without /proc no open file gets a name, so it is made as Dovecot makes it; a lost reply is looked into."""
    disk = FaultDisk(Fault("link_open", error, late=late))
    lock = take(disk, f"{tmp_path}/l.lock", 0o600, Waiting(0), protects=f"{tmp_path}/l")
    assert Path(lock.path).read_text().startswith(f"{os.getpid()}:")
    assert any(call.operation == "create" for call in disk.calls) != late
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_left_over_lock_of_the_keywords_is_removed(tmp_path: Path) -> None:
    """Who has the lock of the list has that of the keywords: a file that is there was left by one who died."""
    (tmp_path / "dovecot-keywords.lock").write_text("0 half")
    assert _keywords(tmp_path).letters(["a"]) == "a"
    assert _locks(tmp_path) == []


def test_a_lock_that_is_broken_meanwhile_changes_nothing(tmp_path: Path) -> None:
    """Whoever was too slow, and has lost the lock to another, replaces nothing, and leaves the other's lock."""
    lock = tmp_path / "dovecot-uidlist.lock"

    def breaks() -> None:
        lock.unlink()
        lock.write_text("another's")

    with pytest.raises(BlockingIOError, match="broken"):
        _keywords(tmp_path, Fault("sync", gate=breaks, path="dovecot-keywords.lock")).letters(["a"])
    assert lock.read_text() == "another's"
    assert not (tmp_path / "dovecot-keywords").exists()
    assert _locks(tmp_path) == ["dovecot-uidlist.lock"]


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    """Many messages at once, by one object or by several for the same folder, lose no name and break no lock."""
    several = [_keywords(tmp_path, patience_s=PATIENCE_S) for _ in range(3)]

    def add(number: int) -> str:
        return several[number % 3].letters([f"k{number % 13}", f"K{number % 26}"])

    with ThreadPoolExecutor(8) as pool:
        letters = list(pool.map(add, range(52)))
    names = parse_keywords((tmp_path / "dovecot-keywords").read_bytes())
    index = {name.lower(): chr(ord("a") + number) for number, name in names.items()}
    assert letters == ["".join(sorted({index[f"k{n % 13}"], index[f"k{n % 26}"]})) for n in range(52)]
    assert _locks(tmp_path) == []


def test_several_processes_lose_none(tmp_path: Path) -> None:
    """Processes that add at once all find their names in the end, each with the letter they were told."""
    _keywords(tmp_path)

    def add() -> dict[str, str]:
        keywords = _keywords(tmp_path, patience_s=20.0)
        return {name: keywords.letters([name]) for name in (f"p{os.getpid()}.{i}" for i in range(6))}

    told: dict[str, str] = {}
    for answers in forked(add, children=4):
        told |= answers
    names = parse_keywords((tmp_path / "dovecot-keywords").read_bytes())
    assert {name: chr(ord("a") + number) for number, name in names.items()} == told
    assert len(told) == 24
    assert _locks(tmp_path) == []


def test_a_child_does_not_inherit_a_lock_in_use(tmp_path: Path) -> None:
    """A child that is forked while a thread adds a name is not stopped by that thread's lock, but by its file."""
    gate = Gate()
    keywords = _keywords(tmp_path, Fault("sync", gate=gate, path="dovecot-keywords.lock"))
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(keywords.letters, ["a"])
        while not gate.is_reached:
            time.sleep(0.001)

        def child() -> str:
            try:
                return keywords.letters(["b"])
            except BlockingIOError as exc:
                return str(exc.strerror)

        try:
            assert forked(child) == ["dovecot-uidlist.lock: another has the lock"]
        finally:
            gate.open()
        assert adding.result() == "a"


@pytest.mark.parametrize("late", [False, True])
def test_a_fault_at_every_call_changes_nothing_or_all(tmp_path: Path, late: bool) -> None:
    """Whatever call fails, the old names stay, the locks go, and the next message has what it asks for."""
    at = 0
    while True:
        at += 1
        root = tmp_path / str(at)
        root.mkdir()
        (root / "dovecot-keywords").write_bytes(b"0 old\n")
        fault = Fault("", errno.EIO, nth=at, late=late)
        keywords = _keywords(root, fault, sleep=lambda _: None)
        with contextlib.suppress(OSError):
            assert keywords.letters(["new"]) == "b"
        names = parse_keywords((root / "dovecot-keywords").read_bytes())
        assert names in ({0: "old"}, {0: "old", 1: "new"})
        disk = keywords._disk
        assert isinstance(disk, FaultDisk)
        if late and fault.seen >= at and disk.calls[at - 1].operation == "create":
            continue  # the reply was lost, as on NFS: what has been made goes stale
        assert _locks(root) == [], disk.calls[at - 1 :]
        if fault.seen < at:
            break
        assert keywords.letters(["new", "old"]) == "ab"
    assert at > 20


def test_after_a_failed_sync_the_file_is_replaced(tmp_path: Path) -> None:
    """A sync that succeeds after one that failed says nothing: the letters are used once a new file is durable."""
    (tmp_path / "dovecot-keywords").write_bytes(b"0 old\n")
    before = (tmp_path / "dovecot-keywords").stat().st_ino
    keywords = _keywords(tmp_path, Fault("sync", errno.EIO))
    with pytest.raises(OSError, match=r"."):
        keywords.letters(["old"])
    assert keywords.letters(["old"]) == "a"
    assert (tmp_path / "dovecot-keywords").stat().st_ino != before
    assert (tmp_path / "dovecot-keywords").read_bytes() == b"0 old\n"


@pytest.mark.parametrize(
    ("data", "parts", "becomes"),
    [
        (None, ["Archive", "2024"], b"V\t2\n\nArchive\t2024\n"),
        (b"V\t2\n\n", ["a"], b"V\t2\n\na\n"),
        (b"V\t2\n\na\tb\n", ["a"], b"V\t2\n\na\tb\na\n"),
        (b"V\t2\n\na\tb\n", ["a", "b"], None),
        (b"V\t2\n\nb", ["a"], b"V\t2\n\nb\na\n"),
        (b"", ["a", "b"], b"a.b\n"),
        (b"x\ny.z\n", ["a", "b"], b"x\ny.z\na.b\n"),
        (b"x\ny.z\n", ["y", "z"], None),
        (b"\xff\xfe\n", ["&AOk-"], b"\xff\xfe\n&AOk-\n"),
    ],
)
def test_subscriptions_keep_their_format(data: bytes | None, parts: list[str], becomes: bytes | None) -> None:
    """A folder is added once, in the format that the file has; a new file has the new one."""
    assert with_subscription(data, parts) == becomes


def test_subscribing_replaces_the_file(tmp_path: Path) -> None:
    """A subscription is added durably, and one that is there changes nothing."""
    keywords = _keywords(tmp_path)
    disk = keywords._disk
    assert isinstance(disk, FaultDisk)
    assert subscribe(keywords._directories, ["Archive", "2024"])
    assert [Path(call.path).name for call in disk.calls if call.operation == "sync"] == [
        "subscriptions.lock",
        tmp_path.name,
    ]
    before = (tmp_path / "subscriptions").stat()
    assert not subscribe(keywords._directories, ["Archive", "2024"])
    assert (tmp_path / "subscriptions").stat() == before
    assert (tmp_path / "subscriptions").read_bytes() == b"V\t2\n\nArchive\t2024\n"
    assert _locks(tmp_path) == []


def test_a_fault_while_subscribing_leaves_no_lock(tmp_path: Path) -> None:
    """Whatever call fails, what is subscribed to stays so, and the lock goes."""
    at = 0
    while True:
        at += 1
        root = tmp_path / str(at)
        root.mkdir()
        (root / "subscriptions").write_bytes(b"V\t2\n\nold\n")
        fault = Fault("", errno.EIO, nth=at)
        keywords = _keywords(root, fault)
        with contextlib.suppress(OSError):
            subscribe(keywords._directories, ["new"])
        assert (root / "subscriptions").read_bytes() in (b"V\t2\n\nold\n", b"V\t2\n\nold\nnew\n")
        assert _locks(root) == []
        if fault.seen < at:
            break
    assert at > 8


class _CachingDisk(FaultDisk):
    """A client of NFS or GlusterFS: what a path was found to be it says again for a time; open(2) asks the server."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[str, os.stat_result] = {}

    def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
        if path in self._found:
            return self._found[str(path)]
        found = super().stat(path, directory)
        if isinstance(path, str) and path.endswith("dovecot-keywords"):
            self._found[path] = found
        return found


def test_with_the_lock_no_cache_is_believed(tmp_path: Path) -> None:
    """What another machine has just added is seen by whoever has the lock, though its own stat is a second old."""
    (tmp_path / "dovecot-keywords").write_bytes(b"0 old\n")
    elsewhere = _keywords(tmp_path)
    here = Keywords(Directories(str(tmp_path), disk=_CachingDisk(), create=False), 0o600)
    assert here.letters(["old"]) == "a"
    assert elsewhere.letters(["theirs"]) == "b"
    assert here.letters(["ours"]) == "c"
    assert parse_keywords((tmp_path / "dovecot-keywords").read_bytes()) == {0: "old", 1: "theirs", 2: "ours"}
