"""The log of a disk, and the states that a power cut may leave the disk in. Pure, but for reading and writing files."""

import os
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["Crash", "Log", "Write", "crashes"]

_HEAD: Final = struct.Struct("QQQ")


@dataclass(frozen=True, slots=True)
class Write:
    """A write of the log: *length* bytes at *offset*, which are at *at* in the log's own file, or zeros if that is -1.

    Attributes:
        place: its number among all records of the log.

    """

    place: int
    offset: int
    length: int
    at: int


@dataclass(slots=True)
class Log:
    """What the recording disk saw.

    Attributes:
        path: of the log's file.
        writes: each, in their order.
        flushes: the places of the flushes.
        told: the packets that it was sent, each with its place.
        records: how many there are of all three.

    """

    path: Path
    writes: list[Write] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)
    told: list[tuple[int, bytes]] = field(default_factory=list)
    records: int = 0

    @classmethod
    def read(cls, path: Path) -> "Log":
        log, end = cls(path), os.path.getsize(path)
        with open(path, "rb") as file:
            while file.tell() < end:
                what, offset, length = _HEAD.unpack(file.read(_HEAD.size))
                if what == ord("W"):
                    log.writes.append(Write(log.records, offset, length, file.tell()))
                    file.seek(length, os.SEEK_CUR)
                elif what == ord("Z"):
                    log.writes.append(Write(log.records, offset, length, -1))
                elif what == ord("F"):
                    log.flushes.append(log.records)
                else:
                    log.told.append((log.records, file.read(length)))
                log.records += 1
        return log

    def told_before(self, place: int) -> list[bytes]:
        return [packet for at, packet in self.told if at < place]

    def apply(self, fd: int, write: Write, sectors: Sequence[int] | None = None, sector: int = 512) -> None:
        """Do *write* to the disk that is open as *fd*: all of it, or only those of its sectors."""
        with open(self.path, "rb") as file:
            if write.at < 0:
                data = bytes(write.length)
            else:
                file.seek(write.at)
                data = file.read(write.length)
        if sectors is None:
            os.pwrite(fd, data, write.offset)
        else:
            for number in sectors:
                os.pwrite(fd, data[number * sector : (number + 1) * sector], write.offset + number * sector)


@dataclass(frozen=True, slots=True)
class Crash:
    """A state that the disk may be in after a power cut.

    Attributes:
        cut: the power goes before the record with this place.
        flushed: how many writes are there for certain: those before the last flush.
        kept: the places among `Log.writes` of those after it that are there too.
        torn: which sectors of some of those are there, if not all.

    """

    cut: int
    flushed: int
    kept: tuple[int, ...] = ()
    torn: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __str__(self) -> str:
        kept = ", ".join(map(str, self.kept)) or "none"
        torn = "".join(f", of {write} the sectors {list(sectors)}" for write, sectors in self.torn)
        return (
            f"cut before record {self.cut}: the first {self.flushed} writes, and of those since the flush {kept}{torn}"
        )

    def complete(self, log: Log, fd: int, sector: int) -> None:
        """Do to a disk that has what was flushed what this crash adds to that."""
        torn = dict(self.torn)
        for number in self.kept:
            log.apply(fd, log.writes[number], torn.get(number), sector)


def crashes(log: Log, wanted: int, sector: int, seed: int = 0) -> list[Crash]:
    """Return *wanted* different crashes of *log* (fewer, if it has no more), in the order of their cuts.

    Spread evenly over the log. The most telling come first, at each place where something was acknowledged: the disk
    that keeps nothing but what was flushed, and the one that keeps all.
    """
    by_cut = _windows(log)
    draw = random.Random(seed)
    found = dict[tuple[object, ...], Crash]()
    cuts = [*(at + 1 for at, _ in log.told), *log.flushes, log.records]
    draw.shuffle(cuts)
    for cut in [log.records, *cuts[: wanted // 2]]:
        _keep(found, log, Crash(cut, by_cut[cut][0]))
    attempts = 0
    while len(found) < wanted and attempts < 60 * wanted:
        attempts += 1
        cut = draw.randrange(1, log.records + 1) if attempts % 3 else draw.choice(cuts)
        flushed, since = by_cut[cut]
        _keep(found, log, _draw(draw, log, cut, flushed, range(flushed, flushed + since), sector))
    return sorted(found.values(), key=lambda crash: (crash.flushed, crash.cut))[:wanted]


def _windows(log: Log) -> list[tuple[int, int]]:
    """Return for each cut how many writes are flushed, and how many there were since."""
    flushed = seen = 0
    flushes, writes = set(log.flushes), {write.place for write in log.writes}
    windows = [(0, 0)]
    for place in range(log.records):
        if place in flushes:
            flushed = seen
        seen += place in writes
        windows.append((flushed, seen - flushed))
    return windows


def _keep(found: dict[tuple[object, ...], Crash], log: Log, crash: Crash) -> None:
    # Two cuts with one disk differ if something was acknowledged between them; of those the later asks for more.
    key = (crash.flushed, crash.kept, crash.torn)
    if key not in found or len(log.told_before(crash.cut)) > len(log.told_before(found[key].cut)):
        found[key] = crash


def _draw(draw: random.Random, log: Log, cut: int, flushed: int, since: range, sector: int) -> Crash:
    """Return a crash at *cut* that keeps some of the writes *since* the flush: often all but few, or few."""
    share = draw.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    kept = tuple(number for number in since if draw.random() < share)
    if since and draw.random() < 0.3:
        one = draw.choice(since)
        kept = tuple(number for number in since if number != one) if draw.random() < 0.5 else (one,)
    torn = list[tuple[int, tuple[int, ...]]]()
    for number in draw.sample(kept, min(len(kept), draw.choice((0, 0, 1, 3)))):
        count = log.writes[number].length // sector
        if count > 1:
            torn.append((number, tuple(_some_sectors(draw, count))))
    return Crash(cut, flushed, kept, tuple(sorted(torn)))


def _some_sectors(draw: random.Random, count: int) -> Iterator[int]:
    """Yield some of *count* sectors and never all: the first ones, the last ones, or any."""
    how, at = draw.randrange(3), draw.randrange(1, count)
    missing = draw.randrange(count)
    for number in range(count):
        if (number < at, number >= at, number != missing and draw.random() < 0.5)[how]:
            yield number
