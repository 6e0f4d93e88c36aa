"""What a check can find wrong in a maildir, and how it is told. Pure."""

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from maildir_async.format.folders import FolderEncoding
from maildir_async.format.names import UniqueNames, names_for

__all__ = ["FORMAT", "KINDS", "CheckOptions", "CheckReport", "Kind", "Level", "Problem"]

#: Raised when a name of the JSON is removed, or means another thing. New ones may come at any time.
FORMAT: Final = 1

Kind = (
    Literal["missing", "unreadable", "foreign", "size", "flags", "info-in-new", "double", "owner", "mode", "tmp"]
    | Literal["keywords", "quota", "same-content", "empty"]
)

Level = Literal["problem", "note"]
"""A note is told of, and no reason to exit with another code than 0."""

#: What each of them means.
KINDS: Final[dict[Kind, str]] = {
    "missing": "new/, cur/, tmp/, or a folder's maildirfolder is not there",
    "unreadable": "a directory or a file cannot be read",
    "foreign": "something that is no message: a directory, a symbolic link, a socket, a name with a dot in front",
    "size": "the name has another size than the file (S=), or than it has with CRLF line ends (W=)",
    "flags": "the name has flags that are none, twice, or out of order",
    "info-in-new": "a name in new/ has flags, for which cur/ is",
    "double": "two names of one directory pair have the same key: a reader takes them for one message",
    "owner": "it belongs to another user, or group, than its maildir",
    "mode": "others may do more with it than the directory says, or its owner less than he has to",
    "tmp": "a file in tmp/ has not been touched for so long that whoever wrote it is dead",
    "keywords": "dovecot-keywords has lines that no reader understands, or a letter has no name",
    "quota": "maildirsize says something else than what is there",
    "same-content": "two messages have the same content",
    "empty": "a message is empty",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        kind: one of `KINDS`.
        folder: its name, None for the maildir itself.
        path: what it is about.
        text: what is wrong with it.
        level: whether that is a problem.
        remedy: what a repair does; None if it leaves it to a person.
        repaired: whether that has been done; None if it has not been asked for.
        outcome: what has been done, or why nothing has.

    """

    kind: Kind
    folder: str | None
    path: str
    text: str
    level: Level = "problem"
    remedy: str | None = None
    repaired: bool | None = None
    outcome: str | None = None

    def settled(self, outcome: str, *, repaired: bool) -> "Problem":
        """Return it with what has become of it."""
        return replace(self, repaired=repaired, outcome=outcome)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "kind": self.kind,
            "level": self.level,
            "folder": self.folder,
            "path": self.path,
            "text": self.text,
            "remedy": self.remedy,
            "repaired": self.repaired,
            "outcome": self.outcome,
        }


@dataclass(frozen=True)
class CheckOptions:
    """How a maildir is looked at.

    Attributes:
        repair: put right what can be, without removing mail.
        is_quick: do not read messages whose names are plausible.
        encoding: how names of folders are written.
        tmp_age_s: seconds after which a file in ``tmp/`` is of a dead process.
        links_age_s: seconds for which two names of one file are left alone.
        lock_patience_s: for the lock of a folder.
        quiet_s: seconds for which nothing has to change before a quota is believed to be wrong.
        names: where new names come from.

    """

    repair: bool = False
    is_quick: bool = False
    encoding: FolderEncoding = "utf-7"
    tmp_age_s: float = 36 * 3600.0
    links_age_s: float = 30.0
    lock_patience_s: float = 10.0
    quiet_s: float = 5.0
    names: UniqueNames = field(default_factory=lambda: names_for(None))


@dataclass
class CheckReport:
    """What has been looked at, and how many of each kind have been found.

    Attributes:
        folders, messages, bytes_read: so many have been looked at.
        compressed: messages whose sizes cannot be checked, since they are compressed or encrypted.
        problems, notes: found.
        repaired: problems that are no more.
        kinds: problems and notes of each kind.

    """

    folders: int = 0
    messages: int = 0
    bytes_read: int = 0
    compressed: int = 0
    problems: int = 0
    notes: int = 0
    repaired: int = 0
    kinds: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, problem: Problem) -> None:
        """Count one."""
        if problem.level == "note":
            self.notes += 1
        else:
            self.problems += 1
            self.repaired += bool(problem.repaired)
        self.kinds[problem.kind] = self.kinds.get(problem.kind, 0) + 1

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "folders": self.folders,
            "messages": self.messages,
            "bytes_read": self.bytes_read,
            "compressed": self.compressed,
            "problems": self.problems,
            "notes": self.notes,
            "repaired": self.repaired,
            "kinds": self.kinds,
        }
