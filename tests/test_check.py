"""``maildir-async check``: each problem planted and found, each repair verified, and done again with nothing to do."""

import asyncio
import contextlib
import errno
import gzip
import itertools
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import Maildir, Quota
from maildir_async.command.main import main
from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.format.problems import KINDS, CheckOptions, Problem
from maildir_async.mailbox.check import Check
from maildir_async.mailbox.check_messages import double
from maildir_async.testing import Fault, FaultDisk

MESSAGE: Final = b"From: alice@example.com\nSubject: check\n\nbody\n"
SIZES: Final = f",S={len(MESSAGE)},W={len(MESSAGE) + 4}"

#: A repair as it is where nobody else is at work: two names of one file may be a second old.
REPAIR: Final = CheckOptions(repair=True, links_age_s=-1.0, lock_patience_s=0.0, quiet_s=0.0)

#: A look where nobody else is at work.
LOOK: Final = CheckOptions(quiet_s=0.0)


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """Return a maildir, made by us, with a message in each of two directories and in a folder."""
    path = tmp_path / "m"
    made = Maildir(path, quota=Quota(bytes=1_000_000))

    async def deliver() -> None:
        await made.append(MESSAGE)
        await made.append(MESSAGE + b"2", flags="S", keywords=["$Work"])
        await made.append(MESSAGE + b"3", folder="Archive")

    asyncio.run(deliver())
    return path


def check(
    path: Path,
    options: CheckOptions = LOOK,
    *,
    disk: Disk | None = None,
    is_wanted: Callable[[], None] = lambda: None,
) -> list[Problem]:
    """Return what is found in a maildir."""
    found: list[Problem] = []
    Check(Directories(str(path), disk=disk or PosixDisk(), create=False), options, found.append, is_wanted).run()
    return found


def mail(path: Path) -> list[bytes]:
    """Return the content of every message of a maildir and its folders, sorted."""
    boxes = [path, *(each for each in path.iterdir() if each.name.startswith(".") and each.is_dir())]
    return sorted(data for box in boxes for name, data in _messages(box) if not name.startswith("."))


def _messages(box: Path) -> Iterator[tuple[str, bytes]]:
    for where in ("new", "cur"):
        for each in (box / where).iterdir() if (box / where).is_dir() else ():
            if each.is_file() and not each.is_symlink():
                yield each.name, each.read_bytes()


def put(path: Path, data: bytes = MESSAGE, mode: int = 0o600) -> Path:
    """Make a file with that mode."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_maildir_of_ours_is_clean(maildir: Path) -> None:
    """Of what this library has delivered nothing is told, and a repair changes nothing."""
    assert check(maildir) == []
    before = sorted(str(path) for path in maildir.rglob("*"))
    assert check(maildir, REPAIR) == []
    assert sorted(str(path) for path in maildir.rglob("*")) == before


def broken_size(root: Path) -> None:
    put(root / "cur" / "1.a.host,S=5,W=6:2,S")


def broken_wire(root: Path) -> None:
    put(root / "cur" / f"1.a.host,S={len(MESSAGE)},W={len(MESSAGE)}:2,S")


def twice_sized(root: Path) -> None:
    put(root / "new" / f"1.a.host,S=3{SIZES}")


def no_number(root: Path) -> None:
    put(root / "new" / "1.a.host,S=many")


def no_flags(root: Path) -> None:
    put(root / "cur" / "1.a.host:2,SX!")


def disordered(root: Path) -> None:
    put(root / "cur" / "1.a.host:2,SFFa")


def flags_in_new(root: Path) -> None:
    put(root / "new" / "1.a.host:2,S")


def info_in_new(root: Path) -> None:
    put(root / "new" / "1.a.host:2,")


def same_file(root: Path) -> None:
    os.link(put(root / "cur" / "1.a.host:2,S"), root / "new" / "1.a.host")


def two_files(root: Path) -> None:
    put(root / "cur" / "1.a.host:2,S", MESSAGE + b"one")
    put(root / "new" / "1.a.host", MESSAGE + b"another")


def readable(root: Path) -> None:
    put(root / "new" / "1.a.host", mode=0o644)


def open_directory(root: Path) -> None:
    (root / "cur").chmod(0o755)


def no_cur(root: Path) -> None:
    (root / ".Archive" / "cur").rmdir()


def no_marker(root: Path) -> None:
    (root / ".Archive" / "maildirfolder").unlink()


def no_tmp(root: Path) -> None:
    (root / "tmp").rmdir()


def bad_keywords(root: Path) -> None:
    with (root / "dovecot-keywords").open("ab") as file:
        file.write(b"nonsense\n77 $Far\n1 $Other\n2 torn")


def wrong_quota(root: Path) -> None:
    with (root / "maildirsize").open("ab") as file:
        file.write(b"1000 1\n")


def broken_quota(root: Path) -> None:
    with (root / "maildirsize").open("ab") as file:
        file.write(b"some bytes\n")


PLANTED: Final[list[tuple[Callable[[Path], None], str]]] = [
    (broken_size, "size"),
    (broken_wire, "size"),
    (twice_sized, "size"),
    (no_number, "size"),
    (no_flags, "flags"),
    (disordered, "flags"),
    (flags_in_new, "info-in-new"),
    (info_in_new, "info-in-new"),
    (same_file, "double"),
    (two_files, "double"),
    (readable, "mode"),
    (open_directory, "mode"),
    (no_cur, "missing"),
    (no_marker, "missing"),
    (no_tmp, "missing"),
    (bad_keywords, "keywords"),
    (wrong_quota, "quota"),
    (broken_quota, "quota"),
]


@pytest.mark.parametrize(("plant", "kind"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_what_can_be_repaired_is(maildir: Path, plant: Callable[[Path], None], kind: str) -> None:
    """Each is found, and nothing else; nothing is changed until asked; then it is right, and no mail gone."""
    plant(maildir)
    (maildir / "maildirsize").unlink() if kind != "quota" else None
    before, names = mail(maildir), sorted(map(str, maildir.rglob("*")))
    (problem,) = (each for each in check(maildir) if each.level == "problem")
    assert (problem.kind, problem.repaired, problem.outcome) == (kind, None, None)
    assert problem.remedy is not None
    assert sorted(map(str, maildir.rglob("*"))) == names
    (repaired,) = (each for each in check(maildir, REPAIR) if each.level == "problem")
    assert (repaired.kind, repaired.repaired) == (kind, True), repaired
    assert repaired.outcome
    assert [each for each in check(maildir) if each.level == "problem"] == []
    assert check(maildir, REPAIR) == check(maildir)
    after = mail(maildir)
    assert after == before or (plant is same_file and sorted([*after, MESSAGE]) == before)
    assert not list(maildir.rglob("*.lock"))


def test_names_after_a_repair(maildir: Path) -> None:
    """A name keeps all that is right of it: flags, keywords, other attributes; those in new/ go where flags belong."""
    put(maildir / "cur" / "1.a.host,U=7,S=5,FMD5=ab,W=3:2,SaF")
    put(maildir / "new" / "2.a.host:2,S")
    put(maildir / "new" / "3.a.host:2,")
    check(maildir, REPAIR)
    names = os.listdir(maildir / "cur")
    assert f"1.a.host,U=7{SIZES},FMD5=ab:2,FSa" in names
    assert "2.a.host:2,S" in names
    assert "3.a.host" in os.listdir(maildir / "new")


def test_a_message_that_gets_a_key_of_its_own(maildir: Path) -> None:
    """It keeps its directory, flags and sizes; an UID of isync's is the other one's."""
    put(maildir / "cur" / f"1.a.host,U=7{SIZES}:2,S")
    put(maildir / "cur" / f"1.a.host,U=7{SIZES}:2,FS")
    check(maildir, REPAIR)
    first, second = sorted(name for name in os.listdir(maildir / "cur") if name.partition(":")[0].endswith(SIZES))[:2]
    assert {name.partition(":")[2] for name in os.listdir(maildir / "cur")} >= {"2,FS", "2,S"}
    assert len({name.partition(":")[0] for name in (first, second)}) == 2
    assert sum(",U=7" in name for name in os.listdir(maildir / "cur")) == 1


def left_alone(root: Path) -> None:
    (root / "new" / "directory").mkdir()
    put(root / "cur" / ".hidden")
    (root / "cur" / "link").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(root / "new")  # an address has at most 107 bytes
        try:
            bound.bind("socket")
        finally:
            os.chdir(here)
    os.mkfifo(root / "tmp" / "fifo")


def test_what_is_no_message_is_left_to_a_person(maildir: Path) -> None:
    """Directories, dotfiles, links, sockets and FIFOs are named, not followed, not opened, and never touched."""
    left_alone(maildir)
    found = {os.path.basename(each.path): each for each in check(maildir, REPAIR)}
    assert set(found) == {"directory", ".hidden", "link", "socket", "fifo"}
    assert {each.kind for each in found.values()} == {"foreign"}
    assert {each.repaired for each in found.values()} == {False}
    assert "a symbolic link" in found["link"].text
    assert (maildir / "new" / "directory").is_dir()


@pytest.mark.parametrize("made", [lambda path: path.touch(), lambda path: path.symlink_to("nowhere")])
def test_what_stands_for_a_directory_is_told_of(maildir: Path, made: Callable[[Path], None]) -> None:
    """A file, or a link that leads nowhere, in the place of cur/ is told of, and left; the rest is looked at."""
    kept = maildir / "kept"
    (maildir / "cur").rename(kept)
    made(maildir / "cur")
    (maildir / "maildirsize").unlink()
    broken_size(maildir / ".Archive")
    found = check(maildir, REPAIR)
    assert {(each.kind, each.repaired) for each in found} == {("foreign", False), ("size", True)}
    assert (maildir / "cur").is_symlink() or (maildir / "cur").is_file()


def test_a_link_to_a_directory_is_none_of_ours(maildir: Path) -> None:
    """A site may have cur/ elsewhere: what is there is looked at as if it were here."""
    (maildir / "cur").rename(maildir.parent / "elsewhere")
    (maildir / "cur").symlink_to(maildir.parent / "elsewhere")
    assert check(maildir) == []
    broken_size(maildir)
    assert {each.repaired for each in check(maildir, REPAIR) if each.level == "problem"} == {True}


@pytest.mark.parametrize("trash", [True, False])
@pytest.mark.parametrize("trashed", [True, False])
def test_each_program_counts_a_quota_its_own_way(maildir: Path, trash: bool, trashed: bool) -> None:
    """Dovecot counts Trash, Courier leaves out messages with the flag T: neither is wrong."""
    put(maildir / "cur" / "1.a.host,S=100:2,T")
    (maildir / "cur" / "1.a.host,S=100:2,T").write_bytes(b"x" * 100)
    for name in ("tmp", "new", "cur"):
        (maildir / ".Trash" / name).mkdir(parents=True, mode=0o700)
    (maildir / ".Trash").chmod(0o700)
    (maildir / ".Trash" / "maildirfolder").touch()
    put(maildir / ".Trash" / "cur" / "1.a.host,S=50:2,S", b"y" * 50)
    size, number = 3 * len(MESSAGE) + 2 + 50 * trash + 100 * trashed, 3 + trash + trashed
    (maildir / "maildirsize").write_bytes(b"1000000S\n%d %d\n" % (size, number))
    assert check(maildir) == []
    (maildir / "maildirsize").write_bytes(b"1000000S\n%d %d\n" % (size + 1, number))
    assert [each.kind for each in check(maildir)] == ["quota"]


def test_what_dead_deliveries_have_left_is_swept(maildir: Path) -> None:
    """A file in tmp/ that is old enough is told of, and removed by a repair; a younger one is neither."""
    put(maildir / "tmp" / "left")
    put(maildir / ".Archive" / "tmp" / "left")
    assert check(maildir) == []
    old = CheckOptions(tmp_age_s=-1.0)
    assert {(each.kind, each.folder) for each in check(maildir, old)} == {("tmp", None), ("tmp", "Archive")}
    assert {each.repaired for each in check(maildir, CheckOptions(repair=True, tmp_age_s=-1.0))} == {True}
    assert os.listdir(maildir / "tmp") == os.listdir(maildir / ".Archive" / "tmp") == []


def test_a_double_that_may_be_under_way_is_left(maildir: Path) -> None:
    """Two names of one file that has just been touched may be a reader's work: they are told of, and left."""
    same_file(maildir)
    (maildir / "maildirsize").unlink()
    found = check(maildir, CheckOptions(repair=True, lock_patience_s=0.0, quiet_s=0.0))
    (problem,) = (each for each in found if each.level == "problem")
    assert (problem.kind, problem.repaired) == ("double", False)
    assert "a reader may be at it" in (problem.outcome or "")
    assert (maildir / "new" / "1.a.host").exists()


def test_the_name_that_stays_is_durable_before_the_other_goes(maildir: Path) -> None:
    """Of two names of one file none is removed while a power cut could take the other."""
    same_file(maildir)
    disk = FaultDisk()
    check(maildir, REPAIR, disk=disk)
    told = [(call.operation, call.path.removeprefix(f"{maildir}/")) for call in disk.calls]
    removed = told.index(("unlink", "new/1.a.host"))
    assert ("sync", "cur") in told[:removed]
    assert ("sync", "new") in told[removed:]


def test_dovecots_lock_is_waited_for(maildir: Path) -> None:
    """While another has the folder's lock no name is changed, and what has been found is told of as not repaired."""
    put(maildir / "cur" / "1.a.host,S=5:2,S")
    put(maildir / "dovecot-uidlist.lock", b"")
    (problem,) = (each for each in check(maildir, REPAIR) if each.kind == "size")
    assert problem.repaired is False
    assert "dovecot-uidlist.lock" in (problem.outcome or "")
    assert (maildir / "cur" / "1.a.host,S=5:2,S").exists()
    assert (maildir / "dovecot-uidlist.lock").exists()


def test_nothing_is_replaced(maildir: Path) -> None:
    """A name that is taken stays with whoever has it: the message that was to get it keeps the wrong one."""
    put(maildir / "cur" / f"1.a.host{SIZES}:2,S", MESSAGE)
    put(maildir / "cur" / "1.a.host,S=5,W=5:2,S", MESSAGE)
    before = mail(maildir)
    (problem,) = (each for each in check(maildir, REPAIR) if each.kind == "size")
    assert (problem.repaired, "exists already" in (problem.outcome or "")) == (False, True)
    assert mail(maildir) == before


def test_compressed_mail_has_other_sizes(maildir: Path) -> None:
    """A message that Dovecot's zlib has packed says the size that it has unpacked, and is left alone."""
    put(maildir / "cur" / f"1.a.host{SIZES}:2,S", gzip.compress(MESSAGE))
    (maildir / "maildirsize").unlink()
    directories = Directories(str(maildir), disk=PosixDisk(), create=False)
    report = Check(directories, CheckOptions(), lambda _: None, lambda: None).run()
    assert (report.compressed, report.problems) == (1, 0)


def test_quick_reads_only_what_is_suspect(maildir: Path) -> None:
    """With --quick a message is read only if its name says something impossible; then its right name is told."""
    disk = FaultDisk()
    assert check(maildir, CheckOptions(is_quick=True, quiet_s=0.0), disk=disk) == []
    assert not [call for call in disk.calls if call.operation == "open_file" and "host" in call.path]
    broken_size(maildir)
    assert "size" in {each.kind for each in check(maildir, CheckOptions(is_quick=True, quiet_s=0.0))}


def test_notes_are_no_problems(maildir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same content twice, an empty message, and a letter without a name are told of; the exit code is 0."""
    put(maildir / "cur" / "1.a.host:2,Sq", MESSAGE)
    put(maildir / "cur" / "2.a.host:2,S", b"")
    (maildir / "maildirsize").unlink()
    assert main(["check", str(maildir)]) == 0
    out = capfd.readouterr().out
    assert {line.partition(" (note)")[0] for line in out.splitlines()[:-1]} == {"same-content", "empty", "keywords"}


def test_many_notes_of_a_kind_are_summed_up(maildir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first five with their paths and how many more there are; --verbose and --json have all."""
    (maildir / "maildirsize").unlink(missing_ok=True)
    for number in range(9):
        (maildir / "new" / f"{number}.a.host").touch(mode=0o600)
    assert main(["check", str(maildir)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum(line.startswith(f"empty (note): {maildir}") for line in lines) == 5
    assert "empty (note): and 4 more; --verbose lists all" in lines
    for option in ("--verbose", "--json"):
        assert main(["check", option, str(maildir)]) == 0
        assert capfd.readouterr().out.count(".a.host") >= 9


def test_a_message_that_cannot_be_read_is_told_of(maildir: Path) -> None:
    """An I/O error while a message is read is a problem of that message, and no other is left out for it."""
    disk = FaultDisk(Fault("read", errno.EIO, path="/new/"))
    (problem,) = check(maildir, disk=disk)
    assert (problem.kind, "/new/" in problem.path, "Input/output error" in problem.text) == ("unreadable", True, True)


def test_a_directory_that_may_not_be_read_is_told_of(maildir: Path) -> None:
    """A cur/ that this user may not read is a problem; the rest is looked at."""
    broken_size(maildir / ".Archive")
    disk = FaultDisk(Fault("open_directory", errno.EACCES, nth=0, path="m/cur"))
    assert {each.kind for each in check(maildir, disk=disk)} >= {"unreadable", "size"}


def test_a_message_that_is_moved_meanwhile_is_no_problem(maildir: Path) -> None:
    """A reader moves each message from new/ to cur/, flags or removes it, at each moment: nothing is told of it."""
    (maildir / "maildirsize").unlink()
    for number in range(20):
        put(maildir / "new" / f"{number}.a.host{SIZES}", MESSAGE + b"%d" % number)
        os.rename(maildir / "new" / f"{number}.a.host{SIZES}", maildir / "new" / f"{number}.b.host")
    asked = 0

    def is_wanted() -> None:
        nonlocal asked
        asked += 1
        for source in [*(maildir / "new").iterdir(), *(maildir / "cur").iterdir()][:3]:
            name = f"{source.name.partition(':')[0]}:2,{'S' * (asked % 2)}"
            if asked % 7:
                source.rename(maildir / "cur" / name)
            else:
                source.unlink()

    assert check(maildir, REPAIR, is_wanted=is_wanted) == []
    assert asked > 5


def test_one_message_seen_in_both_directories_is_no_double(maildir: Path) -> None:
    """A message that is listed in new/, moved, and listed again in cur/, is one: both names are never there at once."""
    name = put(maildir / "new" / "1.a.host", MESSAGE + b"moved").name
    (maildir / "maildirsize").unlink()
    listed = 0

    class Moving(FaultDisk):
        def open_directory(self, path: str) -> int:
            nonlocal listed
            if path.endswith("m/cur") and not listed:
                listed += 1
                os.rename(maildir / "new" / name, maildir / "cur" / f"{name}:2,S")
            return super().open_directory(path)

    assert check(maildir, disk=Moving()) == []
    assert listed


def test_two_names_are_doubles_only_if_both_are_there_at_once(maildir: Path) -> None:
    """A message that is flagged between two looks has been seen under both names, and is one."""
    here, there = ("cur", "1.a.host:2,"), ("cur", "1.a.host:2,S")

    class Flagging(PosixDisk):
        def stat(self, path: str | int, directory: int | None = None) -> os.stat_result:
            if str(path).endswith(there[1]):
                os.rename(maildir / "cur" / here[1], maildir / "cur" / there[1])
            return super().stat(path, directory)

    put(maildir / "cur" / here[1])
    assert double(Directories(str(maildir), disk=Flagging(), create=False), None, here, there) is None
    put(maildir / "cur" / here[1])
    problem = double(Directories(str(maildir), disk=PosixDisk(), create=False), None, here, there)
    assert problem is not None
    assert problem.kind == "double"


class Killed(BaseException):
    """The process has been killed."""


class DyingDisk(PosixDisk):
    """A disk whose process is killed at the change numbered *at*: nothing that comes later happens."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _change(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Killed


def _dying(name: str) -> Callable[..., Any]:
    def call(self: DyingDisk, *arguments: Any, **more: Any) -> Any:
        self._change()
        return getattr(PosixDisk, name)(self, *arguments, **more)

    return call


for _name in ("create", "write", "sync", "rename", "rename_noreplace", "link", "unlink", "mkdir", "share", "chmod"):
    setattr(DyingDisk, _name, _dying(_name))


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.heavy)])
def test_a_repair_that_is_killed_is_ended_by_another(maildir: Path, tmp_path: Path, step: int) -> None:
    """Killed at any change it makes, no mail is gone, and a second repair leaves nothing to do."""
    for number, plant in enumerate((broken_size, two_files, readable, no_marker, no_cur, bad_keywords, wrong_quota)):
        plant(maildir)
        for each in [*(maildir / "cur").glob("1.a.host*"), *(maildir / "new").glob("1.a.host*")]:
            each.rename(each.with_name(each.name.replace("1.a", f"{9 - number}.a")))
    at, before = 0, mail(maildir)
    while True:
        at += step
        root = tmp_path / f"m{at}"
        shutil.copytree(maildir, root, symlinks=True)
        disk = DyingDisk(at)
        with contextlib.suppress(Killed):
            check(root, REPAIR, disk=disk)
        assert mail(root) == before
        # Which others break when its process is dead: tests/test_keywords.py.
        for lock in root.rglob("*.lock"):
            lock.unlink()
        assert all(each.repaired for each in check(root, REPAIR) if each.level == "problem")
        assert [each for each in check(root) if each.level == "problem"] == []
        assert mail(root) == before
        if disk.left > 0:
            break
        shutil.rmtree(root)
    assert at > 20


def test_a_sync_that_fails_is_told(maildir: Path) -> None:
    """A name that has been changed, and not durably, is told as that."""
    broken_size(maildir)
    disk = FaultDisk(Fault("sync", errno.EIO, path="m/cur"))
    (problem,) = (each for each in check(maildir, REPAIR, disk=disk) if each.kind == "size")
    assert "a power cut may undo it" in (problem.outcome or "")


@pytest.mark.parametrize("option", [[], ["--repair"], ["--quick"]])
def test_the_json_has_the_names_that_it_promises(
    maildir: Path, capfd: pytest.CaptureFixture[str], option: list[str]
) -> None:
    """All names of the JSON's format 1, also where nothing is wrong; the exit code is 1 for what is left, 0 else."""
    names = ["kind", "level", "folder", "path", "text", "remedy", "repaired", "outcome"]
    summary = ["folders", "messages", "bytes_read", "compressed", "problems", "notes", "repaired", "kinds"]
    for plants, code in (((), 0), ((broken_size, broken_quota), 0 if option == ["--repair"] else 1)):
        for plant in plants:
            plant(maildir)
        assert main(["check", "--json", *option, str(maildir)]) == code
        told: dict[str, Any] = json.loads(capfd.readouterr().out)
        assert list(told) == ["format", "path", "problems", "summary"]
        assert (told["format"], told["path"]) == (1, str(maildir))
        assert list(told["summary"]) == summary
        assert [list(problem) for problem in told["problems"]] == [names] * len(told["problems"])
        assert {problem["kind"] for problem in told["problems"]} <= set(KINDS)
        assert told["summary"]["problems"] + told["summary"]["notes"] == len(told["problems"])


def test_a_defect_is_not_taken_for_a_problem(
    maildir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised on the way is 75 and a line on standard error, and not Python's 1, which has a meaning here."""

    def broken(_: Check) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Check, "run", broken)
    assert main(["check", str(maildir)]) == os.EX_TEMPFAIL
    assert capfd.readouterr().err == "maildir-async: RuntimeError: a defect\n"


def test_the_text_says_what_a_repair_would_do_and_has_done(maildir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A line for each problem, one for what becomes of it, and a last one that counts."""
    broken_size(maildir)
    (maildir / "maildirsize").unlink()
    assert main(["check", str(maildir)]) == 1
    first, second, third, last = capfd.readouterr().out.splitlines()
    assert first.startswith(f"size: {maildir}/cur/1.a.host,S=5,W=6:2,S: its name says S=5 and W=6")
    assert second == f"  --repair would rename it to {maildir}/cur/1.a.host{SIZES}:2,S"
    assert third.startswith("same-content (note): ")
    assert last == "4 messages in 2 folders: 1 problems, 1 notes"
    assert main(["check", "--repair", str(maildir)]) == 0
    assert f"  repaired: renamed {maildir}/cur/1.a.host,S=5,W=6:2,S to " in capfd.readouterr().out


@pytest.mark.heavy
def test_beside_deliveries_and_a_reader_nothing_is_wrong(maildir: Path) -> None:
    """Mail is delivered, with a quota, and a reader moves and flags it, while repairs go on: nothing is wrong."""
    found: list[Problem] = []
    is_over = threading.Event()
    patient = CheckOptions(repair=True, lock_patience_s=0.0, quiet_s=0.5)

    def read() -> None:
        flags = itertools.cycle(["", "S", "FS"])
        while not is_over.is_set():
            for path in [*(maildir / "new").iterdir(), *(maildir / "cur").iterdir()]:
                with contextlib.suppress(FileNotFoundError):
                    path.rename(maildir / "cur" / f"{path.name.partition(':')[0]}:2,{next(flags)}")

    def repair() -> None:
        while not is_over.is_set():
            found.extend(each for each in check(maildir, patient) if each.level == "problem")

    async def deliver() -> None:
        box = Maildir(maildir, quota=Quota(bytes=1_000_000))
        await box.append_many((MESSAGE + b"%d" % number for number in range(1000)), concurrency=8)
        await box.aclose()

    threads = [threading.Thread(target=read), threading.Thread(target=repair)]
    for thread in threads:
        thread.start()
    try:
        asyncio.run(deliver())
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert found == []
    assert len(mail(maildir)) == 1003
    assert [each for each in check(maildir) if each.level == "problem"] == []
