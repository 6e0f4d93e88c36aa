"""Metrics for Prometheus: counted by each worker in memory that all share, added up by a process that serves them.

A worker's column is by its number, not its process id: who takes its place goes on counting there. The memory is older
than any of them and has no name, so that nothing is left of it, whoever is killed. That is why the library's own way
with several processes is not used: it keeps files.
"""

import mmap
import platform
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

from maildir_async.group_commit import CommitStatistics
from maildir_async.smtp.message import Receipt

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

__all__ = ["Counts", "Metrics", "NoMetrics", "Tally", "collector"]

#: Seconds: from a commit on a fast disk to a client that is slow to send.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: What a recipient's part of a message comes to, as the metrics call it.
CLASSES: Final = {"delivered": "2xx", "deferred": "4xx", "refused": "5xx"}

# The cells of a worker's column. By what a part comes to:
_DELIVERIES: Final = {"delivered": 0, "deferred": 1, "refused": 2}
_REFUSED: Final = {"deferred": 3, "refused": 4}
_STORED_BYTES, _CONNECTIONS, _TURNED_AWAY, _OPEN, _IN_FLIGHT, _SECONDS = range(5, 11)
_CUT_OFF, _TLS, _RESTARTS, _ADDRESS_TURNED_AWAY = range(11, 15)
_REPLIES: Final = {"2": 15, "3": 16, "4": 17, "5": 18}
# What the `GroupCommit` tells of itself, which starts from nothing in each process: what the processes before this one
# had come to is kept apart, and added.
_BATCHES, _BATCHED, _SYNC_SECONDS, _QUEUED, _WAITING, _PENDING_BYTES = range(19, 25)
_IN_BUCKET: Final = range(25, 25 + len(BUCKETS) + 1)  # the last one is for what took longer
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

    def restarted(self, slot: int) -> None:
        """Main process, the one writer of this: worker *slot* takes the place of one that has died."""
        self.column(slot)[_RESTARTS] += 1

    def summary(self) -> dict[str, int]:
        """Return the numbers that the log tells at SIGUSR1."""
        cells = {"delivered": _DELIVERIES["delivered"], "deferred": _DELIVERIES["deferred"]}
        cells |= {"refused": _DELIVERIES["refused"], "connections_total": _CONNECTIONS, "in_flight": _IN_FLIGHT}
        cells |= {"batches": _BATCHES, "restarts": _RESTARTS}
        return {name: int(self.total(cell)) for name, cell in cells.items()}


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

    def address_turned_away(self) -> None:
        """A connection was one too many from its address."""
        ...

    def cut_off(self) -> None:
        """A message ended before it was whole."""
        ...

    def tls_begun(self) -> None:
        """A connection has been encrypted."""
        ...

    def commit(self, statistics: CommitStatistics) -> None:
        """The `GroupCommit` tells this of itself."""
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

    def address_turned_away(self) -> None:
        """See `Tally`."""

    def cut_off(self) -> None:
        """See `Tally`."""

    def tls_begun(self) -> None:
        """See `Tally`."""

    def commit(self, statistics: CommitStatistics) -> None:
        """See `Tally`."""


class Metrics:
    """Counts for worker *slot*."""

    def __init__(self, counts: Counts, slot: int) -> None:
        self._cells = counts.column(slot)
        for gauge in (_OPEN, _IN_FLIGHT, _QUEUED, _WAITING, _PENDING_BYTES):
            self._cells[gauge] = 0.0  # whoever was here before may have died with some
        self._before = [self._cells[cell] for cell in (_BATCHES, _BATCHED, _SYNC_SECONDS)]

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

    def address_turned_away(self) -> None:
        """See `Tally`."""
        self._cells[_ADDRESS_TURNED_AWAY] += 1

    def cut_off(self) -> None:
        """See `Tally`."""
        self._cells[_CUT_OFF] += 1

    def tls_begun(self) -> None:
        """See `Tally`."""
        self._cells[_TLS] += 1

    def replied(self, reply: str | bytes) -> None:
        """One reply is sent to a client, or several, or a line of one that has more: the last line counts."""
        text = reply if isinstance(reply, str) else reply.decode("ascii", "replace")
        for line in text.split("\r\n") if "\n" in text else (text,):
            cell = _REPLIES.get(line[:1])
            if cell is not None and line[3:4] != "-":
                self._cells[cell] += 1

    def commit(self, statistics: CommitStatistics) -> None:
        """See `Tally`."""
        cells, before = self._cells, self._before
        cells[_IN_FLIGHT] = statistics.pending
        cells[_QUEUED] = statistics.queued
        cells[_WAITING] = statistics.waiting
        cells[_PENDING_BYTES] = statistics.pending_bytes
        cells[_BATCHES] = before[0] + statistics.batches
        cells[_BATCHED] = before[1] + statistics.messages
        cells[_SYNC_SECONDS] = before[2] + statistics.sync_s


class _Collector:
    """What Prometheus is told, as its library wants to have it."""

    def __init__(self, counts: Counts) -> None:
        self._total = counts.total

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            InfoMetricFamily,
        )

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
        yield counter(
            "connections_turned_away_by_address", "Connections past --max-connections-per-address", _ADDRESS_TURNED_AWAY
        )
        yield counter("tls_connections", "Connections that were encrypted", _TLS)
        yield counter("cut_off_messages", "Messages that ended before they were whole", _CUT_OFF)
        replies = CounterMetricFamily("maildir_async_replies", "Replies sent to clients, by class", labels=["reply"])
        for digit, cell in _REPLIES.items():
            replies.add_metric([f"{digit}xx"], self._total(cell))
        yield replies
        yield counter("batches", "Batches of messages taken to the disk", _BATCHES)
        yield counter("batched_messages", "Messages in them", _BATCHED)
        yield counter("sync_seconds", "Seconds that batches have waited for the disk to sync", _SYNC_SECONDS)
        yield gauge("queued", "Whole messages that no batch has taken yet", _QUEUED)
        yield gauge("waiting", "Messages that wait for a place among those in flight", _WAITING)
        yield gauge("pending_bytes", "Bytes that messages in flight hold, or may hold, in memory", _PENDING_BYTES)
        yield counter("worker_restarts", "Workers that took the place of one that had died", _RESTARTS)
        build = {"version": _version(), "python": platform.python_version()}
        yield InfoMetricFamily("maildir_async_build", "What runs here", value=build)


def _version() -> str:
    try:
        return version("maildir-async")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def collector(counts: Counts) -> "Collector":
    """Return what prometheus_client asks for what has been counted."""
    return _Collector(counts)
