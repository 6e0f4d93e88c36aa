"""Into which folder of its maildirs a message goes: by the detail of an address, and by a header that marks junk."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from maildir_async.disk.listing import is_folder
from maildir_async.errors import MaildirError, NotAMaildirError, NotTrustedError
from maildir_async.format.folders import parts_of
from maildir_async.format.junk import JunkHeader
from maildir_async.format.options import DetailFolder
from maildir_async.mailbox.fan_out import FanOut, Outcome
from maildir_async.mailbox.maildir import Maildir
from maildir_async.smtp.straight import Straight

__all__ = ["JUNK", "DetailFolders", "Sorted"]

#: Where what is marked as junk goes. Dovecot's 15-mailboxes.conf names the folder for it (RFC 6154) so.
JUNK: Final = "Junk"

#: Seconds for which it is not looked again whether a folder is there.
KEPT_S: Final = 1.0

#: Past so many folders all are forgotten.
KEPT_MAX: Final = 10_000

#: What separates parts of a folder's name in a detail: what a person writes, and what stands on the disk.
_SEPARATOR: Final = re.compile(r"[./]")


class DetailFolders:
    """Finds the folder that the detail of an address names: of ``alice+lists.python`` that is ``lists/python``.

    As the detail is written, or else in lower case: to a mail server ``alice+Lists`` is often the same. A detail that
    can name no folder, and a folder that is a link out of its maildir, are as if there were no detail.

    Args:
        kind: see `DetailFolder`.

    """

    def __init__(self, kind: DetailFolder) -> None:
        self._creates = kind == "create"
        self._known: dict[tuple[Maildir, str], tuple[float, str | None]] = {}  # when it was looked at

    async def of(self, maildir: Maildir, detail: str) -> str | None:
        """Return the folder of *maildir*, or None for the maildir itself.

        A worker thread looks; MaildirError for what the system says.
        """
        now = time.monotonic()
        known = self._known.get((maildir, detail))
        if known is not None and now - known[0] < KEPT_S:
            return known[1]
        folder = await maildir.in_thread(partial(self._look, maildir, detail))
        if len(self._known) >= KEPT_MAX:
            self._known.clear()
        self._known[maildir, detail] = now, folder
        return folder

    def _look(self, maildir: Maildir, detail: str) -> str | None:
        folder = None
        for name in dict.fromkeys((detail, detail.lower())):
            folder = "/".join(_SEPARATOR.split(name))
            if has_folder(maildir, folder):
                return folder
        return folder if self._creates and may_have_folder(maildir, folder) else None


def has_folder(maildir: Maildir, folder: str) -> bool:
    """Whether there is such a folder, in the maildir. Blocks; OSError for what the system says."""
    with suppress(ValueError, NotAMaildirError, NotTrustedError):
        directories = maildir.mailbox_of(folder).directories
        directories.check_inside()
        return parts_of(folder) != () and is_folder(directories.disk, directories.path)
    return False


def may_have_folder(maildir: Maildir, folder: str | None) -> bool:
    """Whether such a folder may be made for a message. Blocks; OSError for what the system says."""
    with suppress(ValueError, NotAMaildirError, NotTrustedError):
        directories = maildir.mailbox_of(folder).directories
        directories.check_inside()
        return directories.create and parts_of(folder) != ()
    return False


class Sorted:
    """A message on its way to maildirs, each of which gets it in its folder `JUNK` if its header says that it is that.

    Used as `Straight` and `FanOut` are. Those get nothing before the header has come, or as much of it as is looked at.

    Args:
        storing: what takes the message to the maildirs.
        maildirs: these, in its order.
        header: what marks junk. A maildir without that folder, where none may be made, has it with all its other mail.

    """

    def __init__(self, storing: "Straight | FanOut", maildirs: Sequence[Maildir], header: JunkHeader) -> None:
        self._storing = storing
        self._maildirs = maildirs
        self._header = header
        self._head: bytearray | None = bytearray()

    async def open(self) -> None:
        """Wait for a place among the pending deliveries, as these do."""
        await self._storing.open()

    async def send(self, chunk: bytes) -> None:
        """Take a chunk, and wait while the disk is behind."""
        if self._head is not None:
            seen = max(0, len(self._head) - 2)
            self._head += chunk
            if not self._header.can_tell(self._head, seen):
                return
            await self._sort(self._head)
            return
        await self._storing.send(chunk)

    def abort(self) -> None:
        """Give up."""
        self._storing.abort()

    async def finish(self) -> list[Outcome]:
        """The message is whole: return when each maildir has its outcome."""
        if self._head is not None:
            await self._sort(self._head)
        return await self._storing.finish()

    def outcomes(self) -> list[Outcome]:
        """Return what has become of the message, when `finish` has returned or raised."""
        return self._storing.outcomes()

    async def _sort(self, head: bytearray) -> None:
        self._head = None
        content = bytes(head)
        if self._header.marks(content):
            for number, maildir in enumerate(self._maildirs):
                with suppress(MaildirError):  # it is told by the delivery, if it matters there too
                    if await maildir.in_thread(partial(_takes_junk, maildir)):
                        self._storing.put_into(number, JUNK)
        await self._storing.send(content)


def _takes_junk(maildir: Maildir) -> bool:
    return has_folder(maildir, JUNK) or may_have_folder(maildir, JUNK)
