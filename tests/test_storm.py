"""Storms by themselves: a few schedules in each run, what they have found, and that they find what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from storm.checker import faults_of
from storm.planted import PLANTED
from storm.schedules import Step, draw, step
from storm.shrinking import as_test, shrink

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # on a loop that was closed before


@pytest.mark.parametrize("seed", range(8))
def test_a_storm(tmp_path: Path, seed: int) -> None:
    """Each message is whole or absent, once, as was told; and nothing is left of what was done for it."""
    assert faults_of(tmp_path, draw(seed)) == []


def test_a_seed_is_a_schedule() -> None:
    """The same seed is the same schedule, another is another, and what is printed can be read back."""
    schedules = [draw(seed) for seed in range(50)]
    assert schedules == [draw(seed) for seed in range(50)]
    assert len({repr(schedule) for schedule in schedules}) == 50
    assert eval(repr(schedules[7]), {"step": step}) == schedules[7]
    kinds = {each.kind for seed in range(400) for each in draw(seed, helper=seed % 50 == 49)}
    assert len(kinds) == 25


def test_a_schedule_that_fails_is_shrunk() -> None:
    """What it fails without is left out, steps and what they say; what is left is a test."""

    def fails(schedule: "list[Step] | tuple[Step, ...]") -> bool:
        return [each.what.get("number") for each in schedule if each.kind == "append"][-1:] == [3]

    schedule = [step("world", boxes=2, quota=4)]
    schedule += [step("append", number=number, box=0, size=5, folder="x") for number in range(4)]
    schedule += [step("run", turns=1)] * 9
    shrunk = shrink(schedule, lambda each: fails(list(each)))
    assert shrunk == [step("world", boxes=2), step("append", number=3, box=0, size=5)]
    text = as_test("storm_7", shrunk, ["lost"])
    compile(text, "test", "exec")
    assert "step('append', number=3, box=0, size=5)," in text


def test_steps_about_what_is_not_there(tmp_path: Path) -> None:
    """Any part of a schedule can be run: a step that is about a delivery, gate or process that is not there is none."""
    schedule = [step("world", boxes=1), step("cancel", number=7, how="native"), step("feed", number=7, end="end")]
    schedule += [step("open", number=3), step("kill", number=9), step("sweep", box=5), step("aclose", box=5)]
    schedule += [step("append", number=1, box=5, size=9), step("fork", numbers=[2, 3], box=5)]
    assert faults_of(tmp_path, schedule) == []


# Where an outcome is missing, or comes twice, schedules hang for as long as the rig is patient: those are for --plant.
@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(PLANTED.keys() - {"forgotten", "left-and-kept"}))
def test_a_planted_fault_is_found(tmp_path: Path, name: str) -> None:
    """With the library broken on purpose the short form reports it."""
    command = [sys.executable, "-m", "tests.storm", "--plant", name, "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* WRONG", done.stdout)


@pytest.mark.heavy
def test_the_short_form_finds_nothing(tmp_path: Path) -> None:
    """The command ends well, and says what it has done."""
    command = [sys.executable, "-m", "tests.storm", "--schedules", "60", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 schedules" in done.stdout
    assert list(tmp_path.iterdir()) == []
