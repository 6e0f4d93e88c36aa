"""Metrics for Prometheus: counted by each worker in memory that all share, added up by a process that serves them.

A worker's column is by its number, not its process id: who takes its place goes on counting there. The memory is older
than any of them and has no name, so that nothing is left of it, whoever is killed. That is why the library's own way
with several processes is not used: it keeps files.
"""

import contextlib
import mmap
import os
import socket
import sys
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from maildir_async.smtp.message import Receipt

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Counts", "Metrics", "NoMetrics", "Tally", "serve_metrics"]

#: Seconds: from a commit on a fast disk to a client that is slow to send.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: What a recipient's part of a message comes to, as the metrics call it.
CLASSES: Final = {"delivered": "2xx", "deferred": "4xx", "refused": "5xx"}

#: Seconds that somebody who asks for metrics gets to do so.
REQUEST_S: Final = 10

# The cells of a worker's column. By what a part comes to:
_DELIVERIES: Final = {"delivered": 0, "deferred": 1, "refused": 2}
_REFUSED: Final = {"deferred": 3, "refused": 4}
_STORED_BYTES, _CONNECTIONS, _TURNED_AWAY, _OPEN, _IN_FLIGHT, _SECONDS = range(5, 11)
_IN_BUCKET: Final = range(11, 11 + len(BUCKETS) + 1)  # the last one is for what took longer
_CELLS: Final = _IN_BUCKET.stop


class Counts:
    """A column for each of *workers*, made before they are forked.

    Each cell has one writer at a time, and is written in one go: eight bytes, aligned.
    """

    def __init__(self, workers: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, _CELLS * workers * 8)).cast("d")

    def column(self, slot: int) -> "memoryview[float]":
        """Return the cells of worker *slot*."""
        return self._cells[_CELLS * slot : _CELLS * (slot + 1)]

    def total(self, cell: int) -> float:
        """Return what all workers have in a cell."""
        return sum(self._cells[cell::_CELLS])


class Tally(Protocol):
    """What a worker counts."""

    def receipt(self, receipt: Receipt) -> None:
        """It is known what has become of a message, or a recipient was refused."""
        ...

    def connected(self, connections: int) -> None:
        """A connection has been accepted; there are so many now."""
        ...

    def disconnected(self, connections: int) -> None:
        """One is over; there are so many now."""
        ...

    def turned_away(self) -> None:
        """A connection was one too many."""
        ...

    def in_flight(self, messages: int) -> None:
        """There are so many messages between start and end."""
        ...


class NoMetrics:
    """Counts nothing."""

    def receipt(self, receipt: Receipt) -> None:
        """See `Tally`."""

    def connected(self, connections: int) -> None:
        """See `Tally`."""

    def disconnected(self, connections: int) -> None:
        """See `Tally`."""

    def turned_away(self) -> None:
        """See `Tally`."""

    def in_flight(self, messages: int) -> None:
        """See `Tally`."""


class Metrics:
    """Counts for worker *slot*."""

    def __init__(self, counts: Counts, slot: int) -> None:
        self._cells = counts.column(slot)
        self._cells[_OPEN] = self._cells[_IN_FLIGHT] = 0.0  # whoever was here before may have died with some

    def receipt(self, receipt: Receipt) -> None:
        """See `Tally`."""
        if not receipt.message_id:
            self._cells[_REFUSED[receipt.verdict]] += 1
            return
        self._cells[_DELIVERIES[receipt.verdict]] += 1
        self._cells[_SECONDS] += receipt.seconds
        self._cells[_IN_BUCKET[bisect_left(BUCKETS, receipt.seconds)]] += 1
        if receipt.delivered is not None:
            self._cells[_STORED_BYTES] += receipt.delivered.size

    def connected(self, connections: int) -> None:
        """See `Tally`."""
        self._cells[_CONNECTIONS] += 1
        self._cells[_OPEN] = connections

    def disconnected(self, connections: int) -> None:
        """See `Tally`."""
        self._cells[_OPEN] = connections

    def turned_away(self) -> None:
        """See `Tally`."""
        self._cells[_TURNED_AWAY] += 1

    def in_flight(self, messages: int) -> None:
        """See `Tally`."""
        self._cells[_IN_FLIGHT] = messages


class _Collector:
    """What Prometheus is told, as its library wants to have it."""

    def __init__(self, counts: Counts) -> None:
        self._total = counts.total

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def by_reply(name: str, text: str, cells: Mapping[str, int]) -> CounterMetricFamily:
            family = CounterMetricFamily(f"maildir_async_{name}", text, labels=["reply"])
            for verdict, cell in cells.items():
                family.add_metric([CLASSES[verdict]], self._total(cell))
            return family

        def counter(name: str, text: str, cell: int) -> CounterMetricFamily:
            return CounterMetricFamily(f"maildir_async_{name}", text, value=self._total(cell))

        def gauge(name: str, text: str, cell: int) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"maildir_async_{name}", text, value=self._total(cell))

        yield by_reply(
            "deliveries",
            "Recipients of messages received, by what came of it: delivered (2xx), deferred (4xx), refused (5xx)",
            _DELIVERIES,
        )
        yield by_reply("recipients_refused", "Recipients refused before a message came, by class of reply", _REFUSED)
        yield counter("stored_bytes", "Bytes of messages delivered", _STORED_BYTES)
        so_far = accumulate(map(self._total, _IN_BUCKET))
        yield HistogramMetricFamily(
            "maildir_async_delivery_seconds",
            "From the beginning of a message to its reply",
            buckets=list(zip([*map(str, BUCKETS), "+Inf"], so_far, strict=True)),
            sum_value=self._total(_SECONDS),
        )
        yield counter("connections", "Connections accepted", _CONNECTIONS)
        yield counter("connections_turned_away", "Connections past --max-connections", _TURNED_AWAY)
        yield gauge("open_connections", "Connections now", _OPEN)
        yield gauge("in_flight", "Messages between start and end now", _IN_FLIGHT)


def serve_metrics(listener: socket.socket, counts: Counts, life: int) -> None:
    """Answer who asks for metrics, until the main process is gone: then *life* is at its end."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import make_wsgi_app  # pyright: ignore[reportUnknownVariableType] not annotated

    registry = CollectorRegistry()
    registry.register(_Collector(counts))
    server = _Server(listener)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.suppress(OSError):
        os.read(life, 1)


class _Server(ThreadingMixIn, WSGIServer):
    """Serves at a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]  # server_bind would ask the DNS
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about who went before the answer came; the rest is a line of the log."""
        if not isinstance(sys.exception(), OSError):
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class _Request(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name there
        """Say nothing: the log is for mail."""
