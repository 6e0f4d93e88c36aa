"""A maildir as an onlooker sees it, and messages as streams: what more than one test file needs."""

import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

__all__ = ["Look", "chunks_of", "descriptors", "free_port", "until"]


def descriptors(below: str | Path) -> set[str]:
    """Return what this process has open *below* a directory."""
    found: set[str] = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{below}/"):
            found.add(f"{fd} {target}")
    return found


def free_port() -> int:
    """Return a port that nobody listens at, for a server that cannot take port 0.

    It is below those that the kernel gives to whoever takes that, so that none of them gets it meanwhile.
    """
    while True:
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", random.randrange(15_000, 32_000)))
            port: int = server.getsockname()[1]
            return port


class Look:
    """A maildir as an onlooker sees it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def names(self, directory: str) -> list[str]:
        """Return the names in tmp, new or cur; none if it does not exist."""
        try:
            return sorted(os.listdir(self.path / directory))
        except FileNotFoundError:
            return []

    def messages(self) -> list[bytes]:
        """Return the contents of new/ and cur/, in the order of names."""
        return [(self.path / where / name).read_bytes() for where in ("new", "cur") for name in self.names(where)]

    def assert_tmp_empty(self) -> None:
        """Nothing is left in tmp/."""
        assert self.names("tmp") == []


def chunks_of(message: bytes, size: int) -> Callable[[], AsyncIterator[bytes]]:
    """Return what makes an async stream of *message*, *size* bytes at a time."""

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(message), size):
            yield message[start : start + size]

    return stream


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for what threads or other processes are about to do, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)
