"""What the streaming servers need of a handler: one delivery for each message, opened before its first byte comes."""

from collections.abc import Sequence
from typing import Protocol

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

__all__ = ["Delivery", "DeliveryOpener", "Refused", "announced_size", "transmission_type"]


class Refused(Exception):  # noqa: N818 it is an answer, not an error
    """A message is not taken, which is told before it is sent.

    Attributes:
        reply: the answer to DATA, or to BDAT: one line, code and enhanced code first.

    """

    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.reply = reply


class Delivery(Protocol):
    """One message on its way to all of its recipients. All methods are called on the loop's thread.

    `finish` or `abort` is called in any case; `abort` also after `finish` has raised, or was cancelled.
    """

    async def send(self, chunk: bytes) -> None:
        """Take some of the message, and wait while the disk is behind.

        What goes wrong with the delivery is told by `finish`. If this raises, the delivery is aborted, and the rest
        of the message is read and dropped.
        """
        ...

    def fail(self, reply: str) -> None:
        """Keep nothing of the message. `finish` is to return *reply* for every recipient."""
        ...

    async def finish(self) -> Sequence[str]:
        """The message is whole. Return one reply for each recipient, in the order of the envelope."""
        ...

    def abort(self) -> None:
        """The client has gone, or thought better of it: leave nothing behind. Nobody waits for this."""
        ...


class DeliveryOpener(Protocol):
    """A handler for the streaming servers. aiosmtpd's hooks (``handle_RCPT``, …) are used as by its own classes."""

    async def open_delivery(
        self, server: SMTP, session: Session, envelope: Envelope, *, protocol: str, size: int | None
    ) -> Delivery:
        """Begin with a message, before the client is told to send it. Raises `Refused` for what can be known by now.

        Args:
            server: the `StreamingSMTP` or `StreamingLMTP`.
            session: aiosmtpd's.
            envelope: aiosmtpd's, with at least one recipient.
            protocol: see `transmission_type`.
            size: bytes the client has announced (RFC 1870), or None. It may have been wrong, or lied.

        """
        ...


def announced_size(envelope: Envelope) -> int | None:
    """Return the bytes that the client has said at MAIL the message will have (RFC 1870), or None."""
    sizes = [option[5:] for option in envelope.mail_options if option.startswith("SIZE=")]
    return int(sizes[-1]) if sizes and sizes[-1].isdecimal() else None


def transmission_type(server: SMTP, session: Session, envelope: Envelope) -> str:
    """Return how the message came, as Received headers tell it: ``ESMTPS``, ``UTF8LMTP`` and the like.

    RFC 3848, and RFC 6531 §4.3 for messages with the SMTPUTF8 parameter.
    """
    name = "LMTP" if isinstance(server, LMTP) else "SMTP"
    if not session.extended_smtp:
        return name
    if envelope.smtp_utf8:
        name = f"UTF8{name}"
    elif name == "SMTP":
        name = "ESMTP"
    secured = server.transport is not None and server.transport.get_extra_info("sslcontext") is not None
    return name + ("S" if secured else "") + ("A" if session.authenticated else "")
