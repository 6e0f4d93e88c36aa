"""``dovecot-keywords`` and ``maildirsize`` looked at, and put right. Everything here blocks."""

import stat
import time
from collections.abc import Callable, Set
from functools import partial
from typing import Final

from maildir_async.disk.directories import Directories
from maildir_async.disk.dotlock import Waiting
from maildir_async.disk.keywords import Keywords
from maildir_async.disk.maildirsize import FILE, Found, Tallied, count, read, tally
from maildir_async.errors import MaildirError
from maildir_async.format.folders import folder_of
from maildir_async.format.keywords import LONGEST_LINE, parse_keywords
from maildir_async.format.problems import CheckOptions, Problem
from maildir_async.format.quota import LARGEST, Quota
from maildir_async.format.read_names import KEYWORD_LETTERS
from maildir_async.mailbox.settling import Settling, reason

__all__ = ["check_keywords_file", "check_quota"]

#: Bytes of dovecot-keywords that are read: none that a reader takes is as long.
_LONGEST: Final = 1 << 18

#: Counts of a maildir that changes meanwhile, before it is left.
_COUNTS: Final = 3


def check_keywords_file(
    box: Directories,
    folder: str | None,
    letters: Set[str],
    options: CheckOptions,
    settling: Settling,
) -> None:
    """Look at the keywords of a folder whose messages have *letters*."""
    path = f"{box.path}/dovecot-keywords"
    disk = box.disk
    try:
        fd = disk.open_file(path)
        try:
            mode = stat.S_IMODE(disk.stat(fd).st_mode) & 0o666
            data = b""
            while len(data) < _LONGEST and (piece := disk.read(fd, _LONGEST, len(data))):
                data += piece
        finally:
            disk.close(fd)
    except FileNotFoundError:
        data, mode = b"", 0o600
    except OSError as exc:
        problem = Problem("keywords", folder, path, f"it cannot be read: {exc.strerror or exc}")
        settling.leave(problem)
        return
    names = parse_keywords(data)
    lines = [line for line in data.split(b"\n") if line]
    if len(data) >= _LONGEST:
        settling.leave(Problem("keywords", folder, path, "it is too large for a file of keywords"))
    elif len(lines) != len(names):
        broken = _broken(data)
        text = f"{len(lines) - len(names)} of its {len(lines)} lines are of no use: {broken}"

        def rewrite() -> str:
            Keywords(box, mode or 0o600, Waiting(options.lock_patience_s)).rewrite()
            return f"wrote it anew without {broken}"

        remedy = "write it anew with the other lines"
        settling.repair(Problem("keywords", folder, path, text, remedy=remedy), rewrite)
    for letter in sorted(letters):
        if KEYWORD_LETTERS.index(letter) not in names:
            text = f"messages have the keyword {letter!r}, which has no name in it"
            settling.settle(Problem("keywords", folder, path, text, level="note"))


def _broken(data: bytes) -> str:
    """Return the first lines that a reader skips, for a person to read."""
    broken: list[str] = []
    before = b""  # lines that are read: 26 at most
    *lines, unfinished = data.split(b"\n")
    for line in filter(None, lines):
        following = before + line + b"\n"
        is_read = len(parse_keywords(following)) > len(parse_keywords(before))
        if not is_read:
            broken.append(repr(line[:60])[1:])
            if len(broken) > 5:  # no more are told, and a hostile file has a hundred thousand
                break
        if is_read or len(line) >= LONGEST_LINE:  # behind such a one nothing is read
            before = following
    if unfinished:
        broken.append(repr(unfinished[:60])[1:])
    return ", ".join([*broken[:5], *(["…"] if len(broken) > 5 else [])])


def check_quota(root: Directories, options: CheckOptions, settling: Settling, is_wanted: Callable[[], None]) -> None:
    """Look whether ``maildirsize``, if there is one, says what the maildir holds."""
    path = f"{root.path}/{FILE}"
    try:
        problem, found = _disagreement(root, path, options, is_wanted)
    except FileNotFoundError:
        return
    except (OSError, MaildirError) as exc:
        settling.leave(Problem("quota", None, path, f"it cannot be read: {reason(exc)}"))
        return
    if problem is None:
        return
    if problem.remedy is None:
        settling.leave(problem)
    else:
        settling.repair(problem, partial(_count_anew, root, path, found, options))


def _ignores(options: CheckOptions) -> Callable[[str], bool]:
    quota = Quota()
    return lambda directory: quota.ignores(folder_of(directory, options.encoding))


def _disagreement(
    root: Directories, path: str, options: CheckOptions, is_wanted: Callable[[], None]
) -> tuple[Problem | None, Found]:
    """Return what is wrong with the file, and the file.

    A delivery adds its line when its message is there, and has been synced: only where nothing changes for a while the
    file is wrong. To count anew before that would count the message twice.
    """
    disk, remedy = root.disk, "count it anew"
    found = read(disk, root.path)
    for _ in range(_COUNTS):
        held = found.held
        if held is None:
            if found.version[2] >= LARGEST:  # by the protocol it is counted anew by the next delivery
                return None, found
            is_known = found.limits != (0, 0)
            text = "it has lines that are none, or a sum below zero"
            text += "" if is_known else ", and no limits that could be kept"
            return Problem("quota", None, path, text, remedy=remedy if is_known else None), found
        tallied: Tallied = tally(root, root.path, _ignores(options))
        said = held.bytes, held.messages
        if (tallied.bytes, tallied.messages) == said or _is_counted_otherwise(root, said, options):
            return None, found
        _wait(options.quiet_s, is_wanted)
        again = read(disk, root.path)
        if again.version == found.version and not tallied.has_changed():
            text = (
                f"it says {held.bytes} bytes in {held.messages} messages, and there are"
                f" {tallied.bytes} bytes in {tallied.messages}"
            )
            return Problem("quota", None, path, text, remedy=remedy), found
        found = again
    text = "it could not be compared: the maildir changes all the time"
    return Problem("quota", None, path, text, level="note"), found


def _wait(seconds: float, is_wanted: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        is_wanted()
        time.sleep(min(left, 0.1))


def _is_counted_otherwise(root: Directories, held: tuple[int, int], options: CheckOptions) -> bool:
    """Whether another program has counted right, by its own rules.

    Dovecot counts Trash, unless it is told not to, and Courier leaves out what has the flag T.
    """
    for ignores, without_trashed in ((_ignores(options), True), (_nothing, False), (_nothing, True)):
        tallied = tally(root, root.path, ignores, without_trashed=without_trashed)
        if (tallied.bytes, tallied.messages) == held:
            return True
    return False


def _nothing(_: str) -> bool:
    return False


def _count_anew(root: Directories, path: str, found: Found, options: CheckOptions) -> str:
    """Count the quota, write the file, and return what has been done."""
    mode = stat.S_IMODE(root.disk.stat(path).st_mode) & 0o666 | 0o600
    counting = Directories(root.path, disk=root.disk, create=False, base=root.base)
    counted = count(counting, root.path, found.limits, name=options.names.next(), mode=mode, ignores=_ignores(options))
    if counted.failure is not None:
        raise counted.failure
    if not counted.is_kept:
        return "removed it, since the maildir has changed meanwhile: the next delivery counts it anew"
    return f"counted it anew: {counted.bytes} bytes in {counted.messages} messages"
