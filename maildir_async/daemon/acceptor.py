"""Accepting connections: fairly among the workers, up to a limit, until told to stop."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final

from maildir_async.daemon.board import Board
from maildir_async.daemon.log import Log
from maildir_async.daemon.peers import Peers, key_of
from maildir_async.daemon.sockets import BACKLOG, Listener
from maildir_async.smtp.proxied import Networks
from maildir_async.smtp.trace import host_of

__all__ = ["Acceptor", "dismiss_waiting"]

TOO_MANY: Final = b"421 4.3.2 Too many connections\r\n"
#: RFC 3463 §3.8: a security policy.
TOO_MANY_OF_ONE: Final = b"421 4.7.0 Too many connections from your address\r\n"
SHUTTING_DOWN: Final = b"421 4.3.2 Service shutting down\r\n"

#: Seconds that a worker leaves a connection to one that has fewer. Long enough for that to wake up, too short to feel.
YIELD_S: Final = 0.002

#: Seconds to wait when there are no descriptors or buffers for another connection, as asyncio does.
SHORTAGE_S: Final = 1.0

_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_NOBODY_THERE: Final = {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO}


class Acceptor:
    """Accepts connections at *listeners* on the running loop, one a turn, and gives them to *adopt*.

    With *peers*, a connection comes with its place among them, which `lost` gives back; one from *proxies*, a set for
    each of the settings' listeners, is not counted. *max_own* is what this worker has descriptors for.

    All workers wait at the same sockets, and the kernel wakes them all. Who has more connections than another steps
    back for a moment; so a burst is shared out, though whoever is awake would be the first each time.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        adopt: Callable[[socket.socket, int | None, Listener], object],
        *,
        board: Board,
        slot: int,
        max_connections: int,
        turned_away: Callable[[], object],
        log: Log,
        max_own: int | None = None,
        peers: Peers | None = None,
        proxies: Sequence[Networks] = (),
        address_turned_away: Callable[[], object] | None = None,
    ) -> None:
        self._listeners = listeners
        self._adopt = adopt
        self._board = board
        self._slot = slot
        self._max_connections = max_connections
        self._turned_away = turned_away
        self._log = log
        self._max_own = max_connections if max_own is None else max_own
        self._peers = peers
        self._proxies = proxies
        self._address_turned_away = address_turned_away
        self._loop = asyncio.get_running_loop()
        self._connections = 0
        self._stopped = False

    def start(self) -> None:
        """Begin."""
        if self._peers is not None:
            self._peers.enter(self._slot)
        self._board.enter(self._slot)
        for listener in self._listeners:
            self._wait(listener)

    def lost(self, place: int | None = None) -> int:
        """Note that one of the connections, with its *place* among the peers, is over. Return how many there are."""
        self._connections -= 1
        if place is not None and self._peers is not None:
            self._peers.give_back(place)
        self._tell()
        return self._connections

    def stop(self) -> None:
        """Accept no more. Who waits in a queue that ends with the daemon is told so; else others come for them."""
        self._stopped = True
        self._board.leave(self._slot)
        for listener in self._listeners:
            self._loop.remove_reader(listener.socket)
            if self._board.is_ending:
                dismiss_waiting(listener)
            listener.socket.close()

    def _wait(self, listener: Listener) -> None:
        if not self._stopped:
            self._loop.add_reader(listener.socket, self._readable, listener)

    def _readable(self, listener: Listener) -> None:
        if self._board.another_has_fewer(self._slot, self._connections):
            self._loop.remove_reader(listener.socket)
            self._loop.call_later(YIELD_S, self._after_yielding, listener)
        else:
            self._accept(listener)

    def _after_yielding(self, listener: Listener) -> None:
        self._wait(listener)
        self._accept(listener)  # the others have had their chance

    def _accept(self, listener: Listener) -> None:
        if self._stopped:
            return
        try:
            connection, _ = listener.socket.accept()
        except OSError as exc:
            if exc.errno in _SHORTAGES:
                self._log.event("error", "cannot_accept", error=str(exc))
                self._loop.remove_reader(listener.socket)
                self._loop.call_later(SHORTAGE_S, self._wait, listener)
            elif exc.errno not in _NOBODY_THERE:
                raise
            return
        if self._connections >= self._max_own or self._board.connections >= self._max_connections:
            _dismiss(connection, TOO_MANY)
            self._turned_away()
            return
        place = None
        if self._peers is not None and (key := key_of(connection)) and not self._is_proxy(connection, listener):
            place = self._peers.take(key)
            if place is None:
                _dismiss(connection, TOO_MANY_OF_ONE)
                assert self._address_turned_away is not None
                self._address_turned_away()
                return
        connection.setblocking(False)
        self._connections += 1
        self._tell()
        self._adopt(connection, place, listener)

    def _is_proxy(self, connection: socket.socket, listener: Listener) -> bool:
        """Whether the peer is one that connects for many clients, whom its PROXY header will tell."""
        return bool(self._proxies) and host_of(connection.getpeername()) in self._proxies[listener.number]

    @property
    def connections(self) -> int:
        """How many there are."""
        return self._connections

    def _tell(self) -> None:
        if not self._stopped:
            self._board.tell(self._slot, self._connections)


def dismiss_waiting(listener: Listener) -> None:
    """Tell who waits at *listener* that nobody comes for them; nothing in systemd's queue, which goes on."""
    if not listener.passed:
        with contextlib.suppress(OSError):
            for _ in range(BACKLOG):  # and not for as long as others come
                _dismiss(listener.socket.accept()[0], SHUTTING_DOWN)


def _dismiss(connection: socket.socket, reply: bytes) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(reply)  # a line has room in a new connection's buffer
        connection.shutdown(socket.SHUT_WR)
