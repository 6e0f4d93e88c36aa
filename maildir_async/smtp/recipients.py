"""From the address of a recipient to the path of a maildir: by a template, by a file, by a mapping."""

import asyncio
import errno
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from maildir_async.disk.directories import SUBDIRECTORIES
from maildir_async.disk.threads import Crew
from maildir_async.smtp.addresses import Address, parse_address

__all__ = ["AddressMap", "Layout", "MapFile", "Resolver", "UserFile"]

Resolver = Callable[[str], "str | os.PathLike[str] | None | Awaitable[str | os.PathLike[str] | None]"]
"""Takes the address of a RCPT command, without its angle brackets, and returns the path of a maildir, or None for an
unknown user. May be async. What it raises is taken for trouble that will heal."""

T = TypeVar("T")

NAME_MAX: Final = 255  # octets of a file's name on Linux

_FIELD: Final = re.compile(r"\{([^{}]*)\}")

#: Between ``{user}`` and ``{domain}`` in one name: something that no domain has, or it would not be seen where one of
#: them ends and the other begins.
_SEPARATOR: Final = re.compile(r"[^A-Za-z0-9._-]")

#: Looks whether maildirs are there. As many as may hang on dead mounts before nobody is looked up any more.
_lookers: Final = Crew(16, "maildir-look")


class Layout:
    """A template of paths, such as ``/var/mail/{domain}/{user}/Maildir``.

    ``{user}`` is the local part in lower case and without its ``+detail`` (but see `UserFile`), ``{domain}`` the
    domain in lower case, in its ASCII form. Neither can be more than one part of a path, nor hidden, nor lead out of
    the template's directory. Without ``{domain}``, a user is the same one in all domains.

    Args:
        template: an absolute path with ``{user}``, and perhaps ``{domain}``, below some directory without.
            ValueError if it is none, or if two addresses could have the same path.
        users: who there is. Without, a user exists if his maildir does.
        create: without *users*, everybody exists.

    """

    def __init__(self, template: str, *, users: "UserFile | None" = None, create: bool = False) -> None:
        self._template = _checked(template)
        self._has_domain = "{domain}" in template
        self._users = users
        self._create = create

    async def __call__(self, address: str) -> str | None:
        """Return the path of *address*'s maildir, or None if there is nobody of that name.

        OSError if it cannot be seen whether the maildir exists.
        """
        found = parse_address(address)
        if found is not None and self._users is not None:
            found = self._users.find(found, domain=self._has_domain)
        if found is None:
            return None
        path = self.path_of(found)
        if path is None or self._create or self._users is not None:
            return path
        is_there = await asyncio.get_running_loop().run_in_executor(_lookers, _is_maildir, path)
        return path if is_there else None

    def path_of(self, address: Address) -> str | None:
        """Return what the template makes of *address*, but its detail.

        None if it has no domain and the template wants one, or if a part of the path would be too long for a name.
        """
        if self._has_domain and not address.domain:
            return None
        fields = {"user": address.local, "domain": address.domain}
        path = _FIELD.sub(lambda field: fields[field[1]], self._template)
        return path if all(len(os.fsencode(part)) <= NAME_MAX for part in path.split("/")) else None


class UserFile:
    """A file with one address a line, in UTF-8. Blank lines, and those that begin with ``#``, are ignored.

    An address with a detail is a user of its own, called ``user+detail``. A line ``postmaster`` is for mail to
    postmaster without a domain; where a template wants one, he is the first ``postmaster@…`` of the file.

    `load` reads it. RuntimeError until then: it is not known who is known.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self._path = path
        self._users: Mapping[str, Address] | None = None

    def load(self) -> None:
        """Read the file. Blocks. OSError, or ValueError with the number of a bad line: then all stays as it was."""
        users: dict[str, Address] = {}
        for where, line in _lines(self._path):
            address = _address(where, _text(where, line))
            users[address.whole] = Address(address.whole_local, address.domain)
        self._users = users  # at once: this may be a thread, with lookups going on in the loop's

    def find(self, address: Address, *, domain: bool = False) -> Address | None:
        """Return the user that *address* is of: the one listed as it is, or else without its detail; or None.

        With *domain*, the user returned is one with a domain.
        """
        users = _loaded(self._users, self._path)
        found = users.get(address.whole) or users.get(str(address))
        if domain and found is not None and not found.domain:
            return next((user for user in users.values() if user.domain and user.local == found.local), None)
        return found


class AddressMap:
    """Addresses and the absolute paths of their maildirs, as they are now: a copy is kept.

    ValueError for an address that is none, one that is there twice (in other letters, say), or a relative path.
    """

    def __init__(self, mapping: "Mapping[str, str | os.PathLike[str]]") -> None:
        self._paths: Mapping[str, str] = _paths((repr(key), key, os.fspath(path)) for key, path in mapping.items())

    def __call__(self, address: str) -> str | None:
        """Return the path for *address* as it is, or else without its detail; or None."""
        return _path_of(self._paths, address)


class MapFile:
    """A file with an address and the absolute path of a maildir a line. Blank and ``#`` lines are ignored.

    Addresses are in UTF-8. The path may have spaces in it, but not at its ends. As with `AddressMap`, no address may
    be there twice.

    `load` reads it. RuntimeError until then: it is not known who is known.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self._path = path
        self._paths: Mapping[str, str] | None = None

    def load(self) -> None:
        """Read the file. Blocks. OSError, or ValueError with the number of a bad line: then all stays as it was."""
        self._paths = _paths(self._entries())

    def __call__(self, address: str) -> str | None:
        """Return the path for *address* as it is, or else without its detail; or None."""
        return _path_of(_loaded(self._paths, self._path), address)

    def _entries(self) -> Iterator[tuple[str, str, str]]:
        for where, line in _lines(self._path):
            address, *rest = line.split(maxsplit=1)
            yield where, _text(where, address), os.fsdecode(rest[0]) if rest else ""


def _checked(template: str) -> str:
    """Return *template*; ValueError if it cannot be right."""
    fields = _FIELD.findall(template)
    literal = _FIELD.sub("", template)
    if unknown := sorted(set(fields) - {"user", "domain"}):
        raise ValueError(f"the template has {{{unknown[0]}}}, and knows only {{user}} and {{domain}}")
    if "user" not in fields:
        raise ValueError("the template has no {user}: all would share one maildir")
    if "{" in literal or "}" in literal:
        raise ValueError("the template has a brace too many")
    if "\0" in template:
        raise ValueError("the template must not hold NUL")
    first, *parts = template.rstrip("/").split("/")
    if first or not parts:
        raise ValueError("the template must be an absolute path")
    if {"", ".", ".."} & set(parts):
        raise ValueError("the template must not have an empty part, '.' or '..'")
    if _FIELD.search(parts[0]):
        raise ValueError("the template must begin with a directory for the maildirs")  # or {user} might be etc
    for part in parts:
        between = _FIELD.split(part)  # literal, field, literal, …
        pairs = zip(between[1::2], between[2::2], between[3::2], strict=False)
        if any(one != other and not _SEPARATOR.search(literal) for one, literal, other in pairs):
            raise ValueError(f"the template's {part!r} does not show where one field ends: put '@' between them")
    return template.rstrip("/")


def _is_maildir(path: str) -> bool:
    """Return whether there is a maildir, or one being made. OSError if that cannot be seen. Blocks."""
    for name in SUBDIRECTORIES:
        try:
            if stat.S_ISDIR(os.stat(f"{path}/{name}").st_mode):
                return True
        except OSError as exc:
            # All else, a permission or a disk, may heal, and must not make a user unknown.
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise
    return False


def _paths(entries: Iterable[tuple[str, str, str]]) -> Mapping[str, str]:
    """Return the paths by addresses, from places to tell in errors, addresses and paths."""
    paths: dict[str, str] = {}
    for where, text, path in entries:
        address = _address(where, text).whole
        if address in paths:
            raise ValueError(f"{where}: {address!r} is there already")
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError(f"{where}: an absolute path is wanted, not {path!r}")
        paths[address] = path
    return paths


def _path_of(paths: Mapping[str, str], address: str) -> str | None:
    found = parse_address(address)
    return None if found is None else paths.get(found.whole) or paths.get(str(found))


def _loaded(content: Mapping[str, T] | None, path: "str | os.PathLike[str]") -> Mapping[str, T]:
    if content is None:
        raise RuntimeError(f"{os.fspath(path)} has not been loaded")
    return content


def _address(where: str, text: str) -> Address:
    address = parse_address(text)
    if address is None:
        raise ValueError(f"{where}: not an address that can have a maildir: {text!r}")
    return address


def _text(where: str, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8: {line!r}") from None


def _lines(path: "str | os.PathLike[str]") -> Iterator[tuple[str, bytes]]:
    """Give file and number, and content, of each line that has some."""
    with open(path, "rb") as lines:  # bytes, since a path need not be text
        for number, line in enumerate(lines, 1):
            content = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()  # an editor's mark
            if content and not content.startswith(b"#"):
                yield f"{os.fspath(path)}, line {number}", content
