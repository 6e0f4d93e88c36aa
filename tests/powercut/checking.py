"""Looks at what a power cut has left: what was promised is there, what is visible is whole, and all of it works."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from maildir_async import Maildir, Quota, import_mail
from maildir_async.format.keywords import parse_keywords

from .messages import message, number_of

__all__ = ["Found", "check", "look"]

#: Seconds in which a maildir has to take a message: it is usable at once, and waits for nothing that died.
AT_ONCE_S = 20

#: The numbers of messages that the check itself delivers.
LATER = 1_000_000


@dataclass
class Found:
    """What came of one state.

    Attributes:
        faults: what a promise was broken by.
        lost: acknowledged messages that are not there whole, whatever was promised of them.
        torn: visible files that are no whole message.
        promised: how many were checked to be there.
        locks: how many maildirs still have the lock file of one who was changing their keywords.

    """

    faults: list[str] = field(default_factory=list)
    lost: int = 0
    torn: int = 0
    promised: int = 0
    locks: int = 0


def check(root: Path, told: Iterable[bytes], *, tears: bool = False) -> Found:
    """Check the maildirs below *root* by what the workload has *told* by the time of the power cut.

    With *tears* a visible message that was not promised may be torn (`Durability.NONE`).
    """
    packets = [json.loads(packet) for packet in told]
    found = Found()
    look(root, packets, found, tears=tears)
    try:
        asyncio.run(asyncio.wait_for(_use(root, packets, found), AT_ONCE_S))
    except TimeoutError:
        found.faults.append(f"not usable at once: it took more than {AT_ONCE_S} s")
    except Exception as exc:
        found.faults.append(f"not usable at once: {type(exc).__name__}: {exc}")
    return found


def look(root: Path, packets: list[dict[str, Any]], found: Found, *, tears: bool) -> None:
    """Read every visible file."""
    there = dict[str, int | None]()
    for path in _files(root, "new", "cur"):
        there[str(path)] = number = number_of(path.read_bytes())
        found.torn += number is None
        if number is None and not tears:
            found.faults.append(f"torn: {path.relative_to(root)}, {path.stat().st_size} bytes")
    synced = max((at for at, packet in enumerate(packets) if packet["what"] == "synced"), default=-1)
    gone_before = ""
    for at, packet in enumerate(packets):
        if packet["what"] == "imported":
            numbers = {number for path, number in there.items() if path.startswith(packet["maildir"] + "/")}
            missing = set(packet["numbers"]) - numbers
            found.promised += len(packet["numbers"])
            found.lost += len(missing)
            if missing:
                found.faults.append(f"lost: {len(missing)} messages of a finished import")
        if packet["what"] != "delivered":
            continue
        promised = packet["promised"] or at < synced
        found.promised += promised
        path = packet["path"]
        whole = there.get(path) == packet["number"]
        found.lost += not whole
        if promised and not whole:
            found.faults.append(f"{'torn' if path in there else 'lost'}, though acknowledged: {path}")
        elif whole and gone_before and not tears:
            found.faults.append(f"lost, though not the newest: {gone_before}")
        if not whole and not promised:
            gone_before = path
        if whole and packet["keywords"] and _keywords(path) != packet["keywords"]:
            found.faults.append(f"its keywords are {_keywords(path)}, not {packet['keywords']}: {path}")


def _files(root: Path, *names: str) -> Iterable[Path]:
    for directory, _, files in os.walk(root):
        if os.path.basename(directory) in names:
            yield from (Path(directory, name) for name in files)


def _keywords(path: str) -> list[str]:
    letters = [letter for letter in path.rpartition(":2,")[2] if letter.islower()]
    try:
        names = parse_keywords(Path(path).parent.parent.joinpath("dovecot-keywords").read_bytes())
    except OSError:
        return []
    return sorted(str(names[ord(letter) - ord("a")]) for letter in letters if ord(letter) - ord("a") in names)


async def _use(root: Path, packets: list[dict[str, Any]], found: Found) -> None:
    """Deliver to each maildir, list it, sweep it: as the next process would, at once."""
    paths = {Path(packet["maildir"]) for packet in packets if packet["what"] == "importing"}
    for directory, names, _ in os.walk(root):
        if {"cur", "new", "tmp"} & {*names} and not os.path.basename(directory).startswith("."):
            paths.add(Path(directory))
    await asyncio.gather(*(_use_one(path, packets, found) for path in paths))


async def _use_one(path: Path, packets: list[dict[str, Any]], found: Found) -> None:
    counted = (path / "maildirsize").exists()
    # Its owner is dead, but its bytes were never synced, so nobody can know: for two minutes a new keyword is refused
    # (a temporary error), as by Dovecot. Those two minutes are over here.
    for lock in path.rglob("*.lock"):
        found.locks += 1
        lock.unlink()
    maildir = Maildir(path, quota=Quota(bytes=10**8) if counted else None)
    folders = list(await maildir.folders()) if path.exists() else []
    words = ("later",) if (path / "dovecot-keywords").exists() else ()
    for folder in (None, *folders):
        delivered = await maildir.append(message(LATER), folder=folder, keywords=words)
        if number_of(Path(delivered.path).read_bytes()) != LATER or delivered.warnings:
            found.faults.append(f"a later message: {delivered}")
        if words and _keywords(delivered.path) != [*words]:
            found.faults.append(f"a later message's keywords: {_keywords(delivered.path)}")
    index = await maildir.index()
    if not any(number_of(Path(entry.path).read_bytes()) == LATER for entry in index):
        found.faults.append("a later message is not listed")
    for packet in packets:
        if packet["what"] == "importing" and packet["maildir"] == str(path):
            await import_mail(packet["source"], maildir)
            times = Counter(number_of(each.read_bytes()) for each in _files(path, "new", "cur"))
            wrong = {number: times[number] for number in range(1, packet["messages"] + 1) if times[number] != 1}
            if wrong:
                found.faults.append(f"imported anew, these are not there once: {wrong}")
    await maildir.clean_tmp(older_than=timedelta(0))
    if left := [*_files(path, "tmp")]:
        found.faults.append(f"clean_tmp has left {left}")
