"""A directory that mail is imported from, with hostile names and files in it: each message is found or told of."""

import os
import tempfile
from pathlib import Path

from maildir_async.mail_import.messages import WHOLE_MOST, Messages
from maildir_async.mail_import.report import Problems

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    *(
        b"|",
        b"/",
        b"cur/",
        b"new/",
        b".sub/cur/",
        b":2,S",
        b"a",
        b"1",
        b"1=",
        b"=",
        b".mh_sequences=",
        b"dovecot-keywords=",
    ),
    *(
        b"unseen: 1-3 7\n",
        b"replied: 9-1\n",
        b"0 a\n",
        b"A: b\n\nc\n",
        b"From a Thu Jan  1 00:00:00 1970\n",
        b"x.mbox=",
        b".",
    ),
    *(b"\x85", b"\n", b"\r", b"\xc3\xa4", b".eml=", b".gz=", b"\x1f\x8b\x08", b"\0"),
)

#: So many files at most, since each one takes time to make.
MOST = 12


def target(data: bytes) -> None:
    """Make a file of each piece of *data* between ``|``: its path, ``=`` and what is in it."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as root:
        made = sum(_make(root, piece) for piece in data.split(b"|")[:MOST])
        problems = Problems()
        messages = Messages(root, (), "auto", problems)
        found = list(messages.each())
        total = messages.total()
        assert total is None or total == made - len(_control_files(root)) or total >= len(found)
        for message in found:
            assert message.path.startswith(root + "/")
            assert not message.is_long or len(message.first) > WHOLE_MOST
            assert set(message.flags) <= set("DFPRST")
            assert all(part and "." not in part and "/" not in part for part in message.folder)
            for keyword in message.keywords:
                assert keyword.isascii()
            if message.offset is None:
                content = Path(message.path).read_bytes()
                assert message.first == content or content.startswith(b"\x1f\x8b\x08")
        told = {problem.path for problem in problems.first} | {message.path for message in found}
        for path in _files(root) - _control_files(root):
            if os.path.getsize(path):
                assert path in told or _is_left_out(path, told), path


def _make(root: str, piece: bytes) -> bool:
    name, _, content = piece.partition(b"=")
    parts = [part[:60].replace(b"\0", b"") for part in name.split(b"/")][-4:]
    if any(part in (b"", b".", b"..") for part in parts):
        return False
    path = os.path.join(root, *map(decoded, parts))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(content)
    except OSError:
        return False
    return True


def _files(root: str) -> set[str]:
    return {os.path.join(where, name) for where, _, names in os.walk(root) for name in names}


def _control_files(root: str) -> set[str]:
    return {path for path in _files(root) if os.path.basename(path) in (".mh_sequences", "dovecot-keywords")}


def _is_left_out(path: str, told: set[str]) -> bool:
    """Whether the documentation says that such a file is not mail: hidden, removed by MH, or beside a Maildir's own."""
    name, where = os.path.basename(path), os.path.dirname(path)
    if "/cur/." in path or "/new/." in path:
        return True
    return (
        name.startswith((".", ","))
        or any(path.startswith(each + "/") for each in told)
        or bool({"cur", "new"} & {each.name for each in os.scandir(where) if each.is_dir()})
    )
