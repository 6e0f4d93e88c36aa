"""What has to be right before the daemon serves, and again before it takes over what has changed. Blocks."""

from dataclasses import fields
from typing import Final

from maildir_async.daemon.privileges import Identity, identity_of
from maildir_async.daemon.recipients import Recipients
from maildir_async.daemon.settings import Settings
from maildir_async.daemon.tls import Tls

__all__ = ["Parts", "changes", "files_of", "option_of"]

#: What says where options are, and is none of the daemon's.
_NO_CHANGE: Final = frozenset({"config", "check_config"})

#: The options that name a file which is read again.
_FILES: Final = ("--config", "--users", "--map", "--tls-cert", "--tls-key")


class Parts:
    """What the daemon is made of that can be read again.

    Args:
        settings: what it is to do. ValueError for a layout, a postmaster or a user that cannot be.

    Attributes:
        recipients: who there is.
        tls: what connections are secured by, or None.
        identity: whose privileges it is to have, or None for those that it has.

    """

    def __init__(self, settings: Settings) -> None:
        self.recipients = Recipients(settings)
        self.tls = Tls(settings.tls_cert, settings.tls_key) if settings.tls_cert is not None else None
        self.identity: Identity | None = None
        if settings.user is not None:
            self.identity = identity_of(settings.user, settings.group)

    def load(self) -> None:
        """Read everything. OSError, or ValueError, if that fails: then all is as before."""
        context = self.tls.read() if self.tls is not None else None
        self.recipients.load()
        if self.tls is not None and context is not None:
            self.tls.take(context)


def files_of(settings: Settings) -> dict[str, str]:
    """Return the files that are read again at SIGHUP, by their options."""
    paths = {name: getattr(settings, name.removeprefix("--").replace("-", "_")) for name in _FILES}
    return {name: path for name, path in paths.items() if path is not None}


def option_of(settings: Settings, path: str | None) -> str:
    """Return the option that names the file at *path*, for the beginning of a text; "" if none does."""
    return next((f"{name}: " for name, named in files_of(settings).items() if named == path), "")


def changes(before: Settings, after: Settings) -> list[str]:
    """Return the fields in which the two differ."""
    names = [field.name for field in fields(Settings) if field.name not in _NO_CHANGE]
    return [name for name in names if getattr(before, name) != getattr(after, name)]
