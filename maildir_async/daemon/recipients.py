"""Who there is, as the command line has it: a layout, users, a map, or code; files are read again on SIGHUP."""

import contextlib
from collections.abc import Generator

from maildir_async.daemon.resolver import NamedResolver
from maildir_async.daemon.settings import Settings
from maildir_async.errors import MaildirError
from maildir_async.smtp.addresses import check_delimiters, parse_key
from maildir_async.smtp.aliases import Aliases
from maildir_async.smtp.layout import Layout
from maildir_async.smtp.maps import MapFile
from maildir_async.smtp.recipients import Resolver
from maildir_async.smtp.site import Site
from maildir_async.smtp.tables import UserFile

__all__ = ["Recipients"]


class Recipients:
    """The resolver that *settings* ask for; ValueError if the layout is none. Nobody is known before `load`.

    Attributes:
        resolve: finds the maildir of an address.
        may_create: whether a maildir that is not there is made. A user whom a file lists exists, or whom the site's own
            code finds; any other one does because his maildir does, or because ``--create`` says so.

    """

    def __init__(self, settings: Settings) -> None:
        with _named("recipient-delimiter"):
            delimiters = check_delimiters(settings.recipient_delimiter)
        self._postmaster = settings.postmaster
        if self._postmaster is not None and ((found := parse_key(self._postmaster)) is None or not found.domain):
            raise ValueError(f"--postmaster is an address with a domain: {self._postmaster!r}")
        self._map: MapFile | None = None
        self._users: UserFile | None = None
        self._code: NamedResolver | None = None
        self._layout: Layout | None = None
        self.resolve: Resolver
        if settings.map is not None:
            self._map = MapFile(settings.map, delimiters=delimiters, is_partial=settings.layout is not None)
        if settings.users is not None:
            self._users = UserFile(settings.users)
        if settings.resolver is not None:
            self._code = self.resolve = NamedResolver(settings.resolver)
        elif settings.layout is not None:
            with _named("layout"):
                layout = Layout(settings.layout, users=self._users, create=settings.create, delimiters=delimiters)
            self._layout = self.resolve = layout
            if self._map is not None:
                others: Resolver = self.resolve
                if settings.domains is not None:
                    with _named("domains"):
                        others = Site(self.resolve, domains=settings.domains)
                self.resolve = Aliases(self._map, others)
        elif self._map is not None:
            self.resolve = self._map
        else:
            raise ValueError("one of --layout, --map and --resolver is wanted")
        if settings.domains is not None or self._postmaster is not None:
            with _named("domains"):
                self.resolve = Site(self.resolve, domains=settings.domains, postmaster=self._postmaster)
        self.may_create = settings.create or self._layout is None or self._users is not None

    def load(self) -> None:
        """Read the files, if there are any. Blocks. OSError and ValueError if that fails: then all is as before.

        Code is imported once, and stays as it is.
        """
        if self._code is not None:
            self._code.load()
        users = self._users.read() if self._users is not None else None
        entries = self._map.read() if self._map is not None else None
        if self._users is not None and users is not None:
            self._users.take(users)
        if self._map is not None and entries is not None:
            self._map.take(entries)

    def has_postmaster(self) -> bool:
        """Whether mail to postmaster, without a domain, goes anywhere, as far as that can be known now. Blocks."""
        if self._code is not None:
            return True  # or not: it is asked when it is time
        for address in ["postmaster"] if self._postmaster is None else ["postmaster", self._postmaster]:
            if self._map is not None and self._map(address) is not None:
                return True
            try:
                if self._layout is not None and self._layout.find(address) is not None:
                    return True
            except (MaildirError, OSError):
                return True  # the store is away
        return False


@contextlib.contextmanager
def _named(option: str) -> Generator[None]:
    """Have a ValueError say which option of ``serve`` it is about."""
    try:
        yield
    except ValueError as exc:
        raise ValueError(f"--{option}: {exc}") from None
