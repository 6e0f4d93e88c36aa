"""The benchmarks run, and do not believe a peer that loses mail. No figure of theirs is tested."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.build import UnavailableError, compiled
from benchmarks.case import Case, Entry, Form, Target
from benchmarks.cases import cases
from benchmarks.figures import figure, ratio, verdict
from benchmarks.filesystems import FileSystems, describe_directory
from benchmarks.peers import PEERS, Peer
from benchmarks.plots import PLOTS, draw
from benchmarks.run import CaseResult, LineResult, run_case
from benchmarks.verify import Added, WrongMailError, verify
from benchmarks.workload import CHUNK, MIB, Measurement, Workload

CHECKOUT = Path(__file__).parents[1]

#: Delivers messages, and says so, but does to one of them what it is told to.
LOSSY = """
import json, sys
from benchmarks.workload import Workload
workload, root, harm = Workload.from_json(sys.argv[1]), sys.argv[2], sys.argv[3]
for number in range(workload.messages):
    message = workload.message(number)
    if number == 7:
        message = {"lost": b"", "torn": message[:-1], "changed": message[:-9] + b"X" + message[-8:]}.get(harm, message)
    if message:
        open(f"{root}/0/new/{number}", "wb").write(message)
if harm == "left in tmp":
    open(f"{root}/0/tmp/x", "wb")
if harm == "killed":
    sys.exit("oh no")
if harm == "twice":
    open(f"{root}/0/new/again", "wb").write(workload.message(7))
print(json.dumps({"messages": 20, "delivered": 20, "bytes": 20 * 4096, "seconds": 1.0, "latency_ms": {}}))
"""


class Wire:
    """The server's end of a connection of smtpload, as a test would have it."""

    def __init__(self, listener: socket.socket) -> None:
        self._connection, _ = listener.accept()
        self._connection.settimeout(30)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        self._connection.sendall(text.encode() + b"\r\n")

    def segment(self) -> bytes:
        """Return what has come at once: what the clients send in one call is not cut on a Unix socket."""
        return self._connection.recv(MIB)

    def message(self) -> bytes:
        received = b""
        while not received.endswith(b"\r\n.\r\n"):
            piece = self._connection.recv(MIB)
            assert piece, received[-80:]
            received += piece
        return received.removesuffix(b".\r\n")

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, socket.socket]]:
    # The directory's path is short: a socket's must be.
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/socket"
        listener.bind(path)
        listener.listen()
        listener.settimeout(30)
        yield path, listener


@contextlib.contextmanager
def load(directory: Path, path: str, workload: Workload, **options: int) -> Iterator[Any]:
    try:
        program = compiled("smtpload.c", directory)
    except UnavailableError as exc:
        pytest.skip(f"NOT TESTED: {exc}")
    given = {name: getattr(workload, name) for name in ("messages", "seconds", "warmup", "size", "maildirs")} | options
    process = subprocess.Popen(
        [program, path, *(f"{name}={value}" for name, value in given.items())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def small(**options: Any) -> Workload:
    return Workload(**{"messages": 20, "seconds": 10.0, "warmup": 0, **options})


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that others may enter, which a tmp_path is not: Dovecot's mail is nobody's when root starts it."""
    path = Path(tempfile.mkdtemp(prefix="maildir-async-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_an_import_is_held_against_appends(tmp_path: Path) -> None:
    """Both are measured in turns, in maildirs that are counted, and nothing is left."""
    command = [sys.executable, "-m", "benchmarks.importing", str(tmp_path), "--messages", "30", "--rounds", "2"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ratio: \d+\.\d\d \(.*\) in 2 rounds$", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_command_runs_end_to_end(tmp_path: Path) -> None:
    """The command measures in a directory, checks the mail, prints a report with its definitions, and writes JSON."""
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--messages", "20", "--rounds", "1", "--directory", tmp_path),
            *("--only", "^(full-64|none-1|stream-1|slow-64)$", "--output", out),
            *("--peers", "ours,stdlib-threads,one-hop,floor,aiofiles"),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.index("## What the numbers are") < done.stdout.index("## Targets") < done.stdout.index("## Cases")
    )
    assert "case slow-64 **skipped**: one directory was given" in done.stdout
    found = json.loads((out / "results.json").read_text())
    assert {"conditions", "form", "targets", "cases", "footprint"} == set(found)
    by_name = {case["name"]: case for case in found["cases"]}
    assert set(by_name) == {"full-64", "none-1", "slow-64", "stream-1"}
    for line in by_name["full-64"]["lines"]:
        if line["peer"] == "floor" and shutil.which("cc") is None:
            assert "no C compiler" in line["skipped"]
            continue
        assert not line["failures"]
        (measurement,) = line["rounds"]
        assert measurement["messages"] == 20
        assert set(measurement["latency_ms"]) == {"p50", "p90", "p99", "max"}
        assert line["syncs"] == ("file" if line["peer"] == "stdlib-threads" else "file + directory")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing else is left"


@pytest.mark.parametrize("harm", ["none", "lost", "torn", "changed", "twice", "left in tmp", "killed"])
def test_what_a_peer_loses_is_noticed(harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement fails if a message is missing, incomplete, changed or there twice, or something lies in tmp/."""
    script = tmp_path / "lossy.py"
    script.write_text(LOSSY)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))

    def command(workload: Workload, root: Path, work: Path) -> list[str]:
        return [sys.executable, str(script), workload.to_json(), str(root), harm]

    monkeypatch.setitem(PEERS, "lossy", Peer("lossy", "one that harms a message", "nothing", command=command))
    case = Case("lossy", "", "jext4", (Entry("lossy", small()),), "lossy")

    with FileSystems(tmp_path) as file_systems:
        result = run_case(case, file_systems, 1, lambda _: None)

    line = result.lines["lossy"]
    assert bool(line.failures) == (harm != "none"), line.failures
    assert (line.rounds == [None]) == (harm != "none")


def test_a_failure_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The command ends with status 1 when a measurement has failed, and says which."""
    command = lambda workload, root, work: [sys.executable, "-c", "raise SystemExit('oh no')"]  # noqa: E731
    monkeypatch.setitem(PEERS, "ours", Peer("ours", "broken", command=command))

    only = ["--only", "^none-1$", "--peers", "ours", "--messages", "5", "--rounds", "1"]
    status = main([*only, "--directory", str(tmp_path), "--output", str(tmp_path / "out")])

    assert status == 1
    assert "FAILED: ended with status 1: oh no" in capsys.readouterr().err


def test_verification_needs_every_message(tmp_path: Path) -> None:
    """A maildir with one message fewer than were delivered, or in which one bit differs, is wrong."""
    workload = small(size=0)
    for sub in ("tmp", "new", "cur"):
        (tmp_path / "0" / sub).mkdir(parents=True)
    for number in range(20):
        (tmp_path / "0/new" / str(number)).write_bytes(workload.message(number))
    verify(tmp_path, workload, 20)

    with pytest.raises(WrongMailError, match="1 of 21 messages are missing, such as number 20"):
        verify(tmp_path, workload, 21)
    with pytest.raises(WrongMailError, match="message 19 is there though never delivered"):
        verify(tmp_path, workload, 19)
    damaged = bytearray(workload.message(7))
    damaged[-2] ^= 1
    (tmp_path / "0/new/7").write_bytes(damaged)
    with pytest.raises(WrongMailError, match="message 7 has another body"):
        verify(tmp_path, workload, 20)


@pytest.mark.parametrize(("adds", "before", "after"), [("in front", True, False), ("anywhere", True, True)])
def test_verification_knows_where_a_peer_may_add_headers(
    adds: Added, before: bool, after: bool, tmp_path: Path
) -> None:
    """Headers that a peer adds where it is known to are no damage; anywhere else, and in the message, they are."""
    workload = small()
    for sub in ("tmp", "new", "cur"):
        (tmp_path / "0" / sub).mkdir(parents=True)
    message = workload.message(0)
    file = tmp_path / "0/new/message"

    def is_right(content: bytes) -> bool:
        file.write_bytes(content)
        try:
            verify(tmp_path, workload, 1, adds=adds)
        except WrongMailError:
            return False
        return True

    assert is_right(message)
    assert is_right(b"Return-Path: <>\n" + message) == before
    assert is_right(message.replace(b"\n\n", b"\nX-Peer: x\n\n", 1)) == after
    assert not is_right(b"Return-Path: <>\n" + message[:-1])
    assert not is_right(b"Return-Path: <>\n" + message + b"\n")


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("lmtp", [True, False])
def test_the_load_is_what_it_claims_to_be(announced: bool, lmtp: bool, tmp_path: Path) -> None:
    """Its messages are the workload's, and it sends commands together only where PIPELINING is announced."""
    workload = small(size=0, maildirs=3, messages=9)
    with (
        listening() as (path, listener),
        load(tmp_path, path, workload, lmtp=int(lmtp)) as clients,
        Wire(listener) as wire,
    ):
        wire.say("220 localhost")
        assert wire.segment() == (b"LHLO localhost\r\n" if lmtp else b"EHLO localhost\r\n")
        wire.say("250-localhost\r\n250-SIZE\r\n250 PIPELINING" if announced else "250-localhost\r\n250 SIZE")
        assert clients.stdout.readline() == "warm\n"
        clients.stdin.write("go\n")
        clients.stdin.flush()
        for number in range(9):
            commands = (b"MAIL FROM:<a@example.org>", b"RCPT TO:<%d@example.org>" % (number % 3), b"DATA")
            if announced:
                assert wire.segment() == b"\r\n".join(commands) + b"\r\n"
                wire.say("250 OK\r\n250 OK\r\n354 Go ahead")
            else:
                for command, reply in zip(commands, ("250 OK", "250 OK", "354 Go ahead"), strict=True):
                    assert wire.segment() == command + b"\r\n"
                    wire.say(reply)
            assert wire.message().replace(b"\r\n", b"\n") == workload.message(number)
            wire.say("250 OK")
        out, _ = clients.communicate()

    found = json.loads(out)
    assert clients.returncode == 0
    assert (found["messages"], found["delivered"]) == (9, 9)
    assert found["bytes"] == sum(map(workload.size_of, range(9)))


@pytest.mark.parametrize(
    ("replies", "complaint"),
    [
        (["250 OK", "452 No room"], "the server said: 452 No room"),
        (["250 OK", "250 OK", "250 OK"], "the server said: 250 OK"),
        (["250 OK", "250 OK", "354 Go ahead", "451 Later"], "the server said: 451 Later"),
        (["250 OK", "250 OK", "354 Go ahead", "250 OK\r\n250 OK again"], "the server said: 250 OK again"),
        (["250 OK", None], "the server closed a connection"),
    ],
)
def test_the_load_takes_no_refusal(replies: list[str | None], complaint: str, tmp_path: Path) -> None:
    """A reply that is not as it should be, or none, ends the clients with status 1 and what was said."""
    with (
        listening() as (path, listener),
        load(tmp_path, path, small(messages=1)) as clients,
        Wire(listener) as wire,
    ):
        wire.say("220 localhost")
        wire.segment()
        wire.say("250 localhost")
        assert clients.stdout.readline() == "warm\n"
        clients.stdin.write("go\n")
        clients.stdin.flush()
        for number, reply in enumerate(replies):
            assert wire.segment() if number < 3 else wire.message()
            if reply is None:
                wire.close()
            else:
                wire.say(reply)
        _, complaints = clients.communicate()

    assert clients.returncode == 1
    assert complaint in complaints


def test_a_server_that_keeps_nothing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mail server that says 250, and has stored nothing, has failed."""
    monkeypatch.setitem(PEERS, "smtp-sink", replace(PEERS["smtp-sink"], stores=True))
    case = Case("one", "", "jext4", (Entry("smtp-sink", small()),), "smtp-sink")

    with FileSystems(tmp_path) as file_systems:
        line = run_case(case, file_systems, 1, lambda _: None).lines["smtp-sink"]

    if line.skipped:
        pytest.skip(f"NOT TESTED: {line.skipped}")
    assert line.failures == ["20 of 20 messages are missing, such as number 0"]


def test_what_only_a_server_can_tell_is_told(open_directory: Path) -> None:
    """The lag of a server's loop is measured in it, its memory and CPU time from without, its clients' apart."""
    workload = small(messages=2, warmup=1, size=3 * MIB, stream=True, lag=True)
    case = Case("one", "", "jext4", (Entry("smtp", workload),), "smtp")

    with FileSystems(open_directory) as file_systems:
        line = run_case(case, file_systems, 1, lambda _: None).lines["smtp"]

    if line.skipped:
        pytest.skip(f"NOT TESTED: {line.skipped}")
    (seen,) = line.rounds
    assert seen is not None, line.failures
    assert set(seen.lag_ms) == {"p50", "p90", "p99", "max"}
    assert seen.bytes == 6 * MIB
    assert seen.cpu_s is not None
    assert seen.load_cpu_s is not None
    assert seen.memory is not None
    assert 0 < seen.memory < 64 * MIB


@pytest.mark.parametrize("size", [CHUNK, CHUNK + 1, 2 * MIB + 12_345])
@pytest.mark.parametrize("fresh", [False, True])
def test_chunks_are_the_message(size: int, fresh: bool) -> None:
    """A message in chunks is the message, byte for byte."""
    workload = small(size=size, stream=True, fresh=fresh)

    assert b"".join(workload.chunks(3)) == workload.message(3)
    assert len(workload.message(3)) == size


#: A library's delivery, a program's, and a server's. All the others in the heavy tier.
FEW_PEERS = ("ours", "floor", "smtp")


@pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=() if name in FEW_PEERS else pytest.mark.heavy) for name in sorted(PEERS)]
)
def test_each_peer_delivers(peer: str, open_directory: Path) -> None:
    """What a peer leaves is what was delivered; one that this machine lacks is skipped, and says why."""
    workload = small(in_flight=4, durability="full", warmup=5, size=0, seconds=0.2 if peer == "nothing" else 10.0)
    case = Case("one", "", "jext4", (Entry(peer, workload),), peer)

    with FileSystems(open_directory) as file_systems:
        line = run_case(case, file_systems, 1, lambda _: None).lines[peer]

    if line.skipped:
        pytest.skip(f"NOT TESTED: {peer}: {line.skipped}")
    assert not line.failures
    (measurement,) = line.rounds
    assert measurement is not None
    # The warm-up ends early where a sync of the whole file system takes long. What was delivered has been counted.
    assert peer == "nothing" or (measurement.messages == 20 and 20 <= measurement.delivered <= 25)


@pytest.mark.parametrize(
    "peer", ["smtp", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("lmtp", "lmtp-dovecot"))]
)
def test_servers_deliver_to_whom_it_is_for(peer: str, open_directory: Path) -> None:
    """With several maildirs each message lies in its own, and nowhere else."""
    case = Case("one", "", "jext4", (Entry(peer, small(in_flight=4, maildirs=3)),), peer)

    with FileSystems(open_directory) as file_systems:
        line = run_case(case, file_systems, 1, lambda _: None).lines[peer]

    if line.skipped:
        pytest.skip(f"NOT TESTED: {peer}: {line.skipped}")
    assert not line.failures


def test_every_target_has_a_case() -> None:
    """Each target names lines of its case, in both forms; the names of cases are unique."""
    for full in (False, True):
        found = cases(Form(full=full, seconds=1, rounds=5))
        assert len({case.name for case in found}) == len(found)
        for case in found:
            labels = [entry.label for entry in case.entries]
            assert len(set(labels)) == len(labels)
            assert case.baseline in labels
            for target in case.targets:
                assert target.entry in labels
                assert target.against is None or target.against in labels


def test_targets_are_judged_by_the_median_round_and_times_by_the_worst() -> None:
    """A ratio is taken within rounds, and its median judged; "none over" is judged by the slowest of all."""

    def seen(rate: int, worst: float) -> Measurement:
        return Measurement(rate, rate, rate * 4096, 1.0, {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": worst})

    case = Case("c", "", "jext4", (Entry("ours", small()), Entry("raw", small())), "raw")
    lines = {
        "ours": LineResult(case.entries[0], [seen(200, 1.0), seen(90, 1.0), seen(300, 99.0), None]),
        "raw": LineResult(case.entries[1], [seen(100, 1.0), seen(100, 1.0), seen(100, 1.0), seen(100, 1.0)]),
    }
    result = CaseResult(case, lines=lines)

    compared = ratio(result, "ours", "raw", lambda found: found.rate)
    assert compared is not None
    assert (compared.median, compared.low, compared.high) == (2.0, 0.9, 3.0)
    speed = figure(result, "ours", lambda found: found.rate)
    assert speed is not None
    assert speed.text(".0f") == "200 (90 to 300)"
    assert verdict(result, Target("", "ours", 2.0, against="raw")).met
    assert not verdict(result, Target("", "ours", 2.1, against="raw")).met
    assert verdict(result, Target("", "ours", 0.5, "cost", "raw")).met
    assert not verdict(result, Target("", "ours", 98, "worst")).met

    lines["ours"].rounds = [replace(seen(1, 1.0), lag_ms={"max": worst}) for worst in (5.0, 6.0, 21.0)]
    assert verdict(result, Target("", "ours", 21, "lag_max")).met
    assert not verdict(result, Target("", "ours", 20, "lag_max")).met


def test_plots_take_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib there are no plots, and that is said."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match="matplotlib is not installed"):
        draw({}, tmp_path)


@pytest.mark.heavy  # CI installs matplotlib for this tier
def test_plots_are_drawn(tmp_path: Path) -> None:
    """Each plot whose case was run becomes an SVG file."""
    spread = [{"p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0}] * 2
    measurement = {"messages": 10, "seconds": 1.0, "latency_ms": spread[0], "lag_ms": spread[1], "memory": 2**20}

    def case(name: str, *workloads: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {"in_flight": 1, "existing": 0, "fresh": True}
        lines = [{"peer": "ours", "workload": defaults | each, "rounds": [measurement]} for each in workloads]
        return {"name": name, "title": "a title, with more", "skipped": None, "lines": lines}

    found = {
        "conditions": {"file_systems": {"jext4": {"what": "ext4"}}},
        "cases": [
            case("concurrency", {"in_flight": 4}, {"in_flight": 64}),
            case("full-64", {}),
            case("lag", {}),
            case("mailbox-size", {"existing": 0}, {"existing": 1000}),
            case("stream-1", {}),
        ],
    }
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("NO PLOT TESTED: matplotlib is not installed (pip install '.[benchmarks]')")

    drawn = draw(found, tmp_path)

    assert {path.stem for path in drawn} == set(PLOTS)
    assert all(path.read_text().startswith("<?xml") for path in drawn)
    assert draw({**found, "cases": []}, tmp_path) == []


def test_no_file_system_is_made_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user is told to give a directory, and the temporary one is gone afterwards."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with FileSystems() as file_systems, pytest.raises(UnavailableError, match="takes root; give a directory"):
        file_systems.place("jext4")
    assert not file_systems.work.exists()


def test_a_directory_is_described(tmp_path: Path) -> None:
    """The report says what file system a directory is on."""
    assert describe_directory(tmp_path).startswith("a directory on ")
