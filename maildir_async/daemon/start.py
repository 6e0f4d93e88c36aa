"""The start of the daemon: what it needs is got, or the command says why not; and given back at the end."""

import contextlib
import os
import signal
from typing import Final

from maildir_async.daemon import sockets
from maildir_async.daemon.descriptors import fitted
from maildir_async.daemon.locking import InUseError
from maildir_async.daemon.log import Log
from maildir_async.daemon.options import Settings
from maildir_async.daemon.pidfile import Pidfile
from maildir_async.daemon.recipients import Recipients
from maildir_async.daemon.sockets import Listener
from maildir_async.daemon.supervisor import SIGNALS, Supervisor

__all__ = ["DaemonError", "serve"]

#: Signals that would end a process, though nobody sends them to a daemon to end it (signal(7)). SIGQUIT and the like,
#: which ask for a core, do what they do. SIGUSR1 is the main process's; Python ignores SIGPIPE and SIGXFSZ.
IGNORED: Final = (
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPIPE,
    signal.SIGPWR,
    signal.SIGSTKFLT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)


class DaemonError(Exception):
    """The daemon cannot start.

    Attributes:
        code: the exit code, out of sysexits.h.

    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def serve(settings: Settings) -> int:
    """Be the daemon until SIGTERM or SIGINT, and return the exit code: 0, or 75 if somebody had to be killed.

    DaemonError if it cannot start; ValueError if there is something wrong with the layout.
    """
    recipients = Recipients(settings)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would not come, and nobody could be waited for
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell has it for its background
    signals = SIGNALS - {signal.SIGINT} if is_ignored else SIGNALS
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    log = Log(2, level=settings.log_level)
    settings = fitted(settings, log)
    with contextlib.ExitStack() as leaving:
        try:
            recipients.load()
        except OSError as exc:
            raise DaemonError(os.EX_NOINPUT, f"{exc.filename} cannot be read: {exc}") from exc
        except ValueError as exc:
            raise DaemonError(os.EX_CONFIG, str(exc)) from exc
        listeners = _listen(settings, log, leaving)
        metrics = _listen_for_metrics(settings, leaving)
        if settings.pidfile is not None:
            _write_pidfile(settings.pidfile, leaving)
        if not recipients.has_postmaster():  # RFC 5321 §4.5.1: there has to be one
            log.event("warning", "no_postmaster", hint="mail to postmaster is refused: see --postmaster")
        return Supervisor(settings, recipients, listeners, metrics, log, signals).run()


def _listen(settings: Settings, log: Log, leaving: contextlib.ExitStack) -> list[Listener]:
    try:
        listeners = sockets.passed(os.environ)
        if not listeners and settings.address is not None:
            listeners = sockets.bind(settings.address, settings.socket_mode, log=log)
    except InUseError as exc:
        raise DaemonError(os.EX_TEMPFAIL, str(exc)) from exc
    except OSError as exc:
        raise DaemonError(os.EX_CANTCREAT, f"cannot listen at {settings.address}: {exc}") from exc
    if not listeners:
        raise ValueError("ADDRESS is missing, and systemd has passed no socket")
    for listener in listeners:
        leaving.callback(listener.socket.close)
        leaving.callback(sockets.remove, listener)
    return listeners


def _listen_for_metrics(settings: Settings, leaving: contextlib.ExitStack) -> Listener | None:
    if settings.metrics is None:
        return None
    try:
        listener = sockets.bind(settings.metrics, settings.metrics_mode)[0]
    except InUseError as exc:
        raise DaemonError(os.EX_TEMPFAIL, str(exc)) from exc
    except OSError as exc:
        raise DaemonError(os.EX_CANTCREAT, f"cannot serve metrics at {settings.metrics}: {exc}") from exc
    leaving.callback(listener.socket.close)
    leaving.callback(sockets.remove, listener)
    listener.socket.setblocking(True)
    return listener


def _write_pidfile(path: str, leaving: contextlib.ExitStack) -> None:
    try:
        leaving.callback(Pidfile(path).remove)
    except InUseError as exc:
        raise DaemonError(os.EX_TEMPFAIL, str(exc)) from exc
    except OSError as exc:
        raise DaemonError(os.EX_CANTCREAT, f"cannot write {path}: {exc}") from exc
