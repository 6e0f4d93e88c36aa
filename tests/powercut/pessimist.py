"""A pessimist's file system, which reads a trace of system calls: it keeps nothing that it was not told to.

No journal puts its names in order. A name in a directory is durable only when that directory is synced, by a call that
began after the name was made; and a file's bytes only when the file is, by a call that began after the last write had
returned. So a new maildir is durable only when each directory above it that is new too has been synced into its
parent: what ext4, XFS and Btrfs hide, since their journals commit a directory along with what is synced in it.

It says what is wrong with the trace of a workload: a message that was visible before its bytes were durable, and one
that was acknowledged while its bytes, its name, or the name of a directory above it were not. What was there before
the trace is durable. fsync(2), fdatasync(2), syncfs(2) and the syncs of kernel AIO are all understood.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Call", "Pessimist", "calls", "trace"]

_CALLS: Final = (
    "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,write,pwrite64,writev,"
    "pwritev,ftruncate,fallocate,copy_file_range,sendfile,fsync,fdatasync,syncfs,sync,io_submit,io_getevents"
)
_LINE: Final = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$", re.DOTALL)
_UNFINISHED: Final = " <unfinished ...>"
_RESULT: Final = re.compile(r"\) += (-?\d+|0x[0-9a-f]+|\?)", re.DOTALL)
_STRING: Final = re.compile(r'(?:(AT_FDCWD|\d+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"(\.\.\.)?')
_OPEN: Final = re.compile(r"(\d+)<([^>]*)>")
_IOCB: Final = re.compile(r"\{aio_data=(\w+), aio_lio_opcode=IOCB_CMD_F\w*SYNC, aio_fildes=\d+<([^>]*)>")
_EVENT: Final = re.compile(r"\{data=(\w+), obj=\w+, res=(-?\d+)")

#: Bytes of a packet or path that a trace shows.
_SHOWN: Final = 8000


class Call(NamedTuple):
    """A system call that succeeded: *began* and *ended* are the numbers of the trace's lines that say so."""

    began: int
    ended: int
    name: str
    arguments: str


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the calls that succeeded, in the order in which they ended."""
    begun = dict[str, tuple[int, str, str]]()
    for number, line in enumerate(lines):
        found = _LINE.match(line.rstrip("\n"))
        if found is None:  # a signal, or an end
            continue
        pid, resumed, rest, name, arguments = found.groups()
        began = number
        if resumed:
            began, name, first = begun.pop(pid)
            arguments = first + rest
        elif arguments.endswith(_UNFINISHED):
            begun[pid] = (number, name, arguments.removesuffix(_UNFINISHED))
            continue
        *_, result = _RESULT.finditer(arguments) if _RESULT.search(arguments) else (None,)
        if result is not None and not result[1].startswith(("-", "?")):
            yield Call(began, number, name, arguments[: result.start()])


@dataclass
class _File:
    """A file: when its bytes were last changed, and whether they are durable. Of a directory they always are."""

    changed: int = -1
    is_durable: bool = True


@dataclass
class _Name:
    """A name in a directory: what it is of, when it was made, and whether it is durable."""

    file: _File
    made: int
    is_durable: bool = False


@dataclass
class Pessimist:
    """Follows the calls below *root*, which is durable itself.

    Attributes:
        faults: what is wrong.
        acknowledged: how many messages were.

    """

    root: str
    faults: list[str] = field(default_factory=list)
    acknowledged: int = 0
    _names: dict[str, _Name] = field(default_factory=dict)
    _submitted: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def follow(self, all_calls: Iterable[Call]) -> "Pessimist":
        for call in all_calls:
            handler = getattr(self, f"_{_SAME_AS.get(call.name, call.name)}", None)
            if handler is not None:
                handler(call)
        return self

    def _paths(self, call: Call) -> list[str]:
        """Return the paths that a call names, whole."""
        return [os.path.normpath(os.path.join(found[2] or "/", found[3])) for found in _STRING.finditer(call.arguments)]

    def _make(self, path: str, call: Call, file: _File | None = None) -> None:
        if path.startswith(self.root + "/"):
            self._names[path] = _Name(file or _File(), call.ended)
            if os.path.basename(os.path.dirname(path)) in ("new", "cur") and not self._names[path].file.is_durable:
                self.faults.append(f"visible before its bytes are durable: {path}")

    def _open(self, call: Call) -> None:
        (path,) = self._paths(call)[:1]
        if "O_CREAT" in call.arguments and path not in self._names:
            self._make(path, call, _File(call.ended, is_durable=False))

    def _mkdir(self, call: Call) -> None:
        self._make(self._paths(call)[0], call)

    def _rename(self, call: Call) -> None:
        source, target = self._paths(call)
        if source in self._names:
            self._make(target, call, self._names.pop(source).file)
            for path in [path for path in self._names if path.startswith(source + "/")]:
                self._names[target + path.removeprefix(source)] = self._names.pop(path)

    def _link(self, call: Call) -> None:
        source, target = self._paths(call)
        if target.startswith(self.root + "/"):
            if source.startswith("/proc/self/fd/"):  # a file that has had no name so far
                self._make(target, call, _File(call.ended, is_durable=False))
                return
            if source not in self._names:
                raise ValueError(f"a link to what nobody has made: {call}")
            self._make(target, call, self._names[source].file)

    def _unlink(self, call: Call) -> None:
        self._names.pop(self._paths(call)[0], None)

    def _write(self, call: Call) -> None:
        opened = _OPEN.match(call.arguments)
        if opened is None:
            return
        if opened[1] == "1":
            found = _STRING.search(call.arguments, opened.end())
            if found is not None and found[3].startswith('{\\"what'):
                self._told(json.loads(found[3].encode().decode("unicode_escape")))
        elif (name := self._names.get(opened[2])) is not None:
            name.file.changed, name.file.is_durable = call.ended, False

    def _fsync(self, call: Call) -> None:
        opened = _OPEN.match(call.arguments)
        if opened is not None:
            self._synced(opened[2], call.began)

    def _syncfs(self, call: Call) -> None:
        for path in {os.path.dirname(path) for path in self._names} | {*self._names}:
            self._synced(path, call.began)

    def _io_submit(self, call: Call) -> None:
        context = call.arguments.partition(",")[0]
        for data, path in _IOCB.findall(call.arguments):
            self._submitted[context, data] = (call.began, path)

    def _io_getevents(self, call: Call) -> None:
        context = call.arguments.partition(",")[0]
        for data, result in _EVENT.findall(call.arguments):
            began, path = self._submitted.pop((context, data))
            if result == "0":
                self._synced(path, began)

    def _synced(self, path: str, began: int) -> None:
        """A sync of *path* has ended that began at that line: what was done before that is durable."""
        if (name := self._names.get(path)) is not None and name.file.changed < began:
            name.file.is_durable = True
        for other, name in self._names.items():
            if name.made < began and os.path.dirname(other) == path:
                name.is_durable = True

    def _told(self, packet: dict[str, Any]) -> None:
        if packet["what"] == "delivered" and packet["promised"]:
            self._promised(packet["path"])
            if packet["keywords"]:
                self._promised(os.path.join(os.path.dirname(packet["path"]), os.pardir, "dovecot-keywords"))
        elif packet["what"] == "imported":
            inside = tuple(f"{packet['maildir']}/{name}/" for name in ("new", "cur"))
            for path in [path for path in self._names if path.startswith(inside)]:
                self._promised(path)

    def _promised(self, path: str) -> None:
        path = os.path.normpath(path)
        self.acknowledged += 1
        name = self._names.get(path)
        if name is None:
            self.faults.append(f"acknowledged, but not there: {path}")
            return
        if not name.file.is_durable:
            self.faults.append(f"acknowledged before its bytes are durable: {path}")
        while path != self.root:
            above = self._names.get(path)
            if above is not None and not above.is_durable:
                self.faults.append(f"acknowledged before the name {path} is durable")
            path = os.path.dirname(path)


_SAME_AS: Final = {
    **dict.fromkeys(("openat", "creat"), "open"),
    "mkdirat": "mkdir",
    **dict.fromkeys(("renameat", "renameat2"), "rename"),
    "linkat": "link",
    **dict.fromkeys(("unlinkat", "rmdir"), "unlink"),
    **dict.fromkeys(("pwrite64", "writev", "pwritev", "ftruncate", "fallocate"), "write"),
    "fdatasync": "fsync",
    "sync": "syncfs",
}


def trace(root: Path, scenario: str, log: Path, without: str | None = None) -> Pessimist:
    """Run a workload in *root* under strace(1), and return what a pessimist makes of its calls."""
    strace = shutil.which("strace")
    assert strace is not None
    command = [strace, "-f", "-y", "-v", "-qq", "-s", str(_SHOWN), "--seccomp-bpf", "-e", f"trace={_CALLS}"]
    command += ["-o", str(log), sys.executable, "-m", "tests.powercut.workload", scenario, str(root)]
    done = subprocess.run(
        command + (["--without", without] if without else []), capture_output=True, text=True, timeout=300
    )
    if done.returncode or done.stderr:
        raise RuntimeError(f"the workload {scenario} failed under strace: {done.stderr or done.returncode}")
    with open(log, encoding="latin-1") as lines:
        return Pessimist(str(root)).follow(calls(lines))
