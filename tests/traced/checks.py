"""What has to be so after a process was killed, and after another one has delivered to what it left."""

from collections import Counter
from pathlib import Path

from .scenarios import Scenario

__all__ = ["in_tmp", "names_in", "wrong_after", "wrong_with"]

#: What every maildir, and every folder, has.
PARTS = frozenset(["tmp", "new", "cur"])


def is_whole(content: bytes) -> bool:
    """Whether *content* is a message of `scenarios.message`, all of it, with or without what an import adds."""
    head, _, body = content.partition(b"\n\n")
    subject = next((line for line in head.split(b"\n") if line.startswith(b"Subject: ")), b"")
    size = subject.split()[-1:]
    return bool(size) and size[0].isdigit() and body == b"x" * int(size[0]) + b"\n-- end\n"


def name_of(content: bytes) -> str:
    """Return the name of a whole message."""
    return content.partition(b"Subject: ")[2].split(b" ", 1)[0].decode()


def _directories(place: Path, scenario: Scenario) -> list[Path]:
    """Return the maildirs and their folders."""
    found = [place / name for name in scenario.maildirs]
    return found + [path for maildir in found for path in maildir.glob(".*") if path.is_dir()]


def in_tmp(place: Path, scenario: Scenario) -> list[Path]:
    """Return what is in any ``tmp/``."""
    return [path for directory in _directories(place, scenario) for path in directory.glob("tmp/*")]


def names_in(place: Path, scenario: Scenario) -> set[str]:
    """Return the names of the messages that are there."""
    found = [each for where in _directories(place, scenario) for each in [*where.glob("new/*"), *where.glob("cur/*")]]
    return {name_of(path.read_bytes()) for path in found}


def wrong_with(place: Path, scenario: Scenario, told: list[tuple[str, str]], *, copies: int = 1) -> list[str]:
    """Return what is not as it has to be of the messages *told*, which have been acknowledged, and of any others.

    Each is there, whole, and where it was said to be; nothing is torn; no message is in a maildir more than *copies*
    times.
    """
    faults = list[str]()
    present = dict[str, str]()
    counts = Counter[tuple[str, str]]()
    for directory in _directories(place, scenario):
        for path in sorted([*directory.glob("new/*"), *directory.glob("cur/*")]):
            content = path.read_bytes()
            if not is_whole(content):
                faults.append(f"torn: {path.relative_to(place)}, {len(content)} bytes")
                continue
            name = name_of(content)
            present[str(path)] = name
            counts[(name, str(directory.relative_to(place)))] += 1
            if scenario.keywords and not _has_keyword(directory, path.name, scenario.keywords[0]):
                faults.append(f"without its keyword: {path.relative_to(place)}")
    faults += [f"{count} times in {where}: {name}" for (name, where), count in counts.items() if count > copies]
    for name, path_told in told:
        if (name not in present.values()) if not path_told else (present.get(path_told) != name):
            faults.append(f"acknowledged and not there: {name}, {path_told}")
    return faults


def _has_keyword(directory: Path, name: str, keyword: str) -> bool:
    """Whether a message's name has the letter that the directory's ``dovecot-keywords`` gives for *keyword*."""
    listed = directory / "dovecot-keywords"
    for line in listed.read_text().splitlines() if listed.exists() else []:
        number, _, known = line.partition(" ")
        if known == keyword:
            return chr(ord("a") + int(number)) in name.partition(":2,")[2]
    return False


def wrong_after(place: Path, scenario: Scenario) -> list[str]:
    """Return what is left behind after a sweep: anything in ``tmp/``, or in a maildir, that has no business there."""
    faults = [f"left in tmp/ after a sweep: {path.relative_to(place)}" for path in in_tmp(place, scenario)]
    for directory in _directories(place, scenario):
        for path in directory.iterdir():
            known = PARTS | scenario.beside | {"maildirfolder"}
            if path.name not in known and not (path.name[0] == "." and path.is_dir()) and "import" not in path.name:
                faults.append(f"left behind: {path.relative_to(place)}")
    return faults
