"""What the command answers: its exit code, and lines on standard output and standard error.

An exit code is one of sysexits.h; the greatest, if there are several. 75 (EX_TEMPFAIL) stands for every failure that
may heal. 74 (EX_IOERR) is never used, though disks have I/O errors: Postfix returns the message to its sender after
64, 65, 66, 73 and 74, and keeps it for another try after 75 (sys_exits.c there).

Lines go to the descriptors, past the buffers of `sys.stdout` and `sys.stderr`: what is left in a buffer that cannot be
written makes Python end with a complaint of its own, and with exit code 120.
"""

import contextlib
import errno
import io
import os
import select
import sys
import time
from typing import Any, Final

from maildir_async.errors import MaildirError, NotAMaildirError, QuotaExceededError

__all__ = [
    "SIGPIPE_CODE",
    "OutputError",
    "Parents",
    "exit_code",
    "failed",
    "print_text",
    "told",
    "wait_again",
    "wait_no_longer",
    "write_line",
]

#: What a shell says of a program that SIGPIPE has ended, as it ends most at the left of ``| head``. Python ignores it.
SIGPIPE_CODE: Final = 128 + 13

#: Seconds that a pipe may stay full after a signal. Arbitrary: enough for whoever reads at all.
GRACE_S: Final = 2.0

#: When signals came. A list, since a handler of signals adds to it, between any two steps of what it interrupts.
_ended: list[float] = []


class OutputError(Exception):
    """Standard output cannot be written.

    Attributes:
        code: what a command ends with whose work is to write it.

    """

    def __init__(self, why: OSError) -> None:
        super().__init__(f"standard output cannot be written: {why.strerror}")
        self.is_unread = why.errno == errno.EPIPE
        self.code = SIGPIPE_CODE if self.is_unread else os.EX_TEMPFAIL

    def tell(self) -> int:
        """Say it on standard error, unless it is only that who read it has seen enough; return the exit code."""
        return self.code if self.is_unread else failed(self.code, str(self))


def exit_code(exc: MaildirError) -> int:
    """Return the exit code for *exc*."""
    # Also where there is no maildir, be it a file or a link that leads nowhere: the store may be away for a while, and
    # Postfix's pipe(8) and local(8) return the message to its sender after 73.
    if exc.temporary:
        return os.EX_TEMPFAIL
    if isinstance(exc, QuotaExceededError):
        return os.EX_NOPERM  # as Courier's deliverquota does
    return os.EX_CANTCREAT if exc.stage == "create" else os.EX_DATAERR


def told(exc: MaildirError) -> str:
    """Return what *exc* says, and where there is no maildir, what to do."""
    if isinstance(exc, NotAMaildirError) and exc.errno == errno.ENOENT:
        return f"{exc} (look at the path; deliver and import make a maildir, unless they have --no-create)"
    return str(exc)


def failed(code: int, text: str) -> int:
    """Say *text* on standard error, as one line; return *code*."""
    write_line(sys.stderr, "maildir-async: " + " ".join(text.splitlines()))
    return code


class Parents:
    """Tells of directories that are made above a maildir, as a path that was mistyped has them made.

    To be made before there is an event loop: it looks at the file system, which may hang, and a signal ends that.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._absent: str | None = None  # the outermost
        above = os.path.dirname(path)
        while not os.path.lexists(above):
            self._absent, above = above, os.path.dirname(above)

    def tell(self) -> None:
        """Say on standard error which directory above the maildir has been made."""
        if self._absent is not None and os.path.isdir(self._path):
            failed(os.EX_OK, f"{self._absent} was not there, and has been made, for the maildir {self._path}")


def write_line(stream: Any, line: str) -> None:
    """Write a line. If that fails, it is lost: a message that has been delivered must not be sent again for it."""
    if stream is not None:
        with contextlib.suppress(OSError):
            _write(stream, line + "\n")


def print_text(text: str) -> None:
    """Write *text* on standard output, for a command whose work that is. `OutputError` if it cannot be."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        _write(sys.stdout, text)
    except OSError as exc:
        raise OutputError(exc) from None


def _write(stream: Any, text: str) -> None:
    """Write all of *text*. Blocks while nobody reads what came before, until a signal has come."""
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # whoever calls this in a program has put something else there
        stream.write(text)
        return
    octets = _octets(text)
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    while octets:
        while not ready.poll(_patience_ms()):
            if _ended:
                raise OSError(errno.EAGAIN, "nobody reads it")
        # A pipe that is ready takes as much as this at once, and does not keep us past a signal.
        octets = octets[os.write(descriptor, octets[: select.PIPE_BUF]) :]


def _patience_ms() -> int:
    return max(0, int((_ended[0] + GRACE_S - time.monotonic()) * 1000)) if _ended else 1000


def wait_no_longer() -> None:
    """Give those who read the output `GRACE_S` more: a signal is to end the command. May be called by its handler."""
    _ended.append(time.monotonic())


def wait_again() -> None:
    """Forget of signals: the command is over, and the process may go on."""
    _ended.clear()


def _octets(text: str) -> bytes:
    """Return names as they are on the disk, and what the locale has no characters for as Python writes it."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return b"".join(map(_octets, text)) if len(text) > 1 else text.encode("ascii", "backslashreplace")
