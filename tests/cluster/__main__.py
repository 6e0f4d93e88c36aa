"""The command: ``python -m tests.cluster``. Exit code 1 if anything is not as it should be."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import checks
from .mail import FAN_OUT, KINDS, MAILDIRS, Note
from .troubles import FULL, IMPATIENT_S, LONGEST_S, PATIENT_S, SHORT, Run, Trouble, say
from .volume import NotStartedError, Volume, run, wait_for

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

#: Each process here ends with the one that has started it, also if that is killed.
NAMESPACES: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"),
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
    say("")
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
        say(f"what a delivery costs on {label}")
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
        say("mail of each kind comes from each writer")
        wait_for(lambda: _have_begun(this), "every writer delivers mail of every kind", LONGEST_S, step=0.2)
        this.calm()
        for trouble, brick in troubles:
            trouble(this, brick)
            this.calm()
    finally:
        _end(this)
    say("healing")
    this.heal("healing after the last message")
    say("one message comes last")
    run(*_writer(this, "last", this.volume.mount("last")), "alone")
    _judge(this)


def _notes(this: Run) -> list[Note]:
    """Return all notes; of one that is being written, a last line may be without its end."""
    files = (path.read_bytes() for path in (this.volume.place / "notes").iterdir())
    return [Note.of(line) for data in files for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def _have_begun(this: Run) -> bool:
    """Whether each writer has delivered mail of each kind, so that no maildir and no folder is being made any more.

    A directory that several machines make while a brick is killed may have no quorum until it has healed: GlusterFS
    then says "no read subvols" in its log, and ENOTCONN to all.
    """
    come = (note for note in _notes(this) if note.outcome == "acknowledged")
    told = {(note.name.partition("-")[0], note.kind, note.maildir) for note in come}
    return len(told) == len(this.writers) * (len(KINDS) - 1 + len(FAN_OUT))


def _writer(this: Run, name: str, mount: Path) -> list[str | Path]:
    return [sys.executable, "-m", "tests.cluster.writer", name, mount, this.volume.place / "notes" / name]


def _end(this: Run) -> None:
    """Have the writers finish what is under way, and end."""
    for process in this.writers.values():
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
    for name, process in this.writers.items():
        say(f"writer {name} ends")
        try:
            code = process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            this.faults.append(f"writer {name} ended with exit code {code}")


def _judge(this: Run) -> None:
    say("everything is read")
    notes = _notes(this)
    fresh = this.volume.mount("judge")
    copies, faults, in_tmp = checks.read(fresh, MAILDIRS)
    if not any(map(checks.is_without_quorum, notes)):  # what is given up while nothing can be removed stays there
        faults += [f"tmp/ has {name}" for name in in_tmp]
    faults += checks.compare(notes, copies)
    missing, wrong = checks.count_quota(fresh, copies)
    faults += wrong
    faults += checks.differences(this.volume.bricks, MAILDIRS)
    outcomes = Counter(note.outcome for note in notes)
    faults += [
        f"{note.outcome} while two bricks were there: {note.name} ({note.kind}): {note.reason}"
        for note in notes
        if note.outcome != "acknowledged"
        and not checks.is_put_off(note)
        and not checks.is_without_quorum(note)
        and not any(note.ended >= a and note.began <= b for a, b in this.away)
    ]
    median, late, longest = checks.waits(notes)
    if longest > LONGEST_S:
        faults.append(f"a delivery took {longest:.1f} s")
    kinds = Counter(note.kind for note in notes if note.outcome == "acknowledged")
    if not all(kinds[kind] for kind in ("bytes", "stream", "folder", "keywords", "quota", "fan-out")):
        faults.append(f"some kind of mail was never acknowledged: {dict(kinds)}")
    there = {(copy.name, copy.maildir) for copy in copies}
    unknowable = sum((n.name, n.maildir) in there for n in notes if checks.is_unknowable(n))
    losses = sum(fault.startswith("lost") for fault in faults)
    this.told += [
        f"{MOUNTS * WRITERS} writers on {MOUNTS} mounts, one host name: {outcomes['acknowledged']:,} acknowledged "
        f"({', '.join(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))}), {losses} lost, "
        f"{outcomes['refused']:,} refused, {outcomes['uncertain']:,} uncertain",
        f"{sum(map(checks.is_put_off, notes))} messages put off: another had the lock of the keywords for ten seconds",
        f"{sum(map(checks.is_without_quorum, notes)):,} messages refused without a quorum (ENOTCONN)",
        f"{len(in_tmp)} files in tmp/, of messages refused so",
        f"{unknowable} messages refused by a rename without a quorum, which the heal has kept: a second copy each",
        f"maildirsize does not know of {missing} messages, which were recorded while it was counted elsewhere",
        f"wait of what was acknowledged: median {median * 1000:.0f} ms, 99 % {late * 1000:.0f} ms, "
        f"worst {longest:.1f} s",
    ]
    this.faults += faults


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.cluster", description=__doc__)
    parser.add_argument("--full", action="store_true", help="bricks killed, frozen, and two killed at once")
    parser.add_argument("--keep", action="store_true", help="leave the directory with bricks, notes and logs")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
