"""Who the client of a session is, what is announced to it, and how its connection is made secure."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any, Final, cast

from aiosmtpd.smtp import (
    SMTP,
    Envelope,
    Session,
    TLSSetupException,
    syntax,  # pyright: ignore[reportUnknownVariableType]  # its annotation has a free variable
)

from maildir_async.smtp.commands import CommandSMTP
from maildir_async.smtp.proxied import (
    ATTRIBUTE_NAMES,
    Attributes,
    AttributeSyntaxError,
    Network,
    Networks,
    Peer,
    ProxyHeaderError,
    parse_attributes,
    plain_host,
    read_proxy,
)
from maildir_async.smtp.trace import host_of

__all__ = ["PROXY_TIMEOUT_S", "ClientSMTP", "forwarded", "read_proxy_header"]

log: Final = logging.getLogger("maildir_async.smtp")

#: What is served beside what aiosmtpd announces: RFC 2920, RFC 2034, RFC 3030.
KEYWORDS: Final = ("PIPELINING", "ENHANCEDSTATUSCODES", "CHUNKING")

#: Seconds for a PROXY header to come as a whole. Its specification asks for 3 at least, for a packet that is lost.
PROXY_TIMEOUT_S: Final = 10.0


def forwarded(envelope: Envelope) -> Attributes | None:
    """Return what XFORWARD has told of the client of this message, or None."""
    return cast("Attributes | None", envelope.__dict__.get("maildir_forwarded"))


async def read_proxy_header(
    connection: socket.socket, networks: Networks, *, timeout: float = PROXY_TIMEOUT_S
) -> Peer | None:
    """Read the PROXY header of a *connection* that has been accepted, before anything else reads from it.

    For servers whose connections begin with TLS, in front of which the header is: pass what this returns to
    `StreamingSMTP` as ``peer``, and no ``proxy_protocol``. Where there is no TLS the session reads it by itself.

    Args:
        connection: a stream socket that does not block.
        networks: whose connections begin with a header. Of another connection nothing is read.
        timeout: seconds for the header to come.

    Returns:
        The client, or None where the connection's own peer is the client.

    Raises:
        ProxyHeaderError: there is none, half of one or a wrong one. The connection is to be closed without a word.
        OSError: the connection is lost.

    """
    if _host(connection.getpeername()) not in networks:
        return None
    loop = asyncio.get_running_loop()

    async def read(count: int) -> bytes:
        octets = b""
        while len(octets) < count:
            chunk = await loop.sock_recv(connection, count - len(octets))
            if not chunk:
                raise ProxyHeaderError("the connection has ended within its PROXY header")
            octets += chunk
        return octets

    try:
        async with asyncio.timeout(timeout):
            return await read_proxy(read)
    except TimeoutError:
        raise ProxyHeaderError("no PROXY header in time") from None


class ClientSMTP(CommandSMTP):
    """The part of `StreamingSMTP` that knows its client. Takes what `CommandSMTP` does.

    Args:
        handler: aiosmtpd's.
        proxy_protocol: see `StreamingSMTP`.
        trusted_peers: see `StreamingSMTP`.
        peer: see `StreamingSMTP`.
        options: aiosmtpd's, and those of `CommandSMTP`.

    """

    def __init__(
        self,
        handler: Any,
        *,
        proxy_protocol: Sequence[Network] | Networks = (),
        trusted_peers: Sequence[Network] | Networks = (),
        peer: Peer | None = None,
        **options: Any,
    ) -> None:
        self._proxies = _networks(proxy_protocol)
        self._trusted = _networks(trusted_peers)
        self._client = peer  # who a PROXY header or XCLIENT says it is
        self._is_trusted = False
        self._is_secure = False
        super().__init__(handler, **options)
        if not self._trusted:
            del self._smtp_methods["XCLIENT"], self._smtp_methods["XFORWARD"]
        self._own_ehlo_hook: Any = self._handle_hooks.get("EHLO")
        self._own_ehlo_hook_ver = self._ehlo_hook_ver
        self._handle_hooks["EHLO"] = self._announce
        self._ehlo_hook_ver = "new"

    def tls_begun(self) -> None:
        """Called when TLS is up, from the beginning or by STARTTLS. For subclasses; does nothing."""

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`. Called again when STARTTLS has made the connection secure."""
        super().connection_made(transport)
        self._know_client()
        self._is_secure = transport.get_extra_info("sslcontext") is not None
        if self._is_secure:
            if self._original_transport is None:
                self.require_starttls = False  # which has been done, in effect
            self.tls_begun()

    def _know_client(self) -> None:
        session: Any = self.session  # aiosmtpd's annotation of a peer is not what it is
        if self._client is not None:
            session.peer = self._client
        elif isinstance(session.peer, tuple) and (host := host_of(session.peer)) != session.peer[0]:
            session.peer = (host, session.peer[1])

    async def _handle_client(self) -> None:
        peer = host_of(cast("Session", self.session).peer)
        if self._proxies and peer in self._proxies and not await self._take_proxy_header():
            return
        if self._trusted:
            # The client of a proxy is trusted by its own address, and not by the proxy's.
            self._is_trusted = host_of(cast("Session", self.session).peer) in self._trusted
        await super()._handle_client()

    async def _take_proxy_header(self) -> bool:
        """Read the PROXY header of this connection; close it and return False if there is none."""
        try:
            async with asyncio.timeout(PROXY_TIMEOUT_S):
                self._client = await read_proxy(self._reader.readexactly)
        except (ProxyHeaderError, TimeoutError, asyncio.IncompleteReadError, ConnectionError) as exc:
            peer = host_of(cast("Session", self.session).peer)
            # A health check that connects and goes is not worth a warning.
            level = (
                logging.DEBUG if isinstance(exc, asyncio.IncompleteReadError) and not exc.partial else logging.WARNING
            )
            log.log(level, "%s sent no PROXY header that is valid: %s", peer or "a local client", exc or "not in time")
            if self.transport is not None:
                cast("asyncio.Transport", self.transport).close()
            return False
        self._know_client()
        self._reset_timeout()
        return True

    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802 aiosmtpd's name
        """Go on in TLS, or end the session if that has come to nothing."""
        if self._is_secure:
            await self.push("503 5.5.1 Error: TLS already active")
            return
        await super().smtp_STARTTLS(arg)
        if self._tls_protocol is not None and self.session is not None and self.session.ssl is None:
            # The connection was lost, or closed, before there was TLS: asyncio tells nobody but who waits for the
            # handshake, without a word of what became of it.
            raise TLSSetupException

    # XCLIENT and XFORWARD.

    async def smtp_XCLIENT(self, arg: str | None) -> None:  # noqa: N802 as aiosmtpd has it
        """Take it from a trusted peer that its client is another, and begin anew (Postfix, XCLIENT_README)."""
        told = await self._told("XCLIENT", arg)
        if told is None:
            return
        session = cast("Session", self.session)
        if told.addr is not None or told.port is not None:
            now: Any = session.peer if isinstance(session.peer, tuple) else ("", 0)
            self._client = (
                now[0] if told.addr is None else told.addr,
                now[1] if told.port is None else told.port,
            )
        self._set_rset_state()  # type: ignore[no-untyped-call]  # aiosmtpd has not annotated it
        session.extended_smtp = told.proto == "ESMTP"
        session.host_name = told.helo or None
        session.authenticated = bool(told.login)
        self._know_client()
        self._is_greeted = False  # the greeting has no enhanced code
        await self.push(f"220 {self.hostname} {self.__ident__}")

    async def smtp_XFORWARD(self, arg: str | None) -> None:  # noqa: N802 as aiosmtpd has it
        """Take it from a trusted peer whom the next message comes from (Postfix, XFORWARD_README)."""
        told = await self._told("XFORWARD", arg)
        if told is None:
            return
        envelope = cast("Envelope", self.envelope)
        before = forwarded(envelope)
        # It goes with the envelope: at the end of the message, with RSET and with EHLO.
        envelope.__dict__["maildir_forwarded"] = told if before is None else before.updated(told)
        await self.push("250 2.0.0 Ok")

    async def _told(self, command: str, arg: str | None) -> Attributes | None:
        """Return what an argument tells, or None if it has been refused, in Postfix's words and order."""
        if self.envelope is not None and self.envelope.mail_from is not None:
            await self.push("503 5.5.1 Error: MAIL transaction in progress")
        elif not self._is_trusted:
            await self.push("550 5.7.0 Error: insufficient authorization")
        else:
            try:
                return parse_attributes(command, arg or "")
            except AttributeSyntaxError as exc:
                await self.push(str(exc))
        return None

    # What is announced.

    async def _announce(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Stand between aiosmtpd's EHLO and the handler's hook for it, to announce what else is served."""
        hook = self._own_ehlo_hook
        keywords = [f"250-{keyword}" for keyword in KEYWORDS]
        if self._is_secure and "250-STARTTLS" in responses:
            responses.remove("250-STARTTLS")  # RFC 3207 §4.2: there is TLS already
        if self._is_trusted:
            keywords += [f"250-{name} {' '.join(names)}" for name, names in ATTRIBUTE_NAMES.items()]
        if self._own_ehlo_hook_ver == "old":
            # The hook may say more by itself, which has to come after this.
            for line in responses[:-1] + keywords:
                await self.push(line)
            return [await hook(server, session, envelope, hostname)]
        told = responses[:-1] + keywords + responses[-1:]
        if hook is None:
            session.host_name = hostname
        else:
            told = await hook(server, session, envelope, hostname, told)
        return ["\r\n".join(told)]  # one packet


def _networks(networks: Sequence[Network] | Networks) -> Networks:
    return networks if isinstance(networks, Networks) else Networks(networks)


def _host(peer: object) -> str:
    return plain_host(host_of(peer))
