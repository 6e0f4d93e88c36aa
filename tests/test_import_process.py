"""The process that reads for `import_mail`: all comes to what it comes to without, whoever of the two dies."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from look import until
from maildir_async import ImportReport, Maildir, MaildirError, import_mail
from maildir_async.mail_import.messages import LARGE_BYTES, is_large
from maildir_async.mail_import.session import JOURNAL
from test_import import LINE, bodies, mbox_of, reasons, stored


def children(of: int | str = "self") -> list[int]:
    """Return the processes that a process has started and that have not ended."""
    found = list[int]()
    for path in Path(f"/proc/{of}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return found


@pytest.fixture
def started() -> Callable[[], list[int]]:
    """Return which processes a test has started, of those that have not ended."""
    before = children()
    return lambda: [process for process in children() if process not in before]


def tree_of(tmp_path: Path) -> Path:
    """Return a directory with a bit of all that there is."""
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    (root / "mbox").write_bytes(
        LINE
        + b"Status: RO\nX-Keywords: $Work later (bad)\nSubject: 1\n\na\n\n"
        + mbox_of(b"b", b"c", b"x" * 700_000, b"b")
        + mbox_of(*(b"%d" % number for number in range(300)))
    )
    (root / "sub/one.eml").write_bytes(b"Subject: nul\n\n\0\n")
    (root / "sub/other").write_bytes(b"\x7fELF is no mail")
    maildir = root / "Maildir"
    for name in ("cur", "new", "tmp", ".Archiv.2026/cur", ".Archiv.2026/new", ".Archiv.2026/tmp"):
        (maildir / name).mkdir(parents=True)
    (maildir / "cur/1.a.b:2,RS").write_bytes(b"Subject: seen\n\n1\n")
    (maildir / ".Archiv.2026/new/2.a.b").write_bytes(b"Subject: old\n\n2\n")
    os.utime(maildir / "cur/1.a.b:2,RS", ns=(10**18, 10**18 + 123_456_000))
    return root


async def test_it_comes_to_the_same(tmp_path: Path, started: Callable[[], list[int]]) -> None:
    """Read by a process of its own or not, the maildir, the report and the times are the same; and again, nothing."""
    source, reports, dates = tree_of(tmp_path), list[ImportReport](), list[list[int]]()
    for name, reading_process in ("process", True), ("thread", False):
        target = tmp_path / name
        reports.append(await import_mail(source, target, reading_process=reading_process))
        dates.append(
            sorted(path.stat().st_mtime_ns for path in target.rglob("*") if path.parent.name in ("new", "cur"))
        )
        again = await import_mail(source, target, reading_process=not reading_process)
        assert (again.imported, again.already_there) == (0, reports[-1].imported)
    assert reports[0] == reports[1]
    assert reports[0].imported == 307 + 1
    assert [reason for reason in reasons(reports[0]) if "NUL" in reason or "no mail" in reason]
    assert dates[0] == dates[1]
    assert 10**18 + 123_456_000 in dates[0]
    assert stored(tmp_path / "process") == stored(tmp_path / "thread")
    assert started() == []


async def test_what_reading_raises_is_raised(tmp_path: Path, started: Callable[[], list[int]]) -> None:
    """The source that cannot be opened, and the journal that another has, are told as they are without the process."""
    with pytest.raises(FileNotFoundError) as caught:
        await import_mail(tmp_path / "missing", tmp_path / "Mail", reading_process=True)
    assert caught.value.filename == str(tmp_path / "missing")
    (tmp_path / "mbox").write_bytes(mbox_of(b"a"))
    (tmp_path / "Mail" / JOURNAL).write_bytes(b"damaged" * 1000)
    with pytest.raises(MaildirError, match="damaged"):
        await import_mail(tmp_path / "mbox", tmp_path / "Mail", reading_process=True)
    assert started() == []


async def test_it_is_stopped(tmp_path: Path, started: Callable[[], list[int]]) -> None:
    """A cancelled import whose source says nothing more ends at once, and the process with it; a later one goes on."""
    os.mkfifo(tmp_path / "fifo")
    data = mbox_of(*(b"%d" % number for number in range(400)))
    first = asyncio.ensure_future(import_mail(tmp_path / "fifo", tmp_path / "Mail", reading_process=True))
    with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
        await asyncio.to_thread(pipe.write, data[:20_000])
        pipe.flush()
        await asyncio.to_thread(until, lambda: bool(list(tmp_path.glob("Mail/new/*"))))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    assert started() == []
    (tmp_path / "fifo").unlink()
    (tmp_path / "fifo").write_bytes(data)
    report = await import_mail(tmp_path / "fifo", tmp_path / "Mail", reading_process=True)
    assert report.imported + report.already_there == 400
    assert bodies(tmp_path / "Mail") == {b"%d\n" % number: 1 for number in range(400)}


async def test_its_death_is_told_and_nothing_comes_twice(tmp_path: Path, started: Callable[[], list[int]]) -> None:
    """Killed in the midst, it ends the import with an error that says so. The next import has what is missing."""
    os.mkfifo(tmp_path / "fifo")
    data = mbox_of(*(b"%d" % number for number in range(400)))
    first = asyncio.ensure_future(import_mail(tmp_path / "fifo", tmp_path / "Mail", reading_process=True))
    with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
        (process,) = started()
        await asyncio.to_thread(pipe.write, data[:20_000])
        pipe.flush()
        await asyncio.to_thread(until, lambda: bool(list(tmp_path.glob("Mail/new/*"))))
        os.kill(process, signal.SIGKILL)
        with pytest.raises(MaildirError, match="the process that reads it has died"):
            await first
    assert started() == []
    gc.collect()  # Python 3.13 complains of what it cannot take apart
    (tmp_path / "fifo").unlink()
    (tmp_path / "fifo").write_bytes(data)
    report = await import_mail(tmp_path / "fifo", tmp_path / "Mail")
    assert report.imported + report.already_there == 400
    assert report.already_there > 0
    assert bodies(tmp_path / "Mail") == {b"%d\n" % number: 1 for number in range(400)}


IMPORT = "import asyncio, sys; from maildir_async import import_mail; "

#: The same, and a fork that says that it is there, and then lives until nobody is at the other end of a pipe.
FORKING = """
import asyncio, os, sys, warnings
from maildir_async import import_mail

warnings.simplefilter("ignore")
forked = []

def fork(*_):
    if not forked:
        forked.append(os.fork())
        if forked == [0]:
            os.write(1, b"x")
            os.read(0, 1)
            os._exit(0)

asyncio.run(import_mail(*sys.argv[1:3], reading_process=True, on_progress=fork))
"""


@pytest.mark.parametrize("forks", [False, True])
async def test_it_ends_with_whom_it_works_for(tmp_path: Path, forks: bool) -> None:
    """When the importing process is killed, this one ends, though its source says nothing and a fork lives on."""
    os.mkfifo(tmp_path / "fifo")
    program = FORKING if forks else IMPORT + "asyncio.run(import_mail(*sys.argv[1:3], reading_process=True))"
    command = [sys.executable, "-c", program, str(tmp_path / "fifo"), str(tmp_path / "Mail")]
    importing = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
            (process,) = children(importing.pid)
            await asyncio.to_thread(pipe.write, mbox_of(*(b"%d" % number for number in range(200))))
            pipe.flush()
            await asyncio.to_thread(until, lambda: bool(list(tmp_path.glob("Mail/new/*"))))
            if forks:
                assert importing.stdout is not None
                assert await importing.stdout.read(1) == b"x"
            importing.kill()
            await asyncio.to_thread(until, lambda: _has_ended(process))
            (tmp_path / "mbox").write_bytes(mbox_of(b"later"))
            assert (await import_mail(tmp_path / "mbox", tmp_path / "Mail")).imported == 1
    finally:
        await importing.communicate(b"")  # which ends the fork


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_where_no_process_can_be_had_none_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter inside another program does not know how to start one, and imports all the same."""
    (tmp_path / "mbox").write_bytes(mbox_of(b"a"))
    monkeypatch.setattr(sys, "executable", "")
    assert (await import_mail(tmp_path / "mbox", tmp_path / "Mail", reading_process=True)).imported == 1


async def test_standard_input_may_be_large(tmp_path: Path) -> None:
    """A file that is standard input is read by the process from there."""
    (tmp_path / "mbox").write_bytes(mbox_of(b"a", b"b"))
    call = "print((asyncio.run(import_mail('-', sys.argv[1], reading_process=True))).imported)"
    with (tmp_path / "mbox").open("rb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", IMPORT + call, tmp_path / "Mail"), stdin=file, stdout=subprocess.PIPE
        )
        assert (await process.communicate())[0] == b"2\n"


def test_a_process_is_for_large_sources(tmp_path: Path) -> None:
    """64 MiB or 20,000 files are large. What cannot be looked at is not, nor a FIFO."""
    (tmp_path / "mail").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, size in ("large", LARGE_BYTES), ("small", LARGE_BYTES - 1), ("mail/a", LARGE_BYTES - 1), ("mail/b", 1):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    large = {path.name for path in (*tmp_path.iterdir(), tmp_path / "missing") if is_large(str(path))}
    assert large == {"large", "mail"}


@pytest.mark.parametrize("value", [0, "yes", 1.5])
async def test_what_is_no_choice_is_named(tmp_path: Path, value: Any) -> None:
    """TypeError names the argument."""
    with pytest.raises(TypeError, match="reading_process"):
        await import_mail(tmp_path / "mbox", Maildir(tmp_path / "Mail"), reading_process=value)
