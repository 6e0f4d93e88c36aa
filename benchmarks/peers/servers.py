"""The peers that are mail servers: how each is started on a Unix socket, and ended. See `benchmarks.load`."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from benchmarks.peers.dovecot import Dovecot
from benchmarks.peers.kinds import NotHereError
from benchmarks.workload import Workload

__all__ = ["Server", "Started"]

#: Seconds for a server to end.
PATIENCE_S: Final = 20.0


class Server(Protocol):
    """A mail server in processes of its own. User N, of any domain, has the maildir N.

    Attributes:
        process: its main process, once it has been started.
        socket: where it listens, a moment after it has been started.
        lmtp: whether that is LMTP, else SMTP.
        pipelining: whether clients make use of PIPELINING if it is announced.

    """

    process: "subprocess.Popen[Any]"
    socket: Path
    lmtp: bool
    pipelining: bool

    def __init__(self, root: str, workload: Workload) -> None: ...

    def start(self) -> None:
        """Start it."""
        ...

    def begin(self) -> None:
        """Begin to measure what only itself can measure."""
        ...

    def end(self) -> dict[str, Any]:
        """Return what it has measured: fields of `Measurement`."""
        ...

    def last_words(self) -> str:
        """Return what it has said last."""
        ...

    def stop(self) -> None:
        """End it, and leave nothing behind."""
        ...


class Started:
    """What servers on this Python have in common: a directory of their own, and a process."""

    lmtp: ClassVar[bool] = False
    pipelining: ClassVar[bool] = True

    def __init__(self, root: str, workload: Workload) -> None:
        if importlib.util.find_spec("aiosmtpd") is None:
            raise NotHereError("not installed: aiosmtpd")
        self._root = root
        self._workload = workload

    def start(self) -> None:
        """Start it. It listens a moment later."""
        self._home = Path(tempfile.mkdtemp(prefix="server-"))  # short: a socket's path must be
        self._home.chmod(0o755)
        self.socket = self._home / "socket"
        with open(self._home / "log", "wb") as log:
            self.process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def _command(self) -> list[str]:
        raise NotImplementedError

    def begin(self) -> None:
        """Nothing."""

    def end(self) -> dict[str, Any]:
        """Nothing but what can be seen from without."""
        return {}

    def last_words(self) -> str:
        """Return what it has said last."""
        said = (self._home / "log").read_text(errors="replace").strip().splitlines()
        return said[-1] if said else "no word of why"

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
            shutil.rmtree(self._home, ignore_errors=True)


class Streaming(Started):
    """`benchmarks.mailserver`: our classes, our handler."""

    kind: ClassVar[str] = "streaming"

    def _command(self) -> list[str]:
        module = [sys.executable, "-m", "benchmarks.mailserver"]
        return [*module, self.kind, self._workload.to_json(), self._root, str(self.socket)]

    def begin(self) -> None:
        """Begin to sample the loop's lag, if that is asked for."""
        self._ask("begin")

    def end(self) -> dict[str, Any]:
        """Return what it has seen."""
        found: dict[str, Any] = json.loads(self._ask("end"))
        return found

    def _ask(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


class StreamingOneByOne(Streaming):
    """The same, with clients that send no command before the last one is answered."""

    pipelining: ClassVar[bool] = False


class StreamingSink(Streaming):
    """Our classes, and a handler that discards: our protocol alone."""

    kind: ClassVar[str] = "streaming-sink"


class Stock(Streaming):
    """aiosmtpd's classes, our handler."""

    kind: ClassVar[str] = "stock"


class Mailbox(Streaming):
    """aiosmtpd's classes, its Mailbox handler."""

    kind: ClassVar[str] = "mailbox"

    def __init__(self, root: str, workload: Workload) -> None:
        super().__init__(root, workload)
        if workload.maildirs != 1:
            raise NotHereError("it knows one maildir only")


class Sink(Streaming):
    """aiosmtpd's classes, its handler that discards: its protocol alone."""

    kind: ClassVar[str] = "sink"


class Daemon(Started):
    """``maildir-async serve --lmtp`` with two workers, its users in a file, and a log of each delivery."""

    lmtp: ClassVar[bool] = True
    workers: ClassVar[int] = 2

    def _command(self) -> list[str]:
        users = self._home / "users"
        users.write_text("".join(f"{number}@example.org\n" for number in range(self._workload.maildirs)))
        options = {
            "layout": f"{self._root}/{{user}}",
            "users": users,
            "workers": self.workers,
            "durability": self._workload.durability,
            "size-limit": 0,
            "hostname": "localhost",
            "max-in-flight": max(256, self._workload.in_flight * self.workers),
        }
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        return [sys.executable, "-m", "maildir_async", "serve", "--allow-root", "--lmtp", f"unix:{self.socket}", *given]


class DovecotLmtp(Dovecot):
    """Dovecot's LMTP: a process for each connection."""

    lmtp: ClassVar[bool] = True
    pipelining: ClassVar[bool] = True

    def __init__(self, root: str, workload: Workload) -> None:
        super().__init__(root, workload.in_flight)

    def begin(self) -> None:
        """Nothing."""

    def end(self) -> dict[str, Any]:
        """Nothing but what can be seen from without."""
        return {}
