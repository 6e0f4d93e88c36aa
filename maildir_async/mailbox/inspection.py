"""What is in a maildir, told and not judged: what ``maildir-async info`` shows. Everything here blocks."""

import contextlib
import stat
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from maildir_async.disk.calls import Disk
from maildir_async.disk.directories import SUBDIRECTORIES, Directories
from maildir_async.disk.listing import folders
from maildir_async.disk.maildirsize import FILE, read
from maildir_async.disk.probing import Abilities, probe
from maildir_async.disk.scanning import Scanned, oldest_file, scan
from maildir_async.errors import NotAMaildirError
from maildir_async.format.folders import FolderEncoding, folder_of
from maildir_async.format.keywords import parse_keywords
from maildir_async.format.quota import Limits, Quota
from maildir_async.format.read_names import KEYWORD_LETTERS, info_of, said_size

__all__ = ["FORMAT", "FolderReport", "MaildirReport", "boxes", "inspect", "keyword_names"]

#: Raised when a name of the JSON is removed, or means another thing. New ones may come at any time.
FORMAT: Final = 1

#: Bytes of dovecot-keywords that are read: it is never as long.
_LONGEST: Final = 1 << 18

#: Different infos of names that are counted before their letters are.
_INFOS: Final = 4096


@dataclass
class FolderReport:
    """One folder, or the maildir itself.

    Attributes:
        folder: its name, None for the maildir itself; the name of its directory where that is no folder's name.
        path: its directory.
        new, cur: messages in each.
        bytes: of all of them, by their names where those say it (``,S=``).
        unsized: messages whose names do not.
        flags: messages with each of the flags.
        keywords: messages with each of the keywords, by name; by letter where the folder has no name for it.
        tmp: files in ``tmp/``.
        oldest_tmp: name of the oldest of them, and its age in seconds; None if there are none.
        troubles: what could not be looked at, and why.

    """

    folder: str | None
    path: str
    new: int = 0
    cur: int = 0
    bytes: int = 0
    unsized: int = 0
    flags: dict[str, int] = field(default_factory=dict[str, int])
    keywords: dict[str, int] = field(default_factory=dict[str, int])
    tmp: int = 0
    oldest_tmp: tuple[str, float] | None = None
    troubles: list[str] = field(default_factory=list[str])

    @property
    def messages(self) -> int:
        """Those in ``new/`` and ``cur/``."""
        return self.new + self.cur

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        oldest = self.oldest_tmp
        return {
            "folder": self.folder,
            "path": self.path,
            "new": self.new,
            "cur": self.cur,
            "messages": self.messages,
            "bytes": self.bytes,
            "unsized": self.unsized,
            "flags": self.flags,
            "keywords": self.keywords,
            "tmp": self.tmp,
            "oldest_tmp": None if oldest is None else {"name": oldest[0], "age_s": round(oldest[1], 3)},
            "troubles": self.troubles,
        }


@dataclass
class QuotaReport:
    """The quota: what may be held, what the file says is held, and what has been counted.

    Attributes:
        limits: of the file; 0 is no limit.
        recorded: bytes and messages that the file says; None if it has to be counted anew.
        counted: bytes and messages, without the folders that do not count.
        trouble: why the file cannot be read, or "".

    """

    limits: Limits
    recorded: tuple[int, int] | None
    counted: tuple[int, int]
    trouble: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        recorded = self.recorded
        return {
            "byte_limit": self.limits.bytes or None,
            "message_limit": self.limits.messages or None,
            "recorded": None if recorded is None else {"bytes": recorded[0], "messages": recorded[1]},
            "counted": {"bytes": self.counted[0], "messages": self.counted[1]},
            "trouble": self.trouble or None,
        }


@dataclass
class MaildirReport:
    """What is in a maildir.

    Attributes:
        path: of it.
        folders: the maildir itself, and then each folder in it, by name.
        quota: None if there is no ``maildirsize``.
        abilities: of its file system.

    """

    path: str
    folders: list[FolderReport]
    quota: QuotaReport | None
    abilities: Abilities

    def as_json(self) -> dict[str, Any]:
        """Return it as ``maildir-async info --json`` prints it."""
        every = self.folders
        return {
            "format": FORMAT,
            "path": self.path,
            "folders": [each.as_json() for each in every],
            "total": {
                "folders": len(every),
                "messages": sum(each.messages for each in every),
                "bytes": sum(each.bytes for each in every),
            },
            "quota": None if self.quota is None else self.quota.as_json(),
            "file_system": {
                "type": self.abilities.type,
                **self.abilities.works,
                "reasons": self.abilities.reasons,
            },
        }


def inspect(
    directories: Directories, encoding: FolderEncoding, is_wanted: Callable[[], None], *, by_files: bool
) -> MaildirReport:
    """Return what is in the maildir at *directories*. Nothing is changed; with *by_files* see `probe`.

    A directory that cannot be read is told of in its folder's report. `NotAMaildirError` if there is no maildir,
    OSError if it cannot be looked at.

    Args:
        directories: of the maildir itself.
        encoding: how names of folders are written.
        is_wanted: called for each message; what it raises ends this.
        by_files: make files in ``tmp/``.

    """
    found, has_colon = list[FolderReport](), False
    for folder, box in boxes(directories, encoding):
        report = FolderReport(folder, box.path)
        has_colon |= _inspect_folder(report, box, is_wanted)
        found.append(report)
    if len(found[0].troubles) >= len(SUBDIRECTORIES):
        _check_is_one(directories)
    quota = _quota_of(directories, found)
    return MaildirReport(directories.path, found, quota, probe(directories, by_files=by_files, has_colon=has_colon))


def boxes(directories: Directories, encoding: FolderEncoding) -> Iterator[tuple[str | None, Directories]]:
    """Yield the maildir itself, and then its folders by name, each with its directories.

    A folder whose directory's name *encoding* would not write has that name. Raises as `folders` does.
    """
    disk = directories.disk
    yield None, directories
    named = [(folder_of(name, encoding) or name, name) for name in folders(directories)]
    for folder, name in sorted(named):
        yield (
            folder,
            Directories(
                f"{directories.path}/{name}",
                disk=disk,
                create=False,
                base=directories.base,
                root=directories,
                inherit_mode=directories.inherit_mode,
            ),
        )


def _check_is_one(directories: Directories) -> None:
    """Raise `NotAMaildirError` where none of the three directories is there."""
    disk = directories.disk
    disk.close(disk.open_directory(directories.path))
    if directories.missing() == list(SUBDIRECTORIES):
        raise directories.incomplete()


def _inspect_folder(report: FolderReport, box: Directories, is_wanted: Callable[[], None]) -> bool:
    """Fill in *report*; return whether any name has a colon."""
    disk = box.disk
    flags, letters = Counter[str](), Counter[str]()
    has_colon = False
    with _troubles(report, "the folder"):
        box.check_inside()
    if report.troubles:  # what it leads to is not this maildir's
        return False
    for where in ("new", "cur"):
        with _troubles(report, f"{where}/"), scan(disk, box.subdirectory(where)) as scanned:
            number, has_one = _inspect_messages(report, scanned, flags, letters, is_wanted)
            setattr(report, where, number)
            has_colon |= has_one
    with _troubles(report, "tmp/"), scan(disk, box.tmp) as scanned:
        oldest = oldest_file(scanned, is_wanted)
        if oldest is not None:
            report.tmp, report.oldest_tmp = oldest[0], (oldest[1], max(0.0, time.time() - oldest[2]))
    report.flags = {letter: flags[letter] for letter in sorted(flags)}
    names = dict[int, str]()
    with _troubles(report, "dovecot-keywords"):
        names = keyword_names(disk, box.path)
    report.keywords = {names.get(KEYWORD_LETTERS.index(letter), letter): letters[letter] for letter in sorted(letters)}
    return has_colon


def _inspect_messages(
    report: FolderReport, scanned: Scanned, flags: Counter[str], letters: Counter[str], is_wanted: Callable[[], None]
) -> tuple[int, bool]:
    """Count the messages of one directory; return their number, and whether any name has a colon."""
    number, has_colon, infos = 0, False, Counter[str]()
    for name in scanned.names():
        is_wanted()
        if name.startswith("."):
            continue
        key, colon, info = name.partition(":")
        size = said_size(key)
        if size is None:
            found = scanned.stat(name)
            if found is None or not stat.S_ISREG(found.st_mode):
                continue
            size = found.st_size
            report.unsized += 1
        number += 1
        report.bytes += size
        if colon:
            has_colon = True
            infos[info] += 1
            if len(infos) > _INFOS:  # of a maildir that somebody has filled with odd names
                _add_letters(infos, flags, letters)
    _add_letters(infos, flags, letters)
    return number, has_colon


def _add_letters(infos: Counter[str], flags: Counter[str], letters: Counter[str]) -> None:
    """Count the letters of *infos*, and forget these."""
    for info, count in infos.items():
        said = info_of(info)
        for flag in set(said.flags):
            flags[flag] += count
        for letter in set(said.keywords):
            letters[letter] += count
    infos.clear()


def keyword_names(disk: Disk, path: str) -> dict[int, str]:
    """Return the names of a folder's keywords, by their index; none if there is no ``dovecot-keywords``."""
    try:
        fd = disk.open_file(f"{path}/dovecot-keywords")
    except FileNotFoundError:
        return {}
    try:
        data = b""
        while len(data) < _LONGEST and (piece := disk.read(fd, _LONGEST, len(data))):
            data += piece
    finally:
        disk.close(fd)
    return parse_keywords(data)


def _quota_of(directories: Directories, reports: list[FolderReport]) -> QuotaReport | None:
    ignores = Quota().ignores
    counting = [each for each in reports if not ignores(each.folder)]
    counted = sum(each.bytes for each in counting), sum(each.messages for each in counting)
    try:
        found = read(directories.disk, directories.path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        return QuotaReport(Limits(), None, counted, f"{FILE} cannot be read: {exc.strerror or exc}")
    held = found.held
    return QuotaReport(found.limits, None if held is None else (held.bytes, held.messages), counted)


@contextlib.contextmanager
def _troubles(report: FolderReport, what: str) -> Generator[None]:
    """Tell what cannot be looked at within the block."""
    try:
        yield
    except NotAMaildirError as exc:
        report.troubles.append(str(exc))
    except OSError as exc:
        report.troubles.append(f"{what} cannot be read: {exc.strerror or exc}")
