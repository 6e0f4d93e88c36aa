"""`Turns`: what a loop hands over goes together, and what it is told comes a few in a turn."""

import asyncio
import gc
import itertools
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from maildir_async.commit.entry import TOLD
from maildir_async.commit.turns import SHORT_TURN_S, TOLD_A_TURN, Turns
from support import turns

pytestmark = pytest.mark.every_loop

MANY = 4 * TOLD_A_TURN - 3


class Noting(asyncio.Future[None]):
    """Calls back at once when it is resolved."""

    note: Callable[[], object]

    def set_result(self, result: None) -> None:
        self.note()
        super().set_result(result)


class Bench:
    """Coroutines that submit again once they are told, as those do that deliver one message after another.

    Attributes:
        handed_over: what has been, each time.
        told: how many have been told, in each turn of the loop.

    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.handed_over: list[list[Any]] = []
        self.taken_back: list[Any] = []
        self.now = 0.0  # which is the time for as long as nobody takes any
        self.turns = Turns(self.handed_over.append, self.taken_back.append, clock=lambda: self.now)
        self.told = [0]
        self.tasks: list[asyncio.Task[None]] = []
        self.counter = asyncio.create_task(self._count())

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.told.append(0)

    def entry(self, number: int) -> Any:
        entry = self.next_entry(number)
        entry.future = future = Noting(loop=self.loop)
        future.note = self.note
        self.tasks.append(asyncio.create_task(self._submit_once_told(future, number)))
        return entry

    def note(self) -> None:
        self.told[-1] += 1

    async def _submit_once_told(self, future: "asyncio.Future[None]", number: int) -> None:
        await future
        self.turns.submit(self.next_entry(number))

    def next_entry(self, number: int) -> Any:
        return SimpleNamespace(loop=self.loop, future=self.loop.create_future(), number=number)

    def numbers(self) -> list[list[int]]:
        return [[entry.number for entry in entries] for entries in self.handed_over]

    def close(self) -> None:
        self.counter.cancel()


@pytest.mark.parametrize("count", [1, TOLD_A_TURN - 1, TOLD_A_TURN, TOLD_A_TURN + 1, MANY])
async def test_outcomes_come_a_few_in_a_turn_and_what_follows_goes_together(count: int) -> None:
    """Others have their turns while many are told; all that those submit next goes at once, and in order."""
    bench = Bench()
    entries = [bench.entry(number) for number in range(count)]
    await turns(3)
    bench.turns.tell(entries)
    assert bench.told[-1] == min(count, TOLD_A_TURN), "the first are told at once"
    await turns()
    told = [number for number in bench.told if number]
    assert max(told) <= TOLD_A_TURN
    assert sum(told) == count
    assert len(told) == -(-count // TOLD_A_TURN)
    assert bench.numbers() == [list(range(count))]
    bench.close()


@pytest.mark.parametrize("turn_s", [SHORT_TURN_S / 2, SHORT_TURN_S])
async def test_who_takes_long_turns_does_not_take_one_for_each_few(turn_s: float) -> None:
    """Past the first few all are told in one turn, on a loop with long ones, and hand over no later than the first."""
    bench = Bench()

    async def take_time() -> None:
        while True:
            await asyncio.sleep(0)
            bench.now += turn_s

    taking = asyncio.create_task(take_time())
    entries = [bench.entry(number) for number in range(MANY)]
    await turns(3)
    bench.turns.tell(entries)
    await turns()
    told = [number for number in bench.told if number]
    assert told == (
        [TOLD_A_TURN, MANY - TOLD_A_TURN] if turn_s >= SHORT_TURN_S else [*[TOLD_A_TURN] * 3, MANY % TOLD_A_TURN]
    )
    assert bench.numbers() == [list(range(MANY))]
    taking.cancel()
    bench.close()


async def test_what_is_settled_meanwhile_is_told_after_the_others() -> None:
    """Two batches whose outcomes come at once: in their order, a few in a turn, and one batch comes of them."""
    bench = Bench()
    entries = [bench.entry(number) for number in range(2 * MANY)]
    await turns(3)
    bench.turns.tell(entries[:MANY])
    bench.turns.tell(entries[MANY:])
    await turns()
    assert max(bench.told) <= TOLD_A_TURN
    assert bench.numbers() == [list(range(2 * MANY))]
    bench.close()


async def test_who_has_nothing_to_do_with_it_waits_no_longer_than_they() -> None:
    """What somebody else submits while many are told goes with what those submit."""
    bench = Bench()
    entries = [bench.entry(number) for number in range(MANY)]
    await turns(3)
    bench.turns.tell(entries)
    bench.turns.submit(bench.next_entry(-1))
    await turns()
    assert bench.numbers() == [[-1, *range(MANY)]]
    bench.turns.submit(bench.next_entry(-2))
    assert len(bench.handed_over) == 1, "not before the turn is over"
    await turns(2)
    assert bench.numbers()[1:] == [[-2]]
    bench.close()


@pytest.mark.parametrize(
    ("place", "count"), [(0, MANY), (TOLD_A_TURN - 1, MANY), (MANY - 1, MANY), (0, 3), (TOLD_A_TURN - 2, TOLD_A_TURN)]
)
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_one_that_is_interrupted_costs_no_other_its_answer(place: int, count: int) -> None:
    """What the code of a caller raises goes up to the loop, and the rest are told.

    That code runs in turns of its own, not in the one in which its outcome is told.
    """
    bench = Bench()
    raised: list[BaseException | None] = []
    bench.loop.set_exception_handler(lambda loop, context: raised.append(context.get("exception")))
    entries = [bench.entry(number) for number in range(count)]
    await turns(3)

    def interrupt(future: "asyncio.Future[None]") -> None:
        raise ZeroDivisionError

    entries[place].future.add_done_callback(interrupt)
    bench.loop.call_soon(bench.turns.tell, entries)
    await turns()
    assert sum(bench.told) == count
    assert [type(exc) for exc in raised] == [ZeroDivisionError]
    assert sorted(itertools.chain(*bench.numbers())) == list(range(count))
    bench.close()


def test_a_loop_that_is_closed_in_the_middle_is_not_kept() -> None:
    """Nor does anything stay of it that another loop, at the same address, could be taken for."""
    handed_over: list[list[Any]] = []
    turns_of_all = Turns(handed_over.append, print)

    def tell_and_close() -> "weakref.ref[asyncio.AbstractEventLoop]":
        loop = asyncio.new_event_loop()
        entries: list[Any] = [SimpleNamespace(loop=loop, future=loop.create_future()) for _ in range(MANY)]
        loop.call_soon(turns_of_all.tell, entries)
        loop.call_soon(turns_of_all.submit, entries[0])
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert len(turns_of_all._turns) == 1
        loop.close()
        return weakref.ref(loop)

    closed = tell_and_close()
    gc.collect()
    assert closed() is None
    assert len(turns_of_all._turns) == 0
    assert handed_over == []


async def test_who_has_gone_is_passed_over() -> None:
    """An outcome that nobody waits for any more, its task being cancelled, is no mistake: the rest are told."""
    bench = Bench()
    entries = [bench.entry(number) for number in range(MANY)]
    await turns(3)
    entries[0].future.cancel()
    entries[-1].future.cancel()
    bench.turns.tell(entries)
    await turns()
    assert bench.numbers() == [list(range(1, MANY - 1))]
    assert {entry.state for entry in entries} == {TOLD}
    bench.close()
