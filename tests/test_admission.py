import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.commit.admission import Admission, Place
from support import reproducible, turns


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs when the test says so."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def request(admission: Admission, loop: asyncio.AbstractEventLoop, cost: int = 1) -> Place:
    place = admission.request(cost, loop, _nothing, wait=True)
    assert place is not None
    return place


def _nothing() -> None:
    pass


def granted(places: list[Place]) -> list[bool]:
    return [place.granted for place in places]


def test_bound_by_number(loop: asyncio.AbstractEventLoop) -> None:
    """No more deliveries than the bound are pending; each that ends lets one more in."""
    admission = Admission(2, 1000)
    places = [request(admission, loop) for _ in range(4)]
    assert granted(places) == [True, True, False, False]
    assert (admission.pending, admission.waiting) == (2, 2)
    places[0].release()
    assert granted(places) == [True, True, True, False]
    places[2].release()
    assert (admission.pending, admission.waiting) == (2, 0)


def test_bound_by_bytes(loop: asyncio.AbstractEventLoop) -> None:
    """No more bytes than the bound are pending, to the byte."""
    admission = Admission(100, 10)
    places = [request(admission, loop, cost) for cost in (6, 4, 1)]
    assert granted(places) == [True, True, False]
    assert admission.pending_bytes == 10
    places[1].release()
    assert granted(places)[2]
    assert admission.pending_bytes == 7


def test_first_come_first_served(loop: asyncio.AbstractEventLoop) -> None:
    """A small message does not overtake a large one that waits, so that none waits for ever."""
    admission = Admission(100, 10)
    places = [request(admission, loop, cost) for cost in (6, 8, 1, 1)]
    assert granted(places) == [True, False, False, False]
    places[0].release()
    assert granted(places) == [True, True, True, True]


def test_whole_messages_are_bound_too(loop: asyncio.AbstractEventLoop) -> None:
    """What is admitted without a Place keeps both bounds, and overtakes nobody who waits for one."""
    admission = Admission(2, 10)
    assert [admission.admit(cost) for cost in (6, 5, 4, 0)] == [True, False, True, False]
    assert (admission.pending, admission.pending_bytes) == (2, 10)
    admission.give_back(1, 4)
    waiting = request(admission, loop, 9)
    assert not waiting.granted
    assert not admission.admit(1)  # for which there would be room
    admission.give_back(1, 6)
    assert waiting.granted
    assert admission.admit(1)


def test_one_larger_than_the_bound_is_admitted_alone(loop: asyncio.AbstractEventLoop) -> None:
    """A message larger than the bound by itself is admitted when nothing else is pending, and nothing beside it."""
    admission = Admission(100, 10)
    first, huge, after = (request(admission, loop, cost) for cost in (1, 50, 1))
    assert granted([first, huge, after]) == [True, False, False]
    first.release()
    assert granted([huge, after]) == [True, False]
    assert admission.pending_bytes == 50
    huge.release()
    assert after.granted
    after.release()
    assert request(admission, loop, 50).granted


def test_full_and_not_to_wait(loop: asyncio.AbstractEventLoop) -> None:
    """Whoever asks not to wait gets None when it is full, and also when others wait already; nothing changes by it."""
    admission = Admission(100, 10)
    first = request(admission, loop, 6)
    assert admission.request(5, loop, _nothing, wait=False) is None
    assert (admission.pending, admission.pending_bytes, admission.waiting) == (1, 6, 0)
    waiting = request(admission, loop, 8)
    assert admission.request(1, loop, _nothing, wait=False) is None
    first.release()
    waiting.release()
    place = admission.request(5, loop, _nothing, wait=False)
    assert place is not None
    assert place.granted


def test_release_is_idempotent(loop: asyncio.AbstractEventLoop) -> None:
    """A place is given back once, however often it is released, whether granted or waiting."""
    admission = Admission(1, 10)
    first, second, third = (request(admission, loop, 3) for _ in range(3))
    for _ in range(3):
        second.release()  # gives up waiting
    assert (admission.pending, admission.waiting) == (1, 1)
    for _ in range(3):
        first.release()
    assert (admission.pending, admission.pending_bytes, third.granted) == (1, 3, True)


def test_a_shared_place_is_given_back_with_the_last_share(loop: asyncio.AbstractEventLoop) -> None:
    """However often each is released or forgotten, and in whatever order, one place is given back, once."""
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        admission = Admission(1, 10)
        first = request(admission, loop, 3)
        shares = [first, first.share(), first.share().share()]
        waiting = request(admission, loop, 3)
        gc.collect()  # the share in between
        for at in order[:2]:
            shares[at].release()
            shares[at].release()
            assert (admission.pending, admission.pending_bytes, waiting.granted) == (1, 3, False)
        shares[order[2]].release()
        assert (admission.pending, admission.pending_bytes, waiting.granted) == (1, 3, True)


def test_shares_released_by_many_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Released by several threads at once, a place is given back once."""
    admission = Admission(1, 10)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(300):
            place = request(admission, loop)
            shares = [place, *(place.share() for _ in range(7))]
            list(pool.map(lambda share: share.release(), shares))
            assert (admission.pending, admission.pending_bytes) == (0, 0)


def test_giving_up_waiting_lets_the_next_in(loop: asyncio.AbstractEventLoop) -> None:
    """When the one that blocks the queue gives up, those behind it that fit are admitted at once."""
    admission = Admission(100, 10)
    _first, large, small = (request(admission, loop, cost) for cost in (6, 8, 4))
    large.release()
    assert small.granted


def test_a_place_forgotten_is_released(loop: asyncio.AbstractEventLoop) -> None:
    """A place that nobody holds any more, as when its loop has vanished, is given back and the next one granted."""
    admission = Admission(1, 10)
    first, second = request(admission, loop, 5), request(admission, loop, 5)
    assert not second.granted
    del first
    gc.collect()
    assert second.granted
    loop.run_until_complete(turns(2))  # in which it is told, and goes on
    del second
    gc.collect()
    assert (admission.pending, admission.pending_bytes) == (0, 0)


def test_a_place_forgotten_while_the_lock_is_held(loop: asyncio.AbstractEventLoop) -> None:
    """A place collected as garbage in the very thread that holds the lock does not deadlock."""
    admission = Admission(10, 10)
    place: list[Place] = [request(admission, loop)]
    with admission._lock:
        place.clear()
        gc.collect()
    assert admission.pending == 0


def test_a_closed_loop_is_passed_over(loop: asyncio.AbstractEventLoop) -> None:
    """A place that comes to a loop which has been closed meanwhile goes to the next one that waits."""
    closed = asyncio.new_event_loop()
    admission = Admission(1, 10)
    first, lost, next_one = request(admission, loop), request(admission, closed), request(admission, loop)
    closed.close()
    first.release()
    assert next_one.granted
    assert admission.pending == 1
    lost.release()
    assert admission.pending == 1


def test_reset(loop: asyncio.AbstractEventLoop) -> None:
    """After a fork nothing is pending and nobody waits, and what the parent holds takes nothing from the child."""
    admission = Admission(1, 10)
    held, waiting = request(admission, loop, 5), request(admission, loop, 5)
    share = held.share()
    admission.reset()
    assert (admission.pending, admission.pending_bytes, admission.waiting) == (0, 0, 0)
    mine = request(admission, loop, 7)
    held.release()
    share.release()
    waiting.release()
    assert (mine.granted, admission.pending, admission.pending_bytes) == (True, 1, 7)


async def test_the_loop_is_told() -> None:
    """Whoever waits is called back on its loop, once, in the order of asking; whoever need not wait is not called."""
    admission, told, done = Admission(1, 10), list[str](), asyncio.Event()
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def tell(name: str, place_no: int) -> None:
        assert threading.get_ident() == thread
        told.append(name)
        places[place_no].release()
        if len(told) == 3:
            done.set()

    places: list[Place] = []
    for number, name in enumerate(("at once", "second", "third", "fourth")):
        place = admission.request(1, loop, lambda name=name, number=number: tell(name, number), wait=True)  # type: ignore[misc]
        assert place is not None
        places.append(place)
    await asyncio.to_thread(places[0].release)  # from another thread, as group commit does
    await asyncio.wait_for(done.wait(), 30)
    assert told == ["second", "third", "fourth"]
    assert admission.pending == 0


class Model:
    """A queue with two bounds, as one would write it for one thread: what is asked for is numbered from 0."""

    def __init__(self, max_pending: int, max_bytes: int) -> None:
        self.bounds = max_pending, max_bytes
        self.costs: list[int] = []
        self.waiting: list[int] = []
        self.inside: list[int] = []

    def ask(self, cost: int) -> None:
        self.waiting.append(len(self.costs))
        self.costs.append(cost)
        self.admit()

    def end(self, number: int) -> None:
        for where in (self.waiting, self.inside):
            if number in where:
                where.remove(number)
        self.admit()

    def admit(self) -> None:
        while self.waiting and self.fits(self.costs[self.waiting[0]]):
            self.inside.append(self.waiting.pop(0))

    def fits(self, cost: int) -> bool:
        max_pending, max_bytes = self.bounds
        return not self.inside or (len(self.inside) < max_pending and self.held() + cost <= max_bytes)

    def held(self) -> int:
        return sum(self.costs[number] for number in self.inside)


@reproducible
@given(
    st.lists(st.one_of(st.tuples(st.just("ask"), st.integers(0, 12)), st.tuples(st.just("end"), st.integers(0, 30))))
)
def test_against_a_model(moves: list[tuple[str, int]]) -> None:
    """Through any sequence of asking and ending, who is admitted when is what a plain queue with two bounds says."""
    loop = asyncio.new_event_loop()
    try:
        admission, model, places, ended = Admission(3, 10), Model(3, 10), list[Place](), set[int]()
        for move, value in moves:
            if move == "ask":
                model.ask(value)
                places.append(request(admission, loop, value))
            elif value < len(places):
                model.end(value)
                places[value].release()
                ended.add(value)
            inside = [at for at, place in enumerate(places) if place.granted and at not in ended]
            assert inside == sorted(model.inside)
            assert (admission.pending, admission.pending_bytes) == (len(inside), model.held())
            assert admission.waiting == len(model.waiting)
    finally:
        loop.close()


def test_from_many_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Places asked for and released by many threads at once never exceed the bound, and none is lost."""
    admission, lock = Admission(3, 1000), threading.Lock()
    held = most = taken = 0

    def work(_: int) -> None:
        nonlocal held, most, taken
        for _ in range(300):
            place = admission.request(1, loop, _nothing, wait=False)
            if place is None:
                continue
            with lock:
                held += 1
                taken += 1
                most = max(most, held)
            with lock:
                held -= 1
            place.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 1 <= most <= 3
    assert taken
    assert (admission.pending, admission.pending_bytes) == (0, 0)
