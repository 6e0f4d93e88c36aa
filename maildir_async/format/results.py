"""What became of several messages, as a list that a notebook shows as a table."""

from collections.abc import Mapping
from typing import Any, TypeVar

from maildir_async.format.delivered import Delivered
from maildir_async.format.html import ENDS, failure, grid, seconds

__all__ = ["Results"]

T = TypeVar("T")


class Results(list[T]):
    """A list of `Delivered`, exceptions, or outcomes. It differs from others in how it looks in a notebook only: there
    it says how many were delivered, and shows those at its ends.
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        told = [_told(each) for each in self]
        delivered = [each for each in told if isinstance(each, Delivered)]
        stored = [each for each in delivered if not each.duplicate]
        size = sum(each.size for each in stored)
        said = [f"{len(stored):,} delivered, {size:,} byte{'s' * (size != 1)}"]
        if doubles := len(delivered) - len(stored):
            said.append(f"{doubles:,} delivered before")
        if failed := len(told) - len(delivered):
            said.append(f"{failed:,} failed")
        return grid("; ".join(said), self, _cells)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print it as IPython does with what has no HTML: a page of 500 lines is read by nobody."""
        lines = [repr(each) for each in (self[:ENDS] + self[-ENDS:] if len(self) > 2 * ENDS else self)]
        if len(self) > 2 * ENDS:
            lines.insert(ENDS, f"… {len(self) - 2 * ENDS:,} more …")
        printer.text(f"[{f',{chr(10)} '.join(lines)}]")


def _told(item: Any) -> Delivered | Exception | None:
    """Return what became of one message: an item of a list is that, or an outcome that has it."""
    if isinstance(item, Delivered | Exception):
        return item
    told: Delivered | Exception | None = item.delivered or item.error
    return told


def _cells(item: Any) -> Mapping[str, object]:
    """Return one line of the table."""
    told = _told(item)
    cells: dict[str, object] = {} if told is item else {"maildir": item.maildir.path}
    if isinstance(told, Delivered):
        taken = told.queued_s + told.commit_s
        cells |= {"result": told.key, "folder": told.folder, "flags": told.flags, "keywords": told.keywords}
        cells |= {"size": told.size, "time": seconds(taken), "duplicate": told.duplicate, "warnings": told.warnings}
    elif told is not None:
        cells["result"] = failure(told)
    return cells
