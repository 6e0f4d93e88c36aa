"""From a recipient to a maildir that has room for the message, or to the reply that the recipient is refused with."""

import inspect
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from maildir_async.disk.paths import absolute
from maildir_async.errors import BusyError, MaildirError
from maildir_async.format.options import check_path
from maildir_async.mailbox.maildir import Maildir
from maildir_async.smtp.recipients import Resolver

__all__ = ["Finder", "Recipient"]

UNKNOWN_USER: Final = "550 5.1.1 No such user here"
LOOKUP_FAILED: Final = "451 4.3.0 Recipient could not be looked up, try again later"

#: Seconds for which a maildir that was found in order is not looked at again.
CHECKED_S: Final = 1.0

#: Bytes for which it is in order then, unless it has been looked at for more.
CHECKED_SIZE: Final = 2**20

#: Past so many such maildirs all are forgotten.
CHECKED_MAX: Final = 10_000

log: Final = logging.getLogger("maildir_async.smtp")


@dataclass(frozen=True, slots=True)
class Recipient:
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
        """Of the maildir."""
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
        self._checked: dict[str, tuple[float, int]] = {}  # when, and for how many bytes

    async def find(self, address: str, size: int) -> Recipient:
        """Return who has this *address*, or why nobody has; refused if *size* bytes can be seen to have no room."""
        try:
            path = self._resolve(address)
            if inspect.isawaitable(path):
                path = await path
            maildir = None if path is None else self._at(path)
        except Exception:
            log.exception("looking up a recipient failed")
            return Recipient(address, None, LOOKUP_FAILED)
        if maildir is None:
            return Recipient(address, None, UNKNOWN_USER)
        return await self.look(Recipient(address, maildir), size)

    def _at(self, path: "str | os.PathLike[str]") -> Maildir:
        return self._maildir(absolute(check_path(path)))

    async def look(self, recipient: Recipient, size: int) -> Recipient:
        """Return *recipient* as it was found, refused if *size* bytes can be seen to have no room by now.

        A worker thread looks. Whether there is a place in the queue is not asked: there may be one when it is needed.
        """
        maildir, now = recipient.maildir, time.monotonic()
        assert maildir is not None
        checked_at, checked_size = self._checked.get(maildir.path, (-CHECKED_S, 0))
        if now - checked_at < CHECKED_S and size <= max(checked_size, CHECKED_SIZE):
            return recipient
        try:
            await maildir.check_room(size)
        except BusyError:
            return recipient
        except MaildirError as exc:
            self._checked.pop(maildir.path, None)
            return Recipient(recipient.address, maildir, exc.smtp_reply, exc)
        if len(self._checked) >= CHECKED_MAX:
            self._checked.clear()
        self._checked[maildir.path] = now, size
        return recipient
