"""What passes between loops and worker threads, by turns of the loop.

What a loop hands over in one turn goes together. Outcomes come back a few in a turn, so that whoever waits for the
loop meanwhile need not wait for them all; what the first of those that are told hand over next waits for the last.
"""

import time
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Final

from maildir_async.commit.entry import Entry

__all__ = ["Turns"]

#: Outcomes that one loop is told in one turn. With 64 in flight (4 KiB) each costs 20 µs there, by what its coroutine
#: does next: all at once keep others waiting for 1.3 ms and more.
TOLD_A_TURN: Final = 16

#: Seconds between two turns past which all that are left are told at once: who takes so long by himself has nothing of
#: it that others are told by and by, and they would wait for him again and again. Beside turns of 4 ms, 1,200 messages
#: a second were delivered without this, and 1,700 with it (4 KiB, 64 in flight).
SHORT_TURN_S: Final = 0.001


class Turns:
    """Gathers what each loop hands over, and tells each its outcomes. All on the thread of that loop.

    Args:
        hand_over: given all that one loop has submitted.
        clock: seconds that have passed.

    """

    def __init__(
        self, hand_over: Callable[[list[Entry]], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hand_over = hand_over
        self._clock = clock
        self._turns: weakref.WeakValueDictionary[int, _Turn] = weakref.WeakValueDictionary()

    def submit(self, entry: Entry) -> None:
        """Hand *entry* over, with all else that its loop, the running one, submits in this turn."""
        turn = self._turn(entry.loop)
        if not turn.submitted:
            entry.loop.call_soon(self._end, turn)
        turn.submitted.append(entry)

    def tell(self, entries: list[Entry]) -> None:
        """Tell their loop, the running one, what has become of *entries*."""
        turn = self._turn(entries[0].loop)
        turn.settled.extend(entries)
        if not turn.is_telling:
            self._tell_some(turn)

    def _turn(self, loop: AbstractEventLoop) -> "_Turn":
        turn = self._turns.get(id(loop))
        if turn is None:
            turn = self._turns[id(loop)] = _Turn(loop)
        return turn

    def _end(self, turn: "_Turn") -> None:
        if turn.is_telling:
            turn.loop.call_soon(self._end, turn)
            return
        entries, turn.submitted = turn.submitted, []
        self._hand_over(entries)

    def _tell_some(self, turn: "_Turn") -> None:
        now = self._clock()
        was_long = turn.is_telling and now - turn.told_at >= SHORT_TURN_S
        turn.told_at = now
        most = len(turn.settled) if was_long else TOLD_A_TURN
        some = [turn.settled.popleft() for _ in range(min(most, len(turn.settled)))]
        # Once more after the last, whose coroutines go on in the next turn only; before those, which submit.
        turn.is_telling = bool(some) and (turn.is_telling or bool(turn.settled))
        if turn.is_telling:
            turn.loop.call_soon(self._tell_some, turn)
        for number, entry in enumerate(some, 1):
            try:
                entry.settle(entry)
            except BaseException:  # a KeyboardInterrupt in an on_progress: the others get their answers
                turn.settled.extendleft(reversed(some[number:]))
                if turn.settled and not turn.is_telling:
                    turn.is_telling = True
                    turn.loop.call_soon(self._tell_some, turn)
                raise


class _Turn:
    """What one loop has submitted, and is to be told. Its pending callbacks alone keep it, and so nothing the loop."""

    __slots__ = ("__weakref__", "is_telling", "loop", "settled", "submitted", "told_at")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.submitted: list[Entry] = []
        self.settled: deque[Entry] = deque()
        self.is_telling = False
        self.told_at = 0.0
