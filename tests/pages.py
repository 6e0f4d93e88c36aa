"""The README and the pages of docs/: what is in them, and how their code is run."""

import ast
import asyncio
import contextlib
import doctest
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Final

import maildir_async
from look import free_port
from maildir_async import Maildir

__all__ = ["ENVIRONMENT", "PAGES", "README", "ROOT", "Block", "Page", "page", "quoted"]

ROOT: Final = Path(__file__).parents[1]
ENVIRONMENT: Final = os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1])}

_BLOCK: Final = re.compile(
    r"(?:^<!-- not run: (?P<reason>\S[^\n]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    # What stands in a block of text right after it is what it prints.
    r"(?:\n\n```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code.

    Attributes:
        language: what stands after its fence.
        text: what is in it.
        reason: why it is not run; None for those that are.
        printed: what it prints, or None if the page does not say.

    """

    language: str
    text: str
    reason: str | None
    printed: str | None

    @property
    def is_daemon(self) -> bool:
        """Whether it is a command that would not end."""
        return self.text.startswith("maildir-async serve") and self.text.count("\n") == 1

    def check(self, printed: str) -> None:
        """Assert that it has *printed* what the page says; ``...`` there is anything."""
        if self.printed is not None:
            same = doctest.OutputChecker().check_output(self.printed, printed, doctest.ELLIPSIS)
            assert same, f"printed {printed!r}, and the page says {self.printed!r}"


class Page:
    """One page of Markdown, by its path in the repository."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text()
        self.blocks = [Block(**match.groupdict()) for match in _BLOCK.finditer(self.text)]

    @property
    def prose(self) -> str:
        """All but the blocks of code."""
        return _BLOCK.sub("", self.text)

    def code(self, language: str) -> list[Block]:
        """Return the blocks in a language that are run."""
        return [block for block in self.blocks if block.language == language and block.reason is None]

    def section(self, title: str) -> str:
        """Return the text below a heading, to the next of any level."""
        found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", self.prose, re.MULTILINE | re.DOTALL)
        assert found is not None, title
        return found[1]

    def tables(self) -> list[list[str]]:
        """Return the rows of all tables, with their heads."""
        return [_cells(line) for line in self.prose.splitlines() if line.startswith("| ")]

    def table(self, title: str) -> list[list[str]]:
        """Return the rows of the (last) table below a heading, without its head."""
        return [_cells(line) for line in self.section(title).splitlines() if line.startswith("| ")][1:]

    def anchors(self) -> set[str]:
        """Return what may follow the ``#`` of a link to this page."""
        heads = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        named = [re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads]
        return {*named, *re.findall(r"^::: (\S+)$", self.prose, re.MULTILINE)}

    def links(self) -> list[tuple[str, str]]:
        """Return the links that stay in the repository: path and anchor, either of which may be empty."""
        targets = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [(path, anchor) for path, _, anchor in (each.partition("#") for each in targets) if "//" not in path]

    def run_python(self, directory: Path) -> dict[str, Any]:
        """Run the blocks of Python one after the other, as a reader does, and return the names that they leave.

        A block that has ``asyncio.run`` is a program; any other stands in a coroutine where there are ``maildir`` and
        ``message``, and ``port`` is a free one. They share their names and, but for the programs, their loop. The
        working directory has to be *directory*.
        """
        names: dict[str, Any] = {"maildir": Maildir(directory / "maildir"), "message": b"Subject: x\n\nbody\n"}
        names["port"] = free_port()
        with asyncio.Runner() as runner:
            for number, block in enumerate(self.code("python"), 1):
                code = compile(
                    block.text, f"{self.name}, block {number} of Python", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                )
                assert isinstance(code, CodeType)
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    if "asyncio.run(" in block.text:
                        exec(code, names)
                    else:
                        runner.run(_awaited(code, names))
                block.check(printed.getvalue())
        return names


async def _awaited(code: CodeType, names: dict[str, Any]) -> None:
    coroutine = eval(code, names)  # here, since some of it asks for the running loop and awaits nothing
    if coroutine is not None:
        await coroutine


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]


def quoted(text: str) -> list[str]:
    """Return what stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


README: Final = Page("README.md")
PAGES: Final = [Page(str(path.relative_to(ROOT))) for path in sorted((ROOT / "docs").rglob("*.md"))]


def page(name: str) -> Page:
    """Return a page of docs/."""
    (found,) = (each for each in PAGES if each.name == f"docs/{name}.md")
    return found
