"""Work of the command's that takes its time: in a thread, ended by a signal, told in lines that a terminal bears."""

import asyncio
import errno
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from maildir_async.command.answers import OutputError, write_line
from maildir_async.command.answers import told as what_to_do
from maildir_async.disk.threads import Crew
from maildir_async.errors import MaildirError

__all__ = ["StoppedError", "run_stoppable", "sized", "table", "told"]


_workers: Final = Crew(1, "maildir-work")

#: Errors that say that there is no such maildir, or that this user may not look at it.
_NO_INPUT: Final = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP}


class StoppedError(Exception):
    """A signal has ended the work."""


async def run_stoppable(job: Callable[[Callable[[], None]], int]) -> int:
    """Have a thread run *job*, and return its exit code. It is given what it has to call now and then.

    If this is cancelled, that raises `StoppedError`, and this goes on waiting until the thread has come to its end; a
    second cancellation does not wait for that. What *job* raises is told, and is 66 or 75: Python's own exit code 1
    has another meaning here.
    """
    stop = threading.Event()

    def is_wanted() -> None:
        if stop.is_set():
            raise StoppedError

    def run() -> int:
        try:
            return job(is_wanted)
        except (MaildirError, OSError) as exc:
            return _failed(exc)
        except StoppedError:
            return os.EX_TEMPFAIL
        except OutputError as exc:
            return exc.tell()
        except Exception as exc:  # a defect
            write_line(sys.stderr, f"maildir-async: {told(f'{type(exc).__name__}: {exc}')}")
            return os.EX_TEMPFAIL

    work = asyncio.get_running_loop().run_in_executor(_workers, run)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([work])
        raise


def _exit_code(exc: MaildirError | OSError) -> int:
    """Return what the command ends with: 66 (EX_NOINPUT) for what is no maildir, or cannot be looked at; else 75."""
    return os.EX_NOINPUT if exc.errno in _NO_INPUT else os.EX_TEMPFAIL


def _failed(exc: MaildirError | OSError) -> int:
    """Say on standard error what has failed, and return the exit code."""
    if isinstance(exc, MaildirError):
        text = what_to_do(exc)
    else:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
    write_line(sys.stderr, f"maildir-async: {told(text)}")
    return _exit_code(exc)


def told(text: str) -> str:
    """Return *text* for a line on a terminal: what is in a name is up to whoever has made it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def sized(count: int) -> str:
    """Return a number of bytes as a person reads it, such as ``1.4 MiB``."""
    if count < 1024:
        return f"{count} B"
    size, units = float(count), iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = "B"
    while size >= 1024 and (following := next(units, "")):
        size, unit = size / 1024, following
    return f"{size:.1f} {unit}"


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table, whose columns stand below each other; those numbered in *right* end together."""
    widths = [max(_width(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    lines: list[str] = []
    for row in rows:
        cells = [
            " " * (widths[at] - _width(cell)) + cell if at in right else cell + " " * (widths[at] - _width(cell))
            for at, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
