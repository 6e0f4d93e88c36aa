"""What is delivered is what mail readers see: Python's mailbox module, mutt and neomutt, and Dovecot.

The programs are the real ones. Where one is missing its test is skipped and says so; `.ci/run` installs them.
"""

import asyncio
import json
import mailbox
import os
import pty
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import Delivered, Maildir

#: Where Debian has a program, if not in a package of its name.
PACKAGES: Final = {
    "deliverquota": "maildrop",
    "doveadm": "dovecot-imapd",
    "dovecot": "dovecot-imapd",
    "maildirmake.courier": "courier-base",
    "maildirmake.maildrop": "maildrop",
    "mbsync": "isync",
}

RECEIVED_AT: Final = 981_173_106  # 2001-02-03 04:05:06 UTC

PLAIN = b"From: alice@example.com\nSubject: plain\n\none\ntwo \xc3\xa9\n"
CRLF = b"From: alice@example.com\r\nSubject: crlf\r\n\r\none\r\n.two\r\n"
FLAGGED = b"From: alice@example.com\nSubject: flagged\n\nno line end"
OLD = b"From: alice@example.com\nSubject: old\n\nold\r\nand mixed\n"
LONG = b"From: alice@example.com\nSubject: long\n\n" + b"0123456789\n" * 100_000

#: Subject → message, options of append, and the flags that Dovecot shows for them.
MAIL: Final[dict[str, tuple[bytes, dict[str, Any], set[str]]]] = {
    "plain": (PLAIN, {}, set()),
    "crlf": (CRLF, {}, set()),
    "flagged": (FLAGGED, {"flags": "SF"}, {"\\Seen", "\\Flagged"}),
    "answered": (b"Subject: answered\n\n", {"flags": "RTD"}, {"\\Answered", "\\Deleted", "\\Draft"}),
    "old": (OLD, {"received_at": RECEIVED_AT}, set()),
    "long": (LONG, {}, set()),
}


def deliver(path: Path) -> dict[str, Delivered]:
    """Deliver all of `MAIL`, each as its options say."""

    async def all_of_it() -> dict[str, Delivered]:
        maildir = Maildir(path)
        return {subject: await maildir.append(message, **options) for subject, (message, options, _) in MAIL.items()}

    return asyncio.run(all_of_it())


def needed(program: str) -> str:
    """Return where *program* is, or skip the test."""
    found = shutil.which(program)
    if found is None:
        package = PACKAGES.get(program, program)
        pytest.skip(f"NOT TESTED WITH {program.upper()}: it is not installed (apt-get install {package})")
    return found


def test_python_s_mailbox_reads_what_was_delivered(tmp_path: Path) -> None:
    """`mailbox.Maildir` finds each message under the key that `Delivered` has, with its bytes, flags and date."""
    delivered = deliver(tmp_path / "m")

    box = mailbox.Maildir(tmp_path / "m", create=False)

    assert set(box.keys()) == {found.key for found in delivered.values()}
    for subject, (message, options, _) in MAIL.items():
        found = box[delivered[subject].key]
        assert box.get_bytes(delivered[subject].key) == message
        assert found.get_flags() == "".join(sorted(options.get("flags", "")))
        assert found.get_subdir() == ("cur" if "flags" in options else "new")
        assert found["Subject"] == subject
    assert box[delivered["old"].key].get_date() == RECEIVED_AT


# mutt, which has no batch mode: it runs on a pseudo-terminal, and is typed to.


def mutt(program: str, maildir: Path, home: Path, *, pattern: str) -> bytes:
    """Return the messages that match *pattern*, as mutt hands them to a program, one after the other."""
    out = home / "out"
    out.unlink(missing_ok=True)
    keys = f"<tag-pattern>{pattern}<enter><tag-prefix-cond><pipe-message>cat >> {out}<enter><end-cond><exit>"
    master, terminal = pty.openpty()
    with open(master, "rb", buffering=0):
        # Neither decoded, nor separated, nor asked about.
        settings = f"set pipe_split pipe_sep='' wait_key=no folder={home} tmpdir={home} sort=mailbox-order"
        process = subprocess.Popen(
            [program, "-n", "-F", "/dev/null", "-R", "-f", maildir, "-e", settings, "-e", f'push "{keys}"'],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "vt100", "TZ": "UTC"},
        )
        os.close(terminal)
        shown = b""
        try:
            deadline = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < deadline:
                if select.select([master], [], [], 0.1)[0]:
                    try:
                        shown += os.read(master, 65536)
                    except OSError:  # EIO: its end of the terminal is closed
                        break
            assert process.wait(5) == 0, shown
        finally:
            process.kill()
            process.wait()
    return out.read_bytes() if out.exists() else b""


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["mutt", "neomutt"])
def test_mutt_reads_what_was_delivered(name: str, tmp_path: Path) -> None:
    """`mutt -f MAILDIR` shows every message with its bytes, and its flags where they were set."""
    program = needed(name)
    deliver(tmp_path / "m")

    def matching(pattern: str) -> bytes:
        return mutt(program, tmp_path / "m", tmp_path, pattern=pattern).replace(b"\r\n", b"\n")

    # The line that ends a header is written by mutt, as LF.
    messages = {subject: message.replace(b"\r\n", b"\n") for subject, (message, _, _) in MAIL.items()}
    everything = matching("~A")
    assert all(message in everything for message in messages.values())
    assert len(everything) == sum(map(len, messages.values()))
    by_pattern = {"~F": "flagged", "~Q": "answered", "~D": "answered", "~N ~s crlf": "crlf"}
    for pattern, subject in by_pattern.items():
        assert matching(pattern) == messages[subject], pattern
    assert matching("~N ~s flagged") == b"", "a message with flags is not new"


# Dovecot, without its daemon: doveadm opens the mailbox as its imap server would.


class Dovecot:
    """A private configuration, for a maildir at *home*/Maildir. Dovecot refuses to serve uid 0."""

    def __init__(self, doveadm: str, home: Path, *, layout: str = "") -> None:
        self._doveadm = doveadm
        self._home = home
        self._user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
        settings = {
            "base_dir": home / "run",
            "state_dir": home / "state",
            "log_path": home / "log",
            "mail_location": f"maildir:{home}/Maildir{layout}",
            "stats_writer_socket_path": "",  # there is nobody to write statistics to
            "ssl": "no",
        }
        (home / "dovecot.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        (home / "log").touch()
        if self._user:
            for path in (home, *home.rglob("*")):
                os.chown(path, 65534, 65534)

    def fetch(self, fields: str, *query: str) -> list[dict[str, str]]:
        """Return what ``doveadm fetch`` says of the messages."""
        done = self._run("-f", "json", "fetch", fields, "mailbox", "INBOX", *(query or ["ALL"]))
        assert (done.returncode, done.stderr) == (0, b"")
        found: list[dict[str, str]] = json.loads(done.stdout)
        return found

    def imap(self, commands: bytes) -> tuple[bytes, list[bytes]]:
        """Return what its IMAP server answers and complains of: it compares what it reads with the names."""
        done = self._run("exec", "imap", input=commands)
        if b"imap) failed: No such file" in done.stderr:
            pytest.skip("NOT TESTED WITH DOVECOT'S IMAP SERVER: it is not installed (apt-get install dovecot-imapd)")
        return done.stdout, [line for line in done.stderr.splitlines() if b": Info: " not in line] + self.complaints()

    def complaints(self) -> list[bytes]:
        """Return what its log has beside the usual."""
        return [line for line in (self._home / "log").read_bytes().splitlines() if b": Info: " not in line]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start doveadm, to be talked to. What it says beside that is in the log."""
        with open(self._home / "log", "ab") as log:
            return subprocess.Popen(
                self._command(*arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                **self._user,
            )

    def _run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self._command(*arguments), env=self._environment, capture_output=True, timeout=60, **self._user, **options
        )

    def _command(self, *arguments: str) -> list[str]:
        return [self._doveadm, "-c", str(self._home / "dovecot.conf"), *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        return {"HOME": str(self._home), "USER": "nobody", "PATH": os.environ["PATH"], "TZ": "UTC"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that another user may enter, which a tmp_path of root's is not. Short, for Dovecot's sockets."""
    path = Path(tempfile.mkdtemp(prefix="maildir-async-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def doveadm() -> str:
    program = needed("doveadm")
    version = subprocess.run(
        [needed("dovecot"), "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not version.startswith("2.3."):
        pytest.skip(f"NOT TESTED WITH DOVECOT {version}: its configuration is another language than that of 2.3")
    return program


@pytest.mark.heavy
def test_dovecot_reads_what_was_delivered(doveadm: str, home: Path) -> None:
    """Dovecot shows every message with our sizes, flags, date and bytes, in our order."""
    delivered = deliver(home / "Maildir")
    dovecot = Dovecot(doveadm, home)

    found = dovecot.fetch("uid hdr.subject size.physical size.virtual flags date.received")

    assert [message["hdr.subject"] for message in found] == list(MAIL), "numbered in the order of delivery"
    for message in found:
        subject = message["hdr.subject"]
        ours = delivered[subject]
        assert (int(message["size.physical"]), int(message["size.virtual"])) == (ours.size, ours.wire_size)
        assert set(message["flags"].split()) - {"\\Recent"} == MAIL[subject][2]
        (text,) = dovecot.fetch("text", "uid", message["uid"])
        assert text["text"].encode() == MAIL[subject][0]
    assert {message["date.received"] for message in found if message["hdr.subject"] == "old"} == {"2001-02-03 04:05:06"}


@pytest.mark.heavy
def test_dovecot_s_imap_server_serves_what_was_delivered(doveadm: str, home: Path) -> None:
    """IMAP has every message in RFC822.SIZE octets, which is our wire size, and nothing to complain of our names."""
    delivered = deliver(home / "Maildir")
    dovecot = Dovecot(doveadm, home)

    served, complaints = dovecot.imap(b"a SELECT INBOX\r\nb FETCH 1:* (RFC822.SIZE BODY.PEEK[])\r\nc LOGOUT\r\n")

    assert complaints == []
    for number, (subject, (message, _, _)) in enumerate(MAIL.items(), start=1):
        size = delivered[subject].wire_size
        wire = message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        assert b"* %d FETCH (RFC822.SIZE %d BODY[] {%d}\r\n%b)\r\n" % (number, size, size, wire) in served


@pytest.mark.heavy
def test_dovecot_would_have_complained_about_a_wrong_size(doveadm: str, home: Path) -> None:
    """The silence of the log means something: a message whose W is too great is complained about."""
    path = Path(deliver(home / "Maildir")["plain"].path)
    path.rename(path.with_name(path.name.replace(",W=", ",W=1")))
    dovecot = Dovecot(doveadm, home)

    _, complaints = dovecot.imap(b"a SELECT INBOX\r\nb FETCH 1 (RFC822.SIZE BODY.PEEK[])\r\nc LOGOUT\r\n")

    assert b"wrong W value" in b"".join(complaints)
