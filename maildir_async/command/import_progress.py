"""A bar on a terminal, by rich: the extra `cli`. Imported only where there is a terminal."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from maildir_async.command.progress import width

__all__ = ["shown"]


@contextmanager
def shown(source: str, size: int | None) -> Generator[Callable[[int, int | None, int], object], None, None]:
    """Show a bar for *source*, which is about *size* bytes; give what is to be called with how far it is.

    It is gone at the end: what has been done is said in a line of its own.
    """
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [TextColumn("{task.fields[messages]} messages"), DownloadColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(file=sys.stderr, width=width()), transient=True) as progress:
        task = progress.add_task(os.path.basename(source) or source, total=size, messages="0")

        def on_progress(done: int, total: int | None, at: int) -> None:
            messages = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            # Without a size the share of messages is that of bytes, as far as one knows.
            whole = size if size is not None or not total or not done else max(at, at * total // done)
            progress.update(task, completed=at, total=whole, messages=messages)

        yield on_progress
