"""aiosmtpd's SMTP, where sessions end well in whatever way they end, and replies are what a reply may be.

The private names of aiosmtpd that this rests on are listed in ``tests/test_aiosmtpd_internals.py``, which fails if
they change.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

from aiosmtpd.smtp import TLSSetupException

from maildir_async.format.options import check_bool, check_count
from maildir_async.smtp.envelope import EnvelopeSMTP
from maildir_async.smtp.hostname import own_name
from maildir_async.smtp.patience import Patience
from maildir_async.smtp.replies import (
    AUTH_LINE_TOO_LONG,
    MESSAGE_TIMEOUT,
    NOT_READ,
    SHUTTING_DOWN,
    TIMEOUT,
    TOO_MANY_ERRORS,
    as_reply,
    encoded,
)
from maildir_async.smtp.user_code import ClientGoneError, raising_trouble, trouble
from maildir_async.smtp.wire import LineTooLongError, SessionReader

__all__ = ["LastingSMTP"]

T = TypeVar("T")

log: Final = logging.getLogger("maildir_async.smtp")

#: Octets of a command line: RFC 5321 §4.5.3.1.4, and what each extension adds to MAIL: RFC 1870 (SIZE), RFC 6152
#: (8BITMIME), RFC 6531 (SMTPUTF8), RFC 4954 (AUTH). aiosmtpd adds the first and the third by itself, at EHLO.
COMMAND_SIZE: Final = 512
MAIL_SIZE: Final = COMMAND_SIZE + 17 + 500
AUTH_SIZE: Final = 12288  # RFC 4954 §4

#: Commands whose replies go out with that to the next command, if that is there already (RFC 2920 §3.2: those, and no
#: others; and XFORWARD, which Postfix sends together with MAIL).
GROUPED: Final = ("MAIL", "RCPT", "RSET", "XFORWARD")

#: Errors of a client before it is told to go: Postfix's ``smtpd_hard_error_limit``.
MAX_ERRORS: Final = 20

#: Why a session has ended, by what its client was told last.
_REASONS: Final = {
    SHUTTING_DOWN: "shutting down",
    TIMEOUT: "timeout",
    MESSAGE_TIMEOUT: "message too late",
    NOT_READ: "not read",
    TOO_MANY_ERRORS: "too many errors",
}

#: Seconds that the timer is set for at least: some loops count in whole milliseconds, and 0 is none to aiosmtpd.
TICK_S: Final = 0.001


class LastingSMTP(EnvelopeSMTP):
    """The part of `StreamingSMTP` that is not about messages. Takes what `aiosmtpd.smtp.SMTP` does.

    Args:
        handler: aiosmtpd's.
        message_timeout: seconds for a message to come, see `Patience`.
        max_errors: see `StreamingSMTP`.
        accept_bare_lf: see `StreamingSMTP`.
        options: aiosmtpd's.

    Attributes:
        ended_by: why the session is over, or about to be; "" while it is not.
        ended_with: what the client was told about that; "" if nothing.

    """

    def __init__(
        self,
        handler: Any,
        *,
        message_timeout: float,
        max_errors: int = MAX_ERRORS,
        accept_bare_lf: bool = False,
        **options: Any,
    ) -> None:
        self._max_errors = check_count("max_errors", max_errors, least=1)
        self._accept_bare_lf = check_bool("accept_bare_lf", accept_bare_lf)
        ident = options.get("ident")
        if ident is not None and not (isinstance(ident, str) and ident.isascii() and ident.isprintable()):
            raise ValueError(f"ident must be printable ASCII, not {ident!r}")
        self._errors = 0
        self.ended_by = ""
        self.ended_with = ""
        self._command = ""  # the one being answered
        self._line = b""  # with its arguments
        self._is_greeted = False
        self._held = b""  # replies that go out in the next turn of the loop, if not before
        self._waits_for_command = False
        self._is_ending = False
        options = {"enable_SMTPUTF8": True} | options
        options["hostname"] = options.get("hostname") or own_name()
        # The constructor clears these, and they are the class's: each client would shrink the limits of all others.
        self.command_size_limits = defaultdict(lambda: COMMAND_SIZE)
        super().__init__(handler, **options)
        self.command_size_limits.update(MAIL=MAIL_SIZE, AUTH=AUTH_SIZE)
        self._patience = Patience(self.loop, self._timeout_duration, message_timeout)
        # Once more, with a reader of ours.
        asyncio.StreamReaderProtocol.__init__(
            self, SessionReader(self._next_command, self.loop), self._cb_client_connected, self.loop
        )

    def _is_mid_message(self) -> bool:
        """Whether some of a message has come, and the next command brings more."""
        return False

    # The end of a session.

    def shut_down(self) -> None:
        """Say 421 and close: at once if the client is to send a command, else after what is under way.

        That is: a command is answered; a message is received, stored and answered, be it sent with DATA or BDAT.
        """
        self._is_ending = True
        if self._waits_for_command and not self._is_mid_message():
            self._dismiss(SHUTTING_DOWN)

    def end_now(self) -> None:
        """Say 421 and close, whatever is under way. Who does not read that keeps the transport: abort it in the end."""
        self._dismiss(SHUTTING_DOWN)

    def _next_command(self) -> Coroutine[Any, Any, bytes]:
        """Return the client's next command line, for aiosmtpd's loop. CancelledError ends that."""
        raise NotImplementedError

    async def _from_client(self, transmission: Awaitable[T]) -> T:
        """Return what *transmission* does; CancelledError if the client has gone, since aiosmtpd's loop ends by that.

        Anything else it would answer, and go on.
        """
        try:
            return await transmission
        except (asyncio.IncompleteReadError, ConnectionError):
            self._gone()

    def _gone(self) -> NoReturn:
        """Called when the client sends no more."""
        self._release()  # it may still listen
        self.ended_by = self.ended_by or "client gone"
        raise ClientGoneError from None

    def _end(self, reply: str) -> NoReturn:
        """Say *reply* and end the session."""
        self._dismiss(reply)
        raise asyncio.CancelledError

    def _dismiss(self, reply: str) -> None:
        """Say *reply*, whoever else may be writing or waiting, and close."""
        transport: Any = self.transport
        if transport is not None:
            self._release()
            if not self.ended_by:
                self.ended_by, self.ended_with = _REASONS[reply], reply
            transport.write(reply.encode() + b"\r\n")
            transport.close()

    def _lose_track(self, exc: Exception) -> NoReturn:
        """Close, since what comes next may be part of a message, and must not be taken for commands."""
        log.error("a message could not be read to its end", exc_info=exc)
        self._dismiss(NOT_READ)
        raise asyncio.CancelledError from exc

    def eof_received(self) -> bool | None:
        """See `asyncio.Protocol`. A client that sends no more may still wait for its replies.

        With STARTTLS it cannot, and aiosmtpd's own way is right.
        """
        if self.session is not None and self.session.ssl is not None:
            return super().eof_received()
        return asyncio.StreamReaderProtocol.eof_received(self)

    # The client's time. `Patience` knows when it is up; aiosmtpd's timer may ring before, never after.

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._patience.heard()
        super().data_received(data)

    def _reset_timeout(self, duration: float | None = None) -> None:
        # aiosmtpd says so for a new client, in front of a PROXY line, and for each command that it knows.
        self._patience.begin(duration)
        self._set_timer()

    def _set_timer(self) -> None:
        # A timer for each command and each reply costs more than one that rings in vain now and then.
        timer = self._timeout_handle
        if timer is None or timer.cancelled() or timer.when() > self._patience.ends_at:
            self._set_new_timer()

    def _set_new_timer(self) -> None:
        super()._reset_timeout(max(self._patience.left_s, TICK_S))

    def _timeout_cb(self) -> None:
        transport: Any = self.transport
        if transport is None:
            return
        if self._patience.left_s > 0:
            self._set_new_timer()
        elif transport.is_closing() or transport.get_write_buffer_size() > 0:
            self.ended_by = self.ended_by or "timeout"
            transport.abort()  # closing would wait until the client has read what it does not read
        else:
            self._dismiss(MESSAGE_TIMEOUT if self._patience.message_is_late else TIMEOUT)
            self._patience.message_over()
            self._patience.begin()
            self._set_new_timer()

    async def _receive_all(self, message: Awaitable[None]) -> None:
        """Wait for a message, or for one part of it."""
        with self._patience.receiving():
            self._set_timer()  # a message may have less time than a command
            await self._from_client(message)

    # Replies.

    async def push(self, status: str | bytes) -> None:
        """Say *status*, with an enhanced status code if it is to have one, and nothing in it that is no text."""
        if isinstance(status, str):
            utf8 = self.envelope is not None and self.envelope.smtp_utf8
            status = encoded(status, command=self._command if self._is_greeted else "", utf8=utf8)
        self._is_greeted = True
        if status[:1] >= b"4":
            self._failed(status)
        if self._command in GROUPED and not status.startswith(b"421"):  # after which comes the end
            # Of the replies of one turn nothing has been written, so that to wait for the client once is enough.
            if not self._held:
                self._hold(status)
                await self._from_client(self._writer.drain())
            else:
                self._hold(status)
        else:
            held, self._held = self._held, b""
            await self._from_client(super().push(held + status))
        self._patience.begin()

    def _failed(self, reply: bytes) -> None:
        """Called when *reply* tells the client that something went wrong."""
        self._errors += 1

    def _hold(self, reply: bytes) -> None:
        # The next command is answered in this turn, if it is there and nothing has to be waited for.
        if not self._held:
            self.loop.call_soon(self._release)
        self._held += reply + b"\r\n"

    def _release(self) -> None:
        held, self._held = self._held, b""
        if held and self.transport is not None:
            self._writer.write(held)

    async def handle_exception(self, error: Exception) -> str:
        """Return what is said after *error*, which a hook or a delivery has raised: nothing about it."""
        if isinstance(error, LineTooLongError):
            return AUTH_LINE_TOO_LONG  # the only line that aiosmtpd reads by itself
        own = getattr(self.event_handler, "handle_exception", None)
        if isinstance(error, TLSSetupException):
            return as_reply(None)  # which nobody gets to hear, and nothing is wrong here
        if own is None:
            log.error("a session failed", exc_info=error)
            return as_reply(None)
        try:
            return as_reply(await own(error))
        except BaseException as exc:
            log.error("handle_exception() raised", exc_info=trouble(exc))
            return as_reply(None)

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        with raising_trouble():
            return await super()._call_handler_hook(command, *args)
