"""Messages that say what they have to be, and what a writer notes of each. Pure."""

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from typing import Final, Literal

HOSTNAME: Final = "mail"
FOLDER: Final = "Archive/2026"

#: The maildirs on the volume, and those of them that one fan-out goes to.
INBOX: Final = "inbox"
LIMITED: Final = "limited"
FAN_OUT: Final = ("one", "two")
MAILDIRS: Final = (INBOX, LIMITED, *FAN_OUT)

Kind = Literal["bytes", "stream", "folder", "keywords", "quota", "fan-out"]
KINDS: Final[tuple[Kind, ...]] = ("bytes", "stream", "folder", "keywords", "quota", "fan-out")

Outcome = Literal["acknowledged", "refused", "uncertain"]


@dataclass(frozen=True, slots=True)
class Note:
    """What became of one message in one maildir.

    Attributes:
        name: of the message.
        kind: what was asked for.
        maildir: name of the maildir.
        folder: of it; "" for the inbox.
        keywords: that it got.
        outcome: what the writer was told.
        key: of the message, if it was acknowledged.
        reason: why not, else.
        began: seconds of the machine's monotonic clock.
        ended: the same.

    """

    name: str
    kind: Kind
    maildir: str
    folder: str
    keywords: tuple[str, ...]
    outcome: Outcome
    key: str
    reason: str
    began: float
    ended: float

    def line(self) -> bytes:
        """Return it as it is written down."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> "Note":
        """Return what *line* says."""
        fields = json.loads(line)
        return cls(**{**fields, "keywords": tuple(fields["keywords"])})


def message(name: str, size: int) -> bytes:
    """Return the message of that name, with a body of *size* bytes."""
    body = random.Random(name).randbytes(size)
    digest = hashlib.sha256(body).hexdigest()
    return f"X-Name: {name}\nX-Length: {size}\nX-Digest: {digest}\n\n".encode() + body


def name_of(content: bytes) -> str | None:
    """Return the name of a message that is whole; None for one that is not, or is no such message."""
    head, separator, body = content.partition(b"\n\n")
    fields = dict(line.partition(b": ")[::2] for line in head.split(b"\n"))
    if not separator or fields.get(b"X-Length") != str(len(body)).encode():
        return None
    if fields.get(b"X-Digest") != hashlib.sha256(body).hexdigest().encode():
        return None
    return fields.get(b"X-Name", b"").decode() or None
