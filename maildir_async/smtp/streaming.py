"""aiosmtpd's SMTP and LMTP, with messages that go to disk while they arrive.

What aiosmtpd does well is left to it: commands, their syntax, hooks, AUTH, STARTTLS. Here are DATA and BDAT.
"""

import asyncio
import re
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import syntax  # pyright: ignore[reportUnknownVariableType]  # its annotation has a free variable

from maildir_async.smtp.clients import ClientSMTP
from maildir_async.smtp.delivery import DeliveryOpener, Refused, announced_size, transmission_type
from maildir_async.smtp.patience import MESSAGE_TIMEOUT_S
from maildir_async.smtp.replies import NOT_READ, as_reply, combined, joined
from maildir_async.smtp.transfer import Transfer
from maildir_async.smtp.user_code import raising_trouble, trouble
from maildir_async.smtp.wire import each_chunk, each_octet

__all__ = ["StreamingLMTP", "StreamingSMTP"]


#: What a client has announced at MAIL (RFC 1870).
_ANNOUNCED: Final = re.compile(r"\sSIZE=([0-9]{1,20})(?!\S)", re.IGNORECASE)


class StreamingSMTP(ClientSMTP):
    """An `aiosmtpd.smtp.SMTP` whose messages go to its handler's `Delivery` while they arrive.

    Memory is bounded whatever a message's size, a slow disk slows the client down, and a message that fails leaves
    nothing. ``handle_DATA`` is not called, and ``envelope.content`` stays None.

    Args:
        handler: a `maildir_async.smtp.MaildirHandler`, or anything else with `DeliveryOpener.open_delivery`;
            TypeError if it has none. Its other hooks are used as aiosmtpd does.
        line_length_limit: octets of a line of a message, its CRLF among them; None for no limit. The standard has
            1000 (RFC 5321 §4.5.3.1.6), and there is much mail with longer ones.
        message_timeout: seconds in which a message has to come, from the 354 or the first BDAT to its end, in however
            many commands; ValueError unless positive. What the client waits for the disk does not count. After them
            it is told 421 4.4.2, the connection is closed, and nothing is left. A ``deadline`` of the handler that is
            shorter is told as 451, and only when the message has come.
        proxy_protocol: networks (texts, or those of `ipaddress`; ``"unix"`` for the clients of a Unix socket) whose
            connections begin with a PROXY header, version 1 or 2, that names the client. One that does not is closed
            without a greeting. From others ``PROXY`` is an unknown command.
        trusted_peers: networks of mail servers whose XCLIENT and XFORWARD (Postfix) are believed. To others the two
            are 550; without any they are unknown commands.
        peer: address and port of the client, if the caller has read the PROXY header: see `read_proxy_header`.
        max_errors: so many replies with 4xx or 5xx, and the client is told 421 4.7.0 and the connection is closed
            (Postfix's ``smtpd_hard_error_limit``). A message that is stored begins a new count. In LMTP a refused
            recipient does not count: a mail server's queue may have a message for many.
        accept_bare_lf: take LF for the end of a command line, like CRLF. It is 500 otherwise, since other servers may
            not see a line end there, and what follows would be smuggled in. (A message never ends by it.)
        options: what `aiosmtpd.smtp.SMTP` takes. ``ident``, what the greeting says after the host name, is a
            ValueError unless it is printable ASCII. ``enable_SMTPUTF8`` is True unless told otherwise; ``decode_data``
            is a ValueError. ``data_size_limit`` is in bytes of a message without doubled dots. ``timeout`` (seconds)
            runs from the last reply until a command, or an answer to a challenge of AUTH, has come as a whole; within
            a message, from the last byte to the next. It stands still while the client waits for the disk.

    """

    def __init__(
        self,
        handler: DeliveryOpener,
        *,
        line_length_limit: int | None = None,
        message_timeout: float = MESSAGE_TIMEOUT_S,
        **options: Any,
    ) -> None:
        if not callable(getattr(handler, "open_delivery", None)):
            raise TypeError(f"the handler of a streaming server has open_delivery(), which {handler!r} has not")
        if options.get("decode_data"):
            raise ValueError("a message that is streamed is not decoded")
        Transfer(None, line_length_limit=line_length_limit)  # ValueError, if it is none
        if not message_timeout > 0:
            raise ValueError(f"message_timeout must be positive, not {message_timeout}")
        self._opener = handler
        self._refuse_size = getattr(handler, "refuse_size", None)
        self._message_line_limit = line_length_limit
        self._sequence: Transfer | None = None  # the message that BDAT brings
        super().__init__(handler, message_timeout=message_timeout, **options)

    @syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802 aiosmtpd's name
        """Receive a message up to its dot, and answer when it is stored."""
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        if self._sequence is not None:
            await self.push("503 5.5.1 Error: DATA after BDAT")
        elif not self._recipients():
            await self.push("503 5.5.1 Error: need RCPT command")
        elif arg:
            await self.push("501 5.5.4 Syntax: DATA")
        else:
            try:
                transfer = await self._open(stuffed=True)
            except Refused as exc:
                self._reset_timeout()  # the client has been waiting, not idle
                await self.push(as_reply(exc.reply))
            else:
                await self._receive(transfer)

    async def _receive(self, transfer: Transfer) -> None:
        try:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            await self._receive_all(each_chunk(self._reader, lambda chunk: self._take(transfer, chunk)))
            reply = await self._finish(transfer)
        except BaseException as exc:
            transfer.abort()
            if isinstance(exc, Exception):
                self._lose_track(exc)
            raise
        await self.push(reply)

    @syntax("BDAT <octets> [LAST]")
    async def smtp_BDAT(self, arg: str | None) -> None:  # noqa: N802 as aiosmtpd has it
        """Receive the announced octets of a message (RFC 3030); after the last of them, answer when it is stored."""
        self._line = b""  # somebody reads its octets
        if (chunk := _announced_chunk(arg or "")) is None:
            # What follows is part of a message, and must not be taken for commands.
            await self.push("501 5.5.4 Syntax: BDAT <octets> [LAST]; closing connection")
            raise asyncio.CancelledError
        octets, is_last = chunk
        if self._sequence is None and not self._is_ready():
            await self._skip(octets)
            if not await self.check_helo_needed() and not await self.check_auth_needed("BDAT"):
                await self.push("503 5.5.1 Error: need RCPT command")
            return
        try:
            reply = await self._receive_octets(octets, is_last)
        except BaseException as exc:
            self._drop_sequence()
            if isinstance(exc, Exception):
                self._lose_track(exc)
            raise
        await self.push(reply)

    def _next_command(self) -> Coroutine[Any, Any, bytes]:
        return self._after_unread() if self._line and self._command == "BDAT" else super()._next_command()

    async def _after_unread(self) -> bytes:
        """A BDAT was refused by aiosmtpd itself, for want of TLS or as the last of too many: drop its octets."""
        _, _, arg = self._line.decode("ascii", "replace").partition(" ")
        if (chunk := _announced_chunk(arg)) is None:
            self._dismiss(NOT_READ)
            raise asyncio.CancelledError
        await self._skip(chunk[0])
        return await super()._next_command()

    async def _receive_octets(self, octets: int, is_last: bool) -> str:
        transfer = self._sequence
        if transfer is None:
            try:
                transfer = await self._open(stuffed=False)
            except Refused as exc:
                transfer = Transfer(None, reply=as_reply(exc.reply))
            except Exception as exc:
                transfer = Transfer(None, reply=await self.handle_exception(exc))
            self._sequence = transfer
        if transfer.admits(octets):
            await self._receive_all(each_octet(self._reader, octets, lambda chunk: self._take(transfer, chunk)))
            self._reset_timeout()  # which ran for this command while its octets came
        else:
            await self._drop(octets)
        if is_last:
            return await self._finish(transfer)
        return transfer.reply or f"250 2.0.0 {octets} octets received"

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802 aiosmtpd's name
        """Take a recipient, unless the message has begun to come."""
        if self._sequence is not None:
            await self.push("503 5.5.1 Error: RCPT after BDAT")
        else:
            await super().smtp_RCPT(arg)

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        if command != "RCPT":
            return await super()._call_handler_hook(command, *args)
        with self._patience.working():  # a lookup may take longer than a client may be silent
            answer = await super()._call_handler_hook(command, *args)
        self._reset_timeout()  # the client has been waiting, not idle
        return answer

    def _failed(self, reply: bytes) -> None:
        super()._failed(reply)
        if self._refuse_size is not None and self._command == "MAIL" and reply.startswith(b"552"):
            _, _, arg = self._line.decode("utf-8", "surrogateescape").partition(":")
            if (size := _ANNOUNCED.search(arg)) is not None:
                sender = self._getaddr(arg.strip())[0] or ""
                self._refuse_size(self.session, sender.strip("<>"), int(size[1]), reply.decode())

    # Not properties: aiosmtpd's constructor would read them.

    def _recipients(self) -> list[str]:
        return [] if self.envelope is None else self.envelope.rcpt_tos

    def _is_ready(self) -> bool:
        """Whether a message may come."""
        assert self.session is not None
        may_send = self.session.authenticated or not self._auth_required
        return bool(self.session.host_name and may_send and self._recipients())

    async def _open(self, *, stuffed: bool) -> Transfer:
        """Begin with a message. Raises `Refused`, or whatever else the handler does."""
        assert self.session is not None
        assert self.envelope is not None
        session, envelope = self.session, self.envelope
        with self._patience.working(), raising_trouble():
            delivery = await self._opener.open_delivery(
                self,
                session,
                envelope,
                protocol=transmission_type(self, session, envelope),
                size=announced_size(envelope),
            )
        return Transfer(
            delivery,
            size_limit=self.data_size_limit,
            line_length_limit=self._message_line_limit,
            stuffed=stuffed,
        )

    async def _take(self, transfer: Transfer, chunk: bytes) -> None:
        with self._patience.working():
            await transfer.take(chunk)

    async def _drop(self, octets: int) -> None:
        await self._receive_all(each_octet(self._reader, octets))
        self._reset_timeout()

    async def _skip(self, octets: int) -> None:
        """Drop what is part of no message."""
        await self._drop(octets)
        self._patience.message_over()

    async def _finish(self, transfer: Transfer) -> str:
        """Return what is said of the message when its outcome is known. Ends the transaction."""
        recipients = len(self._recipients())
        with self._patience.working():
            try:
                replies = await transfer.finish(recipients)
            except BaseException as exc:
                replies = [await self.handle_exception(trouble(exc))] * recipients
        self._set_post_data_state()
        if self._errors and any(reply.startswith("2") for reply in replies):
            self._errors = 0
        return self._answer(replies)

    def _answer(self, replies: Sequence[str]) -> str:
        """Return what is said of a message, given what is to be said to each recipient."""
        return combined(replies)

    # The end of a sequence of BDAT commands before its last.

    def _is_mid_message(self) -> bool:
        return self._sequence is not None and self._sequence.reply is None

    def _drop_sequence(self) -> None:
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            sequence.abort()

    def _set_post_data_state(self) -> None:
        self._drop_sequence()  # by RSET, EHLO, STARTTLS
        self._patience.message_over()
        super()._set_post_data_state()  # type: ignore[no-untyped-call]  # aiosmtpd has not annotated it

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.ended_by = self.ended_by or "client gone"
        self._drop_sequence()
        super().connection_lost(error)


class StreamingLMTP(StreamingSMTP, LMTP):
    """An `aiosmtpd.lmtp.LMTP` that is like `StreamingSMTP`, and answers for each recipient of a message (RFC 2033)."""

    async def check_helo_needed(self, helo: str = "LHLO") -> bool:
        """Say 503 and return True if the client has not introduced itself."""
        return await super().check_helo_needed("LHLO")

    def _answer(self, replies: Sequence[str]) -> str:
        return joined(replies)

    def _failed(self, reply: bytes) -> None:
        if self._command != "RCPT":
            super()._failed(reply)


def _announced_chunk(arg: str) -> tuple[int, bool] | None:
    """Return what an argument of BDAT tells: how many octets follow, and whether they are the last; or None."""
    words = arg.upper().split()
    if not words or len(words[0]) > 20 or not words[0].isascii() or not words[0].isdigit():
        return None
    return (int(words[0]), len(words) > 1) if words[1:] in ([], ["LAST"]) else None
