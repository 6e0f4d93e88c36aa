"""Values as small HTML tables, for notebooks. Everything in them is escaped: a file name is whatever somebody chose."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeVar

__all__ = ["failure", "fields_of", "grid", "plain", "printable", "seconds", "table"]

T = TypeVar("T")

#: Characters of a value that are shown.
LONGEST: Final = 600
#: Characters of one that is not broken into lines.
SHORT: Final = 20
#: Rows of a grid that are shown from its beginning, and from its end.
ENDS: Final = 5

_CELL: Final = "text-align:left;vertical-align:top"  # notebooks put the text of a cell to the right
_SHORT_CELL: Final = f"{_CELL};white-space:nowrap"
_CAPTION: Final = "text-align:left;font-weight:bold;white-space:nowrap"


def table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a table with a line for each name and value. Those without a value (None, False, "", ()) are left out."""
    return _framed(caption, [_line("td", name, [value]) for name, value in rows if not _is_nothing(value)])


def grid(caption: str, items: Sequence[T], cells: Callable[[T], Mapping[str, object]]) -> str:
    """Return a table with a numbered line for each of *items*. Its columns are the keys of *cells*, which makes a line.

    Of many items the first and the last are shown (no others are asked for), and how many are between. A column without
    any value is left out.
    """
    numbers = list(range(len(items)))
    left_out = len(numbers) - 2 * ENDS
    if left_out > 0:
        numbers = numbers[:ENDS] + numbers[-ENDS:]
    rows = [cells(items[number]) for number in numbers]
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if not _is_nothing(value)))
    lines = [_line("th", "", columns, len(columns))]
    for number, row in zip(numbers, rows, strict=True):
        if left_out > 0 and number == len(items) - ENDS:
            lines.append(_line("td", "…", [f"{left_out:,} more"], len(columns)))
        lines.append(_line("td", str(number), [row.get(name) for name in columns], len(columns)))
    return _framed(caption, lines)


def _line(kind: str, name: str, values: Sequence[object], columns: int = 1) -> str:
    """Return a line of a table: its name, and then cells of that *kind*: the last value has the room of all that would
    follow, in a table of so many *columns*.
    """
    shown = ["" if _is_nothing(each) else _escaped(plain(each)) for each in values]
    while len(shown) > 1 and not shown[-1]:
        del shown[-1]
    cells = [f"<{kind} style='{_CELL if len(each) > SHORT else _SHORT_CELL}'>{each}</{kind}>" for each in shown]
    if cells and len(cells) < columns:
        cells[-1] = cells[-1].replace(" ", f" colspan='{columns - len(cells) + 1}' ", 1)
    return f"<tr><th style='{_CELL}'>{_escaped(name)}</th>{''.join(cells)}</tr>"


def _framed(caption: str, lines: Iterable[str]) -> str:
    return f"<table><caption style='{_CAPTION}'>{_escaped(caption)}</caption>{''.join(lines)}</table>"


def fields_of(value: Any) -> list[tuple[str, object]]:
    """Return the fields of a dataclass as rows of a `table`: times (``…_s``) with their unit, a process id as it is."""
    rows: list[tuple[str, object]] = []
    for field in dataclasses.fields(value):
        found: object = getattr(value, field.name)
        if isinstance(found, float) and field.name.endswith("_s"):
            found = seconds(found)
        rows.append((field.name, str(found) if field.name.endswith("pid") and found is not None else found))
    return rows


def seconds(value: float) -> str:
    """Return a duration as a person reads it: in milliseconds, if it is less than a second."""
    return f"{value * 1000:.2f} ms" if value < 1 else f"{value:,.2f} s"


def failure(exc: BaseException) -> str:
    """Return an exception as one line: what it is, and what it says."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def plain(value: object) -> str:
    """Return *value* as text, not escaped yet."""
    match value:
        case Enum():
            return value.name
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case tuple() | list():
            return "; ".join(map(plain, value))  # pyright: ignore[reportUnknownArgumentType] whatever it holds
        case _:
            return str(value)


def _is_nothing(value: object) -> bool:
    return value is None or value is False or value == "" or value == ()


def printable(text: str) -> str:
    """Return *text* with what cannot be printed (a line end, half of a surrogate pair) as Python writes it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _escaped(text: str) -> str:
    import html  # two thousand entities, which a delivery has no use for

    return html.escape(printable(text if len(text) <= LONGEST else text[:LONGEST] + "…"))
