"""Where the command reads messages: what may keep it waiting is read by the loop, all else in a thread."""

import asyncio
import contextlib
import errno
import os
import stat
import sys
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from typing import IO, Any, Final

from maildir_async.disk.threads import Crew
from maildir_async.receive.spool import CHUNK_SIZE

__all__ = ["STDIN", "Found", "close", "is_open", "opened", "read_ahead"]

#: The name of standard input among FILEs.
STDIN: Final = "-"

#: Bytes of short FILEs that are read in one go. Arbitrary: eight of the longest, or a batch of common mail.
AHEAD_SIZE: Final = 8 * CHUNK_SIZE

#: What a look at a FILE has found: all of it, if that is at most `CHUNK_SIZE`; the open file; or what was wrong.
Found = bytes | IO[bytes] | OSError

#: Opens files in a thread that a program may end without: to open a FIFO that nobody writes to takes for ever.
_opener: Final = Crew(1, "maildir-open")


@contextlib.asynccontextmanager
async def opened(name: str) -> AsyncGenerator[Any, None]:
    """Give a source that a signal can interrupt: what may keep us waiting is read by the loop, not in a thread."""
    loop = asyncio.get_running_loop()
    with await loop.run_in_executor(_opener, _open, name) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty()):
            yield file
            return
        reader = asyncio.StreamReader()
        try:
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
            with contextlib.closing(transport):
                yield reader
        finally:
            if name == STDIN:  # which others may have open as well: a shell its terminal
                os.set_blocking(sys.stdin.fileno(), True)


def _open(name: str) -> IO[bytes]:
    if name != STDIN:
        return open(name, "rb", buffering=0)
    if sys.stdin is None:  # and so descriptor 0 may be anything by now
        raise OSError(errno.EBADF, "it is closed")
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


async def read_ahead(names: Sequence[str]) -> list[Found]:
    """Read, in a thread, what the first of *names* stand for, and return it, in their order.

    The last of what is returned is the first file that is longer than `CHUNK_SIZE`, and open; or it is shorter than
    *names* because there were `AHEAD_SIZE` bytes, because the next one is no regular file (to open it might take for
    ever, and it is `opened`'s), or because there are too many open files.
    """
    future = _opener.submit(_read_each, names)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(_close_each)  # it may be running, and cannot be stopped then
        raise


def _close_each(future: "Future[list[Found]]") -> None:
    if not future.cancelled() and future.exception() is None:
        for found in future.result():
            close(found)


def _read_each(names: Sequence[str]) -> list[Found]:
    found: list[Found] = []
    size = 0
    for name in names:
        try:
            if name == STDIN or not stat.S_ISREG(os.stat(name).st_mode):
                return found
            one: Found = _read(name)
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE) and found:
                return found
            one = exc
        found.append(one)
        size += len(one) if isinstance(one, bytes) else 0
        if is_open(one) or size >= AHEAD_SIZE:
            return found
    return found


def _read(name: str) -> bytes | IO[bytes]:
    """Return all of a file, or the file itself if that is more than `CHUNK_SIZE`."""
    file = open(name, "rb", buffering=0)  # noqa: SIM115 - who asked has it, if it is long
    try:
        parts: list[bytes] = []
        size = 0
        # What the file system says of the size may be wrong (/proc), or may have changed: its end is where it ends.
        wanted = os.fstat(file.fileno()).st_size + 1
        while size <= CHUNK_SIZE and wanted <= CHUNK_SIZE + 1:
            if not (part := file.read(wanted)):
                file.close()
                return b"".join(parts) if len(parts) != 1 else parts[0]
            parts.append(part)
            size += len(part)
            wanted = max(1, wanted - len(part), 4096)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def is_open(found: Found) -> bool:
    """Return whether it is an open file."""
    return not isinstance(found, (bytes, OSError))


def close(found: Found) -> None:
    """Close it, if it is an open file."""
    if not isinstance(found, (bytes, OSError)):
        found.close()
