"""One JSON object a line: for each delivery, and for what happens to the daemon.

What a client or a sender has chosen (addresses, names) is escaped and cut; nothing of a message is told.
"""

import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from maildir_async.disk.threads import Crew

__all__ = ["Log", "LogHandler"]

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

    Until `write_behind` it writes at once, if that can be done without waiting.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
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
        told = {"time": _now(), "level": level, "event": event, "pid": os.getpid()}
        told |= {name: value for name, value in fields.items() if value not in (None, (), [])}
        line = _line(told)
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

    def _write_at_once(self, line: bytes) -> None:
        ready = select.poll()
        ready.register(self._descriptor, select.POLLOUT)
        if ready.poll(0):
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
                self._write(_line(lost))
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


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(told: Mapping[str, object]) -> bytes:
    line = b""
    for limit in TEXT_LIMITS:
        line = _encode({name: _shown(value, limit) for name, value in told.items()}).encode() + b"\n"
        if len(line) <= LINE_LIMIT:
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
