"""What is sent over one end of a connection that waits for nobody."""

import socket
from asyncio import AbstractEventLoop
from collections import deque

__all__ = ["Sender"]


class Sender:
    """Sends bytes in their order, and keeps what the connection does not take yet. On the loop's thread only.

    Args:
        loop: the running one.
        connection: a socket that does not block. What becomes of it is told to whoever reads from it.

    """

    def __init__(self, loop: AbstractEventLoop, connection: socket.socket) -> None:
        self._loop = loop
        self._socket = connection
        self._unsent: deque[memoryview] = deque()

    def send(self, data: bytes) -> None:
        """Send *data* after all that was sent before."""
        self._unsent.append(memoryview(data))
        if len(self._unsent) == 1:
            self._write_out()

    def stop(self) -> None:
        """Send nothing more: the connection is about to be closed."""
        self._unsent.clear()
        self._loop.remove_writer(self._socket)

    def _write_out(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = self._socket.send(unsent[0])
                if sent == len(unsent[0]):
                    unsent.popleft()
                else:
                    unsent[0] = unsent[0][sent:]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._writable)
        except OSError:  # nobody is there to be told
            unsent.clear()

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._write_out()
