"""How many deliveries may be pending at once, over all loops and threads of the process."""

import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Admission", "Place"]


class Place:
    """One delivery's place among the pending ones, from its start until it is settled.

    Where several act for one message they `share` a place.
    """

    __slots__ = ("_admission", "_generation", "_loop", "_on_granted", "_on_lost", "_others", "cost", "granted")

    def __init__(
        self,
        admission: "Admission",
        cost: int,
        loop: AbstractEventLoop,
        on_granted: Callable[[], object],
        on_lost: Callable[[], object],
    ) -> None:
        self._admission: Admission | None = admission
        self._generation = admission.generation
        self._loop = loop
        self._on_granted = on_granted
        self._on_lost = on_lost
        self._others: list[None] = []  # one for each share that is to be released before the last
        self.cost = cost
        self.granted = False

    def tell(self) -> None:
        """Have the loop call back. If it is closed, now or before that, nobody will ever use this place: it is lost."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_Grant(self))

    def call_back(self, then: Callable[[], object]) -> None:
        """On the loop: tell whoever waits, and have *then* called once he has gone on."""
        self._on_granted()
        self._loop.call_soon(then)

    def lose(self) -> None:
        """Give it back, unless that has been done, for one whose loop was closed. In any thread."""
        on_lost = self._on_lost
        if self.release():
            on_lost()

    def share(self) -> "Place":
        """Return one more hold on this place, which has been granted: it is given back with the last of them."""
        assert self._admission is not None
        share = Place(self._admission, self.cost, self._loop, _nothing, _nothing)
        share.granted = True
        share._generation = self._generation
        share._others = self._others
        self._others.append(None)
        return share

    def release(self) -> bool:
        """Give the place, or the wait for it, up; return whether that had not been done. In any thread."""
        admission, self._admission = self._admission, None
        self._on_granted = self._on_lost = _nothing  # which refer to the delivery, which refers to this
        if admission is None:
            return False
        try:
            self._others.pop()  # by which alone it is decided who is the last, whatever other threads do
        except IndexError:
            if admission.generation == self._generation:
                admission.release(self)
        return True

    def __del__(self) -> None:
        # A loop that vanished with a delivery not yet handed over releases it in no other way.
        self.release()


class _Grant:
    """A callback of a loop: a place has been granted. Thrown away with its loop, it tells that the place is lost.

    Nothing else would: anyio keeps a coroutine that is in a scope of its own when its loop is closed.
    """

    __slots__ = ("_place",)

    def __init__(self, place: Place) -> None:
        self._place: Place | None = place

    def __call__(self) -> None:
        if self._place is not None:
            self._place.call_back(self._taken)

    def _taken(self) -> None:
        self._place = None

    def __del__(self) -> None:
        if self._place is not None:
            self._place.lose()


def _nothing() -> None:
    pass


class Admission:
    """Bounds the deliveries between their start and their end, by number and by bytes held in memory.

    Invariants, whenever the lock is free: `pending` and `pending_bytes` are the sums over granted places; the
    first in `_waiting` does not fit; a message larger than the bound by itself is admitted when it is alone.
    """

    def __init__(self, max_pending: int, max_pending_bytes: int) -> None:
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self.generation = 0
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child: the parent's deliveries are not pending here."""
        self._lock = threading.RLock()  # Place.__del__ may come at any time, in a thread that holds it
        self.generation += 1
        self.pending = 0
        self.pending_bytes = 0
        self._waiting: deque[Place] = deque()

    @property
    def is_full(self) -> bool:
        """Whether one more delivery, of hardly any bytes, would have no place now."""
        return bool(self._waiting) or not self._fits(0)

    @property
    def waiting(self) -> int:
        """How many deliveries wait for a place."""
        return len(self._waiting)

    def admit(self, cost: int) -> bool:
        """Grant a place to a delivery of *cost* bytes, which is to be given back by `give_back`, unless it is full."""
        with self._lock:
            pending_bytes = self.pending_bytes + cost
            is_within = self.pending < self._max_pending and pending_bytes <= self._max_pending_bytes
            if self._waiting or not (is_within or self.pending == 0):
                return False
            self.pending += 1
            self.pending_bytes = pending_bytes
        return True

    def give_back(self, count: int, cost: int) -> None:
        """Take *count* places back that `admit` has granted, of *cost* bytes in all."""
        with self._lock:
            self.pending -= count
            self.pending_bytes -= cost
            granted = self._grant_what_fits() if self._waiting else []
        if granted:
            _tell(granted)

    def request(
        self,
        cost: int,
        loop: AbstractEventLoop,
        on_granted: Callable[[], object],
        *,
        wait: bool,
        on_lost: Callable[[], object] | None = None,
    ) -> Place | None:
        """Return a place: granted, or (if *wait*) one whose *on_granted* the loop will call. None: full.

        *on_lost* is called, in any thread, where a place that was waited for is given back since the loop was closed.
        """
        place = Place(self, cost, loop, on_granted, on_lost or _nothing)
        with self._lock:
            if not self._waiting and self._fits(cost):
                self._grant(place)
                return place
            if not wait:
                return None
            self._waiting.append(place)
            others = [granted for granted in self._grant_what_fits() if granted is not place]
        _tell(others)
        return place

    def release(self, place: Place) -> None:
        """Take *place* back and grant what fits now, first come first served. Called by `Place.release`."""
        with self._lock:
            if place.granted:
                self.pending -= 1
                self.pending_bytes -= place.cost
            else:
                with suppress(ValueError):  # being looked at, further up in this thread
                    self._waiting.remove(place)
            granted = self._grant_what_fits() if self._waiting else []
        if granted:
            _tell(granted)

    def _grant_what_fits(self) -> list[Place]:
        """Grant places in order. The garbage collector may release one meanwhile, in this very thread."""
        granted: list[Place] = []
        while self._waiting:
            place = self._waiting.popleft()
            pending = self.pending
            if not self._fits(place.cost):
                self._waiting.appendleft(place)
                if pending == self.pending:
                    break
                continue
            self._grant(place)
            granted.append(place)
        return granted

    def _grant(self, place: Place) -> None:
        place.granted = True
        self.pending += 1
        self.pending_bytes += place.cost

    def _fits(self, cost: int) -> bool:
        if self.pending == 0:
            return True
        return self.pending < self._max_pending and self.pending_bytes + cost <= self._max_pending_bytes


def _tell(granted: list[Place]) -> None:
    for place in granted:
        place.tell()
