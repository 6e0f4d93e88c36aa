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
from typing import Any, Final, Protocol

from maildir_async.daemon.acceptor import Acceptor
from maildir_async.daemon.board import Board
from maildir_async.daemon.log import Log, LogHandler
from maildir_async.daemon.metrics import Counts, Metrics, NoMetrics, Tally
from maildir_async.daemon.options import Settings
from maildir_async.daemon.recipients import Recipients
from maildir_async.daemon.sockets import Listener
from maildir_async.disk.threads import Crew
from maildir_async.group_commit import GroupCommit
from maildir_async.receive.spool import CHUNK_SIZE
from maildir_async.smtp.handler import MaildirHandler
from maildir_async.smtp.message import Receipt
from maildir_async.smtp.streaming import StreamingLMTP, StreamingSMTP

__all__ = ["GRACE_S", "Post", "work"]

#: Seconds after the drain time-out for what cannot be interrupted: messages that are on the disk already.
GRACE_S: Final = 5.0

#: Seconds between looks at how many messages are in flight, for the metrics.
LOOK_S: Final = 1.0

#: What may be a fault of the site's is a warning.
_LEVELS: Final = {"delivered": "info", "deferred": "warning", "refused": "info"}


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker is given by the main process.

    Attributes:
        slot: its number, from 0.
        listeners: where it accepts connections.
        recipients: who there is.
        board: what it tells the others.
        counts: what it counts in for the metrics, if there are any.
        log: where it tells what happens.
        life: a pipe that comes to its end with the main process.

    """

    slot: int
    listeners: Sequence[Listener]
    recipients: Recipients
    board: Board
    counts: Counts | None
    log: Log
    life: int


def work(settings: Settings, post: Post) -> int:
    """Be a worker, and return the exit code. The signals that concern it are blocked when this is called."""
    post.log.write_behind()
    logging.basicConfig(handlers=[LogHandler(post.log)], level=logging.WARNING, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the main process, which tells us
    try:
        worker = _Worker(settings, post)
        asyncio.run(worker.run())
        worker.commit.wait_idle(GRACE_S)  # what has been given up leaves nothing in tmp/
        return os.EX_OK
    finally:
        post.log.close(GRACE_S)


class _Session(Protocol):
    """The part of `StreamingSMTP` that this needs."""

    transport: Any

    def shut_down(self) -> None: ...


class _Worker:
    def __init__(self, settings: Settings, post: Post) -> None:
        self._settings = settings
        self._post = post
        self._log = post.log
        self._sessions: set[_Session] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._reloading: asyncio.Task[None] | None = None
        self._turned_away = 0
        self._is_draining = False
        share = -(-settings.max_in_flight // settings.workers)
        self.commit = GroupCommit(
            max_pending=share,
            max_pending_bytes=share * 2 * CHUNK_SIZE,  # what GroupCommit reckons for each
            wait=False,  # a client that waits for a place does so by coming again
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD))
        self._serve = self._session_factory()
        self._acceptor = Acceptor(
            self._post.listeners,
            self._adopt,
            board=self._post.board,
            slot=self._post.slot,
            max_connections=self._settings.max_connections,
            turned_away=self._turn_away,
            log=self._log,
        )
        self._acceptor.start()
        looking = asyncio.create_task(self._look()) if self._settings.metrics is not None else None
        await stop.wait()
        await self._drain()
        if looking is not None:
            looking.cancel()
        await self.commit.aclose()

    # Sessions.

    def _session_factory(self) -> Any:
        settings, worker = self._settings, self
        handler = MaildirHandler(
            self._post.recipients.resolve,
            newline=settings.newline,
            return_path=settings.return_path,
            delivered_to=settings.delivered_to,
            original_to=settings.original_to,
            received=settings.received,
            per_recipient_headers=settings.per_recipient_headers,
            commit=self.commit,
            durability=settings.durability,
            create=self._post.recipients.may_create,
            require_mount=settings.require_mount,
            on_receipt=self._receipt,
        )
        base: Any = StreamingLMTP if settings.lmtp else StreamingSMTP

        class Session(base):  # type: ignore[misc]  # which of the two is known at run time only
            def connection_lost(self, error: Exception | None) -> None:
                super().connection_lost(error)
                worker._lost(self)

        return lambda: Session(
            handler,
            hostname=settings.hostname,
            data_size_limit=settings.size_limit,
            line_length_limit=settings.line_length_limit,
            timeout=settings.timeout_s,
            message_timeout=settings.message_timeout_s,
            loop=asyncio.get_running_loop(),
        )

    def _adopt(self, connection: socket.socket) -> None:
        self._tally.connected(self._acceptor.connections)
        task = asyncio.create_task(self._begin(connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _begin(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, session = await loop.connect_accepted_socket(self._serve, connection)
        except BaseException as exc:
            connection.close()
            self._over()
            if not isinstance(exc, OSError):
                raise
            return
        if session.transport is None:  # it has gone already, and been counted out
            return
        self._sessions.add(session)
        if self._is_draining:
            session.shut_down()

    def _lost(self, session: _Session) -> None:
        self._sessions.discard(session)
        self._over()

    def _over(self) -> None:
        self._tally.disconnected(self._acceptor.lost())
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
                if session.transport is not None:
                    session.transport.abort()  # and the deliveries abort, and leave nothing in tmp/
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S / 2):
                    await self._ended.wait()

    # What is told.

    def _receipt(self, receipt: Receipt) -> None:
        self._tally.receipt(receipt)
        done = receipt.delivered
        self._log.event(
            _LEVELS[receipt.verdict],
            receipt.verdict,
            worker=self._post.slot,
            id=receipt.message_id,
            peer=receipt.client.peer,
            helo=receipt.client.helo,
            **{"from": f"<{receipt.client.mail_from}>"},
            to=receipt.address,
            maildir=receipt.maildir,
            key=done and done.key,
            size=done.size if done else receipt.size or None,
            wire_size=done and done.wire_size,
            durability=done and done.durability.value,
            queued_s=done and done.queued_s,
            commit_s=done and done.commit_s,
            seconds=receipt.seconds if receipt.message_id else None,
            reply=receipt.reply or None,
            warnings=done and done.warnings,
            error=receipt.reason or None,
        )

    def _turn_away(self) -> None:
        self._tally.turned_away()
        self._turned_away += 1
        if self._turned_away == 1:  # a line for each would be what an attacker wants
            asyncio.get_running_loop().call_later(1.0, self._tell_turned_away)

    def _tell_turned_away(self) -> None:
        self._log.event("warning", "too_many_connections", worker=self._post.slot, turned_away=self._turned_away)
        self._turned_away = 0

    async def _look(self) -> None:
        while True:
            self._tally.in_flight(self.commit.statistics().pending)
            await asyncio.sleep(LOOK_S)

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
                await asyncio.get_running_loop().run_in_executor(crew, self._post.recipients.load)
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
