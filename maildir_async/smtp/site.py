"""Which addresses are a site's own: its domains, and who its postmaster is."""

import os
from collections.abc import Iterable
from typing import Final

from maildir_async.smtp.addresses import destination
from maildir_async.smtp.delivery import Refused
from maildir_async.smtp.recipients import Found, Resolver, Rooted, Target, resolved

__all__ = ["Site"]

#: To a client that takes this server for a relay. 550 is what RFC 5321 §3.6.2 has for it, and 5.7.1 (RFC 3463) what
#: Postfix and sendmail say, and what those look for who test servers for open relays.
RELAYING_DENIED: Final = "550 5.7.1 Relaying denied"


class Site:
    """A resolver that another one's addresses are found by, if they are in the site's domains; and a postmaster.

    Args:
        resolve: finds everybody.
        domains: the site's own; an address in another one is refused with 550 5.7.1. None for any.
        postmaster: an address that *resolve* finds. It gets what is for ``postmaster`` without a domain, in any case
            (RFC 5321 §4.5.1), and for ``postmaster@…`` in each of *domains*, or without them in each domain that
            *resolve* knows: where nobody has that address.

    """

    def __init__(
        self, resolve: Resolver, *, domains: Iterable[str] | None = None, postmaster: str | None = None
    ) -> None:
        self._resolve = resolve
        self._rooted = resolve if isinstance(resolve, Rooted) else None
        self._domains = None if domains is None else frozenset(map(_checked, domains))
        self._postmaster = postmaster

    async def __call__(self, address: str) -> Found:
        """Return where mail for *address* goes. `Refused` if it is in no domain of the site."""
        local, at, text = address.rpartition("@")
        domain = destination(text) if at else ""
        if domain != "" and self._domains is not None and domain not in self._domains:
            raise Refused(RELAYING_DENIED)
        found = await resolved(self._resolve, address)
        if found is not None or self._postmaster is None:
            return found
        if (local if at else text).lower() != "postmaster" or not self._has(domain):
            return None
        found = await resolved(self._resolve, self._postmaster)
        if isinstance(found, (str, os.PathLike)):
            return self._for_postmaster(found, self._postmaster)
        return found and [self._for_postmaster(path, self._postmaster) for path in found]

    def _for_postmaster(self, found: str | os.PathLike[str], address: str) -> Target:
        return found if isinstance(found, Target) else Target(os.fspath(found), address)

    def _has(self, domain: str | None) -> bool:
        if not domain or self._domains is not None:
            return domain is not None
        return self._rooted is not None and self._rooted.has_domain(domain)

    def root_of(self, path: str) -> str | None:
        """Return what *resolve* says."""
        return self._rooted.root_of(path) if self._rooted is not None else None

    def has_domain(self, domain: str) -> bool:
        """Whether it is one of the site's."""
        return self._has(domain)


def _checked(domain: str) -> str:
    name = destination(domain)
    if name is None:
        raise ValueError(f"not a domain: {domain!r}")
    return name
