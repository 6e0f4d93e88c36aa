"""The Python interpreter, started once more for a part of the work. It finds the package where it was found here."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from maildir_async.disk.paths import absolute

__all__ = ["ignore_terminal", "let_go", "start_python"]

#: Not ``-m``: it must find the package where this process found it, whatever has become of sys.path.
PROGRAM: Final = (
    "import ast, sys; told = ast.literal_eval(sys.argv[1]); sys.path[:] = told.pop('path'); "
    "from {module} import main; main(told)"
)


class Closeable(Protocol):
    """An end of a connection."""

    def close(self) -> None:
        """Close it."""
        ...


def start_python(
    module: str,
    told: Mapping[str, Any],
    *,
    pass_fds: Sequence[int],
    stdin: int | None = subprocess.DEVNULL,
    cwd: str | None,
) -> subprocess.Popen[bytes]:
    """Start *module*'s ``main`` with *told*, plain values, in a process and a session of its own.

    OSError if there is no interpreter to be started, or no process to be had.
    """
    if not sys.executable:  # an interpreter inside another program
        raise FileNotFoundError(errno.ENOENT, "the path of the Python interpreter is not known")
    path = [absolute(os.fspath(entry)) for entry in sys.path]
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-X", f"utf8={sys.flags.utf8_mode}"),
            *("-c", PROGRAM.format(module=module), repr({**told, "path": path})),
        ],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        pass_fds=pass_fds,
        cwd=cwd,
        start_new_session=True,  # a Ctrl-C at the terminal is for the program, which then ends this
    )


def ignore_terminal() -> None:
    """Called in such a process first: the signals that end a program from its terminal are for whoever started it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def let_go(popen: subprocess.Popen[bytes], *ends: Closeable) -> None:
    """Have a process end that nobody uses any more, and see that it does not stay a zombie. Never waits."""
    for end in ends:
        end.close()
    if popen.returncode is None:
        with contextlib.suppress(RuntimeError):  # no thread to be had, at the end of the interpreter
            threading.Thread(target=popen.wait, name="maildir-reaper", daemon=True).start()
