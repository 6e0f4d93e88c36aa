"""Many deliveries of every kind under a quota, by several processes, while an IMAP client moves and removes some.

In the end what ``maildirsize`` says, what Dovecot and Courier say, and what is on the disk are one.
"""

import imaplib
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

from . import deliveries
from .checks import Verdict
from .deliveries import NUMBER_LIMIT
from .dovecot import Dovecot, quota_by_imap
from .place import NOBODY, Place, Server, as_nobody

USER: Final = "held@a.test"

PROCESSES: Final = 3

KIBIBYTES: Final = 4 * 1024 * 1024

#: Messages that come while an IMAP client is at work.
MOVED: Final = 500

#: Seconds that all deliveries may take.
DELIVERED_S: Final = 300

#: Of an IMAP client's own.
MESSAGE: Final = b"Subject: by IMAP\r\n\r\nhello\r\n"


class Client:
    """A user who moves, copies, removes and stores messages while others come, until the block ends.

    Attributes:
        done: how often what was done.
        faults: what went wrong.

    """

    def __init__(self, dovecot: Dovecot) -> None:
        self._dovecot = dovecot
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.removed = self.moved = self.added = 0
        self.faults: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        draw = random.Random(11)
        try:
            with self._dovecot.connect(USER) as client:
                client.create("Done")
                while not self._stop.wait(0.02):
                    client.select("INBOX")
                    uids = cast("bytes", client.uid("SEARCH", "ALL")[1][0] or b"").split()
                    some = b",".join(draw.sample(uids, min(len(uids), 3))).decode()
                    if draw.random() < 0.2:
                        self.added += _ok(client.append(draw.choice(["INBOX", "Done"]), "", "", MESSAGE))
                    if some and draw.random() < 0.5:
                        _ok(client.uid("STORE", some, "+FLAGS.SILENT", "\\Deleted"))
                        self.removed += len(client.expunge()[1])
                    elif some:
                        self.moved += _ok(client.uid("MOVE", some, "Done"))
        except (OSError, imaplib.IMAP4.error) as exc:
            self.faults.append(f"the IMAP client: {exc!r}")


def _ok(answer: tuple[str, object]) -> int:
    if answer[0] != "OK":
        raise imaplib.IMAP4.error(answer)
    return 1


def held(place: Place, say: Callable[[str], None], messages: int, debian: Path | None = None) -> Verdict:
    """Deliver so many *messages*, and compare; return what was found. With *debian*, its Dovecot counts too."""
    verdict = Verdict()
    root = place.directory("mail")
    box = place.directory("mail/a.test/held", NOBODY) / "Maildir"
    dovecot = Dovecot(place, root, [USER], quota=(KIBIBYTES, NUMBER_LIMIT))

    def agree(what: str, delivered: int) -> None:
        """See that the file, Dovecot and the disk say the same, and that no message is missing."""
        size, number = there = _there(box)
        verdict.counts["cases"] += 3
        if number != delivered:
            verdict.faults.append(f"{what}: {number} messages are there, not {delivered}")
        # Where it was counted anew while others delivered there is no file, until somebody asks.
        if (told := _told(box)) not in (there, None):
            verdict.faults.append(f"{what}: maildirsize says {told}, and there are {there}")
        rounded = -(-size // 1024), number
        with dovecot.connect(USER) as session:
            by_imap = quota_by_imap(session)[:2]
        for whose, found in (("IMAP", by_imap), ("doveadm quota get", dovecot.quota(USER))):
            if found != rounded:
                verdict.faults.append(f"{what}: {whose} has {found}, and there are {there}")

    # Not more than the file has lines for: Dovecot, if it counts anew, misses what comes in the same second.
    say("delivering under a quota, with an IMAP client")
    first = min(messages, MOVED)
    with Client(dovecot) as client:
        kept = _deliver(place, verdict, box, first, "with-client")
    verdict.faults += client.faults
    kept += client.added - client.removed
    if not client.added or not client.removed or not client.moved:
        verdict.faults.append(f"the IMAP client has not done each: {client.added}, {client.removed}, {client.moved}")
    agree("with an IMAP client", kept)
    if messages > first:
        say("delivering under a quota")
        kept += _deliver(place, verdict, box, messages - first, "many")
        agree("many", kept)
    verdict.counts["accepted"] = kept
    kept += _deliver(place, verdict, box, 1, "one")
    agree("one more", kept)
    if shutil.which("deliverquota") is None:
        print("NOT TESTED WITH COURIER'S DELIVERQUOTA: apt-get install maildrop", flush=True)
    else:
        kept += _by_courier(box)
        agree("one by Courier", kept)
        (box / "maildirsize").unlink()
        kept += _by_courier(box)
        agree("counted by Courier", kept)
    dovecot.doveadm("quota", "recalc", "-u", USER)
    agree("counted by Dovecot", kept)
    kept += _deliver(place, verdict, box, 1, "after-recalc")
    agree("one more after that", kept)
    verdict.faults += [f"Dovecot: {line}" for line in dovecot.complaints()] + dovecot.stop()
    if debian is not None:
        dovecot = Dovecot(place, root, [USER], quota=(KIBIBYTES, NUMBER_LIMIT), debian=debian)
        agree("Dovecot 2.4", kept)
        dovecot.doveadm("quota", "recalc", "-u", USER)
        agree("counted by Dovecot 2.4", kept)
        kept += _deliver(place, verdict, box, 1, "after-2.4")
        agree("one more after Dovecot 2.4", kept)
        verdict.faults += [f"Dovecot 2.4: {line}" for line in dovecot.complaints()] + dovecot.stop()
    verdict.counts["delivered"] = kept
    return verdict


def _deliver(place: Place, verdict: Verdict, box: Path, messages: int, what: str) -> int:
    """Have so many delivered by processes of ours, all at once; return how many they were told of."""
    other, number = box.with_name("Other"), min(messages, PROCESSES)
    shares = [messages // number + (at < messages % number) for at in range(number)]
    writers: list[Server] = [
        deliveries.start(place, f"{what}-{seed}", "many", box, other, str(share), str(seed), str(KIBIBYTES))
        for seed, share in enumerate(shares)
    ]
    for writer in writers:
        try:
            writer.process.wait(DELIVERED_S)
        finally:
            verdict.faults += writer.stop(None)
    told = sum(len(deliveries.told(writer)) for writer in writers)
    if told != messages:
        verdict.faults.append(f"{what}: {told} of {messages} messages are told of")
    return told


def _by_courier(box: Path) -> int:
    """Have one delivered by Courier's program for that; return how many that are."""
    command = as_nobody(["deliverquota", str(box), f"{KIBIBYTES * 1024}S,{NUMBER_LIMIT}C"])
    subprocess.run(command, input=MESSAGE.replace(b"\r\n", b"\n"), check=True, timeout=60)
    return 1


def _there(box: Path) -> tuple[int, int]:
    """Return bytes and messages on the disk."""
    sizes = [path.stat().st_size for where in ("new", "cur") for path in box.glob(f"**/{where}/*")]
    return sum(sizes), len(sizes)


def _told(box: Path) -> tuple[int, int] | None:
    """Return bytes and messages that ``maildirsize`` tells of; None if there is none."""
    try:
        _, *lines = (box / "maildirsize").read_text().splitlines()
    except FileNotFoundError:
        return None
    size, number = (sum(int(line.split()[at]) for line in lines) for at in (0, 1))
    return size, number
