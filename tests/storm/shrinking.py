"""A schedule that fails, made small; and as a test that can be pasted into tests/test_storm.py."""

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from .checker import faults_of
from .schedules import Schedule, Step

__all__ = ["as_test", "run", "shrink"]


def run(schedule: Schedule, directory: Path | None = None) -> list[str]:
    """Run a schedule in an empty directory below *directory*, and return what is wrong: also with the rig itself."""
    with tempfile.TemporaryDirectory(prefix="maildir-storm-", dir=directory) as root:
        try:
            return faults_of(Path(root), schedule)
        except Exception:
            return [f"the rig failed: {traceback.format_exc()}"]


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> list[Step]:
    """Return the steps of *schedule* without which it does not fail: halves are left out first, then single ones."""
    steps = list(schedule)
    size = max(1, (len(steps) - 1) // 2)
    while True:
        at, has_shrunk = 1, False  # the first says what there is
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fails(fewer):
                steps, has_shrunk = fewer, True
            else:
                at += size
        if size == 1 and not has_shrunk:
            break
        size = max(1, size // 2)
    for at, each in enumerate(steps):
        for name in list(each.what):
            simpler = Step(each.kind, {key: value for key, value in steps[at].what.items() if key != name})
            plainer = [*steps[:at], simpler, *steps[at + 1 :]]
            if name in _OPTIONAL and (each.kind, name) != ("close", "loop") and fails(plainer):
                steps = plainer
    return steps


#: What a step can do without.
_OPTIONAL = frozenset(
    (
        *("made", "quota", "filters", "max_pending", "wait", "syncfs", "kernel", "commits", "helper"),
        *("loop", "folder", "guard", "keywords", "flags", "durability", "key", "atomic", "path", "late"),
    )
)


def as_test(name: str, schedule: Schedule, faults: list[str]) -> str:
    """Return Python that fails as *schedule* does."""
    steps = "\n".join(f"        {each!r}," for each in schedule)
    said = "\n".join(f"    # {line[:200]}" for fault in faults[:4] for line in fault.splitlines()[-1:])
    return f"def test_{name}(tmp_path: Path) -> None:\n{said}\n    schedule = [\n{steps}\n    ]\n" + (
        "    assert faults_of(tmp_path, schedule) == []\n"
    )
