"""One message looked at: its name, its file, its bytes. Everything here blocks, and changes nothing."""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from maildir_async.disk.directories import Directories
from maildir_async.disk.rights import files_rights
from maildir_async.disk.scanning import Scanned
from maildir_async.errors import NotTrustedError
from maildir_async.format.content import Content, wire_size_of
from maildir_async.format.hashes import Hashes
from maildir_async.format.problems import CheckReport, Kind, Level, Problem
from maildir_async.format.read_names import info_of, said_sizes, with_sizes

__all__ = ["Examiner", "Finding", "kind_of_file"]

_CHUNK: Final = 1 << 20

#: The remedy of what another name cures, until that is known.
_RENAME: Final = "rename"

#: How a file begins whose bytes are not the message's: Dovecot's plug-ins zlib (gzip, bzip2, xz, lz4, zstd) and
#: mail_crypt. Its ``,S=`` is then what the message has, which only they can tell.
_PACKED: Final = (
    *(b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"Dovecot-LZ4\r\x2a\x9b\xc5", b"\x28\xb5\x2f\xfd"),
    b"CRYPTED\x03\x07",
)

_FILE_TYPES: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of_file(mode: int) -> str | None:
    """Return what something is that is no regular file."""
    return None if stat.S_ISREG(mode) else _FILE_TYPES.get(stat.S_IFMT(mode), "no regular file")


@dataclass(slots=True)
class Finding:
    """What is wrong with one message, and how it would be right.

    Attributes:
        where, name: its directory, ``new`` or ``cur``, and its name in it.
        problems: what is wrong.
        new_where, new_name: where it should be.
        mode: what permission bits it should have; None if those that it has.

    """

    where: str
    name: str
    problems: list[Problem]
    new_where: str
    new_name: str
    mode: int | None = None

    @property
    def moves(self) -> bool:
        """Whether it has to be renamed."""
        return (self.where, self.name) != (self.new_where, self.new_name)


class _Read(NamedTuple):
    """What the bytes of a message are."""

    size: int
    wire_size: int
    is_packed: bool


class Examiner:
    """Looks at the messages of one folder.

    Args:
        box: its directories.
        folder: its name.
        uid: to whom the maildir belongs.
        report: what is looked at is counted in.
        is_quick: read only messages whose names say something impossible.
        is_wanted: called while a large message is read; what it raises ends that.

    Attributes:
        letters: those that stand for keywords in any name.

    """

    def __init__(
        self,
        box: Directories,
        folder: str | None,
        uid: int,
        report: CheckReport,
        *,
        is_quick: bool,
        is_wanted: Callable[[], None],
    ) -> None:
        self._box = box
        self._disk = box.disk
        self._folder = folder
        self._uid = uid
        self._report = report
        self._is_quick = is_quick
        self._is_wanted = is_wanted
        rights = files_rights(box.disk, box.path)
        self._allowed = rights.mode
        self._gid = rights.gid
        self._contents = Hashes()
        self.letters = set[str]()

    def examine(self, scanned: Scanned, where: str, name: str, *, has_come: bool = False) -> Finding | None:
        """Look at what is called *name* in *where*; None if it is right, or has gone meanwhile: a reader moves mail.

        Of one whose key *has_come* before the content is not compared: it may be the same message, moved meanwhile.
        """
        found = scanned.stat(name)
        if found is None:
            return None
        path = f"{scanned.path}/{name}"
        finding = Finding(where, name, [], where, name)
        kind = kind_of_file(found.st_mode)
        if kind is not None or name.startswith("."):
            self._add(
                finding, "foreign", path, f"it is {kind or 'a file whose name begins with a dot'}, and no message"
            )
            return finding
        self._report.messages += not has_come
        self._look_at_rights(finding, path, found)
        key, colon, info = name.partition(":")
        if colon or where == "cur":
            self._look_at_info(finding, path, where, colon, info)
        try:
            key = self._look_at_sizes(finding, path, key, found.st_size, has_come=has_come)
        except FileNotFoundError:
            self._report.messages -= not has_come
            return None
        except NotTrustedError as exc:  # root does not open what a user may have put there
            self._add(finding, "unreadable", path, f"it is not read: {exc.strerror}")
        except OSError as exc:
            self._add(finding, "unreadable", path, f"it cannot be read: {exc.strerror or exc}")
        finding.new_name = key + finding.new_name[len(finding.new_name.partition(":")[0]) :]
        if finding.moves:
            target = f"{self._box.subdirectory(finding.new_where)}/{finding.new_name}"
            finding.problems = [
                replace(problem, remedy=f"rename it to {target}") if problem.remedy == _RENAME else problem
                for problem in finding.problems
            ]
        finding.problems.sort(key=lambda problem: problem.level == "note")
        return finding if finding.problems else None

    def _add(
        self, finding: Finding, kind: Kind, path: str, text: str, *, level: Level = "problem", remedy: str | None = None
    ) -> None:
        finding.problems.append(Problem(kind, self._folder, path, text, level, remedy))

    def _look_at_rights(self, finding: Finding, path: str, found: os.stat_result) -> None:
        if found.st_uid != self._uid:
            text = f"it belongs to uid {found.st_uid}, and the maildir to uid {self._uid}"
            self._add(finding, "owner", path, text)
        elif self._gid not in (-1, found.st_gid):
            self._add(finding, "owner", path, f"it belongs to gid {found.st_gid}, and its directory to gid {self._gid}")
        mode = stat.S_IMODE(found.st_mode)
        right = mode & self._allowed | mode & 0o600
        if not mode & stat.S_IRUSR:
            self._add(finding, "mode", path, f"its owner may not read it (mode {mode:04o})")
        elif right != mode:
            extra = mode & ~self._allowed
            who = "everybody may read it" if extra & stat.S_IROTH else "others may do more with it"
            who = who if extra & 0o066 else "it can be executed"
            text = f"{who} (mode {mode:04o}): its directory gives {self._allowed:04o}"
            finding.mode = right
            self._add(finding, "mode", path, text, remedy=f"change its mode to {right:04o}")

    def _look_at_info(self, finding: Finding, path: str, where: str, colon: str, info: str) -> None:
        if not colon:  # in cur/, of a reader that keeps no flags
            return
        key = finding.name.partition(":")[0]
        if not info.startswith("2,"):
            kind: Kind = "flags" if where == "cur" else "info-in-new"
            self._add(finding, kind, path, f"what follows its colon is no flags: {info!r}")
            return
        said = info_of(info)
        self.letters.update(said.keywords)
        if where == "new":
            self._add(finding, "info-in-new", path, f"it has flags in new/: {info!r}", remedy=_RENAME)
            if said.right == "2,":
                finding.new_name = key
            else:
                finding.new_where, finding.new_name = "cur", f"{key}:{said.right}"
        elif not said.is_right:
            what = f"{said.others!r} are no flags" if said.others else f"its flags are out of order, or twice: {info!r}"
            self._add(finding, "flags", path, what, remedy=_RENAME)
            finding.new_name = f"{key}:{said.right}"

    def _look_at_sizes(self, finding: Finding, path: str, key: str, size: int, *, has_come: bool) -> str:
        """Look whether *key* says the right sizes, and return what does."""
        said = said_sizes(key)
        told_size, told_wire = said.get("S", []), said.get("W", [])
        wire = told_wire[0] if told_wire else None
        seems_right = told_size in ([], [size]) and len(told_wire) < 2
        seems_right = seems_right and (not told_wire or (wire is not None and size <= wire <= 2 * size))
        if not size:
            self._add(finding, "empty", path, "it is empty", level="note")
        if seems_right and self._is_quick:
            return key
        read = self._read(finding, path, size, has_come=has_come)
        if read.is_packed:
            self._report.compressed += 1
            return key
        # What was read is the truth: a message does not grow, and one that does is none.
        is_right = told_size in ([], [read.size]) and told_wire in ([], [read.wire_size])
        if is_right:
            return key
        says = " and ".join(
            f"{letter}={number if number is not None else '?'}" for letter in said for number in said[letter]
        )
        text = f"its name says {says}, and it has {read.size} bytes, {read.wire_size} with CRLF line ends"
        self._add(finding, "size", path, text, remedy=_RENAME)
        return with_sizes(key, read.size, read.wire_size)

    def _read(self, finding: Finding, path: str, expected: int, *, has_come: bool) -> _Read:
        """Read a message of *expected* bytes to its end."""
        disk = self._disk
        fd = disk.open_file(path)
        try:
            data = disk.read(fd, _CHUNK, 0)
            is_packed = data.startswith(_PACKED)
            digest = hashlib.blake2b(data, digest_size=8)
            if len(data) == expected:
                size, wire_size = len(data), wire_size_of(data)
            else:
                counter = Content()
                counter.feed(data)
                size = len(data)
                rest = disk.read(fd, _CHUNK, size)
                while rest:
                    self._is_wanted()
                    digest.update(rest)
                    counter.feed(rest)
                    size += len(rest)
                    rest = disk.read(fd, _CHUNK, size)
                counter.end()
                wire_size = counter.wire_size
        finally:
            disk.close(fd)
        self._report.bytes_read += size
        is_compared = size and not self._is_quick and not has_come
        if is_compared and self._contents.add(int.from_bytes(digest.digest(), "big")):
            self._add(
                finding, "same-content", path, "another message of this folder has the same content", level="note"
            )
        return _Read(size, wire_size, is_packed)
