"""IMAP keywords by ``dovecot-keywords``: the file, its locks, and messages that carry its letters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.format.keywords import check_keywords, format_keywords, key, parse_keywords
from tests.support import reproducible

ATOM = st.text("".join(chr(c) for c in range(33, 127) if chr(c) not in '(){%*"\\]'), min_size=1, max_size=50)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), ()),
        (["$Forwarded"], ("$Forwarded",)),
        (["$Junk", "work", "$JUNK", "Work"], ("$Junk", "work")),
        (iter(["b", "a"]), ("b", "a")),
        ([chr(ord("a") + i) for i in range(26)] * 2, tuple("abcdefghijklmnopqrstuvwxyz")),
        (["x" * 50], ("x" * 50,)),
    ],
)
def test_keywords_keep_their_order_and_first_spelling(given: Any, kept: tuple[str, ...]) -> None:
    """Keywords are kept as given, once each, whatever their case."""
    assert check_keywords(given) == kept


@pytest.mark.parametrize(
    "wrong",
    [
        *("", " ", "a b", "\\Seen", "a\\b", "(a", "a)", "{1}", "%", "*", 'a"', "a]", "a\n", "a\0", "\x7f", "é", "ſ"),
        *("\udc80", "x" * 51),
    ],
)
def test_what_imap_forbids_is_refused(wrong: str) -> None:
    """What is no atom, or longer than Dovecot takes, is a ValueError that shows it."""
    with pytest.raises(ValueError, match="keywords"):
        check_keywords(["fine", wrong])


@pytest.mark.parametrize("wrong", ["$Junk", b"$Junk", None, 7, [7], [b"a"], [None]])
def test_what_is_no_sequence_of_strings_is_refused(wrong: Any) -> None:
    """A single string is not taken for a sequence of its characters, and nothing else for strings."""
    with pytest.raises(TypeError, match="keywords"):
        check_keywords(wrong)


def test_more_than_26_are_refused() -> None:
    """There are 26 letters."""
    with pytest.raises(ValueError, match="at most 26"):
        check_keywords([f"k{i}" for i in range(27)])


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", {}),
        (b"0 a\n1 b\n", {0: "a", 1: "b"}),
        (b"0 a\n1 b", {0: "a"}),
        (b"0 a\r\n", {0: "a"}),
        (b"nothing\n\n0\n0 \n 1\n1  x\n", {1: " x"}),
        (b"25 z\n26 no\n-1 no\n+2 no\n99999999999999999999 no\n\xb2 no\n", {25: "z"}),
        (b"0 Work\n1 WORK\n2 x\n", {0: "Work", 2: "x"}),
        (b"0 a\n0 b\n", {0: "b"}),
        (b"007 bond\n", {7: "bond"}),
        (b"3 \xe9\n4 \xc9\n", {3: "\xe9", 4: "\xc9"}),
        (b"0 a\n1 " + b"x" * 2000 + b"\n2 c\n", {0: "a"}),
        (b"0 a\0b\n", {0: "a"}),
        (b"9" * 5000 + b" x\n", {}),
    ],
)
def test_the_file_is_read_as_dovecot_reads_it(data: bytes, names: dict[int, str]) -> None:
    """What Dovecot skips is skipped, and what it keeps is kept."""
    assert parse_keywords(data) == names


@reproducible
@given(st.dictionaries(st.integers(0, 25), ATOM, max_size=26))
def test_a_file_that_is_written_is_read_back(names: dict[int, str]) -> None:
    """Names go through the file unchanged, each by its index."""
    unique = {key(name): index for index, name in reversed(names.items())}
    names = {index: names[index] for index in unique.values()}
    assert parse_keywords(format_keywords(names)) == names


@reproducible
@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    """Whatever the file has, it is read without an error, and what was understood once is understood again."""
    names = parse_keywords(data)
    assert len({key(name) for name in names.values()}) == len(names) <= 26
    assert parse_keywords(format_keywords(names)) == names
