"""The start of the daemon: what it needs is got, or the command says why not; and given back at the end."""

import contextlib
import os
import resource
import signal
import socket
from typing import Final

from maildir_async.daemon import sockets
from maildir_async.daemon.log import Log
from maildir_async.daemon.options import Settings
from maildir_async.daemon.recipients import Recipients
from maildir_async.daemon.sockets import InUseError, Listener
from maildir_async.daemon.supervisor import SIGNALS, Supervisor
from maildir_async.disk.paths import absolute

__all__ = ["DaemonError", "serve"]

#: Descriptors that the daemon would like to be able to have: some for each connection and each message.
DESCRIPTORS: Final = 65536


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
    log = Log(2)
    _raise_limit()
    with contextlib.ExitStack() as leaving:
        try:
            recipients.load()
        except OSError as exc:
            raise DaemonError(os.EX_NOINPUT, f"{settings.users or settings.map} cannot be read: {exc}") from exc
        except ValueError as exc:
            raise DaemonError(os.EX_CONFIG, str(exc)) from exc
        listeners = _listen(settings, leaving)
        metrics = _listen_for_metrics(settings, leaving)
        if settings.pidfile is not None:
            _write_pidfile(settings.pidfile, leaving)
        if not recipients.has_postmaster():  # RFC 5321 §4.5.1: there has to be one
            log.event("warning", "no_postmaster", hint="mail to postmaster is refused: see --postmaster")
        return Supervisor(settings, recipients, listeners, metrics, log, signals).run()


def _listen(settings: Settings, leaving: contextlib.ExitStack) -> list[Listener]:
    try:
        listeners = sockets.passed(os.environ)
        if not listeners and settings.address is not None:
            listeners = sockets.bind(settings.address, settings.socket_mode)
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


def _listen_for_metrics(settings: Settings, leaving: contextlib.ExitStack) -> socket.socket | None:
    if settings.metrics is None:
        return None
    try:
        (listener,) = sockets.bind(settings.metrics, 0)
    except InUseError as exc:
        raise DaemonError(os.EX_TEMPFAIL, str(exc)) from exc
    except OSError as exc:
        raise DaemonError(os.EX_CANTCREAT, f"cannot serve metrics at {settings.metrics}: {exc}") from exc
    leaving.callback(listener.socket.close)
    listener.socket.setblocking(True)
    return listener.socket


def _write_pidfile(path: str, leaving: contextlib.ExitStack) -> None:
    path = absolute(path)
    new = f"{path}.new"
    try:
        with open(new, "w") as file:
            file.write(f"{os.getpid()}\n")
        os.rename(new, path)  # who reads it finds a number, always
    except OSError as exc:
        raise DaemonError(os.EX_CANTCREAT, f"cannot write {path}: {exc}") from exc
    leaving.callback(_remove_pidfile, path)


def _remove_pidfile(path: str) -> None:
    with contextlib.suppress(OSError):
        with open(path) as file:
            is_ours = file.read() == f"{os.getpid()}\n"
        if is_ours:
            os.unlink(path)


def _raise_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
