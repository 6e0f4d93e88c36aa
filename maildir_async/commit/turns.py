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

from maildir_async.commit.entry import TOLD, Entry

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
        take_back: given what a loop had submitted in the turn in which it was closed. In any thread.
        clock: seconds that have passed.

    """

    def __init__(
        self,
        hand_over: Callable[[list[Entry]], object],
        take_back: Callable[[Entry], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hand_over = hand_over
        self._take_back = take_back
        self._clock = clock
        self._turns: dict[int, weakref.ref[_Turn]] = {}

    def submit(self, entry: Entry) -> None:
        """Hand *entry* over, with all else that its loop, the running one, submits in this turn."""
        loop = entry.loop
        found = self._turns.get(id(loop))
        turn = (None if found is None else found()) or self._begin(loop)
        if not turn.submitted:
            turn.begun_at = self._clock()
            loop.call_soon(self._end, turn)
        entry.whole_at = turn.begun_at
        turn.submitted.append(entry)

    def tell(self, entries: list[Entry]) -> None:
        """Tell their loop, the running one, what has become of *entries*."""
        loop = entries[0].loop
        found = self._turns.get(id(loop))
        turn = (None if found is None else found()) or self._begin(loop)
        turn.settled.extend(entries)
        if not turn.is_telling:
            self._tell_some(turn)

    def has_to_tell(self, loop: AbstractEventLoop) -> bool:
        """Whether *loop*, the running one, has outcomes to be told, or is to hand something over."""
        found = self._turns.get(id(loop))
        turn = None if found is None else found()
        return turn is not None and (turn.is_telling or bool(turn.settled) or bool(turn.submitted))

    def _begin(self, loop: AbstractEventLoop) -> "_Turn":
        turn = _Turn(loop, self._take_back)
        key = id(loop)

        def forget(reference: "weakref.ref[_Turn]", turns: "dict[int, weakref.ref[_Turn]]" = self._turns) -> None:
            if turns.get(key) is reference:
                del turns[key]

        self._turns[key] = weakref.ref(turn, forget)
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
        settled = turn.settled
        most = len(settled) if was_long else TOLD_A_TURN
        some = [settled.popleft() for _ in range(min(most, len(settled)))]
        # Once more after the last, whose coroutines go on in the next turn only; before those, which submit.
        turn.is_telling = bool(some) and (turn.is_telling or bool(settled))
        if turn.is_telling:
            turn.loop.call_soon(self._tell_some, turn)
        for entry in some:
            entry.state = TOLD
            future = entry.future
            if not future.done():
                future.set_result(None)


class _Turn:
    """What one loop has submitted, and is to be told. Pending callbacks alone keep it: nothing here keeps a loop."""

    __slots__ = ("__weakref__", "begun_at", "is_telling", "loop", "settled", "submitted", "take_back", "told_at")

    def __init__(self, loop: AbstractEventLoop, take_back: Callable[[Entry], object]) -> None:
        self.loop = loop
        self.take_back = take_back
        self.submitted: list[Entry] = []
        self.settled: deque[Entry] = deque()
        self.is_telling = False
        self.begun_at = self.told_at = 0.0

    def __del__(self) -> None:
        # The loop was closed, and its callbacks are gone. The coroutines of what it had submitted may never be: anyio
        # keeps those that are in a scope of its own.
        for entry in self.submitted:
            self.take_back(entry)
