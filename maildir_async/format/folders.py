"""Maildir++ folder names, as a person writes them and as they stand on the disk. Pure.

A folder lies in the root of its maildir, in a directory whose name is a dot before each part: ``Archive/2024`` is
``.Archive.2024`` (Courier's README.maildirquota). How a part that is not plain ASCII is written there is up to the
reader: Dovecot expects IMAP's modified UTF-7 (RFC 3501 §5.1.3), Courier since 5.0 UTF-8 with octal escapes.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from maildir_async.format.given import given

__all__ = ["FolderEncoding", "check_folder_encoding", "directory_of", "folder_of", "parts_of"]

FolderEncoding = Literal["utf-7", "utf-8"]
"""``utf-7`` is IMAP's modified UTF-7, which Dovecot expects; ``utf-8`` is UTF-8 with Courier's escapes."""

ENCODINGS: Final[tuple[FolderEncoding, ...]] = ("utf-7", "utf-8")

#: Bytes of a directory's name: the 255 of every usual file system, less what a reader puts behind a name for a while.
LONGEST: Final = 240

_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_PLAIN: Final = re.compile(r"[^\x20-\x25\x27-\x7e]+")
_ENCODED: Final = re.compile(r"&([A-Za-z0-9+,]*)-")
_ESCAPED: Final = re.compile(rb"\\([0-3][0-7][0-7])")

#: What Courier writes as a backslash and three octal digits, besides control characters.
_COURIERS: Final = re.compile(r"[./~:\\]")


def check_folder_encoding(encoding: FolderEncoding) -> FolderEncoding:
    """Return *encoding*; ValueError unless it is one of the two."""
    if encoding not in ENCODINGS:
        raise ValueError(f"folder_encoding must be one of {', '.join(ENCODINGS)}, not {given(encoding)}")
    return encoding


def parts_of(folder: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the parts of a folder's name, from the outermost on; none of them for the maildir itself.

    A str is split at ``/``. None, ``""`` and ``INBOX`` in any case (RFC 9051 §5.1) are the maildir itself. TypeError
    for what is no name, ValueError for parts that no encoding carries.
    """
    if folder is None:
        return ()
    if isinstance(folder, str):
        parts = tuple(folder.split("/")) if folder else ()
    elif isinstance(folder, Iterable) and not isinstance(folder, (bytes, bytearray, memoryview)):
        parts = tuple(folder)
    else:
        raise TypeError(f"folder must be a str, a sequence of them or None, not {given(folder)}")
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"folder must be made of str, not {given(part)}")
        if not part:
            raise ValueError(f"folder has an empty part: {given(folder)}")
        if "/" in part:
            raise ValueError(f"folder has a part with a slash: {given(part)}")
        if _UNPRINTABLE.search(part):
            raise ValueError(f"folder has a part with a control character: {given(part)}")
        try:
            part.encode()
        except UnicodeEncodeError:
            raise ValueError(f"folder has a part with a lone surrogate: {given(part)}") from None
    if len(parts) == 1 and parts[0].upper() == "INBOX":
        return ()
    return tuple(map(str.__str__, parts))


def directory_of(parts: Sequence[str], encoding: FolderEncoding) -> str:
    """Return the name of a folder's directory. ValueError for what *encoding* cannot carry, and for a name too long."""
    encode = _to_utf_7 if encoding == "utf-7" else _to_courier
    name = "".join(f".{encode(part)}" for part in parts)
    if len(name.encode()) > LONGEST:
        raise ValueError(f"folder has a name of more than {LONGEST} bytes: {given('/'.join(parts))}")
    return name


def folder_of(directory: str, encoding: FolderEncoding) -> str | None:
    """Return the folder whose directory has that name, as it is told: parts with ``/`` between.

    None if it is no folder's name, or none that *encoding* would write.
    """
    if not directory.startswith(".") or directory.startswith(".."):
        return None
    decode = _from_utf_7 if encoding == "utf-7" else _from_courier
    try:
        parts = tuple(decode(part) for part in directory[1:].split("."))
        if parts_of(parts) == parts and directory_of(parts, encoding) == directory:
            return "/".join(parts)
    except ValueError:  # UnicodeError is one
        pass
    return None


def _to_utf_7(part: str) -> str:
    if "." in part:
        what = "which separates parts on the disk"
        raise ValueError(f"folder has a part with a dot, {what}: {given(part)}; write / between folders")
    return _NOT_PLAIN.sub(_shifted, part)


def _shifted(match: "re.Match[str]") -> str:
    """Return an ampersand, or what is no printable ASCII, as RFC 3501 §5.1.3 has it."""
    pieces = re.split(r"(&+)", match[0])
    return "".join(
        "&-" * len(piece)
        if piece.startswith("&")
        else f"&{base64.b64encode(piece.encode('utf-16-be'), b'+,').rstrip(b'=').decode()}-"
        for piece in pieces
        if piece
    )


def _from_utf_7(part: str) -> str:
    def shifted(match: "re.Match[str]") -> str:
        text = match[1]
        if not text:
            return "&"
        return base64.b64decode(text + "=" * (-len(text) % 4), b"+,", validate=True).decode("utf-16-be")

    return _ENCODED.sub(shifted, part)


def _to_courier(part: str) -> str:
    return _COURIERS.sub(lambda match: f"\\{ord(match[0]):03o}", part)


def _from_courier(part: str) -> str:
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), part.encode()).decode()
