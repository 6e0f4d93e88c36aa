"""Names of folders, as told and as on the disk, in both encodings."""

from maildir_async.format.folders import ENCODINGS, LONGEST, directory_of, folder_of, parts_of
from maildir_async.mail_import.places import folder_part

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    b".",
    b"/",
    b"&",
    b"-",
    b"&-",
    b"&AOQ-",
    b"&2D0-",
    b"\\",
    b"\\057",
    b"\\303\\244",
    b"INBOX",
    b"\xc3\xa4",
    b"~",
    b"a",
)


def target(data: bytes) -> None:
    """Read *data* as a folder's name, and as a directory's."""
    text = decoded(data)
    for directory in (text.replace("/", ""), "." + text.replace("/", "").removeprefix(".")):
        for encoding in ENCODINGS:
            folder = folder_of(directory, encoding)
            if folder is not None:
                assert directory_of(parts_of(folder), encoding) == directory
    try:
        parts = parts_of(text)
    except ValueError:
        parts = ()
    else:
        assert "/".join(parts) == text or (not parts and text.upper() in ("", "INBOX"))
        assert parts_of(parts) == parts or parts == ()
    if parts:
        for encoding in ENCODINGS:
            _check(parts, encoding == "utf-7")
    told: list[str] = []
    part = folder_part(text.replace("/", "") or "x", "path", lambda _, reason: told.append(reason))
    assert (part != (text.replace("/", "") or "x")) == bool(told)
    if part.upper() != "INBOX":
        assert parts_of([part]) == (part,)


def _check(parts: tuple[str, ...], is_utf_7: bool) -> None:
    encoding = ENCODINGS[0 if is_utf_7 else 1]
    try:
        directory = directory_of(parts, encoding)
    except ValueError:
        # A dot in a part, which only Courier's way of writing has, or too long.
        assert (is_utf_7 and any("." in part for part in parts)) or len("/".join(parts).encode()) * 4 + 2 > LONGEST
        return
    assert directory.startswith(".")
    assert not directory.startswith("..")
    assert len(directory.encode()) <= LONGEST
    assert "/" not in directory
    assert not is_utf_7 or directory.isascii()
    assert folder_of(directory, encoding) == "/".join(parts)
