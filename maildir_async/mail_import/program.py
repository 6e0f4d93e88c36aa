"""The process that reads a source for an import: it does what it is asked, one call after the other.

It ends when it has been told to, and when the process that it works for is gone: what was recorded is kept then. It
ignores the signals that end a program from its terminal: that is up to the one it works for.
"""

import contextlib
import pickle
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from maildir_async.disk.posix import PosixDisk
from maildir_async.errors import MaildirError
from maildir_async.helper.interpreter import ignore_terminal
from maildir_async.mail_import.report import Problems
from maildir_async.mail_import.session import Session

__all__ = ["main", "receive", "send", "serve"]


def send(control: Connection, what: object) -> None:
    """Send *what*, pickled.

    `Connection.send` would do that by way of a BytesIO, of which the garbage collector of Python 3.13 complains where
    an error keeps it.
    """
    control.send_bytes(pickle.dumps(what, pickle.HIGHEST_PROTOCOL))


def receive(control: Connection) -> Any:
    """Return what the other end has sent. It is one of us: who else could write there could run any program of ours."""
    return pickle.loads(control.recv_bytes())


def main(told: dict[str, Any]) -> None:
    """Serve until the import is over."""
    ignore_terminal()
    with socket.socket(fileno=told["life"]) as life, Connection(told["control"]) as control:
        serve(control, life)


def serve(control: Connection, life: socket.socket) -> None:
    """Answer calls that come over *control*, and stop reading when *life* comes to its end."""
    with contextlib.suppress(EOFError, OSError):  # of the other's death
        call, (task,) = receive(control)
        problems = Problems()
        session = Session(task, PosixDisk(), problems)
        threading.Thread(target=_stop_at_end, args=(life, session), name="life", daemon=True).start()
        calls: dict[str, Callable[..., object]] = {
            "step": session.step,
            "more": session.more,
            "find_long": session.find_long,
            "end": session.end,
        }
        try:
            _answer(control, problems, session.begin)
            while call != "end":
                call, args = receive(control)
                _answer(control, problems, calls[call], *args)
        finally:
            if call != "end":
                with contextlib.suppress(MaildirError):  # there is nobody to hear of it
                    session.end((), is_finished=False)


def _answer(control: Connection, problems: Problems, call: Callable[..., object], *args: object) -> None:
    """Make the call, and tell what was odd meanwhile, whether it has raised, and what it has come to."""
    try:
        answer, is_raised = call(*args), False
    except Exception as exc:  # whoever asks is to see it
        answer, is_raised = exc, True
    send(control, (problems.drain(), is_raised, answer))


def _stop_at_end(life: socket.socket, session: Session) -> None:
    with contextlib.suppress(OSError):
        life.recv(1)
    session.stop()
