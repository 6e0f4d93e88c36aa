"""Names of files, whoever gave them: sizes, flags, keys, the order of arrival."""

import re
from types import SimpleNamespace
from typing import Any

from maildir_async.disk.listing import arrival
from maildir_async.disk.maildirsize import _is_trashed, _size_of
from maildir_async.format.names import UniqueNames, check_flags, file_name, key_of, number_of
from maildir_async.format.read_names import info_of, letters_of, said_size, said_sizes, sizes_of, with_sizes
from maildir_async.helper.recovery import _sizes_in
from maildir_async.mailbox.index import _existing

from .cutting import decoded

__all__ = ["target"]

PIECES = (b",S=", b",W=", b":2,", b":1,", b":", b",", b"1", b"S", b"a", b".", b"M", b"\xd9\xa1", b"\xc2\xb2", b"\n")

#: What a file has whose name says no size.
ASKED = 7


class Disk:
    """One whose files all have `ASKED` bytes."""

    def stat(self, path: str) -> Any:
        return SimpleNamespace(st_mode=0o100600, st_size=ASKED)


def target(data: bytes) -> None:
    """Read *data* as the name of a message."""
    name = decoded(data.replace(b"/", b"").replace(b"\0", b""))[:255]
    key, _, info = name.partition(":")
    assert key_of(name) == key
    said = said_sizes(key)
    assert said.keys() <= {"S", "W"}
    last = key.split(",S=")[-1].split(",")[0] if ",S=" in key else ""
    size = int(last) if re.fullmatch("[0-9]{1,18}", last) else None
    assert said_size(key) == size
    assert _size_of(Disk(), "", name) == (ASKED if size is None else size)  # type: ignore[arg-type]  # all of a disk that it needs
    _check_sizes(key, said)
    _check_info(name, info)
    seconds, micros, last_of_all = arrival(name)
    assert min(seconds, micros) >= 0
    assert last_of_all == name
    found = _sizes_in(f"/home/x,S=1,W=2/{name}")
    numbers = {letter: values[-1] for letter, values in said.items()}
    assert found == ((numbers["S"], numbers["W"]) if None not in map(numbers.get, "SW") else None)
    number = number_of(name, "0123456789abcdef")
    assert number is None or 0 <= number < 10**12
    _check_own(data)


def _check_sizes(key: str, said: dict[str, list[int | None]]) -> None:
    assert bool(said) == bool(sizes_of(key))
    assert said_sizes("x" + sizes_of(key)) == said
    if said:
        right = with_sizes(key, 5, 6)
        assert said_sizes(right) == {"S": [5], "W": [6]}
        assert with_sizes(right, 5, 6) == right
        assert said_sizes(with_sizes(key, 5, None)) == {"S": [5]}


def _check_info(name: str, info: str) -> None:
    told = info_of(info)
    assert info_of(told.right).is_right
    assert told.is_right == (told.right == info)
    assert set(told.flags) <= set("DFPRST")
    if info.startswith("2,"):
        letters = info[2:].partition(",")[0]
        assert sorted(told.flags + told.keywords + told.others) == sorted(letters)
        assert letters_of(name) == letters
        assert _existing(f"/x/{name}").flags == letters
        assert _is_trashed(name) == ("T" in letters)
    else:
        assert letters_of(name) == _existing(f"/x/{name}").flags == ""
        assert not _is_trashed(name)


def _check_own(data: bytes) -> None:
    """A name of our own is read as it was meant, whatever the host is called."""
    unique = UniqueNames(hostname=decoded(data) or "x", clock=lambda: 10**18, pid=lambda: 1).next()
    flags = check_flags("".join(letter for letter in "SRT" if letter in decoded(data)))
    name = file_name(unique, 12, 13, flags)
    assert len(name.encode()) <= 255
    assert "/" not in name
    assert re.fullmatch(r"[!-~]+", name)
    assert said_sizes(key_of(name)) == {"S": [12], "W": [13]}
    assert info_of(name.partition(":")[2] or "2,").flags == flags
    assert _sizes_in(f"/home/x,S=1,W=2/{name}") == (12, 13)
