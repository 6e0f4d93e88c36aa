"""The command: ``python -m tests.traced``. Exit code 1 if anything is not as it should be."""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from .faults import FAULTED, fail_everywhere
from .kills import Result, kill_everywhere
from .real import REAL, MissingError
from .scenarios import SCENARIOS

#: In the short form: the others take as long each as all of these.
SHORT: Final = ("alone", "streaming", "folder", "quota", "keywords", "transaction", "fan-out")
SHORT_FAULTS: Final = ("alone", "streaming")


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, print a summary; return 1 if something was wrong."""
    parser = argparse.ArgumentParser("python -m tests.traced", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every call, also those that only look")
    parser.add_argument("--rig", choices=["kills", "faults", "real"], help="all by default")
    parser.add_argument("--only", action="append", choices=sorted([*SCENARIOS, *REAL]), help="may be repeated")
    parser.add_argument("--directory", type=Path, help="where to deliver; a temporary directory by default")
    options = parser.parse_args(arguments)
    wrong = 0
    for name, case in REAL.items():
        if options.rig in (None, "real") and (not options.only or name in options.only):
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="maildir-traced-", dir=options.directory) as work:
                try:
                    result = case(Path(work))
                except MissingError as exc:
                    _say("")
                    print(f"NOT TESTED: {name}: {exc}", flush=True)
                    continue
            wrong += len(result.faults)
            _tell(result, time.monotonic() - began)
    reason = reason_not_to()
    if reason is not None:
        print(f"NOT TESTED WITH STRACE: {reason}", flush=True)
        return 1 if wrong else 0
    for rig, name in _asked_for(options):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="maildir-traced-", dir=options.directory) as work:
            make = {"kills": kill_everywhere, "faults": fail_everywhere}[rig]
            result = make(SCENARIOS[name], Path(work), full=options.full, say=_say)
        wrong += len(result.faults)
        _tell(result, time.monotonic() - began)
    return 1 if wrong else 0


def _asked_for(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the rigs and the programs for each."""
    found = list[tuple[str, str]]()
    for rig, long, short in (("kills", tuple(SCENARIOS), SHORT), ("faults", FAULTED, SHORT_FAULTS)):
        if options.rig in (None, rig):
            names = long if options.full or options.only else short
            found += [(rig, name) for name in names if not options.only or name in options.only]
    return found


def reason_not_to() -> str | None:
    """Return what is missing."""
    if shutil.which("strace") is None:
        return "apt-get install strace"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


def _tell(result: Result, seconds: float) -> None:
    _say("")
    figures = ", ".join(f"{count:,} {what}" for what, count in result.figures.items())
    verdict = "WRONG" if result.faults else "right"
    print(
        f"{result.name}: {verdict} ({seconds:.0f} s): {figures}; the next process took {result.slowest_s:.2f} s at most"
    )
    for fault in result.faults[:30]:
        print(f"  {fault}")
    if len(result.faults) > 30:
        print(f"  and {len(result.faults) - 30} more")
    sys.stdout.flush()


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is cleaned up
    sys.exit(main())
