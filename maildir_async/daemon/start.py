"""The start of the daemon: what it needs is got, or the command says why not; and given back at the end."""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from maildir_async.daemon import sockets
from maildir_async.daemon.check import Parts, files_of, option_of
from maildir_async.daemon.config import placed
from maildir_async.daemon.descriptors import fitted
from maildir_async.daemon.locking import InUseError
from maildir_async.daemon.log import Log
from maildir_async.daemon.pidfile import Pidfile
from maildir_async.daemon.privileges import Identity, drop
from maildir_async.daemon.settings import Settings
from maildir_async.daemon.sockets import Listener, PassedAddress, TcpAddress
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


def serve(settings: Settings, reread: Callable[[], Settings]) -> int:
    """Be the daemon until SIGTERM or SIGINT, and return the exit code: 0, or 75 if somebody had to be killed.

    With `Settings.check_config`, look whether it could be, and return 0. *reread* gives the settings anew.
    DaemonError if it cannot start; ValueError if the command line is wrong.
    """
    try:
        parts = _parts(settings)
        _check_privileges(settings, parts)
    except DaemonError as exc:
        if settings.check_config:
            exc.code = os.EX_CONFIG
        raise
    if settings.check_config:
        return os.EX_OK
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would not come, and nobody could be waited for
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell has it for its background
    signals = SIGNALS - {signal.SIGINT} if is_ignored else SIGNALS
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    log = Log(2, level=settings.log_level)
    whole = settings
    settings = fitted(settings, log)
    with contextlib.ExitStack() as leaving:
        owner = (parts.identity.uid, parts.identity.gid) if parts.identity is not None and not os.geteuid() else None
        listeners = _listen(settings, owner, log, leaving)
        metrics = _listen_for_metrics(settings, owner, leaving)
        if settings.pidfile is not None:
            _write_pidfile(settings.pidfile, leaving)
        if owner is not None and parts.identity is not None:
            _drop(parts.identity)
            _tell_unreadable(settings, log)
        if not parts.recipients.has_postmaster():  # RFC 5321 §4.5.1: there has to be one
            log.event("warning", "no_postmaster", hint="mail to postmaster is refused: see --postmaster")
        supervisor = Supervisor(settings, parts, _cut_like(settings, whole, reread), listeners, metrics, log, signals)
        return supervisor.run()


def _parts(settings: Settings) -> Parts:
    try:
        parts = Parts(settings)
    except ValueError as exc:
        if settings.config is None and not settings.check_config:
            raise  # the command line is wrong
        raise DaemonError(os.EX_CONFIG, placed(settings.config, str(exc))) from exc
    try:
        parts.load()
    except OSError as exc:
        text = f"{option_of(settings, exc.filename)}{exc.filename} cannot be read: {exc.strerror}"
        raise DaemonError(os.EX_NOINPUT, placed(settings.config, text)) from exc
    except ValueError as exc:
        raise DaemonError(os.EX_CONFIG, placed(settings.config, str(exc))) from exc
    return parts


def _check_privileges(settings: Settings, parts: Parts) -> None:
    """Raise DaemonError where the daemon would have root's privileges unasked, or cannot have those it is to have."""
    euid, identity = os.geteuid(), parts.identity
    if euid and identity is not None and identity.uid != euid and not settings.check_config:
        raise DaemonError(os.EX_NOPERM, f"--user {settings.user}: only root can become another user")
    stays_root = not euid and identity is None and not settings.check_config
    if not settings.allow_root and (stays_root or (identity is not None and not identity.uid)):
        text = "it does not serve as root: --user NAME drops the privileges, --allow-root keeps them"
        raise DaemonError(os.EX_NOPERM, text)


def _drop(identity: Identity) -> None:
    try:
        drop(identity)
    except OSError as exc:
        raise DaemonError(os.EX_OSERR, f"the privileges cannot be dropped: {exc}") from exc


def _tell_unreadable(settings: Settings, log: Log) -> None:
    """Warn of what could be read as root, and cannot be read again at SIGHUP."""
    if paths := [path for path in files_of(settings).values() if not os.access(path, os.R_OK)]:
        log.event("warning", "cannot_reload", files=paths, message="SIGHUP cannot read these again without root")


def _cut_like(cut: Settings, whole: Settings, reread: Callable[[], Settings]) -> Callable[[], Settings]:
    """Return what reads the settings again, as they have been cut for want of descriptors if nothing else is new."""
    return lambda: cut if (again := reread()) == whole else again


def _listen(
    settings: Settings, owner: tuple[int, int] | None, log: Log, leaving: contextlib.ExitStack
) -> list[Listener]:
    listeners: list[Listener] = []
    passed: list[Listener] = []
    address: object = "systemd's sockets"
    try:
        passed = sockets.passed(os.environ)
        beside = [own.address for own in settings.listeners if isinstance(own.address, TcpAddress)]
        for number, own in enumerate(settings.listeners):
            address = own.address
            # Under systemd its sockets are the only listener's, whatever address that may have for other times.
            is_only = passed and len(settings.listeners) == 1
            if isinstance(own.address, PassedAddress) or own.address is None or is_only:
                name = own.address.name if isinstance(own.address, PassedAddress) else None
                found = [each for each in passed if name is None or each.name == name]
                if not found and name is not None:
                    raise ValueError(f"systemd has passed no socket named {name}")
            else:
                found = sockets.bind(own.address, own.socket_mode, owner=owner, beside=beside, log=log)
            for listener in found:
                leaving.callback(listener.socket.close)
                leaving.callback(sockets.remove, listener)
                listeners.append(replace(listener, number=number))
    except InUseError as exc:
        raise DaemonError(os.EX_TEMPFAIL, str(exc)) from exc
    except OSError as exc:
        raise DaemonError(os.EX_CANTCREAT, f"cannot listen at {address}: {exc}") from exc
    if not listeners:
        raise ValueError("ADDRESS is missing, and systemd has passed no socket")
    return listeners


def _listen_for_metrics(
    settings: Settings, owner: tuple[int, int] | None, leaving: contextlib.ExitStack
) -> Listener | None:
    if settings.metrics is None:
        return None
    try:
        listener = sockets.bind(settings.metrics, settings.metrics_mode, owner=owner)[0]
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
