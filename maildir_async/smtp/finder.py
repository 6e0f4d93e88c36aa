"""From a recipient to a maildir that has room for the message, or to the reply that the recipient is refused with."""

import inspect
import logging
import os
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from maildir_async.disk.paths import absolute
from maildir_async.errors import BusyError, MaildirError
from maildir_async.format.options import check_path
from maildir_async.mailbox.maildir import Maildir
from maildir_async.smtp.recipients import Resolver
from maildir_async.smtp.user_code import trouble

__all__ = ["Finder", "Recipient"]

UNKNOWN_USER: Final = "550 5.1.1 No such user here"
LOOKUP_FAILED: Final = "451 4.3.0 Recipient could not be looked up, try again later"

#: Seconds for which a maildir that was found in order is not looked at again, nor made anew from its path.
CHECKED_S: Final = 1.0

#: Bytes for which it is in order then, unless it has been looked at for more.
CHECKED_SIZE: Final = 2**20

#: Past so many maildirs all are forgotten.
CHECKED_MAX: Final = 10_000

log: Final = logging.getLogger("maildir_async.smtp")


class Recipient(NamedTuple):
    """One whom a message is for.

    Attributes:
        address: as the client wrote it.
        maildir: where the message goes; None if there is nothing, or nobody knows.
        reply: what it is refused with; "" if it is not.
        error: what is wrong with the maildir, if anything is.

    """

    address: str
    maildir: Maildir | None
    reply: str = ""
    error: MaildirError | None = None

    @property
    def path(self) -> str | None:
        """The path of the maildir."""
        return None if self.maildir is None else self.maildir.path


class Finder:
    """Finds the maildirs of recipients, and looks whether a message has room there.

    Args:
        resolve: finds the paths.
        maildir: makes the maildir at a path.

    """

    def __init__(self, resolve: Resolver, maildir: Callable[[str], Maildir]) -> None:
        self._resolve = resolve
        self._maildir = maildir
        self._made: dict[str, tuple[float, Maildir]] = {}  # when, at this absolute path
        self._checked: dict[Maildir, tuple[float, int]] = {}  # when, and for how many bytes

    async def find(self, address: str, size: int) -> Recipient:
        """Return who has this *address*, or why nobody has; refused if *size* bytes can be seen to have no room."""
        try:
            path = self._resolve(address)
            if not isinstance(path, str) and inspect.isawaitable(path):
                path = await path
            maildir = None if path is None else self._at(path)
        except BaseException as exc:
            log.error("looking up a recipient failed", exc_info=trouble(exc))
            return Recipient(address, None, LOOKUP_FAILED)
        if maildir is None:
            return Recipient(address, None, UNKNOWN_USER)
        recipient = Recipient(address, maildir)
        return recipient if self.is_in_order(recipient, size) else await self.look(recipient, size)

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
        """Whether it has been seen of late that there is room for *size* bytes."""
        checked = self._checked.get(recipient.maildir) if recipient.maildir is not None else None
        if checked is None:
            return False
        return time.monotonic() - checked[0] < CHECKED_S and size <= max(checked[1], CHECKED_SIZE)

    async def look(self, recipient: Recipient, size: int) -> Recipient:
        """Return *recipient* as it was found, refused if *size* bytes can be seen to have no room by now.

        A worker thread looks. Whether there is a place in the queue is not asked: there may be one when it is needed.
        """
        maildir, now = recipient.maildir, time.monotonic()
        assert maildir is not None
        try:
            await maildir.check_room(size)
        except BusyError:
            return recipient
        except MaildirError as exc:
            self._checked.pop(maildir, None)
            return Recipient(recipient.address, maildir, exc.smtp_reply, exc)
        if len(self._checked) >= CHECKED_MAX:
            self._checked.clear()
        self._checked[maildir] = now, size
        return recipient
