"""The command: ``python -m tests.storm``. Exit code 1 if anything is not as it should be."""

import argparse
import contextlib
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from . import world
from .planted import PLANTED
from .schedules import Step, draw
from .shrinking import as_test, run, shrink

ROOT: Final = Path(__file__).resolve().parents[2]

#: Schedules of the short and of the long form; and of each so many one has a helper process, which takes long to start.
SHORT: Final = 400
FULL: Final = 10_000
HELPED_EVERY: Final = 50

#: Seconds for one schedule, after which its process is ended. It should have told before what hangs.
HANGS_S: Final = 400


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, print a summary; return 1 if something was wrong."""
    parser = argparse.ArgumentParser("python -m tests.storm", description=__doc__)
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} schedules; {SHORT} by default")
    parser.add_argument("--schedules", type=int, help="another number of them")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one alone, in this process; shrunk if it fails")
    parser.add_argument("--helper", action="store_true", help=f"all with a helper process: else one in {HELPED_EVERY}")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes side by side")
    parser.add_argument("--directory", type=Path, help="where to deliver; /dev/shm by default, where there is one")
    parser.add_argument("--plant", choices=sorted(PLANTED), help="break the library, to see that it is found")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.directory is None and os.access("/dev/shm", os.W_OK):
        options.directory = Path("/dev/shm")
    if options.plant is not None:
        PLANTED[options.plant].plant()
        world.PATIENCE_S = 10.0  # some of them have a delivery hang
    if options.worker is not None:
        _work(options)
        return 0
    if options.seed is not None:
        return _one(options)
    return _many(options)


def _schedule(seed: int, options: argparse.Namespace) -> list[Step]:
    return draw(seed, helper=options.helper or seed % HELPED_EVERY == HELPED_EVERY - 1)


def _prepare() -> None:
    warnings.simplefilter("ignore")  # coroutines that a closed loop has never run, and forks beside threads
    gc.collect()
    gc.freeze()


def _one(options: argparse.Namespace) -> int:
    """Run one schedule, and shrink it if it fails."""
    _prepare()
    schedule = _schedule(options.seed, options)
    for each in schedule:
        print(f"    {each!r},")
    faults = run(schedule, options.directory)
    print("\n".join(faults) if faults else "right", flush=True)
    if not faults:
        return 0
    small = shrink(schedule, lambda fewer: any(run(fewer, options.directory) for _ in range(2)))
    print(as_test(f"storm_{options.seed}", small, run(small, options.directory) or faults))
    return 1


def _work(options: argparse.Namespace) -> None:
    """Run schedules, and tell of each by a line of JSON. After one that has failed nothing is as it was: it ends."""
    _prepare()
    for seed in range(options.first, options.first + options.schedules, options.worker):
        _tell(seed=seed)
        schedule = _schedule(seed, options)
        faults = run(schedule, options.directory)
        if faults:
            _tell(seed=seed, faults=faults, steps=len(schedule))
            if options.plant is not None:
                return
            fewest = shrink(schedule, lambda fewer: any(run(fewer, options.directory) for _ in range(2)))
            _tell(seed=seed, test=as_test(f"storm_{seed}", fewest, run(fewest, options.directory) or faults))
            return
        _tell(seed=seed, steps=len(schedule))


def _tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


class _Tally:
    """What the workers have told."""

    def __init__(self) -> None:
        self.schedules = self.steps = 0
        self.faults = dict[int, list[str]]()
        self.tests = dict[int, str]()
        self.processes = set[subprocess.Popen[str]]()
        self.is_over = False


def _many(options: argparse.Namespace) -> int:
    """Have processes run the schedules side by side."""
    count = options.schedules or (FULL if options.full else SHORT)
    began, tally = time.monotonic(), _Tally()

    def end(*_: object) -> None:
        tally.is_over = True
        for process in list(tally.processes):
            process.kill()

    signal.signal(signal.SIGTERM, end)
    threads = [
        threading.Thread(target=_see_through, args=(options, options.first + at, count - at, tally))
        for at in range(options.jobs)
    ]
    with tempfile.TemporaryDirectory(prefix="maildir-storms-", dir=options.directory) as directory:
        options.directory = Path(directory)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # also where this is interrupted
            end()
            for thread in threads:
                thread.join()
    ended = ", and ended before its time" if tally.schedules < count and not tally.faults else ""
    verdict = f"{len(tally.faults)} WRONG" if tally.faults else f"right{ended}"
    seconds = time.monotonic() - began
    print(f"{tally.schedules:,} schedules of {tally.steps:,} steps: {verdict} ({seconds:.0f} s)")
    for seed, faults in sorted(tally.faults.items()):
        print(f"seed {seed}:")
        for fault in faults[:8]:
            print(f"  {fault}")
        if seed in tally.tests:
            print(tally.tests[seed])
    sys.stdout.flush()
    return 1 if tally.faults or ended else 0


def _see_through(options: argparse.Namespace, first: int, count: int, tally: _Tally) -> None:
    """Have one process after another run every so-manyth schedule from *first* on."""
    end = first + count
    enough = 1 if options.plant is not None else 5
    while first < end and len(tally.faults) < enough and not tally.is_over:
        command = [sys.executable, "-m", "tests.storm", "--worker", str(options.jobs), "--first", str(first)]
        command += ["--schedules", str(end - first)]
        if options.directory is not None:
            command += ["--directory", str(options.directory)]
        if options.helper:
            command += ["--helper"]
        if options.plant is not None:
            command += ["--plant", options.plant]
        seed = first
        with _started(command, tally) as lines:
            for line in lines:
                told = json.loads(line)
                seed = told["seed"]
                if "steps" in told:
                    tally.schedules += 1
                    tally.steps += told["steps"]
                    first = seed + options.jobs
                if "faults" in told:
                    tally.faults[seed] = told["faults"]
                    print(f"seed {seed}: {told['faults'][0]}", file=sys.stderr, flush=True)
                if "test" in told:
                    tally.tests[seed] = told["test"]
            if first <= seed and not tally.is_over:  # it ended in the midst of this one
                tally.faults[seed] = ["the process hung, or ended, without a word"]
                first = seed + options.jobs


@contextlib.contextmanager
def _started(command: list[str], tally: _Tally) -> Iterator[Iterator[str]]:
    """Have a process run, and yield its lines until it ends or says nothing for too long. It is gone in the end."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        stream = process.stdout
        tally.processes.add(process)

        def read() -> None:
            for line in stream:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()

        def heard() -> Iterator[str]:
            while True:
                try:
                    line = lines.get(timeout=HANGS_S)
                except queue.Empty:
                    return
                if line is None:
                    return
                yield line

        try:
            yield heard()
        finally:
            process.kill()
            process.wait()
            tally.processes.discard(process)
            reader.join()


if __name__ == "__main__":
    sys.exit(main())
