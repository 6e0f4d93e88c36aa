"""Run one target under atheris: ``python -m tests.fuzz TARGET [--seconds N] [CORPUS]``.

An input that fails is written to the working directory as ``crash-…``; ``python -m tests.fuzz TARGET FILE`` runs it
alone.
"""

import argparse
import importlib
import logging
import pkgutil
import sys
from pathlib import Path

import atheris


def main() -> None:
    """Parse the command line, and fuzz until time is up or something is found."""
    targets = sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_"
    )
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[name for name in targets if name != "session"])
    parser.add_argument("--seconds", type=int, default=0, help="stop after so many; 0 (the default) never does")
    parser.add_argument("corpus", nargs="*", help="directories of inputs, of which the first is added to; or files")
    args = parser.parse_intermixed_args()
    logging.disable(logging.CRITICAL)  # of what clients do wrong
    with atheris.instrument_imports(include=["maildir_async.smtp"]):
        module = importlib.import_module(f".{args.target}", __package__)
    atheris.Setup([sys.argv[0], f"-max_total_time={args.seconds}", "-timeout=5", *args.corpus], module.target)
    atheris.Fuzz()


main()
