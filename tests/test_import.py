"""`import_mail`: what a source has is in the maildir afterwards, once, with flags, keywords, dates and folders."""

import asyncio
import errno
import gzip
import hashlib
import mailbox
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import ImportReport, Maildir, MaildirError, import_mail
from maildir_async.mail_import.headers import from_line_date, marks_of
from maildir_async.mail_import.messages import Messages, digest_of
from maildir_async.mail_import.report import Problems
from maildir_async.mail_import.session import JOURNAL
from maildir_async.testing import Fault, FaultDisk

LINE: Final = b"From alice@example.org Sun Nov 29 01:02:03 2026\n"
DATE: Final = datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC).timestamp()


def mbox_of(*bodies: bytes, line: bytes = LINE) -> bytes:
    """Return an mbox of messages with these bodies."""
    return b"".join(line + b"Subject: x\n\n" + body + b"\n\n" for body in bodies)


def stored(maildir: Path) -> Counter[tuple[str, str, bytes]]:
    """Return what is in a maildir: folder, flags, content, and how many of each there are."""
    found = Counter[tuple[str, str, bytes]]()
    for path in maildir.rglob("*"):
        if path.parent.name in ("new", "cur"):
            folder = path.parent.parent.name if path.parent.parent != maildir else ""
            found[folder, path.name.partition(":2,")[2], path.read_bytes()] += 1
    return found


def bodies(maildir: Path) -> Counter[bytes]:
    """Return what follows the header of each message in a maildir."""
    found = Counter[bytes]()
    for (_, _, content), count in stored(maildir).items():
        found[content.partition(b"\n\n")[2]] += count
    return found


def reasons(report: ImportReport) -> list[str]:
    """Return what was odd, without the path of the test."""
    return [f"{os.path.basename(problem.path)}@{problem.offset}: {problem.reason}" for problem in report.problems]


async def test_an_mbox_comes_with_flags_keywords_and_dates(tmp_path: Path) -> None:
    """Each message is stored as it is, with flags from its header, and the date of its From line as its mtime."""
    first = b"Status: RO\nX-Status: AF\nX-Keywords: $Work later (bad)\nSubject: 1\n\na\n"
    second = b"X-Mozilla-Status: 1009\nSubject: 2\n\nb\n"
    source = tmp_path / "mbox"
    source.write_bytes(LINE + first + b"\n" + LINE + second + b"\n" + mbox_of(b">From here\n>>From there"))

    report = await import_mail(source, tmp_path / "Mail")

    assert (report.imported, report.already_there, report.failed) == (3, 0, 0)
    assert report.size == sum(len(content) for _, _, content in stored(tmp_path / "Mail"))
    assert reasons(report) == ["mbox@0: has keywords that IMAP does not know, which are left out"]
    assert stored(tmp_path / "Mail") == {
        ("", "FRSab", first): 1,
        ("", "PST", second): 1,
        ("", "", b"Subject: x\n\nFrom here\n>From there\n"): 1,
    }
    assert (tmp_path / "Mail/dovecot-keywords").read_text() == "0 $Work\n1 later\n"
    assert {path.stat().st_mtime for path in tmp_path.glob("Mail/*/*") if path.parent.name != "tmp"} == {DATE}


@pytest.mark.parametrize(
    ("line", "date"),
    [
        (b"From a Sun Nov 29 01:02:03 2026", datetime(2026, 11, 29, 1, 2, 3, tzinfo=UTC)),
        (b"From a Sun Nov 29 01:02:03 2026 +0100", datetime(2026, 11, 29, 0, 2, 3, tzinfo=UTC)),
        (b"From a Sun Nov 29 01:02:03 EST 2026", datetime(2026, 11, 29, 6, 2, 3, tzinfo=UTC)),
        (b"From a Sun Nov 29 01:02 2026 remote from b", datetime(2026, 11, 29, 1, 2, tzinfo=UTC)),
        (b"From a Sun, 29 Nov 2026 01:02:03 -0130", datetime(2026, 11, 29, 2, 32, 3, tzinfo=UTC)),
        (b"From a Thu Nov 31 01:02:03 2026", None),
        (b"From a", None),
    ],
)
def test_dates_of_from_lines(line: bytes, date: datetime | None) -> None:
    """A date is in UTC unless its zone is told; one that cannot be is none."""
    assert from_line_date(line) == date


def test_marks_end_with_the_header() -> None:
    """What looks like a header in the text is none."""
    assert marks_of(b"A: b\n\nStatus: R\n") == ("", ())
    assert marks_of(b"A: b\r\nSTATUS: RO\r\n\r\nX-Status: F\r\n") == ("S", ())


async def test_again_nothing_comes_twice(tmp_path: Path) -> None:
    """A second import finds all there, also what was read, moved or removed since; what has grown comes; twins too."""
    source, target = tmp_path / "mbox", tmp_path / "Mail"
    source.write_bytes(mbox_of(b"a", b"b", b"a", b"c"))
    assert (await import_mail(source, target)).imported == 4
    assert bodies(target) == {b"a\n": 2, b"b\n": 1, b"c\n": 1}
    for path in list(target.glob("new/*")):
        body = path.read_bytes().partition(b"\n\n")[2]
        if body == b"b\n":
            path.rename(target / "cur" / f"{path.name}:2,S")
        elif body == b"c\n":
            path.unlink()
    # A reader has written into the mbox, and something has come.
    source.write_bytes(source.read_bytes().replace(b"Subject: x\n\nb", b"Status: RO\nSubject: x\n\nb") + mbox_of(b"d"))

    report = await import_mail(source, target)

    assert (report.imported, report.already_there, report.failed) == (1, 4, 0)
    assert bodies(target) == {b"a\n": 2, b"b\n": 1, b"d\n": 1}
    source.write_bytes(mbox_of(b"a", b"a", b"a"))
    assert (await import_mail(source, target)).imported == 1
    assert bodies(target)[b"a\n"] == 3


async def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """It tells what would be imported, before and after a true one, and stores nothing."""
    source, target = tmp_path / "mbox", tmp_path / "Mail"
    source.write_bytes(mbox_of(b"a", b"b", b"a", b"x" * 600_000))

    report = await import_mail(source, target, dry_run=True)
    assert (report.imported, report.already_there, report.dry_run) == (4, 0, True)
    assert report.size > 600_000
    assert not target.exists()

    await import_mail(source, target)
    source.write_bytes(source.read_bytes() + mbox_of(b"c"))
    for _ in range(2):
        report = await import_mail(source, target, dry_run=True)
        assert (report.imported, report.already_there) == (1, 4)
    assert (await import_mail(source, target)).imported == 1


async def test_a_long_message_is_streamed_and_stored_once(tmp_path: Path) -> None:
    """A message that is longer than what is read whole comes as it is, between others, and only once."""
    source, target = tmp_path / "mbox", tmp_path / "Mail"
    long = hashlib.shake_128(b"x").hexdigest(1_500_000).encode()
    source.write_bytes(mbox_of(b"a", long, b"b", long, b"c"))
    for imported in (5, 0):
        report = await import_mail(source, target)
        assert (report.imported, report.already_there, report.failed) == (imported, 5 - imported, 0)
        assert bodies(target) == {b"a\n": 1, long + b"\n": 2, b"b\n": 1, b"c\n": 1}
    assert list(target.glob("tmp/*")) == []


async def test_a_maildir_comes_with_its_folders(tmp_path: Path) -> None:
    """Folders of both kinds, flags, keywords by the source's letters, and times come along; so do names in UTF-7."""
    source = Maildir(tmp_path / "Old")
    when = datetime(2001, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
    await source.append(b"A: 1\n\n", flags="FS", keywords=["one", "two"], received_at=when)
    await source.append(b"A: 2\n\n", folder="Archive/Ä", flags="R", keywords=["two"], received_at=when)
    await Maildir(tmp_path / "Old/sub/deep").append(b"A: 3\n\n", received_at=when)
    (tmp_path / "Old/tmp/1.x").write_bytes(b"unfinished")
    (tmp_path / "Old/.git").mkdir()
    await Maildir(tmp_path / "Mail").append(b"B: 0\n\n", keywords=["zero"])

    report = await import_mail(tmp_path / "Old", tmp_path / "Mail")

    assert (report.imported, report.failed) == (3, 0)
    assert reasons(report) == [
        "tmp@None: 1 files of deliveries that were not finished are left out",
        ".git@None: is no folder: it has neither cur nor new",
    ]
    assert stored(tmp_path / "Mail") == {
        ("", "a", b"B: 0\n\n"): 1,
        ("", "FSbc", b"A: 1\n\n"): 1,
        (".Archive.&AMQ-", "Ra", b"A: 2\n\n"): 1,
        (".sub.deep", "", b"A: 3\n\n"): 1,
    }
    times = {path.stat().st_mtime for path in tmp_path.glob("Mail/**/*") if ",S=" in path.name}
    assert len(times) == 2
    assert when.timestamp() in times
    assert (await import_mail(tmp_path / "Old", tmp_path / "Mail")).already_there == 3


async def test_mh_comes_with_its_sequences(tmp_path: Path) -> None:
    """Messages of MH, also in folders below, have the flags that their sequences tell."""
    box = mailbox.MH(tmp_path / "mh")
    for name in ("a", "b", "c"):
        box.add(f"A: {name}\n\n".encode())
    box.set_sequences({"unseen": [1], "replied": [2, 3], "flagged": [3]})
    box.add_folder("inner").add(b"A: d\n\n")
    (tmp_path / "mh/notes").write_text("no mail")
    with (tmp_path / "mh/.mh_sequences").open("a") as file:
        file.write("broken 1 x\n")

    report = await import_mail(tmp_path / "mh", tmp_path / "Mail")

    assert stored(tmp_path / "Mail") == {
        ("", "", b"A: a\n\n"): 1,
        ("", "RS", b"A: b\n\n"): 1,
        ("", "FRS", b"A: c\n\n"): 1,
        (".inner", "S", b"A: d\n\n"): 1,
    }
    assert reasons(report) == [
        ".mh_sequences@None: line 4 is no sequence: 'broken 1 x'",
        "notes@None: is no message of MH, which are called by numbers: it is left out",
    ]


async def test_directories_of_files(tmp_path: Path) -> None:
    """Of a directory come ``.eml`` files and mboxes, each with gzip or without; what is no mail is named."""
    root = tmp_path / "files"
    (root / "sub.dir").mkdir(parents=True)
    (root / "a.eml").write_bytes(b"A: a\r\n\r\n")
    (root / "b.EML.gz").write_bytes(gzip.compress(b"A: b\n\n"))
    (root / "Sent.mbox").write_bytes(mbox_of(b"sent"))
    (root / "Old.gz").write_bytes(gzip.compress(mbox_of(b"o1")) + gzip.compress(mbox_of(b"o2")))
    (root / "picture.png").write_bytes(b"\x89PNG\r\n")
    (root / "empty").touch()
    (root / ".hidden").touch()
    (root / "sub.dir/c.eml").write_bytes(b"A: c\n\n")
    (root / "loop").symlink_to(root)
    (root / "round").symlink_to("round")
    (root / "nowhere").symlink_to("gone")
    os.mkfifo(root / "fifo")

    report = await import_mail(root, tmp_path / "Mail")

    assert stored(tmp_path / "Mail") == {
        ("", "", b"A: a\r\n\r\n"): 1,
        ("", "", b"A: b\n\n"): 1,
        (".Sent", "", b"Subject: x\n\nsent\n"): 1,
        (".Old", "", b"Subject: x\n\no1\n"): 1,
        (".Old", "", b"Subject: x\n\no2\n"): 1,
        (".sub_dir", "", b"A: c\n\n"): 1,
    }
    assert sorted(reasons(report)) == [
        "fifo@None: is neither a file nor a directory",
        "loop@None: has been looked into already, by another path: a symbolic link leads there",
        "nowhere@None: is a symbolic link that leads nowhere",
        "picture.png@None: is no mail that is known: it is left out",
        "round@None: is a symbolic link that leads nowhere",
        "sub.dir@None: cannot be called so as a folder: it becomes 'sub_dir'",
    ]
    assert report.failed == 2


@pytest.mark.parametrize(
    ("data", "imported", "odd"),
    [
        (b"", 0, []),
        (b"\n\n", 1, ["mbox@None: begins with no header: it is taken as a message"]),
        (b"junk", 1, ["mbox@None: begins with no header: it is taken as a message"]),
        (mbox_of(b"a", b"\0"), 2, [f"mbox@{len(mbox_of(b'a'))}: has NUL bytes in it, which are kept"]),
        (mbox_of(b"a")[:-2], 1, [f"mbox@{len(mbox_of(b'a')) - 2}: the file ends in the middle of a line: "]),
        (b"From x\nA: b\n\n", 1, ["mbox@0: has no date that there can be in its From line"]),
        (b"A: b\r\rc\r", 1, ["mbox@None: has no line ends but CR, which are kept"]),
        (gzip.compress(mbox_of(b"a"), mtime=0)[:-9], 1, ["mbox@"]),
        (gzip.compress(mbox_of(b"a"), mtime=0) + b"junk", 1, ["mbox@"]),
        (gzip.compress(mbox_of(b"a"), mtime=0) + b"\0" * 9, 1, []),
        (b"\x1f\x8b\x08junk", 0, ["mbox@0: the compressed data are damaged"]),
        (
            mbox_of(b"a\n\nFrom b\n\nc"),
            1,
            ["mbox@63: a line that begins with 'From ' has no date: it is kept as text"],
        ),
    ],
)
async def test_what_is_odd_is_named_and_nothing_lost(
    tmp_path: Path, data: bytes, imported: int, odd: list[str]
) -> None:
    """A file that is cut off, damaged or strange gives what it has, and the report names the place."""
    (tmp_path / "mbox").write_bytes(data)
    report = await import_mail(tmp_path / "mbox", tmp_path / "Mail")
    assert report.imported == imported == sum(stored(tmp_path / "Mail").values())
    assert len(report.problems) == report.problem_count == len(odd), report.problems
    assert all(text.startswith(start) for text, start in zip(reasons(report), odd, strict=True)), report.problems


async def test_a_folder_and_a_dialect_may_be_said(tmp_path: Path) -> None:
    """All goes to, or below, the folder that is said, and what was quoted is kept where mboxo is said."""
    (tmp_path / "mbox").write_bytes(mbox_of(b"a\n\n>From b"))
    await import_mail(tmp_path / "mbox", tmp_path / "Mail", folder="In/2024", dialect="mboxo")
    assert stored(tmp_path / "Mail") == {(".In.2024", "", b"Subject: x\n\na\n\n>From b\n"): 1}


async def test_a_source_in_the_maildir_is_refused(tmp_path: Path) -> None:
    """The maildir itself, what lies in it, and what it lies in are no source, by whatever path."""
    await Maildir(tmp_path / "Mail").append(b"A: b\n\n", folder="x")
    (tmp_path / "link").symlink_to(tmp_path / "Mail")
    for source in ("Mail", "Mail/.x", "link", "link/new", ".", "Mail/../Mail"):
        with pytest.raises(ValueError, match="source is the maildir itself"):
            await import_mail(tmp_path / source, tmp_path / "Mail")


@pytest.mark.parametrize(
    "options", [{"dialect": "x"}, {"folder": "a//b"}, {"dry_run": 1}, {"on_progress": 1}, {"journal": ""}]
)
async def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    """An argument that is not valid is refused by its name, and nothing is touched."""
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=name if name != "journal" else "path"):
        await import_mail(tmp_path / "mbox", tmp_path / "Mail", **options)
    with pytest.raises(FileNotFoundError):
        await import_mail(tmp_path / "mbox", tmp_path / "Mail", dry_run=True)
    assert list(tmp_path.iterdir()) == []


async def test_two_imports_at_once_are_refused(tmp_path: Path) -> None:
    """Into one maildir one import goes at a time; the other says so, and the first goes on."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "mbox").write_bytes(mbox_of(b"a"))
    first = asyncio.ensure_future(import_mail(tmp_path / "fifo", tmp_path / "Mail"))
    with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
        while not (tmp_path / "Mail" / JOURNAL).exists():
            await asyncio.sleep(0.001)
        with pytest.raises(MaildirError, match="another import into this maildir is under way"):
            await import_mail(tmp_path / "mbox", tmp_path / "Mail")
        pipe.write(mbox_of(b"b"))
    assert (await first).imported == 1


async def test_a_cancelled_import_goes_on_later(tmp_path: Path) -> None:
    """An import that is cancelled while it waits for its source ends at once, and one that comes later converges."""
    os.mkfifo(tmp_path / "fifo")
    first = asyncio.ensure_future(import_mail(tmp_path / "fifo", tmp_path / "Mail"))
    data = mbox_of(*(b"%d" % number for number in range(400)))
    with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
        await asyncio.to_thread(pipe.write, data[:20_000])
        pipe.flush()
        while not list(tmp_path.glob("Mail/new/*")):
            await asyncio.sleep(0.001)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    second = asyncio.ensure_future(import_mail(tmp_path / "fifo", tmp_path / "Mail"))
    with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
        await asyncio.to_thread(pipe.write, data)
    report = await second
    assert report.imported + report.already_there == 400
    assert bodies(tmp_path / "Mail") == {b"%d\n" % number: 1 for number in range(400)}


async def test_a_message_that_cannot_be_stored_is_named_and_comes_later(tmp_path: Path) -> None:
    """A failure costs that message only; the next import has it, and no other, again."""
    (tmp_path / "mbox").write_bytes(mbox_of(b"a", b"b", b"c"))
    disk = FaultDisk(Fault("write", errno.ENOSPC, nth=2))
    report = await import_mail(tmp_path / "mbox", Maildir(tmp_path / "Mail", disk=disk))
    assert (report.imported, report.failed) == (2, 1)
    assert "No space left" in report.problems[0].reason
    assert report.problems[0].is_loss
    report = await import_mail(tmp_path / "mbox", tmp_path / "Mail")
    assert (report.imported, report.already_there) == (1, 2)
    assert bodies(tmp_path / "Mail") == {b"a\n": 1, b"b\n": 1, b"c\n": 1}


async def test_a_folder_that_there_cannot_be_costs_its_messages_only(tmp_path: Path) -> None:
    """Where a name is too long for a folder, its messages are named, short and long ones, and the rest comes."""
    deep = tmp_path / "src" / ("ä" * 60) / ("ä" * 60) / ("ä" * 60)
    deep.mkdir(parents=True)
    (deep / "a.eml").write_bytes(b"A: a\n\n")
    (deep / "b.eml").write_bytes(b"A: b\n\n" + b"x\n" * 300_000)
    (tmp_path / "src/c.eml").write_bytes(b"A: c\n\n")
    for imported in (1, 0):
        report = await import_mail(tmp_path / "src", tmp_path / "Mail")
        assert (report.imported, report.already_there, report.failed) == (imported, 1 - imported, 2)
        assert all("more than 240 bytes" in problem.reason for problem in report.problems)
    assert stored(tmp_path / "Mail") == {("", "", b"A: c\n\n"): 1}


async def test_keywords_past_the_last_letter_cost_no_message(tmp_path: Path) -> None:
    """A Maildir has 26 keywords. A message with one more comes without them, also one that is not read whole."""
    long = b"x\n" * 300_000
    with (tmp_path / "mbox").open("wb") as file:
        for number in range(27):
            file.write(LINE + b"X-Keywords: k%d\n\n\n" % number)
        file.write(LINE + b"X-Keywords: k5\n\n" + long + b"\n" + LINE + b"X-Keywords: last\n\n" + long + b"\n")
    report = await import_mail(tmp_path / "mbox", tmp_path / "Mail")
    assert (report.imported, report.failed, report.problem_count) == (29, 0, 2)
    flags = Counter(len(flags) for _, flags, _ in stored(tmp_path / "Mail"))
    assert flags == {1: 27, 0: 2}
    assert (await import_mail(tmp_path / "mbox", tmp_path / "Mail")).already_there == 29


@pytest.mark.parametrize(
    "message",
    [
        b"A: b\n\nx\n",
        b"\nStatus: RO\n\nx\n",
        b"Status: RO\nA: b\n\nx\n",
        b"A: b\nX-UID: 7\n\n>From x\n\n",
        b"A: b\nx\n",
        b"A: b\nLines: 1\n\n",
        b"A: b\n\r\nStatus: R\n\nx\n",
        b"A: " + b"b" * 70_000 + b"\nStatus: R\n\nx\n",
    ],
)
def test_a_message_is_the_same_when_another_follows(tmp_path: Path, message: bytes) -> None:
    """What stands for a message, and its marks, do not hang on where it stands: or a grown mbox would come twice."""
    found = list[tuple[bytes, str, bytes]]()
    path = tmp_path / "mbox"
    for data in (LINE + message + b"\n", LINE + message + b"\n" + mbox_of(b"a", b"b")):
        path.write_bytes(data)
        messages = Messages(str(path), (), "auto", Problems())
        first = next(messages.each())
        found.append((messages.digest(), first.flags, first.first))
    assert found[0] == found[1]
    (tmp_path / "stored").write_bytes(found[0][2])
    assert digest_of(str(tmp_path / "stored")) == found[0][0]


async def test_an_import_cancelled_while_nobody_waits_for_its_source_ends(tmp_path: Path) -> None:
    """All workers have something to store, and the source says nothing more: its reading ends with the import."""
    os.mkfifo(tmp_path / "fifo")
    running = asyncio.ensure_future(
        import_mail(tmp_path / "fifo", tmp_path / "Mail", on_progress=lambda *_: running.cancel())
    )
    with await asyncio.to_thread(open, tmp_path / "fifo", "wb") as pipe:
        # 128 are read in one go. What follows is not all there yet.
        await asyncio.to_thread(pipe.write, mbox_of(*(b"%d" % number for number in range(200))))
        pipe.flush()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_progress_is_told(tmp_path: Path) -> None:
    """`on_progress` gets what has been gone through; the number of all where each is a file of its own."""
    told = list[tuple[int, int | None, int]]()
    (tmp_path / "mbox").write_bytes(mbox_of(b"a", b"b"))
    await import_mail(tmp_path / "mbox", tmp_path / "Mail", on_progress=lambda *each: told.append(each))
    assert told[-1] == (2, None, 2 * len(b"Subject: x\n\na\n"))
    assert told == sorted(told)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/a.eml").write_bytes(b"A: b\n\n")
    await import_mail(tmp_path / "dir", tmp_path / "Mail", on_progress=lambda *each: told.append(each))
    assert told[-1:] == [(1, 1, 6)]


def test_reports_add_up() -> None:
    """Two reports make one, which says in words and as a table what it came to."""
    both = ImportReport(1, 2, 3, 4, 5) + ImportReport(10, 20, 30, 40, 50)
    assert both == ImportReport(11, 22, 33, 44, 55)
    assert str(both) == "11 imported (55 bytes), 22 already there, 33 failed"
    assert ">already_there<" in both._repr_html_()
    assert ">22</td>" in both._repr_html_()
