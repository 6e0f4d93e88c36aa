"""How long a session waits for its client: for a command, for more of a message, for the end of one."""

import asyncio
import math
from contextlib import AbstractContextManager
from typing import Final

__all__ = ["MESSAGE_TIMEOUT_S", "Patience"]

#: Seconds for a message, by default. Arbitrary: 50 MiB come in them at 15 kB/s.
MESSAGE_TIMEOUT_S: Final = 3600.0


class Patience:
    """What time a client has left, by the clock of a loop. Does nothing by itself: the session has the timer.

    When the server has done and said what it had to, a client has *timeout_s* seconds for what it is to send next. A
    command, and an answer to a challenge, has to be whole by then. Of a message no more than a byte has to come, which
    gives as much time again; but the whole of it has *message_timeout_s* seconds. Both stand still while the client
    has to wait for the server.
    """

    __slots__ = (
        "_allowed_s",
        "_loop",
        "_message_ends_at",
        "_message_timeout_s",
        "_receives",
        "_receiving",
        "_since",
        "_timeout_s",
        "_working",
        "_works",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, message_timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._message_timeout_s = message_timeout_s
        self._allowed_s = timeout_s
        self._since = loop.time()  # when the client's time has begun
        self._message_ends_at = math.inf
        self._receives = False
        self._works = False
        self._receiving = _Receiving(self)  # made once: they are entered some times for each message
        self._working = _Working(self)

    @property
    def ends_at(self) -> float:
        """When the client's time is up, by the loop's clock, if the server does no more for it now."""
        if self._works:
            return self._loop.time() + self._allowed_s
        ends_at = self._since + self._allowed_s
        return ends_at if ends_at < self._message_ends_at else self._message_ends_at

    @property
    def left_s(self) -> float:
        """The seconds until the client's time is up. While the server works that is all of them."""
        return self.ends_at - self._loop.time() if not self._works else self._allowed_s

    @property
    def message_is_late(self) -> bool:
        """Whether it is the message's time that is up."""
        return self._message_ends_at <= self._loop.time()

    def begin(self, allowed_s: float | None = None) -> None:
        """The client's time begins now: *allowed_s* seconds, or as many as it has for anything."""
        self._allowed_s = allowed_s or self._timeout_s
        self._since = self._loop.time()

    def heard(self) -> None:
        """Something has come. Of a message that is enough to have all of the time again, of a command it is not."""
        if self._receives:
            self._since = self._loop.time()

    def receiving(self) -> AbstractContextManager[None]:
        """Around what waits for a message, or for one part of it. The first one is where the message begins."""
        return self._receiving

    def working(self) -> AbstractContextManager[None]:
        """Around what the client has to wait for. Not around itself."""
        return self._working

    def message_over(self) -> None:
        """There is no message any more: the next one has a time of its own."""
        self._message_ends_at = math.inf

    def begin_to_receive(self) -> None:
        """See `receiving`."""
        self._receives = True
        self._since = self._loop.time()
        if self._message_ends_at == math.inf:
            self._message_ends_at = self._since + self._message_timeout_s

    def end_to_receive(self) -> None:
        """See `receiving`."""
        self._receives = False
        self._since = self._loop.time()

    def begin_to_work(self) -> float:
        """See `working`; return when it begins."""
        self._works = True
        return self._loop.time()

    def end_to_work(self, begun_at: float) -> None:
        """See `working`."""
        self._works = False
        self._since = self._loop.time()
        self._message_ends_at += self._since - begun_at


class _Receiving(AbstractContextManager[None]):
    __slots__ = ("_patience",)

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def __enter__(self) -> None:
        self._patience.begin_to_receive()

    def __exit__(self, *_: object) -> None:
        self._patience.end_to_receive()


class _Working(AbstractContextManager[None]):
    __slots__ = ("_begun_at", "_patience")

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._begun_at = 0.0

    def __enter__(self) -> None:
        self._begun_at = self._patience.begin_to_work()

    def __exit__(self, *_: object) -> None:
        self._patience.end_to_work(self._begun_at)
