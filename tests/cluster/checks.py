"""Compares what the writers were told with what a mount, or a brick, shows. `test_cluster` plants each fault."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .mail import LIMITED, Note, name_of

#: Of a Maildir++ folder on the disk, the name that users see.
FOLDERS: Final = {"": "", ".Archive.2026": "Archive/2026"}


#: Messages with a quota that all writers together have under way; by chance all may be.
UNDER_WAY: Final = 6 * 6


@dataclass(frozen=True, slots=True)
class Copy:
    """A message file as it is found.

    Attributes:
        name: of the message; None if it is not whole.
        maildir: name of the maildir.
        folder: of it; "" for the inbox.
        keywords: by the letters of its name and ``dovecot-keywords``.
        key: of the message.
        size: of the file.

    """

    name: str | None
    maildir: str
    folder: str
    keywords: frozenset[str]
    key: str
    size: int


def read(root: Path, maildirs: Iterable[str]) -> tuple[list[Copy], list[str], list[str]]:
    """Return the messages of the maildirs below *root*, what is not as it should be there, and what is in ``tmp/``."""
    copies, faults, in_tmp = list[Copy](), list[str](), list[str]()
    for maildir in maildirs:
        for at, folder in FOLDERS.items():
            place = root / maildir / at
            if not place.is_dir():
                continue
            in_tmp += [f"{maildir}/{at} {name}" for name in os.listdir(place / "tmp")]
            known = _keywords(place / "dovecot-keywords")
            for path in [*(place / "new").iterdir(), *(place / "cur").iterdir()]:
                content = path.read_bytes()
                key, _, info = path.name.partition(":2,")
                letters = [letter for letter in info if letter.islower()]
                unknown = [letter for letter in letters if letter not in known]
                faults += [f"{path.name}: no keyword has the letter {letter}" for letter in unknown]
                keywords = frozenset(known[letter] for letter in letters if letter in known)
                copies.append(Copy(name_of(content), maildir, folder, keywords, key, len(content)))
        for path in (root / maildir).rglob("*.lock"):
            faults.append(f"{path.name} is left in {maildir}")
    return copies, faults, in_tmp


def _keywords(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    return {chr(ord("a") + int(number)): name for number, name in lines}


#: What GlusterFS says where it has no quorum: for a volume of which two bricks are away, or for one directory that two
#: bricks do not agree about.
NO_QUORUM: Final = "Transport endpoint is not connected"


def is_without_quorum(note: Note) -> bool:
    """Tell whether a message was refused as the store had no quorum, by its own word."""
    return note.outcome == "refused" and note.reason.endswith(NO_QUORUM)


def is_unknowable(note: Note) -> bool:
    """Tell whether a message was refused as it was published without a quorum: it may be there.

    One brick has the name then, and no client can look: reads want a quorum, too. The heal may keep either state.
    """
    return is_without_quorum(note) and "publish failed: " in note.reason


def is_put_off(note: Note) -> bool:
    """Tell whether a message was refused as another had the lock of the keywords for too long: a busy disk does that.

    The library waits ten seconds, and then says 451 so that the client comes again. A lock that nobody has is left in
    the maildir in the end, which is a fault.
    """
    return note.outcome == "refused" and note.kind == "keywords" and note.reason.endswith("the lock")


def compare(notes: Sequence[Note], copies: Sequence[Copy]) -> list[str]:
    """Return what must not be: lost, torn, double, clashing, elsewhere, or there though it was refused."""
    faults = [f"torn: {copy.maildir}/{copy.folder} {copy.key}" for copy in copies if copy.name is None]
    told = {(note.name, note.maildir): note for note in notes}
    faults += [
        f"told twice: {each}" for each, times in Counter((n.name, n.maildir) for n in notes).items() if times > 1
    ]
    found = defaultdict[tuple[str, str], list[Copy]](list)
    for copy in copies:
        if copy.name is not None:
            found[copy.name, copy.maildir].append(copy)
    for (maildir, key), times in Counter((copy.maildir, copy.key) for copy in copies).items():
        if times > 1:
            faults.append(f"{times} of one key: {maildir} {key}")
    for each, note in told.items():
        here = found.pop(each, [])
        what = f"{note.name} ({note.kind}) in {note.maildir}"
        if note.outcome == "acknowledged" and not here:
            faults.append(f"lost: {what}")
        if note.outcome == "refused" and here and not is_unknowable(note):
            faults.append(f"there, though refused: {what}: {note.reason}")
        if len(here) > 1:
            faults.append(f"{len(here)} times: {what}")
        for copy in here:
            if copy.folder != note.folder:
                faults.append(f"in {copy.folder or 'the inbox'}: {what}")
            if copy.keywords != frozenset(note.keywords):
                faults.append(f"keywords {sorted(copy.keywords)}: {what}")
            if note.outcome == "acknowledged" and copy.key != note.key:
                faults.append(f"key {copy.key}, and {note.key} was told: {what}")
    faults += [f"nobody was told of {name} in {maildir}" for name, maildir in found]
    return faults


def count_quota(root: Path, copies: Sequence[Copy]) -> tuple[int, list[str]]:
    """Return how many messages ``maildirsize`` does not know of, and what is wrong with it.

    The protocol has no lock: what one machine records in a file that another is about to replace by its count is not
    in the new one, until that is counted anew. Each message that was under way then may be missing, and no more.
    """
    of_it = [copy for copy in copies if copy.maildir == LIMITED]
    if not (root / LIMITED / "maildirsize").exists():
        return 0, ["there is no maildirsize, though one process came last, and alone"]
    lines = [line.split() for line in (root / LIMITED / "maildirsize").read_text().splitlines()[1:]]
    size, number = (sum(int(line[column]) for line in lines) for column in (0, 1))
    there = (sum(copy.size for copy in of_it), len(of_it))
    missing = there[1] - number
    is_right = (size, number) == there if missing == 0 else 0 < missing <= UNDER_WAY and size < there[0]
    faults = [] if is_right else [f"maildirsize counts {(size, number)}, and {there} is there (bytes, messages)"]
    return missing, faults


def differences(bricks: Sequence[Path], maildirs: Iterable[str]) -> list[str]:
    """Return in what the bricks' own files differ."""
    seen = [_files(brick, maildirs) for brick in bricks]
    faults = list[str]()
    for number, files in enumerate(seen[1:], 1):
        for name in sorted(seen[0].keys() ^ files.keys()):
            faults.append(f"bricks 0 and {number}: {name} is on one of them")
        for name in sorted(seen[0].keys() & files.keys()):
            if seen[0][name] != files[name]:
                faults.append(f"bricks 0 and {number} differ in {name}")
    return faults


def _files(brick: Path, maildirs: Iterable[str]) -> dict[str, bytes]:
    return {
        str(path.relative_to(brick)): hashlib.sha256(path.read_bytes()).digest()
        for maildir in maildirs
        for path in (brick / maildir).rglob("*")
        if path.is_file()
    }


def waits(notes: Iterable[Note]) -> tuple[float, float, float]:
    """Return the median, the 99th percentile and the longest wait of what was acknowledged, in seconds."""
    seconds = sorted(note.ended - note.began for note in notes if note.outcome == "acknowledged")
    if not seconds:
        return (0.0, 0.0, 0.0)
    return (seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100], seconds[-1])
