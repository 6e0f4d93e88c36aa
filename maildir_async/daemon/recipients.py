"""Who there is, as the command line has it: a layout, perhaps with users, or a map; and read again on SIGHUP."""

from maildir_async.daemon.options import Settings
from maildir_async.smtp.layout import Layout
from maildir_async.smtp.maps import MapFile
from maildir_async.smtp.recipients import Resolver
from maildir_async.smtp.tables import UserFile

__all__ = ["Recipients"]


class Recipients:
    """The resolver that *settings* ask for; ValueError if the layout is none. Nobody is known before `load`.

    Attributes:
        resolve: finds the maildir of an address.
        may_create: whether a maildir that is not there is made. A user whom a file lists exists; any other one does
            because his maildir does, or because ``--create`` says so.

    """

    def __init__(self, settings: Settings) -> None:
        self._file: UserFile | MapFile | None = None
        self.resolve: Resolver
        if settings.map is not None:
            self._file = self.resolve = MapFile(settings.map)
        else:
            users = self._file = UserFile(settings.users) if settings.users is not None else None
            self.resolve = Layout(settings.layout or "", users=users, create=settings.create)
        self.may_create = settings.create or self._file is not None

    def load(self) -> None:
        """Read the file, if there is one. Blocks. OSError and ValueError if that fails: then all is as before."""
        if self._file is not None:
            self._file.load()
