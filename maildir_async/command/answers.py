"""What the command answers: its exit code, and lines on standard output and standard error.

An exit code is one of sysexits.h; the greatest, if there are several. 75 (EX_TEMPFAIL) stands for every failure that
may heal. 74 (EX_IOERR) is never used, though disks have I/O errors: Postfix returns the message to its sender after
64, 65, 66, 73 and 74, and keeps it for another try after 75 (sys_exits.c there).
"""

import contextlib
import errno
import os
import sys
from typing import Any

from maildir_async.errors import MaildirError, NotAMaildirError, QuotaExceededError

__all__ = ["exit_code", "failed", "told", "write_line"]


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


def write_line(stream: Any, line: str) -> None:
    """Write a line. If that fails, it is lost: a message that has been delivered must not be sent again for it."""
    if stream is not None:
        with contextlib.suppress(OSError):
            os.write(stream.fileno(), os.fsencode(line) + b"\n")
