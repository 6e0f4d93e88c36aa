"""The rig that lets mail flow for long, with faults in turn: that it would notice."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from maildir_async.disk.threads import Crew
from soak.faults import FAULTS
from soak.mail import Notes, is_whole, message, number_of
from soak.measure import Histogram, crews_of
from soak.plot import draw
from soak.reader import Reader
from soak.verdict import ALLOWED, judge, summary


def rest(t: float, **held: int) -> dict[str, Any]:
    counts = {"builtins.list": held.pop("lists", 1000)}
    return {"kind": "rest", "t": t, "counts": counts, **dict.fromkeys(ALLOWED, 10), **held}


END = {"kind": "held at the end", "t": 99.0}


def test_what_is_flat_is_right() -> None:
    """A run whose medians stay is right, whatever its warm-up took and whatever a single rest shows."""
    lines = [rest(t, memory=2**20 * (10 if t < 4 else 100), threads=400 if t == 13 else 9) for t in range(16)]
    assert judge([*lines, END], ALLOWED)[0] == []


@pytest.mark.parametrize("name", [*ALLOWED, "lists"])
def test_what_grows_is_wrong(name: str) -> None:
    """Each resource that grows by more than is allowed is told of, by its name and no other."""
    step = ALLOWED.get(name, 250) // 8 + 1
    faults, _ = judge([*(rest(t, **{name: 1000 + step * t}) for t in range(16)), END], ALLOWED)
    assert [fault.partition(" grew")[0] for fault in faults] == [
        "objects of builtins.list" if name == "lists" else name
    ]


def test_a_run_that_cannot_be_judged_is_wrong() -> None:
    """Too few rests, a program that did not end and what the program itself has found are faults of the run."""
    faults, _ = judge([{"kind": "fault", "what": "own", "t": 1.0}, rest(1)], ALLOWED)
    assert faults == [
        "own",
        "the program did not come to its end",
        "the program came to rest 1 times: too few to judge by",
    ]


def test_percentiles() -> None:
    """A histogram tells percentiles to 3 %, and the worst exactly."""
    histogram = Histogram()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    told = histogram.told()
    assert told["count"] == 1000
    assert told["worst"] == 1000
    for name, value in {"p50": 500, "p99": 990, "p99.9": 999}.items():
        assert value <= told[name] <= 1.04 * value


def test_threads_of_crews_are_known_by_their_names() -> None:
    """A crew's threads are counted by the crew, and nobody else's are."""
    crew, hold = Crew(2, "maildir-soak"), threading.Event()
    before = crews_of(threading.enumerate())
    for _ in range(2):
        crew.run(hold.wait)
    other = threading.Thread(target=hold.wait, name="soak-1")
    other.start()
    after = crews_of(threading.enumerate())
    hold.set()
    other.join()
    assert after == {**before, "maildir-soak": 2}
    assert crew.wait_idle(30)


def deliver(root: Path, name: str, stored: bytes, where: str = "new") -> None:
    for each in ("tmp", "new", "cur"):
        (root / "box" / each).mkdir(parents=True, exist_ok=True)
    (root / "box" / where / name).write_bytes(stored)


@pytest.mark.parametrize(
    ("outcome", "stored", "wrong"),
    [
        ("A", [message(7)], None),
        ("A", [b"Received: by us\n" + message(7).replace(b"\n", b"\r\n")], None),
        ("A", [], "was never there"),
        ("A", [message(7)[:-1]], "is not whole"),
        ("A", [message(7), message(7)], "is there twice"),
        ("U", [], "was never there"),
        ("R", [], None),
        ("R", [message(7)], "was refused"),
        ("C", [], None),
        ("C", [message(7)], None),
        ("C", [message(7), message(7)], "is there twice"),
        (None, [message(7)], "nothing was told"),
    ],
)
def test_the_reader_accounts_for_each_message(
    tmp_path: Path, outcome: str | None, stored: list[bytes], wrong: str | None
) -> None:
    """An acknowledged message is there once and whole, a refused one is not, a cancelled one is at most once."""
    root, notes = tmp_path / "root", tmp_path / "notes"
    root.mkdir()
    if outcome:
        Notes(str(notes)).tell(outcome, "box", 7)
    for number, each in enumerate(stored):
        deliver(root, f"{number}.M{number}.host,S=1", each)
    reader = Reader(root, notes)
    reader.look()
    assert reader.counts["met"] == len(stored)
    reader.look()
    assert reader.counts["met"] == len(stored)  # one that it has moved itself is no other
    reader.finish()
    assert [fault for fault in reader.faults if wrong is None or wrong not in fault] == []
    assert bool(reader.faults) == (wrong is not None)


def test_a_maildir_that_is_moved_away_is_read_to_its_end(tmp_path: Path) -> None:
    """What was met before it was moved is no other message after that; what is met there counts as delivered."""
    root, notes = tmp_path / "root", tmp_path / "notes"
    for number in (7, 8):
        Notes(str(notes)).tell("A", "gone", number)
    deliver(root, "1.M1.host,S=1", message(7))
    (root / "box").rename(root / "gone")
    reader = Reader(root, notes)
    reader.look()
    deliver(root, "2.M2.host,S=1", message(8))
    (root / "box" / "new" / "2.M2.host,S=1").rename(root / "gone" / "new" / "2.M2.host,S=1")
    (root / "box" / "tmp").rmdir()
    (root / "gone").rename(root / "gone.1")
    reader.finish()
    assert reader.counts["met"] == 2
    assert reader.faults == []


def test_what_is_left_in_tmp_is_found(tmp_path: Path) -> None:
    """A file in ``tmp/`` at the end is a fault."""
    deliver(tmp_path, "1.M1.host", b"", "tmp")
    reader = Reader(tmp_path, tmp_path / "notes")
    reader.finish()
    assert "tmp has 1.M1.host" in reader.faults[0]


def test_a_message_tells_itself_from_others() -> None:
    """A message is whole only as itself, below what a server has put before it."""
    assert number_of(b"A: b\r\n" + message(12, 3)) == (12, 3)
    assert is_whole(b"A: b\r\n" + message(12, 3))
    assert not is_whole(message(12, 3).replace(b"Soak: 12", b"Soak: 13"))
    assert not is_whole(message(12, 3) + b"\n")
    assert not is_whole(b"")


def test_a_plot_of_what_was_measured() -> None:
    """The plot is one SVG without a program that would have to be installed."""
    latency = {"kind": "latency", "name": "whole", "t": 5.0, "buckets": {3: 2}, **Histogram().told(), "p50": 1.0}
    held = {"kind": "held", "t": 6.0, "calm": True, "memory": 2**24, "descriptors": 9, "threads": 4, "tasks": 3}
    picture = draw({"seconds": 10, **summary([latency, held, rest(7)])})
    assert picture.startswith("<svg")
    assert picture.count("<path") > 10


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.soak", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parent.parent)
    if done.stdout.startswith("NO SOAK"):
        pytest.skip(done.stdout)
    return done


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("plant", "found"),
    [
        ("descriptor", "WRONG: descriptors grew"),
        ("thread", "WRONG: threads grew"),
        ("loss", "was never there"),
    ],
)
def test_what_is_planted_is_found(plant: str, found: str) -> None:
    """A planted leak, loss, torn or double message ends the rig with status 1, and is named."""
    done = run("--seconds", "14", "--plant", plant, "--faults", "helper killed")
    assert done.returncode == 1, done.stdout
    assert found in done.stdout, done.stdout


@pytest.mark.heavy
def test_a_short_soak_is_right(tmp_path: Path) -> None:
    """With each fault in turn nothing is lost, nothing grows, and figures and plot are written."""
    done = run("--seconds", "20", "--output", str(tmp_path), "--faults", *FAULTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "soak.json").read_text())["reader"]["A"] > 100
    assert (tmp_path / "soak.svg").read_text().startswith("<svg")


@pytest.mark.heavy
def test_a_maildir_is_grown(tmp_path: Path) -> None:
    """``--million`` stores as many as it is told to, and tells what one costs; so few are no measure of that."""
    done = run("--million", "--messages", "4000", "--output", str(tmp_path))
    assert "4,000 messages stored" in done.stdout, done.stdout + done.stderr
