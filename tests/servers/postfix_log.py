"""What Postfix says that it has done with each message, read from its log."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

#: Seconds: the log's clock has no finer ones.
RESOLUTION_S: Final = 1.0

_LINE: Final = re.compile(
    r"(?P<when>\w{3} [ \d]\d \d\d:\d\d:\d\d) \S+ postfix/(?P<program>[\w/-]+)\[\d+\]: (?P<text>.*)"
)
_ABOUT: Final = re.compile(r"(?P<id>[0-9A-Za-z]{10,}): (?P<what>.*)")
_FROM: Final = re.compile(r"from=<(?P<sender>[^>]*)>, size=\d+, nrcpt=(?P<recipients>\d+) ")
_TO: Final = re.compile(
    r"to=<(?P<to>[^>]*)>, (?:orig_to=<[^>]*>, )?relay=.*?"
    r"delays=(?P<delays>[\d.]+/[\d.]+/[\d.]+/[\d.]+), dsn=(?P<dsn>[\d.]+), status=(?P<status>\w+) \((?P<reason>.*)\)$"
)
_NOTICE: Final = re.compile(r"sender (?:non-delivery|delay) notification: (?P<id>\w+)")

#: What Postfix says when the connection broke after the message was sent and before it was answered.
_PERHAPS_TWICE: Final = "may be sent more than once"


@dataclass(frozen=True)
class Attempt:
    """One try to hand a message over for one recipient; `began` and `ended` are seconds, the real ones are later."""

    recipient: str
    status: str
    dsn: str
    reason: str
    began: float
    ended: float

    @property
    def is_final(self) -> bool:
        """Whether no other try follows."""
        return self.status != "deferred"


@dataclass
class History:
    """What became of a message.

    Attributes:
        sender: of the envelope.
        recipients: how many it has.
        attempts: in their order.
        notice: queue id of the bounce that was sent for it.
        removed: whether Postfix has done with it.

    """

    sender: str = ""
    recipients: int = 0
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    notice: str | None = None
    removed: bool = False

    def final(self, recipient: str) -> Attempt | None:
        """Return the last try for a recipient, if it ended the matter."""
        tries = [attempt for attempt in self.attempts if attempt.recipient == recipient]
        return tries[-1] if tries and tries[-1].is_final else None

    def perhaps_twice(self, recipient: str) -> int:
        """Return how often the message had been sent when the connection broke, and no reply had come."""
        return sum(_PERHAPS_TWICE in a.reason for a in self.attempts if a.recipient == recipient and not a.is_final)


class PostfixLog:
    """The log, as far as it has been read.

    Attributes:
        histories: by queue id.
        complaints: what is no daily business: warnings, errors, panics.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._first: datetime | None = None
        self.histories: dict[str, History] = {}
        self.complaints: list[str] = []

    def read(self) -> None:
        """Take in the lines that have been written since the last time."""
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole, _, _ = data.rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        self.take(whole.decode(errors="replace").splitlines())

    def take(self, lines: list[str]) -> None:
        """Take in some lines."""
        for line in lines:
            found = _LINE.match(line)
            if found is None:
                self.complaints.append(line)
                continue
            text = found["text"]
            if re.search(r"\b(warning|error|fatal|panic): ", text):
                self.complaints.append(line)
            about = _ABOUT.match(text)
            if about is not None:
                self._note(about["id"], about["what"], self._seconds(found["when"]))

    def _note(self, queue_id: str, what: str, now: float) -> None:
        history = self.histories.setdefault(queue_id, History())
        if sender := _FROM.match(what):
            history.sender, history.recipients = sender["sender"], int(sender["recipients"])
        elif to := _TO.match(what):
            connecting, sending = map(float, to["delays"].split("/")[2:])
            began = now - 1.05 * (connecting + sending)  # two digits is what Postfix tells
            history.attempts.append(Attempt(to["to"], to["status"], to["dsn"], to["reason"], began, now))
        elif notice := _NOTICE.match(what):
            history.notice = notice["id"]
        elif what == "removed":
            history.removed = True

    def _seconds(self, when: str) -> float:
        """Return seconds since the first line. The log has no year: 2000 had a 29th of February."""
        moment = datetime.strptime(f"2000 {when}", "%Y %b %d %H:%M:%S")
        if self._first is None:
            self._first = moment
        elif moment < self._first - timedelta(days=180):  # New Year's Eve
            moment = moment.replace(year=2001)
        return (moment - self._first).total_seconds()

    @property
    def unfinished(self) -> list[str]:
        """Queue ids of what Postfix has not done with."""
        return [queue_id for queue_id, history in self.histories.items() if not history.removed]
