"""From a recipient to a maildir that has room for the message, or to the reply that the recipient is refused with."""

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from maildir_async.disk.base import Base
from maildir_async.disk.paths import absolute
from maildir_async.disk.posix import PosixDisk
from maildir_async.errors import BusyError, MaildirError
from maildir_async.format.options import check_path
from maildir_async.mailbox.maildir import Maildir
from maildir_async.smtp.delivery import Refused
from maildir_async.smtp.layout import Layout
from maildir_async.smtp.looking import lookers
from maildir_async.smtp.maps import AddressMap, Goal
from maildir_async.smtp.paths import is_recipient
from maildir_async.smtp.recipients import Found, Resolver, Target
from maildir_async.smtp.replies import BAD_RECIPIENT
from maildir_async.smtp.sorting import DetailFolders
from maildir_async.smtp.user_code import trouble

__all__ = ["Destination", "Finder", "Recipient", "resolver_of"]

UNKNOWN_USER: Final = "550 5.1.1 No such user here"
LOOKUP_FAILED: Final = "451 4.3.0 Recipient could not be looked up, try again later"

#: Seconds for which a maildir that was found in order is not looked at again, nor made anew from its path.
CHECKED_S: Final = 1.0

#: Bytes for which it is in order then, unless it has been looked at for more.
CHECKED_SIZE: Final = 2**20

#: Past so many maildirs all are forgotten.
CHECKED_MAX: Final = 10_000

_posix: Final = PosixDisk()

log: Final = logging.getLogger("maildir_async.smtp")


class Destination(NamedTuple):
    """Where the message for one recipient goes, or one of several places.

    Attributes:
        maildir: which.
        name: whom ``Delivered-To`` names there: another address behind an alias.
        folder: to which of its folders; None for itself.

    """

    maildir: Maildir
    name: str
    folder: str | None = None


class Recipient(NamedTuple):
    """One whom a message is for.

    Attributes:
        address: as the client wrote it.
        destinations: where the message goes; none if nobody knows. Each is there once.
        reply: what it is refused with; "" if it is not.
        error: what is wrong with a maildir, if anything is.
        path: that maildir's, or that of the first one; None if there is none.

    """

    address: str
    destinations: tuple[Destination, ...] = ()
    reply: str = ""
    error: MaildirError | None = None
    path: str | None = None


class Finder:
    """Finds the maildirs of recipients, and looks whether a message has room there.

    Args:
        resolve: finds the paths.
        maildir: makes the maildir at a path.
        mount: a directory that has to be a mount point for anybody to be found; None for none.
        detail_folders: finds the folder of an address with a detail; None for no folders.

    """

    def __init__(
        self,
        resolve: Resolver,
        maildir: Callable[[str], Maildir],
        *,
        mount: Base | None = None,
        detail_folders: DetailFolders | None = None,
    ) -> None:
        self._resolve = resolve
        self._detail_folders = detail_folders
        self._mount = mount
        self._mounted_at = -CHECKED_S  # when that was seen
        self._maildir = maildir
        self._made: dict[str, tuple[float, Maildir]] = {}  # when, at this absolute path
        self._checked: dict[Maildir, tuple[float, int]] = {}  # when, and for how many bytes

    async def find(self, address: str, size: int) -> Recipient:
        """Return who has this *address*, or why nobody has; refused if *size* bytes can be seen to have no room.

        The resolver is asked for what `maildir_async.smtp.paths` takes for a recipient, and for nothing else.
        """
        if not is_recipient(address):  # by a server that has another grammar
            return Recipient(address, reply=BAD_RECIPIENT)
        try:
            if self._mount is not None:
                await self._check_mount(self._mount)
            found = self._resolve(address)
            if not isinstance(found, str) and inspect.isawaitable(found):
                found = await found
            if type(found) is str:
                maildir = self._at(found)
                recipient = Recipient(address, (Destination(maildir, address),), "", None, maildir.path)
            else:
                recipient = await self._of(address, found)
        except Refused as exc:
            return Recipient(address, reply=exc.reply)
        except MaildirError as exc:  # the store is away, and that is nobody's defect
            return Recipient(address, reply=exc.smtp_reply, error=exc)
        except BaseException as exc:
            log.error("looking up a recipient failed", exc_info=trouble(exc))
            return Recipient(address, reply=LOOKUP_FAILED)
        if not recipient.destinations:
            return Recipient(address, reply=UNKNOWN_USER)
        return recipient if self.is_in_order(recipient, size) else await self.look(recipient, size)

    async def _of(self, address: str, found: Found) -> Recipient:
        """Return the recipient of what a resolver has found, in whatever form it says so."""
        if found is None or isinstance(found, (str, os.PathLike)):
            found = () if found is None else (found,)
        destinations: dict[tuple[Maildir, str | None], Destination] = {}
        for path in found:
            maildir, name, folder = self._at(path), address, None
            if isinstance(path, Target):
                name = path.address
                if path.detail and self._detail_folders is not None:
                    folder = await self._detail_folders.of(maildir, path.detail)
            destinations.setdefault((maildir, folder), Destination(maildir, name, folder))
        first = next(iter(destinations), None)
        return Recipient(address, tuple(destinations.values()), path=None if first is None else first[0].path)

    async def _check_mount(self, mount: Base) -> None:
        """Raise `NotAMaildirError` if what has to be a mount point is none, or has been none of late."""
        now = time.monotonic()
        if now - self._mounted_at >= CHECKED_S:
            await asyncio.get_running_loop().run_in_executor(lookers, mount.check_mount, _posix)
            self._mounted_at = now

    def _at(self, path: "str | os.PathLike[str]") -> Maildir:
        now = time.monotonic()
        made = self._made.get(path) if type(path) is str else None
        if made is not None and now - made[0] < CHECKED_S:
            return made[1]
        exact = absolute(check_path(path))
        made = self._made.get(exact)
        if made is not None and now - made[0] < CHECKED_S:
            return made[1]
        if len(self._made) >= CHECKED_MAX:
            self._made.clear()
            self._checked.clear()
        elif made is not None:
            self._checked.pop(made[1], None)
        maildir = self._maildir(exact)
        self._made[exact] = now, maildir
        return maildir

    def is_in_order(self, recipient: Recipient, size: int) -> bool:
        """Whether it has been seen of late that there is room for *size* bytes, in all of its maildirs.

        What this process has delivered since then counts against a quota; what others have is seen at the next look.
        """
        now, destinations = time.monotonic(), recipient.destinations
        for destination in destinations:
            checked = self._checked.get(destination.maildir)
            if checked is None or now - checked[0] >= CHECKED_S or size > max(checked[1], CHECKED_SIZE):
                return False
            quota = destination.maildir.mailbox.quota
            if quota is not None and quota.is_passed_by(size):  # what has come since may have filled it
                return False
        return bool(destinations)

    async def look(self, recipient: Recipient, size: int) -> Recipient:
        """Return *recipient* as it was found, refused if *size* bytes can be seen to have no room by now.

        A worker thread looks. Whether there is a place in the queue is not asked: there may be one when it is needed.
        Of several maildirs, one that cannot have the message has it refused for all: with each try they would get it
        again. What may heal goes before what will not.
        """
        refused: tuple[Maildir, MaildirError] | None = None
        for maildir in dict.fromkeys(destination.maildir for destination in recipient.destinations):
            error = await self._look_at(maildir, size)
            if error is not None and (refused is None or (error.temporary and not refused[1].temporary)):
                refused = maildir, error
        if refused is None:
            return recipient
        maildir, error = refused
        return recipient._replace(reply=error.smtp_reply, error=error, path=maildir.path)

    async def _look_at(self, maildir: Maildir, size: int) -> MaildirError | None:
        now = time.monotonic()
        try:
            await maildir.check_room(size)
        except BusyError:
            return None
        except MaildirError as exc:
            self._checked.pop(maildir, None)
            return exc
        if len(self._checked) >= CHECKED_MAX:
            self._checked.clear()
        self._checked[maildir] = now, size
        return None


def resolver_of(maildir: Any, *, create: bool) -> Resolver:
    """Return what finds maildirs, of what `MaildirHandler` is given. TypeError or ValueError for anything else."""
    if isinstance(maildir, Mapping):
        return AddressMap(cast("Mapping[str, Goal | Sequence[Goal]]", maildir))
    if isinstance(maildir, (str, os.PathLike)):
        path = os.fspath(cast("str | os.PathLike[str]", maildir))
        return Layout(path, create=create) if "{" in path else lambda _: path
    if not callable(maildir):
        raise TypeError(f"maildir must be a path, a template, a mapping or a callable, not {type(maildir).__name__}")
    return cast("Resolver", maildir)
