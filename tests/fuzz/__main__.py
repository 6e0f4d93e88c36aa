"""``python -m tests.fuzz``: the short form. ``--full``: the long one. ``TARGET``: one of them, until it fails.

Exit code 1 if anything is not as it should be. Under atheris an input that fails is written to the working directory as
``crash-…``; ``python -m tests.fuzz TARGET FILE`` runs it alone.
"""

import argparse
import importlib.util
import logging
import sys
import time

from . import TARGETS
from .inputs import most_of, pieces_of, target_of
from .running import Ran, fuzz, run_by_chance, run_patterns

#: Octets of a pattern, in the short form and in the long one.
SHORT, LONG = 1 << 15, 1 << 20


def main() -> int:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS), help="one, under atheris")
    parser.add_argument("--full", action="store_true", help="all of them under atheris, and patterns of a megabyte")
    parser.add_argument("--seconds", type=int, help="for each: 1 in the short form, 300 in the long one, of one no end")
    parser.add_argument("--seed", type=int, default=1, help="of the short form")
    parser.add_argument("--words", help="a file of words for atheris (libFuzzer's -dict)")
    parser.add_argument("corpus", nargs="*", help="directories of inputs, of which the first is added to; or files")
    args = parser.parse_intermixed_args()
    logging.disable(logging.CRITICAL)  # of what clients do wrong
    if args.target is not None:
        return _run_one(args)
    has_fuzzer = importlib.util.find_spec("atheris") is not None
    if args.full and not has_fuzzer:
        print("atheris is not installed (pip install atheris): inputs are put together by chance instead")
    seconds = args.seconds if args.seconds is not None else 300 if args.full else 1
    return _run_all(seconds, args.seed, LONG if args.full else SHORT, has_fuzzer=args.full and has_fuzzer)


def _run_all(seconds: int, seed: int, size: int, *, has_fuzzer: bool) -> int:
    began, is_right = time.monotonic(), True
    for name in sorted(TARGETS):
        target, pieces = target_of(name), pieces_of(name)
        ran = fuzz(name, seconds) if has_fuzzer else run_by_chance(target, pieces, seconds, seed)
        repeated = run_patterns(target, pieces, min(size, most_of(name))) if not ran.fault else Ran(0, 0)
        text = f"{name:14} {ran.inputs:9,} inputs in {ran.seconds:.0f} s"
        print(f"{text}, {repeated.inputs} patterns in {repeated.seconds:.1f} s", flush=True)
        for fault in filter(None, (ran.fault, repeated.fault)):
            print(f"FAULT in {name}: {fault}", flush=True)
            is_right = False
    print(f"{'all is right' if is_right else 'NOT RIGHT'}, in {time.monotonic() - began:.0f} s")
    return 0 if is_right else 1


def _run_one(args: argparse.Namespace) -> int:
    import atheris

    # What is under test alone: the whole package would take half a minute.
    modules = {"maildir_async." + function.partition(":")[0] for function in TARGETS[args.target][1]}
    with atheris.instrument_imports(include=sorted(modules)):
        target = target_of(args.target)
    given = [f"-max_total_time={args.seconds or 0}", "-timeout=20", "-print_final_stats=1", "-max_len=4096"]
    given += [f"-dict={args.words}"] if args.words else []
    atheris.Setup([sys.argv[0], *given, *args.corpus], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
