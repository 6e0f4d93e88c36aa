"""Names as they are found: what they say, and the right ones. And the set of hashes that finds two with one key."""

from hypothesis import given
from hypothesis import strategies as st

from maildir_async.format.hashes import Hashes
from maildir_async.format.names import FLAGS, file_name
from maildir_async.format.problems import KINDS
from maildir_async.format.read_names import KEYWORD_LETTERS, info_of, said_size, said_sizes, with_sizes
from support import reproducible

LETTERS = st.text(st.sampled_from(FLAGS + KEYWORD_LETTERS + "XYZ!é,"), max_size=12)
ATTRIBUTES = st.lists(
    st.sampled_from([",S=5", ",W=6", ",S=", ",S=x", ",U=7", ",FMD5=ab", ",S=0012", ",W=99999999999999999999"])
)


@reproducible
@given(LETTERS)
def test_what_is_right_of_flags_stays_right(letters: str) -> None:
    """The right info has each flag and keyword that was there once, in order, no other letter, and is right itself."""
    said = info_of(f"2,{letters}")
    assert info_of(said.right) == (said_again := info_of(said.right))
    assert said_again.is_right
    assert not said_again.others
    before, _, after = letters.partition(",")
    kept = set(before) & set(FLAGS + KEYWORD_LETTERS)
    assert said.right.partition(",")[2].partition(",")[0] == "".join(sorted(kept))
    assert said.right.endswith(after)
    assert set(said.flags) | set(said.keywords) | set(said.others) == set(before)


def test_an_info_of_another_kind_says_nothing() -> None:
    """What does not begin with ``2,`` has no flags, and is not right."""
    for info in ("", "1,", "2", "S", "3,S", "2S"):
        assert (info_of(info).flags, info_of(info).is_right) == ("", False)


@reproducible
@given(ATTRIBUTES, st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_key_with_right_sizes_says_them_once(attributes: list[str], size: int, wire_size: int) -> None:
    """What other attributes a key has stays in its order; each size is there once, and is that which was given."""
    key = "1.M2P3.host" + "".join(attributes)
    said = said_sizes(key)
    if not said:
        return
    right = with_sizes(key, size, wire_size)
    assert said_sizes(right) == {"S": [size], "W": [wire_size]}
    assert said_size(right) == size
    others = [each for each in attributes if each[1] not in "SW"]
    assert right.replace(f",S={size},W={wire_size}", "", 1) == "1.M2P3.host" + "".join(others)


@reproducible
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.sampled_from(["", "FS"]))
def test_our_own_names_are_read(size: int, wire_size: int, flags: str) -> None:
    """A name that this library gives says what it was given, and is right."""
    key, _, info = file_name("1.M2P3.host", size, wire_size, flags).partition(":")
    assert said_sizes(key) == {"S": [size], "W": [wire_size]}
    assert with_sizes(key, size, wire_size) == key
    assert not flags or info_of(info).is_right


@reproducible
@given(st.lists(st.integers(-(2**63), 2**64 - 1)))
def test_hashes_are_a_set(numbers: list[int]) -> None:
    """Each number is told of as known when it comes again, and not before."""
    hashes, seen = Hashes(), set[int]()
    for number in [*numbers, *numbers]:
        number %= 2**64
        assert hashes.add(number) == ((number or 1) in seen)
        seen.add(number or 1)


def test_hashes_are_kept_when_the_array_grows() -> None:
    """Of many more than there are places for at first none is known before it comes, and all are afterwards."""
    hashes = Hashes()
    numbers = [number * 0x9E3779B97F4A7C15 for number in range(1, 20_000)]
    assert not any(map(hashes.add, numbers))
    assert all(map(hashes.add, numbers))


def test_each_kind_of_problem_is_explained() -> None:
    """Each has a line of its own, which the documentation repeats."""
    assert len(set(KINDS.values())) == len(KINDS) >= 14
