"""The messages of one folder looked at, and whether any two have one key. Everything here blocks."""

from collections.abc import Callable
from typing import Final

from maildir_async.disk.directories import Directories
from maildir_async.disk.scanning import scan
from maildir_async.format.hashes import Hashes
from maildir_async.format.names import key_of
from maildir_async.format.problems import CheckOptions, Problem
from maildir_async.mailbox.examining import Examiner, kind_of_file
from maildir_async.mailbox.repairing import Repairs
from maildir_async.mailbox.settling import Settling, reason

__all__ = ["check_messages", "double"]

#: Names with one key that are told apart at once.
_MOST_NAMES: Final = 64


def check_messages(
    box: Directories,
    folder: str | None,
    examiner: Examiner,
    options: CheckOptions,
    settling: Settling,
    is_wanted: Callable[[], None],
) -> None:
    """Look at each message, and then whether any two have one key.

    A directory is read a name at a time. Of a million messages their hashes are kept, and of those that are to be
    repaired a batch.
    """
    repairs = None
    if options.repair:
        repairs = Repairs(
            box,
            options.names,
            settling.settle,
            links_age_s=options.links_age_s,
            patience_s=options.lock_patience_s,
        )
    keys, doubled = Hashes(), set[int]()
    for where in ("new", "cur"):
        try:
            with scan(box.disk, box.subdirectory(where)) as scanned:
                for name in scanned.names():
                    is_wanted()
                    if has_come := keys.add(number := hash(key_of(name))):
                        doubled.add(number)
                    finding = examiner.examine(scanned, where, name, has_come=has_come)
                    if finding is None:
                        continue
                    if finding.moves and keys.add(number := hash(key_of(finding.new_name))):
                        doubled.add(number)
                    if repairs is not None and any(problem.remedy for problem in finding.problems):
                        repairs.add(finding)
                        continue
                    for problem in finding.problems:
                        settling.leave(problem)
        except (FileNotFoundError, NotADirectoryError):
            pass  # has been told of
        except OSError as exc:
            path = box.subdirectory(where)
            settling.leave(Problem("unreadable", folder, path, f"it cannot be read: {reason(exc)}"))
    if repairs is not None:
        repairs.flush()
    if doubled:
        _check_doubles(box, folder, doubled, repairs, settling, is_wanted)


def _check_doubles(
    box: Directories,
    folder: str | None,
    doubled: set[int],
    repairs: Repairs | None,
    settling: Settling,
    is_wanted: Callable[[], None],
) -> None:
    """Look again at names whose keys have come twice: most often one message that a reader has moved meanwhile."""
    named: dict[str, list[tuple[str, str]]] = {}
    for where in ("cur", "new"):
        try:
            with scan(box.disk, box.subdirectory(where)) as scanned:
                for name in scanned.names():
                    is_wanted()
                    if not name.startswith(".") and hash(key := key_of(name)) in doubled:
                        named.setdefault(key, []).append((where, name))
        except OSError:  # has been told of
            continue
    for names in named.values():
        first, *others = sorted(names)[:_MOST_NAMES]
        for second in others:
            problem = double(box, folder, first, second)
            if problem is None:
                continue
            if repairs is None:
                settling.settle(problem)
            else:
                repairs.separate(problem, first, second)


def double(box: Directories, folder: str | None, first: tuple[str, str], second: tuple[str, str]) -> Problem | None:
    """Return what is wrong with two names that have one key, if both are there at once."""
    disk = box.disk
    here, there = (f"{box.subdirectory(where)}/{name}" for where, name in (first, second))
    try:
        # One message that is moved never has both names: the first is there before the second is looked at, and after.
        one, other, again = disk.stat(here), disk.stat(there), disk.stat(here)
    except OSError:
        return None
    if again.st_ino != one.st_ino or kind_of_file(one.st_mode) or kind_of_file(other.st_mode):
        return None
    is_same = (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
    what = "they are one file" if is_same else "they are two files"
    remedy = "remove this name of it" if is_same else "give it a key of its own"
    return Problem("double", folder, there, f"its key is that of {here}, too: {what}", remedy=remedy)
