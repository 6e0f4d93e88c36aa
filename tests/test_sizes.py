"""Sizes as people write them, one way everywhere."""

import pytest

from maildir_async.daemon.options import BY_NAME
from maildir_async.daemon.values import size
from maildir_async.format.quota import Limits, limits_of
from maildir_async.format.sizes import size_of

SIZES = {
    "0": 0,
    "52428800": 52428800,
    "50M": 50 * 2**20,
    "50m": 50 * 2**20,
    "1.5G": 3 * 2**29,
    "64KiB": 2**16,
    "64 KiB": 2**16,
    "7B": 7,
    "2T": 2**41,
    "0.1K": 102,  # and two fifths
    "007K": 7 * 2**10,
    "9007199254740991": 2**53 - 1,
}


@pytest.mark.parametrize(("text", "number"), SIZES.items())
def test_a_size_as_people_write_it(text: str, number: int) -> None:
    """Bytes, or K, M, G and T, or KiB and so on, in powers of 1024, perhaps with a fraction."""
    assert size_of(text) == number


NO_SIZES = [
    *("", "much", "-1", "-1M", "+1", "1.5", ".5M", "1.M", "1,5G", "1_000", "1e6", "50 bananas", "50MM", "M", "0x10"),
    *("50MB", "1kb", "9007199254740992", "8192T", "99999999999999999999", "\u0661", "1K\u0131B", "1M\n", " 1M", "1iB"),
]


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size(text: str) -> None:
    """What is ambiguous, negative, too large or no number is refused, and the error has what it was."""
    with pytest.raises(ValueError, match=r".") as caught:
        size_of(text)
    assert repr(text) in str(caught.value)


def test_megabytes_are_called_ambiguous() -> None:
    """The error for MB says what to write for either meaning's neighbour."""
    with pytest.raises(ValueError, match=r"'50MB' is ambiguous: 50M or 50MiB is in powers of 1024"):
        size_of("50MB")


def test_serve_and_its_file_take_the_same_sizes() -> None:
    """Each option of `serve` that is a size is read by the same parser, from flags and from TOML; 0 is no limit."""
    limit = BY_NAME["size-limit"]
    assert [limit.value_of(given) for given in ("1.5G", "64KiB", 52428800, "0", 0)] == [
        *(3 * 2**29, 2**16, 52428800, None, None)
    ]
    for given in (1.5, -1, True, "50MB"):
        with pytest.raises(ValueError, match=f"{given}"):
            limit.value_of(given)
    assert BY_NAME["line-length-limit"].value_of("2K") == 2048
    with pytest.raises(ValueError, match=r"at least 3 bytes.*'2'"):
        size("2", least=3)
    assert {name for name, option in BY_NAME.items() if option.metavar == "SIZE"} == {"size-limit", "line-length-limit"}


def test_a_quota_takes_the_same_sizes() -> None:
    """The bytes of --quota are such a size."""
    assert limits_of("1.5G,10000C") == Limits(3 * 2**29, 10000)
    with pytest.raises(ValueError, match=r"'1GB,5C'.*ambiguous"):
        limits_of("1GB,5C")
