"""Puts messages into Postfix, with its own `smtp-source` and with Python's smtplib, and lists what it took."""

import queue
import re
import smtplib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .mail import Letter, digest
from .place import Place, run
from .postfix_log import PostfixLog

_QUEUED_AS = re.compile(r"queued as (\w+)")


@dataclass(frozen=True)
class Accepted:
    """A message that Postfix has taken.

    Attributes:
        queue_id: Postfix's name for it.
        digest: of its content.
        size: bytes.
        sender: of the envelope.
        recipients: of the envelope.
        wave: all of an earlier wave had been delivered before it was sent.

    """

    queue_id: str
    digest: str
    size: int
    sender: str
    recipients: tuple[str, ...]
    wave: int = 0


def send(letters: Sequence[Letter], host: str, port: int, *, connections: int, wave: int) -> list[Accepted]:
    """Send all letters with smtplib, over so many connections at once; return them, in no order."""
    waiting: queue.SimpleQueue[Letter] = queue.SimpleQueue()
    for letter in letters:
        waiting.put(letter)
    taken: list[Accepted] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            with smtplib.SMTP(host, port, timeout=60) as client:
                client.ehlo()
                while True:
                    taken.append(_send(client, waiting.get_nowait(), wave))
        except queue.Empty:
            pass
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return taken


def _send(client: smtplib.SMTP, letter: Letter, wave: int) -> Accepted:
    content = letter.content()
    client.mail(letter.sender, ["BODY=8BITMIME"])
    for recipient in letter.recipients:
        code, text = client.rcpt(recipient)
        if code != 250:
            raise smtplib.SMTPResponseException(code, text)
    code, text = client.data(content)
    queued = _QUEUED_AS.search(text.decode())
    if queued is None:
        raise smtplib.SMTPDataError(code, text)
    return Accepted(queued[1], digest(content), len(content), letter.sender, letter.recipients, wave)


class Source:
    """Batches by `smtp-source`, which sends the same message again and again, and does not say what it is called.

    So every batch has a sender of its own, by which it is found in Postfix's log.
    """

    def __init__(self, place: Place, host: str, port: int) -> None:
        self._place = place
        self._server = f"inet:{host}:{port}"
        self._batches: dict[str, tuple[int, Path, int]] = {}

    def send(self, letter: Letter, messages: int, wave: int, *options: str) -> None:
        """Send a letter with one recipient so many times. *options*: ``-N``, ``-r 3`` change the recipient."""
        sender = letter.sender.replace("@", f"+batch{len(self._batches)}@")
        path = self._place.path / f"batch-{len(self._batches)}"
        path.write_bytes(letter.content(b"\n"))
        self._batches[sender] = messages, path, wave
        (recipient,) = letter.recipients
        command = ["smtp-source", "-s", "10", "-m", str(messages), "-M", "client.test", "-f", sender, "-t", recipient]
        run([*command, "-F", str(path), *options, self._server], 600)

    def accepted(self, log: PostfixLog) -> tuple[list[Accepted], list[str]]:
        """Return what Postfix has taken, by its log, and what of it was not as it should be."""
        found: list[Accepted] = []
        faults: list[str] = []
        for sender, (messages, path, wave) in self._batches.items():
            content = path.read_bytes() + b"\n"  # smtp-source's own
            mine = {queue_id: history for queue_id, history in log.histories.items() if history.sender == sender}
            if len(mine) != messages:
                faults.append(f"smtp-source sent {messages} messages as {sender}, and Postfix took {len(mine)}")
            for queue_id, history in mine.items():
                recipients = tuple(dict.fromkeys(attempt.recipient for attempt in history.attempts))
                if len(recipients) != history.recipients:
                    faults.append(f"{queue_id} has {history.recipients} recipients, of whom {len(recipients)} are seen")
                found.append(Accepted(queue_id, digest(content), len(content), sender, recipients, wave))
        return found, faults
