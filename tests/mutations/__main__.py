"""The command: ``python -m tests.mutations``. Exit code 1 if a line can be broken and its test passes."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from .lines import MUTATIONS, Mutation

ROOT: Final = Path(__file__).resolve().parents[2]

#: Seconds for one test. Which hangs, without its line, has failed.
PATIENCE_S: Final = 60

#: What a copy has no use for.
_LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "results", "Maildir"
)


def main(arguments: list[str] | None = None) -> int:
    """Break each line in turn; return 1 if that was not found out."""
    parser = argparse.ArgumentParser("python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", action="append", choices=[each.name for each in MUTATIONS], help="may be repeated")
    parser.add_argument("--every", type=int, default=1, help="every so-manyth line alone: 6 takes half a minute")
    options = parser.parse_args(arguments)
    asked = [each for each in MUTATIONS if each.name in options.only] if options.only else MUTATIONS[:: options.every]
    missed = list[str]()
    with tempfile.TemporaryDirectory(prefix="maildir-mutations-") as work:
        tree = Path(work) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        began = time.monotonic()
        said = _run(tree, *sorted({each.test for each in asked}))
        if said is not None:
            print(f"the tests do not pass on the tree as it is:\n{said}")
            return 1
        for each in asked:
            if _is_caught(tree, each):
                continue
            missed.append(each.name)
            print(f"NOT CAUGHT: {each.name}: {each.why} ({each.file}), by {each.test}", flush=True)
    print(f"{len(asked) - len(missed)} of {len(asked)} broken lines caught ({time.monotonic() - began:.0f} s)")
    return 1 if missed else 0


def _is_caught(tree: Path, mutation: Mutation) -> bool:
    """Break the line, run its test, and mend it; return whether the test failed."""
    file = tree / "maildir_async" / mutation.file
    before = file.read_text()
    file.write_text(before.replace(mutation.text, mutation.broken))
    try:
        return _run(tree, mutation.test) is not None
    finally:
        file.write_text(before)


def _run(tree: Path, *tests: str) -> str | None:
    """Run tests in *tree*; return None if they pass, or what was said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += ["--numprocesses", "0" if len(tests) == 1 else "2", "--timeout", str(PATIENCE_S), *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE_S * max(2, len(tests))
        )
    except subprocess.TimeoutExpired as exc:
        return str(exc)
    return None if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is cleaned up
    sys.exit(main())
