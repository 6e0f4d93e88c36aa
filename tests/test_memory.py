"""Bounded memory: what a process grows by while it stores streams, measured in processes of their own.

Run as a program, this file is the process that is measured.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

import maildir_async
from maildir_async import Delivered, Maildir

MIB = 2**20
CHUNK = 64 * 1024
PATTERN = (bytes(range(256)) + b"\r\n")[-256:] * (CHUNK // 256)


async def same(size: int) -> AsyncGenerator[bytes, None]:
    """Yield one object again and again."""
    for _ in range(size // CHUNK):
        yield PATTERN


async def fresh(size: int) -> AsyncGenerator[bytes, None]:
    """Yield a new object each time, as a socket does."""
    for _ in range(size // CHUNK):
        await asyncio.sleep(0)
        yield bytes(bytearray(PATTERN))


async def tiny(size: int) -> AsyncGenerator[bytes, None]:
    """Yield a line at a time."""
    for _ in range(size // 256):
        yield PATTERN[:256]


def status(field: str) -> int:
    """Return bytes of one kind that this process has, from what Linux tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(path: str, kind: str, streams: int, size: int, newline: Any) -> None:
    """Store so many streams side by side, and print what this process has grown by, at its largest."""

    async def store() -> list[Delivered]:
        maildir = Maildir(path)
        messages = (globals()[kind](size) for _ in range(streams))
        return await maildir.append_many(messages, concurrency=streams, newline=newline)

    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted from here
    before = status("VmRSS")
    began = time.monotonic()
    delivered = asyncio.run(store())
    took_s = time.monotonic() - began
    grown = status("VmHWM") - before
    sizes = sorted({(one.size, one.wire_size) for one in delivered})
    print(json.dumps({"grown": grown, "took_s": took_s, "stored": len(delivered), "sizes": sizes}))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Path]:
    """A maildir that is removed at once: it may be large."""
    yield tmp_path / "box"
    shutil.rmtree(tmp_path / "box", ignore_errors=True)


def grown(box: Path, kind: str, streams: int, size: int, newline: str = "keep") -> int:
    """Return what a process grows by that stores such streams; assert that it does store them."""
    arguments = [str(box), kind, str(streams), str(size), newline]
    child = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1])},
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    told = json.loads(child.stdout)
    print(f"{streams} x {size / MIB:.0f} MiB {kind} {newline}: {told['grown'] / MIB:.1f} MiB, {told['took_s']:.1f} s")
    files = list((box / "new").iterdir())
    assert [told["stored"], len(files)] == [streams, streams]
    if newline == "keep":
        assert {file.stat().st_size for file in files} == {size} == {stored for stored, _ in told["sizes"]}
        with open(files[-1], "rb") as stored:
            assert all(chunk == PATTERN for chunk in iter(lambda: stored.read(CHUNK), b""))
    assert list((box / "tmp").iterdir()) == []
    return int(told["grown"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("kind", ["same", "fresh"])
def test_one_large_stream(box: Path, kind: str, size: int) -> None:
    """A stream of up to 1 GiB is stored byte for byte, and grows the process by less than 16 MiB."""
    assert grown(box, kind, 1, size) < 16 * MIB


@pytest.mark.parametrize("size", [32 * MIB, pytest.param(128 * MIB, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("newline", ["lf", "crlf"])
def test_one_converted_stream(box: Path, newline: str, size: int) -> None:
    """A stream whose line ends are converted grows the process by no more."""
    assert grown(box, "fresh", 1, size, newline) < 16 * MIB


@pytest.mark.parametrize("size", [12 * MIB, pytest.param(64 * MIB, marks=pytest.mark.heavy)])
def test_a_stream_of_lines(box: Path, size: int) -> None:
    """A stream of many small chunks costs its bytes, not an object for each."""
    assert grown(box, "tiny", 1, size) < 16 * MIB


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "size"),
    [("fresh", 4 * MIB)]
    + [pytest.param(kind, size * MIB, marks=pytest.mark.heavy) for kind, size in (("same", 8), ("fresh", 24))],
)
def test_many_streams(box: Path, kind: str, size: int) -> None:
    """64 streams of up to 24 MiB at once grow the process by less than 128 MiB."""
    assert grown(box, kind, 64, size) < 128 * MIB


if __name__ == "__main__":
    measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
