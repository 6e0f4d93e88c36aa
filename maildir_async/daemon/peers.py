"""How many connections each client has in all workers, in memory that they share."""

import ipaddress
import mmap
import socket
from typing import Final

__all__ = ["Peers", "key_of"]

#: Marks an IPv4 address: no /64 of IPv6 that anybody has begins like this (RFC 6890: ``::/32`` is reserved).
_IPV4: Final = 1 << 32


class Peers:
    """A column for each of *workers*, of *places* for its connections, made before they are forked.

    Each cell has one writer at a time, and is written in one go: eight bytes, aligned. Nothing is locked: of two
    workers that take a client's last place at the same time both may give it up, and never do both keep it.

    Args:
        workers: how many there are.
        places: connections that one of them may have.
        most: connections of one client.

    """

    def __init__(self, workers: int, places: int, most: int) -> None:
        self._places = places
        self._most = most
        self._map = mmap.mmap(-1, workers * places * 8)
        self._cells = memoryview(self._map).cast("Q")
        self._free: list[int] = []

    def enter(self, slot: int) -> None:
        """Worker *slot* begins, with no connection: those of the one before it are gone."""
        cells = range(slot * self._places, (slot + 1) * self._places)
        self._free = list(reversed(cells))
        for cell in cells:
            self._cells[cell] = 0

    def leave(self, slot: int) -> None:
        """Main process: worker *slot* is dead."""
        size = self._places * 8
        self._map[slot * size : (slot + 1) * size] = bytes(size)

    def take(self, key: int) -> int | None:
        """Return the place of one more connection of the client *key*; None if that is one too many."""
        if not self._free:
            return None
        place = self._free.pop()
        self._cells[place] = key
        if self._map[:].count(key.to_bytes(8, _ORDER)) > self._most:  # after it is told, for others to see
            self.give_back(place)
            return None
        return place

    def give_back(self, place: int) -> None:
        """The connection at *place* is over."""
        self._cells[place] = 0
        self._free.append(place)


_ORDER: Final = "little" if memoryview(b"\1\0\0\0\0\0\0\0").cast("Q")[0] == 1 else "big"


def key_of(connection: socket.socket) -> int:
    """Return the client at the other end as a number: an IPv4 address, or the /64 of an IPv6 address, which one client
    has for itself (RFC 6177); 0, which is not limited, for a Unix socket, for ``::1``, and for one that has gone.
    """
    try:
        name = connection.getpeername()
    except OSError:
        return 0
    if not isinstance(name, tuple):
        return 0
    address = ipaddress.ip_address(str(name[0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return int(address) >> 64
        address = address.ipv4_mapped
    return _IPV4 | int(address)
