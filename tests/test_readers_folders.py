"""What is delivered to folders is what mail readers see in them, whatever way it came by.

One maildir with folders is written, and each reader gets a copy. The programs are the real ones; where one is missing
its test is skipped and says so.
"""

import asyncio
import email
import imaplib
import mailbox
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

import test_readers
from maildir_async import Delivered, Maildir, deliver
from test_readers import Dovecot, mutt, needed

home = test_readers.home
doveadm = test_readers.doveadm

RECEIVED_AT: Final = 981_173_106  # 2001-02-03 04:05:06 UTC
FROM: Final = b"From: alice@example.com\n"

#: Subject → message, and options of append.
MAIL: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "plain": (FROM + b"Subject: plain\n\none\ntwo \xc3\xa9\n", {}),
    "crlf": (FROM.replace(b"\n", b"\r\n") + b"Subject: crlf\r\n\r\none\r\n.two\r\n", {}),
    "flagged": (FROM + b"Subject: flagged\n\nno line end", {"flags": "FRS"}),
    "trashed": (FROM + b"Subject: trashed\n\n", {"flags": "DTP"}),
    "old": (FROM + b"Subject: old\n\nold\r\nand mixed\n", {"received_at": RECEIVED_AT, "flags": "S"}),
    "keyword": (FROM + b"Subject: keyword\n\nsent on\n", {"keywords": ["$Forwarded", "work"], "flags": "S"}),
    "long": (FROM + b"Subject: long\n\n" + b"0123456789\n" * 60_000, {}),
}

#: What Dovecot shows for a letter. P is none of IMAP's.
IMAP_FLAGS: Final = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}

#: Folder → its name as IMAP and the disk have it, with dots between the parts. The last is RFC 3501's example.
FOLDERS: Final[dict[str | None, str]] = {
    None: "",
    "Archive/2024": "Archive.2024",
    "Entwürfe": "Entw&APw-rfe",
    "a&b": "a&-b",
    "台北/日本語": "&U,BTFw-.&ZeVnLIqe-",
}


@dataclass
class Written:
    """Two maildirs, and what their writer was told of each message of the first: folder → subject → receipt."""

    path: Path
    other: Path
    delivered: dict[str | None, dict[str, Delivered]]

    def copy(self, path: Path) -> Path:
        """Return *path*, where a copy of the first is, that its reader may change."""
        return Path(shutil.copytree(self.path, path))


async def _chunks(message: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(message), 50_000):
        yield message[start : start + 50_000]


async def _write(path: Path, other: Path) -> dict[str | None, dict[str, Delivered]]:
    """Deliver all of `MAIL` to each of `FOLDERS`, to each by a way of its own."""
    maildir, second = Maildir(path), Maildir(other)

    async def one(folder: str | None, message: bytes, options: dict[str, Any]) -> Delivered:
        if folder is None:
            return await maildir.append(message, **options)
        options = {**options, "folder": folder}
        if folder == "Archive/2024":
            return await maildir.append(_chunks(message), **options)
        if folder == "Entwürfe":
            async with maildir.open_append(**options) as task:
                await task.send(message)
            return task.future.result()
        if folder == "a&b":
            outcome, _ = await deliver(message, [maildir, second], **options)
            assert outcome.delivered is not None
            return outcome.delivered
        (delivered,) = await maildir.append_many([message], atomic=len(message) % 2 == 0, **options)
        return delivered

    return {
        folder: {subject: await one(folder, message, options) for subject, (message, options) in MAIL.items()}
        for folder in FOLDERS
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("written")
    return Written(root / "m", root / "other", asyncio.run(_write(root / "m", root / "other")))


def directory(folder: str | None) -> str:
    """Return the name of a folder's directory in its maildir."""
    return f".{FOLDERS[folder]}" if folder else "."


def letters(subject: str) -> str:
    return "".join(sorted(MAIL[subject][1].get("flags", "")))


def check_with_python(
    box: mailbox.Maildir, delivered: dict[str, Delivered] | None = None, *, copied: bool = False
) -> None:
    """Assert that *box* has all of `MAIL` with flags and dates; under the keys of *delivered*, if that is given.

    What mbsync has *copied* has the mark by which it finds a message again, and is in ``new/`` until it is seen.
    """
    found = {message["Subject"]: (key, message) for key, message in box.items()}
    assert sorted(found) == sorted(MAIL)
    assert len(box) == len(MAIL)
    for subject, (message, options) in MAIL.items():
        key, read = found[subject]
        assert re.sub(rb"X-TUID: .*\r?\n" if copied else rb"\Z", b"", box.get_bytes(key)) == message
        assert re.sub("[a-z]", "", read.get_flags()) == letters(subject)
        assert copied or read.get_subdir() == ("cur" if letters(subject) else "new")
        if "received_at" in options:
            assert read.get_date() == RECEIVED_AT
        if delivered is not None:
            assert key == delivered[subject].key
            assert read.get_date() == os.stat(delivered[subject].path).st_mtime


def test_python_s_mailbox_reads_folders(written: Written) -> None:
    """`mailbox.Maildir` lists the folders, and has each message with its key, bytes, flags and date."""
    box = mailbox.Maildir(written.path, create=False)

    assert sorted(box.list_folders()) == sorted(name for name in FOLDERS.values() if name)
    for folder, delivered in written.delivered.items():
        assert {receipt.folder for receipt in delivered.values()} == {folder}
        check_with_python(box.get_folder(FOLDERS[folder]) if folder else box, delivered)
    other = mailbox.Maildir(written.other, create=False)
    assert (len(other), other.list_folders()) == (0, ["a&-b"])
    check_with_python(other.get_folder("a&-b"))


async def test_folders_that_python_makes_are_ours_too(tmp_path: Path) -> None:
    """A folder of `mailbox.Maildir.add_folder` is listed and delivered to, and counted by its maker."""
    made = mailbox.Maildir(tmp_path / "m").add_folder("Entw&APw-rfe")
    maildir = Maildir(tmp_path / "m", create=False)
    assert await maildir.folders() == ["Entwürfe"]
    delivered = await maildir.append(b"x", folder="Entwürfe")
    assert list(made.keys()) == [delivered.key]


# Courier's tools.


@pytest.mark.parametrize("program", ["maildirmake.courier", "maildirmake.maildrop"])
async def test_courier_s_maildirmake(program: str, tmp_path: Path) -> None:
    """A folder that it makes is listed and delivered to; one that we made is one to it, so it refuses to make it."""
    maildirmake = needed(program)

    def make(*words: "str | Path") -> int:
        return subprocess.run([maildirmake, *words], capture_output=True, timeout=60).returncode

    root = tmp_path / "m"
    assert make(root) == 0
    assert make("-f", "Archive.2024", root) == 0
    maildir = Maildir(root, create=False)
    assert await maildir.folders() == ["Archive/2024"]
    delivered = await maildir.append(b"x", folder="Archive/2024")
    assert Path(delivered.path).parent == root / ".Archive.2024/new"
    theirs = {path.name for path in (root / ".Archive.2024").iterdir()}
    await maildir.create_folder("ours")
    assert {path.name for path in (root / ".ours").iterdir()} == theirs
    assert make("-f", "ours", root) != 0


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder])
def test_courier_s_deliverquota(folder: str, written: Written, tmp_path: Path) -> None:
    """It delivers to a folder of ours, and knows it by its marker: what it counts is kept in the maildir above."""
    deliverquota = needed("deliverquota")
    root = written.copy(tmp_path / "m")
    before = len(os.listdir(root / directory(folder) / "new"))

    subprocess.run([deliverquota, root / directory(folder), "100000000S"], input=b"x: y\n\n", check=True, timeout=60)

    assert len(os.listdir(root / directory(folder) / "new")) == before + 1
    assert not (root / directory(folder) / "maildirsize").exists()
    _, *lines = (root / "maildirsize").read_text().splitlines()
    size, count = (sum(int(line.split()[at]) for line in lines) for at in (0, 1))
    # It does not count what is marked as trashed, which is as good as gone.
    kept = [path for where in ("new", "cur") for path in root.glob(f"**/{where}/*") if not path.name.endswith("T")]
    assert (size, count) == (sum(path.stat().st_size for path in kept), len(kept))


# Dovecot.


class Session(imaplib.IMAP4_stream):
    """A session with Dovecot's IMAP server, which doveadm starts without a daemon."""

    def __init__(self, dovecot: Dovecot) -> None:
        self._dovecot = dovecot
        super().__init__("doveadm exec imap")

    def open(self, *_args: Any, **_options: Any) -> None:
        self.process = self._dovecot.start("exec", "imap")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.writefile, self.readfile = self.process.stdin, self.process.stdout


@pytest.fixture
def dovecot(doveadm: str, home: Path, written: Written) -> Iterator[Dovecot]:
    """A Dovecot for a copy of what was written, which says nothing beside what it was asked."""
    written.copy(home / "Maildir")
    dovecot = Dovecot(doveadm, home)
    yield dovecot
    assert dovecot.complaints() == []


def answer(said: tuple[str, list[Any]]) -> list[Any]:
    assert said[0] == "OK", said
    return said[1]


@pytest.mark.heavy
def test_dovecot_reads_folders(dovecot: Dovecot, written: Written) -> None:
    """IMAP lists the folders by their names, and has each message's flags, keywords, size, date and bytes."""
    with Session(dovecot) as session:
        listed = [line.decode() for line in answer(session.list())]
        names = {line.split()[-1].strip('"') for line in listed if not re.search(r"\\no(select|nexistent)", line, re.I)}
        assert names == {name or "INBOX" for name in FOLDERS.values()}
        for folder, delivered in written.delivered.items():
            name = f'"{FOLDERS[folder] or "INBOX"}"'
            (status,) = answer(session.status(name, "(MESSAGES UNSEEN)"))
            unseen = sum("S" not in letters(subject) for subject in MAIL)
            assert status.endswith(b"(MESSAGES %d UNSEEN %d)" % (len(MAIL), unseen))
            answer(session.select(name, readonly=True))
            fetched = answer(session.fetch("1:*", "(FLAGS RFC822.SIZE INTERNALDATE BODY.PEEK[])"))
            found = {email.message_from_bytes(data)["Subject"]: (head, data) for head, data in fetched[::2]}
            assert sorted(found) == sorted(MAIL)
            for subject, (message, options) in MAIL.items():
                head, data = found[subject]
                assert data == message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                assert b"RFC822.SIZE %d " % delivered[subject].wire_size in head
                meant = {IMAP_FLAGS[letter] for letter in letters(subject) if letter != "P"}
                flags = {flag.decode() for flag in imaplib.ParseFlags(head)} - {"\\Recent"}
                assert flags == meant | set(options.get("keywords", []))
                mtime = int(os.stat(delivered[subject].path).st_mtime)
                assert b'INTERNALDATE "%b"' % _internal_date(mtime) in head
                assert "received_at" not in options or mtime == RECEIVED_AT


def _internal_date(seconds: int) -> bytes:
    return imaplib.Time2Internaldate(seconds).strip('"').encode()


@pytest.mark.heavy
def test_dovecot_s_folders_are_ours_too(dovecot: Dovecot, home: Path) -> None:
    """What an IMAP client creates is listed and delivered to, and what it deletes is listed no more."""

    def folders() -> list[str]:
        return asyncio.run(Maildir(home / "Maildir").folders())

    with Session(dovecot) as session:
        answer(session.create('"Gel&APY-scht.neu"'))
        assert "Gelöscht/neu" in folders()
        asyncio.run(Maildir(home / "Maildir").append(b"x: y\n\n", folder="Gelöscht/neu"))
        for path in (home / "Maildir/.Gel&APY-scht.neu/new").iterdir():
            path.chmod(0o666)  # the session is another user's
        (status,) = answer(session.status('"Gel&APY-scht.neu"', "(MESSAGES)"))
        assert status.endswith(b"(MESSAGES 1)")
        answer(session.rename('"Archive.2024"', '"Archive.2025"'))
        answer(session.delete('"a&-b"'))
        assert folders() == ["Archive/2025", "Entwürfe", "Gelöscht/neu", "台北/日本語"]


@pytest.mark.heavy
def test_dovecot_reads_names_in_utf_8(doveadm: str, home: Path) -> None:
    """Where its mail_location says UTF-8, it lists what *folder_encoding* utf-8 writes."""
    maildir = Maildir(home / "Maildir", folder_encoding="utf-8")
    asyncio.run(maildir.append(b"Subject: x\n\n", folder="Entwürfe/a&b"))
    dovecot = Dovecot(doveadm, home, layout=":UTF-8")
    with Session(dovecot) as session:
        assert any(line.endswith(b" Entw&APw-rfe.a&-b") for line in answer(session.list()))
        assert answer(session.select('"Entw&APw-rfe.a&-b"')) == [b"1"]
    assert dovecot.complaints() == []


# mutt, notmuch, mbsync.


@pytest.mark.heavy
@pytest.mark.parametrize("folder", FOLDERS, ids=[name or "INBOX" for name in FOLDERS.values()])
def test_neomutt_reads_folders(folder: str | None, written: Written, tmp_path: Path) -> None:
    """`neomutt -f` of a folder shows every message with its bytes, and its flags where they were set."""
    program, root = needed("neomutt"), written.copy(tmp_path / "m")
    messages = {subject: message.replace(b"\r\n", b"\n") for subject, (message, _) in MAIL.items()}

    def matching(pattern: str) -> bytes:
        return mutt(program, root / directory(folder), tmp_path, pattern=pattern).replace(b"\r\n", b"\n")

    everything = matching("~A")
    assert all(message in everything for message in messages.values())
    assert len(everything) == sum(map(len, messages.values()))
    for pattern, subject in {"~F": "flagged", "~Q": "flagged", "~D": "trashed", "~N ~s plain": "plain"}.items():
        assert matching(pattern) == messages[subject], pattern
    assert matching("~N ~s old") == b"", "a message with flags is not new"


@pytest.mark.heavy
def test_notmuch_reads_folders(written: Written, tmp_path: Path) -> None:
    """It indexes every message in every folder, finds it by the folder, and makes tags of its flags."""
    program, root = needed("notmuch"), written.copy(tmp_path / "m")
    (tmp_path / "config").write_text(
        f"[database]\npath={root}\n[user]\nname=a\nprimary_email=alice@example.com\n"
        "[new]\ntags=unread\nignore=maildirfolder;dovecot-keywords\n[maildir]\nsynchronize_flags=true\n"
    )

    def notmuch(*words: str) -> bytes:
        environment = {"HOME": str(tmp_path), "NOTMUCH_CONFIG": str(tmp_path / "config"), "PATH": os.environ["PATH"]}
        done = subprocess.run([program, *words], env=environment, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    assert b"Added" in notmuch("new")
    assert int(notmuch("count", "--output=files", "*")) == len(MAIL) * len(FOLDERS)
    tags = {"flagged": "flagged", "replied": "flagged", "passed": "trashed", "draft": "trashed"}
    for folder, delivered in written.delivered.items():
        term = f'folder:"{directory(folder) if folder else ""}"'
        found = notmuch("search", "--output=files", term).decode().splitlines()
        ours = {Path(receipt.path) for receipt in delivered.values()}
        assert ours <= {written.path / Path(line).relative_to(root) for line in found}
        assert all(Path(line).read_bytes() == MAIL[_subject(line)][0] for line in found)
        for tag, subject in tags.items():
            (path,) = notmuch("search", "--output=files", f"{term} and tag:{tag}").decode().splitlines()[:1]
            assert _subject(path) == subject
        seen = notmuch("search", "--output=files", f"{term} and not tag:unread").decode().splitlines()
        assert {_subject(line) for line in seen} == {subject for subject in MAIL if "S" in letters(subject)}


def _subject(path: str) -> str:
    return str(email.message_from_bytes(Path(path).read_bytes())["Subject"])


@pytest.mark.heavy
def test_mbsync_reads_folders(written: Written, tmp_path: Path) -> None:
    """Every message of every folder comes to another Maildir++, with its flags and its date."""
    program, root = needed("mbsync"), written.copy(tmp_path / "m")
    (tmp_path / "config").write_text(
        f"MaildirStore ours\nInbox {root}\nSubFolders Maildir++\n\n"
        f"MaildirStore theirs\nInbox {tmp_path / 'theirs'}\nSubFolders Maildir++\n\n"
        "Channel all\nFar :ours:\nNear :theirs:\nPatterns *\nCreate Near\nSync Pull\nCopyArrivalDate yes\nSyncState *\n"
    )

    done = subprocess.run(
        [program, "-c", tmp_path / "config", "-a"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert not re.search(rb"(?i)warning|error", done.stdout + done.stderr)
    box = mailbox.Maildir(tmp_path / "theirs", create=False)
    assert sorted(box.list_folders()) == sorted(name for name in FOLDERS.values() if name)
    for folder in FOLDERS:
        check_with_python(box.get_folder(FOLDERS[folder]) if folder else box, copied=True)
