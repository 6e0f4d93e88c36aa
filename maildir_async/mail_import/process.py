"""A process of its own that reads a source: the interpreter that publishes has no time for that at full speed.

It is asked one thing after the other, each as a call of `Session`. It ends with the import, or with the process that it
works for.
"""

import contextlib
import os
import socket
import subprocess
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

from maildir_async.errors import MaildirError
from maildir_async.helper.interpreter import let_go, start_python
from maildir_async.mail_import.messages import STDIN
from maildir_async.mail_import.program import receive, send
from maildir_async.mail_import.report import Problems
from maildir_async.mail_import.session import Step, Task

__all__ = ["ReadingProcess"]

#: Bytes on their way to and from it, as far as the system grants it: what is read in one go.
BUFFER_SIZE: Final = 1 << 21


class ReadingProcess:
    """A `Session` in a process of its own. Blocks; for one thread, but for `stop`.

    Each call is the session's, and raises what that raises. `MaildirError` if the process has died: of what has been
    published the next import knows by its name, as if this process had died too.

    Args:
        task: what it is to do.
        problems: what is odd is told to it.

    Raises OSError: it cannot be started.

    """

    def __init__(self, task: Task, problems: Problems) -> None:
        self._task = task
        self._problems = problems
        control, its_control = socket.socketpair()
        life, its_life = socket.socketpair()  # apart from the other, which is not looked at while it reads
        try:
            for end in (control, its_control):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
            fds = its_control.fileno(), its_life.fileno()
            told = {"control": fds[0], "life": fds[1]}
            stdin = None if task.source == STDIN else subprocess.DEVNULL
            self._popen = start_python("maildir_async.mail_import.program", told, pass_fds=fds, stdin=stdin, cwd=None)
        except BaseException:
            control.close()
            life.close()
            raise
        finally:
            its_control.close()
            its_life.close()
        self._control: Connection = Connection(control.detach())
        self._life = life
        # Not __del__: thrown away in one go with this, socket and Popen would warn that they are open and running.
        self._finalizer = weakref.finalize(self, let_go, self._popen, self._control, life)
        _all.add(self)

    def stop(self) -> None:
        """Have reading end with `StoppedError`, also where nothing comes. Any thread may call this."""
        with contextlib.suppress(OSError):  # it has ended
            self._life.shutdown(socket.SHUT_RDWR)  # a fork that no hook has seen may hold a copy

    def begin(self) -> int | None:
        """See `Session.begin`."""
        total: int | None = self._ask("begin", self._task)
        return total

    def step(self, published: Sequence[tuple[bytes, str]]) -> Step:
        """See `Session.step`."""
        step: Step = self._ask("step", published)
        return step

    def more(self) -> bytes:
        """See `Session.more`."""
        piece: bytes = self._ask("more")
        return piece

    def find_long(self) -> bytes | None:
        """See `Session.find_long`."""
        ident: bytes | None = self._ask("find_long")
        return ident

    def end(self, published: Sequence[tuple[bytes, str]], is_finished: bool) -> None:
        """See `Session.end`. The process is gone when this returns."""
        try:
            self._ask("end", published, is_finished)
        finally:
            self._control.close()
            self._life.close()
            self._popen.wait()
            self._finalizer.detach()

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        self._control.close()
        self._life.close()
        self._popen.returncode = 0  # nobody here is to wait for it
        self._finalizer.detach()

    def _ask(self, call: str, *args: object) -> Any:
        try:
            send(self._control, (call, args))
            drained, is_raised, answer = receive(self._control)
        except (EOFError, OSError) as exc:
            reason = "the process that reads it has died; import it again, and what is missing comes"
            raise MaildirError(f"{self._task.source}: {reason}", stage="receive") from exc
        self._problems.take(drained)
        if is_raised:
            try:
                raise answer
            finally:
                del answer  # it and this frame would keep each other
        return answer


_all: Final["weakref.WeakSet[ReadingProcess]"] = weakref.WeakSet()


def _disown_all() -> None:
    for each in list(_all):
        each.disown()


os.register_at_fork(after_in_child=_disown_all)
