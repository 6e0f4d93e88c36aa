"""Progress that is one line: in a notebook an output that is replaced, on a terminal a line that is written over."""

import contextlib
import html
import importlib
import os
import sys
import time
from asyncio import TimerHandle, get_running_loop
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self, TextIO

from maildir_async.format.given import given
from maildir_async.format.html import printable

__all__ = ["Progress"]

#: Seconds between two changes of what is shown.
INTERVAL_S: Final = 0.2
#: Characters of a line, where a terminal does not say how wide it is.
WIDTH: Final = 80


class Progress:
    """Shows how far deliveries are: an *on_progress* for `append_many`, and for one message too.

    ::

        await maildir.append_many(messages, on_progress=Progress())

    In a notebook (IPython's, which need not be installed) it is one output, replaced a few times a second, so that an
    exported page has the last of it. On a terminal it is one line. Anywhere else, in a log say, one line is printed at
    the end. What goes wrong with showing it fails no delivery, and is not told.

    It ends when all messages are settled; the next call begins anew. Where nobody says that (one message, or when a
    call raises) its block as a context manager ends it, or `close`. To be called on one thread at a time.

    Args:
        label: what the line begins with.
        file: where to print outside of a notebook; standard error if None.

    """

    def __init__(self, label: str = "", *, file: TextIO | None = None) -> None:
        if not isinstance(label, str):
            raise TypeError(f"label must be a str, not {given(label)}")
        if file is not None and not callable(getattr(file, "write", None)):
            raise TypeError(f"file must be a file of text or None, not {given(file)}")
        self._label = f"{printable(label)}: " if label else ""
        display = _notebooks_display()
        self._show: Callable[[_Line, bool], None] = _Printed(file) if display is None else _Displayed(display)
        self._began: float | None = None
        self._shown_at = 0.0
        self._told: tuple[int, int | None, int | None] = (0, None, None)
        self._timer: TimerHandle | None = None

    def __call__(self, done: int, total: int | None = None, size: int | None = None) -> None:
        """Take what `append_many` tells: messages settled, messages in all, bytes; or bytes alone, as `append` does."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        self._told = done, total, size
        if total is not None and done >= total:
            self.close()
        elif now - self._shown_at >= INTERVAL_S:
            self._refresh()
        elif self._timer is None:
            with contextlib.suppress(RuntimeError):  # there is no loop; then the next call does it
                self._timer = get_running_loop().call_later(INTERVAL_S, self._refresh)

    def close(self) -> None:
        """Show how it has ended, and how long it took. Does nothing if nothing has been told since the last end."""
        if self._began is not None:
            self._refresh(is_last=True)
            self._began, self._shown_at = None, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self.close()

    def _refresh(self, *, is_last: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._began is None:  # it has ended
            return
        self._shown_at = time.monotonic()
        done, total, size = self._told
        if total is None and size is None:
            text = _bytes(done)
        else:
            of = "" if total is None or total == done else f" of {total:,}"
            text = f"{done:,}{of} message{'s' * ((total or done) != 1)}, {_bytes(size or 0)}"
        if is_last:
            text += f", {self._shown_at - self._began:,.1f} s"
        with contextlib.suppress(Exception):
            self._show(_Line(self._label + text, None if is_last else total, done), is_last)


@dataclass(frozen=True, slots=True)
class _Line:
    """What is shown. With *total*, a bar is too."""

    text: str
    total: int | None
    done: int

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        bar = f"<progress value='{self.done}' max='{self.total}'></progress> " if self.total else ""
        return f"<div style='white-space:pre'>{bar}{html.escape(self.text)}</div>"


def _notebooks_display() -> Callable[..., Any] | None:
    """Return IPython's `display`, if this runs in a kernel: nothing is imported elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    if shell is None or not hasattr(shell, "kernel"):  # no kernel: IPython on a terminal
        return None
    display: Callable[..., Any] = importlib.import_module("IPython.display").display
    return display


class _Displayed:
    """One output of a cell, replaced."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._output: Any = None

    def __call__(self, line: _Line, is_last: bool) -> None:
        if self._output is None:
            self._output = self._display(line, display_id=True)
        else:
            self._output.update(line)
        if is_last:
            self._output = None


class _Printed:
    """One line of a terminal, written over; of any other file, one line at the end."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._length = 0

    def __call__(self, line: _Line, is_last: bool) -> None:
        file = sys.stderr if self._file is None else self._file
        if file.isatty():
            text = line.text[: _width(file) - 1]  # a full line would begin the next
            padded = text.ljust(self._length)
            self._length = 0 if is_last else len(text)
            file.write(f"\r{padded}{chr(10) * is_last}")
        elif is_last:
            file.write(f"{line.text}\n")
        file.flush()


def _width(file: TextIO) -> int:
    try:
        return os.get_terminal_size(file.fileno()).columns or WIDTH
    except (OSError, ValueError):
        return WIDTH


def _bytes(size: int) -> str:
    """Return a number of bytes as a person reads it."""
    amount, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        del units[0]
    return f"{amount:,.1f} {units[0]}" if size >= 1000 else f"{size} byte{'s' * (size != 1)}"
