"""The main process: holds the sockets, forks the workers, has others take the place of those that die.

It has no loop and no threads, since it forks, and it does next to nothing, since everything ends with it. Signals are
blocked throughout and asked for one by one: none can come at the wrong moment.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from maildir_async.daemon import sockets
from maildir_async.daemon.acceptor import dismiss_waiting
from maildir_async.daemon.board import YOUNG_S, Board
from maildir_async.daemon.check import Parts, changes
from maildir_async.daemon.children import Child, how_ended, tell_threads_failures
from maildir_async.daemon.descriptors import connections_of_one
from maildir_async.daemon.health import serve_metrics
from maildir_async.daemon.log import Log
from maildir_async.daemon.metrics import Counts
from maildir_async.daemon.notify import READY, STOPPING, notify, reloading
from maildir_async.daemon.peers import Peers
from maildir_async.daemon.settings import Settings
from maildir_async.daemon.sockets import Listener
from maildir_async.daemon.watch import Watch
from maildir_async.daemon.worker import GRACE_S, Post, work

__all__ = ["SIGNALS", "Supervisor"]

#: Seconds until another takes the place of a worker that has died young: at first, and at most. It doubles.
BACK_OFF_S: Final = (0.1, 30.0)

#: Seconds between looks at the workers, while they start or read their files again.
BRIEF_S: Final = 0.02

#: Seconds that a killed process gets to be gone. One that hangs in a call to a disk is not before that call ends.
DEATH_S: Final = 2.0

#: What the main process waits for.
SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD}


class Supervisor:
    """Has workers serve *listeners* until a signal says stop; *signals* are those that do what they are for.

    Args:
        settings: what the daemon is to do.
        parts: who there is, and the certificate.
        reread: reads the options again. OSError or ValueError if that fails.
        listeners: where.
        metrics: where metrics are served; None for nowhere.
        log: where it tells what happens.
        signals: those of `SIGNALS` that are not ignored. All are blocked.

    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        reread: Callable[[], Settings],
        listeners: Sequence[Listener],
        metrics: Listener | None,
        log: Log,
        signals: set[signal.Signals],
    ) -> None:
        self._settings = settings
        self._parts = parts
        self._reread = reread
        self._listeners = listeners
        self._metrics = metrics
        self._log = log
        self._signals = signals
        self._board = Board(settings.workers)
        self._counts = None if metrics is None else Counts(settings.workers)
        self._peers = None
        if settings.max_connections_per_address is not None:
            places = min(settings.max_connections, connections_of_one(settings))
            self._peers = Peers(settings.workers, places, settings.max_connections_per_address)
        self._watch = Watch(self._board, log)
        #: Comes to its end when this process does, in whatever way: nobody else has the end that is written to.
        self._life, self._our_end = os.pipe()
        self._children = [
            Child("worker", partial(self._work, slot), slot, fields={"worker": slot})
            for slot in range(settings.workers)
        ]
        if metrics is not None:
            self._children.append(Child("metrics", self._serve_metrics))
        self._is_starting = True
        self._reloading_since: float | None = None

    def run(self) -> int:
        """Return the exit code: 0, or 75 if a worker had to be killed."""
        self._log.event("info", "start", workers=self._settings.workers)
        try:
            while True:
                self._start_missing()
                self._tell_progress()
                self._watch.look(self._running())
                number = self._next_signal()
                if number in (signal.SIGTERM, signal.SIGINT):
                    return self._stop(signal.Signals(number).name)
                if number == signal.SIGHUP:
                    self._reload()
                elif number == signal.SIGUSR1:
                    self._tell_statistics()
                elif number == signal.SIGCHLD:
                    self._bury()
        finally:
            self._kill()  # who serves the metrics; no worker, unless this has failed
            os.close(self._our_end)
            os.close(self._life)

    def _running(self) -> list[Child]:
        return [child for child in self._children if child.pid is not None]

    def _next_signal(self) -> int | None:
        now = time.monotonic()
        waits = [self._watch.wait_s()]
        if self._is_starting or self._reloading_since is not None:
            waits.append(BRIEF_S)
        waits += [child.not_before - now for child in self._children if child.pid is None]
        told = signal.sigtimedwait(self._signals, max(0.0, min(waits)))
        return None if told is None else told.si_signo

    # Children.

    def _start_missing(self) -> None:
        for child in self._children:
            if child.pid is None and time.monotonic() >= child.not_before:
                try:
                    self._fork(child)
                except OSError as exc:  # too many processes, or no memory
                    self._log.event("error", "cannot_fork", error=str(exc))
                    self._put_off(child, is_young=True)

    def _fork(self, child: Child) -> None:
        pid = os.fork()
        if pid == 0:
            code = os.EX_SOFTWARE
            try:
                os.close(self._our_end)
                code = child.run()
            except BaseException as exc:
                told = traceback.extract_tb(exc.__traceback__)[-3:]
                where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(told))
                Log(2).event("critical", "crash", **child.fields, error=f"{type(exc).__name__}: {exc}", where=where)
            finally:
                os._exit(code)  # what waits further up is for the main process to do
        child.pid, child.born_at = pid, time.monotonic()
        if child.slot is not None:
            self._board.born(child.slot, is_failing=child.delay_s > 0)

    def _work(self, slot: int) -> int:
        tell_threads_failures(self._log)
        if self._metrics is not None:
            self._metrics.socket.close()
        post = Post(slot, self._listeners, self._parts, self._board, self._counts, self._peers, self._log, self._life)
        return work(self._settings, post)

    def _serve_metrics(self) -> int:
        tell_threads_failures(self._log)
        for listener in self._listeners:
            listener.socket.close()
        assert self._metrics is not None
        assert self._counts is not None
        # Its signals stay blocked: it ends when this process does.
        serve_metrics(self._metrics.socket, self._counts, self._board, self._life)
        return os.EX_OK

    def _bury(self) -> None:
        for child, status in self._dead():
            lived_s = time.monotonic() - child.born_at
            self._put_off(child, is_young=lived_s < YOUNG_S and status != 0)
            if child.slot is not None:
                if self._counts is not None:
                    self._counts.restarted(child.slot)
                if child.delay_s:
                    self._board.failing(child.slot)
            level = "error" if status else "info"
            self._log.event(
                level,
                f"{child.name}_died",
                **child.fields,
                **how_ended(status),
                lived_s=lived_s,
                again_in_s=child.delay_s,
            )

    def _dead(self) -> list[tuple[Child, int]]:
        """Return who has died, and how."""
        dead: list[tuple[Child, int]] = []
        for child in self._running():
            assert child.pid is not None
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                dead.append((child, status))
                child.pid = None
                if child.slot is not None:
                    self._board.leave(child.slot)
                    if self._peers is not None:
                        self._peers.leave(child.slot)
        return dead

    def _put_off(self, child: Child, *, is_young: bool) -> None:
        first, most = BACK_OFF_S
        child.delay_s = min(max(first, 2 * child.delay_s), most) if is_young else 0.0
        child.not_before = time.monotonic() + child.delay_s

    # What is told.

    def _tell_progress(self) -> None:
        if self._is_starting and all(map(self._board.is_present, range(self._settings.workers))):
            self._is_starting = False
            self._board.ready()
            metrics = None
            if self._metrics is not None:
                metrics = sockets.shown(self._metrics)
            self._log.event(
                "info",
                "ready",
                listening=[text for listener in self._listeners for text in sockets.all_shown(listener)],
                metrics=metrics,
            )
            notify(f"{READY}\nSTATUS={self._settings.workers} workers serve")
        if self._reloading_since is not None:
            is_late = time.monotonic() - self._reloading_since > GRACE_S
            if is_late or self._board.all_loaded():
                self._reloading_since = None
                notify(READY)

    def _tell_statistics(self) -> None:
        """Write a line of statistics to the log: at SIGUSR1, whose default would be to end this."""
        told = {} if self._counts is None else self._counts.summary()
        workers = sum(child.slot is not None for child in self._running())
        ailing = self._board.ailing()
        self._log.event(
            "info", "statistics", workers=workers, connections=self._board.connections, ailing=ailing, **told
        )

    # Signals.

    def _reload(self) -> None:
        """Read all files here, for workers to come, and then have those that there are do so.

        What has been changed in the file of options is looked at, and named: it needs a restart.
        """
        notify(reloading())
        self._reloading_since = time.monotonic()
        try:
            changed = changes(self._settings, self._reread())
            self._parts.load()
        except (OSError, ValueError) as exc:
            self._log.event("error", "reload_failed", error=str(exc))
            return
        if changed:
            self._log.event("warning", "restart_needed", options=changed)
        self._board.want_next()
        self._signal(signal.SIGHUP)
        self._log.event("info", "reload")

    def _signal(self, number: int) -> None:
        for child in self._running():
            if child.slot is not None and child.pid is not None:
                os.kill(child.pid, number)

    def _stop(self, signal_name: str) -> int:
        """Have the workers drain; return when they have ended. Those that have not in time, or at the second signal,
        are killed.
        """
        notify(STOPPING)
        self._log.event("info", "stop", signal=signal_name)
        self._board.end()
        self._signal(signal.SIGTERM)  # first: nothing that follows is to keep messages from being finished in time
        for listener in self._listeners:
            sockets.remove(listener)
            dismiss_waiting(listener)  # the workers may have stopped before: systemd tells all of us at once
            listener.socket.close()  # or clients would wait in a queue where nobody comes for them
        deadline = time.monotonic() + self._settings.drain_timeout_s + GRACE_S
        code = os.EX_OK
        while any(child.slot is not None for child in self._running()):
            told = signal.sigtimedwait(self._signals, max(0.0, deadline - time.monotonic()))
            if told is None or told.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._kill()
                code = os.EX_TEMPFAIL
            for child, status in self._dead():
                if status:
                    code = os.EX_TEMPFAIL
                    self._log.event("error", f"{child.name}_died", **child.fields, **how_ended(status))
        self._log.event("info", "stopped")
        return code

    def _kill(self) -> None:
        for child in self._running():
            if child.pid is not None:
                if child.slot is not None:
                    self._log.event("warning", "worker_killed", **child.fields)
                os.kill(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + DEATH_S
        while self._running() and time.monotonic() < deadline:
            self._dead()
            if self._running():
                signal.sigtimedwait({signal.SIGCHLD}, BRIEF_S)
        for child in self._running():  # it waits for a disk that does not answer, and dies when that does
            self._log.event("error", "cannot_kill", **child.fields, name=child.name)
            child.pid = None
