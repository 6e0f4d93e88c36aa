"""The command: ``python -m tests.soak``. Exit code 1 if anything is not as it should be."""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .faults import FAULTS
from .load import PLANTS
from .million import grow
from .plot import draw
from .verdict import ALLOWED, ALLOWED_SHORT, judge, read, summary

#: Mount namespaces and loop devices of the rig that cuts the power. Type checkers know it by another name.
machine: Final[Any] = importlib.import_module("tests.powercut.machine")

SIZE: Final = 768 << 20
EXT4: Final = machine.FileSystem(
    "ext4",
    ("mkfs.ext4", "-q", "-F", "-m", "0", "-N", "131072", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    SIZE,
    "",
    512,
    kernel_aio=True,
)
EXT4_LARGE: Final = machine.FileSystem(
    "ext4",
    ("mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    16 << 30,
    "",
    512,
    kernel_aio=True,
)
_libc: Final = ctypes.CDLL(None)
PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str] | None = None) -> int:
    """Run it, print a summary; return 1 if something was wrong."""
    options = _parser().parse_args(arguments)
    if sys.platform != "linux" or os.geteuid() or not os.path.exists("/dev/loop-control"):
        print("NO SOAK: mounting takes root and loop devices, on Linux", flush=True)
        return 0
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that all is taken away
    wrong = 0
    if not options.million:
        options.seconds = options.seconds or (3600.0 if options.full else 60.0)
        wrong |= _soak(options)
    if options.million or options.full:
        with disk(EXT4_LARGE, options.directory) as root:
            wrong |= grow(root, options.messages, options.output)
    return wrong


@contextlib.contextmanager
def disk(kind: Any, directory: Path | None) -> Iterator[Path]:
    """Have a fresh file system mounted, on a file that has no name: it goes with its last user, however that ends."""
    with machine.own_machine() as work, tempfile.TemporaryFile(dir=directory) as image:
        os.truncate(image.fileno(), kind.size)
        path = Path(f"/proc/{os.getpid()}/fd/{image.fileno()}")
        subprocess.run([*kind.make, path], check=True)
        root = work / "mail"
        root.mkdir()
        with machine.mounted(path, root, kind, direct=True):
            yield root


def _soak(options: argparse.Namespace) -> int:
    began = time.monotonic()
    with disk(EXT4, options.directory) as root:
        work = root.parent
        reading = _start("reader", str(root), str(work / "notes"), pipes=True)
        command = [str(root), str(work), f"--seconds={options.seconds}", f"--rate={options.rate}"]
        command += [f"--seed={options.seed}", "--faults", *(options.faults or FAULTS)]
        program = _start("program", *command, *(["--plant", options.plant] if options.plant else []))
        try:
            status = _wait(program, reading, options.seconds + 300)
            found = json.loads(reading.communicate(timeout=300)[0])
        finally:
            for process in (program, reading):
                process.kill()
                process.wait()
        lines = read(work / "journal")
    faults, medians = judge(lines, ALLOWED if options.seconds >= 600 else ALLOWED_SHORT)
    if status:
        faults.append(f"the program ended with {status}")
    faults += found["faults"]
    told: dict[str, Any] = {
        "seconds": options.seconds,
        "took": round(time.monotonic() - began),
        "reader": found["counts"],
        "medians": medians,
        "faults": faults,
        **summary(lines),
    }
    _print(told)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "soak.json").write_text(json.dumps(told))
        (options.output / "soak.svg").write_text(draw(told))
    return 1 if faults else 0


def _wait(program: "subprocess.Popen[bytes]", reading: "subprocess.Popen[bytes]", seconds: float) -> int:
    """Wait for the program's end; without its reader the disk would fill, and nothing be known."""
    until = time.monotonic() + seconds
    while (status := program.poll()) is None:
        if reading.poll() is not None or time.monotonic() > until:
            raise RuntimeError(
                f"the rig: the reader ended with {reading.poll()}, or the program did not in {seconds} s"
            )
        time.sleep(0.2)
    return status


def _start(module: str, *arguments: str, pipes: bool = False) -> "subprocess.Popen[bytes]":
    stream = subprocess.PIPE if pipes else None
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.soak.{module}", *arguments],
        stdin=stream,
        stdout=stream,
        preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _print(told: dict[str, Any]) -> None:
    counts = told["reader"]
    print(f"soak: {'WRONG' if told['faults'] else 'right'} ({told['took']} s)")
    print(
        f"  {counts.get('A', 0):,} acknowledged, {counts.get('R', 0):,} refused, {counts.get('C', 0):,} cancelled "
        f"({counts.get('cancelled, and there', 0):,} there), {counts.get('U', 0):,} uncertain"
    )
    for name, (before, after) in told["medians"].items():
        print(f"  {name}: {before:,.0f} in the second quarter, {after:,.0f} in the last")
    for name, latency in told["latency_ms"].items():
        print(f"  {name}: {', '.join(f'{key} {value:,g}' for key, value in latency.items())} ms")
    for fault in told["faults"][:40]:
        print(f"  WRONG: {fault}")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Mixed load, and faults in turn.")
    parser.add_argument("--full", action="store_true", help="an hour, and then --million")
    parser.add_argument("--seconds", type=float, help="so long instead")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual rate, some 200 messages a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, help="only these")
    parser.add_argument("--plant", choices=PLANTS, help="do what must be found: the rig's own test")
    parser.add_argument("--million", action="store_true", help="only grow a maildir to a million messages")
    parser.add_argument("--messages", type=int, default=1_000_000, help="or to so many")
    parser.add_argument("--directory", type=Path, help="where the disk's file lies; it has no name there")
    parser.add_argument("--output", type=Path, help="write soak.json, soak.svg and million.json into this directory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
