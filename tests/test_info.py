"""``maildir-async info``: what it tells of a real maildir, in tables and in JSON, and that it changes nothing."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maildir_async import Maildir, Quota
from maildir_async.command.main import main
from maildir_async.disk.posix import PosixDisk
from maildir_async.disk.probing import ABILITIES, probe
from maildir_async.mailbox.inspection import inspect
from maildir_async.testing import Fault, FaultDisk

MESSAGE = b"Subject: info\n\nbody\n"


def made(path: Path) -> Maildir:
    """Make a maildir with three messages in two folders, a quota and something in tmp/."""
    maildir = Maildir(path, quota=Quota(bytes=10_000, messages=100))

    async def deliver() -> None:
        await maildir.append(MESSAGE)
        await maildir.append(MESSAGE, flags="FS", keywords=["$Work"])
        await maildir.append(MESSAGE, folder="Entwürfe/日本")

    asyncio.run(deliver())
    (path / "tmp" / "left").write_bytes(b"left")
    return maildir


def told(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Run the command in this process; return its exit code and what it has printed."""
    code = main(["info", *map(str, arguments)])
    return code, capfd.readouterr().out


def listing(root: Path) -> dict[str, tuple[int, ...]]:
    """Return all that is below *root*, with inode, mode, size, mtime and ctime."""
    found: dict[str, tuple[int, ...]] = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def test_info_counts_what_is_there(tmp_path: Path) -> None:
    """Counts, sizes, flags, keywords by name, the quota and the oldest file in tmp/ are those of the disk."""
    maildir = made(tmp_path / "m")
    report = inspect(maildir.mailbox.directories, "utf-7", lambda: None, by_files=False).as_json()
    inbox, folder = report["folders"]
    assert inbox["folder"] is None
    assert (inbox["new"], inbox["cur"], inbox["messages"]) == (1, 1, 2)
    assert inbox["bytes"] == 2 * len(MESSAGE)
    assert inbox["flags"] == {"F": 1, "S": 1}
    assert inbox["keywords"] == {"$Work": 1}
    assert (inbox["tmp"], inbox["oldest_tmp"]["name"]) == (1, "left")
    assert 0 <= inbox["oldest_tmp"]["age_s"] < 60
    assert (folder["folder"], folder["new"], folder["tmp"], folder["oldest_tmp"]) == ("Entwürfe/日本", 1, 0, None)
    counted = {"bytes": 3 * len(MESSAGE), "messages": 3}
    assert report["total"] == counted | {"folders": 2}
    assert report["quota"] == {
        "byte_limit": 10_000,
        "message_limit": 100,
        "recorded": counted,
        "counted": counted,
        "trouble": None,
    }


def test_the_json_has_the_names_that_it_promises(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All names of the JSON's format 1, at each level, with the types that the documentation tells of."""
    for name in ("cur", "new", "tmp"):
        (tmp_path / "m" / name).mkdir(parents=True)
    code, out = told(capfd, tmp_path / "m", "--json")
    assert code == 0
    report: dict[str, Any] = json.loads(out)
    assert list(report) == ["format", "path", "folders", "total", "quota", "file_system"]
    assert (report["format"], report["path"], report["quota"]) == (1, str(tmp_path / "m"), None)
    (folder,) = report["folders"]
    types = [
        *(("folder", type(None)), ("path", str), ("new", int), ("cur", int), ("messages", int), ("bytes", int)),
        *(("unsized", int), ("flags", dict), ("keywords", dict), ("tmp", int), ("oldest_tmp", type(None))),
        ("troubles", list),
    ]
    assert [(name, type(value)) for name, value in folder.items()] == types
    assert list(report["total"]) == ["folders", "messages", "bytes"]
    assert list(report["file_system"]) == ["type", *ABILITIES, "reasons"]


def test_the_table_is_aligned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each row of the table has its numbers where the heading has them, also below a name of wide characters."""
    made(tmp_path / "m")
    code, out = told(capfd, tmp_path / "m")
    assert code == 0
    lines = out.splitlines()
    heading = next(line for line in lines if line.startswith("folder"))
    inbox = next(line for line in lines if line.startswith("INBOX"))
    wide = next(line for line in lines if line.startswith("Entwürfe"))
    end = heading.index("new") + 3
    assert inbox[end - 2 : end] == " 1"
    assert wide[end - 4 : end - 2] == " 1"  # two characters of it take two columns each
    assert "$Work:1" in inbox
    assert any(line.startswith("counted") and line.endswith(" 3") for line in lines)


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_info_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], option: list[str]) -> None:
    """Without --probe no file or directory is made, changed or touched, not even for a moment."""
    made(tmp_path / "m")
    before = listing(tmp_path)
    assert told(capfd, tmp_path / "m", *option)[0] == 0
    assert listing(tmp_path) == before


def test_probing_leaves_nothing(tmp_path: Path) -> None:
    """With files, all abilities are known; the files are gone, also where the disk refuses something."""
    maildir = tmp_path / "m"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    for disk, name in (
        (PosixDisk(), ""),
        (FaultDisk(Fault("link", errno.EPERM)), "hard_links"),
        (FaultDisk(Fault("rename_noreplace", errno.EINVAL)), "rename_noreplace"),
        (FaultDisk(Fault("sync", errno.EINVAL)), "directory_sync"),
    ):
        abilities = probe(Maildir(maildir, disk=disk).mailbox.directories, by_files=True, has_colon=False)
        known = {each: works for each, works in abilities.works.items() if each != "kernel_aio_fsync"}
        assert known == {each: each != name for each in known}
        assert (name in abilities.reasons) == bool(name)
        assert os.listdir(maildir / "tmp") == []


def test_a_directory_that_may_not_be_read_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a user may not read is named with the reason, the rest is told, and the exit code says so."""
    maildir = tmp_path / "m"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    (maildir / "new" / "1.a.host").write_bytes(MESSAGE)
    disk = FaultDisk(Fault("open_directory", errno.EACCES, path="/cur"))
    report = inspect(Maildir(maildir, disk=disk).mailbox.directories, "utf-7", lambda: None, by_files=False)
    assert report.folders[0].troubles == ["cur/ cannot be read: Permission denied"]
    assert (report.folders[0].new, report.folders[0].unsized, report.folders[0].bytes) == (1, 1, len(MESSAGE))
    (maildir / "cur").rmdir()
    assert told(capfd, maildir)[0] == os.EX_NOINPUT


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch], ids=["nothing", "directory", "file"])
def test_what_is_no_maildir_is_66(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[Path], object]
) -> None:
    """Where there is no maildir nothing is printed but why, and the exit code is EX_NOINPUT."""
    make(tmp_path / "m")
    assert main(["info", str(tmp_path / "m")]) == os.EX_NOINPUT
    captured = capfd.readouterr()
    assert captured.out == ""
    assert str(tmp_path / "m") in captured.err


def test_names_cannot_write_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Control characters in a name are shown as escapes: who may put a file there is not to drive the terminal."""
    maildir = tmp_path / "m"
    for name in ("cur", "new", "tmp", ".\x1b[2J/cur"):
        (maildir / name).mkdir(parents=True)
    (maildir / "tmp" / "\x1b]0;title\x07").touch()
    out = told(capfd, maildir)[1]
    assert "\x1b" not in out
    assert "\\x1b]0;title\\x07" in out


@pytest.mark.heavy
@pytest.mark.parametrize("command", [["info"], ["check", "--quick"], ["check"]], ids=" ".join)
def test_memory_does_not_grow_with_the_maildir(tmp_path: Path, command: list[str]) -> None:
    """A hundred thousand messages take less than 12 MB more than none, and 10 s of processor time at most."""
    maildir = tmp_path / "m"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    maildir.chmod(0o700)

    def measured() -> tuple[float, int]:
        script = """
import resource, sys
from maildir_async.command.main import main
main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, *command, maildir], check=True, capture_output=True, text=True, timeout=120
        )
        seconds, kilobytes = done.stdout.split()[-2:]
        return float(seconds), int(kilobytes)

    _, before = measured()
    for number in range(100_000):
        data = b"Subject: %d\n" % number
        name = f"1700000000.M{number}P1Q{number}.host,S={len(data)},W={len(data) + 1}:2,S"
        fd = os.open(maildir / "cur" / name, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, data)
        os.close(fd)
    took_s, after = measured()
    assert took_s < 10
    assert after - before < 12_000


def test_a_signal_ends_it(tmp_path: Path) -> None:
    """SIGTERM ends it in the midst of its work, with EX_TEMPFAIL."""
    maildir = tmp_path / "m"
    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "gate")
    (maildir / "new" / "1.a").touch()
    script = """
import sys
from maildir_async.disk.scanning import Scanned
from maildir_async.command.main import main
names = Scanned.names
def endless(self):
    while True:
        for name in names(self):
            open(sys.argv[2], "w").close() if not seen else None
            seen.append(1)
            yield name + str(len(seen))
seen = []
Scanned.names = endless
sys.exit(main(["info", sys.argv[1]]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, maildir, tmp_path / "gate"], stderr=subprocess.PIPE, text=True
    ) as process:
        (tmp_path / "gate").read_bytes()  # until it is at work
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == os.EX_TEMPFAIL
    assert "interrupted" in said
