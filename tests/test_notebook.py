"""What notebooks show: values as tables without foreign markup, many results at their ends, progress as one line."""

import asyncio
import contextlib
import errno
import html.parser
import io
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any, Final, cast

import pytest

from maildir_async import (
    AppendError,
    Delivered,
    DuplicateFilter,
    Durability,
    GroupCommit,
    Maildir,
    Outcome,
    deliver,
    notebook,
)
from maildir_async.format.html import grid, table
from maildir_async.format.results import Results
from maildir_async.notebook import Progress

EVIL: Final = "<script>alert('x')</script>\"&\udcff\n"


class Page(html.parser.HTMLParser):
    """What a browser would see of some HTML: its elements, in order, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        text.encode()  # a kernel sends it as UTF-8
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"style", "colspan", "value", "max"}
        self.elements.append(tag)
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "caption"):
            self.cells[-1] += data


def delivered_as(**changes: Any) -> Delivered:
    values: dict[str, Any] = {
        "path": "/mail/new/1.a",
        "key": "1.a",
        "folder": None,
        "flags": "",
        "keywords": (),
        "size": 12_345,
        "wire_size": 12_400,
        "durability": Durability.FULL,
        "duplicate": False,
        "queued_s": 0.001,
        "commit_s": 0.002,
    }
    return Delivered(**values | changes)


def test_nothing_in_a_table_is_markup(tmp_path: Path) -> None:
    """A path, flag, key, folder, keyword, warning or error with markup, a lone surrogate or a line end in it shows as
    text, wherever it is shown.
    """
    maildir = Maildir(f"{tmp_path}/<script>\"'&\udcff\n")
    evil = delivered_as(path=EVIL, key=EVIL, folder=EVIL, flags=EVIL, keywords=(EVIL,), warnings=(EVIL,))
    failed = AppendError(EVIL, errno=errno.EIO, stage="write")
    for value in (
        maildir,
        evil,
        Outcome(maildir, evil, None),
        Outcome(maildir, None, failed),
        Results([evil, failed, Outcome(maildir, None, failed)]),
    ):
        page = Page(value._repr_html_())
        assert set(page.elements) <= {"table", "caption", "tr", "th", "td"}, value
        assert any("<script>" in cell and "\\udcff\\n" in cell for cell in page.cells), value
    for text in (table(EVIL, [(EVIL, EVIL)]), grid(EVIL, [1], lambda _: {EVIL: EVIL})):
        assert "script" not in Page(text).elements
        assert Page(text).cells.count(EVIL.replace("\udcff\n", "\\udcff\\n")) == 3


def test_a_delivered_shows_what_it_has() -> None:
    """Each field that has a value is a line; numbers and times are as a person reads them."""
    cells = Page(delivered_as(folder="Archive", keywords=("$A", "b"), commit_s=2.0)._repr_html_()).cells
    shown = dict(zip(cells[1::2], cells[2::2], strict=True))
    assert cells[0] == "Delivered"
    assert shown["size"] == "12,345"
    assert shown["keywords"] == "$A; b"
    assert shown["durability"] == "FULL"
    assert (shown["queued_s"], shown["commit_s"]) == ("1.00 ms", "2.00 s")
    assert {"flags", "duplicate", "warnings"} & set(shown) == set()
    assert "duplicate" in Page(delivered_as(duplicate=True)._repr_html_()).cells


async def test_a_maildir_shows_itself_without_a_look_at_the_disk(tmp_path: Path) -> None:
    """What it is, and what it has delivered; a maildir that is not there shows too, and stays so."""
    filter_ = DuplicateFilter(tmp_path / "seen")
    maildir = Maildir(tmp_path / "box", size_limit=5_000, duplicates=filter_)
    cells = Page(maildir._repr_html_()).cells
    assert list(tmp_path.iterdir()) == []
    for cell in ("Maildir", maildir.path, "5,000", filter_.path, "FULL"):
        assert cell in cells
    await maildir.append(b"x" * 2000)
    for value in (maildir, maildir.statistics()):
        cells = Page(value._repr_html_()).cells
        assert cells[cells.index("delivered") + 1] == "1"
        assert cells[cells.index("bytes_stored") + 1] == "2,000"
        assert cells[cells.index("failed") + 1] == "0"


def test_a_group_commit_s_numbers_show() -> None:
    """As they are: no thousands in a process id, which there is where there is a helper."""
    statistics = GroupCommit().statistics()
    assert "helper_pid" not in Page(statistics._repr_html_()).cells
    changed = type(statistics)(*[12_345] * 9)
    assert {"12345", "12,345"} < set(Page(changed._repr_html_()).cells)


async def test_many_results_show_their_ends(tmp_path: Path) -> None:
    """What `append_many` and `deliver` return is a list like any other, which shows five results at each of its ends,
    how many are between, and how many of all there are.
    """
    maildir = Maildir(tmp_path / "box", size_limit=100)
    messages = [b"x" * 10] * 60 + [b"x" * 101]
    results = cast(Any, await maildir.append_many(messages, return_exceptions=True))
    assert isinstance(cast(object, results), list)
    assert results == list(results)
    assert repr(results) == repr(list(results))
    assert [type(each) for each in pickle.loads(pickle.dumps(results))] == [type(each) for each in results]
    page = Page(results._repr_html_())
    assert page.cells[0] == "60 delivered, 600 bytes; 1 failed"
    assert page.elements.count("tr") == 1 + 5 + 1 + 5
    assert "51 more" in page.cells
    assert page.cells[page.cells.index("60") :][-1].startswith("MessageTooLargeError: ")
    assert isinstance(results[3], Delivered)
    assert results[3].key in page.cells
    printed: list[str] = []
    results._repr_pretty_(types.SimpleNamespace(text=printed.append), False)
    assert len(printed[0].splitlines()) == 11
    assert repr(results[4]) in printed[0]
    assert repr(results[5]) not in printed[0]


async def test_outcomes_show_their_maildirs(tmp_path: Path) -> None:
    """The table of what `deliver` returns says for each maildir what became of the message there."""
    (tmp_path / "bad").write_bytes(b"")
    outcomes = cast(Any, await deliver(b"x", [Maildir(tmp_path / "good"), Maildir(tmp_path / "bad")]))
    page = Page(outcomes._repr_html_())
    assert page.cells[0] == "1 delivered, 1 byte; 1 failed"
    assert {str(tmp_path / "good"), str(tmp_path / "bad"), outcomes[0].delivered.key} < set(page.cells)
    assert any(cell.startswith("NotAMaildirError: ") for cell in page.cells)
    assert "Delivered" in Page(outcomes[0]._repr_html_()).cells
    assert "451 4.3.5 Mailbox temporarily unavailable" in Page(outcomes[1]._repr_html_()).cells


def test_a_grid_leaves_out_what_is_empty_and_asks_for_what_it_shows() -> None:
    """A column that has no value in any line shown is left out; a zero is a value; ten of a million are asked for."""
    asked = list[int]()

    def cells(number: int) -> dict[str, object]:
        asked.append(number)
        return {"number": number, "nothing": "", "zero": 0}

    page = Page(grid("Many", range(1_000_000), cells))
    assert "nothing" not in page.cells
    assert page.cells.count("0") == 12
    assert asked == [*range(5), *range(999_995, 1_000_000)]
    rows: list[dict[str, object]] = [{"a": 1, "b": 2, "c": 3}, {"a": "what went wrong, which takes some words"}]
    assert "<td colspan='3' style='text-align:left;vertical-align:top'>what" in grid("Some", rows, lambda row: row)
    assert Page(grid("None", [], cells)).elements == ["table", "caption", "tr", "th"]
    assert Page(table("Long", [("x", "y" * 10_000)])).cells[2] == "y" * 600 + "…"


# Progress.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("interval_s", [0.0, 3600.0])
async def test_progress_on_a_terminal(tmp_path: Path, interval_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one line, which is written over, now and then, and ended with the last message."""
    monkeypatch.setattr(notebook, "INTERVAL_S", interval_s)
    terminal = Terminal()
    await Maildir(tmp_path / "box").append_many([b"x" * 1000] * 30, on_progress=Progress("mail\x1b", file=terminal))
    first, *others = terminal.getvalue().split("\r")[1:]
    assert terminal.getvalue().count("\n") == 1
    assert first.startswith("mail\\x1b: 1 of 30 messages, 1.0 kB")
    assert len(others) == (29 if interval_s == 0 else 1)
    assert others[-1].startswith("mail\\x1b: 30 messages, 30.0 kB, ")
    assert others[-1].endswith(("s\n", " \n"))


async def test_progress_in_a_log(tmp_path: Path) -> None:
    """Where it is no terminal, one line is printed, at the end; also for messages whose number nobody knows before."""
    log = io.StringIO()
    progress = Progress(file=log)
    maildir = Maildir(tmp_path / "box")
    await maildir.append_many([b"x"], on_progress=progress)
    await maildir.append_many((b"x" for _ in range(3)), concurrency=1, on_progress=progress)
    await maildir.append_many(iter(()), on_progress=progress)
    with Progress("one", file=log) as one:
        await maildir.append([b"x" * 2_500_000], on_progress=one)
        assert log.getvalue().count("\n") == 3
    with Progress(file=log):
        pass
    said = [line.rpartition(", ")[0] for line in log.getvalue().splitlines()]
    assert said == ["1 message, 1 byte", "3 messages, 3 bytes", "0 messages, 0 bytes", "one: 2.5 MB"]


async def test_the_number_of_messages_is_told_when_it_is_known(tmp_path: Path) -> None:
    """on_progress of `append_many` is told it at last, also where the end is found after all have been settled."""
    told = list[tuple[int, int | None, int]]()
    maildir = Maildir(tmp_path / "box")
    for atomic in (False, True):
        told.clear()
        await maildir.append_many(
            (b"x" for _ in range(2)), concurrency=1, on_progress=lambda *args: told.append(args), atomic=atomic
        )
        assert [(done, total) for done, total, _ in told] == [(1, None), (2, None), (2, 2)]


async def test_progress_shows_what_was_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came too soon after the last change is shown a moment later, although nothing more is told."""
    monkeypatch.setattr(notebook, "INTERVAL_S", 0.01)
    terminal = Terminal()
    progress = Progress(file=terminal)
    progress(1)
    progress(2)
    while "2 bytes" not in terminal.getvalue():
        await asyncio.sleep(0.001)
    progress.close()
    assert terminal.getvalue().endswith("\n")


async def test_progress_that_cannot_be_shown_fails_nothing(tmp_path: Path) -> None:
    """A closed terminal, or none at all, loses no mail."""
    closed = Terminal()
    closed.close()
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), open(writer, "w", buffering=1) as broken:
        for file in (closed, broken):
            await Maildir(tmp_path / "box").append_many([b"x"] * 3, on_progress=Progress(file=file))
    assert len(list((tmp_path / "box/new").iterdir())) == 6


class Notebook:
    """What a kernel has, as far as progress needs it: `IPython.get_ipython`, and its display with outputs by handle."""

    kernel = None

    def __init__(self) -> None:
        self.outputs: list[list[Any]] = []

    def get_ipython(self) -> "Notebook":
        return self

    def display(self, value: Any, *, display_id: bool) -> Any:
        assert display_id is True
        output = [value]
        self.outputs.append(output)
        return types.SimpleNamespace(update=output.append)


async def test_progress_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one output for each call, replaced; the last one has no bar."""
    monkeypatch.setattr(notebook, "INTERVAL_S", 0)
    shown = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", shown)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    progress = Progress("<b>")
    maildir = Maildir(tmp_path / "box")
    await maildir.append_many([b"x"] * 3, on_progress=progress)
    await maildir.append_many([b"x"] * 2, on_progress=progress)
    assert [[repr(line).rpartition(", ")[0] for line in output[-1:]] for output in shown.outputs] == [
        ["<b>: 3 messages, 3 bytes"],
        ["<b>: 2 messages, 2 bytes"],
    ]
    pages = [Page(line._repr_html_()).elements for line in shown.outputs[0]]
    assert pages == [["div", "progress"], ["div", "progress"], ["div"]]


def test_ipython_without_a_kernel_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython on a terminal is a terminal."""
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: object()))
    terminal = Terminal()
    Progress(file=terminal)(1, 1, 1)
    assert terminal.getvalue().startswith("\r1 message, 1 byte")
