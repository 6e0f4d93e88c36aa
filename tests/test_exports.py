"""The public names, and the order of the layers: what every other program, and every other module, may rely on."""

import ast
import asyncio
import dataclasses
import functools
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Final

import pytest

import maildir_async
from maildir_async import AppendTask, Delivered, Durability, GroupCommit, Maildir
from maildir_async.format.options import MessageOptions

PACKAGE: Final = Path(maildir_async.__file__).parent

#: The floors of the house, from the ground up, as DESIGN.md draws them: packages, and modules that stand by themselves.
#: A module imports from its own floor and those below it.
FLOORS: Final[list[set[str]]] = [
    {"errors"},
    {"format"},
    {"disk"},
    {"commit"},
    {"helper"},
    {"group_commit"},
    {"receive"},
    {"mailbox"},
    {"mail_import"},
    {"__init__"},
    {"smtp", "testing", "notebook"},
    {"daemon"},
    {"command", "__main__"},
]

ASYNC: Final = {"asyncio", "anyio", "aiofiles"}

#: Functions of the os module that change a file system or make it durable. (close and the like only let go.)
CHANGES: Final = {
    *("open", "write", "pwrite", "writev", "fsync", "fdatasync", "sync", "rename", "renames", "replace", "link"),
    *("symlink", "unlink", "remove", "mkdir", "makedirs", "rmdir", "removedirs", "mkfifo", "mknod", "utime", "chmod"),
    *("fchmod", "chown", "fchown", "truncate", "ftruncate", "posix_fadvise"),
}


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Return the syntax tree of each module, by its name within the package."""
    found: dict[str, ast.Module] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = ast.parse(
            path.read_text()
        )
    return found


MODULES: Final = sorted(trees())


def floor(module: str) -> int:
    """Return the floor that *module* is on: its own, or that of its package."""
    for name in (module, module.partition(".")[0]):
        for number, names in enumerate(FLOORS):
            if name in names:
                return number
    raise AssertionError(f"{module} is on no floor")


def imports(tree: ast.AST) -> set[str]:
    """Return the full names of the modules imported anywhere in *tree*, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@functools.cache
def uses(module: str) -> set[str]:
    """Return the modules of ours that *module* imports."""
    found: set[str] = set()
    for name in imports(trees()[module]):
        if name.partition(".")[0] == "maildir_async":
            inner = name.partition(".")[2]
            if inner in trees():
                found.add(inner)
            elif inner and "." not in inner:
                found.add("__init__")
    return found - {module, module.rpartition(".")[0]}


def test_design_draws_the_same_floors() -> None:
    """DESIGN.md draws these floors, in this order, and has a line for each file."""
    design = (Path(__file__).parents[1] / "DESIGN.md").read_text()
    drawn = design.partition("## The house")[2].split("```")[1]
    names = [set(re.findall(r"\w+(?:\.\w+)?", line.partition("  ")[0])) for line in drawn.strip().splitlines()]
    told = set(re.findall(r"^\| `([\w/]+)\.py`", design.partition("## Reading the source")[2], re.MULTILINE))

    assert names[::-1] == FLOORS
    files = {module.replace(".", "/") for module in MODULES}
    assert {name for name in files if not (PACKAGE / name).is_dir()} - {"__init__"} == told


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    """A module imports from its own floor and those below."""
    assert {other for other in uses(module) if floor(other) > floor(module)} == set()


def test_no_import_goes_round() -> None:
    """Within a floor too, no module imports itself by way of others."""
    order: list[str] = []

    def visit(module: str, through: tuple[str, ...]) -> None:
        assert module not in through, " imports ".join((*through, module))
        if module not in order:
            for other in sorted(uses(module)):
                visit(other, (*through, module))
            order.append(module)

    for module in MODULES:
        visit(module, ())


LOWER: Final = [module for module in MODULES if floor(module) <= floor("disk")]


@pytest.mark.parametrize("module", LOWER)
def test_the_lower_floors_know_no_event_loop(module: str) -> None:
    """What is below `commit` imports neither asyncio nor anything made for it, and has no coroutine."""
    tree = trees()[module]
    assert {name.partition(".")[0] for name in imports(tree)} & ASYNC == set()
    assert [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)] == []


#: Packages that change files by themselves, which are none of a maildir's.
APART: Final = {"disk", "testing", "command", "daemon", "smtp"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.partition(".")[0] not in APART])
def test_only_disk_changes_the_file_system(module: str) -> None:
    """No other module calls what changes files or directories, or opens any: it would go past the `Disk`."""
    tree = trees()[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            called = (of.id if isinstance(of, ast.Name) else "", node.func.attr)
            assert called[0] != "os" or called[1] not in CHANGES, f"{module}:{node.lineno}: {'.'.join(called)}"
        assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open")
    assert {"shutil", "tempfile", "pathlib"} & imports(tree) == set()


@pytest.mark.parametrize("module", MODULES)
def test_no_class_is_large(module: str) -> None:
    """No module has over about 300 lines, and no class over about 250: larger ones have more than one task."""
    tree = trees()[module]
    ends = [node.end_lineno or 0 for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    assert max(ends, default=0) <= 350
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno <= 270, node.name


def test_the_package_exports_what_it_says() -> None:
    """`__all__` is sorted, and lists every public name of the package that is not a module; each has a docstring."""
    values = {name: getattr(maildir_async, name) for name in dir(maildir_async) if not name.startswith("_")}
    of_typing = {"TYPE_CHECKING", "Any", "Final"}
    public = {name for name, value in values.items() if not inspect.ismodule(value)} - of_typing
    assert list(maildir_async.__all__) == sorted(public)
    aliases = {"Message", "Newline"}  # of types; what they mean is said at `append`
    for name in public - aliases:
        assert inspect.getdoc(getattr(maildir_async, name)), name


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__", "__main__"}))
def test_each_module_exports_what_it_says(module: str) -> None:
    """The names in a module's `__all__` are there."""
    imported = __import__(f"maildir_async.{module}", fromlist=["__all__"])
    assert [name for name in getattr(imported, "__all__", ()) if not hasattr(imported, name)] == []


def test_the_import_costs_little() -> None:
    """`import maildir_async` imports, beyond what its dependencies do, nothing that only some programs need."""
    program = (
        "import sys, asyncio, anyio, anyio.abc, aiofiles.threadpool.binary, email.message\n"
        "before = set(sys.modules)\n"
        "import maildir_async\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    unwanted = {
        "asyncinotify",  # whose import runs a program, and may not be there
        "argparse",  # but not ctypes: every delivery at FULL asks for the birth of a directory by it, statx(2)
        "ssl",
        "json",
        "http",
        "mailbox",
        "multiprocessing",
        "tempfile",
        "unittest",
        "zlib",
    }
    imported = done.stdout.split()
    assert "maildir_async" in imported
    assert {name.partition(".")[0] for name in imported} & unwanted == set()
    assert [name for name in imported if name.startswith("maildir_async.mail_import")] == []


REQUIRED: Final[Any] = inspect.Parameter.empty

OPTIONS: Final[dict[str, Any]] = {
    "folder": None,
    "flags": "",
    "keywords": (),
    "received_at": None,
    "prefix": b"",
    "newline": "keep",
    "strip_from_line": False,
    "durability": None,
    "size_limit": None,
    "on_progress": None,
    "duplicate_key": None,
}

#: What may be called, by position, then by keyword only, and with which defaults.
SIGNATURES: Final[list[tuple[Any, list[str], dict[str, Any]]]] = [
    (
        Maildir,
        ["path"],
        {
            "create": True,
            "durability": Durability.FULL,
            "commit": None,
            "file_mode": 0o600,
            "size_limit": None,
            "hostname": None,
            "folder_encoding": "utf-7",
            "inherit_mode": False,
            "quota": None,
            "duplicates": None,
        },
    ),
    (Maildir.append, ["self", "message"], OPTIONS),
    (Maildir.open_append, ["self"], OPTIONS),
    (
        Maildir.append_many,
        ["self", "messages"],
        OPTIONS | {"concurrency": 64, "on_progress": None, "return_exceptions": False, "atomic": False},
    ),
    (Maildir.clean_tmp, ["self", "older_than"], {}),
    (Maildir.create, ["self"], {}),
    (Maildir.index, ["self"], {"folder": None}),
    (Maildir.watch, ["self", "folder"], {"existing": False, "poll_s": 1.0}),
    (Maildir.folders, ["self"], {}),
    (Maildir.create_folder, ["self", "folder"], {}),
    (Maildir.statistics, ["self"], {}),
    (Maildir.aclose, ["self"], {}),
    (AppendTask, ["maildir", "message"], OPTIONS),
    (AppendTask.start, ["self"], {}),
    (AppendTask.cancel, ["self"], {}),
    (AppendTask.fail, ["self", "exc"], {}),
    (AppendTask.register_producer, ["self", "producer", "streaming"], {}),
    (AppendTask.unregister_producer, ["self"], {}),
    (AppendTask.write, ["self", "data"], {}),
    (AppendTask.send, ["self", "data"], {}),
    (GroupCommit, [], {"max_pending": 4096, "max_pending_bytes": 256 * 2**20, "wait": True}),
    (maildir_async.as_producer, ["message", "consumer"], {"streaming": False}),
]


@pytest.mark.parametrize(
    ("called", "positional", "keywords"), SIGNATURES, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_public_signatures_are_those_designed(called: Any, positional: list[str], keywords: dict[str, Any]) -> None:
    """Each public call takes these arguments; options are keyword-only, and mean by default what they are told to."""
    parameters = inspect.signature(called).parameters.values()

    by_position = [found.name for found in parameters if found.kind is found.POSITIONAL_OR_KEYWORD]
    by_keyword = {found.name: found.default for found in parameters if found.kind is found.KEYWORD_ONLY}

    assert by_position == positional
    assert by_keyword | keywords == by_keyword


def options_of(called: Any) -> dict[str, tuple[Any, Any]]:
    """Return the options of a call: the type and the default of each."""
    parameters = inspect.signature(called).parameters.values()
    return {each.name: (each.annotation, each.default) for each in parameters if each.kind is each.KEYWORD_ONLY}


def test_all_that_deliver_take_the_same_options() -> None:
    """Each option of `append` is one of the others, spelt out with its type and default, as an editor shows it."""
    options = options_of(Maildir.append)
    assert options_of(Maildir.open_append) == options_of(AppendTask) == options
    del options["on_progress"]  # of one message
    assert options_of(maildir_async.deliver) == options
    assert set(MessageOptions.__annotations__) == set(options)
    several = set(options_of(Maildir.append_many)) - set(options)
    assert several == {"concurrency", "on_progress", "return_exceptions", "atomic"}
    for overload in (Maildir.append_many, *typing.get_overloads(Maildir.append_many)):
        shown = options_of(overload)
        assert options.items() <= shown.items()
        assert ... not in [default for _, default in shown.values()]


def test_what_a_delivery_tells() -> None:
    """`Delivered` and `AppendTask` have the attributes that programs read."""
    delivered = {
        "path",
        "key",
        "folder",
        "flags",
        "keywords",
        "size",
        "wire_size",
        "durability",
        "duplicate",
        "queued_s",
        "commit_s",
        "warnings",
    }
    assert delivered == {field.name for field in dataclasses.fields(Delivered)}
    for name in ("future", "state", "tmp_path", "bytes_written"):
        assert isinstance(vars(AppendTask)[name], property)
    for name in ("append", "append_many", "create", "clean_tmp", "index", "aclose"):
        assert inspect.iscoroutinefunction(getattr(Maildir, name))
    assert not inspect.iscoroutinefunction(Maildir.open_append)


def test_the_errors_form_the_tree_that_is_drawn() -> None:
    """An `except MaildirError` catches all; an `AppendError` that is not uncertain means nothing was delivered."""
    tree = {
        maildir_async.MaildirError: Exception,
        maildir_async.NotAMaildirError: maildir_async.MaildirError,
        maildir_async.AppendError: maildir_async.MaildirError,
        maildir_async.BusyError: maildir_async.AppendError,
        maildir_async.MessageTooLargeError: maildir_async.AppendError,
        maildir_async.UncertainAppendError: maildir_async.AppendError,
    }
    assert {error: error.__base__ for error in tree} == tree
    assert not issubclass(asyncio.CancelledError, maildir_async.MaildirError)
