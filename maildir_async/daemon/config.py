"""The configuration file: TOML, with the options of the command line by their names, and a table for each listener."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

__all__ = ["Config", "ConfigError", "Source", "placed", "read_config"]

#: The array of tables that says where mail comes in.
LISTENER: Final = "listener"

_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\]\s]+)\s*\]")


class ConfigError(ValueError):
    """There is a mistake in the file. The text has the file, the line and the key."""


@dataclass(frozen=True, slots=True)
class Source:
    """Options that were said in one place.

    Attributes:
        said: what was said, by the names of the options.
        path: of the file; None for the command line.
        lines: the number of the line that each stands in.
        line: where the table begins, for what is missing in it.

    """

    said: Mapping[str, Any]
    path: str | None = None
    lines: Mapping[str, int] = field(default_factory=dict[str, int])
    line: int = 1

    def place(self, name: str) -> str:
        """Return where option *name* was said, for people."""
        if self.path is None:
            return f"--{name}"
        return f"{self.path}, line {self.lines.get(name, self.line)}: {name}"

    def mistake(self, name: str, what: object) -> ValueError:
        """Return the error for what is wrong with option *name*."""
        return (ValueError if self.path is None else ConfigError)(f"{self.place(name)}: {what}")

    def without(self, name: str) -> "Source":
        """Return the same, but for option *name*."""
        return replace(self, said={key: value for key, value in self.said.items() if key != name})


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says: for all, and for each listener."""

    top: Source = field(default_factory=lambda: Source({}))
    listeners: tuple[Source, ...] = ()


def read_config(path: str) -> Config:
    """Read a file. Blocks. OSError if that cannot be done; ConfigError, with the line, for what is no TOML."""
    with open(path, "rb") as file:
        octets = file.read()
    try:
        text = octets.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}, line {octets.count(10, 0, exc.start) + 1}: not UTF-8") from None
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(_with_line(path, text, str(exc))) from None
    except ValueError as exc:  # of int(): it takes no number of more than 4,300 digits
        raise ConfigError(f"{path}, line 1: {exc}") from None
    except RecursionError:
        raise ConfigError(f"{path}, line 1: too many arrays within one another") from None
    tables = _lines(text)
    listeners = said.pop(LISTENER, [])
    top = Source(said, path, tables[0][1])
    if not isinstance(listeners, list) or not all(isinstance(each, dict) for each in cast("list[object]", listeners)):
        raise top.mistake(LISTENER, f"a table [[{LISTENER}]], in two pairs of brackets, is wanted for each")
    # A listener that is written in another way than as a table of its own has no line of its own either.
    places = [(number, lines) for name, lines, number in tables[1:] if name == LISTENER]
    sources: list[Source] = []
    for index, each in enumerate(cast("list[dict[str, Any]]", listeners)):
        number, lines = places[index] if index < len(places) else (1, {})
        sources.append(Source(each, path, lines, number))
    return Config(top, tuple(sources))


def placed(path: str | None, text: str) -> str:
    """Return *text*, which names options as ``--NAME``, behind the place in the file that sets the first. Blocks.

    What is missing stands nowhere: then it is the file alone. An option that is not in the file is the command line's.
    """
    named = re.search(r"--([a-z][a-z-]*)", text)
    if path is None or named is None:
        return text
    try:
        top = read_config(path).top
    except (OSError, ValueError):
        return text
    if named[1] in top.said:
        return f"{top.place(named[1])}: {text.removeprefix(f'{named[0]}: ')}"
    return f"{path}: {text}" if text.startswith("one of ") else text


def _with_line(path: str, text: str, message: str) -> str:
    """Return what tomllib says, with the line in front."""
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    if found is not None:
        return f"{path}, line {found[1]}: {_explained(text, int(found[1]), message[: found.start()])}"
    return f"{path}, line {text.count(chr(10)) + 1}: {message.removesuffix(' (at end of document)')}"


def _explained(text: str, number: int, message: str) -> str:
    """Return what tomllib says of a line, with its key, and with what to write where that is known."""
    key = text.splitlines()[number - 1].partition("=")[0].strip()
    if message == "Cannot overwrite a value":
        before = [lines for _, lines, begins in _lines(text) if begins <= number][-1].get(key.strip("\"'"))
        first = f", first in line {before}" if before is not None and before != number else ""
        return f"{key}: it is said twice{first}; leave one of them out"
    if message == "Invalid value":
        return f"{key}: what stands there is no value of TOML; a text stands in quotes, a switch is true or false"
    return message


def _lines(text: str) -> list[tuple[str, dict[str, int], int]]:
    """Return the tables as they stand in the file: name, the line of each key, and the line where it begins.

    tomllib does not tell. A key is what stands before the first ``=`` of a line that is not within a longer value; for
    messages that is good enough.
    """
    tables: list[tuple[str, dict[str, int], int]] = [("", {}, 1)]
    for number, line in enumerate(text.split("\n"), 1):
        if (header := _HEADER.match(line)) is not None:
            name = header[1].strip("\"'")
            tables[0][1].setdefault(name.partition(".")[0], number)
            tables.append((name, {}, number))
        elif "=" in line:
            key = line.partition("=")[0].strip().strip("\"'")
            tables[-1][1].setdefault(key, number)
    return tables
