"""The table of cases: which peers do which workloads on which file system, and what is asked of ours."""

from dataclasses import replace
from typing import Final

from benchmarks.case import Case, Entry, Form, Target
from benchmarks.workload import KIB, MIB, Workload

__all__ = ["cases"]


def cases(form: Form) -> list[Case]:
    """Return the cases of *form*."""
    found = [
        *_alone_and_together(form),
        *_elsewhere(form),
        *_the_loop(form),
        *_streams(form),
        *_many(form),
        *_servers(form),
        *_variants(form),
    ]
    return [case for case in found if form.full or case.quick]


def _entries(workload: Workload, quick: str, full: str = "", *, form: Form) -> tuple[Entry, ...]:
    """Return a line for each peer named in *quick*, and in the full form for those in *full* too."""
    return tuple(Entry(peer, workload) for peer in (quick + " " + full * form.full).split())


def _alone_and_together(form: Form) -> list[Case]:
    everybody = "anyio twisted aiosmtpd stdlib-loop mdeliver dovecot go-maildir"
    return [
        Case(
            "full-64",
            "FULL, 64 in flight, 4 KiB, one maildir",
            "jext4",
            _entries(
                form.workload(in_flight=64),
                "ours stdlib-threads aiofiles floor ours-syncfs floor-syncfs",
                f"floor-no-writeback ours-helper one-hop raw {everybody}",
                form=form,
            ),
            "stdlib-threads",
            (
                Target("FULL, 64 in flight, against stdlib in threads", "ours", 2.7, against="stdlib-threads"),
                Target("FULL, 64 in flight, against naive aiofiles", "ours", 5.5, against="aiofiles"),
                Target("FULL, 64 in flight, against C", "ours", 0.85, against="floor"),
                Target("FULL with syncfs, against C with syncfs", "ours-syncfs", 0.9, against="floor-syncfs"),
            ),
            quick=True,
        ),
        Case(
            "full-1",
            "FULL, one at a time, 4 KiB, one maildir",
            "jext4",
            _entries(
                form.workload(warmup=50), "ours raw stdlib-threads aiofiles", f"floor one-hop {everybody}", form=form
            ),
            "raw",
            (Target("FULL, one at a time, against raw os calls", "ours", 0.9, against="raw"),),
            quick=True,
        ),
        Case(
            "none-64",
            "NONE, 64 in flight, 4 KiB, one maildir (raw: one at a time, in a plain loop)",
            "jext4",
            _entries(form.workload(in_flight=64, durability="none"), "ours raw", "floor twisted go-maildir", form=form),
            "raw",
            (Target("NONE, 64 in flight, against raw os calls", "ours", 0.8, against="raw"),),
            quick=True,
        ),
        Case(
            "none-1",
            "NONE, one at a time, 4 KiB, one maildir",
            "jext4",
            _entries(form.workload(durability="none"), "ours one-hop", "raw aiofiles twisted", form=form),
            "one-hop",
            (Target("NONE, one at a time, against one to_thread hop", "ours", 1.2, against="one-hop"),),
            quick=True,
        ),
    ]


def _elsewhere(form: Form) -> list[Case]:
    peers = "ours stdlib-threads"
    more = "aiofiles floor ours-syncfs floor-syncfs"
    title = "FULL, 64 in flight, 4 KiB, one maildir"
    target = Target("slow disk, 64 in flight, against stdlib in threads", "ours", 3.3, against="stdlib-threads")
    at_once = form.workload(in_flight=64)
    return [
        Case("slow-64", title, "slow", _entries(at_once, peers, more, form=form), "stdlib-threads", (target,), True),
        Case("xfs-64", title, "xfs", _entries(at_once, peers, more, form=form), "stdlib-threads"),
        Case("tmpfs-64", title, "tmpfs", _entries(at_once, peers, more, form=form), "stdlib-threads"),
    ]


#: CPU time of a turn and sleep after it, in ms; what is asked of an always busy loop: messages a second, worst ms.
TURNS: Final = ((2.0, 1.0, 0, 0), (0.2, 0.0, 1500, 100), (1.0, 0.0, 1500, 100), (4.0, 0.0, 1000, 250))


def _the_loop(form: Form) -> list[Case]:
    found = [
        Case(
            "lag",
            "loop lag, FULL, 64 in flight, 4 KiB",
            "jext4",
            _entries(
                form.workload(in_flight=64, lag=True),
                "nothing ours",
                "stdlib-threads aiofiles ours-syncfs ours-helper stdlib-loop twisted",
                form=form,
            ),
            "ours",
            (Target("loop lag p99 with 64 in flight, ms", "ours", 1.2, "lag_p99"),),
            quick=True,
        )
    ]
    for turn_ms, rest_ms, least, worst in TURNS:
        busy = f"turns of {turn_ms:g} ms"
        how = "two thirds busy" if rest_ms else "always busy"
        targets = (
            Target(f"{how}, {busy}: a second", "ours", least, "per_second"),
            Target(f"{how}, {busy}: worst, ms", "ours", worst, "worst"),
            Target(f"{how}, {busy}, helper process: a second", "ours-helper", 3000, "per_second"),
            Target(f"{how}, {busy}, helper process: worst, ms", "ours-helper", 100, "worst"),
        )
        load = form.workload(
            in_flight=64, lag=True, turn_ms=turn_ms, rest_ms=rest_ms, seconds=form.seconds * 2, messages=20_000
        )
        found.append(
            Case(
                f"busy-{turn_ms:g}" if not rest_ms else "busy-two-thirds",
                f"a loop {how} ({busy}), FULL, 64 in flight, 4 KiB",
                "jext4",
                # Beside a loop that is always busy whatever hops between threads stands still: 64 messages take
                # aiofiles minutes, of which nothing could be learnt.
                _entries(load, "ours ours-helper", "stdlib-threads aiofiles" if rest_ms else "", form=form),
                "ours",
                () if rest_ms else targets,
                quick=turn_ms in (1, 4),
            )
        )
    return found


#: The variant that shows what is held in memory: the others' chunks cost nothing, so holding them does not either.
FRESH: Final = "each chunk a new object"


def _streams(form: Form) -> list[Case]:
    size = (1024 if form.full else 256) * MIB
    one = form.workload(stream=True, size=size, messages=1, warmup=2)
    many = form.workload(stream=True, size=size // 64, messages=64, warmup=64, in_flight=64)
    return [
        Case(
            "stream-1",
            f"one stream of {size // MIB} MiB, FULL, in chunks of 256 KiB",
            "jext4",
            (
                *_entries(one, "ours floor", form=form),
                *(
                    Entry(peer, replace(one, fresh=True), FRESH)
                    for peer in ("ours", *["aiofiles", "anyio", "stdlib-threads"] * form.full)
                ),
            ),
            "floor",
            (
                Target("a stream, MB/s against C", "ours", 0.8, "mb_s", "floor"),
                Target("a stream, growth of memory, MiB", f"ours {FRESH}", 16, "memory"),
            ),
            quick=True,
        ),
        Case(
            "stream-64",
            f"64 streams of {size // 64 // MIB} MiB at once, FULL, in chunks of 256 KiB, {FRESH}",
            "jext4",
            _entries(replace(many, fresh=True), "ours floor", "aiofiles", form=form),
            "floor",
        ),
    ]


def _many(form: Form) -> list[Case]:
    at_once = form.workload(in_flight=64)
    spread = replace(at_once, maildirs=min(64, at_once.messages))
    ten_thousand = form.workload(in_flight=64, maildirs=10_000, descriptors=1024, warmup=0)
    entries = [
        *(Entry("ours", at_once, "x 1"), Entry("ours-quota", at_once, "x 1")),
        *(Entry("ours", spread, "x 64"), Entry("ours-folders", spread, "x 64")),
    ]
    if form.full:
        entries += [Entry("floor", at_once, "x 1"), Entry("floor", spread, "x 64")]
        entries += [Entry("stdlib-threads", at_once, "x 1"), Entry("stdlib-threads", spread, "x 64")]
        entries += [Entry("ours", ten_thousand, "x 10,000, at most 1,024 descriptors")]
    sizes = (0, 1_000, 100_000, 1_000_000) if form.full else (0, 100_000)
    in_flights = (1, 64) if form.full else (64,)
    return [
        Case(
            "maildirs",
            "FULL, 64 in flight, 4 KiB, over many maildirs, and folders of one",
            "jext4",
            tuple(entries),
            "ours x 1",
            (
                Target("64 maildirs against one", "ours x 64", 0.6, against="ours x 1"),
                Target("64 folders against 64 maildirs", "ours-folders x 64", 0.9, against="ours x 64"),
                Target("with a quota, against none", "ours-quota x 1", 0.8, against="ours x 1"),
            ),
            quick=True,
        ),
        Case(
            "mailbox-size",
            "FULL, 4 KiB, into a maildir with messages in it",
            "jext4",
            tuple(
                Entry(
                    "ours",
                    form.workload(in_flight=in_flight, existing=size, messages=5000),
                    f"x {in_flight}, with {size:,}",
                )
                for in_flight in in_flights
                for size in sizes
            ),
            "ours x 64, with 0",
            tuple(
                Target(
                    f"into {sizes[-1]:,} messages, {in_flight} in flight, cost against an empty maildir",
                    f"ours x {in_flight}, with {sizes[-1]:,}",
                    1.2,
                    "cost",
                    f"ours x {in_flight}, with 0",
                )
                for in_flight in in_flights
            ),
            quick=True,
        ),
    ]


def _servers(form: Form) -> list[Case]:
    at_once = form.workload(in_flight=64)
    large = 100 * MIB if form.full else 20 * MIB
    one = form.workload(stream=True, size=large, messages=2, warmup=1)
    together = form.workload(stream=True, size=20 * MIB, messages=10, warmup=10, in_flight=10, lag=True)
    return [
        Case(
            "smtp-64",
            "SMTP, FULL, 64 connections, 4 KiB, one maildir",
            "jext4",
            _entries(
                at_once, "smtp smtp-mailbox smtp-streaming-sink", "smtp-stock smtp-one-by-one smtp-sink", form=form
            ),
            "smtp-mailbox",
            (
                Target("SMTP, 64 connections, against aiosmtpd's Mailbox", "smtp", 4, against="smtp-mailbox"),
                Target(
                    "SMTP, 64 connections, against StreamingSMTP that discards",
                    "smtp",
                    0.5,
                    against="smtp-streaming-sink",
                ),
            ),
            quick=True,
        ),
        Case(
            "lmtp-64",
            "LMTP, FULL, 64 connections, 4 KiB, one maildir",
            "jext4",
            _entries(at_once, "lmtp lmtp-dovecot", form=form),
            "lmtp-dovecot",
            (Target("LMTP, 64 connections, against Dovecot", "lmtp", 2.5, against="lmtp-dovecot"),),
        ),
        Case(
            "smtp-100mib",
            f"SMTP, FULL, messages of {large // MIB} MiB, one after another",
            "jext4",
            (
                *_entries(one, "smtp smtp-stock smtp-mailbox smtp-streaming-sink", form=form),
                Entry("smtp", replace(one, messages=4, warmup=4, in_flight=4), "x 4"),
            ),
            "smtp-mailbox",
            (
                Target("SMTP, 100 MiB, MB/s against aiosmtpd's Mailbox", "smtp", 5, "mb_s", "smtp-mailbox"),
                Target("SMTP, 100 MiB, growth of memory, MiB", "smtp", 16, "memory"),
                Target("SMTP, 100 MiB, 4 at once, growth of memory, MiB", "smtp x 4", 4 * 16, "memory"),
            ),
        ),
        Case(
            "smtp-stall",
            "SMTP, FULL, 10 messages of 20 MiB at once",
            "jext4",
            _entries(together, "smtp smtp-stock smtp-mailbox smtp-streaming-sink", form=form),
            "smtp-mailbox",
            (Target("SMTP, 10 messages of 20 MiB at once, longest stall of the loop, ms", "smtp", 20, "lag_max"),),
        ),
    ]


def _variants(form: Form) -> list[Case]:
    at_once = form.workload(in_flight=64)
    concurrency = tuple(
        Entry(peer, form.workload(in_flight=in_flight, warmup=max(50, in_flight)), f"x {in_flight:,}")
        for peer in ("ours", "stdlib-threads", "floor", *["aiofiles"] * form.full)
        for in_flight in ((1, 4, 16, 64, 256, 1024) if form.full else (4, 64, 1024))
    )
    sizes = {"4 KiB": (4 * KIB, 12_000), "64 KiB": (64 * KIB, 4000), "1 MiB": (MIB, 300), "mix": (0, 8000)}
    bursts = form.workload(in_flight=8, pause_s=0.25, seconds=form.seconds * 3)
    neighbours, neighbours_bursts = (
        tuple(
            Entry(peer, replace(work, neighbour=speed), f"beside {speed} MB/s")
            for peer in ("ours", "ours-syncfs", "stdlib-threads")
            for speed in (0, 300)
        )
        for work in (at_once, bursts)
    )
    loops = [Entry("ours", at_once, "on asyncio"), Entry("ours", replace(at_once, loop="uvloop"), "on uvloop")]
    return [
        Case("concurrency", "FULL, 1 to 1,024 in flight, 4 KiB", "jext4", concurrency, "ours x 64", quick=True),
        Case(
            "sizes",
            "FULL, 64 in flight, messages of different sizes (mix: mean 16 KiB)",
            "jext4",
            tuple(
                Entry(peer, form.workload(in_flight=64, size=size, messages=count, warmup=64), name)
                for name, (size, count) in sizes.items()
                for peer in ("ours", "stdlib-threads", "floor")
            ),
            "ours 4 KiB",
        ),
        Case(
            "durability",
            "the three levels, 64 in flight, 4 KiB",
            "jext4",
            tuple(
                Entry(peer, form.workload(in_flight=64, durability=level), level.upper())
                for level in ("full", "file", "none")
                for peer in ("ours", "floor")
            ),
            "ours FULL",
        ),
        Case(
            "neighbour",
            "FULL, 64 in flight, 4 KiB, beside somebody else's unsynced writes",
            "jext4",
            neighbours,
            "ours beside 0 MB/s",
        ),
        Case(
            "neighbour-bursts",
            "FULL, bursts of 8 every 0.25 s, 4 KiB, beside somebody else's unsynced writes",
            "jext4",
            neighbours_bursts,
            "ours beside 0 MB/s",
        ),
        Case(
            "interpreters",
            "FULL, 64 in flight, 4 KiB, on other loops and interpreters",
            "jext4",
            (*loops, *(Entry("ours", at_once, f"under {version}", python) for version, python in form.pythons.items())),
            "ours on asyncio",
            quick=bool(form.pythons),
        ),
    ]
