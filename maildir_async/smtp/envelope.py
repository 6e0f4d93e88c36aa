"""The commands that an envelope consists of: MAIL and RCPT, and VRFY, which names a recipient too.

They are aiosmtpd's, with its hooks and the same order of checks, but for what reads their arguments: that is the
grammar of `maildir_async.smtp.paths`. aiosmtpd asks a parser of header fields, which finds comments, folding and
encoded words in an envelope, and may take quadratic time.
"""

from itertools import starmap
from typing import Final

from aiosmtpd.smtp import (
    MISSING,
    SMTP,
    syntax,  # pyright: ignore[reportUnknownVariableType]  # its annotation has a free variable
)

from maildir_async.smtp.paths import parse_parameters, parse_path, parse_vrfy, xtext_is_valid
from maildir_async.smtp.replies import BAD_RECIPIENT, BAD_SENDER, NOT_ASCII, TOO_LARGE

__all__ = ["EnvelopeSMTP"]

PARAMETERS: Final = " [SP <mail-parameters>]"
BAD_PARAMETERS: Final = "501 5.5.4 Error: malformed parameters"
UNKNOWN_PARAMETERS: Final = "555 5.5.4 Error: parameters not recognized or not implemented"  # RFC 5321 §4.1.1.11


class EnvelopeSMTP(SMTP):
    """aiosmtpd's SMTP with these commands. Each answers once, after all that it has to wait for."""

    @syntax("MAIL FROM:<address>", extended=PARAMETERS)
    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 aiosmtpd's name
        """Begin a message."""
        if not await self.check_helo_needed() and not await self.check_auth_needed("MAIL"):
            await self.push(await self._answer_to_mail(arg or ""))

    @syntax("RCPT TO:<address>", extended=PARAMETERS)
    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802 aiosmtpd's name
        """Take a recipient."""
        if not await self.check_helo_needed() and not await self.check_auth_needed("RCPT"):
            await self.push(await self._answer_to_rcpt(arg or ""))

    @syntax("VRFY <address>")
    async def smtp_VRFY(self, arg: str | None) -> None:  # noqa: N802 aiosmtpd's name
        """Say nothing of an address, unless the handler's hook does (RFC 5321 §3.5.3)."""
        if await self.check_auth_needed("VRFY"):
            return
        if not arg:
            await self.push("501 5.5.4 Syntax: VRFY <address>")
        elif (address := parse_vrfy(arg)) is None:
            await self.push(BAD_RECIPIENT)
        else:
            status = await self._call_handler_hook("VRFY", address)
            if status is MISSING:
                status = "252 2.0.0 Cannot VRFY user, but will accept message and attempt delivery"
            await self.push(status)

    async def _answer_to_mail(self, arg: str) -> str:
        session, envelope = self.session, self.envelope
        assert session is not None
        assert envelope is not None
        if arg[:5].upper() != "FROM:":
            return f"501 5.5.4 Syntax: MAIL FROM:<address>{PARAMETERS if session.extended_smtp else ''}"
        path = parse_path(arg[5:])
        if path is None or (self.local_part_limit and self._is_long(path[0])) or (path[0] and "@" not in path[0]):
            return BAD_SENDER
        address, text = path
        if envelope.mail_from:
            return "503 5.5.1 Error: nested MAIL command"
        parameters = parse_parameters(text) if text else {}
        if parameters is None or (parameters and not session.extended_smtp):
            return BAD_PARAMETERS
        if parameters and (refusal := self._refusal_of(parameters)):
            return refusal
        is_utf8 = "SMTPUTF8" in parameters
        if not is_utf8 and not address.isascii():
            return NOT_ASCII
        options = text.upper().split() if "AUTH" not in parameters else list(starmap(_option, parameters.items()))
        envelope.smtp_utf8 = is_utf8
        sender = address or "<>"  # as aiosmtpd calls the null sender
        status = await self._call_handler_hook("MAIL", sender, options)
        if status is MISSING:
            envelope.mail_from = sender
            envelope.mail_options.extend(options)
            return "250 2.1.0 OK"
        return status  # type: ignore[no-any-return]  # push() looks at it

    async def _answer_to_rcpt(self, arg: str) -> str:
        session, envelope = self.session, self.envelope
        assert session is not None
        assert envelope is not None
        if not envelope.mail_from:
            return "503 5.5.1 Error: need MAIL command"
        if arg[:3].upper() != "TO:":
            return f"501 5.5.4 Syntax: RCPT TO:<address>{PARAMETERS if session.extended_smtp else ''}"
        path = parse_path(arg[3:])
        if path is None or not path[0] or (self.local_part_limit and self._is_long(path[0])):
            return BAD_RECIPIENT
        address, text = path
        parameters = parse_parameters(text) if text else {}
        if parameters is None or (parameters and not session.extended_smtp):
            return BAD_PARAMETERS
        if parameters:  # no extension that is announced has one for RCPT
            return UNKNOWN_PARAMETERS
        if not envelope.smtp_utf8 and not address.isascii():
            return NOT_ASCII
        status = await self._call_handler_hook("RCPT", address, [])
        if status is MISSING:
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 OK"
        return status  # type: ignore[no-any-return]  # push() looks at it

    def _refusal_of(self, parameters: dict[str, str | None]) -> str:
        """Return the answer to parameters of MAIL that are not taken; "" if they are."""
        for keyword, value in parameters.items():
            match keyword:
                case "SIZE":  # RFC 1870 §3
                    if value is None or not value.isdecimal():
                        return BAD_PARAMETERS
                    if self.data_size_limit and int(value) > self.data_size_limit:
                        return TOO_LARGE
                case "BODY":  # RFC 6152 §2
                    if value is None or value.upper() not in ("7BIT", "8BITMIME"):
                        return "501 5.5.4 Error: BODY can only be one of 7BIT, 8BITMIME"
                case "SMTPUTF8" if self.enable_SMTPUTF8:  # RFC 6531 §3.4
                    if value is not None:
                        return "501 5.5.4 Error: SMTPUTF8 takes no arguments"
                case "AUTH" if not self._auth_require_tls or self._tls_protocol:  # where EHLO has announced it
                    # RFC 4954 §5: who has submitted the message. A server that relays nothing has no use for it.
                    if value is None or not xtext_is_valid(value):
                        return BAD_PARAMETERS
                case _:
                    return UNKNOWN_PARAMETERS
        return ""

    def _is_long(self, address: str) -> bool:
        """Whether the local part is longer than `local_part_limit`, which users of aiosmtpd may set."""
        return len(address.rpartition("@")[0]) > self.local_part_limit

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # For subclasses: nothing that aiosmtpd still does itself asks for it.
        return parse_path(arg) or (None, None)


def _option(keyword: str, value: str | None) -> str:
    """Return a parameter as hooks are given it: in capitals, as aiosmtpd has it, but for what has its own letters."""
    if value is None:
        return keyword
    return f"{keyword}={value if keyword == 'AUTH' else value.upper()}"
