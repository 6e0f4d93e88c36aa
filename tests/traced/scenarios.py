"""The programs that are killed, and that meet faults: each uses the library as a user's program does."""

import asyncio
import mailbox
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from maildir_async import Delivered, DuplicateFilter, GroupCommit, Maildir, Quota, deliver, import_mail

__all__ = ["SCENARIOS", "Scenario", "Tell", "message"]

#: Tells what has been acknowledged: the message's name, and where it is.
Tell = Callable[[str, str], None]

#: Messages of an import, of a batch, of a transaction.
MANY: Final = 16
FEW: Final = 4


@dataclass(frozen=True, slots=True)
class Scenario:
    """One program.

    Args:
        name: its name on the command line.
        run: delivers below a directory the messages whose names begin with a tag, and tells of each that is.
        in_flight: files in ``tmp/`` that it may leave if it is killed.
        maildirs: those it delivers to, below that directory.
        prepare: what is there before it begins.
        copies: how often a message may be in a maildir after it has been run again with the same tag, to the end; None
            if that is not to be tried.
        keywords: what each message has.
        others: a process of its own is killed, and the program goes on.
        beside: what a maildir has that is no message, when nothing is left behind.

    """

    name: str
    run: Callable[[Path, str, Tell], Awaitable[None]]
    in_flight: int = 1
    maildirs: tuple[str, ...] = ("m",)
    prepare: Callable[[Path], None] = lambda place: None
    copies: int | None = None
    keywords: tuple[str, ...] = ()
    others: bool = False
    beside: frozenset[str] = field(default_factory=frozenset)


def message(name: str, size: int = 3000) -> bytes:
    """Return a message that tells whether it is whole: its first line has its length, its last line ends it."""
    return b"Subject: %s %d\nMessage-ID: <%s@x>\n\n%s\n-- end\n" % (name.encode(), size, name.encode(), b"x" * size)


async def _stream(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 300_000):
        yield content[start : start + 300_000]


def _tell(tell: Tell, name: str, delivered: Delivered) -> None:
    tell(name, delivered.path)


async def alone(place: Path, tag: str, tell: Tell) -> None:
    """Two messages, one after the other: the first makes the maildir."""
    maildir = Maildir(place / "m")
    for number in range(2):
        _tell(tell, f"{tag}{number}", await maildir.append(message(f"{tag}{number}")))


async def _append_all(maildir: Maildir, tag: str, tell: Tell, count: int) -> None:
    async def one(name: str) -> None:
        _tell(tell, name, await maildir.append(message(name)))

    await asyncio.gather(*(one(f"{tag}{number}") for number in range(count)))


async def batch(place: Path, tag: str, tell: Tell) -> None:
    """Sixteen in one round."""
    await _append_all(Maildir(place / "m"), tag, tell, MANY)


async def syncfs(place: Path, tag: str, tell: Tell) -> None:
    """Four in one round, with one sync of the whole file system."""
    await _append_all(Maildir(place / "m", commit=GroupCommit(syncfs=True)), tag, tell, FEW)


async def streaming(place: Path, tag: str, tell: Tell) -> None:
    """Two long messages at once, each in several chunks."""
    maildir = Maildir(place / "m")

    async def one(name: str) -> None:
        _tell(tell, name, await maildir.append(_stream(message(name, 1_500_000))))

    await asyncio.gather(one(f"{tag}0"), one(f"{tag}1"))


async def folder(place: Path, tag: str, tell: Tell) -> None:
    """A folder is made for each of two messages, with a flag."""
    maildir = Maildir(place / "m")
    for number in range(2):
        name = f"{tag}{number}"
        _tell(tell, name, await maildir.append(message(name), folder=f"Archive/{number}", flags="S"))


async def quota(place: Path, tag: str, tell: Tell) -> None:
    """Three, one after the other, each counted."""
    maildir = Maildir(place / "m", quota=Quota(bytes=10_000_000))
    for number in range(3):
        _tell(tell, f"{tag}{number}", await maildir.append(message(f"{tag}{number}")))


async def keywords(place: Path, tag: str, tell: Tell) -> None:
    """Two with keywords, of which each brings a new one, for which the lock is needed."""
    maildir = Maildir(place / "m")
    for number in range(2):
        name = f"{tag}{number}"
        _tell(tell, name, await maildir.append(message(name), keywords=["$Forwarded", name]))


async def transaction(place: Path, tag: str, tell: Tell) -> None:
    """Four, of which all or none are delivered."""
    names = [f"{tag}{number}" for number in range(FEW)]
    delivered = await Maildir(place / "m").append_many([message(name) for name in names], atomic=True)
    for name, each in zip(names, delivered, strict=True):
        _tell(tell, name, each)


async def fan_out(place: Path, tag: str, tell: Tell) -> None:
    """One to three maildirs, short and then long."""
    maildirs = [Maildir(place / name) for name in ("a", "b", "c")]
    for number, size in enumerate((3000, 700_000)):
        name = f"{tag}{number}"
        for outcome in await deliver(message(name, size), maildirs):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.delivered is not None
            _tell(tell, name, outcome.delivered)


async def duplicates(place: Path, tag: str, tell: Tell) -> None:
    """Three, each given twice at once, by their Message-ID."""
    maildir = Maildir(place / "m", duplicates=DuplicateFilter(place / "seen"))

    async def one(name: str) -> None:
        _tell(tell, name, await maildir.append(message(name), duplicate_key=True))

    for number in range(3):
        await asyncio.gather(one(f"{tag}{number}"), one(f"{tag}{number}"))


async def importing(place: Path, tag: str, tell: Tell) -> None:
    """An mbox of four with folders beside it: what is in it is acknowledged when all has been imported."""
    report = await import_mail(place / f"{tag}.mbox", place / "m")
    assert not report.problems, report
    for number in range(FEW):
        tell(f"{tag}{number}", "")


def _make_mboxes(place: Path) -> None:
    for tag in ("first-", "second-"):
        box = mailbox.mbox(str(place / f"{tag}.mbox"))
        for number in range(FEW):
            box.add(message(f"{tag}{number}"))
        box.close()


async def helper(place: Path, tag: str, tell: Tell) -> None:
    """A helper process delivers two short messages and a long one."""
    commit = GroupCommit(helper_process=True)
    maildir = Maildir(place / "m", commit=commit)
    await _append_all(maildir, tag, tell, 2)
    name = f"{tag}long"
    _tell(tell, name, await maildir.append(_stream(message(name, 1_500_000))))


SCENARIOS: Final = {
    each.name: each
    for each in (
        Scenario("alone", alone),
        Scenario("batch", batch, in_flight=MANY),
        Scenario("syncfs", syncfs, in_flight=FEW),
        Scenario("streaming", streaming, in_flight=2),
        Scenario("folder", folder),
        Scenario("quota", quota, beside=frozenset(["maildirsize"])),
        Scenario(
            "keywords", keywords, keywords=("$Forwarded",), beside=frozenset(["dovecot-keywords", "dovecot-uidlist"])
        ),
        Scenario("transaction", transaction, in_flight=FEW),
        Scenario("fan-out", fan_out, in_flight=1, maildirs=("a", "b", "c")),
        Scenario("duplicates", duplicates, in_flight=2, copies=2),
        Scenario("import", importing, in_flight=FEW, prepare=_make_mboxes, copies=1),
        Scenario("helper", helper, in_flight=3, others=True),
    )
}
