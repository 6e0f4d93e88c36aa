"""One message between the wire and its delivery: counted, checked, handed on, or dropped once it has failed."""

import logging
from collections.abc import Sequence
from typing import Final

from maildir_async.smtp.delivery import Delivery
from maildir_async.smtp.dot_stuffing import LineLimit, Unstuffer
from maildir_async.smtp.replies import LINE_TOO_LONG, NOT_STORED, TOO_LARGE
from maildir_async.smtp.user_code import trouble, trouble_of_callback

__all__ = ["Transfer"]

log: Final = logging.getLogger("maildir_async.smtp")


class Transfer:
    """Hands a message on to *delivery*, within limits.

    What fails is known here at once, but the client has a right to send the rest before it is told (RFC 5321 §4.2.5);
    that is taken and dropped.

    Args:
        delivery: where it goes; None for a message that has been refused already.
        size_limit: bytes of the whole message; none if 0 or None.
        line_length_limit: octets of a line with its CRLF, or None.
        stuffed: whether dots are doubled: after DATA they are, after BDAT they are not.
        reply: what it has been refused with.

    Attributes:
        size: bytes received so far, without doubled dots.
        reply: what it has failed with, or None.

    """

    __slots__ = ("_delivery", "_error", "_lines", "_size_limit", "_unstuffer", "reply", "size")

    def __init__(
        self,
        delivery: Delivery | None,
        *,
        size_limit: int | None = None,
        line_length_limit: int | None = None,
        stuffed: bool = False,
        reply: str | None = None,
    ) -> None:
        self._delivery = delivery
        self._size_limit = size_limit
        self._lines = None if line_length_limit is None else LineLimit(line_length_limit)
        self._unstuffer = Unstuffer() if stuffed else None
        self._error: Exception | None = None
        self.size = 0
        self.reply = reply

    async def take(self, chunk: bytes) -> None:
        """Take some of the message as it came, and wait while the disk is behind. Never raises an Exception."""
        if self.reply is not None or not chunk:
            return
        if self._unstuffer is not None:
            chunk = self._unstuffer.feed(chunk)
        self.size += len(chunk)
        if not self.admits(0):
            return
        if self._lines is not None and not self._lines.admits(chunk):
            self._fail(LINE_TOO_LONG)
        elif self._delivery is not None:
            try:
                await self._delivery.send(chunk)
            except BaseException as exc:
                self._broke(trouble(exc))

    def admits(self, octets: int) -> bool:
        """Whether *octets* more are within the size limit. If not, the message has failed."""
        if self.reply is None and self._size_limit and self.size + octets > self._size_limit:
            self._fail(TOO_LARGE)
        return self.reply is None

    async def finish(self, recipients: int) -> Sequence[str]:
        """The message is whole: return its replies, one for each of the *recipients*. Raises what sending raised."""
        if self._error is not None:
            raise self._error
        if self._delivery is None:
            return [self.reply or NOT_STORED] * recipients
        try:
            replies = await self._delivery.finish()
        except BaseException:
            self.abort()
            raise
        self._delivery = None
        if len(replies) != recipients:
            raise RuntimeError(f"{len(replies)} replies for {recipients} recipients")
        return replies

    def abort(self) -> None:
        """Leave nothing of the message behind, unless it has been finished."""
        delivery, self._delivery = self._delivery, None
        if delivery is not None:
            try:
                delivery.abort()
            except BaseException as exc:  # this is called where something else is being raised
                log.error("a delivery could not be aborted", exc_info=trouble_of_callback(exc))

    def _fail(self, reply: str) -> None:
        self.reply = reply
        if self._delivery is not None:
            try:
                self._delivery.fail(reply)
            except BaseException as exc:
                self._broke(trouble_of_callback(exc))

    def _broke(self, exc: Exception) -> None:
        """Called when the delivery has raised: the client is told so when it has sent the rest."""
        self._error, self.reply = exc, NOT_STORED
        self.abort()
