"""What a user sees by IMAP, and what is on the disk behind it."""

import imaplib
import re
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

from .dovecot import Dovecot
from .mail import digest

#: How many sessions fetch at once.
SESSIONS: Final = 4

#: How many sessions of one user may be dropped before he is given up.
DROPS: Final = 5

_POSTFIX: Final = re.compile(rb"by \S+ \(Postfix\)(?:\s+with \w+)?\s+id (\w+)")
_FIELD: Final = re.compile(rb"[!-9;-~]+:[^\n]*\n(?:[ \t][^\n]*\n)*")
_FETCHED: Final = re.compile(rb"UID (\d+).*?RFC822\.SIZE (\d+)")
_SIZES: Final = re.compile(r",S=(\d+),W=(\d+)")


@dataclass(frozen=True)
class Refusal:
    """What a bounce says: of which message, for whom, and with which code (RFC 3464)."""

    queue_id: str
    recipient: str
    status: str
    diagnostic: str


@dataclass(frozen=True)
class Copy:
    """A message as IMAP shows it.

    Attributes:
        user: whose it is.
        uid: its UID.
        queue_id: what Postfix calls it; "" if Postfix has not seen it.
        trace: the names and values of the header fields before those that it was sent with, in their order.
        digest: of what follows these.
        size: RFC822.SIZE.
        octets: length of what was fetched.
        refusals: what it says if it is a bounce.

    """

    user: str
    uid: int
    queue_id: str
    trace: tuple[tuple[str, str], ...]
    digest: str
    size: int
    octets: int
    refusals: tuple[Refusal, ...] = ()


def fetch_all(dovecot: Dovecot, users: Iterable[str]) -> tuple[list[Copy], list[str]]:
    """Return all messages of all users, each user's by UID; and whose sessions Dovecot has dropped."""
    with ThreadPoolExecutor(SESSIONS) as pool:
        found = list(pool.map(partial(_fetch_mailbox, dovecot), sorted(users)))
    return [copy for copies, _ in found for copy in copies], [fault for _, faults in found for fault in faults]


def _fetch_mailbox(dovecot: Dovecot, user: str) -> tuple[list[Copy], list[str]]:
    found: list[Copy] = []
    faults: list[str] = []
    while len(faults) < DROPS:
        client = dovecot.connect(user)
        try:
            _ok(client.select("INBOX", readonly=True))
            (uids,) = _ok(client.uid("SEARCH", "ALL"))
            for uid in (uids or b"").split()[len(found) :]:
                copy = _fetch(client, user, uid.decode())
                found.append(copy)
            client.logout()
            break
        except imaplib.IMAP4.abort as exc:  # what Dovecot does when it disagrees with a file's name
            faults.append(f"{user}: the session was dropped after {len(found)} messages: {exc}")
            client.shutdown()
    return found, faults


def _fetch(client: imaplib.IMAP4, user: str, uid: str) -> Copy:
    answer = _ok(client.uid("FETCH", uid, "(UID RFC822.SIZE BODY.PEEK[])"))
    about, content = cast("tuple[bytes, bytes]", next(item for item in answer if isinstance(item, tuple)))
    numbers = _FETCHED.search(about)
    assert numbers is not None, about
    return copy_of(user, int(numbers[1]), content, int(numbers[2]))


def _ok(answer: tuple[str, list[Any]]) -> list[Any]:
    if answer[0] != "OK":
        raise imaplib.IMAP4.error(answer)
    return answer[1]


def copy_of(user: str, uid: int, content: bytes, size: int) -> Copy:
    """Return what *content* is: the trace fields up to Postfix's, and what was sent."""
    octets = len(content)
    content = content.replace(b"\r\n", b"\n")
    trace: list[tuple[str, str]] = []
    queue_id, start = "", 0
    while not queue_id and (line := _FIELD.match(content, start)):
        name, _, value = line[0].partition(b":")
        trace.append((name.decode(), " ".join(value.decode(errors="replace").split())))
        start = line.end()
        if name == b"Received" and (by := _POSTFIX.search(line[0])):
            queue_id = by[1].decode()
    if not queue_id:
        trace, start = [], 0
    content = content[start:]
    return Copy(user, uid, queue_id, tuple(trace), digest(content), size, octets, tuple(_refusals(content)))


def _refusals(content: bytes) -> Iterable[Refusal]:
    if b"\nContent-Type: multipart/report;" not in content[:4096]:
        return
    for part in message_from_bytes(content).walk():
        if part.get_content_type() == "message/delivery-status":
            about, *recipients = cast("list[Message]", part.get_payload())
            for recipient in recipients:
                yield Refusal(
                    queue_id=str(about["X-Postfix-Queue-ID"]),
                    recipient=str(recipient["Final-Recipient"]).partition(";")[2].strip(),
                    status=str(recipient["Status"]),
                    diagnostic=" ".join(str(recipient["Diagnostic-Code"]).split()),
                )


@dataclass
class Watch:
    """Users who look at their mail while it arrives, so that UIDs are given all the time, and not all at the end.

    Attributes:
        seen: user → UIDs, as they came up.
        faults: what no IMAP server may do: another UIDVALIDITY, a new message below an old one.

    """

    dovecot: Dovecot
    users: tuple[str, ...]
    seen: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    faults: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        clients: dict[str, imaplib.IMAP4] = {}
        validity: dict[str, bytes] = {}
        try:
            for user in self.users:
                clients[user] = self.dovecot.connect(user)
                _ok(clients[user].select("INBOX"))
                validity[user] = clients[user].response("UIDVALIDITY")[1][0]
                self.seen[user] = []
            while not self._stop.wait(0.2):
                for user, client in clients.items():
                    self._look(user, client)
            for user, client in clients.items():
                _ok(client.select("INBOX"))
                if client.response("UIDVALIDITY")[1][0] != validity[user]:
                    self.faults.append(f"{user}: another UIDVALIDITY")
        except Exception as exc:  # the check that these users have seen something would fail too, and say less
            self.faults.append(f"watching failed: {exc!r}")
        finally:
            for client in clients.values():
                client.shutdown()

    def _look(self, user: str, client: imaplib.IMAP4) -> None:
        _ok(client.noop())
        seen = self.seen[user]
        last = seen[-1] if seen else 0
        (uids,) = _ok(client.uid("SEARCH", f"UID {last + 1}:*"))
        new = [int(uid) for uid in (uids or b"").split()]
        if new != [last]:  # n:* names the last message even if it is below n
            if any(uid <= last for uid in new):
                self.faults.append(f"{user}: UIDs {new} after {last}")
            seen.extend(new)

    def missing(self, copies: Iterable[Copy]) -> list[str]:
        """Return what is wrong with *copies*, in which everything that these users have seen has to be."""
        uids: dict[str, set[int]] = {}
        for copy in copies:
            uids.setdefault(copy.user, set()).add(copy.uid)
        return [
            f"{user}: UIDs that were seen are gone: {lost}"
            for user, seen in self.seen.items()
            if (lost := sorted(set(seen) - uids.get(user, set())))
        ]


def check_files(maildirs: Mapping[str, Path], *, killed: bool) -> list[str]:
    """Return what is wrong with the files: sizes in names, what is left in tmp/, what is not a maildir's.

    Dovecot believes our ``S=`` if only ``W=`` is right, hence the look. A killed worker may leave something in tmp/.
    """
    faults: list[str] = []
    for user, maildir in maildirs.items():
        for path in [*maildir.glob("new/*"), *maildir.glob("cur/*")]:
            content = path.read_bytes()
            wire = len(content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
            sizes = _SIZES.search(path.name)
            if sizes is None or (int(sizes[1]), int(sizes[2])) != (len(content), wire):
                faults.append(f"{user}: {path.name} has {len(content)} bytes, {wire} with CRLF")
        left = [] if killed else sorted(path.name for path in maildir.glob("tmp/*"))
        if left:
            faults.append(f"{user}: left in tmp/: {left}")
    return faults
