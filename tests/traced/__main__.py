"""The command: ``python -m tests.traced``. Exit code 1 if anything is not as it should be."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from .kills import Result, kill_everywhere
from .scenarios import SCENARIOS

#: In the short form: the others take as long each as all of these.
SHORT: Final = ("alone", "streaming", "folder", "quota", "keywords", "transaction", "fan-out")


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, print a summary; return 1 if something was wrong."""
    parser = argparse.ArgumentParser("python -m tests.traced", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every call, also those that only look")
    parser.add_argument("--only", action="append", choices=sorted(SCENARIOS), help="may be repeated")
    parser.add_argument("--directory", type=Path, help="where to deliver; a temporary directory by default")
    options = parser.parse_args(arguments)
    reason = reason_not_to()
    if reason is not None:
        print(f"NOT TESTED WITH STRACE: {reason}", flush=True)
        return 0
    wrong = 0
    for name in options.only or (SCENARIOS if options.full else SHORT):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="maildir-traced-", dir=options.directory) as work:
            result = kill_everywhere(SCENARIOS[name], Path(work), full=options.full, say=_say)
        wrong += len(result.faults)
        _tell(result, time.monotonic() - began)
    return 1 if wrong else 0


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
    sys.exit(main())
