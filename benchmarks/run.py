"""Runs cases: rounds of measurements, each in a child process and in fresh maildirs, each checked afterwards."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.build import UnavailableError
from benchmarks.case import Case, Entry
from benchmarks.filesystems import FileSystems, Place, settle, trim
from benchmarks.peers import PEERS, Peer
from benchmarks.peers.raw import sync_directory
from benchmarks.verify import EXISTING_PREFIX, WrongMailError, verify
from benchmarks.workload import KIB, Measurement

__all__ = ["CaseResult", "FailedError", "LineResult", "run_case"]

#: Seconds after which a measurement has failed.
PATIENCE_S: Final = 180.0

#: The order of each round is drawn by lot, but the same one each time the benchmark is run.
SEED: Final = 4096


#: Bytes of a message in a mix, on average.
MIX_MEAN: Final = 16 * KIB

#: Where this package is, for children to import it from.
CHECKOUT: Final = Path(__file__).resolve().parents[1]


class FailedError(Exception):
    """A measurement went wrong; the text says how."""


@dataclass(slots=True)
class LineResult:
    """What came of one line of a case.

    Attributes:
        entry: the line.
        rounds: the measurement of each round; None for one that failed.
        skipped: why there is none, or None.
        failures: what went wrong.

    """

    entry: Entry
    rounds: list[Measurement | None] = field(default_factory=list)
    skipped: str | None = None
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class CaseResult:
    """What came of a case.

    Attributes:
        case: the case.
        place: what it ran on.
        skipped: why nothing ran, or None.
        seconds: how long it took.
        lines: by label.

    """

    case: Case
    place: Place | None = None
    skipped: str | None = None
    seconds: float = 0.0
    lines: dict[str, LineResult] = field(default_factory=dict)


def run_case(case: Case, file_systems: FileSystems, rounds: int, say: Callable[[str], object]) -> CaseResult:
    """Return what came of *rounds* rounds of *case*."""
    result = CaseResult(case, lines={entry.label: LineResult(entry) for entry in case.entries})
    try:
        place = result.place = file_systems.place(case.filesystem)
    except UnavailableError as exc:
        result.skipped = str(exc)
        return result
    lot = random.Random(SEED)
    began = time.monotonic()
    with _room(case, place) as room, _existing_maildirs(case, room) as existing:
        for number in range(rounds):
            for line in lot.sample(list(result.lines.values()), len(result.lines)):
                if line.skipped is None:
                    say(f"{case.name}: round {number + 1} of {rounds}: {line.entry.label}")
                    _measure_line(line, room, file_systems.work, existing)
    trim(place)
    result.seconds = time.monotonic() - began
    return result


def _measure_line(line: LineResult, room: Place, work: Path, existing: dict[int, Path]) -> None:
    entry = line.entry
    prepared = existing.get(entry.workload.existing)
    root = prepared or Path(tempfile.mkdtemp(prefix="run-", dir=room.path))
    try:
        if prepared is None:
            _make_maildirs(root, entry.workload.maildirs)
        line.rounds.append(measure(PEERS[entry.peer], entry, root, work))
    except UnavailableError as exc:
        line.skipped = str(exc)
    except (FailedError, WrongMailError) as exc:
        line.failures.append(str(exc))
        line.rounds.append(None)
    finally:
        # Outside the timed part. ext4 without a journal, which a directory that was given may be on, is slow to make
        # files where some were deleted seconds ago (up to 25 times was seen): there, nothing small is.
        settle(room, *([root] if prepared is None and (room.made or entry.workload.stream) else []))
        if prepared is not None:
            for name in os.listdir(prepared / "0/new"):
                if not name.startswith(EXISTING_PREFIX):
                    os.unlink(prepared / "0/new" / name)


def measure(peer: Peer, entry: Entry, root: Path, work: Path) -> Measurement:
    """Return what one measurement has seen, after looking whether the mail is there."""
    command = peer.start(entry.workload, root, work, entry.python)
    with _neighbour(root, entry.workload.neighbour):
        done = _run_child(command)
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or ["no word of why"]
        raise FailedError(f"ended with status {done.returncode}: {complaint[-1]}")
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise FailedError(f"printed no result: {done.stdout[-200:]!r}") from None
    if "skipped" in found:
        raise UnavailableError(found["skipped"])
    measurement = Measurement(**found)
    if peer.stores:
        verify(root, entry.workload, measurement.delivered, adds=peer.adds)
    return measurement


def _run_child(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run *command*, and see to it that none of its own children is left, however it ends."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            start_new_session=True,
        )
    except OSError as exc:
        raise UnavailableError(f"{command[0]}: {exc}") from exc
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise FailedError(f"not done in {PATIENCE_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _make_maildirs(root: Path, count: int) -> None:
    root.chmod(0o755)
    for maildir in range(count):
        for sub in ("", "tmp", "new", "cur"):
            os.mkdir(root / str(maildir) / sub, 0o700)
    sync_directory(str(root))


@contextlib.contextmanager
def _room(case: Case, place: Place) -> Iterator[Place]:
    """Make a directory for all of *case*, whose measurements write to the same part of the disk, one after another.

    And write there first: a virtual disk may be several times slower where nothing was ever written.
    """
    path = Path(tempfile.mkdtemp(prefix="case-", dir=place.path))
    path.chmod(0o755)
    try:
        if place.made:
            size = max(entry.workload.messages * (entry.workload.size or MIX_MEAN) for entry in case.entries)
            with open(path / "first", "wb") as file:
                for _ in range(size + size // 4 >> 20):
                    file.write(bytes(2**20))
                file.flush()
                os.fsync(file.fileno())
            (path / "first").unlink()
        else:
            subprocess.run(["chattr", "+T", path], capture_output=True)  # each run in a part of the disk of its own
        yield replace(place, path=path)
    finally:
        if place.made:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _existing_maildirs(case: Case, room: Place) -> Iterator[dict[int, Path]]:
    """Make the maildirs with messages in them that *case* asks for: once, since that takes long."""
    made: dict[int, Path] = {}
    try:
        for size in {entry.workload.existing for entry in case.entries} - {0}:
            made[size] = Path(tempfile.mkdtemp(prefix="run-", dir=room.path))
            _make_maildirs(made[size], 1)
            new = f"{made[size]}/0/new/{EXISTING_PREFIX}"
            for number in range(size):  # names as long as real ones: the directory's size is what matters
                os.close(os.open(f"{new}.M{number:06}P00000Q00000000.hostname", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            settle(room)
        yield made
    finally:
        for path in made.values():
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _neighbour(root: Path, speed: int) -> Iterator[None]:
    if not speed:
        yield
        return
    path = root / "neighbour"
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.neighbour", str(path), str(speed)], cwd=CHECKOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        path.unlink(missing_ok=True)
