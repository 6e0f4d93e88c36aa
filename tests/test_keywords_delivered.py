"""Messages with keywords: whatever way they come by, they have the letters that the folder's file defines for them."""

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import AppendError, Delivered, GroupCommit, Maildir, deliver
from maildir_async.disk.dotlock import Waiting
from maildir_async.disk.keywords import Keywords
from maildir_async.errors import KeywordsFullError
from maildir_async.format.keywords import key, parse_keywords
from maildir_async.testing import CrashDisk, Fault, FaultDisk
from support import Gate, contents, some, turns

LONG: Final = b"long " * 120_000


async def _stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 60_000):
        yield data[start : start + 60_000]


def _meant(path: str, defined: bytes) -> set[bytes]:
    """Return what the letters of a message stand for; KeyError for one that stands for nothing."""
    names = parse_keywords(defined)
    letters = [letter for letter in path.rpartition(":2,")[2] if letter.islower()]
    return {key(names[ord(letter) - ord("a")]) for letter in letters}


def _keywords_of(delivered: Delivered) -> set[bytes]:
    return _meant(delivered.path, Path(delivered.path).parents[1].joinpath("dovecot-keywords").read_bytes())


@pytest.mark.parametrize("message", [b"short", LONG, "stream"], ids=["short", "long", "stream"])
async def test_a_message_has_its_letters(tmp_path: Path, message: Any) -> None:
    """Its name has flags and letters, sorted, in ``cur/``; `Delivered` has what was asked for."""
    maildir = Maildir(tmp_path / "m")
    given = _stream(LONG) if message == "stream" else message
    delivered = await maildir.append(given, flags="S", keywords=["$Forwarded", "work", "WORK"])
    assert delivered.path.startswith(f"{tmp_path}/m/cur/")
    assert delivered.path.endswith(":2,Sab")
    assert (delivered.flags, delivered.keywords) == ("S", ("$Forwarded", "work"))
    assert _keywords_of(delivered) == {b"$forwarded", b"work"}
    again = await maildir.append(b"again", keywords=["Work"])
    assert again.path.endswith(":2,b")
    assert (await maildir.append(b"plain")).path.startswith(f"{tmp_path}/m/new/")


async def test_keywords_alone_send_a_message_to_cur(tmp_path: Path) -> None:
    """Only names in ``cur/`` may have letters."""
    delivered = await Maildir(tmp_path / "m").append(b"x", keywords=("k",))
    assert delivered.path.startswith(f"{tmp_path}/m/cur/")
    assert delivered.flags == ""


async def test_a_folder_has_keywords_of_its_own(tmp_path: Path) -> None:
    """Letters are of the folder that the message goes to, not of the maildir that holds it."""
    maildir = Maildir(tmp_path / "m")
    await maildir.append(b"x", keywords=["one", "two"])
    delivered = await maildir.append(b"y", folder="Archive", keywords=["two"])
    assert delivered.path.startswith(f"{tmp_path}/m/.Archive/cur/")
    assert delivered.path.endswith(":2,a")
    assert (tmp_path / "m/.Archive/dovecot-keywords").read_bytes() == b"0 two\n"


@pytest.mark.parametrize("wrong", ["$Junk", ["a b"], [""], ["x" * 51], [f"k{i}" for i in range(27)], [7], 7])
async def test_what_is_no_keyword_touches_nothing(tmp_path: Path, wrong: Any) -> None:
    """An invalid keyword is told before anything is on the disk."""
    with pytest.raises((ValueError, TypeError), match="keywords"):
        await Maildir(tmp_path / "m").append(b"x", keywords=wrong)
    with pytest.raises((ValueError, TypeError), match="keywords"):
        await Maildir(tmp_path / "m").append(_stream(b"x"), keywords=wrong)
    assert not (tmp_path / "m").exists()


async def test_each_maildir_of_a_fan_out_has_letters_of_its_own(tmp_path: Path) -> None:
    """One file, linked into several maildirs, has in each the letter that is defined there."""
    maildirs = [Maildir(tmp_path / name) for name in ("one", "two", "three")]
    await maildirs[1].append(b"before", keywords=["other"])
    for message in (b"short", _stream(LONG)):
        outcomes = await deliver(message, maildirs, keywords=["work"])
        paths = [outcome.delivered.path for outcome in outcomes if outcome.delivered is not None]
        assert [path.rpartition(",")[2] for path in paths] == ["a", "b", "a"]
        assert len({os.stat(path).st_ino for path in paths}) == 1


@pytest.mark.parametrize("step", some([11, 1], 2))
async def test_a_maildir_that_is_removed_meanwhile_defines_its_letters_again(tmp_path: Path, step: int) -> None:
    """Whenever one of several maildirs is removed: what is there has letters that are defined there."""
    for at in itertools.count(1, step):
        root = tmp_path / str(at)
        disk, commit = FaultDisk(), GroupCommit()  # one, whose thread removes it: nobody is at work meanwhile
        a, b = (Maildir(root / name, disk=disk, commit=commit) for name in ("a", "b"))
        for maildir in (a, b):
            await maildir.append(b"first use")
        disk.calls.clear()
        disk.faults.append(Fault("", nth=at, gate=partial(shutil.rmtree, root / "b")))
        await deliver(b"x", [a, b], keywords=["k"])
        for maildir in (a, b):
            for path in Path(maildir.path, "cur").glob("*"):
                assert _meant(str(path), Path(maildir.path, "dovecot-keywords").read_bytes()) == {b"k"}
        if len(disk.calls) < at:
            assert at > 30
            return


async def test_a_maildir_of_a_fan_out_that_has_no_letter_left_fails_alone(tmp_path: Path) -> None:
    """Full keywords in one maildir, the first or another, keep the message from no other."""
    maildirs = [Maildir(tmp_path / name) for name in ("one", "two", "three")]
    for full, long in ((0, False), (1, False), (2, False), (0, True)):
        await maildirs[full].append(b"before", keywords=[f"k{i}" for i in range(26)])
        outcomes = await deliver(_stream(LONG * 4) if long else b"short", maildirs, keywords=["new"])
        assert [isinstance(outcome.error, KeywordsFullError) for outcome in outcomes] == [at == full for at in range(3)]
        assert [isinstance(outcome.delivered, Delivered) for outcome in outcomes] == [at != full for at in range(3)]
        for maildir in maildirs:
            assert contents(maildir.path)["tmp"] == []
            Path(maildir.path, "dovecot-keywords").unlink()


async def test_the_helper_process_gives_letters_too(tmp_path: Path) -> None:
    """The plan travels, and so does the error of a folder that has no letter left."""
    async with contextlib.aclosing(GroupCommit(helper_process=True)) as commit:
        maildir = Maildir(tmp_path / "m", commit=commit)
        delivered = await maildir.append(b"x", flags="F", keywords=[f"k{i}" for i in range(25)])
        assert delivered.path.endswith(":2,F" + "abcdefghijklmnopqrstuvwxy")
        assert delivered.keywords == tuple(f"k{i}" for i in range(25))
        delivered = await maildir.append(_stream(LONG), keywords=["last"])
        assert delivered.path.endswith(":2,z")
        with pytest.raises(KeywordsFullError, match="'more'") as caught:
            await maildir.append(b"y", keywords=["k1", "more"])
        assert isinstance(caught.value, ValueError)
    assert contents(tmp_path / "m")["tmp"] == []


async def test_many_at_once_lose_no_keyword(tmp_path: Path) -> None:
    """Messages of one turn, of several objects for one maildir, all mean what was asked for."""
    maildirs = [Maildir(tmp_path / "m", commit=GroupCommit()) for _ in range(3)]
    done = await asyncio.gather(
        *(maildirs[n % 3].append(b"%d" % n, keywords=[f"k{n % 13}", f"j{n % 13}"]) for n in range(60))
    )
    for number, delivered in enumerate(done):
        assert _keywords_of(delivered) == {b"k%d" % (number % 13), b"j%d" % (number % 13)}


async def test_a_full_folder_refuses_for_good(tmp_path: Path) -> None:
    """The 27th keyword of a folder is a permanent failure of its message, and of no other."""
    maildir = Maildir(tmp_path / "m")
    await maildir.append(b"x", keywords=[f"k{i}" for i in range(26)])
    results = await asyncio.gather(
        maildir.append(b"1", keywords=["k3"]),
        maildir.append(b"2", keywords=["27th"]),
        maildir.append(b"3"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [Delivered, KeywordsFullError, Delivered]
    assert contents(tmp_path / "m")["tmp"] == []


@pytest.mark.every_loop
async def test_a_lock_that_does_not_go_fails_its_message_alone(tmp_path: Path) -> None:
    """What waits for another's lock is left behind, and fails for now; the mail beside it is delivered meanwhile."""
    maildir = Maildir(tmp_path / "m")
    await maildir.append(b"x", keywords=["known"])
    (tmp_path / "m/dovecot-uidlist.lock").touch()
    waiting = threading.Event()
    gate = threading.Event()

    def sleep(seconds: float) -> None:
        waiting.set()
        gate.wait(30)

    maildir.mailbox._keywords = Keywords(
        maildir.mailbox.directories, 0o600, Waiting(1.0, elapsed=lambda: 9.0 if gate.is_set() else 0.0, sleep=sleep)
    )
    locked = asyncio.ensure_future(maildir.append(b"locked", keywords=["new"]))
    while not waiting.is_set():
        await asyncio.sleep(0.001)
    others = await asyncio.gather(maildir.append(b"y", keywords=["known"]), maildir.append(b"z"))
    assert all(isinstance(other, Delivered) for other in others)
    assert not locked.done()
    gate.set()
    with pytest.raises(AppendError, match=r"dovecot-uidlist\.lock: another has the lock") as caught:
        await locked
    assert (caught.value.errno, caught.value.stage, caught.value.temporary) == (errno.EAGAIN, "create", True)
    assert str(tmp_path) not in caught.value.smtp_reply
    assert contents(tmp_path / "m")["tmp"] == []
    assert (tmp_path / "m/dovecot-uidlist.lock").exists()


@pytest.mark.every_loop
async def test_a_cancellation_waits_for_the_letters(tmp_path: Path) -> None:
    """Whoever is cancelled while his message waits in a round learns of it when nothing acts for it any more."""
    gate = Gate()
    disk = FaultDisk(Fault("create", gate=gate, path="dovecot-keywords.lock"))
    maildir = Maildir(tmp_path / "m", disk=disk)
    appending = asyncio.ensure_future(maildir.append(b"x", keywords=["k"]))
    await gate.reached()
    for _ in range(3):
        appending.cancel()
        await turns()
        assert not appending.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await appending
    found = contents(tmp_path / "m")
    assert (found["tmp"], found["cur"]) == ([], [b"x"])
    assert (tmp_path / "m/dovecot-keywords").read_bytes() == b"0 k\n"
    assert not list((tmp_path / "m").glob("*.lock"))


async def test_a_fault_at_every_call(tmp_path: Path) -> None:
    """Whatever call fails, the message has the right letters, or is not there; ``tmp/`` is empty, no lock stays."""
    for at in itertools.count(1):
        root = tmp_path / str(at)
        fault = Fault("", errno.EIO, nth=at)
        maildir = Maildir(root, disk=FaultDisk(fault), commit=GroupCommit())
        try:
            delivered = await maildir.append(b"x", keywords=["k", "j"])
        except AppendError as exc:
            path = getattr(exc, "path", None)
            assert contents(root).get("cur", []) == ([] if path is None else [b"x"])
        else:
            path = delivered.path
        if path is not None:
            assert _meant(path, (root / "dovecot-keywords").read_bytes()) == {b"k", b"j"}
        assert contents(root).get("tmp", []) == []
        assert not list(root.glob("*.lock"))
        if fault.seen < at:
            assert at > 30
            return


def test_power_cut_at_every_call() -> None:
    """Whenever the power goes, no message has a letter that stands for nothing, or for something else."""
    asked = [["one"], ["two", "one"], [], ["three"]]

    async def run(disk: CrashDisk) -> list[Any]:
        maildir = Maildir("/var/mail/alice", disk=disk, commit=GroupCommit())
        # A lock that cannot be removed without power is not waited for.
        maildir.mailbox._keywords = Keywords(maildir.mailbox.directories, 0o600, Waiting(0.0))
        done: list[Any] = []
        for number, keywords in enumerate(asked):
            done += await asyncio.gather(maildir.append(b"%d" % number, keywords=keywords), return_exceptions=True)
        return done

    for cut_at in itertools.count(1):
        disk = CrashDisk(cut_at=cut_at)
        results = asyncio.run(run(disk))
        for found in disk.after_power_cut():
            defined = found.get("/var/mail/alice/dovecot-keywords", b"")
            for path, content in found.items():
                if "/cur/" in path:
                    assert _meant(path, defined) == {key(name) for name in asked[int(content)]}
            assert all(result.path in found for result in results if isinstance(result, Delivered))
        assert disk.open_files == 0
        if disk.changes < cut_at:
            assert all(isinstance(result, Delivered) for result in results)
            assert cut_at > 60
            return


# Dovecot, alive.


class _Imap:
    """A session with Dovecot's IMAP server, which doveadm starts without a daemon, for the maildir in *home*."""

    def __init__(self, home: Path) -> None:
        configuration = home / "dovecot.conf"
        if not configuration.exists():
            settings = {
                "base_dir": home / "run",
                "state_dir": home / "state",
                "log_path": home / "log",
                "mail_location": f"maildir:{home}/Maildir",
                "stats_writer_socket_path": "",  # there is nobody to write statistics to
                "ssl": "no",
            }
            configuration.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
            (home / "log").touch()
            if os.getuid() == 0:
                for path in (home, *home.rglob("*")):
                    os.chown(path, 65534, 65534)
        user: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
        self._process = subprocess.Popen(
            ["doveadm", "-c", str(configuration), "exec", "imap"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"HOME": str(home), "USER": "nobody", "PATH": os.environ["PATH"]},
            **user,
        )

    def say(self, command: bytes) -> list[bytes]:
        """Return the lines of the answer, which has to be OK."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(b"t " + command + b"\r\n")
        stdin.flush()
        lines: list[bytes] = []
        while not lines or not lines[-1].startswith(b"t "):
            lines.append(stdout.readline())
            assert lines[-1], "Dovecot has ended"
        assert lines[-1].startswith(b"t OK"), lines
        return lines[:-1]

    def end(self) -> None:
        self.say(b"LOGOUT")
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that another user may enter, and Dovecot is here for."""
    if shutil.which("doveadm") is None or shutil.which("dovecot") is None:
        pytest.skip("NOT TESTED WITH DOVECOT: it is not installed (apt-get install dovecot-imapd)")
    version = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if not version.startswith("2.3."):
        pytest.skip(f"NOT TESTED WITH DOVECOT {version}: its configuration is another language than that of 2.3")
    path = Path(tempfile.mkdtemp(prefix="maildir-async-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_live_dovecot_that_adds_keywords_at_once_loses_none(home: Path) -> None:
    """Two IMAP sessions and we add eight keywords each, at once: all are there, on the messages they were given to."""

    async def append(*keywords: list[str]) -> None:
        maildir = Maildir(home / "Maildir")
        for each in keywords:
            await maildir.append(" ".join(each).encode() + b"\n", keywords=each)

    asyncio.run(append(*[[]] * 16))

    def client(number: int) -> None:
        session = _Imap(home)
        session.say(b"SELECT INBOX")
        for at in range(8):
            session.say(b"STORE %d +FLAGS (d%d.%d)" % (number * 8 + at + 1, number, at))
        session.end()

    _Imap(home).end()  # by which all is nobody's
    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    asyncio.run(append(*[[f"o{at}", f"O{7 - at}"] for at in range(8)]))
    for thread in threads:
        thread.join()

    session = _Imap(home)
    session.say(b"SELECT INBOX")
    flags = [
        set(line.replace(b"\\Recent", b"").partition(b"(FLAGS (")[2].rstrip(b")\r\n").lower().split())
        for line in session.say(b"FETCH 1:* FLAGS")
        if b"FETCH" in line
    ]
    session.end()
    assert flags[:16] == [{b"d%d.%d" % (number, at)} for number in range(2) for at in range(8)]
    assert sorted(map(sorted, flags[16:])) == sorted(sorted({b"o%d" % at, b"o%d" % (7 - at)}) for at in range(8))
    assert [line for line in (home / "log").read_text().splitlines() if ": Info: " not in line] == []
    assert not list((home / "Maildir").glob("*.lock"))


@pytest.mark.parametrize("old", [None, b"V\t2\n\nother\n", b"other\n"])
def test_dovecot_shows_what_was_subscribed_to(home: Path, old: bytes | None) -> None:
    """A folder with a name of several parts, not all ASCII, is among those that IMAP clients ask for."""
    root = home / "Maildir"
    maildir = Maildir(root)
    asyncio.run(maildir.append(b"x"))
    if old is not None:
        (root / "subscriptions").write_bytes(old)
    for folder in ("Archiv/B\u00fccher", "INBOX"):
        asyncio.run(maildir.create_folder(folder, subscribe=True))
    session = _Imap(home)
    found = {line.split()[-1].strip(b'"') for line in session.say(b'LSUB "" "*"')}
    session.end()
    assert {b"Archiv.B&APw-cher", b"INBOX"} <= found
    assert (root / "subscriptions").read_bytes().startswith(old or b"V\t2\n\n")
