"""One measurement of a peer in Python, in a process of its own.

    python -m benchmarks.drive PEER WORKLOAD-AS-JSON DIRECTORY

The maildirs are DIRECTORY/0, DIRECTORY/1, ... and exist. Prints one JSON object: a `Measurement`, or why there is none.
"""

import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.peers import PEERS
from benchmarks.peers.kinds import Asynchronous, NotHereError, Plain
from benchmarks.workload import Measurement, Workload, percentiles

#: Seconds that warming up may take at most.
WARMUP_S: Final = 0.3

#: Seconds that the coroutine sleeps which looks how late the loop wakes it.
LAG_SLEEP_S: Final = 0.001


@dataclass(slots=True)
class Phase:
    """Deliveries from a start until a number or a time is reached: the warm-up, then the timed part."""

    limit: int
    seconds: float
    started: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    begun: int = 0
    done: int = 0
    bytes: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def time_is_up(self) -> bool:
        """Whether no further message may be begun for want of time."""
        return time.perf_counter() - self.started >= self.seconds

    def may_begin(self) -> bool:
        """Return whether another message may be begun, and count it."""
        if self.begun >= self.limit or self.time_is_up:
            return False
        self.begun += 1
        return True

    def finished(self, began: float, size: int) -> None:
        """Count a message that is done. One that is done too late counts as a latency only."""
        now = time.perf_counter()
        self.latencies.append(now - began)
        if now - self.started <= self.seconds or not self.done:
            self.done += 1
            self.bytes += size
            self.ended = now


class Drive:
    """Does one workload with one adapter.

    Args:
        workload: what to do.
        adapter: makes the peer's adapter, of either kind.
        root: where the maildirs are.

    """

    def __init__(self, workload: Workload, adapter: Callable[[list[str], Workload], Any], root: str) -> None:
        self._workload = workload
        self._peer = adapter([f"{root}/{number}" for number in range(workload.maildirs)], workload)
        self._numbers = itertools.count()
        self._lags: list[float] = []
        self._others: list[asyncio.Task[None]] = []
        self._counts: dict[str, int] = {}
        count = 0 if workload.stream else workload.warmup + workload.messages
        self._messages = [workload.message(number) for number in range(count)]

    def run(self) -> Measurement:
        """Return the measurement."""
        if hasattr(self._peer, "deliver_now"):
            return self._summary(*self._run_plain(self._peer))
        return self._summary(*_run(self._run_async(self._peer), self._workload))

    def _run_plain(self, peer: Plain) -> tuple[Phase, float, int]:
        for limit, seconds in self._phases():
            before, memory = _cpu_s(), _resident()
            phase = Phase(limit, seconds)
            while phase.may_begin():
                number = next(self._numbers)
                began = time.perf_counter()
                peer.deliver_now(number % self._workload.maildirs, self._messages[number])
                phase.finished(began, len(self._messages[number]))
        return phase, _cpu_s() - before, _peak() - memory

    async def _run_async(self, peer: Asynchronous) -> tuple[Phase, float, int]:
        await peer.start()
        for _ in self._workload.chunks(0):  # made once, and then held: not the peer's memory
            pass
        memory = _resident()
        for timed, (limit, seconds) in enumerate(self._phases()):
            before = _cpu_s()
            if timed and not self._workload.stream:  # what streams need, they need from the first on
                memory = _resident()
            phase = Phase(limit, seconds)
            if timed:
                self._begin_others(phase)
            workers = min(self._workload.in_flight, limit)
            await asyncio.gather(*(self._work(peer, phase) for _ in range(workers)))
        growth = _peak() - memory
        for other in self._others:
            other.cancel()
        await asyncio.gather(*self._others, return_exceptions=True)
        self._counts = {"threads": threading.active_count(), "descriptors": len(os.listdir("/proc/self/fd")) - 1}
        await peer.aclose()
        return phase, _cpu_s() - before, growth

    def _phases(self) -> list[tuple[int, float]]:
        timed = (self._workload.messages, float("inf") if self._workload.stream else self._workload.seconds)
        return [(self._workload.warmup, float("inf") if self._workload.stream else WARMUP_S), timed]

    def _begin_others(self, phase: Phase) -> None:
        if self._workload.lag:
            self._others.append(asyncio.create_task(self._watch_lag(phase)))
        if self._workload.turn_ms:
            self._others.append(asyncio.create_task(self._be_busy()))

    async def _work(self, peer: Asynchronous, phase: Phase) -> None:
        workload = self._workload
        while phase.may_begin():
            number = next(self._numbers)
            maildir = number % workload.maildirs
            began = time.perf_counter()
            if workload.stream:
                await peer.stream(maildir, workload, number)
            else:
                await peer.deliver(maildir, self._messages[number])
            phase.finished(began, workload.size_of(number))
            if workload.pause_s:
                await asyncio.sleep(workload.pause_s - (time.perf_counter() - phase.started) % workload.pause_s)

    async def _watch_lag(self, phase: Phase) -> None:
        while not phase.time_is_up:
            asked = time.perf_counter()
            await asyncio.sleep(LAG_SLEEP_S)
            self._lags.append(time.perf_counter() - asked - LAG_SLEEP_S)

    async def _be_busy(self) -> None:
        """Take turns of CPU time for ever, so also while the last messages are seen through."""
        turn_s, rest_s = self._workload.turn_ms / 1e3, self._workload.rest_ms / 1e3
        while True:
            until = time.perf_counter() + turn_s
            while time.perf_counter() < until:
                sum(range(50))
            await asyncio.sleep(rest_s)

    def _summary(self, phase: Phase, cpu_s: float, memory: int) -> Measurement:
        return Measurement(
            messages=phase.done,
            delivered=next(self._numbers),
            bytes=phase.bytes,
            seconds=phase.ended - phase.started,
            latency_ms=percentiles(phase.latencies, 1e3),
            lag_ms=percentiles(self._lags, 1e3),
            cpu_s=cpu_s,
            memory=memory,
            **self._counts,
        )


def _run(main: Coroutine[Any, Any, Any], workload: Workload) -> Any:
    if workload.loop == "asyncio":
        return asyncio.run(main)
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        main.close()
        raise NotHereError("uvloop is not installed") from None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _resident() -> int:
    """Return the resident set now, and have its peak counted from here."""
    gc.collect()
    # Where that is refused, the peak is that of the whole process: never too small.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def main(name: str, workload_json: str, root: str) -> None:
    """Measure, and print what was seen."""
    workload = Workload.from_json(workload_json)
    if workload.descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (workload.descriptors, workload.descriptors))
    module, _, class_name = (PEERS[name].adapter or "").partition(":")
    try:
        adapter = getattr(importlib.import_module(f"benchmarks.peers.{module}"), class_name)
        found = Drive(workload, adapter, root).run().to_json()
    except NotHereError as exc:
        found = {"skipped": str(exc)}
    except ImportError as exc:
        found = {"skipped": f"not installed: {exc.name}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
