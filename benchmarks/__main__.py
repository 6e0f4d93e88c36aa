"""The command: ``python -m benchmarks``."""

import argparse
import json
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.build import UnavailableError
from benchmarks.case import Case, Form
from benchmarks.cases import cases
from benchmarks.conditions import conditions, interpreter
from benchmarks.filesystems import FileSystems, Place
from benchmarks.footprint import footprint
from benchmarks.peers import PEERS
from benchmarks.plots import draw
from benchmarks.report import json_of, markdown
from benchmarks.run import CaseResult, run_case

#: The name that --only has for what is no case: import time, object size, what an idle process holds.
FOOTPRINT: Final = "footprint"

#: Seconds of the timed part of a measurement, and rounds.
QUICK = (0.4, 3)
FULL = (1.0, 5)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return 1 if a measurement failed."""
    options = _parser().parse_args(arguments)
    seconds, rounds = FULL if options.full else QUICK
    form = Form(
        full=options.full,
        seconds=options.seconds or seconds,
        rounds=options.rounds or rounds,
        messages=options.messages,
        pythons={interpreter(python): python for python in options.python},
    )
    chosen = [_with_peers(case, options.peers) for case in cases(form) if re.search(options.only, case.name)]
    if options.list:
        for case in chosen:
            print(f"{case.name}: {case.title}; {case.filesystem}: {', '.join(entry.label for entry in case.entries)}")
        print(f"{FOOTPRINT}: import time, object size, what an idle process holds")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that what was made is removed
    began = time.monotonic()
    results: list[CaseResult] = []
    places: dict[str, Place] = {}
    extra: dict[str, float] = {}
    with FileSystems(options.directory) as file_systems:
        for number, case in enumerate(chosen, 1):
            _say(f"{number} of {len(chosen)}: {case.name}")
            result = run_case(case, file_systems, form.rounds_of(case), _say)
            results.append(result)
            if result.place is not None:
                places[case.filesystem if result.place.made else "the directory"] = result.place
        if re.search(options.only, FOOTPRINT):
            _say(FOOTPRINT)
            extra = footprint(file_systems.work)
    _say("")
    return _write(options.output, results, conditions(places), form, extra, time.monotonic() - began)


def _write(
    output: Path,
    results: list[CaseResult],
    found: dict[str, Any],
    form: Form,
    extra: dict[str, float],
    seconds: float,
) -> int:
    output.mkdir(parents=True, exist_ok=True)
    as_json = json_of(results, found, form, extra)
    (output / "results.json").write_text(json.dumps(as_json, indent=1) + "\n")
    text = markdown(results, found, form, extra)
    try:
        drawn = draw(as_json, output)
    except UnavailableError as exc:
        drawn = []
        text += f"\nNo plots: {exc}.\n"
    (output / "report.md").write_text(text + "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn))
    print(text)
    print(f"{seconds:.0f} s. In {output}/: report.md, results.json{''.join(f', {path.name}' for path in drawn)}")
    failures = [failure for result in results for line in result.lines.values() for failure in line.failures]
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under two minutes (the default)")
    size.add_argument("--full", action="store_true", help="everything, under half an hour")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name has this regular expression")
    parser.add_argument("--peers", default="", metavar="A,B", help="these peers only, and what they are compared with")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each case (3; full: 5)")
    parser.add_argument("--seconds", type=float, metavar="S", help="of each measurement, at most (0.4; full: 1)")
    parser.add_argument("--messages", type=int, metavar="N", help="at most so many a measurement: to try the rig")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="measure here, and make no file systems (which takes root)"
    )
    parser.add_argument("--python", action="append", default=[], metavar="PATH", help="another interpreter, for ours")
    parser.add_argument("--output", type=Path, default=Path("benchmarks-results"), metavar="DIR")
    parser.add_argument("--list", action="store_true", help="say what would be run, and run nothing")
    return parser


def _with_peers(case: Case, names: str) -> Case:
    if not names:
        return case
    wanted = set(names.split(","))
    unknown = wanted - set(PEERS)
    if unknown:
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    kept = tuple(entry for entry in case.entries if entry.peer in wanted or entry.label == case.baseline)
    return replace(case, entries=kept)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; what was made is removed")
