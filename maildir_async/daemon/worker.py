"""A worker: one process with one loop, that serves connections until it is told to end, or the main process is gone."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from maildir_async.daemon.acceptor import Acceptor
from maildir_async.daemon.board import BEAT_S, Board
from maildir_async.daemon.check import Parts
from maildir_async.daemon.descriptors import connections_of_one
from maildir_async.daemon.endpoint import Endpoint
from maildir_async.daemon.log import Log, LogHandler
from maildir_async.daemon.metrics import Counts, Metrics, NoMetrics, Tally
from maildir_async.daemon.peers import Peers
from maildir_async.daemon.settings import Settings
from maildir_async.daemon.sockets import Listener
from maildir_async.daemon.told import tell_cut_off, tell_receipt
from maildir_async.disk.threads import Crew
from maildir_async.format.quota import quota_of
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.smtp.handler import MaildirHandler
from maildir_async.smtp.message import CutOff, Receipt
from maildir_async.smtp.proxied import Networks, ProxyHeaderError
from maildir_async.smtp.trace import host_of

__all__ = ["GRACE_S", "Post", "work"]

#: Seconds after the drain time-out for what cannot be interrupted: messages that are on the disk already.
GRACE_S: Final = 5.0

#: What the main process has blocked for itself.
UNBLOCKED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)

#: Seconds for those who are cut off at the drain time-out to read that they are. Part of `GRACE_S`.
FAREWELL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker is given by the main process.

    Attributes:
        slot: its number, from 0.
        listeners: where it accepts connections.
        parts: who there is, and the certificate.
        board: what it tells the others.
        counts: what it counts in for the metrics, if there are any.
        peers: where connections of one client are counted, if they are limited.
        log: where it tells what happens.
        life: a pipe that comes to its end with the main process.

    """

    slot: int
    listeners: Sequence[Listener]
    parts: Parts
    board: Board
    counts: Counts | None
    peers: Peers | None
    log: Log
    life: int


def work(settings: Settings, post: Post) -> int:
    """Be a worker, and return the exit code. The signals that concern it are blocked when this is called."""
    post.log.write_behind()
    logging.basicConfig(handlers=[LogHandler(post.log)], level=logging.WARNING, force=True)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which the main process answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the main process, which tells us
    try:
        worker = _Worker(settings, post)
        asyncio.run(worker.run())
        worker.commit.wait_idle(GRACE_S)  # what has been given up leaves nothing in tmp/
        return os.EX_OK
    finally:
        post.log.close(GRACE_S)


def _peer_of(connection: socket.socket) -> str | None:
    with contextlib.suppress(OSError):
        return host_of(connection.getpeername())
    return None


class _Session(Protocol):
    """The part of `StreamingSMTP` that this needs."""

    transport: Any
    session: Any
    place: int | None

    def shut_down(self) -> None: ...
    def end_now(self) -> None: ...


class _Worker:
    def __init__(self, settings: Settings, post: Post) -> None:
        self._settings = settings
        self._post = post
        self._log = post.log
        self._sessions: set[_Session] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._reloading: asyncio.Task[None] | None = None
        self._turned_away = {"connections": 0, "of_one_address": 0}
        self._is_draining = False
        share = -(-settings.max_in_flight // settings.workers)
        self.commit = GroupCommit(
            max_pending=share,
            max_pending_bytes=share * 2 * CHUNK_SIZE,  # what GroupCommit reckons for each
            wait=settings.busy_wait_s > 0,  # which bounds the wait
            helper_process=settings.helper_process,
        )
        self._tally: Tally = NoMetrics() if post.counts is None else Metrics(post.counts, post.slot)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        self._ended = asyncio.Event()  # when draining: the last session is over
        threading.Thread(target=self._outlive_nobody, args=(loop, stop), name="life", daemon=True).start()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, UNBLOCKED)
        self._by_listener = self._endpoints()
        self._acceptor = Acceptor(
            self._post.listeners,
            self._adopt,
            board=self._post.board,
            slot=self._post.slot,
            max_connections=self._settings.max_connections,
            turned_away=self._turn_away,
            log=self._log,
            max_own=connections_of_one(self._settings),
            peers=self._post.peers,
            proxies=[Networks(own.proxy_protocol) for own in self._settings.listeners],
            address_turned_away=self._turn_address_away,
        )
        self._post.board.beat(self._post.slot)
        self._acceptor.start()
        beating = asyncio.create_task(self._beat())
        await stop.wait()
        await self._drain()
        beating.cancel()
        await self.commit.aclose()

    # Sessions.

    def _endpoints(self) -> list[Endpoint]:
        settings, tls = self._settings, self._post.parts.tls
        handler = MaildirHandler(
            self._post.parts.recipients.resolve,
            newline=settings.newline,
            return_path=settings.return_path,
            delivered_to=settings.delivered_to,
            original_to=settings.original_to,
            received=settings.received,
            per_recipient_headers=settings.per_recipient_headers,
            commit=self.commit,
            busy_wait=timedelta(seconds=settings.busy_wait_s),
            durability=settings.durability,
            create=self._post.parts.recipients.may_create,
            require_mount=settings.require_mount,
            inherit_mode=settings.inherit_mode,
            detail_folder=settings.detail_folder,
            junk_header=settings.junk_header,
            quota=quota_of(settings.quota, is_permanent=settings.quota_permanent),
            on_receipt=self._receipt,
            on_cut_off=self._cut_off,
        )
        replied = self._tally.replied if isinstance(self._tally, Metrics) else None
        return [Endpoint(settings, own, handler, tls=tls, owner=self, replied=replied) for own in settings.listeners]

    def _adopt(self, connection: socket.socket, place: int | None, listener: Listener) -> None:
        self._tally.connected(self._acceptor.connections)
        task = asyncio.create_task(self._begin(connection, place, self._by_listener[listener.number]))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _begin(self, connection: socket.socket, place: int | None, endpoint: Endpoint) -> None:
        try:
            session = await endpoint.begin(connection, place)
        except BaseException as exc:
            peer = _peer_of(connection)
            connection.close()
            self._over(place)
            if isinstance(exc, ProxyHeaderError):
                self._log.event("warning", "no_proxy_header", worker=self._post.slot, peer=peer, error=str(exc))
            elif isinstance(exc, OSError):  # ssl.SSLError is one
                self._log.event("debug", "not_begun", worker=self._post.slot, peer=peer, error=str(exc))
            else:
                raise
            return
        if session.transport is None:  # it has gone already, and been counted out
            return
        self._sessions.add(session)
        if self._log.is_debug:
            self._log.event("debug", "connected", worker=self._post.slot, peer=host_of(session.session.peer))
        if self._is_draining:
            session.shut_down()

    def lost(self, session: _Session) -> None:
        """Called when the connection of *session* is over."""
        self._sessions.discard(session)
        if self._log.is_debug and session.session is not None:
            self._log.event("debug", "disconnected", worker=self._post.slot, peer=host_of(session.session.peer))
        self._over(session.place)

    def tls_begun(self, session: _Session) -> None:
        """Called when *session* has become secure."""
        self._tally.tls_begun()
        if self._log.is_debug:
            self._log.event("debug", "tls_begun", worker=self._post.slot, peer=host_of(session.session.peer))

    def _over(self, place: int | None) -> None:
        self._tally.disconnected(self._acceptor.lost(place))
        if self._is_draining and not self._acceptor.connections:
            self._ended.set()

    async def _drain(self) -> None:
        self._is_draining = True
        self._acceptor.stop()
        for session in list(self._sessions):
            session.shut_down()
        if not self._acceptor.connections:
            self._ended.set()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._ended.wait()
        except TimeoutError:
            self._log.event("warning", "drain_timed_out", worker=self._post.slot, sessions=len(self._sessions))
            for session in list(self._sessions):
                session.end_now()  # and the deliveries abort, and leave nothing in tmp/
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await self._ended.wait()
            for session in list(self._sessions):
                if session.transport is not None:
                    session.transport.abort()  # its client does not read what it is told
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S / 2):
                    await self._ended.wait()

    # What is told.

    def _receipt(self, receipt: Receipt) -> None:
        self._tally.receipt(receipt)
        tell_receipt(self._log, self._post.slot, receipt)

    def _cut_off(self, cut_off: CutOff) -> None:
        self._tally.cut_off()
        tell_cut_off(self._log, self._post.slot, cut_off)

    def _turn_away(self) -> None:
        self._tally.turned_away()
        self._tell_later("connections")

    def _turn_address_away(self) -> None:
        self._tally.address_turned_away()
        self._tell_later("of_one_address")

    def _tell_later(self, why: str) -> None:
        self._turned_away[why] += 1
        if sum(self._turned_away.values()) == 1:  # a line for each would be what an attacker wants
            asyncio.get_running_loop().call_later(1.0, self._tell_turned_away)

    def _tell_turned_away(self) -> None:
        of_one = self._turned_away["of_one_address"]
        self._log.event(
            "warning",
            "too_many_connections",
            worker=self._post.slot,
            turned_away=sum(self._turned_away.values()),
            of_one_address=of_one or None,
        )
        self._turned_away = dict.fromkeys(self._turned_away, 0)

    async def _beat(self) -> None:
        """Tell the main process that the loop comes round, and the metrics how the commits are."""
        while True:
            self._post.board.beat(self._post.slot)
            if self._post.counts is not None:
                self._tally.commit(self.commit.statistics())
            await asyncio.sleep(BEAT_S)

    # What comes from the main process.

    def _reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        board, slot = self._post.board, self._post.slot
        crew = Crew(1, "maildir-load")
        while True:
            generation = board.wanted
            try:
                await asyncio.get_running_loop().run_in_executor(crew, self._post.parts.load)
            except (OSError, ValueError) as exc:
                self._log.event("error", "reload_failed", worker=slot, error=str(exc))
            else:
                self._log.event("info", "reloaded", worker=slot)
            board.loaded(slot, generation)
            if board.wanted == generation:  # else there has been another signal meanwhile
                return

    def _outlive_nobody(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """End when the main process has, however that came to pass. In a thread, since the loop may hang."""
        with contextlib.suppress(OSError):
            os.read(self._post.life, 1)
        self._post.board.end()  # which the main process may not have come to
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the end is near
            loop.call_soon_threadsafe(stop.set)
        time.sleep(self._settings.drain_timeout_s + GRACE_S)
        os._exit(os.EX_TEMPFAIL)
