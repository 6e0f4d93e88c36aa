"""Addresses and the paths of their maildirs, with aliases and whole domains."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from maildir_async.smtp.addresses import Address, check_delimiters, destination, detail_of, parse_key
from maildir_async.smtp.recipients import Found, Target
from maildir_async.smtp.tables import check_no_star, check_not_emptied, lines, loaded, text_of

__all__ = ["AddressMap", "Elsewhere", "Goal", "MapFile"]

Goal = str | os.PathLike[str]
"""A path, or the address whose maildirs an alias has."""

#: (local part, domain); "" for the local part of a whole domain, "" for the domain of postmaster alone.
Key = tuple[str, str]

#: Paths, or addresses that are to be looked up by somebody else, each with a detail or ""; and the address that mail to
#: it is for, "" for the own one.
_Paths = dict[tuple[str, str], str]

#: Octets of a path, its last NUL included, and of a name in it (PATH_MAX and NAME_MAX of Linux).
PATH_MAX: Final = 4096
NAME_MAX: Final = 255

#: Maildirs of one address, as Postfix has it (virtual_alias_expansion_limit in postconf(5)).
MAX_TARGETS: Final = 1000

_LINE: Final = re.compile(rb'("(?:[^"\\]|\\.)*"@\S+|\S+)\s*(.*)', re.DOTALL)

#: An address with a quoted local part; a path in quotes; a path; an address.
_GOAL: Final = re.compile(
    r'(?P<quoted>"(?:[^"\\]|\\.)*"@[^\s,]+)|"(?P<path>/[^"]*)"|(?P<bare>/.*?)(?=,\s|$)|(?P<address>[^\s,"/][^\s,]*)',
    re.DOTALL,
)
_COMMA: Final = re.compile(r"\s*,\s*")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What an alias of a partial map leads to: an address that is to be looked up by somebody else.

    Attributes:
        address: that one.
        detail: of the address that has led there, for whom *address* leads to without a detail of its own.

    """

    address: str
    detail: str = ""

    def __fspath__(self) -> str:
        raise TypeError(f"{self.address} has not been looked up")


class AddressMap:
    """Addresses and the absolute paths of their maildirs, as they are now: a copy is kept.

    A value may also be another address of the mapping, or a list of paths and addresses: each of their maildirs gets
    the message, once. A key ``@example.org`` has what no other key has in that domain. ValueError for an address that
    is none, one that is there twice (in other letters, say), a relative path, or an alias that leads to nobody or back
    to itself.

    Args:
        mapping: see above. Quoted local parts and address literals are keys like any other.
        delimiters: characters that separate user and detail; "" for none.

    """

    def __init__(self, mapping: "Mapping[str, Goal | Sequence[Goal]]", *, delimiters: str = "+") -> None:
        self._delimiters = check_delimiters(delimiters)
        entries = ((repr(key), key, _goals(value)) for key, value in mapping.items())
        self._map = _map_of(entries, delimiters)

    def __call__(self, address: str) -> Found:
        """Return where mail for *address* goes: as it is, without its detail, or as all of its domain; or None."""
        return self._map.find(address, self._delimiters)

    def root_of(self, path: str) -> str:
        """Return the directory of the maildir at *path*, which is not made: its parent."""
        return os.path.dirname(path)

    def has_domain(self, domain: str) -> bool:
        """Whether there is an address in that domain."""
        return domain in self._map.domains


class MapFile:
    """A file with an address and the absolute path of its maildir a line. Blank and ``#`` lines are ignored.

    Instead of a path, or beside it, there may be other addresses of the file, with commas between them: each of their
    maildirs gets the message, once. A line ``@example.org …`` is for what no other line has in that domain. Addresses
    are in UTF-8. A path may have spaces in it, but not at its ends, and commas, but with a space behind only in double
    quotes. As with `AddressMap`, no address may be there twice.

    `load` reads it. RuntimeError until then: it is not known who is known.

    Args:
        path: of the file.
        delimiters: characters that separate user and detail; "" for none.
        is_partial: whether there is somebody else to ask for the addresses that are not in it: see `Aliases`. Then an
            alias may lead to any address, and also to its own, which is that one of somebody else.

    """

    def __init__(self, path: str | os.PathLike[str], *, delimiters: str = "+", is_partial: bool = False) -> None:
        self._path = path
        self._delimiters = check_delimiters(delimiters)
        self._is_partial = is_partial
        self._map: _Map | None = None

    def load(self) -> None:
        """Read the file. Blocks. OSError, or ValueError with the number of a bad line: then all stays as it was.

        ValueError too for a file that had addresses, and has none any more: it may be one being written.
        """
        self.take(self.read())

    def read(self) -> "_Map":
        """Return what the file has now, or raise as `load` does."""
        new = _map_of(self._entries(), self._delimiters, is_partial=self._is_partial)
        check_not_emptied(self._path, new.found, self._map.found if self._map is not None else None)
        return new

    def take(self, content: "_Map") -> None:
        """Know what has been read."""
        self._map = content

    def __call__(self, address: str) -> Found:
        """Return where mail for *address* goes: as it is, without its detail, or as all of its domain; or None."""
        return loaded(self._map, self._path).find(address, self._delimiters)

    def exact(self, address: str) -> Found:
        """Return where mail for *address* goes, but as all of its domain; or None."""
        parsed = parse_key(address, self._delimiters)
        content = loaded(self._map, self._path)
        return content.exact(parsed, address, self._delimiters) if parsed is not None else None

    def whole_domain(self, address: str) -> Found:
        """Return where mail for all of the domain of *address* goes, or None."""
        parsed = parse_key(address, self._delimiters)
        return loaded(self._map, self._path).found.get(("", parsed.domain)) if parsed is not None else None

    def root_of(self, path: str) -> str:
        """Return the directory of the maildir at *path*, which is not made: its parent."""
        return os.path.dirname(path)

    def has_domain(self, domain: str) -> bool:
        """Whether there is an address in that domain."""
        return domain in loaded(self._map, self._path).domains

    def _entries(self) -> Iterator[tuple[str, str, list[str]]]:
        for where, line in lines(self._path):
            parts = _LINE.fullmatch(line)
            assert parts is not None
            yield where, text_of(where, parts[1]), _goals_of(where, os.fsdecode(parts[2]))


@dataclass(frozen=True, slots=True)
class _Map:
    """What is found by an address: a path, or what its aliases lead to."""

    found: Mapping[Key, Found]
    domains: frozenset[str]
    postmaster: Found  # of the first domain that has one

    def find(self, text: str, delimiters: str) -> Found:
        address = parse_key(text, delimiters)
        if address is None:
            return None
        found = self.exact(address, text, delimiters)
        return found if found is not None else self.found.get(("", address.domain))

    def exact(self, address: Address, text: str, delimiters: str) -> Found:
        found = self.found
        where = found.get((address.whole_local, address.domain))
        if where is not None:
            return where
        where = found.get((address.local, address.domain))
        if where is None and address.local == "postmaster":
            if not address.domain:
                where = self.postmaster
            elif address.domain in self.domains and ("", address.domain) not in found:
                where = found.get(("postmaster", ""))
        return _with_detail(where, text, detail_of(text, delimiters)) if address.detail else where


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a line, or an item of a mapping, says.

    Attributes:
        where: which one, for errors.
        goals: paths, and other entries.

    """

    where: str
    goals: "Sequence[str | _Named]"


@dataclass(frozen=True, slots=True)
class _Named:
    """Another entry.

    Attributes:
        key: its own.
        address: that it was named by.
        detail: of that address, if the entry is not for it alone.

    """

    key: Key
    address: str
    detail: str


def _map_of(entries: Iterable[tuple[str, str, Sequence[str]]], delimiters: str, *, is_partial: bool = False) -> _Map:
    """Return the map of *entries*, from places to tell in errors, addresses and goals. ValueError if one is wrong."""
    texts: dict[Key, tuple[str, Sequence[str]]] = {}
    for where, text, goals in entries:
        key = _key(where, text)
        if key in texts:
            raise ValueError(f"{where}: {'@'.join(key)!r} is there already")
        texts[key] = where, goals
    known = {
        key: _Entry(where, [_goal(where, text, texts, delimiters, key if is_partial else None) for text in goals])
        for key, (where, goals) in texts.items()
    }
    found = {key: _found(targets) for key, targets in _followed(known).items()}
    postmasters = (where for (local, domain), where in found.items() if local == "postmaster" and domain)
    return _Map(found, frozenset(domain for _, domain in found if domain), next(postmasters, None))


def _key(where: str, text: str) -> Key:
    check_no_star(where, text, "without the star")
    if text.startswith("@"):
        domain = destination(text[1:])
        if domain is not None:
            return "", domain
    address = parse_key(text, "")
    if address is None:
        raise ValueError(f"{where}: not an address: {text!r}")
    return address.local, address.domain


def _goal(where: str, text: str, known: Mapping[Key, object], delimiters: str, own: Key | None) -> str | _Named:
    """Return a path as it is, or the entry that an address leads to.

    In a map that is partial, where *own* is the key of the entry, the address itself if it may be somebody else's.
    """
    if text.startswith("/"):
        octets = os.fsencode(text)
        if b"\0" in octets or len(octets) >= PATH_MAX or max(map(len, octets.split(b"/"))) > NAME_MAX:
            raise ValueError(f"{where}: no file system takes the path {text[:64]!r}")
        return text
    address = parse_key(text, delimiters)
    if address is None:
        raise ValueError(f"{where}: neither an absolute path nor an address: {text!r}")
    users = ((address.whole_local, ""), (address.local, detail_of(text, delimiters)), ("", ""))
    entries = [_Named((user, address.domain), text, detail) for user, detail in users]
    if own is not None:
        named = next((entry for entry in entries[:2] if entry.key in known), None)
        return text if named is None or named.key == own else named
    for named in entries:
        if named.key in known:
            return named
    raise ValueError(f"{where}: there is nobody to whom {text!r} could lead")


def _followed(entries: Mapping[Key, _Entry]) -> "Mapping[Key, _Paths]":
    """Return for each key the paths that it leads to. ValueError where one leads to itself."""
    done: dict[Key, _Paths] = {}
    for first in entries:
        way = {first: None}  # what is followed, in order: whose aliases are not all known yet
        while way:
            key = next(reversed(way))
            entry = entries[key]
            ahead = next((goal.key for goal in entry.goals if not isinstance(goal, str) and goal.key not in done), None)
            if ahead is None:
                done[key] = _joined(entry, done)
                del way[key]
            elif ahead in way:
                raise ValueError(f"{entry.where}: the alias leads back to itself")
            else:
                way[ahead] = None
    return done


def _joined(entry: _Entry, done: "Mapping[Key, _Paths]") -> "_Paths":
    paths: _Paths = {}
    for goal in entry.goals:
        if isinstance(goal, str):
            paths.setdefault((goal, ""), "")
            continue
        for (path, detail), name in done[goal.key].items():
            paths.setdefault((path, detail or goal.detail), name or goal.address)
    if not 0 < len(paths) <= MAX_TARGETS:
        raise ValueError(f"{entry.where}: 1 to {MAX_TARGETS} maildirs are wanted, not {len(paths)}")
    return paths


def _found(paths: "_Paths") -> Found:
    targets = [_target(goal, address, detail) for (goal, detail), address in paths.items()]
    return targets[0] if len(targets) == 1 else tuple(targets)


def _target(goal: str, address: str, detail: str) -> "str | Target | Elsewhere":
    if not goal.startswith("/"):
        return Elsewhere(goal, detail)  # the last address, whatever was on the way
    return Target(goal, address, detail) if address else goal


def _with_detail(found: Found, address: str, detail: str) -> Found:
    """Return *found* for an address with a detail, which goes with it as Postfix has it behind an alias too.

    (propagate_unmatched_extensions in postconf(5).)
    """

    def detailed(goal: str | os.PathLike[str]) -> str | os.PathLike[str]:
        if isinstance(goal, (Target, Elsewhere)):
            return goal if goal.detail else replace(goal, detail=detail)
        return Target(os.fspath(goal), address, detail)

    if found is None or isinstance(found, (str, os.PathLike)):
        return None if found is None else detailed(found)
    return tuple(map(detailed, found))


def _goals(value: "Goal | Sequence[Goal]") -> list[str]:
    goals = [value] if isinstance(value, (str, os.PathLike)) else value
    return [os.fspath(goal) for goal in goals]


def _goals_of(where: str, text: str) -> list[str]:
    """Return the paths and addresses that a line lists."""
    goals: list[str] = []
    at = 0
    while at < len(text) or not goals:
        found = _GOAL.match(text, at)
        comma = _COMMA.match(text, found.end()) if found is not None else None
        if found is None or (comma is None and found.end() < len(text)):
            raise ValueError(f"{where}: paths and addresses are wanted, with commas between them, not {text[at:]!r}")
        path = found["path"] or found["bare"]
        goals.append(path or text_of(where, os.fsencode(found[0])))
        at = comma.end() if comma is not None else len(text)
    return goals
