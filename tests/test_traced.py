"""The rig of kills and faults by itself: its checks see what they are for, and it kills where it says."""

import shutil
import signal
from pathlib import Path

import pytest

from traced.checks import wrong_after, wrong_with
from traced.faults import fail_everywhere
from traced.kills import kill_everywhere
from traced.real import REAL, MissingError
from traced.scenarios import SCENARIOS, message
from traced.traced import CALLS, run

ALONE = SCENARIOS["alone"]

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="apt-get install strace")


def _maildir(place: Path, **found: bytes) -> Path:
    for name in ("tmp", "new", "cur"):
        (place / "m" / name).mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        (place / "m" / "new" / name).write_bytes(content)
    return place


def test_the_checks_see_what_is_lost_torn_or_doubled(tmp_path: Path) -> None:
    """A message that is not where it was said to be, part of one, and one that is there twice are each told."""
    place = _maildir(tmp_path, a=message("a"), b=message("a"), c=message("c")[:-9])
    new = tmp_path / "m" / "new"
    faults = wrong_with(place, ALONE, [("a", str(new / "a")), ("z", str(new / "z")), ("a", str(new / "c"))])
    assert [fault.split(":")[0] for fault in faults] == [
        "torn",
        "2 times in m",
        "acknowledged and not there",
        "acknowledged and not there",
    ]
    (new / "b").unlink()
    (new / "c").unlink()
    assert wrong_with(place, ALONE, [("a", str(new / "a"))]) == []
    keywords = SCENARIOS["keywords"]
    (tmp_path / "m" / "dovecot-keywords").write_text("0 other\n1 $Forwarded\n")
    (new / "a").rename(tmp_path / "m" / "cur" / "a:2,a")
    assert wrong_with(place, keywords, []) == ["without its keyword: m/cur/a:2,a"]
    (tmp_path / "m" / "cur" / "a:2,a").rename(tmp_path / "m" / "cur" / "a:2,Sb")
    assert wrong_with(place, keywords, []) == []


def test_the_checks_see_what_is_left_behind(tmp_path: Path) -> None:
    """What is in tmp/ after a sweep, and a lock that nobody has, are each told."""
    place = _maildir(tmp_path)
    assert wrong_after(place, ALONE) == []
    (tmp_path / "m" / "tmp" / "x").touch()
    (tmp_path / "m" / "dovecot-uidlist.lock").touch()
    assert sorted(wrong_after(place, ALONE)) == [
        "left behind: m/dovecot-uidlist.lock",
        "left in tmp/ after a sweep: m/tmp/x",
    ]


@needs_strace
def test_a_program_dies_at_the_call_that_is_named(tmp_path: Path) -> None:
    """Killed in the place of its first rename, the message is whole in tmp/, in new/ there is none."""
    place = tmp_path / "place"
    place.mkdir()
    died = run(ALONE, place, "first-", tmp_path / "log", CALLS, "renameat2:signal=SIGKILL:when=1")
    assert (died.signal, died.told) == (signal.SIGKILL, [])
    assert died.calls[-1].call == "renameat2"
    (left,) = (place / "m" / "tmp").iterdir()
    assert left.read_bytes() == message("first-0")
    assert not any((place / "m" / "new").iterdir())


@needs_strace
@pytest.mark.heavy
@pytest.mark.parametrize("name", ["alone", "keywords"])
def test_killed_at_many_calls(tmp_path: Path, name: str) -> None:
    """What a killed process has acknowledged is there, nothing is torn or doubled, and the next one delivers."""
    result = kill_everywhere(SCENARIOS[name], tmp_path, full=False, say=lambda text: None)
    assert result.faults == []
    assert result.figures["kills"] >= 12


@needs_strace
@pytest.mark.heavy
def test_a_fault_at_many_calls(tmp_path: Path) -> None:
    """A call that fails is told by an error of the package, leaves nothing, and the next process delivers."""
    result = fail_everywhere(ALONE, tmp_path, full=False, say=lambda text: None)
    assert result.faults == []
    assert result.figures["errors told"] >= 10


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["descriptors", "file-size", "no-aio", "full-blocks", "full-inodes"])
def test_a_real_fault(tmp_path: Path, name: str) -> None:
    """While it is there it is told, and leaves nothing; when it is gone the next delivery works."""
    try:
        result = REAL[name](tmp_path)
    except MissingError as exc:
        pytest.skip(str(exc))
    assert result.faults == []
