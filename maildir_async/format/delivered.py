"""What a caller learns of a delivery: how durable it is asked to be, and what became of it."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from maildir_async.format.html import fields_of, table

__all__ = ["Delivered", "DeliveredDraft", "Durability"]


class Durability(Enum):
    """What a message survives once `append` has returned. The names say what is synced, the texts what is lost."""

    FULL = "full"
    """File and directory entry: survives a power cut."""
    FILE = "file"
    """The file only: a power cut may lose the newest messages, but tears none."""
    NONE = "none"
    """Nothing: survives the death of the process. A power cut may lose messages, or leave them empty or torn."""


class DeliveredDraft:
    """What becomes a `Delivered` once it has been filled in.

    A frozen object takes three times as long to make as one whose attributes are set: group commit sets them, and then
    says what it is, by its class.
    """

    __slots__ = (
        *("path", "key", "folder", "flags", "keywords", "size", "wire_size"),
        *("durability", "duplicate", "queued_s", "commit_s", "warnings"),
    )

    path: str
    key: str
    folder: str | None
    flags: str
    keywords: tuple[str, ...]
    size: int
    wire_size: int
    durability: Durability
    duplicate: bool
    queued_s: float
    commit_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Delivered(DeliveredDraft):
    """One message delivered.

    Attributes:
        path: where it was published, in ``new/`` or (with flags) ``cur/``. A mail reader may have moved it since.
        key: its name before any ``:``; this stays when a reader moves it or sets flags.
        folder: the Maildir++ folder, None for the maildir itself.
        flags: sorted flag letters, without those that stand for keywords.
        keywords: IMAP keywords, as asked for.
        size: bytes stored, prefix included.
        wire_size: bytes with every line end a CRLF (IMAP's RFC822.SIZE).
        durability: what was reached. Less than asked for only where the file system cannot sync directories,
            and then `warnings` says so.
        duplicate: whether it was not stored, since one with the same key is there already: `path` is that one's.
        queued_s: seconds from being whole to being taken up by group commit.
        commit_s: seconds from then to being as durable as asked.
        warnings: what went wrong without endangering the message.

    """

    path: str
    key: str
    folder: str | None
    flags: str
    keywords: tuple[str, ...]
    size: int
    wire_size: int
    durability: Durability
    duplicate: bool
    queued_s: float
    commit_s: float
    warnings: tuple[str, ...] = field(default_factory=tuple)

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Delivered, tuple(getattr(self, name) for name in DeliveredDraft.__slots__)

    def __repr__(self) -> str:
        warned = f", {len(self.warnings)} warning(s)" if self.warnings else ""
        folder = f" folder={self.folder!r}" if self.folder else ""
        flags = f" flags={self.flags}" if self.flags else ""
        keywords = f" keywords={' '.join(self.keywords)}" if self.keywords else ""
        if self.duplicate:
            return f"<Delivered {self.key}{folder} a duplicate: not stored again>"
        return (
            f"<Delivered {self.key}{folder}{flags}{keywords} {self.size} bytes, {self.durability.name}, "
            f"{(self.queued_s + self.commit_s) * 1000:.1f} ms{warned}>"
        )

    def _repr_html_(self) -> str:
        """Return a table, for notebooks."""
        return table("Delivered", fields_of(self))
