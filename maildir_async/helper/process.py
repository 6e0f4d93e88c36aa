"""The helper process, seen from outside: started, connected to, found dead, and ended. No asyncio.

It lives as long as the control connection to it: closing that, or dying with it open, lets it finish and end.
"""

import contextlib
import importlib
import os
import socket
import subprocess
import threading
import time
import weakref
from typing import Final

from maildir_async.helper.interpreter import let_go, start_python

__all__ = ["END_S", "Helper", "HelperProcess"]

#: Bytes on their way in each direction of a connection, as far as the system grants it: a batch of short messages.
BUFFER_SIZE: Final = 2 * 2**20

#: Seconds to wait with another try after a helper that has died young: at first, and at most.
BACK_OFF_S: Final = (0.1, 30.0)

#: A helper that has lived for so many seconds has not died young.
YOUNG_S: Final = 5.0

#: Seconds that a helper gets to finish what it has in hand when it is told to end.
END_S: Final = 60.0

#: Seconds of those that are left for one that has been killed to be gone.
KILL_S: Final = 2.0


class HelperProcess:
    """One process. Every method may be called from any thread; only `start` and `wait_gone` block."""

    def __init__(self, *, syncfs: bool) -> None:
        self._syncfs = syncfs
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._to_pass: list[socket.socket] = []  # ends of connections that wait for it to run
        self._started = threading.Event()
        self._ended = False
        self._finalizer: weakref.finalize[..., HelperProcess] | None = None
        self.born_at = time.monotonic()
        _processes.add(self)

    @property
    def pid(self) -> int | None:
        """Its process id, once it runs."""
        return self._popen.pid if self._popen is not None else None

    @property
    def starting(self) -> bool:
        """Whether `start` is still to do its work."""
        return not self._started.is_set()

    def start(self) -> None:
        """Start it. Where that fails, every connection to it comes to its end at once."""
        ours, theirs = socket.socketpair()
        try:
            told = {"control": theirs.fileno(), "parent": os.getpid(), "syncfs": self._syncfs}
            # Below "/" it does not keep a file system from being unmounted.
            fds = (theirs.fileno(),)
            self._popen = start_python("maildir_async.helper.program", told, pass_fds=fds, cwd="/")
            # Not __del__: thrown away in one go with this, socket and Popen would warn that they are open and running.
            self._finalizer = weakref.finalize(self, let_go, self._popen, ours)
            self._finalizer.atexit = False  # GroupCommit sees to that
        except BaseException:
            ours.close()
            self.end()
            raise
        else:
            with self._lock:
                self._control = ours
                waiting, self._to_pass = self._to_pass, []
            for end in waiting:
                self._pass(end)
            if self._ended:
                self.end()
        finally:
            theirs.close()
            self._started.set()

    def connect(self) -> socket.socket:
        """Return a connection to it, which need not run yet. If it has died, the connection is at its end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_SIZE)
        with self._lock:
            if self._control is None and not self._ended:
                self._to_pass.append(theirs)
                return ours
        self._pass(theirs)
        return ours

    def _pass(self, end: socket.socket) -> None:
        with end, contextlib.suppress(OSError):  # it has died: the connection will tell
            if self._control is not None:
                socket.send_fds(self._control, [b"c"], [end.fileno()])

    def end(self) -> None:
        """Have it finish what is whole, drop what is not, and end. Never waits."""
        with self._lock:
            self._ended = True
            control, self._control = self._control, None
            waiting, self._to_pass = self._to_pass, []
        for end in waiting:
            end.close()
        if control is not None:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)  # a fork that no hook has seen may hold a copy
            control.close()

    def abandon(self) -> None:
        """Give it up before its `start`, which nobody is going to call. Its connections are at their end."""
        self.end()
        self._started.set()

    def wait_gone(self, timeout_s: float) -> bool:
        """Block until nothing of it acts any more, and for *timeout_s* at most; return whether that came to pass.

        It is killed if it has not ended when most of that time is over. One that waits for a disk that hangs
        (uninterruptibly, as ps(1) has it) acts even then, until the disk answers.
        """
        deadline = time.monotonic() + timeout_s
        is_started = self._started.wait(max(timeout_s, 0.0))
        self.end()
        if not is_started:  # it ends as soon as it is
            return False
        if self._popen is None:
            return True
        if not self._wait(deadline - min(KILL_S, timeout_s / 2)):
            self._popen.kill()
            if not self._wait(deadline):
                return False
        if self._finalizer is not None:
            self._finalizer.detach()
        return True

    def _wait(self, deadline: float) -> bool:
        assert self._popen is not None
        try:
            self._popen.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def disown(self) -> None:
        """In a forked child: it is the parent's."""
        self._lock = threading.Lock()
        self._started.set()
        self._ended = True
        for end in (self._control, *self._to_pass):
            if end is not None:
                end.close()
        self._control, self._to_pass = None, []
        if self._popen is not None:
            self._popen.returncode = 0  # nobody here is to wait for it
        if self._finalizer is not None:
            self._finalizer.detach()


class Helper:
    """Keeps a helper process at hand: started at first use, and again after its death."""

    def __init__(self, *, syncfs: bool) -> None:
        self._syncfs = syncfs
        self._delay_s = 0.0
        self.reset()

    def reset(self) -> None:
        """Start anew, in a forked child."""
        self._lock = threading.Lock()
        self._process: HelperProcess | None = None
        self._not_before = 0.0

    @property
    def process(self) -> HelperProcess | None:
        """The one that there is, if any."""
        return self._process

    def wanted(self) -> tuple[HelperProcess | None, bool]:
        """Return the process, and whether the caller has to see to its `start`. None while waiting for another try."""
        with self._lock:
            if self._process is not None:
                return self._process, False
            if time.monotonic() < self._not_before:
                return None, False
            self._process = HelperProcess(syncfs=self._syncfs)
            return self._process, True

    def lost(self, process: HelperProcess) -> None:
        """Called when *process* has died, or could not be started."""
        with self._lock:
            if self._process is process:
                self._process = None
                first, most = BACK_OFF_S
                young = time.monotonic() - process.born_at < YOUNG_S
                self._delay_s = min(max(first, 2 * self._delay_s), most) if young else 0.0
                self._not_before = time.monotonic() + self._delay_s

    def release(self) -> HelperProcess | None:
        """Return the process, to be ended; the next use has another."""
        with self._lock:
            process, self._process = self._process, None
            return process


# socket.send_fds imports it, for each connection: a file to be read on the loop's thread, with no descriptor to spare.
importlib.import_module("array")

_processes: "weakref.WeakSet[HelperProcess]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    for process in list(_processes):
        process.disown()


os.register_at_fork(after_in_child=_leave_to_parent)
