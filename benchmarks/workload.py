"""What one measurement does, what its messages look like, and what it reports.

Every message is its own: a head of 64 bytes with its number, then a body that is the same for all. So what is left in
a maildir can be checked byte for byte (`benchmarks.verify`), and the C and Go programs can make the same messages.
"""

import functools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self

__all__ = ["HEAD_SIZE", "Measurement", "Workload", "body", "head", "percentiles"]

KIB: Final = 2**10
MIB: Final = 2**20

#: Bytes before the body: two header lines and the empty one.
HEAD_SIZE: Final = 64

#: Bytes after which a body repeats itself.
PERIOD: Final = MIB

#: Sizes of messages in a mix, in turn: mean 16 KiB and mostly small, like filebench's "varmail".
MIX: Final = (1 * KIB, 2 * KIB, 4 * KIB, 4 * KIB, 8 * KIB, 13 * KIB, 32 * KIB, 64 * KIB)

#: Bytes of a chunk that a stream hands over: what an asyncio transport reads from a socket at most.
CHUNK: Final = 256 * KIB

#: Bytes of the streams that warm up.
WARMUP_STREAM: Final = 2 * MIB

Durability = Literal["full", "file", "none"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One measurement's work. It ends after *messages*, or after *seconds*, whichever comes first.

    Attributes:
        messages: at most so many in the timed part.
        seconds: at most so long; messages then in flight are seen through, but not counted in the rate.
        warmup: messages delivered before the clock starts, by the same process into the same maildirs.
        size: bytes of a message; 0 is a mix.
        in_flight: how many deliveries are under way at once.
        maildirs: message *n* goes to maildir *n* modulo this.
        existing: messages that are in the maildir before.
        durability: what must be synced when a delivery counts as done: file and directory, file, nothing.
        stream: whether messages come in chunks, and are never whole in memory.
        fresh: whether each chunk is an object of its own, as those from a network are; otherwise they cost nothing.
        turn_ms: CPU time that another coroutine on the loop takes each turn, in pure Python; 0 for none.
        rest_ms: what that one sleeps between turns; with 0 the loop is always busy.
        lag: whether to sample the loop's lag.
        loop: ``asyncio`` or ``uvloop``.
        descriptors: what to limit the process's file descriptors to, or None.
        pause_s: seconds from one burst, of as many as may be in flight, to the next; 0 for no pause.
        neighbour: MB/s that another process writes to the same file system meanwhile, without syncing.

    """

    messages: int
    seconds: float
    warmup: int = 200
    size: int = 4 * KIB
    in_flight: int = 1
    maildirs: int = 1
    existing: int = 0
    durability: Durability = "full"
    stream: bool = False
    fresh: bool = False
    turn_ms: float = 0
    rest_ms: float = 0
    lag: bool = False
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    descriptors: int | None = None
    pause_s: float = 0
    neighbour: int = 0

    def to_json(self) -> str:
        """Return it as an argument for a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` has written."""
        return cls(**json.loads(text))

    def size_of(self, number: int) -> int:
        """Return the bytes of message *number*."""
        if self.stream and number < self.warmup:
            return WARMUP_STREAM
        return self.size or MIX[number % len(MIX)]

    def message(self, number: int) -> bytes:
        """Return message *number*, whole."""
        return head(number) + body(self.size_of(number) - HEAD_SIZE)

    def chunks(self, number: int) -> Iterator[bytes]:
        """Return message *number* in chunks. None of them is made for it, but for the first."""
        left = self.size_of(number)
        first = min(left, CHUNK)
        yield head(number) + body(first - HEAD_SIZE)
        left -= first
        for piece in _forever():
            if left <= 0:
                return
            piece = piece if left >= len(piece) else piece[:left]
            yield bytes(memoryview(piece)) if self.fresh else piece
            left -= len(piece)

    async def async_chunks(self, number: int) -> AsyncIterator[bytes]:
        """Return the same, asynchronously. It has every chunk at once: the disk is what is measured."""
        for chunk in self.chunks(number):
            yield chunk


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one measurement has seen.

    Attributes:
        messages: delivered in the timed part.
        delivered: delivered in all, warm-up and stragglers included: what must be in the maildirs.
        bytes: in the timed part.
        seconds: how long that took.
        latency_ms: from handing a message over to its being done; p50, p90, p99, max.
        lag_ms: how much later than asked for the loop woke a coroutine that sleeps 1 ms, over and over.
        cpu_s: CPU time of the process and of children that have ended; a mail server's: of all its processes.
        memory: bytes by which the resident set grew, at its peak, over what it was after the warm-up.
        threads: of the process, in the end.
        descriptors: open in the process, in the end.
        load_cpu_s: CPU time of the clients, where they are a process of their own.

    """

    messages: int
    delivered: int
    bytes: int
    seconds: float
    latency_ms: dict[str, float] = field(default_factory=dict)
    lag_ms: dict[str, float] = field(default_factory=dict)
    cpu_s: float | None = None
    memory: int | None = None
    threads: int | None = None
    descriptors: int | None = None
    load_cpu_s: float | None = None

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds if self.seconds else 0.0

    @property
    def mb_s(self) -> float:
        """Megabytes a second."""
        return self.bytes / self.seconds / 1e6 if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def head(number: int) -> bytes:
    """Return the header of message *number*."""
    return b"Subject: benchmark message %010d\nX-Padding: xxxxxxxxxxxxx\n\n" % number


def body(size: int) -> bytes:
    """Return the first *size* bytes of a body: lines of 63 letters, which repeat after 1 MiB."""
    whole, rest = divmod(size, PERIOD)
    return _period() * whole + _period()[:rest]


def percentiles(values: list[float], scale: float = 1.0) -> dict[str, float]:
    """Return p50, p90, p99 and max of *values*, times *scale*."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    found = {f"p{share}": ordered[round(last * share / 100)] * scale for share in (50, 90, 99)}
    return {**found, "max": ordered[last] * scale}


@functools.cache
def _period() -> bytes:
    return b"".join(bytes([ord("a") + line % 26]) * 63 + b"\n" for line in range(PERIOD // 64))


@functools.cache
def _pieces() -> list[bytes]:
    """Return what follows the first chunk: the period, cut where chunks end."""
    start = CHUNK - HEAD_SIZE
    twice = _period() * 2
    return [twice[start + offset : start + offset + CHUNK] for offset in range(0, PERIOD, CHUNK)]


def _forever() -> Iterator[bytes]:
    while True:
        yield from _pieces()
