"""The LMTP server between the two: ``maildir-async serve``; or Dovecot's own, which shows that the rig is right."""

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from .dovecot import Dovecot
from .mail import SIZE_LIMIT
from .place import NOBODY, Place, as_nobody, with_disk
from .postfix_log import History

WORKERS: Final = 2

#: Seconds from one kill to the next.
KILL_S: Final = (1.0, 3.0)

#: Seconds from the beginning of a wave of messages to the kill.
STRIKE_S: Final = (0.02, 0.5)


#: The command, of this checkout.
SERVE: Final = (sys.executable, "-m", "maildir_async", "serve")


def environment(home: Path) -> dict[str, str]:
    """Return what `SERVE` needs in its environment, with a home directory for it."""
    checkout = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "HOME": str(home)}


class LmtpServer(Protocol):
    """What Postfix hands mail to."""

    lmtp: Path

    def workers(self) -> list[int]:
        """Return the ids of the processes that take messages."""
        ...

    def check(self, histories: Mapping[str, History], killed: int) -> list[str]:
        """Return what is wrong with its log, or with itself: so many workers have been killed, and are there again."""
        ...

    def stop(self) -> list[str]:
        """End it; return what was not as it should be."""
        ...


class Daemon:
    """``maildir-async serve`` of this checkout, as nobody. Runs from the constructor to `stop`.

    Args:
        place: where to run.
        root: of the layout.
        users: whom it knows; None for those who have a maildir, and then it makes none.
        options: more of them.
        protocol: ``lmtp``, on a Unix socket, or ``smtp``, on a port.
        name: of this daemon, if there is to be more than one in this place.
        size_limit: bytes of a message.
        disk: directory in which there is to be a file system of 1 MiB, for this daemon alone.
        groups: that it is in beside nobody's.

    """

    def __init__(
        self,
        place: Place,
        root: Path,
        users: Iterable[str] | None,
        *options: str,
        protocol: str = "lmtp",
        name: str = "daemon",
        size_limit: int = SIZE_LIMIT,
        disk: Path | None = None,
        groups: Iterable[int] = (),
    ) -> None:
        home = place.directory(f"{name}-{protocol}", NOBODY)
        self.lmtp = home / "socket"
        self.host, self.port = place.address, 2424
        self._is_lmtp = protocol == "lmtp"
        address = f"unix:{self.lmtp}" if protocol == "lmtp" else f"{self.host}:{self.port}"
        command = [*SERVE, f"--{protocol}", address]
        command += ["--layout", f"{root}/{{domain}}/{{user}}/Maildir"]
        if users is not None:
            (home / "users").write_text("".join(f"{user}\n" for user in sorted(users)))
            command += ["--users", str(home / "users")]
        command += ["--workers", str(WORKERS), "--size-limit", str(size_limit), "--hostname", "mail.test"]
        command += ["--socket-mode", "0666", *options]
        command = as_nobody(command, groups=groups)
        if disk is not None:
            command = with_disk(disk, "1m", command)
        self._server = place.start(f"{name}-{protocol}", command, environment(home))
        self._server.wait_for(self._answers, "does it take connections")

    def connect(self) -> socket.socket:
        """Return a connection to it."""
        if self._is_lmtp:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(30)
            try:
                connection.connect(str(self.lmtp))
            except OSError:
                connection.close()
                raise
            return connection
        return socket.create_connection((self.host, self.port), 30)

    def seen(self, path: Path) -> Path:
        """Return where *path*, as the daemon sees it, is for others."""
        return Path(f"/proc/{self._server.pid}/root") / path.relative_to("/")

    def _answers(self) -> bool:
        try:
            with self.connect() as connection:
                return connection.recv(3) == b"220"
        except OSError:
            return False

    def workers(self) -> list[int]:
        """Return the ids of its workers: without metrics or helpers it has no other children."""
        return self._server.children()

    def log(self) -> list[dict[str, Any]]:
        """Return the objects of its log; a line that is none as `{"text": …}`."""
        found: list[dict[str, Any]] = []
        for line in self._server.log.read_text(errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"text": line})
        return found

    def complaints(self) -> list[str]:
        """Return what its log has that is no JSON object, or an error."""
        return [str(entry) for entry in self.log() if "text" in entry or entry.get("level") in ("error", "critical")]

    def check(self, histories: Mapping[str, History], killed: int) -> list[str]:
        """Return what is wrong with its log, or with itself."""
        faults = [entry for entry in self.complaints() if "worker_died" not in entry]
        events = Counter(str(entry.get("event")) for entry in self.log())
        if events["worker_died"] != killed:
            faults.append(f"{killed} workers were killed, and {events['worker_died']} are told of")
        sent = sum(attempt.status == "sent" for history in histories.values() for attempt in history.attempts)
        if events["delivered"] != sent and not killed:  # a killed worker may not have told of its last
            faults.append(f"{events['delivered']} deliveries are told of, and Postfix knows of {sent}")
        self._server.wait_for(lambda: len(self.workers()) == WORKERS, "are all workers there again")
        return [f"the daemon: {fault}" for fault in faults]

    def stop(self) -> list[str]:
        """End it; return what was not as it should be."""
        faults = self._server.stop()
        if self.lmtp.exists():
            faults.append("the daemon left its socket behind")
        return faults


class DovecotLmtp:
    """Dovecot's LMTP, which a Dovecot that serves IMAP has too."""

    def __init__(self, dovecot: Dovecot) -> None:
        self._dovecot = dovecot
        self.lmtp = dovecot.lmtp

    def workers(self) -> list[int]:
        """Return the ids of the processes that take messages."""
        return [pid for pid in self._dovecot.server.children() if _command(pid).startswith("dovecot/lmtp")]

    def check(self, histories: Mapping[str, History], killed: int) -> list[str]:
        """Nothing, since Dovecot is asked anyway."""
        return []

    def stop(self) -> list[str]:
        """Nothing, since it goes with Dovecot."""
        return []


class Killer:
    """Kills workers by SIGKILL, one every few seconds, and each at a moment at which there is work.

    Attributes:
        killed: how many.

    """

    def __init__(self, workers: Callable[[], list[int]], seed: int) -> None:
        self._workers = workers
        self._draw = random.Random(seed)
        self.killed = 0

    @contextmanager
    def striking(self) -> Generator[None, None, None]:
        """Kill one, once, some moments after the block has begun; do not go on before a few seconds are over."""
        thread = threading.Thread(target=self._strike, args=(self._draw.uniform(*STRIKE_S),))
        next_at = time.monotonic() + self._draw.uniform(*KILL_S)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        time.sleep(max(0.0, next_at - time.monotonic()))

    def _strike(self, after: float) -> None:
        time.sleep(after)
        deadline = time.monotonic() + 30  # the daemon may be waiting before it starts others
        while time.monotonic() < deadline:
            workers = self._workers()
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(self._draw.choice(workers), signal.SIGKILL)
                    self.killed += 1
                    return
            time.sleep(0.01)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
