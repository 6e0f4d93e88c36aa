"""The journal of imports: the n-th message of an ident is there already if n copies have been recorded."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import maildir_async.disk.imported as imported_module
from maildir_async.disk.imported import Imported, Wanted
from maildir_async.disk.posix import PosixDisk


def ident_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def one_run(
    path: Path, source: list[int], recorded: Counter[int], chance: random.Random, fails: Callable[[], bool]
) -> None:
    """Import *source*, whatever order things are recorded in; check each answer, and keep *recorded*."""
    journal = Imported(str(path), PosixDisk())
    journal.open()
    journal.begin("tag", [])
    seen, before, flying = Counter[int](), recorded.copy(), list[int]()
    at = 0
    while at < len(source):
        some = source[at : at + chance.randint(1, 9)]
        at += len(some)
        answers = journal.find([Wanted(ident_of(each), b"") for each in some])
        for each, is_there in zip(some, answers, strict=True):
            seen[each] += 1
            if is_there:
                assert seen[each] <= recorded[each]
            else:
                assert seen[each] > before[each]
                flying.append(each)
        chance.shuffle(flying)
        done = [flying.pop() for _ in range(chance.randint(0, len(flying)))]
        done = [each for each in done if not fails()]
        recorded.update(done)
        journal.record([(ident_of(each), None) for each in done])
    done = [each for each in flying if not fails()]
    recorded.update(done)
    journal.record([(ident_of(each), None) for each in done])
    journal.close(is_finished=True)


@pytest.mark.parametrize("seed", range(3))
def test_copies_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever is in flight, fails, or stands twice in a source: when a run fails at nothing, all copies are there."""
    monkeypatch.setattr(imported_module, "NEW_MOST", seed)
    monkeypatch.setattr(imported_module, "ASKED_MOST", 2 + seed)
    chance = random.Random(seed)
    source = [chance.randint(0, 9) for _ in range(60)]
    recorded = Counter[int]()
    for _ in range(3):
        one_run(tmp_path / "j", source, recorded, chance, lambda: chance.random() < 0.3)
        assert recorded <= Counter(source)
        chance.shuffle(source)
    one_run(tmp_path / "j", source, recorded, chance, lambda: False)
    assert recorded == Counter(source)
    one_run(tmp_path / "j", source, recorded, chance, lambda: pytest.fail("is there already"))
