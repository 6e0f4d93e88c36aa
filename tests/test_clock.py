"""A process whose clock says 1970, or 2106: a machine without a battery, and one that somebody has set wrong.

Files have the time of the kernel, which is right: as where they are on another machine. That is the harder case.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from maildir_async.disk.dotlock import Waiting, take
from maildir_async.disk.posix import PosixDisk
from support import contents, forked

#: Seconds since the epoch: before it, at it, and when 32 bits without a sign are not enough any more.
CLOCKS: Final = {"before 1970": -5, "1970": 1, "2106": 2**32 + 5}

BEGIN: Final = """
import asyncio, os, sys, time
from datetime import UTC, datetime, timedelta

now, root = float(sys.argv[1]), sys.argv[2]
off = now - time.time()
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + off
time.time_ns = lambda: real_ns() + round(off * 1e9)

from maildir_async import *
from maildir_async.format.quota import parse_held

def maildir(name, **options):
    return Maildir(f"{root}/{name}", **options)

def run(main):
    asyncio.run(asyncio.wait_for(main(), 60))
"""

NAMES: Final = """
async def main():
    box = maildir("m")
    before = max(0, int(time.time()))
    delivered = [await box.append(b"%d" % number, flags="S" if number % 2 else "") for number in range(4)]
    delivered += await box.append_many([b"4", b"5"], atomic=True)
    keys = [each.key for each in delivered]
    assert all(before <= int(key.partition(".")[0]) <= before + 60 for key in keys), keys
    assert [(int(key.partition(".")[0]), key.partition("M")[2][:6]) for key in keys] == sorted(
        (int(key.partition(".")[0]), key.partition("M")[2][:6]) for key in keys
    )
    index = await box.index()
    assert [each.key for each in index] == keys
    for received_at in (datetime(1970, 1, 1, tzinfo=UTC), datetime(2106, 2, 7, 6, 28, 17, tzinfo=UTC), time.time()):
        told = received_at.timestamp() if isinstance(received_at, datetime) else received_at
        one = await box.append(b"x", received_at=received_at)
        assert abs(os.stat(one.path).st_mtime - told) < 1, (os.stat(one.path).st_mtime, told)
run(main)
"""

QUOTA: Final = """
async def main():
    box = maildir("m", quota=Quota(messages=3))
    await box.append_many([b"1", b"2", b"3"])
    for _ in range(3):
        try:
            await box.append(b"4")
        except QuotaExceededError:
            continue
        raise AssertionError
    held = parse_held(open(f"{root}/m/maildirsize", "rb").read())
    assert (held.bytes, held.messages) == (3, 3), held
    for name in os.listdir(f"{root}/m/new"):
        os.unlink(f"{root}/m/new/{name}")
    then = time.time() - 16 * 60  # by this clock: what it says is old
    os.utime(f"{root}/m/maildirsize", (then, then))
    await maildir("m", quota=Quota(messages=3)).append(b"4")
run(main)
"""

DUPLICATES: Final = """
async def main():
    options = {"duplicates": DuplicateFilter(f"{root}/seen", keep=timedelta(days=1))}
    assert not (await maildir("m", **options).append(b"1", duplicate_key="k")).duplicate
    assert (await maildir("m", **options).append(b"1", duplicate_key="k")).duplicate
    right = DuplicateFilter(f"{root}/seen", keep=timedelta(days=1), clock=real)
    assert not (await maildir("m", duplicates=right).append(b"1", duplicate_key="k")).duplicate
    assert (await maildir("m", duplicates=right).append(b"1", duplicate_key="k")).duplicate
run(main)
"""

SWEEP: Final = """
async def main():
    box = maildir("m")
    await box.create()
    async with box.open_append() as task:
        await task.send(b"x" * 600_000)
        while not task.bytes_written:
            await asyncio.sleep(0.001)
        assert await box.clean_tmp() == []  # what this process is writing is not litter, whatever the clock says
    assert len(os.listdir(f"{root}/m/new")) == 1
run(main)
"""

WATCH: Final = """
async def main():
    box = maildir("m")
    await box.append(b"first")
    seen = []
    async for message in box.watch(existing=True):
        seen.append(message.key)
        if len(seen) < 4:
            await box.append(b"%d" % len(seen), flags="S" if len(seen) == 2 else "")
        else:
            break
    assert len(set(seen)) == 4
run(main)
"""

KEYWORDS: Final = """
async def main():
    for number in range(3):
        delivered = await maildir("m").append(b"x", keywords=[f"k{number}"])
        assert delivered.path.endswith(f":2,{chr(97 + number)}")
    assert open(f"{root}/m/dovecot-keywords", "rb").read() == b"0 k0\\n1 k1\\n2 k2\\n"
    assert not [name for name in os.listdir(f"{root}/m") if name.endswith(".lock")]
run(main)
"""


@pytest.mark.parametrize("clock", ["1970", "2106", pytest.param("before 1970", marks=pytest.mark.heavy)])
def test_whatever_the_clock_says(tmp_path: Path, clock: str) -> None:
    """Names keep their order, times are kept, and quota, duplicates, sweeping, watching and keywords do their work."""
    parts = {
        "names": NAMES,
        "quota": QUOTA,
        "duplicates": DUPLICATES,
        "sweep": SWEEP,
        "watch": WATCH,
        "keywords": KEYWORDS,
    }
    for name in parts:
        (tmp_path / name).mkdir()
    script = BEGIN + "".join(f"\nroot = sys.argv[2] + '/{name}'\n{part}" for name, part in parts.items())
    command = [sys.executable, "-c", script, str(CLOCKS[clock]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(contents(tmp_path / "watch" / "m")["new"]) == 3


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("stamp", CLOCKS)
@pytest.mark.parametrize("lives", [True, False], ids=["living", "dead"])
def test_whose_process_lives_keeps_its_lock_whatever_the_clock_says(
    tmp_path: Path, clock: str, stamp: str, lives: bool
) -> None:
    """By a clock that has been set back, or on, meanwhile, a lock of a living process is kept; a dead one's is not."""
    path = tmp_path / "dovecot-uidlist.lock"
    path.write_text(f"{os.getppid() if lives else forked(os.getpid)[0]}:{os.uname().nodename}")
    os.utime(path, (CLOCKS[stamp], CLOCKS[stamp]))
    elapsed = itertools.count()
    now = CLOCKS[clock] if clock != stamp else CLOCKS[clock] + 3
    waiting = Waiting(5, clock=lambda: now, elapsed=lambda: next(elapsed), sleep=lambda _: None)
    if lives:
        with pytest.raises(BlockingIOError):
            take(PosixDisk(), str(path), 0o600, waiting, protects=f"{tmp_path}/dovecot-uidlist")
    else:
        take(PosixDisk(), str(path), 0o600, waiting, protects=f"{tmp_path}/dovecot-uidlist").release()
    assert path.exists() == lives
