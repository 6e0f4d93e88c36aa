"""The progress of several FILEs, on a terminal."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, Final

from maildir_async.command.answers import write_line

__all__ = ["NO_PROGRESS", "Progress", "progress_of", "width"]


class Progress:
    """Shows nothing: standard error is no terminal, or rich is not installed."""

    def show(self, settled: int) -> None:
        """Show that *settled* FILEs have been delivered, or have failed."""

    def write(self, stream: Any, line: str) -> None:
        """Write a line on standard output or standard error."""
        write_line(stream, line)

    def end(self) -> None:
        """Take it from the terminal."""


class _Bar(Progress):
    """A bar on standard error. That a terminal has been closed is no failure of a delivery."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def show(self, settled: int) -> None:
        with suppress(OSError):
            self._bar.update(self._task, completed=settled)

    def write(self, stream: Any, line: str) -> None:
        if stream is not None and stream.isatty():  # above the bar, and not into it
            with suppress(OSError):
                self._bar.console.out(line, highlight=False)
        else:
            write_line(stream, line)

    def end(self) -> None:
        with suppress(OSError):
            self._bar.stop()


NO_PROGRESS: Final = Progress()


def width() -> int | None:
    """Return the width of what rich shows, or None to let rich find out, also when the terminal changes.

    rich believes ``COLUMNS=0``, and shows nothing then: not even the paths.
    """
    said = os.environ.get("COLUMNS", "")
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80 if said.isdecimal() and not int(said) else None


@contextmanager
def progress_of(total: int) -> Generator[Progress, None, None]:
    """Give what shows the progress of *total* FILEs: a bar if standard error is a terminal and rich is installed."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield NO_PROGRESS
        return
    try:
        # Only here: no program waits for it that has no use for a bar. It comes with the extra `cli`.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield NO_PROGRESS
        return
    columns = (TextColumn("delivering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What other code writes to sys.stdout and sys.stderr is its own.
    bar = Bar(
        *columns,
        console=Console(stderr=True, width=width()),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        yield _Bar(bar, bar.add_task("delivering", total=total))
