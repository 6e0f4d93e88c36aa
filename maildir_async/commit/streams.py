"""Messages that are written while they come, and the watch over them and over the queue."""

import contextlib
import threading
import time
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final, Protocol

from maildir_async.disk.threads import Crew

__all__ = ["Streams", "Unfinished", "Watch"]

#: Threads for streams' writes, each at most one at a time per message.
STREAM_THREADS: Final = 32


class Unfinished(Protocol):
    """What a loop that vanishes would leave in ``tmp/``: a `StreamFile`, or the held messages of a transaction."""

    def discard(self) -> object:
        """Remove it. Blocks."""
        ...


class Streams:
    """The files of messages being received, each with its loop: if that vanishes, the message is discarded.

    Attributes:
        crew: the threads that write them.

    """

    def __init__(self) -> None:
        self.crew = Crew(STREAM_THREADS, "maildir-stream")
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child."""
        self._loops: dict[Unfinished, weakref.ref[AbstractEventLoop]] = {}

    def __len__(self) -> int:
        return len(self._loops)

    def opened(self, file: Unfinished, loop: AbstractEventLoop) -> None:
        """Keep an eye on a message being received on *loop*."""
        self._loops[file] = weakref.ref(loop)

    def over(self, file: Unfinished) -> None:
        """Keep no more eye on it."""
        self._loops.pop(file, None)

    def discard_orphans(self) -> None:
        """Discard what was being received on loops that have been closed, or dropped."""
        for file, reference in list(self._loops.items()):
            loop = reference()
            if loop is None or loop.is_closed():
                self.crew.run(file.discard)
                self.over(file)


class Watch:
    """A thread that looks again and again, while there is anything to look after.

    Args:
        look: looks once; returns False when there is nothing to look after.
        interval_s: seconds between two looks.

    """

    def __init__(self, look: Callable[[], bool], interval_s: float) -> None:
        self._look = look
        self._interval_s = interval_s
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child."""
        self._lock = threading.RLock()
        self._keeps = False

    def keep(self) -> None:
        """Have the watch kept, from now until there is nothing to look after."""
        if self._keeps:
            return
        with self._lock:
            start, self._keeps = not self._keeps, True
        if start:
            # Not one of a crew: the end of the interpreter waits for those, and need not for a watch.
            try:
                threading.Thread(target=self._go_on, name="maildir-watch", daemon=True).start()
            except RuntimeError:  # no thread to be had: the next who comes tries again
                self._keeps = False

    def _go_on(self) -> None:
        try:
            while True:
                time.sleep(self._interval_s)
                with contextlib.suppress(RuntimeError):  # no thread to be had: at the next look, perhaps
                    if not self._look():
                        with self._lock:  # whoever comes now has it kept anew
                            self._keeps = False
                        if not self._look():
                            return
                        with self._lock:
                            if self._keeps:
                                return
                            self._keeps = True
        except BaseException:  # no memory, for one: the next round has it kept again
            self._keeps = False
            raise
