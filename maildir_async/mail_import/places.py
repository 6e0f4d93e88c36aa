"""Which files mail is in, below a directory, and what stands beside it: folders, flags, keywords. Blocks.

A directory is taken for a Maildir if it has ``cur`` or ``new`` in it, for an MH folder if it has ``.mh_sequences`` or
files that are called by numbers, and else for a directory of files: ``.eml``, or an mbox each, which becomes a folder.
"""

import bisect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from maildir_async.disk.listing import arrival
from maildir_async.disk.reading import Unchanged
from maildir_async.format.folders import folder_of
from maildir_async.format.keywords import check_keywords, parse_keywords
from maildir_async.format.names import FLAGS
from maildir_async.format.read_names import letters_of

__all__ = ["Place", "folder_part", "is_keyword", "places"]

Odd = Callable[[str, str], object]

#: Bytes read of a file that says what flags or keywords there are.
CONTROL_MOST: Final = 1 << 22

_SEQUENCES: Final = ".mh_sequences"
_UNFIT: Final = re.compile(r"[.\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: Of MH's sequences, the flags that they are. Who is not in `unseen` has been seen.
_MH_FLAGS: Final = {"replied": "R", "flagged": "F"}


class Place(NamedTuple):
    """A file that mail is in, or may be.

    Attributes:
        path: its path.
        folder: parts of the folder that it is in.
        is_message: whether it is one message, whatever is in it.
        stem: what the folder is called, in there, if it is an mbox. "" for none of its own.
        flags: of the message.
        keywords: of the message.

    """

    path: str
    folder: tuple[str, ...]
    is_message: bool
    stem: str = ""
    flags: str = ""
    keywords: tuple[str, ...] = ()


def places(root: str, odd: Odd, lost: Odd) -> Iterator[Place]:
    """Yield what is in the directory *root*, folder by folder, each in its order.

    *odd* is called with a path and what is odd there, *lost* with what could not be looked into.
    """
    return _Walk(odd, lost).directory(root, ())


def folder_part(name: str, path: str, odd: Odd) -> str:
    """Return *name* as a part of a folder's name, which some characters cannot be in: that is told of *path*."""
    part = _UNFIT.sub("_", name)
    if part != name:
        odd(path, f"cannot be called so as a folder: it becomes {part!r}")
    return part


class _Walk:
    def __init__(self, odd: Odd, lost: Odd) -> None:
        self._odd = odd
        self._lost = lost
        self._seen = set[tuple[int, int]]()  # directories: a symbolic link may lead to one that was there before

    def directory(self, path: str, folder: tuple[str, ...]) -> Iterator[Place]:
        try:
            found = os.stat(path)
            with os.scandir(path) as entries:
                listed = sorted((entry.name, *_kind_of(entry)) for entry in entries)
        except OSError as exc:
            self._lost(path, f"cannot be read: {exc.strerror}")
            return
        if (found.st_dev, found.st_ino) in self._seen:
            self._odd(path, "has been looked into already, by another path: a symbolic link leads there")
            return
        self._seen.add((found.st_dev, found.st_ino))
        below = [name for name, is_directory, _ in listed if is_directory]
        files = [name for name, _, is_file in listed if is_file]
        others = [name for name, is_directory, is_file in listed if not is_directory and not is_file]
        for name in others:
            if os.path.islink(f"{path}/{name}"):
                self._lost(f"{path}/{name}", "is a symbolic link that leads nowhere")
            else:
                self._odd(f"{path}/{name}", "is neither a file nor a directory")
        if "cur" in below or "new" in below:
            yield from self._maildir(path, folder, below)
        elif _SEQUENCES in files or any(_is_number(name) for name in files):
            yield from self._mh(path, folder, files)
            yield from self._below(path, folder, below)
        else:
            yield from self._files(path, folder, files)
            yield from self._below(path, folder, below)

    def _below(self, path: str, folder: tuple[str, ...], names: list[str]) -> Iterator[Place]:
        for name in names:
            if name.startswith("."):
                self._odd(f"{path}/{name}", "is hidden, and not looked into")
            else:
                yield from self.directory(f"{path}/{name}", (*folder, self._part(path, name.removesuffix(".sbd"))))

    def _part(self, path: str, name: str) -> str:
        return folder_part(name, f"{path}/{name}", self._odd)

    # A Maildir.

    def _maildir(self, path: str, folder: tuple[str, ...], below: list[str]) -> Iterator[Place]:
        letters = self._letters(path)
        for where in ("new", "cur"):
            if where in below:
                yield from self._messages(f"{path}/{where}", folder, letters)
        if "tmp" in below:
            self._tell_unfinished(f"{path}/tmp")
        for name in below:
            if name in ("cur", "new", "tmp"):
                continue
            if not name.startswith("."):
                yield from self.directory(f"{path}/{name}", (*folder, self._part(path, name)))
            elif os.path.isdir(f"{path}/{name}/cur") or os.path.isdir(f"{path}/{name}/new"):
                yield from self.directory(f"{path}/{name}", (*folder, *self._parts(path, name)))
            else:
                self._odd(f"{path}/{name}", "is no folder: it has neither cur nor new")

    def _tell_unfinished(self, path: str) -> None:
        try:
            with os.scandir(path) as entries:
                count = sum(1 for _ in entries)
        except OSError as exc:
            self._odd(path, f"cannot be read: {exc.strerror}")
        else:
            if count:
                self._odd(path, f"{count} files of deliveries that were not finished are left out")

    def _parts(self, path: str, name: str) -> tuple[str, ...]:
        """Return the parts of a Maildir++ folder's name."""
        told = folder_of(name, "utf-7") or folder_of(name, "utf-8")
        parts = told.split("/") if told is not None else filter(None, name.split("."))
        return tuple(self._part(path, part) for part in parts)

    def _letters(self, path: str) -> dict[str, str]:
        """Return the keywords by letter, those that Dovecot has for the folder at *path*."""
        data = self._control(f"{path}/dovecot-keywords")
        return {chr(ord("a") + index): name for index, name in parse_keywords(data).items()}

    def _messages(self, path: str, folder: tuple[str, ...], letters: dict[str, str]) -> Iterator[Place]:
        try:
            with os.scandir(path) as entries:
                names = sorted((entry.name for entry in entries if not entry.name.startswith(".")), key=arrival)
        except OSError as exc:
            self._lost(path, f"cannot be read: {exc.strerror}")
            return
        for name in names:
            flags, keywords, unknown = "", list[str](), ""
            for letter in letters_of(name):
                if letter in FLAGS:
                    flags += letter
                elif letter in letters and is_keyword(letters[letter]):
                    keywords.append(letters[letter])
                else:
                    unknown += letter
            if unknown:
                self._odd(f"{path}/{name}", f"has flags that nothing tells the meaning of: {unknown}")
            yield Place(f"{path}/{name}", folder, True, "", "".join(sorted(set(flags))), tuple(keywords))

    # MH.

    def _mh(self, path: str, folder: tuple[str, ...], files: list[str]) -> Iterator[Place]:
        sequences = self._sequences(path) if _SEQUENCES in files else {}
        numbers = sorted(int(name) for name in files if _is_number(name))
        for name in files:
            if not _is_number(name) and not name.startswith((".", ",")):  # a comma stands before what was removed
                self._odd(f"{path}/{name}", "is no message of MH, which are called by numbers: it is left out")
        for number in numbers:
            flags = "".join(flag for name, flag in _MH_FLAGS.items() if _has(sequences.get(name, []), number))
            seen = "" if _has(sequences.get("unseen", []), number) else "S"
            yield Place(f"{path}/{number}", folder, True, "", "".join(sorted(flags + seen)))

    def _sequences(self, path: str) -> dict[str, list[tuple[int, int]]]:
        found = dict[str, list[tuple[int, int]]]()
        data = self._control(f"{path}/{_SEQUENCES}")
        for number, line in enumerate(data.decode("latin-1").splitlines(), 1):
            name, colon, rest = line.partition(":")
            ranges = [re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", word) for word in rest.split()]
            if not line.strip():
                continue
            if not colon or None in ranges:
                self._odd(f"{path}/{_SEQUENCES}", f"line {number} is no sequence: {line[:80]!r}")
            found[name.strip()] = _merged((int(one[1]), int(one[2] or one[1])) for one in ranges if one is not None)
        return found

    # Files.

    def _files(self, path: str, folder: tuple[str, ...], files: list[str]) -> Iterator[Place]:
        for name in files:
            plain = name.removesuffix(".gz")
            if plain.lower().endswith(".eml"):
                yield Place(f"{path}/{name}", folder, True)
            elif not name.startswith("."):
                yield Place(f"{path}/{name}", folder, False, plain.removesuffix(".mbox"))

    def _control(self, path: str) -> bytes:
        """Return what is in a file that tells of messages. Without it they come without what it tells."""
        try:
            file = Unchanged(path)
        except FileNotFoundError:
            return b""
        except OSError as exc:
            self._odd(path, f"cannot be read: {exc.strerror}")
            return b""
        data = b""
        try:
            while file.is_regular and len(data) < CONTROL_MOST and (piece := file.read(CONTROL_MOST)):
                data += piece
        except OSError as exc:
            self._odd(path, f"cannot be read: {exc.strerror}")
        finally:
            file.close()
        return data


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == str(int(name)) if len(name) < 19 else False


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return *ranges* sorted, and none of them overlapping."""
    found = list[tuple[int, int]]()
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _has(ranges: list[tuple[int, int]], number: int) -> bool:
    at = bisect.bisect_right(ranges, number, key=lambda one: one[0])
    return at > 0 and number <= ranges[at - 1][1]


def _kind_of(entry: "os.DirEntry[str]") -> tuple[bool, bool]:
    """Return whether it is a directory, and whether a file; a symbolic link that goes round is neither."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        return False, False


def is_keyword(name: str) -> bool:
    """Whether *name* can be an IMAP keyword."""
    try:
        return bool(check_keywords([name]))
    except ValueError:
        return False
