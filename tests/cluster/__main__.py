"""The command: ``python -m tests.cluster``. Exit code 1 if anything is not as it should be."""

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import checks
from .mail import MAILDIRS, Note
from .volume import NotStartedError, Volume, run

#: What has to be there, and the Debian package that has it.
PROGRAMS: Final = {
    "glusterd": "glusterfs-server",
    "gluster": "glusterfs-server",
    "glusterfs": "glusterfs-client",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
}

#: Mounts, and writers on each.
MOUNTS: Final = 3
WRITERS: Final = 2

#: Whatever the rig does to a store, no delivery may wait for longer than this, seconds: else it hangs. It is told how
#: long the longest was; a busy machine may make that many times what it is.
LONGEST_S: Final = 180

#: Seconds after which a client takes a brick that is silent for dead: GlusterFS's default, which no machine is too busy
#: for, and in the long form, which freezes bricks, what one can wait for.
PATIENT_S: Final = 42
IMPATIENT_S: Final = 5

#: Seconds that a mount may need to find bricks which have come back.
RECONNECT_S: Final = 10

#: Each process here ends with the one that has started it, also if that is killed.
NAMESPACES: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
)

#: Seconds that mail flows between two troubles.
CALM_S: Final = 2.0


@dataclass
class Run:
    """One run, as it goes on.

    Attributes:
        volume: the store.
        faults: what must not be.
        told: lines of the summary.
        writers: the processes that deliver, by name.
        away: when the store could not be written to: begin and end, by the monotonic clock.

    """

    volume: Volume
    faults: list[str] = field(default_factory=list[str])
    told: list[str] = field(default_factory=list[str])
    writers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, subprocess.Popen[bytes]])
    away: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def calm(self, seconds: float = CALM_S) -> None:
        """Let mail flow."""
        time.sleep(seconds)

    def healed(self, what: str) -> None:
        """Wait until the bricks agree, without new mail: ``heal info`` counts what is being written, too."""
        _say(f"{what}: healing")
        self._command(b"pause\n")
        for name, writer in self.writers.items():
            if not _says_that_it_is_paused(writer):
                raise NotStartedError(f"writer {name} is not to be paused")
        self.heal(f"{what}: what {CALM_S:.0f} s of healing beside mail had left")
        self._command(b"go\n")

    def heal(self, what: str) -> None:
        """Wait until ``heal info`` is clean; if it does not become so, that is a fault, and no more."""
        try:
            self.told.append(f"{what} took {self.volume.heal(600):.1f} s")
        except NotStartedError as exc:
            self.faults.append(f"{what}: {exc}; entries: {self.volume.unhealed()}")

    def _command(self, line: bytes) -> None:
        for writer in self.writers.values():
            if writer.stdin is not None:
                with suppress(BrokenPipeError):  # it is over, which is told in the end
                    writer.stdin.write(line)
                    writer.stdin.flush()


def kill_one(run: Run, brick: int) -> None:
    """A brick is killed, mail flows without it, and it is started and healed while mail flows."""
    _say(f"brick {brick} is killed")
    run.volume.signal(brick, signal.SIGKILL)
    run.calm()
    run.volume.start_bricks()
    run.calm()
    run.healed(f"brick {brick} killed")


def freeze_one(run: Run, brick: int) -> None:
    """A brick says nothing any more: the clients wait until they take it for dead."""
    _say(f"brick {brick} is frozen")
    run.volume.signal(brick, signal.SIGSTOP)
    run.calm(IMPATIENT_S + CALM_S)
    run.volume.signal(brick, signal.SIGCONT)
    run.calm()
    run.healed(f"brick {brick} frozen")


def kill_two(run: Run, brick: int) -> None:
    """Two of three are killed: there is no quorum, and what is sent now has to be refused."""
    other = (brick + 1) % len(run.volume.bricks)
    _say(f"bricks {brick} and {other} are killed")
    began = time.monotonic()
    run.volume.signal(brick, signal.SIGKILL)
    run.volume.signal(other, signal.SIGKILL)
    run.calm()
    run.volume.start_bricks()
    run.calm()
    run.healed(f"bricks {brick} and {other} killed")
    # That the bricks agree does not say that each mount has them back: a client looks for them every three seconds.
    run.away.append((began, time.monotonic() + RECONNECT_S))


def _says_that_it_is_paused(writer: subprocess.Popen[bytes]) -> bool:
    if writer.stdout is None or not select.select([writer.stdout], [], [], LONGEST_S)[0]:
        return False
    return writer.stdout.readline() in (b"paused\n", b"")  # or it is over, which is told in the end


Trouble = tuple[Callable[[Run, int], None], int]
SHORT: Final[tuple[Trouble, ...]] = ((kill_one, 0),)
FULL: Final[tuple[Trouble, ...]] = (
    (kill_one, 0),
    (kill_one, 1),
    (freeze_one, 2),
    (kill_two, 0),
    (kill_one, 2),
    (freeze_one, 1),
    (kill_two, 1),
)


def main(arguments: list[str] | None = None) -> int:
    """Run it, print a summary; return 1 if something was wrong."""
    options = _parser().parse_args(arguments)
    if options.inside is not None:
        return _inside(options.inside, full=options.full)
    reason = _reason_not_to()
    if reason is not None:
        print(f"NOT TESTED WITH GLUSTERFS: {reason}", flush=True)
        return 0
    place = Path(tempfile.mkdtemp(prefix="cluster-"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("terminated; the servers are ended"))
    command = [*NAMESPACES, sys.executable, "-m", "tests.cluster", "--inside", str(place)]
    try:
        with subprocess.Popen([*command, *(["--full"] if options.full else [])]) as process:
            try:
                return process.wait()
            except BaseException:
                process.kill()  # and with it the first process of the namespaces, and so all others
                raise
    finally:
        if options.keep:
            print(f"left in {place}")
        else:
            _remove(place)


def _remove(place: Path) -> None:
    """Remove it, though servers that were just killed may still be about to write there."""
    for _ in range(100):
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(place)


def _reason_not_to() -> str | None:
    """Return what is missing."""
    if os.geteuid() != 0:
        return "it takes root, to mount"
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        return f"apt-get install {' '.join(missing)}"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))  # in a container it may be there, and not be allowed
    except OSError as exc:
        return f"no FUSE: {exc}"
    done = subprocess.run([*NAMESPACES, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else None


def _inside(place: Path, *, full: bool) -> int:
    """Do it all, as the first process of the namespaces."""
    began = time.monotonic()
    this = Run(Volume(place, ping_timeout_s=IMPATIENT_S if full else PATIENT_S))
    try:
        this.volume.start()
        if full:
            _tell_costs(this)
        _flow(this, FULL if full else SHORT)
    except (NotStartedError, OSError, subprocess.SubprocessError) as exc:
        this.faults.append(f"{type(exc).__name__}: {exc}")
    this.faults += this.volume.stop()
    _say("")
    print(f"cluster: {'WRONG' if this.faults else 'right'} ({time.monotonic() - began:.0f} s)")
    for line in this.told:
        print(f"  {line}")
    for fault in this.faults[:50]:
        print(f"  WRONG: {fault}")
    if len(this.faults) > 50:
        print(f"  and {len(this.faults) - 50} more")
    sys.stdout.flush()
    return 1 if this.faults else 0


def _tell_costs(this: Run) -> None:
    for label, directory in (("this disk", this.volume.place), ("the volume", this.volume.mount("cost"))):
        _say(f"what a delivery costs on {label}")
        cost = json.loads(run(sys.executable, "-m", "tests.cluster.cost", directory))
        this.told.append(
            f"4 KiB on {label}: {cost['alone_ms']:.1f} ms alone (99 %: {cost['alone_p99_ms']:.1f} ms), of which one "
            f"file's sync {cost['sync_ms']:.1f} ms; {cost['together_per_s']:,.0f} messages/s with 64 at a time"
        )


def _flow(this: Run, troubles: tuple[Trouble, ...]) -> None:
    mounts = [this.volume.mount(f"mount{number}") for number in range(MOUNTS)]
    (this.volume.place / "notes").mkdir()
    try:
        for number in range(MOUNTS * WRITERS):
            command = _writer(this, f"w{number}", mounts[number % MOUNTS])
            this.writers[f"w{number}"] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        this.calm()
        for trouble, brick in troubles:
            trouble(this, brick)
            this.calm()
    finally:
        _end(this)
    _say("healing")
    this.heal("healing after the last message")
    _say("one message comes last")
    run(*_writer(this, "last", this.volume.mount("last")), "alone")
    _judge(this)


def _writer(this: Run, name: str, mount: Path) -> list[str | Path]:
    return [sys.executable, "-m", "tests.cluster.writer", name, mount, this.volume.place / "notes" / name]


def _end(this: Run) -> None:
    """Have the writers finish what is under way, and end."""
    for process in this.writers.values():
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
    for name, process in this.writers.items():
        _say(f"writer {name} ends")
        try:
            code = process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            this.faults.append(f"writer {name} ended with exit code {code}")


def _judge(this: Run) -> None:
    _say("everything is read")
    notes = [
        Note.of(line) for path in (this.volume.place / "notes").iterdir() for line in path.read_bytes().splitlines()
    ]
    fresh = this.volume.mount("judge")
    copies, faults, in_tmp = checks.read(fresh, MAILDIRS)
    if not this.away:  # what is given up while nothing can be removed stays there
        faults += [f"tmp/ has {name}" for name in in_tmp]
    faults += checks.compare(notes, copies, this.away)
    missing, wrong = checks.count_quota(fresh, copies)
    faults += wrong
    faults += checks.differences(this.volume.bricks, MAILDIRS)
    outcomes = Counter(note.outcome for note in notes)
    faults += [
        f"{note.outcome} while two bricks were there: {note.name} ({note.kind}): {note.reason}"
        for note in notes
        if note.outcome != "acknowledged"
        and not checks.is_put_off(note)
        and not any(note.ended >= a and note.began <= b for a, b in this.away)
    ]
    median, late, longest = checks.waits(notes)
    if longest > LONGEST_S:
        faults.append(f"a delivery took {longest:.1f} s")
    kinds = Counter(note.kind for note in notes if note.outcome == "acknowledged")
    if not all(kinds[kind] for kind in ("bytes", "stream", "folder", "keywords", "quota", "fan-out")):
        faults.append(f"some kind of mail was never acknowledged: {dict(kinds)}")
    there = {(copy.name, copy.maildir) for copy in copies}
    unknowable = sum((n.name, n.maildir) in there for n in notes if checks.is_unknowable(n, this.away))
    losses = sum(fault.startswith("lost") for fault in faults)
    this.told += [
        f"{MOUNTS * WRITERS} writers on {MOUNTS} mounts, one host name: {outcomes['acknowledged']:,} acknowledged "
        f"({', '.join(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))}), {losses} lost, "
        f"{outcomes['refused']:,} refused, {outcomes['uncertain']:,} uncertain",
        f"{sum(map(checks.is_put_off, notes))} messages put off: another had the lock of the keywords for ten seconds",
        f"{len(in_tmp)} files in tmp/, of messages refused while two bricks were away",
        f"{unknowable} messages refused by a rename without a quorum, which the heal has kept: a second copy each",
        f"maildirsize does not know of {missing} messages, which were recorded while it was counted elsewhere",
        f"wait of what was acknowledged: median {median * 1000:.0f} ms, 99 % {late * 1000:.0f} ms, "
        f"worst {longest:.1f} s",
    ]
    this.faults += faults


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.cluster", description=__doc__)
    parser.add_argument("--full", action="store_true", help="bricks killed, frozen, and two killed at once")
    parser.add_argument("--keep", action="store_true", help="leave the directory with bricks, notes and logs")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
