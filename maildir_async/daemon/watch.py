"""Whether the workers' loops come round: what the main process sees of that, and does about it."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from maildir_async.daemon.board import BEAT_S, HUNG_S, Board
from maildir_async.daemon.children import Child
from maildir_async.daemon.log import Log
from maildir_async.daemon.notify import WATCHDOG, notify, watchdog_s

__all__ = ["KILL_S", "LOOK_S", "Watch"]

#: Seconds between two looks.
LOOK_S: Final = 2.0

#: Seconds after which a worker that hangs is killed, and another takes its place. What it has acknowledged is on the
#: disk; what it was receiving the clients send again. Arbitrary: longer than a resolver of the site's should block.
KILL_S: Final = 60.0


@dataclass(slots=True)
class _Seen:
    pid: int
    beat: int
    hangs_s: float = 0.0  # as seen by somebody who was awake all the time
    is_told: bool = False


class Watch:
    """Looks at the beats of the workers on *board*, and tells systemd's watchdog that they come.

    A loop hangs for as long as this has seen its beat unchanged in looks that followed one another: after a time in
    which nothing ran here (a machine that was suspended, SIGSTOP to all) every worker begins anew.
    """

    def __init__(self, board: Board, log: Log) -> None:
        self._board = board
        self._log = log
        self._seen: dict[int, _Seen] = {}
        self._looked_at = self._look_at = self._ping_at = time.monotonic()
        watchdog = watchdog_s()
        self._ping_s = None if watchdog is None else watchdog / 2  # as sd_watchdog_enabled(3) recommends

    def wait_s(self) -> float:
        """Return the seconds until there is something to do."""
        at = self._look_at if self._ping_s is None else min(self._look_at, self._ping_at)
        return at - time.monotonic()

    def look(self, children: Sequence[Child]) -> None:
        """Do what there is to do, if there is: tell of workers that hang, kill those that have for long, ping."""
        now = time.monotonic()
        if now >= self._look_at:
            passed_s, self._looked_at, self._look_at = now - self._looked_at, now, now + LOOK_S
            self._look(children, passed_s)
        if self._ping_s is not None and now >= self._ping_at:
            self._ping_at = now + self._ping_s
            if not any(seen.hangs_s >= HUNG_S for seen in self._seen.values()):
                notify(WATCHDOG)

    def _look(self, children: Sequence[Child], passed_s: float) -> None:
        before, self._seen = self._seen, {}
        for child in children:
            if child.slot is None or child.pid is None:
                continue
            seen = _Seen(child.pid, self._board.last_beat(child.slot))
            earlier = before.get(child.slot)
            if earlier is not None and (earlier.pid, earlier.beat) == (seen.pid, seen.beat):
                seen = earlier
                seen.hangs_s = seen.hangs_s + passed_s if passed_s <= LOOK_S + BEAT_S else 0.0
            self._seen[child.slot] = seen
            if seen.hangs_s >= KILL_S:
                self._log.event("error", "worker_killed", **child.fields, error="its loop does not come round")
                os.kill(child.pid, signal.SIGKILL)
            elif seen.hangs_s >= HUNG_S and not seen.is_told:
                seen.is_told = True
                self._log.event("error", "worker_hangs", **child.fields, seconds=seen.hangs_s)
