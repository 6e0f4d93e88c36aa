"""One message for all of its recipients: fed to the maildirs, and in the end a reply for each."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from maildir_async.format.delivered import Delivered
from maildir_async.mailbox.fan_out import FanOut, Outcome
from maildir_async.smtp.finder import Recipient
from maildir_async.smtp.replies import NOT_STORED, combined
from maildir_async.smtp.straight import Straight
from maildir_async.smtp.user_code import trouble_of_callback

__all__ = ["Client", "MessageDelivery", "Receipt", "Receipts"]

log: Final = logging.getLogger("maildir_async.smtp")


@dataclass(frozen=True, slots=True)
class Client:
    """Who sends a message.

    Attributes:
        peer: the address, or "" on a Unix socket.
        helo: the name it gave itself.
        mail_from: the envelope sender; "" for the null sender.

    """

    peer: str
    helo: str
    mail_from: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one recipient's part of a message came to; also, without a size, one refused before it was sent.

    A recipient with several maildirs, behind an alias, has one for each. Its reply, to a client of LMTP too, is a
    success if all of them have the message; if one may have it later, the client comes again for all.

    Attributes:
        client: who sent it.
        address: the recipient, as the client wrote it.
        maildir: path of the maildir; None if there is none.
        message_id: what the Received header and the reply call the message; "" for a refused recipient.
        size: bytes received.
        seconds: from the beginning of the message to the reply.
        reply: what the client was told, which in SMTP is the same for all recipients of a message; "" if it had gone
            before it could be told anything.
        delivered: as `Maildir.append` returns it.
        error: as `Maildir.append` raises it.

    """

    client: Client
    address: str
    maildir: str | None
    message_id: str
    size: int
    seconds: float
    reply: str
    delivered: Delivered | None
    error: BaseException | None

    @property
    def reason(self) -> str:
        """What the administrator is to know of `error`, its notes on what is left among it; "" if there is none."""
        return "" if self.error is None else "; ".join([str(self.error), *getattr(self.error, "__notes__", ())])

    @property
    def verdict(self) -> Literal["delivered", "deferred", "refused"]:
        """What came of this recipient's part. With one that was refused, the client has been told not to come again."""
        if self.delivered is not None:
            return "delivered"
        return "refused" if self.reply.startswith("5") else "deferred"


class Receipts:
    """Tells what came of messages: the user's callback if there is one, or else the log, of what went wrong.

    Args:
        on_receipt: called with each `Receipt`, in the context of the session. Whatever it raises is logged: it must
            cost nobody his mail, nor his receipt.

    """

    def __init__(self, on_receipt: Callable[[Receipt], object] | None) -> None:
        self._on_receipt = on_receipt
        self.are_wanted = on_receipt is not None

    def tell(self, receipt: Receipt) -> None:
        """Tell of one recipient's part. Raises only what ends the program."""
        if self._on_receipt is not None:
            try:
                self._on_receipt(receipt)
            except BaseException as exc:
                log.error("on_receipt raised", exc_info=trouble_of_callback(exc))
        elif receipt.error is not None:  # what the client must not hear
            log.warning("a delivery to %s failed: %s", receipt.maildir, receipt.reason)


class MessageDelivery:
    """See `maildir_async.smtp.delivery.Delivery`.

    Args:
        client: who sends the message.
        message_id: what the Received header and the reply call it.
        recipients: whom it is for, in the order of the replies; those that are refused too.
        storing: what takes the message to the maildir of these, or to all of theirs.
        receipts: what is told of each recipient's part.
        one_reply: whether the client gets one for all of them, as in SMTP.

    """

    def __init__(
        self,
        client: Client,
        message_id: str,
        recipients: Sequence[Recipient],
        storing: "Straight | FanOut",
        receipts: Receipts,
        *,
        one_reply: bool,
    ) -> None:
        self._client = client
        self._message_id = message_id
        self._recipients = recipients
        self._storing = storing
        self._receipts = receipts
        self._one_reply = one_reply
        self._reply = ""  # for all of them, if the message has been refused
        self._size = 0
        self._begun_at = time.monotonic()

    async def send(self, chunk: bytes) -> None:
        """Take some of the message, and wait while the disk is behind."""
        self._size += len(chunk)
        await self._storing.send(chunk)

    def fail(self, reply: str) -> None:
        """Keep nothing of the message; *reply* is for all."""
        self._reply = reply
        self.abort()

    def abort(self) -> None:
        """Leave nothing behind."""
        self._storing.abort()

    async def finish(self) -> list[str]:
        """Return one reply for each recipient, when the message is as durable as asked for.

        When this is cancelled it raises only when it is known what has become of the message, and receipts tell that.
        """
        try:
            outcomes = [] if self._reply else await self._storing.finish()
        except asyncio.CancelledError:
            self._settle(self._storing.outcomes(), is_heard=False)
            raise
        except Exception:
            log.exception("a delivery failed")  # for some recipients, perhaps, and not for all
            outcomes = self._storing.outcomes()
        return self._settle(outcomes, is_heard=True)

    def _settle(self, outcomes: Sequence[Outcome], *, is_heard: bool) -> list[str]:
        by_path = {outcome.maildir.path: outcome for outcome in outcomes}
        # Where there are several maildirs, behind an alias, and where there is one, or none that is known.
        found = [
            [by_path.get(maildir.path) for maildir in recipient.maildirs] or [None] for recipient in self._recipients
        ]
        replies = list(map(self._reply_to, self._recipients, found))
        told = combined(replies) if self._one_reply else ""
        for recipient, parts, reply in zip(self._recipients, found, replies, strict=True):
            said = (told or reply) if is_heard else ""
            if len(parts) == 1:
                self._tell(recipient, recipient.path, parts[0], said)
                continue
            for maildir, part in zip(recipient.maildirs, parts, strict=True):
                self._tell(recipient, maildir.path, part, said)
        return replies

    def _tell(self, recipient: Recipient, path: str | None, outcome: Outcome | None, reply: str) -> None:
        delivered = outcome.delivered if outcome is not None else None
        if delivered is not None and not self._receipts.are_wanted:
            return
        self._receipts.tell(
            Receipt(
                client=self._client,
                address=recipient.address,
                maildir=path,
                message_id=self._message_id,
                size=self._size,
                seconds=time.monotonic() - self._begun_at,
                reply=reply,
                delivered=delivered,
                error=outcome.error if outcome is not None else recipient.error,
            )
        )

    def _reply_to(self, recipient: Recipient, outcomes: Sequence[Outcome | None]) -> str:
        """Return the reply for one recipient: a success if all of its maildirs have the message."""
        if len(outcomes) == 1:
            return self._reply_of(recipient, outcomes[0])
        return combined([self._reply_of(recipient, outcome) for outcome in outcomes])

    def _reply_of(self, recipient: Recipient, outcome: Outcome | None) -> str:
        if outcome is not None and outcome.delivered is not None:
            return f"250 2.0.0 Saved as {self._message_id}"
        # Whatever else there may be, it is no success.
        error = outcome.error if outcome is not None else None
        return self._reply or recipient.reply or (error.smtp_reply if error is not None else NOT_STORED)
