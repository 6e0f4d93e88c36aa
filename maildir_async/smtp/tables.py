"""Files with a line for each address."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from maildir_async.smtp.addresses import Address, parse_address

__all__ = ["UserFile", "check_no_star", "check_not_emptied", "lines", "loaded", "text_of"]

T = TypeVar("T")

Path = str | os.PathLike[str]


class UserFile:
    """A file with one address a line, in UTF-8. Blank lines, and those that begin with ``#``, are ignored.

    An address with a detail is a user of its own, called ``user+detail``. Mail to postmaster without a domain (RFC
    5321 §4.5.1) is for the line ``postmaster``, or for the first ``postmaster@…`` of the file where there is none, or
    where a template wants a domain. A line ``postmaster`` is also for ``postmaster@…`` in each domain of the file.

    `load` reads it. RuntimeError until then: it is not known who is known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users: Users | None = None

    def load(self) -> None:
        """Read the file. Blocks. OSError, or ValueError with the number of a bad line: then all stays as it was.

        ValueError too for a file that had addresses, and has none any more: it may be one being written. An empty one
        is taken from `load` if it is the first.
        """
        self.take(self.read())

    def read(self) -> "Users":
        """Return what the file has now, or raise as `load` does."""
        users: dict[str, Address] = {}
        for where, line in lines(self._path):
            text = text_of(where, line)
            check_no_star(where, text, "which a map has for that")
            address = parse_address(text, "")
            if address is None:
                raise ValueError(f"{where}: not an address that can have a maildir: {text!r}")
            users[address.whole] = address
        check_not_emptied(self._path, users, self._users.by_address if self._users is not None else None)
        return Users(users)

    def take(self, users: "Users") -> None:
        """Know what has been read."""
        self._users = users  # at once: this may be a thread, with lookups going on in the loop's

    def find(self, address: Address, *, domain: bool = False) -> Address | None:
        """Return the user that *address* is of: the one listed as it is, or else without its detail; or None.

        With *domain*, the user returned is one with a domain.
        """
        users = loaded(self._users, self._path)
        found = users.by_address.get(address.whole) or users.by_address.get(str(address))
        if address.local != "postmaster" or (found is not None and (found.domain or not domain)):
            return found
        if found is None and address.domain:
            if address.domain not in users.domains:
                return None
            found = users.by_address.get("postmaster")
            return users.postmaster if found is not None and domain else found
        return users.postmaster

    def has_domain(self, domain: str) -> bool:
        """Whether an address in that domain is listed."""
        return domain in loaded(self._users, self._path).domains


class Users:
    """What a file lists: users by their addresses, their domains, the first postmaster with a domain."""

    def __init__(self, by_address: Mapping[str, Address]) -> None:
        self.by_address = by_address
        self.domains = frozenset(user.domain for user in by_address.values() if user.domain)
        self.postmaster = next(
            (user for user in by_address.values() if user.domain and user.local == "postmaster"), None
        )


def loaded(content: T | None, path: Path) -> T:
    """Return what has been read of a file; RuntimeError if nothing has."""
    if content is None:
        raise RuntimeError(f"{os.fspath(path)} has not been loaded")
    return content


def check_not_emptied(path: Path, new: Mapping[Any, object], old: Mapping[Any, object] | None) -> None:
    """ValueError if a file that had entries has none any more."""
    if old and not new:
        raise ValueError(f"{os.fspath(path)} has no addresses any more")


def check_no_star(where: str, text: str, hint: str) -> None:
    """ValueError for an address that other programs take for all of a domain, and RFC 5321 for one user."""
    if text.startswith("*@"):
        raise ValueError(f"{where}: {text!r} is not taken for a whole domain, but {text[1:]!r}, {hint}")


def text_of(where: str, line: bytes) -> str:
    """Return a line, or a part of one, as text. ValueError that says *where* if it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8: {line!r}") from None


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Give file and number, and content, of each line that has some."""
    with open(path, "rb") as content:  # bytes, since a path need not be text
        for number, line in enumerate(content, 1):
            stripped = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()  # an editor's mark
            if stripped and not stripped.startswith(b"#"):
                yield f"{os.fspath(path)}, line {number}", stripped
