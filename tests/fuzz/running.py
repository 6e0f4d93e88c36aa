"""Running targets: without a fuzzer, by patterns, and each under atheris in a process of its own."""

import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from .inputs import by_chance, patterns, pieces_of

__all__ = ["Ran", "fuzz", "run_by_chance", "run_patterns"]

#: Seconds of a processor below which nothing can be said of how time grows.
LEAST_S: Final = 0.05

#: Four times as much takes four times as long, or a little more; a quadratic one takes sixteen.
RATIO: Final = 8.0

_COUNT: Final = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


class Ran(NamedTuple):
    """What has become of a target.

    Attributes:
        inputs: how many were tried.
        seconds: that it took.
        fault: what was found, with its input; or "".

    """

    inputs: int
    seconds: float
    fault: str = ""


def run_by_chance(target: Callable[[bytes], object], pieces: Sequence[bytes], seconds: float, seed: int) -> Ran:
    """Try inputs for so long, and some in any case."""
    began, count = time.monotonic(), 0
    for data in by_chance(pieces, seed):
        try:
            target(data)
        except Exception:
            return Ran(count, time.monotonic() - began, f"{data!r}\n{traceback.format_exc()}")
        count += 1
        if count >= 10 and time.monotonic() - began >= seconds:
            break
    return Ran(count, time.monotonic() - began)


def run_patterns(
    target: Callable[[bytes], object],
    pieces: Sequence[bytes],
    size: int,
    clock: Callable[[], float] = time.process_time,  # not the time of others on this machine
) -> Ran:
    """Try each pattern with that many octets; a fault too if time grows faster than they do, three times in a row."""

    def taken(data: bytes) -> float:
        since = clock()
        target(data)
        return clock() - since

    def grows(pattern: Callable[[int], bytes], many: float) -> bool:
        return many > LEAST_S and many > RATIO * taken(pattern(size // 4))

    began, count = time.monotonic(), 0
    for pattern in patterns(pieces):
        count += 1
        try:
            if all(grows(pattern, taken(pattern(size))) for _ in range(3)):
                fault = f"four times as much takes more than {RATIO:g} times as long: {pattern(60)!r}…"
                return Ran(count, time.monotonic() - began, fault)
        except Exception:
            return Ran(count, time.monotonic() - began, f"{pattern(60)!r}…\n{traceback.format_exc()}")
    return Ran(count, time.monotonic() - began)


def fuzz(name: str, seconds: int) -> Ran:
    """Run a target under atheris in a process of its own, from its pieces on."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        corpus, words = Path(directory, "corpus"), Path(directory, "words")
        corpus.mkdir()
        for number, data in enumerate(islice(by_chance(pieces_of(name), 1), 100)):
            Path(corpus, str(number)).write_bytes(data)
        # libFuzzer's words in hexadecimal; none is longer than 64 octets.
        lines = (
            '"' + "".join(f"\\x{octet:02x}" for octet in piece) + '"' for piece in pieces_of(name) if len(piece) < 64
        )
        words.write_text("\n".join(lines) + "\n")
        command = [
            sys.executable,
            "-m",
            "tests.fuzz",
            name,
            "--seconds",
            str(seconds),
            "--words",
            str(words),
            str(corpus),
        ]
        with Path(directory, "said").open("w+b") as said:
            ended = subprocess.run(command, stdout=said, stderr=said, check=False)
            said.seek(0)
            text = said.read().decode(errors="replace")
    found = _COUNT.search(text)
    fault = "" if ended.returncode == 0 and found is not None else text[-4000:]
    return Ran(int(found[1]) if found is not None else 0, time.monotonic() - began, fault)
