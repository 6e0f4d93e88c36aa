import os
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.format.names import FLAGS, HOST_MAX, UniqueNames, check_flags, file_name, key_of, names_for
from support import UNIQUE, forked, reproducible


def fields(name: str) -> dict[str, str]:
    match = UNIQUE.fullmatch(name)
    assert match, name
    return match.groupdict()


def dovecot_order(name: str) -> tuple[int, int, str]:
    """Dovecot's: leading digits, the number after the first M of the middle field, bytes."""
    middle = name.split(".")[1]
    micros = re.search(r"M(\d+)", middle)
    assert micros
    return int(name.split(".")[0]), int(micros[1]), name


def test_grammar() -> None:
    """A published name is <sec>.M<µs>P<pid>Q<n>R<16 hex>.<host>,S=<size>,W=<wire size>, with :2,<flags> if any."""
    unique = UniqueNames(clock=lambda: 1_700_000_000_123_456_789, hostname="mx.example.org", pid=lambda: 4711).next()
    found = fields(unique)
    assert (found["seconds"], found["micros"], found["pid"]) == ("1700000000", "123456", "4711")
    assert found["host"] == "mx.example.org"
    assert file_name(unique, 10, 12, "") == f"{unique},S=10,W=12"
    assert file_name(unique, 10, 12, "FS") == f"{unique},S=10,W=12:2,FS"


@pytest.mark.parametrize(
    ("nanoseconds", "micros"), [(0, "000000"), (7_000, "000007"), (999_999_999, "999999"), (50_000_000, "050000")]
)
def test_m_is_microseconds(nanoseconds: int, micros: str) -> None:
    """M is the true microseconds of the same clock reading, below a million, in six digits."""
    found = fields(UniqueNames(clock=lambda: 10**18 + nanoseconds).next())
    assert (found["seconds"], found["micros"]) == ("1000000000", micros)


def test_clock_is_forced_forward_across_a_second() -> None:
    """With a clock that stands still each name is a microsecond later, carried into the seconds."""
    names = UniqueNames(clock=lambda: 41_999_998_000)
    times = [(found["seconds"], found["micros"]) for found in (fields(names.next()) for _ in range(3))]
    assert times == [("41", "999998"), ("41", "999999"), ("42", "000000")]


@reproducible
@given(st.lists(st.integers(min_value=-(10**10), max_value=10**10), min_size=1, max_size=40))
def test_order_whatever_the_clock_does(steps: list[int]) -> None:
    """Names sort as they were made, for Dovecot and as strings, through a clock that goes backwards."""
    now = 1_700_000_000 * 10**9

    def clock() -> int:
        nonlocal now
        now += steps.pop() if steps else 0
        return now

    made = [(names := UniqueNames(clock=clock, hostname="h", pid=lambda: 1)).next()]
    made += [names.next() for _ in range(len(steps) + 12)]  # 12: past Q9, where string order of Q alone breaks
    assert sorted(made, key=dovecot_order) == made
    assert sorted(made) == made
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    ("host", "escaped"),
    [
        ("mx1.example.org", "mx1.example.org"),
        ("a/b", r"a\057b"),
        ("a:b", r"a\072b"),
        ("a,b", r"a\054b"),
        ("a\\057b", r"a\134057b"),
        ("a b", r"a\040b"),
        ("a\r\nb\0", r"a\015\012b\000"),
        ("é", r"\303\251"),
        (os.fsdecode(b"\xff"), r"\377"),
        ("..", ".."),
    ],
)
def test_host_is_escaped(host: str, escaped: str) -> None:
    """What a reader could trip over in a host name stands in the name as an octal escape."""
    assert UniqueNames(hostname=host).next().split(".", 2)[2] == escaped


@reproducible
@given(st.text(min_size=1, max_size=400), st.sampled_from(["", FLAGS]))
def test_any_host_fits(host: str, flags: str) -> None:
    """Whatever the host, a name is one path component of at most 255 bytes, every escape in it is whole."""
    names = UniqueNames(clock=lambda: 10**20, hostname=host, pid=lambda: 2**22)
    unique = names.next()
    fields(unique)
    name = file_name(unique, 2**63 - 1, 2**63 - 1, flags)
    assert len(os.fsencode(name)) <= 255
    assert not set(name) & set("/\0\r\n \t")
    assert not name.startswith((".", ":"))
    assert name.split(",")[0] == name.split(":")[0].split(",S=")[0] == unique


def test_a_long_host_can_be_created(tmp_path: os.PathLike[str]) -> None:
    """The longest name is one the file system takes, and keeps as much of the host as there is room for."""
    for host in ("h" * 300, "é" * 300):
        names = UniqueNames(hostname=host)
        assert HOST_MAX - 4 < len(fields(names.next())["host"]) <= HOST_MAX
        name = file_name(names.next(), 2**63, 2**63, FLAGS)
        with open(os.path.join(tmp_path, name), "xb"):
            pass


def test_host_by_default() -> None:
    """Without a host name, names end with this machine's; without a pid or clock, they have the process's."""
    found = fields(UniqueNames().next())
    assert found == {**found, "host": fields(names_for(None).next())["host"], "pid": str(os.getpid())}


def test_mailboxes_share_one_clock() -> None:
    """All mailboxes of a process with the same host take their names from one forced-forward clock."""
    assert names_for("a") is names_for("a")
    assert names_for("a") is not names_for("b")


@pytest.mark.parametrize(
    ("flags", "checked"), [("", ""), ("S", "S"), ("SRF", "FRS"), ("SSFSF", "FS"), ("TSRPFD", "DFPRST")]
)
def test_flags_are_sorted_and_single(flags: str, checked: str) -> None:
    """Flags are stored in ASCII order, each once."""
    assert check_flags(flags) == checked


@reproducible
@given(st.text(alphabet=FLAGS))
def test_any_flags(flags: str) -> None:
    """Any mix of the six letters is taken, and what is stored is sorted, single, and the same set."""
    checked = check_flags(flags)
    assert set(checked) == set(flags)
    assert list(checked) == sorted(set(checked))


@pytest.mark.parametrize("flag", ["s", "a", "X", ",", ":", "/", "\0", " ", "\uff33", "2"])
def test_a_flag_that_is_none_is_refused(flag: str) -> None:
    """A letter that is not a Maildir flag is a ValueError that names it."""
    with pytest.raises(ValueError, match=re.escape(repr(flag))):
        check_flags(f"F{flag}S")


def test_key() -> None:
    """The key is the name before any colon, so that it stays when a reader sets flags."""
    name = file_name("1.M000000P1Q1R0.h", 1, 2, "")
    assert key_of(name) == key_of(f"{name}:2,") == key_of(f"{name}:2,FS") == key_of(f"{name}:2,S:odd") == name


def frozen(pid: int = 1) -> UniqueNames:
    return UniqueNames(clock=lambda: 1_700_000_000 * 10**9, hostname="same", pid=lambda: pid)


def by_threads(count: int, *, threads: int = 8) -> list[str]:
    """Names made by threads at once, each with a generator of its own, and as many from one that all share."""
    shared, barrier = frozen(), threading.Barrier(threads)

    def work(_: int) -> list[str]:
        own = frozen()
        barrier.wait(10)
        return [names.next() for _ in range(count) for names in (own, shared)]

    with ThreadPoolExecutor(threads) as pool:
        return list(chain.from_iterable(pool.map(work, range(threads))))


def test_unique_under_threads_and_forks() -> None:
    """No two names are the same: 8 threads in each of 4 forked processes, frozen clock, same host name and pid."""
    before = by_threads(50)  # what the children inherit: counters that stand somewhere
    made = [before, by_threads(50), *forked(lambda: by_threads(250), children=4)]
    everything = list(chain.from_iterable(made))
    assert len(everything) == 2 * 800 + 4 * 4000
    assert len(set(everything)) == len(everything)
    assert {fields(name)["pid"] for name in everything} == {"1"}


def test_randomness_is_redrawn_after_a_fork() -> None:
    """A process has one R, each forked child another, and the parent keeps its own: copies of a generator differ."""
    names = frozen()

    def draw() -> str:
        return fields(names.next())["random"]

    own = draw()
    drawn = forked(draw, children=3)
    assert len({own, *drawn}) == 4
    assert draw() == fields(UniqueNames().next())["random"] == own


def test_a_grandchild_differs_too() -> None:
    """A fork of a fork draws again."""
    names = frozen()
    [(child, grandchild)] = forked(lambda: (names.next(), forked(names.next)[0]))
    assert len({fields(name)["random"] for name in (names.next(), child, grandchild)}) == 3


def test_a_fork_amid_a_name_leaves_the_child_working() -> None:
    """A child forked while a thread of the parent is making a name makes names of its own."""
    inside, go_on = threading.Event(), threading.Event()

    def readings() -> Iterator[int]:
        inside.set()
        assert go_on.wait(30)
        while True:
            yield 10**18

    clock = readings()
    slow, names = UniqueNames(clock=lambda: next(clock)), frozen()
    thread = threading.Thread(target=slow.next)
    thread.start()
    assert inside.wait(30)
    try:
        [made] = forked(names.next)
    finally:
        go_on.set()
        thread.join()
    assert made != names.next()


def test_first_comma_part_is_unique_by_itself() -> None:
    """Messages of any sizes differ before the first comma, where some readers cut the key."""
    names, sizes = frozen(), random.Random(1)
    made = [file_name(names.next(), sizes.randrange(3), sizes.randrange(3), "") for _ in range(100)]
    assert len({name.partition(",")[0] for name in made}) == len(made)
