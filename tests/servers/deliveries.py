"""A program that delivers by the library, in each of its ways, as nobody: what the scenarios have Dovecot read.

``python -m tests.servers.deliveries folders MAILDIR``: every message of `MAIL` to every folder of `FOLDERS`, each
folder by a way of its own. ``... many MAILDIR OTHER MESSAGES SEED KIBIBYTES``: so many messages, under a quota, each
by a way that is drawn. Both print a JSON list of `Told`.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from maildir_async import Delivered, Maildir, Quota, deliver

from .daemon import environment
from .place import Place, Server, as_nobody

RECEIVED_AT: Final = 981_173_106  # 2001-02-03 04:05:06 UTC
FROM: Final = b"From: alice@example.com\n"

#: Subject → message, and options of append.
MAIL: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "plain": (FROM + b"Subject: plain\n\none\ntwo \xc3\xa9\n", {}),
    "crlf": (FROM.replace(b"\n", b"\r\n") + b"Subject: crlf\r\n\r\none\r\n.two\r\n", {}),
    "flagged": (FROM + b"Subject: flagged\n\nno line end", {"flags": "FRS"}),
    "draft": (FROM + b"Subject: draft\n\n", {"flags": "DP"}),
    "trashed": (FROM + b"Subject: trashed\n\n", {"flags": "ST"}),
    "old": (FROM + b"Subject: old\n\nold\r\nand mixed\n", {"received_at": RECEIVED_AT, "flags": "S"}),
    "keyword": (FROM + b"Subject: keyword\n\nsent on\n", {"keywords": ["$Forwarded", "work"], "flags": "S"}),
    "long": (FROM + b"Subject: long\n\n" + b"0123456789\n" * 60_000, {}),
}

#: Folder → its name as IMAP has it, with dots between the parts. The last is RFC 3501's example.
FOLDERS: Final[dict[str | None, str]] = {
    None: "INBOX",
    "Archive/2024": "Archive.2024",
    "Entwürfe": "Entw&APw-rfe",
    "a&b": "a&-b",
    "台北/日本語": "&U,BTFw-.&ZeVnLIqe-",
}

#: Messages of the program's many at once.
AT_ONCE: Final = 40


class Told(NamedTuple):
    """What the writer was told of a message: its folder, its file's name, sizes, and mtime in seconds."""

    folder: str | None
    name: str
    size: int
    wire_size: int
    mtime: int


def start(place: Place, name: str, *arguments: "str | Path") -> Server:
    """Start the program, as nobody."""
    home = place.directory(name)
    command = [sys.executable, "-m", "tests.servers.deliveries", *map(str, arguments)]
    return place.start(name, as_nobody(command), environment(home))


def told(server: Server) -> list[Told]:
    """Return what the program has said, which is over; `ValueError` if it has failed."""
    text = server.log.read_text()
    try:
        return [Told(*each) for each in json.loads(text)]
    except ValueError:
        raise ValueError(f"{server.name}: {text[-1000:]}") from None


async def _chunks(message: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(message), 50_000):
        yield message[start : start + 50_000]


async def _pushed(maildir: Maildir, message: bytes, options: dict[str, Any]) -> Delivered:
    async with maildir.open_append(**options) as task:
        await task.send(message)
    return task.future.result()


async def _folders(path: str) -> list[Delivered]:
    async with Maildir(path) as maildir, Maildir(f"{path}-other") as other:

        async def one(folder: str | None, message: bytes, options: dict[str, Any]) -> Delivered:
            if folder is None:
                return await maildir.append(message, **options)
            options = {**options, "folder": folder}
            if folder == "Archive/2024":
                return await maildir.append(_chunks(message), **options)
            if folder == "Entwürfe":
                return await _pushed(maildir, message, options)
            if folder == "a&b":
                outcome, _ = await deliver(message, [maildir, other], **options)
                assert outcome.delivered is not None
                return outcome.delivered
            (delivered,) = await maildir.append_many([message], atomic=len(message) % 2 == 0, **options)
            return delivered

        return [await one(folder, message, options) for folder in FOLDERS for message, options in MAIL.values()]


async def _many(path: str, other_path: str, messages: int, seed: int, kibibytes: int) -> list[Delivered]:
    draw = random.Random(seed)
    quota = Quota(bytes=kibibytes * 1024, messages=NUMBER_LIMIT)
    async with Maildir(path, quota=quota) as maildir, Maildir(other_path, quota=quota) as other:

        def message(largest: int = 4096) -> bytes:
            line = b"x" * draw.randrange(70) + (b"\r\n" if draw.random() < 0.1 else b"\n")
            body = line * draw.randrange(largest // len(line))
            return FROM + b"Subject: %d of %d\n\n" % (draw.randrange(10**9), seed) + body

        def options() -> dict[str, Any]:
            chosen: dict[str, Any] = {}
            if draw.random() < 0.4:
                chosen["folder"] = draw.choice(["Archive/2024", "Entwürfe", "台北/日本語"])
            if draw.random() < 0.2:
                chosen["keywords"] = draw.sample(["$Forwarded", "work", "home"], draw.randrange(1, 3))
            if draw.random() < 0.3:
                chosen["flags"] = draw.choice(["S", "FS", "RS", "D"])
            return chosen

        async def some(room: int) -> Sequence[Delivered]:
            """Deliver by one of the ways; at most *room* messages."""
            way, chosen = draw.choice(("append", "stream", "pushed", "several", "many", "atomic")), options()
            if way == "append":
                return [await maildir.append(message(), **chosen)]
            if way == "stream":
                return [await maildir.append(_chunks(message(200_000)), **chosen)]
            if way == "pushed":
                return [await _pushed(maildir, message(100_000), chosen)]
            if way == "several":
                outcomes = await deliver(message(), draw.sample([maildir, other], 2), **chosen)
                return [each.delivered for each in outcomes if each.delivered is not None and each.maildir is maildir]
            batch = [message() for _ in range(draw.randrange(1, min(room, 20) + 1))]
            return await maildir.append_many(batch, atomic=way == "atomic", **chosen)

        done: list[Delivered] = []
        running = 0

        async def worker() -> None:
            nonlocal running
            while (room := messages - len(done) - running) > 0:
                # The others leave this one's room alone.
                share = min(room, 20)
                running += share
                try:
                    done.extend(await some(share))
                finally:
                    running -= share

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        while len(done) < messages:
            done.extend(await some(messages - len(done)))
        return done


#: Messages that a maildir under a quota may hold: no limit that is met.
NUMBER_LIMIT: Final = 100_000


def main(what: str, path: str, *others: str) -> None:
    """Deliver, and say what was told."""
    if what == "folders":
        delivered = asyncio.run(_folders(path))
    else:
        delivered = asyncio.run(_many(path, others[0], *map(int, others[1:])))
    # What Dovecot has moved meanwhile is not where it was.
    mtimes = [int(os.stat(each.path).st_mtime) if what == "folders" else 0 for each in delivered]
    found = [
        Told(each.folder, os.path.basename(each.path), each.size, each.wire_size, mtime)
        for each, mtime in zip(delivered, mtimes, strict=True)
    ]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
