"""One listener as a worker has it: how a connection becomes a session."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from maildir_async.daemon.settings import ListenerSettings, Settings
from maildir_async.daemon.tls import HANDSHAKE_S, Tls
from maildir_async.smtp.clients import read_proxy_header
from maildir_async.smtp.proxied import Networks, Peer
from maildir_async.smtp.streaming import StreamingLMTP, StreamingSMTP

__all__ = ["Endpoint", "SessionOwner"]


class SessionOwner(Protocol):
    """What a worker is to its sessions."""

    def lost(self, session: Any) -> None:
        """Called when the connection of *session* is over."""
        ...

    def tls_begun(self, session: Any) -> None:
        """Called when *session* has become secure."""
        ...


class Endpoint:
    """Makes sessions of what is accepted at one listener.

    Args:
        settings: what is the same for all listeners.
        own: what is this one's.
        handler: takes the messages.
        tls: what connections are secured by, or None.
        owner: told of the sessions.
        replied: called with each reply, if somebody counts them.

    """

    def __init__(
        self,
        settings: Settings,
        own: ListenerSettings,
        handler: Any,
        *,
        tls: Tls | None,
        owner: SessionOwner,
        replied: Callable[[str | bytes], object] | None,
    ) -> None:
        self._own = own
        self._tls = tls
        self._proxies: Final = Networks(own.proxy_protocol)
        self._handler = handler
        self._class = _session_class(own, owner, replied)
        self._options: dict[str, Any] = {
            "hostname": settings.hostname,
            "ident": settings.ident,
            "data_size_limit": settings.size_limit,
            "line_length_limit": settings.line_length_limit,
            "timeout": settings.timeout_s,
            "message_timeout": settings.message_timeout_s,
            "max_errors": settings.max_errors,
            "accept_bare_lf": settings.accept_bare_lf,
            "trusted_peers": Networks(own.trusted_peers),
        }

    async def begin(self, connection: socket.socket, place: int | None) -> Any:
        """Return the session of a *connection*, which has *place* among the peers.

        OSError or `ProxyHeaderError` if it comes to nothing; the connection is the caller's to close then.
        """
        loop = asyncio.get_running_loop()
        if self._own.implicit_tls:
            assert self._tls is not None
            # The header comes before TLS: proxy-protocol.txt §2.
            peer = await read_proxy_header(connection, self._proxies) if self._proxies else None
            _, session = await loop.connect_accepted_socket(
                lambda: self._session(place, peer),
                connection,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        else:
            _, session = await loop.connect_accepted_socket(lambda: self._session(place, None), connection)
        return session

    def _session(self, place: int | None, peer: Peer | None) -> Any:
        options = dict(self._options, loop=asyncio.get_running_loop(), peer=peer)
        if not self._own.implicit_tls:
            options["proxy_protocol"] = self._proxies
            if self._tls is not None:
                options |= {"tls_context": self._tls.context, "require_starttls": self._own.require_tls}
        session = self._class(self._handler, **options)
        session.place = place
        return session


def _session_class(own: ListenerSettings, owner: SessionOwner, replied: Callable[[str | bytes], object] | None) -> Any:
    base: Any = StreamingLMTP if own.lmtp else StreamingSMTP

    class Session(base):  # type: ignore[misc]  # which of the two is known at run time only
        place: int | None = None  # among the peers

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            owner.lost(self)

        def tls_begun(self) -> None:
            owner.tls_begun(self)

    if replied is None:
        return Session
    count = replied

    class CountingSession(Session):
        async def push(self, status: str | bytes) -> None:
            count(status)
            await super().push(status)

    return CountingSession
