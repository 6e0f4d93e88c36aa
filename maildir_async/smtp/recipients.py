"""What finds the maildirs of recipients: a callable, with nothing but an address to go by."""

import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Found", "Resolver", "Rooted", "Target", "resolved"]


@dataclass(frozen=True, slots=True)
class Target:
    """A path that mail is delivered to, where there is more to say of it: behind an alias, or with a detail.

    Attributes:
        path: of the maildir.
        address: whom ``Delivered-To`` names, as the last recipient that Postfix's virtual(5) comes to.
        detail: what follows the user in the address (RFC 5233), if the user was found without it: the folder that
            the handler's *detail_folder* looks for.

    """

    path: str
    address: str
    detail: str = ""

    def __fspath__(self) -> str:
        return self.path


Found = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""Where mail to an address goes: the path of a maildir; several, each of which gets it; None for an unknown user."""

Resolver = Callable[[str], "Found | Awaitable[Found]"]
"""Takes the address of a RCPT command, without its angle brackets, and returns the path of a maildir, several paths, or
None for an unknown user. May be async. It may raise `Refused` with a reply of its own, or a `MaildirError`, whose reply
is told; what else it raises is taken for trouble that will heal."""


@runtime_checkable
class Rooted(Protocol):
    """A resolver that knows what the site has made by hand."""

    def root_of(self, path: str) -> str | None:
        """Return the directory without which nothing is made for the maildir at *path*: see `Maildir`."""
        ...

    def has_domain(self, domain: str) -> bool:
        """Whether there are addresses in a domain, as far as that is known without a look at the disk."""
        ...


async def resolved(resolve: Resolver, address: str) -> Found:
    """Return what *resolve* finds, sooner or later."""
    found = resolve(address)
    return await found if inspect.isawaitable(found) else found
