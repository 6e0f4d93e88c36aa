"""Where each user's maildir is, by a template of paths."""

import asyncio
import os
import re
from collections.abc import Mapping
from typing import Final

from maildir_async.smtp.addresses import Address, check_delimiters, detail_of, parse_address
from maildir_async.smtp.looking import first_maildir, lookers
from maildir_async.smtp.recipients import Target
from maildir_async.smtp.tables import UserFile

__all__ = ["Layout"]

NAME_MAX: Final = 255  # octets of a file's name on Linux

_FIELD: Final = re.compile(r"\{([^{}]*)\}")

#: Between ``{user}`` and ``{domain}`` in one name: something that no domain has, or it would not be seen where one of
#: them ends and the other begins.
_SEPARATOR: Final = re.compile(r"[^A-Za-z0-9._-]")


class Layout:
    """A template of paths, such as ``/var/mail/{domain}/{user}/Maildir``.

    ``{user}`` is the local part in lower case and without its ``+detail`` (but see `UserFile`), ``{domain}`` the
    domain in lower case, in its ASCII form. Neither can be more than one part of a path, nor hidden, nor lead out of
    the template's directory. Without ``{domain}``, a user is the same one in all domains.

    What comes before the first field has to be there: it is not made, and without it the store is away.

    Args:
        template: an absolute path with ``{user}``, and perhaps ``{domain}``, below some directory without.
            ValueError if it is none, or if two addresses could have the same path.
        users: who there is. Without, a user exists if his maildir does; also one whose name has a delimiter in it,
            before the one whose detail that would begin.
        create: without *users*, everybody exists.
        delimiters: characters that separate user and detail; "" for none.

    """

    def __init__(
        self, template: str, *, users: UserFile | None = None, create: bool = False, delimiters: str = "+"
    ) -> None:
        self._template = _checked(template)
        self._root = self._template.partition("{")[0].rpartition("/")[0]
        self._has_domain = "{domain}" in template
        self._users = users
        self._create = create
        self._delimiters = check_delimiters(delimiters)

    async def __call__(self, address: str) -> str | Target | None:
        """Return the path of *address*'s maildir, or None if it is certain that there is nobody of that name.

        A `Target`, with the detail, for a user who was found without his.

        `NotAMaildirError` or OSError if it cannot be seen whether the maildir exists.
        """
        known = self._known(address)
        if not isinstance(known, Mapping):
            return known
        loop = asyncio.get_running_loop()
        path = await loop.run_in_executor(lookers, first_maildir, self._root, list(known))
        return None if path is None else known[path]

    def find(self, address: str) -> str | Target | None:
        """Return what a call returns, or raise what it raises. Blocks."""
        known = self._known(address)
        if not isinstance(known, Mapping):
            return known
        path = first_maildir(self._root, list(known))
        return None if path is None else known[path]

    def _known(self, address: str) -> str | Target | Mapping[str, str | Target] | None:
        """Return where mail goes to a user who exists, or None for one who does not.

        Or what is to be looked at: paths, and for each where mail goes if that is a maildir.
        """
        parsed = parse_address(address, self._delimiters)
        if parsed is None:
            return None
        if self._users is not None:
            user = self._users.find(parsed, domain=self._has_domain)
            return None if user is None else self._found(user, address, parsed)
        if self._create:
            return self._found(parsed, address, parsed)
        users = [parsed]
        if parsed.detail and (whole := parse_address(address, "")) is not None:
            users.insert(0, whole)
        found = [where for user in users if (where := self._found(user, address, parsed)) is not None]
        return {os.fspath(where): where for where in found}

    def _found(self, user: Address, address: str, parsed: Address) -> str | Target | None:
        """Return where mail to *address*, which *parsed* is the parts of, goes if it is *user*'s."""
        path = self.path_of(user)
        if path is None or not parsed.detail or user.local != parsed.local:
            return path
        return Target(path, address, detail_of(address, self._delimiters))

    def root_of(self, path: str) -> str:
        """Return the directory that the template has before its first field, which is not made."""
        return self._root

    def has_domain(self, domain: str) -> bool:
        """Whether there are addresses in that domain, as far as that is known without a look at the disk."""
        return self._users.has_domain(domain) if self._users is not None else not self._has_domain

    def path_of(self, address: Address) -> str | None:
        """Return what the template makes of *address*, but its detail.

        None if it has no domain and the template wants one, or if a part of the path would be too long for a name.
        """
        if self._has_domain and not address.domain:
            return None
        # The domain first: a local part may have braces in it, and no domain has.
        path = self._template.replace("{domain}", address.domain).replace("{user}", address.local)
        if len(path) <= NAME_MAX and path.isascii():
            return path  # and so is each part of it
        return path if all(len(os.fsencode(part)) <= NAME_MAX for part in path.split("/")) else None


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
