"""One JSON object a line: for each delivery, and for what happens to the daemon.

What a client or a sender has chosen (addresses, names) is escaped and cut; nothing of a message is told.
"""

import contextlib
import json
import logging
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from maildir_async.disk.threads import Crew

__all__ = ["LEVELS", "Log", "LogHandler"]

#: Levels of events, with their priorities by syslog(3).
LEVELS: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

#: Characters of a text that are told; if a line gets too long with so many, fewer. Each may take twelve bytes, as two
#: escaped surrogates: a dozen texts of 24 fit.
TEXT_LIMITS: Final = (512, 96, 24)

#: Texts of a list that are told.
LIST_LIMIT: Final = 4

#: Bytes that a pipe takes in one piece (PIPE_BUF on Linux), so that lines of several processes never mix.
LINE_LIMIT: Final = 4096

#: Seconds that a line waits for others, to be written with them: a thread that wakes for each, and takes the
#: interpreter lock from the loop, costs more than the line does.
LINGER_S: Final = 0.005

#: Lines that wait for a reader who does not read. What comes then is dropped, and its number told.
MAX_WAITING: Final = 10_000


class Log:
    """Writes lines to *descriptor*. Never waits for who reads them, or for the disk, in a worker; drops them instead.

    Until `write_behind` it writes at once, if that can be done without waiting. If *descriptor* is the journal's, each
    line begins with its priority, as sd-daemon(3) has it.

    Args:
        descriptor: where to.
        level: events below it are not written.

    """

    def __init__(self, descriptor: int, *, level: str = "info") -> None:
        self._descriptor = descriptor
        self._least = LEVELS[level]
        self._is_journal = _is_journal(descriptor)
        self._crew: Crew | None = None
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._writing = False
        self._dropped = 0

    def write_behind(self) -> None:
        """Have a thread write from now on: for processes with a loop."""
        self._crew = Crew(1, "maildir-log")

    def event(self, level: str, event: str, **fields: object) -> None:
        """Write one line. Fields that are None, empty or no warning at all are left out."""
        priority = LEVELS.get(level, LEVELS["info"])
        if priority > self._least:
            return
        told = {"time": _now(), "level": level, "event": event, "pid": os.getpid()}
        told |= {name: value for name, value in fields.items() if value not in (None, (), [])}
        line = _line(told)
        if self._is_journal:
            line = b"<%d>%b" % (priority, line)
        if self._crew is None:
            self._write_at_once(line)
            return
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append(line)
            if self._writing:
                return
            self._writing = True
        try:
            self._crew.run(self._write_waiting)
        except RuntimeError:  # no thread to be had: with the next line, perhaps
            self._writing = False

    def close(self, timeout_s: float) -> None:
        """Block until all is written, but no longer than that."""
        if self._crew is not None:
            self._crew.wait_idle(timeout_s)

    @property
    def is_debug(self) -> bool:
        """Whether events of the level ``debug`` are written."""
        return self._least >= LEVELS["debug"]

    def _write_at_once(self, line: bytes) -> None:
        ready = select.poll()
        ready.register(self._descriptor, select.POLLOUT)
        if not ready.poll(0):
            return
        # Another process that writes there may have taken the room meanwhile, and O_NONBLOCK would be for all of them.
        kind = os.fstat(self._descriptor).st_mode
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(kind):
                try:
                    own = os.open(f"/proc/self/fd/{self._descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError:  # made by another user, or no /proc: then the look has to do
                    self._write(line)
                    return
                try:
                    os.write(own, line)
                finally:
                    os.close(own)
                return
            if stat.S_ISSOCK(kind):
                with socket.socket(fileno=os.dup(self._descriptor)) as own_socket:
                    own_socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return
            self._write(line)

    def _write_waiting(self) -> None:
        time.sleep(LINGER_S)
        while True:
            with self._lock:
                dropped, self._dropped = self._dropped, 0
                piece = b""
                while self._waiting and len(piece) + len(self._waiting[0]) <= LINE_LIMIT:
                    piece += self._waiting.popleft()
                if not piece and not dropped:
                    self._writing = False
                    return
            if dropped:
                lost = {"time": _now(), "level": "warning", "event": "log_lost", "pid": os.getpid(), "lines": dropped}
                line = _line(lost)
                self._write(b"<%d>%b" % (LEVELS["warning"], line) if self._is_journal else line)
            self._write(piece)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody reads it, and mail is more important
            pass


class LogHandler(logging.Handler):
    """Has what libraries log, from warnings on, become events."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the first and the last: the message, and the line of the exception."""
        error = None
        if record.exc_info is not None and (exc := record.exc_info[1]) is not None:
            error = f"{type(exc).__name__}: {exc}"
        self._log.event(record.levelname.lower(), "log", logger=record.name, message=record.getMessage(), error=error)


def _is_journal(descriptor: int) -> bool:
    """Return whether *descriptor* is the one that systemd has connected to its journal: systemd.exec(5)."""
    told = os.environ.get("JOURNAL_STREAM", "")
    if not told:
        return False
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(told: Mapping[str, object]) -> bytes:
    line = b""
    for limit in TEXT_LIMITS:
        line = _encode({name: _shown(value, limit) for name, value in told.items()}).encode() + b"\n"
        if len(line) <= LINE_LIMIT - len("<7>"):
            break
    return line


#: json.dumps() would make an encoder for each line.
_encode: Final = json.JSONEncoder(default=str).encode


def _shown(value: object, limit: int) -> object:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str):
        # Bytes that are not UTF-8 come as lone surrogates, which not every reader of JSON takes.
        text = value[:limit]
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return [_shown(item, limit) for item in value[:LIST_LIMIT]]  # pyright: ignore[reportUnknownVariableType] of anything
    return value
