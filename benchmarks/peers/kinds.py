"""What an adapter is: the two kinds that `benchmarks.drive` can drive."""

from typing import Protocol

from benchmarks.workload import Workload

__all__ = ["Asynchronous", "NotHereError", "Plain"]


class NotHereError(Exception):
    """The peer cannot do what is asked here; the text says why, for the report."""


class Asynchronous(Protocol):
    """Delivers on an event loop, several messages at a time."""

    async def start(self) -> None:
        """Get ready, outside the timed part."""
        ...

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Return when the message is done."""
        ...

    async def stream(self, maildir: int, workload: Workload, number: int) -> None:
        """Return when the message, which comes in chunks, is done."""
        ...

    async def aclose(self) -> None:
        """Leave nothing running."""
        ...


class Plain(Protocol):
    """Delivers without an event loop, one message after another."""

    def deliver_now(self, maildir: int, message: bytes) -> None:
        """Return when the message is done."""
        ...


class WholeMessagesOnly:
    """For adapters to peers that cannot take a message in chunks, and have nothing to start or end."""

    async def start(self) -> None:
        """Nothing."""

    async def stream(self, maildir: int, workload: Workload, number: int) -> None:
        """Refuse."""
        raise NotHereError("it takes whole messages only")

    async def aclose(self) -> None:
        """Nothing."""
