"""The main process: holds the sockets, forks the workers, has others take the place of those that die.

It has no loop and no threads, since it forks, and it does next to nothing, since everything ends with it. Signals are
blocked throughout and asked for one by one: none can come at the wrong moment.
"""

import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from maildir_async.daemon import sockets
from maildir_async.daemon.acceptor import dismiss_waiting
from maildir_async.daemon.board import Board
from maildir_async.daemon.log import Log
from maildir_async.daemon.metrics import Counts, serve_metrics
from maildir_async.daemon.notify import READY, STOPPING, notify, reloading
from maildir_async.daemon.options import Settings
from maildir_async.daemon.recipients import Recipients
from maildir_async.daemon.sockets import Listener
from maildir_async.daemon.worker import GRACE_S, Post, work

__all__ = ["SIGNALS", "Supervisor"]

#: Seconds until another takes the place of a worker that has died young: at first, and at most. It doubles.
BACK_OFF_S: Final = (0.1, 30.0)

#: A worker that has lived for so many seconds has not died young.
YOUNG_S: Final = 5.0

#: Seconds between looks at the workers, while they start or read their files again.
LOOK_S: Final = 0.02

#: Seconds that a killed process gets to be gone. One that hangs in a call to a disk is not before that call ends.
DEATH_S: Final = 2.0

#: What the main process waits for.
SIGNALS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


@dataclass(slots=True)
class _Child:
    """A process that there is to be, always."""

    name: str
    run: Callable[[], int]
    slot: int | None = None  # of a worker
    pid: int | None = None
    born_at: float = 0.0
    delay_s: float = 0.0
    not_before: float = 0.0
    fields: dict[str, object] = field(default_factory=dict[str, object])


class Supervisor:
    """Has workers serve *listeners* until a signal says stop; *signals* are those that do what they are for.

    Args:
        settings: what the daemon is to do.
        recipients: who there is.
        listeners: where.
        metrics: where metrics are served; None for nowhere.
        log: where it tells what happens.
        signals: those of `SIGNALS` that are not ignored. All are blocked.

    """

    def __init__(
        self,
        settings: Settings,
        recipients: Recipients,
        listeners: Sequence[Listener],
        metrics: socket.socket | None,
        log: Log,
        signals: set[signal.Signals],
    ) -> None:
        self._settings = settings
        self._recipients = recipients
        self._listeners = listeners
        self._metrics = metrics
        self._log = log
        self._signals = signals
        self._board = Board(settings.workers)
        self._counts = None if metrics is None else Counts(settings.workers)
        #: Comes to its end when this process does, in whatever way: nobody else has the end that is written to.
        self._life, self._our_end = os.pipe()
        self._children = [
            _Child("worker", partial(self._work, slot), slot, fields={"worker": slot})
            for slot in range(settings.workers)
        ]
        if metrics is not None:
            self._children.append(_Child("metrics", self._serve_metrics))
        self._is_starting = True
        self._reloading_since: float | None = None

    def run(self) -> int:
        """Return the exit code: 0, or 75 if a worker had to be killed."""
        self._log.event("info", "start", workers=self._settings.workers)
        try:
            while True:
                self._start_missing()
                self._tell_progress()
                number = self._next_signal()
                if number in (signal.SIGTERM, signal.SIGINT):
                    return self._stop(signal.Signals(number).name)
                if number == signal.SIGHUP:
                    self._reload()
                elif number == signal.SIGCHLD:
                    self._bury()
        finally:
            self._kill()  # who serves the metrics; no worker, unless this has failed
            os.close(self._our_end)
            os.close(self._life)

    def _running(self) -> list[_Child]:
        return [child for child in self._children if child.pid is not None]

    def _next_signal(self) -> int | None:
        timeout_s = LOOK_S if self._is_starting or self._reloading_since is not None else None
        for child in self._children:
            if child.pid is None:
                left_s = max(0.0, child.not_before - time.monotonic())
                timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        if timeout_s is None:
            return signal.sigwait(self._signals)
        told = signal.sigtimedwait(self._signals, timeout_s)
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

    def _fork(self, child: _Child) -> None:
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

    def _work(self, slot: int) -> int:
        _tell_threads_failures(self._log)
        if self._metrics is not None:
            self._metrics.close()
        post = Post(slot, self._listeners, self._recipients, self._board, self._counts, self._log, self._life)
        return work(self._settings, post)

    def _serve_metrics(self) -> int:
        _tell_threads_failures(self._log)
        for listener in self._listeners:
            listener.socket.close()
        assert self._metrics is not None
        assert self._counts is not None
        # Its signals stay blocked: it ends when this process does.
        serve_metrics(self._metrics, self._counts, self._life)
        return os.EX_OK

    def _bury(self) -> None:
        for child, status in self._dead():
            lived_s = time.monotonic() - child.born_at
            self._put_off(child, is_young=lived_s < YOUNG_S and status != 0)
            level = "error" if status else "info"
            self._log.event(
                level, f"{child.name}_died", **child.fields, **_how(status), lived_s=lived_s, again_in_s=child.delay_s
            )

    def _dead(self) -> list[tuple[_Child, int]]:
        """Return who has died, and how."""
        dead: list[tuple[_Child, int]] = []
        for child in self._running():
            assert child.pid is not None
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                dead.append((child, status))
                child.pid = None
                if child.slot is not None:
                    self._board.leave(child.slot)
        return dead

    def _put_off(self, child: _Child, *, is_young: bool) -> None:
        first, most = BACK_OFF_S
        child.delay_s = min(max(first, 2 * child.delay_s), most) if is_young else 0.0
        child.not_before = time.monotonic() + child.delay_s

    # What is told.

    def _tell_progress(self) -> None:
        if self._is_starting and all(map(self._board.is_present, range(self._settings.workers))):
            self._is_starting = False
            metrics = None
            if self._metrics is not None:
                metrics = sockets.shown(Listener(self._metrics))
            self._log.event(
                "info",
                "ready",
                listening=[text for listener in self._listeners for text in sockets.all_shown(listener)],
                metrics=metrics,
            )
            notify(READY)
        if self._reloading_since is not None:
            is_late = time.monotonic() - self._reloading_since > GRACE_S
            if is_late or self._board.all_loaded():
                self._reloading_since = None
                notify(READY)

    # Signals.

    def _reload(self) -> None:
        """Read users and map here, for workers to come, and then have those that there are do so."""
        notify(reloading())
        self._reloading_since = time.monotonic()
        try:
            self._recipients.load()
        except (OSError, ValueError) as exc:
            self._log.event("error", "reload_failed", error=str(exc))
            return
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
                    self._log.event("error", f"{child.name}_died", **child.fields, **_how(status))
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
                signal.sigtimedwait({signal.SIGCHLD}, LOOK_S)
        for child in self._running():  # it waits for a disk that does not answer, and dies when that does
            self._log.event("error", "cannot_kill", **child.fields, name=child.name)
            child.pid = None


def _how(status: int) -> dict[str, object]:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return {"signal": next((known.name for known in signal.Signals if known == number), str(number))}
    return {"exit_code": os.waitstatus_to_exitcode(status)}


def _tell_threads_failures(log: Log) -> None:
    def tell(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread is not None else None
        log.event("error", "thread_failed", thread=name, error=f"{args.exc_type.__name__}: {args.exc_value}")

    threading.excepthook = tell
