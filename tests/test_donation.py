"""A saturated loop lends worker threads time; no other loop does, and none without need."""

import asyncio
import threading
from typing import Any

import pytest

from maildir_async.commit import donation
from maildir_async.commit.donation import Donation

pytestmark = pytest.mark.every_loop


class Looks:
    """A donation whose clocks are ours: in each tick, *ran* of the time that has passed was the loop's own."""

    def __init__(self, ran: float, looks: int) -> None:
        self.ran = ran
        self.left = looks
        self.given = 0
        self.over = asyncio.Event()
        self._now = 0.0
        self.donation = Donation(self._needed, clock=lambda: self._now, cpu=lambda: self.ran * self._now)
        self.donation._enough = self  # type: ignore[assignment]  # counts instead of standing still

    def _needed(self) -> bool:
        self._now += donation.TICK_S
        self.left -= 1
        if self.left < 0:
            self.over.set()
        return self.left >= 0

    def clear(self) -> None:
        pass

    def wait(self, timeout: float) -> None:
        assert timeout == pytest.approx(donation.SHARE * donation.TICK_S)
        self.given += 1


@pytest.mark.parametrize(("ran", "given"), [(1.0, 3), (0.5, 0), (0.0, 0)])
async def test_only_a_saturated_loop_gives(ran: float, given: int) -> None:
    """A loop that ran all the time gives at each look; one that was idle half of it never does."""
    looks = Looks(ran, looks=3)
    looks.donation.watch(asyncio.get_running_loop())
    looks.donation.watch(asyncio.get_running_loop())  # it is looked after once
    await asyncio.wait_for(looks.over.wait(), 30)
    assert looks.given == given


async def test_it_ends_when_there_is_no_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once worker threads have nothing to do, no timer is left, and the loop is looked after anew when they have."""
    loop = asyncio.get_running_loop()
    for _ in range(2):
        looks = Looks(1.0, looks=0)
        looks.donation.watch(loop)
        await asyncio.wait_for(looks.over.wait(), 30)
        assert looks.given == 0
        assert loop not in looks.donation._watched


def test_results_end_it() -> None:
    """A loop that stands still goes on as soon as there are results, not when its time is up."""
    donated = Donation(lambda: True)
    donated._is_standing = True
    waiting: list[Any] = []

    def stand() -> None:
        waiting.append(donated._enough.wait(60))

    thread = threading.Thread(target=stand)
    thread.start()
    donated.enough()
    thread.join(30)
    assert waiting == [True]
