"""One message for all of its recipients: fed to the maildirs, and in the end a reply for each."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

from maildir_async.format.delivered import Delivered
from maildir_async.mailbox.fan_out import FanOut, Outcome
from maildir_async.smtp.clients import forwarded
from maildir_async.smtp.finder import Recipient
from maildir_async.smtp.replies import NOT_STORED, combined
from maildir_async.smtp.sorting import Sorted
from maildir_async.smtp.straight import Straight
from maildir_async.smtp.trace import host_of
from maildir_async.smtp.user_code import trouble_of_callback

__all__ = ["Client", "CutOff", "MessageDelivery", "Place", "Receipt", "Receipts", "client_of"]

#: The path of a maildir, and which of its folders, or None for itself.
Place = tuple[str, str | None]

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


@dataclass(frozen=True, slots=True)
class CutOff:
    """A message that ended before it was whole. There are no receipts for it, and nothing of it is left.

    Attributes:
        client: who sent it.
        recipients: how many it was for; 0 if it was refused at MAIL.
        message_id: as in `Receipt`; "" if it was refused at MAIL.
        size: bytes received; of one that was refused at MAIL, the bytes that were announced.
        seconds: from the beginning of the message to its end.
        reason: ``client gone``, ``reset`` (the client thought better of it), ``timeout``, ``message too late``,
            ``shutting down``, ``announced too large``, ``too many errors``, ``not read`` or ``failed`` (the log tells).
        reply: what the client was told; "" if nothing.

    """

    client: Client
    recipients: int
    message_id: str
    size: int
    seconds: float
    reason: str
    reply: str


class Receipts:
    """Tells what came of messages: the user's callback if there is one, or else the log, of what went wrong.

    Args:
        on_receipt: called with each `Receipt`, in the context of the session. Whatever it raises is logged: it must
            cost nobody his mail, nor his receipt.
        on_cut_off: called with each `CutOff`, likewise.

    """

    def __init__(
        self,
        on_receipt: Callable[[Receipt], object] | None,
        on_cut_off: Callable[[CutOff], object] | None = None,
    ) -> None:
        self._on_receipt = on_receipt
        self._on_cut_off = on_cut_off
        self.are_wanted = on_receipt is not None

    def tell_cut_off(self, cut_off: CutOff) -> None:
        """Tell of a message that ended before it was whole. Raises only what ends the program."""
        if self._on_cut_off is None:
            peer, sender = cut_off.client.peer or "a local client", cut_off.client.mail_from
            words = "a message from <%s> by %s was cut off after %d bytes: %s"
            log.info(words, sender, peer, cut_off.size, cut_off.reason)
            return
        try:
            self._on_cut_off(cut_off)
        except BaseException as exc:
            log.error("on_cut_off raised", exc_info=trouble_of_callback(exc))

    def tell(self, receipt: Receipt) -> None:
        """Tell of one recipient's part. Raises only what ends the program."""
        if self._on_receipt is not None:
            try:
                self._on_receipt(receipt)
            except BaseException as exc:
                log.error("on_receipt raised", exc_info=trouble_of_callback(exc))
        elif receipt.error is not None:  # what the client must not hear
            log.warning("a delivery to %s failed: %s", receipt.maildir, receipt.reason)


def client_of(session: Session, envelope: Envelope, mail_from: str | None = None) -> Client:
    """Return who sends a message; *mail_from* where the envelope does not tell yet."""
    peer, helo = host_of(session.peer), session.host_name or ""
    if (told := forwarded(envelope)) is not None:  # what it does not tell is known of the mail server that tells it
        peer, helo = told.addr or peer, told.helo or helo
    return Client(peer, helo, _sender(envelope) if mail_from is None else mail_from)


def _sender(envelope: Envelope) -> str:
    return (envelope.mail_from or "").removeprefix("<").removesuffix(">")


class MessageDelivery:
    """See `maildir_async.smtp.delivery.Delivery`.

    Args:
        client: who sends the message.
        message_id: what the Received header and the reply call it.
        recipients: whom it is for, in the order of the replies; those that are refused too.
        places: where the message goes, each once.
        storing: what takes it there: its outcomes are in that order.
        receipts: what is told of each recipient's part.
        server: the session that it comes by.

    """

    def __init__(
        self,
        client: Client,
        message_id: str,
        recipients: Sequence[Recipient],
        places: Sequence[Place],
        storing: "Straight | FanOut | Sorted",
        receipts: Receipts,
        server: SMTP,
    ) -> None:
        self._client = client
        self._message_id = message_id
        self._recipients = recipients
        self._places = places
        self._storing = storing
        self._receipts = receipts
        self._server = server
        self._is_told = False  # receipts, or that it was cut off
        self._reply = ""  # for all of them, if the message has been refused
        self._size = 0
        self._begun_at = time.monotonic()

    async def send(self, chunk: bytes) -> None:
        """Take some of the message, and wait while the disk is behind."""
        self._size += len(chunk)
        try:
            await self._storing.send(chunk)
        except Exception:
            self._cut_off("failed", NOT_STORED)
            raise

    def fail(self, reply: str) -> None:
        """Keep nothing of the message; *reply* is for all."""
        self._reply = reply
        self._storing.abort()

    def abort(self) -> None:
        """Leave nothing behind. Of a message that has not come to its end it is told that it was cut off."""
        self._storing.abort()
        if not self._is_told:
            # Without an end of the session, the client has ended the message: by RSET or the like.
            reason, reply = getattr(self._server, "ended_by", "failed"), getattr(self._server, "ended_with", "")
            self._cut_off(reason or "reset", reply)

    def _cut_off(self, reason: str, reply: str) -> None:
        self._is_told = True
        self._receipts.tell_cut_off(
            CutOff(
                client=self._client,
                recipients=len(self._recipients),
                message_id=self._message_id,
                size=self._size,
                seconds=time.monotonic() - self._begun_at,
                reason=reason,
                reply=reply,
            )
        )

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
        self._is_told = True
        there = dict(zip(self._places, outcomes, strict=False))  # there are none of a message that has been refused
        # Where there are several maildirs, behind an alias, and where there is one, or none that is known.
        found = [
            [there.get((maildir.path, folder)) for maildir, _, folder in recipient.destinations] or [None]
            for recipient in self._recipients
        ]
        replies = list(map(self._reply_to, self._recipients, found))
        told = combined(replies) if not isinstance(self._server, LMTP) else ""
        for recipient, parts, reply in zip(self._recipients, found, replies, strict=True):
            said = (told or reply) if is_heard else ""
            if len(parts) == 1:
                self._tell(recipient, recipient.path, parts[0], said)
                continue
            for destination, part in zip(recipient.destinations, parts, strict=True):
                self._tell(recipient, destination.maildir.path, part, said)
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
