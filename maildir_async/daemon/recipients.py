"""Who there is, as the command line has it: a layout, perhaps with users, or a map, or code; read again on SIGHUP."""

from maildir_async.daemon.options import Settings
from maildir_async.daemon.resolver import NamedResolver
from maildir_async.errors import MaildirError
from maildir_async.smtp.addresses import check_delimiters, parse_key
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
        delimiters = check_delimiters(settings.recipient_delimiter)
        self._postmaster = settings.postmaster
        if self._postmaster is not None and ((found := parse_key(self._postmaster)) is None or not found.domain):
            raise ValueError(f"--postmaster is an address with a domain: {self._postmaster!r}")
        self._source: UserFile | MapFile | NamedResolver | None = None
        self._known: Layout | MapFile | None = None  # who can be found without a loop
        self.resolve: Resolver
        if settings.resolver is not None:
            self._source = self.resolve = NamedResolver(settings.resolver)
        elif settings.map is not None:
            self._source = self._known = self.resolve = MapFile(settings.map, delimiters=delimiters)
        else:
            users = self._source = UserFile(settings.users) if settings.users is not None else None
            self._known = self.resolve = Layout(
                settings.layout or "", users=users, create=settings.create, delimiters=delimiters
            )
        if settings.domains is not None or self._postmaster is not None:
            self.resolve = Site(self.resolve, domains=settings.domains, postmaster=self._postmaster)
        self.may_create = settings.create or self._source is not None

    def load(self) -> None:
        """Read the file, if there is one. Blocks. OSError and ValueError if that fails: then all is as before.

        Code is imported once, and stays as it is.
        """
        if self._source is not None:
            self._source.load()

    def has_postmaster(self) -> bool:
        """Whether mail to postmaster, without a domain, goes anywhere, as far as that can be known now. Blocks."""
        known = self._known
        if known is None:
            return True  # or not: the site's own code is asked when it is time
        find = known.find if isinstance(known, Layout) else known
        addresses = ["postmaster"] if self._postmaster is None else ["postmaster", self._postmaster]
        try:
            return any(find(address) is not None for address in addresses)
        except (MaildirError, OSError):
            return True  # the store is away
