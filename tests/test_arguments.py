"""Every argument of every public call: what is wrong with one is told by its name, and by what was given, in a line."""

import inspect
import io
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import AppendTask, DuplicateFilter, GroupCommit, Maildir, Quota, as_producer, deliver
from maildir_async.format.given import given
from maildir_async.notebook import Progress


class Wrong:
    """Of no type that any argument has. A repr may be long."""

    def __repr__(self) -> str:
        return f"<wrong {'x' * 100_000}>"


WRONG: Final = Wrong()
LONG: Final = "text" * 100_000


class _Producer:
    def resume_producing(self) -> None: ...
    def stop_producing(self) -> None: ...


PULLED: Final[dict[str, Any]] = {"producer": _Producer(), "streaming": False}


def of_one_message() -> dict[str, list[Any]]:
    return {
        "folder": [WRONG, 3, [WRONG], b"Archive", "a//b", "a/\n", LONG, "a.b", "\ud800", ["a/b"]],
        "flags": [WRONG, None, 3, b"S", "?", LONG],
        "keywords": [WRONG, None, 3, "$Forwarded", [WRONG], [3], [""], [LONG], ["a b"], [f"k{n}" for n in range(27)]],
        "received_at": [WRONG, "now", True, float("nan"), float("inf"), 1e20, -(10**5000)],
        "prefix": [WRONG, "X: y\n", None, 3, b"X", b"X: y\n\n", b"x" * 100_000 + b"\n", b"X: \0\n"],
        "newline": [WRONG, None, "LF", b"lf", LONG],
        "strip_from_line": [WRONG, None, "no", 0],
        "durability": [WRONG, "full", LONG, True],
        "size_limit": [WRONG, "50M", LONG, 1.5, -1, True],
        "on_progress": [WRONG, 3, LONG],
        "deadline": [WRONG, None, 60, timedelta(), timedelta(-1)],
        "duplicate_key": [WRONG, 3, False, "", b"", "\ud800", LONG],  # the last needs a filter
    }


def of_many_messages() -> dict[str, list[Any]]:
    options = of_one_message()
    return options | {
        "messages": [WRONG, None, 3, "text", b"text", memoryview(b"x")],
        "concurrency": [WRONG, "4", LONG, 0, -1, True],
        "return_exceptions": [WRONG, None, "no"],
        "atomic": [WRONG, None, "no"],
    }


NO_MESSAGE: Final = [WRONG, None, 3, 3.5, "text", LONG, io.StringIO("text"), Path("x")]

#: For each call: how it is made in a directory with one option changed, and what is wrong for each argument.
CALLS: Final[dict[str, tuple[Any, Callable[..., Any], Any]]] = {
    "Maildir": (
        Maildir,
        lambda at, **options: Maildir(**{"path": at, **options}),
        {
            "path": [WRONG, None, 3, b"box", "", "a\0b", "\ud800", LONG + "\0"],
            "create": [WRONG, None, "no", 0],
            "create_below": [WRONG, 3, b"box", "", LONG + "\0"],
            "require_mount": [WRONG, 3, b"box", "", "\ud800"],
            "durability": [WRONG, None, "full", LONG],
            "commit": [WRONG, 3, LONG, GroupCommit],
            "file_mode": [WRONG, None, "600", 0o700, -1, True],
            "size_limit": [WRONG, "50M", -1, 1.5, True],
            "hostname": [WRONG, 3, b"host", "a\ud800", LONG + "\ud800"],
            "folder_encoding": [WRONG, None, "UTF-7", LONG],
            "quota": [WRONG, 10**9, "1G", Quota],
            "duplicates": [WRONG, "seen.sqlite", True, DuplicateFilter],
            "names": [WRONG, 3],
            "inherit_mode": [WRONG, None, "no"],
            "disk": [WRONG, None, 3],
        },
    ),
    "append": (
        Maildir.append,
        lambda at, **options: Maildir(at).append(**{"message": b"x", **options}),
        {"message": NO_MESSAGE} | of_one_message(),
    ),
    "append a stream": (
        Maildir.append,
        lambda at, **options: Maildir(at).append(**{"message": [b"x"], **options}),
        {"message": NO_MESSAGE} | of_one_message(),
    ),
    "open_append": (Maildir.open_append, lambda at, **options: Maildir(at).open_append(**options), of_one_message()),
    "AppendTask": (
        AppendTask,
        lambda at, **options: AppendTask(**{"maildir": Maildir(at), **options}),
        {"maildir": [WRONG, None, "box", LONG], "message": [each for each in NO_MESSAGE if each is not None]}
        | of_one_message(),
    ),
    "append_many": (
        Maildir.append_many,
        lambda at, **options: Maildir(at).append_many(**{"messages": [], **options}),
        of_many_messages(),
    ),
    "append_many of one": (
        Maildir.append_many,
        lambda at, **options: Maildir(at).append_many(**{"messages": [b"x"], "return_exceptions": True, **options}),
        of_many_messages(),
    ),
    "append_many, atomic": (
        Maildir.append_many,
        lambda at, **options: Maildir(at).append_many(**{"messages": [b"x"], "atomic": True, **options}),
        of_many_messages() | {"return_exceptions": [WRONG, True], "duplicate_key": [WRONG, 3, True]},
    ),
    "deliver": (
        deliver,
        lambda at, **options: deliver(**{"message": b"x", "maildirs": [Maildir(at)], **options}),
        {"message": NO_MESSAGE, "maildirs": [WRONG, None, 3, "box", ["box"], [WRONG], LONG]}
        | {name: wrong for name, wrong in of_one_message().items() if name != "on_progress"},
    ),
    "as_producer": (
        as_producer,
        lambda at, **options: as_producer(**{"message": b"x", "consumer": AppendTask(Maildir(at)), **options}),
        {"message": NO_MESSAGE, "consumer": [WRONG, None, 3], "streaming": [WRONG, None, "no", 1]},
    ),
    "create_folder": (
        Maildir.create_folder,
        lambda at, **options: Maildir(at).create_folder(**{"folder": "a", **options}),
        {"folder": of_one_message()["folder"], "subscribe": [WRONG, None, "no"]},
    ),
    "check_room": (
        Maildir.check_room,
        lambda at, **options: Maildir(at).check_room(**options),
        {"size": [WRONG, None, "1M", -1, 1.5, True]},
    ),
    "index": (
        Maildir.index,
        lambda at, **options: Maildir(at).index(**options),
        {"folder": of_one_message()["folder"]},
    ),
    "watch": (
        Maildir.watch,
        lambda at, **options: Maildir(at).watch(**options),
        {
            "folder": of_one_message()["folder"],
            "existing": [WRONG, None, "no"],
            "poll_s": [WRONG, None, "1", 0, -1, float("nan"), float("inf"), True],
        },
    ),
    "clean_tmp": (
        Maildir.clean_tmp,
        lambda at, **options: Maildir(at).clean_tmp(**options),
        {"older_than": [WRONG, None, 36, timedelta(-1)]},
    ),
    "GroupCommit": (
        GroupCommit,
        lambda at, **options: GroupCommit(**options),
        {
            "max_pending": [WRONG, None, "1k", 0, 1.5, True],
            "max_pending_bytes": [WRONG, None, "1M", 0, 1.5, True],
            "wait": [WRONG, None, "no"],
            "syncfs": [WRONG, None, "no"],
            "helper_process": [WRONG, None, "no"],
        },
    ),
    "Quota": (
        Quota,
        lambda at, **options: Quota(**options),
        {
            "bytes": [WRONG, "1G", 0, -1, 1.5, True],
            "messages": [WRONG, "1k", 0, -1, 1.5, True],
            "ignore": [WRONG, None, 3, "Trash", LONG, [WRONG]],
            "over": [WRONG, None, 452, "full", LONG, "250 2.0.0 Ok"],
            "on_warning": [WRONG, 3, LONG],
            "warn_at": [WRONG, None, 0.8, ["most"], [2], [0], [WRONG], [None, 0.5]],
        },
    ),
    "DuplicateFilter": (
        DuplicateFilter,
        lambda at, **options: DuplicateFilter(**{"path": at, **options}),
        {
            "path": [WRONG, None, 3, b"seen", "", "a\0b"],
            "keep": [WRONG, None, 7, timedelta(), timedelta(-1)],
            "clock": [WRONG, None, 3],
            "disk": [WRONG, None, 3],
        },
    ),
    "Progress": (
        Progress,
        lambda at, **options: Progress(**options),
        {"label": [WRONG, None, 3], "file": [WRONG, 3, LONG]},
    ),
    "send": (
        AppendTask.send,
        lambda at, **options: AppendTask(Maildir(at)).send(**options),
        {"data": ["text", 3, WRONG]},
    ),
    "write": (
        AppendTask.write,
        lambda at, **options: AppendTask(Maildir(at)).write(**options),
        {"data": ["text", 3, WRONG]},
    ),
    "fail": (
        AppendTask.fail,
        lambda at, **options: AppendTask(Maildir(at)).fail(**options),
        {"exc": ["text", 3, WRONG]},
    ),
    "register_producer": (
        AppendTask.register_producer,
        lambda at, **options: AppendTask(Maildir(at)).register_producer(**PULLED | options),
        {"producer": [WRONG, None, 3], "streaming": [WRONG, None, "no", 1]},
    ),
}


@pytest.mark.parametrize("name", CALLS)
async def test_an_argument_that_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    """TypeError or ValueError; the argument by name; what it was, or of which type; no more than some words; and
    nothing has been touched.
    """
    called, call, wrong = CALLS[name]
    told = list[str]()
    for argument, values in wrong.items():
        for value in values:
            what = f"{name}({argument}={given(value)})"
            try:
                result = call(str(tmp_path / "box"), **{argument: value})
                if inspect.isawaitable(result):
                    await result
            except (TypeError, ValueError) as exc:
                said = str(exc)
                if not re.search(rf"\b{argument}\b", said):
                    told.append(f"{what} is not named: {said[:200]}")
                if len(said) > 320:
                    told.append(f"{what} is told in {len(said)} characters")
                shown = value[0] if isinstance(value, list) and value else value
                hints = [given(value)[:20], given(shown)[:20], type(value).__name__, type(shown).__name__]
                if isinstance(exc, TypeError) and not any(hint in said for hint in hints):
                    told.append(f"{what} does not say what it was: {said[:200]}")
            except Exception as exc:
                told.append(f"{what}: {type(exc).__name__}: {str(exc)[:200]}")
            else:
                told.append(f"{what} is taken")
    assert "\n".join(told) == ""
    assert list(tmp_path.iterdir()) == []
    parameters = set(inspect.signature(called).parameters) - {"self"}
    assert parameters == set(wrong), "an argument is not looked at here"
