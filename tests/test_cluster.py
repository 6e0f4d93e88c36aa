"""The rig of many machines finds what it looks for: each fault is planted in files that are like a volume's."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.checks import (
    compare,
    count_quota,
    differences,
    is_put_off,
    is_unknowable,
    is_without_quorum,
    read,
    waits,
)
from cluster.mail import MAILDIRS, Note, message, name_of
from look import until

DELIVERED = Note("w0-1", "keywords", "inbox", "", ("$Forwarded",), "acknowledged", "key", "", 1.0, 3.0)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with one acknowledged message, with a keyword."""
    for name in ("tmp", "new", "cur"):
        (tmp_path / "inbox" / name).mkdir(parents=True)
    (tmp_path / "inbox" / "dovecot-keywords").write_text("0 $Forwarded\n")
    (tmp_path / "inbox" / "cur" / "key:2,a").write_bytes(message("w0-1", 100))
    return tmp_path


def judged(volume: Path, *notes: Note) -> list[str]:
    copies, faults, in_tmp = read(volume, MAILDIRS)
    return faults + in_tmp + compare(notes, copies)


def test_what_is_right_is_right(volume: Path) -> None:
    """What was acknowledged, refused or uncertain, and is there or not as it may be, is no fault."""
    refused = replace(DELIVERED, name="w0-2", outcome="refused", key="")
    uncertain = replace(DELIVERED, name="w0-3", outcome="uncertain", key="")
    assert judged(volume, DELIVERED, refused, uncertain) == []
    assert waits([DELIVERED, refused]) == (2.0, 2.0, 2.0)
    assert Note.of(DELIVERED.line()) == DELIVERED


@pytest.mark.parametrize(
    ("note", "fault"),
    [
        (replace(DELIVERED, name="w0-2"), "lost: w0-2"),
        (replace(DELIVERED, outcome="refused", key=""), "though refused: w0-1"),
        (replace(DELIVERED, folder="Archive/2026"), "in the inbox: w0-1"),
        (replace(DELIVERED, keywords=()), "keywords ['$Forwarded']: w0-1"),
        (replace(DELIVERED, key="other"), "key key, and other was told"),
    ],
)
def test_what_is_not_as_it_was_told_is_found(volume: Path, note: Note, fault: str) -> None:
    """Lost, there though refused, in another folder, with other keywords or another key: each is a fault."""
    assert any(fault in found for found in judged(volume, note))


def test_what_nobody_could_know_is_no_fault(volume: Path) -> None:
    """A message that is there though its rename was refused is none without a quorum, and is a fault at other times."""
    reason = "AppendError: /m: publish failed: Transport endpoint is not connected"
    note = replace(DELIVERED, outcome="refused", key="", reason=reason)
    copies, _, _ = read(volume, MAILDIRS)
    assert is_without_quorum(note)
    assert compare([note], copies) == []
    other = replace(note, reason="AppendError: /m: publish failed: Input/output error")
    assert not is_without_quorum(other)
    assert "though refused" in compare([other], copies)[0]
    assert not is_unknowable(replace(note, reason=reason.replace("publish", "sync")))
    assert not is_unknowable(replace(note, outcome="acknowledged"))


def test_a_lock_that_a_busy_disk_holds_is_no_fault() -> None:
    """A message with keywords that is put off since another has the lock is counted; one of another kind is a fault."""
    reason = "AppendError: /m: create failed: dovecot-uidlist.lock: another has the lock"
    note = replace(DELIVERED, outcome="refused", key="", reason=reason)
    assert is_put_off(note)
    assert not is_put_off(replace(note, kind="bytes"))
    assert not is_put_off(replace(note, reason="AppendError: /m: create failed: Input/output error"))
    assert not is_put_off(replace(note, outcome="acknowledged"))


def test_torn_double_and_left_behind_are_found(volume: Path) -> None:
    """A torn message, a second copy, a second of one key, a file in tmp/ and a lock are faults."""
    inbox = volume / "inbox"
    (inbox / "new" / "torn").write_bytes(message("w0-9", 100)[:-1])
    (inbox / "new" / "again").write_bytes(message("w0-1", 100))
    (inbox / "new" / "key").write_bytes(message("w0-8", 100))
    (inbox / "tmp" / "left").touch()
    (inbox / "dovecot-keywords.lock").touch()
    found = "\n".join(judged(volume, DELIVERED))
    for fault in ("torn: inbox/ torn", "2 times: w0-1", "2 of one key: inbox key", "nobody was told of w0-8"):
        assert fault in found
    assert "inbox/ left" in found
    assert "dovecot-keywords.lock is left" in found


def test_bricks_that_differ_are_found(tmp_path: Path) -> None:
    """A file that one brick has and another has not, or has otherwise, is a fault."""
    bricks = [tmp_path / "a", tmp_path / "b"]
    for brick in bricks:
        (brick / "inbox" / "new").mkdir(parents=True)
        (brick / "inbox" / "new" / "same").write_bytes(b"same")
    assert differences(bricks, MAILDIRS) == []
    (bricks[0] / "inbox" / "new" / "other").write_bytes(b"a")
    (bricks[1] / "inbox" / "new" / "other").write_bytes(b"b")
    (bricks[1] / "inbox" / "new" / "more").touch()
    assert differences(bricks, MAILDIRS) == [
        "bricks 0 and 1: inbox/new/more is on one of them",
        "bricks 0 and 1 differ in inbox/new/other",
    ]


def test_a_wrong_quota_is_found(volume: Path) -> None:
    """Sums of maildirsize that are not those of the messages are a fault."""
    for name in ("tmp", "new", "cur"):
        (volume / "limited" / name).mkdir(parents=True)
    data = message("w0-5", 10)
    (volume / "limited" / "new" / "one").write_bytes(data)
    copies, _, _ = read(volume, MAILDIRS)
    (volume / "limited" / "maildirsize").write_text(f"1000S\n{len(data)} 1\n")
    assert count_quota(volume, copies) == (0, [])
    (volume / "limited" / "maildirsize").write_text("1000S\n0 0\n")  # one that a count elsewhere has lost
    assert count_quota(volume, copies) == (1, [])
    for wrong in (f"{len(data)} 1\n0 1\n", f"{len(data) + 1} 1\n", "0 -99\n"):
        (volume / "limited" / "maildirsize").write_text(f"1000S\n{wrong}")
        assert "counts" in count_quota(volume, copies)[1][0]
    (volume / "limited" / "maildirsize").unlink()
    assert "no maildirsize" in count_quota(volume, copies)[1][0]


def test_a_message_says_what_it_is() -> None:
    """A message has its name as long as it is whole, and none otherwise."""
    data = message("w0-1", 1000)
    assert name_of(data) == "w0-1"
    for wrong in (data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1]), b"", b"other\n\n"):
        assert name_of(wrong) is None


def _commands_with(text: str) -> list[bytes]:
    found = list[bytes]()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            found += [command] if os.fsencode(text) in command else []
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_a_rig_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A signal amid the mail ends daemon, bricks, mounts and writers, and removes the directory, but for SIGKILL."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "tests.cluster"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as rig:
        until(lambda: rig.poll() is not None or any(tmp_path.glob("*/notes/w0")), 120)
        if rig.poll() == 0:
            assert rig.stdout is not None
            pytest.skip(rig.stdout.read().decode())
        assert any(b"glusterfsd" in command for command in _commands_with(str(tmp_path)))
        rig.send_signal(number)
        assert rig.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    until(lambda: not _commands_with(str(tmp_path)), 30)
    assert os.listdir(tmp_path) == [] or number == signal.SIGKILL
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
