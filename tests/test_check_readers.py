"""``check`` and ``info`` on mailboxes that Dovecot and Courier have made, and Dovecot on one that has been repaired."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

import test_readers
from maildir_async.disk.directories import Directories
from maildir_async.disk.posix import PosixDisk
from maildir_async.format.problems import CheckOptions, Problem
from maildir_async.mailbox.check import Check
from maildir_async.mailbox.inspection import inspect
from test_readers import Dovecot, needed

home = test_readers.home
doveadm = test_readers.doveadm

MESSAGE: Final = b"From: alice@example.com\r\nSubject: check\r\n\r\nbody %d\r\n"
REPAIR: Final = CheckOptions(quiet_s=0.0, repair=True, links_age_s=-1.0, lock_patience_s=0.0)


def check(root: Path, options: CheckOptions) -> list[Problem]:
    """Check a maildir."""
    found: list[Problem] = []
    Check(Directories(str(root), disk=PosixDisk(), create=False), options, found.append, lambda: None).run()
    return found


def filled(dovecot: Dovecot) -> None:
    """Have Dovecot's IMAP server make folders, and store, flag and copy messages."""
    commands = [b"a CREATE Work.2024", b"b CREATE &AOQ-"]
    for number in range(6):
        message = MESSAGE % number
        where = (b"INBOX", b"Work.2024")[number % 2]
        commands.append(b"c APPEND %s (\\Seen $Work%d) {%d+}\r\n%s" % (where, number % 3, len(message), message))
    commands += [b"d SELECT INBOX", b"e STORE 1 +FLAGS (\\Flagged custom)", b"f COPY 1:2 &AOQ-"]
    commands += [b"g STORE 3 -FLAGS (\\Seen)", b"h LOGOUT"]
    answered, complaints = dovecot.imap(b"".join(command + b"\r\n" for command in commands))
    assert complaints == []
    assert not re.findall(rb"(?m)^[a-i] (?:NO|BAD) .*", answered)


@pytest.mark.heavy
def test_what_dovecot_has_made_is_clean(doveadm: str, home: Path) -> None:
    """A mailbox of Dovecot's, with folders, keywords and copies, has no problem; info counts what Dovecot counts."""
    (home / "Maildir").mkdir(mode=0o700)
    dovecot = Dovecot(doveadm, home, layout=":LAYOUT=maildir++")
    filled(dovecot)
    found = check(home / "Maildir", CheckOptions(quiet_s=0.0))
    assert [problem for problem in found if problem.level == "problem"] == []
    report = inspect(
        Directories(str(home / "Maildir"), disk=PosixDisk(), create=False), "utf-7", lambda: None, by_files=False
    )
    counts = {each.folder: (each.messages, each.flags.get("S", 0)) for each in report.folders}
    assert counts == {None: (3, 2), "Work/2024": (3, 3), "ä": (2, 2)}
    assert {"custom", "$Work0", "$Work2"} <= set(report.folders[0].keywords)


@pytest.mark.heavy
def test_dovecot_reads_what_has_been_repaired(doveadm: str, home: Path) -> None:
    """Whatever sizes the names had, after a repair Dovecot reads each message with its flags, and is content."""
    root = home / "Maildir"
    root.mkdir(mode=0o700)
    dovecot = Dovecot(doveadm, home)
    filled(dovecot)
    for number, path in enumerate(sorted((root / "cur").iterdir())):
        key, _, info = path.name.partition(":")
        path.rename(path.with_name(f"{key.partition(',')[0]}x,S={7 + number},W=9:{info}"))
    before = dovecot.fetch("flags")
    assert {problem.kind for problem in check(root, REPAIR) if problem.repaired} == {"size"}
    answered, complaints = dovecot.imap(
        b"a SELECT INBOX\r\nb FETCH 1:* (RFC822.SIZE FLAGS BODY.PEEK[])\r\nc LOGOUT\r\n"
    )
    assert complaints == []
    for number in (0, 2, 4):
        assert MESSAGE % number in answered
    assert answered.count(b"RFC822.SIZE %d" % len(MESSAGE % 0)) == 3

    def flags(messages: list[dict[str, str]]) -> list[set[str]]:
        return sorted((set(message["flags"].split()) - {"\\Recent"} for message in messages), key=sorted)

    assert flags(dovecot.fetch("flags")) == flags(before)
    assert [problem for problem in check(root, CheckOptions(quiet_s=0.0)) if problem.level == "problem"] == []


@pytest.mark.heavy
def test_what_courier_has_made_is_clean(tmp_path: Path) -> None:
    """A maildir of maildirmake's and deliverquota's has no problem; its quota, broken, is counted as Courier counts."""
    deliverquota = needed("deliverquota")
    maildirmake = needed("maildirmake")
    root = tmp_path / "m"
    previous = os.umask(0o077)
    try:
        subprocess.run([maildirmake, root], check=True, timeout=60)
        subprocess.run([maildirmake, "-f", "Work", root], check=True, timeout=60)
        for box in (root, root / ".Work"):
            for number in range(3):
                command = [deliverquota, str(box), "100000S,100C"]
                subprocess.run(command, input=MESSAGE % number, check=True, timeout=60)
    finally:
        os.umask(previous)
    assert [problem for problem in check(root, CheckOptions(quiet_s=0.0)) if problem.level == "problem"] == []
    written = (root / "maildirsize").read_bytes()
    with (root / "maildirsize").open("ab") as file:
        file.write(b"-5 -1\n")
    (problem,) = (each for each in check(root, REPAIR) if each.level == "problem")
    assert (problem.kind, problem.repaired) == ("quota", True)
    size = sum(int(line.split()[0]) for line in written.splitlines()[1:])
    assert (root / "maildirsize").read_bytes() == b"100000S,100C\n%d 6\n" % size
