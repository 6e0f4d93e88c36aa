"""What ``python -m tests.powercut`` does: which recordings, how many states of each, and what is printed."""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .machine import FILE_SYSTEMS, FileSystem, own_machine, reason_not_to
from .partly import PARTS
from .rig import Rig, Verdict
from .workload import LEVELS, SCENARIOS

__all__ = ["main"]

#: What the rig must find with a part of the protocol taken out, on each file system.
PROOFS: Final = ("file-sync", "directory-sync", "order")


@dataclass(frozen=True, slots=True)
class Form:
    """How much of it.

    Attributes:
        states: of each recording.
        neighbours: also record each scenario beside a process that syncs all the time.
        proofs: states of each recording without a part of the protocol.

    """

    states: int
    neighbours: bool
    proofs: int


SHORT: Final = Form(7, neighbours=False, proofs=8)
FULL: Final = Form(70, neighbours=True, proofs=70)


def main(arguments: list[str] | None = None) -> int:
    """Record, cut, look; print a line for each recording. Return 1 if anything is not as it should be."""
    options = _parser().parse_args(arguments)
    reason = reason_not_to()
    if reason is not None:
        print(f"NO POWER CUTS TRIED: {reason}", flush=True)
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that all is taken away
    form, began, wrong = FULL if options.full else SHORT, time.monotonic(), 0
    with own_machine() as work:
        program = _compile(work)
        for name in options.only or FILE_SYSTEMS:
            file_system = FILE_SYSTEMS[name]
            reason = reason_not_to(file_system)
            if reason is not None:
                print(f"NO POWER CUTS TRIED ON {name}: {reason}", flush=True)
                continue
            print(f"{name}: {' '.join(file_system.make)}, options {file_system.options}", flush=True)
            states = 0
            for verdict, faults, line in _recordings(Rig(work, program, file_system), form, options):
                states += verdict.states
                wrong += bool(faults)
                print(f"  {line}")
                print("".join(f"    WRONG: {fault}\n" for fault in faults), end="", flush=True)
            print(f"{name}: {states} states", flush=True)
        wrong += _pessimist(Rig(work, program, FILE_SYSTEMS["ext4"]), options.scenario)
    print(f"power cuts: {'WRONG' if wrong else 'as it should be'}, {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


def _recordings(rig: Rig, form: Form, options: argparse.Namespace) -> Iterator[tuple[Verdict, list[str], str]]:
    """Yield what came of each recording, what is wrong with that, and a line that tells of it."""
    for scenario in options.scenario or SCENARIOS:
        for neighbour in (False, True) if form.neighbours else (False,):
            verdict = rig.run(scenario, form.states, seed=options.seed, neighbour=neighbour)
            name = scenario + (" beside a neighbour" if neighbour else "")
            yield verdict, _faults(scenario, verdict, rig.file_system), _line(name, verdict)
    if not options.scenario:
        for part in PROOFS:
            verdict = rig.run("width-16", form.proofs, seed=options.seed, without=part)
            missed = [] if verdict.faults else [f"without {part} nothing was found"]
            yield verdict, missed, _line(f"without {part}", verdict) + f"; found {_kinds(verdict)}"


def _pessimist(rig: Rig, scenarios: list[str] | None) -> int:
    """Hold the system calls of each workload against a pessimist's file system; return how often it complains."""
    reason = reason_not_to(rig.file_system) or (None if shutil.which("strace") else "no strace")
    if reason is not None:
        print(f"NO SYSTEM CALLS TRACED: {reason}", flush=True)
        return 0
    wrong = 0
    print("a pessimist's model of the system calls:")
    runs: list[tuple[str, str | None]] = [(each, None) for each in scenarios or SCENARIOS if each != "level-none"]
    if not scenarios:
        runs += [(scenario, part) for scenario in ("maildirs", "width-16") for part in PARTS]
    for scenario, part in runs:
        found = rig.trace(scenario, part)
        name = scenario + (f" without {part}" if part else "")
        line = f"  {name:32} {found.acknowledged:4} acknowledged {len(found.faults):4} faults"
        is_wrong = bool(found.faults) != (part is not None)
        wrong += is_wrong
        print(line + (f"\n    WRONG: {found.faults[:3] or 'nothing was found'}" if is_wrong else ""), flush=True)
    return wrong


def _faults(scenario: str, verdict: Verdict, file_system: FileSystem) -> list[str]:
    faults = [f"{_kinds(verdict)}; the first:\n    {verdict.first}"] if verdict.faults else []
    if scenario in LEVELS and not verdict.lost:
        faults.append("a level that promises less has lost nothing")
    if scenario not in LEVELS and verdict.lost:
        faults.append(f"{verdict.lost} acknowledged messages were not there")
    if verdict.kernel_aio != file_system.kernel_aio:
        faults.append(f"kernel AIO was {'' if verdict.kernel_aio else 'not '}used")
    return faults


def _kinds(verdict: Verdict) -> str:
    return ", ".join(f"{count} times {kind!r}" for kind, count in verdict.faults.most_common()) or "nothing"


def _line(name: str, verdict: Verdict) -> str:
    writes, flushes, _ = verdict.recorded
    line = f"{name:32} {writes:5} writes {flushes:4} flushes {verdict.states:4} states {verdict.promised:6} promised"
    line += f" {verdict.lost:5} lost {verdict.torn:5} torn {verdict.seconds:6.1f} s"
    return line + (f", {verdict.locks} locks left" if verdict.locks else "")


def _compile(work: Path) -> Path:
    program = work / "recorder"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    source = Path(__file__).with_name("recorder.c")
    command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source), *flags.stdout.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or done.stderr:
        sys.exit(done.stderr)
    return program


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description="Power cuts on real file systems.")
    parser.add_argument("--full", action="store_true", help="the long form: some 2,500 states on each file system")
    parser.add_argument("--only", action="append", choices=FILE_SYSTEMS, help="on this file system alone")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="with this workload alone")
    parser.add_argument("--seed", type=int, default=0, help="another choice of states")
    return parser
