"""Whether a delivery costs more in a maildir that has a million messages.

The model. The machine has moods: another program, a journal that commits, a processor's clock. So the cost of a
delivery to the large maildir is never held against another time's, but against that of a delivery to a small one, on
the same file system and in the same moment: 250 go to one, 250 to the other, and so on, ten thousand each. That is done
when the large one is empty, and when it has all but its last ten thousand. What is told is how many times as much it
costs beside its neighbour at the end, divided by the same at the beginning, where both are empty and it has to be about
one; for time and for this process's CPU (with the system's part of it). Messages of 1 KiB, `Durability.FULL`, 64 in
flight.
"""

import asyncio
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any, Final

from maildir_async import Maildir

__all__ = ["grow"]

IN_FLIGHT: Final = 64
MEASURED: Final = 10_000
TURN: Final = 250
MESSAGE: Final = b"Subject: one of a million\n\n" + b"x" * 995 + b"\n"

#: How much more a delivery may cost at the end.
MOST: Final = 1.2


def grow(root: Path, messages: int, output: Path | None) -> int:
    """Grow a maildir below *root* to so many messages; print what a delivery costs. Return 1 if it is too much."""
    measured = min(MEASURED, messages // 4)
    found = asyncio.run(_grow(root, messages, measured))
    worst = max(found["time"], found["cpu"])
    verdict = "right" if worst <= MOST else "WRONG"
    print(f"million: {verdict}: the last {measured:,} of {messages:,} cost, beside a small maildir, against the first:")
    print(f"  {found['time']:.3f} times the time, {found['cpu']:.3f} times the CPU; at most {MOST} is allowed")
    for name in ("first", "last"):
        for which in ("large", "small"):
            seconds, cpu = found[name][which]
            print(f"  {name} {measured:,}, {which}: {seconds * 1e6:,.0f} µs, {cpu * 1e6:,.0f} µs of CPU a message")
        seconds, cpu = found[name]["times as much"]
        print(f"  {name} {measured:,}, large against small: {seconds:.3f} times the time, {cpu:.3f} times the CPU")
    print(f"  {found['stored']:,} messages stored in {found['took']:,.0f} s", flush=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "million.json").write_text(json.dumps(found))
    return 0 if worst <= MOST and found["stored"] == messages else 1


async def _grow(root: Path, messages: int, measured: int) -> dict[str, Any]:
    began, large = time.monotonic(), Maildir(root / "large")
    first = await _beside(large, Maildir(root / "small1"), measured)
    await asyncio.to_thread(shutil.rmtree, root / "small1")
    left = messages - 2 * measured
    while left:
        part = min(left, 5000)
        await large.append_many([MESSAGE] * part, concurrency=IN_FLIGHT)
        left -= part
    last = await _beside(large, Maildir(root / "small2"), measured)
    stored = await asyncio.to_thread(lambda: sum(1 for _ in (root / "large" / "new").iterdir()))
    time_ratio, cpu_ratio = (last["times as much"][each] / first["times as much"][each] for each in (0, 1))
    took = time.monotonic() - began
    return {"first": first, "last": last, "time": time_ratio, "cpu": cpu_ratio, "stored": stored, "took": took}


async def _beside(large: Maildir, small: Maildir, count: int) -> dict[str, tuple[float, float]]:
    """Deliver so many to each, in turns; return seconds and seconds of CPU for a message: the medians of the turns.

    And how many times as much each is for the large one: the median over pairs of turns, which had the same moment.
    """
    taken: dict[str, list[tuple[float, float]]] = {"large": [], "small": []}
    done = 0
    while done < count:
        turn = min(TURN, count - done)
        order = [("large", large), ("small", small)]
        for name, maildir in order if done // TURN % 2 else order[::-1]:
            began, cpu = time.perf_counter(), time.process_time()
            await maildir.append_many([MESSAGE] * turn, concurrency=IN_FLIGHT)
            taken[name].append(((time.perf_counter() - began) / turn, (time.process_time() - cpu) / turn))
        done += turn
    taken["times as much"] = [
        (large_turn[0] / small_turn[0], large_turn[1] / small_turn[1])
        for large_turn, small_turn in zip(taken["large"], taken["small"], strict=True)
    ]
    return {
        name: (statistics.median(seconds for seconds, _ in turns), statistics.median(cpu for _, cpu in turns))
        for name, turns in taken.items()
    }
