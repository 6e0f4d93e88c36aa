"""The program that delivers, with the library in it. It is this process that is measured."""

import argparse
import asyncio
import contextlib
import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

from maildir_async.disk import threads

from .faults import FAULTS
from .load import PLANTS, Load
from .measure import crews_of, held, trim, types
from .verdict import FEWEST

__all__ = ["Program", "main"]

#: Deliveries of one kind that may be under way; what would be more is left out, and counted.
MOST: Final = 60

#: Seconds that a short run may go on for, until it has come to rest as often as it is to be judged by.
MORE_S: Final = 120.0


class Program(Load):
    """The load at its pace, the faults, and what is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.flows = asyncio.Event()
        self.flows.set()
        self.under_way: set[asyncio.Task[None]] = set()
        self.rests = 0

    async def pace(self, kind: str, rate: float, call: Callable[[], Awaitable[None]]) -> None:
        """Begin so many a second, whether or not the ones before are over."""
        due, running = time.monotonic() + self.dice.random() / rate, 0

        async def run() -> None:
            nonlocal running
            try:
                await call()
            except Exception as exc:
                self.journal.write("fault", what=f"{kind}: {type(exc).__name__}: {exc}"[:500])
            finally:
                running -= 1

        while not self.ends.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self.flows.wait()
            due = max(due + 1 / rate, time.monotonic() - 1)
            if running >= MOST:
                self.journal.count(f"{kind}: left out")
                continue
            running += 1
            task = asyncio.create_task(run())
            self.under_way.add(task)
            task.add_done_callback(self.under_way.discard)

    async def until_settled(self, patience_s: float = 30.0) -> bool:
        """Return whether it has come to nothing being under way any more; `flows` keeps more from beginning."""
        until = time.monotonic() + patience_s
        while self.under_way and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return not self.under_way

    async def lag(self) -> None:
        """Count how late the loop wakes a task."""
        while not self.ends.is_set():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            self.journal.add("lag", time.monotonic() - began - 0.01)

    async def sample(self) -> None:
        """Write down each second what the process holds."""
        while not self.ends.is_set():
            await asyncio.sleep(self.options.seconds / 900 if self.options.seconds > 900 else 0.5)
            self.disk.calls.clear()  # a record that grows is this disk's way
            with contextlib.suppress(OSError):  # no descriptor to look with
                self.journal.write("held", calm=self.calm, **held())

    async def minutes(self) -> None:
        """Write the latencies of each minute; of each tenth in a short run."""
        while not self.ends.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ends.wait(), min(60.0, self.options.seconds / 10))
            self.journal.minute()

    async def trouble(self) -> None:
        """Let one fault after the other have its time, with calm between."""
        fault_s = min(6.0, self.options.seconds / 30)
        calm_s = fault_s * (2 if self.options.seconds > 900 else 1.4)
        await asyncio.sleep(calm_s)
        for name in itertools.cycle(self.options.faults):
            if self.ends.is_set():
                break
            self.calm = False
            self.journal.write("trouble", name=name)
            try:
                async with FAULTS[name](self):
                    await asyncio.sleep(fault_s)
            except OSError as exc:
                self.journal.write("fault", what=f"the rig: {name}: {exc}")
            self.journal.write("over", name=name)
            await asyncio.sleep(calm_s * 0.6)
            self.calm = True
            working = await self.fewest_threads(calm_s * 0.4)
            await self.rest(working)

    async def fewest_threads(self, seconds: float) -> int:
        """Return how many threads there are at least, in some looks in that time."""
        fewest = held()["threads"]
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            fewest = min(fewest, held()["threads"])
        return fewest

    async def rest(self, working: int) -> None:
        """Let nothing begin until nothing is under way; then write down what the process holds, object by object.

        Idle threads have the time after which they are to end. So many as are *working* have been seen before.
        """
        self.flows.clear()
        try:
            if not await self.until_settled():
                self.journal.count("no rest was had")
                return
            if crews := await self.until_no_crew():
                self.journal.write("fault", what=f"threads that have nothing to do, and do not end: {crews}")
            counts = types()
            await asyncio.to_thread(trim)
            self.journal.write("rest", counts=counts, working=working, **held())
            self.rests += 1
        finally:
            self.flows.set()

    async def until_no_crew(self, patience_s: float = 60.0) -> dict[str, int]:
        """Wait until no thread of a crew is left; return how many of each are left all the same."""
        until = time.monotonic() + patience_s
        while (crews := crews_of(threading.enumerate())) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return crews

    async def run(self) -> None:
        """Do it all for so many seconds; then let everything end, and look once more."""
        await self.serve()
        loads = [
            asyncio.create_task(self.pace(kind, rate * self.options.rate, call))
            for kind, (rate, call) in self.kinds.items()
        ]
        others = [self.lag(), self.sample(), self.minutes(), self.leak()]
        loads += [asyncio.create_task(each) for each in others]
        trouble = asyncio.create_task(self.trouble())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.ends.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ends.wait(), self.options.seconds)
        # A busy machine takes longer to have the rests that a run is judged by.
        until = time.monotonic() + MORE_S
        while self.rests < FEWEST and not self.ends.is_set() and not trouble.done() and time.monotonic() < until:
            await asyncio.sleep(0.05)
        trouble.cancel()
        await asyncio.wait([trouble])
        if not trouble.cancelled() and (exc := trouble.exception()):
            self.journal.write("fault", what=f"the rig: {exc!r}")
        self.ends.set()
        _, late = await asyncio.wait(loads, timeout=90)
        if self.under_way:
            _, more = await asyncio.wait(self.under_way, timeout=90)
            late |= more
        if late:
            self.journal.write("fault", what=f"{len(late)} tasks do not end: {[str(each)[:300] for each in late][:3]}")
        for maildir in self.maildirs.values():
            await maildir.aclose()
        await self.helper.aclose()
        if self.server is not None:
            self.server.close()
        if removed := await self.maildirs["helper"].clean_tmp(timedelta(0)):
            self.journal.write("left", what="killed helpers", count=len(removed))
        self.journal.minute()
        self.journal.write("held at the end", **held())


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--plant", choices=PLANTS)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    logging.disable(logging.CRITICAL)  # what a server logs of each refusal
    options = parser.parse_args()
    # Idle threads are to end within a calm, also in a run that has but a second of it.
    threads.IDLE_S = min(threads.IDLE_S, options.seconds / 120)  # type: ignore[misc]
    asyncio.run(Program(options).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
