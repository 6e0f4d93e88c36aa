"""The command: ``python -m tests.servers``. Exit code 1 if anything is not as it should be."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .checks import Verdict
from .dovecot import version
from .exposed import exposed
from .features import features
from .held import held
from .hostile import hostile
from .place import NotStartedError, Place
from .scenarios import FULL, SHORT, Form, flow

#: What has to be there, and the Debian package that has it.
PROGRAMS: Final = {
    "postfix": "postfix",
    "smtp-source": "postfix",
    "dovecot": "dovecot-imapd",
    "/usr/lib/dovecot/imap": "dovecot-imapd",
    "swaks": "swaks",
    "setpriv": "util-linux",
}

SCENARIOS: Final = ("flow", "kills", "hostile", "exposed", "features", "held")

#: The summary's figures, for each scenario, in their order.
TOLD: Final = ("accepted", "delivered", "refused", "bounces", "pairs in order", "seen while arriving")
TOLD_KILL: Final = ("kills", "tried again", "perhaps sent twice", "duplicates")


def main(arguments: list[str] | None = None) -> int:
    """Run the scenarios, print a summary; return 1 if something was wrong."""
    options = _parser().parse_args(arguments)
    reason = _reason_not_to(options.lmtp)
    if reason is not None:
        print(f"NOT TESTED WITH POSTFIX AND DOVECOT: {reason}", flush=True)
        return 0
    signal.signal(signal.SIGTERM, _terminated)  # so that the servers are ended
    form = FULL if options.full else SHORT
    scenarios = _scenarios(form, options.lmtp, options.dovecot_in)
    wrong = 0
    for name in options.only or scenarios:
        began = time.monotonic()
        try:
            with Place(keep=options.keep) as place:
                if options.keep:
                    print(f"in {place.path}")
                verdict = scenarios[name](place)
        except (NotStartedError, OSError, subprocess.SubprocessError) as exc:
            verdict = Verdict(faults=[f"{type(exc).__name__}: {exc}"])
        wrong += len(verdict.faults)
        _tell(name, verdict, time.monotonic() - began)
    return 1 if wrong else 0


def _terminated(*_: object) -> None:
    sys.exit("terminated; the servers are ended")


def _scenarios(form: Form, server: str, debian: Path | None) -> dict[str, Callable[[Place], Verdict]]:
    found: dict[str, Callable[[Place], Verdict]] = {
        "flow": lambda place: flow(place, form, _say, server=server, kill=False),
        "kills": lambda place: flow(place, form, _say, server=server, kill=True),
    }
    if server == "ours":
        found["hostile"] = lambda place: hostile(place, _say)
        found["exposed"] = lambda place: exposed(place, _say, debian)
        found["features"] = lambda place: features(place, _say, debian)
        found["held"] = lambda place: held(place, _say, form.held, debian)
    return found


def _reason_not_to(server: str) -> str | None:
    """Return what is missing."""
    if os.geteuid() != 0:
        return "it takes root, since Postfix is started by root"
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if server == "dovecot" and shutil.which("/usr/lib/dovecot/lmtp") is None:
        missing.append("dovecot-lmtpd")
    if missing:
        return f"apt-get install {' '.join(missing)}"
    if not version().startswith("2.3."):
        return f"Dovecot {version()}, whose configuration is another language than that of 2.3"
    return None


def _tell(name: str, verdict: Verdict, seconds: float) -> None:
    _say("")
    counts = verdict.counts
    names = [*TOLD, *(TOLD_KILL if counts["kills"] else ()), "planted faults found", "cases"]
    figures = [f"{counts[each]:,} {each}" for each in names if counts[each] or (each in TOLD_KILL and counts["kills"])]
    print(f"{name}: {'WRONG' if verdict.faults else 'right'} ({seconds:.0f} s): {', '.join(figures)}")
    for fault in verdict.faults[:50]:
        print(f"  {fault}")
    if len(verdict.faults) > 50:
        print(f"  and {len(verdict.faults) - 50} more")
    sys.stdout.flush()


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.servers", description=__doc__)
    parser.add_argument(
        "--full",
        action="store_true",
        help="2,000 messages of up to 20 MiB in each flow, 25 kills, 5,000 messages under a quota",
    )
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument(
        "--lmtp", default="ours", choices=["ours", "dovecot"], help="Dovecot's own, to see that the rig is right"
    )
    parser.add_argument(
        "--dovecot-in", metavar="ROOT", type=Path, help="root of a Debian 13, whose Dovecot 2.4 is to read too"
    )
    parser.add_argument("--keep", action="store_true", help="leave the directory with logs and mail")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the servers are ended")
