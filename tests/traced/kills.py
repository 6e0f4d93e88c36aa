"""Kills: a program dies at each of its system calls, and another one delivers to what it left."""

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from maildir_async import Maildir

from .checks import in_tmp, wrong_after, wrong_with
from .scenarios import Scenario, Tell
from .traced import CALLS, MORE_CALLS, Run, run_in_new_place, run_plain

__all__ = ["Result", "kill_everywhere"]

#: Seconds that locks of the dead may hold up the next process. A lock file whose process is gone is broken when it is
#: two seconds old (`disk.dotlock`); the rest is for a slow machine. Who waits in vain fails after ten.
HELD_UP_S: Final = 2.0 + 6.0


@dataclass(slots=True)
class Result:
    """What came of one scenario: figures, and what was wrong."""

    name: str
    figures: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def kill_everywhere(scenario: Scenario, work: Path, *, full: bool, say: Callable[[str], None]) -> Result:
    """Kill *scenario* at each call (in the short form: at some), and return what came of it.

    Args:
        scenario: the program.
        work: an empty directory.
        full: at all calls, those that only look too.
        say: told what is being done.

    """
    result = Result(scenario.name)
    calls: tuple[str, ...] = CALLS + MORE_CALLS if full else CALLS
    if scenario.others:  # an interpreter starts there, and opens and reads hundreds of files of its own
        calls = tuple(call for call in CALLS if call not in ("openat", "write"))
    undisturbed = run_in_new_place(scenario, work, calls)
    if undisturbed.signal or undisturbed.error or not undisturbed.told:
        result.faults.append(f"undisturbed it did not end well: {undisturbed.error or undisturbed.signal}")
        return result
    counts = Counter((call.thread, call.call) for call in undisturbed.calls)
    most = dict[str, int]()
    for (_, name), count in counts.items():
        most[name] = max(most.get(name, 0), count)
    result.figures["calls"] = len(undisturbed.calls)
    met = set[tuple[str, str]]()
    for call, count in most.items():
        step = 1 if full else max(1, count // 2)
        number = 1
        while True:
            say(f"{scenario.name}: {call}, {number} of {count}")
            killed = _kill(scenario, work, calls, call, number, result)
            if killed is None:
                break  # it does not get that far
            met.add((call, killed))
            number += step
    result.figures["different calls"] = len(met)
    return result


def _kill(scenario: Scenario, work: Path, calls: tuple[str, ...], call: str, number: int, result: Result) -> str | None:
    """Kill it at one call, and check; return what was killed, or None if the program ended before."""
    died = run_in_new_place(scenario, work, calls, f"{call}:signal=SIGKILL:when={number}")
    place = work / "place"
    where = f"{scenario.name}, killed at {call} {number}"
    if died.hung:
        result.faults.append(f"{where}: hung")
        return "hung"
    killed = died.signal == signal.SIGKILL or (scenario.others and _a_process_was_killed(died, work))
    if not killed:
        if died.error:
            result.faults.append(f"{where}: {died.error}")
        return None
    result.figures["kills"] += 1
    result.figures["acknowledged"] += len(died.told)
    faults = wrong_with(place, scenario, died.told)
    litter = len(in_tmp(place, scenario))
    result.figures["files left in tmp/"] += litter
    if litter > scenario.in_flight:
        faults.append(f"{litter} files in tmp/, of {scenario.in_flight} deliveries in flight")
    faults += _deliver_again(scenario, place, died, result)
    result.faults += [f"{where}: {fault}" for fault in faults]
    return died.calls[-1].text if died.calls else ""


def _a_process_was_killed(died: Run, work: Path) -> bool:
    return "killed by SIGKILL" in (work / "log").read_text(errors="replace")


def _deliver_again(scenario: Scenario, place: Path, died: Run, result: Result) -> list[str]:
    """Have a second process deliver to what the dead one left, and return what was wrong."""

    async def second(tell: Tell) -> None:
        await scenario.run(place, "second-", tell)

    async def sweep(tell: Tell) -> None:
        for name in scenario.maildirs:
            if (place / name).exists():
                await Maildir(place / name).clean_tmp(older_than=timedelta(0))

    next_one = run_plain(second)
    result.slowest_s = max(result.slowest_s, next_one.seconds)
    faults = list[str]()
    if next_one.error or next_one.hung or next_one.signal:
        faults.append(f"the next process could not deliver: {next_one.error or next_one}")
    if next_one.seconds > HELD_UP_S:
        faults.append(f"the next process was held up for {next_one.seconds:.1f} s")
    told = died.told + next_one.told
    faults += wrong_with(place, scenario, told)
    if scenario.copies is not None:  # what was not finished is tried again, as a client or a user would
        again = run_plain(lambda tell: scenario.run(place, "first-", tell))
        if again.error:
            faults.append(f"tried again: {again.error}")
        # A path may be of a message that is told to be a duplicate: it is the first one's.
        faults += wrong_with(place, scenario, told + again.told, copies=scenario.copies)
    swept = run_plain(sweep)
    if swept.error:
        faults.append(f"the sweep: {swept.error}")
    return faults + wrong_with(place, scenario, told, copies=scenario.copies or 1) + wrong_after(place, scenario)
