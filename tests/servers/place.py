"""Where the servers run: a temporary directory, a loopback address of its own, processes ended by their ids."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: Owns the mail, and runs whatever delivers it: nobody, everywhere. Dovecot refuses to serve root.
NOBODY: Final = 65534

#: Seconds that a server gets to end.
STOP_S: Final = 40.0


class NotStartedError(Exception):
    """A server did not come up, or a program failed; says what it wrote."""


class Server:
    """A process that serves, in a session of its own, so that what it has started can be found.

    Args:
        name: for messages.
        command: what to run.
        log: file for its output. An inherited pipe might be kept open by some grandchild.
        environment: added to that of this process.
        cwd: where to run it.

    """

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, environment: Mapping[str, str], cwd: Path
    ) -> None:
        self.name = name
        self.log = log
        self._leaders: set[int] = set()
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is the session's too."""
        return self.process.pid

    def children(self) -> list[int]:
        """Return the ids of the processes that it has started itself and that run."""
        return [pid for pid, (state, parent, _) in _processes() if parent == self.pid and state not in "ZX"]

    def leads_too(self, pid: int) -> None:
        """Note that a process which it has started has begun a session of its own, as daemons do."""
        self._leaders.add(pid)

    def session(self) -> list[int]:
        """Return the ids of all running processes that descend from it, orphans too."""
        leaders = {self.pid, *self._leaders}
        return [pid for pid, (state, _, session) in _processes() if session in leaders and state not in "ZX"]

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 20) -> None:
        """Wait until the server has done something; `NotStartedError` if it has not, or is over."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotStartedError(f"{self.name}: {what}? Its output ends: {_tail(self.log)}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals | None = signal.SIGTERM, expected: int = 0) -> list[str]:
        """End it by a signal, or see it end; return what was not as it should be: exit code, processes left behind."""
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        faults: list[str] = []
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            faults.append(f"{self.name} did not end within {STOP_S:.0f} s")
            self.process.kill()
            self.process.wait()
        else:
            if code != expected:
                faults.append(f"{self.name} ended with exit code {code}: {_tail(self.log)}")
        deadline = time.monotonic() + 5
        while (left := self.session()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if left:
            faults.append(f"{self.name} left {len(left)} processes behind")
            self.kill()
        return faults

    def kill(self) -> None:
        """End it, and all that descends from it, at once."""
        while left := self.session():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait()


class Place:
    """A directory that every user may enter, and the servers that run there. Nothing of it remains.

    Args:
        keep: leave the directory, for somebody to look at.

    """

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._servers: list[Server] = []
        # Short, since the path of a Unix socket has to be.
        self.path = Path(tempfile.mkdtemp(prefix="mail-"))
        self.path.chmod(0o755)
        # Ports cannot be 0 with Postfix, so they are fixed, at an address that no other process uses.
        pid = os.getpid()
        self.address = f"127.{pid >> 14 & 127 | 128}.{pid >> 7 & 127}.{pid & 127 | 128}"

    def directory(self, name: str, owner: int = 0, mode: int = 0o755) -> Path:
        """Return a new directory in it."""
        path = self.path / name
        path.mkdir(parents=True)
        path.chmod(mode)
        os.chown(path, owner, owner)
        return path

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Server:
        """Start a server whose output goes to NAME.out."""
        server = Server(name, command, self.path / f"{name}.out", environment or {}, self.path)
        self._servers.append(server)
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.kill()
        if not self._keep:
            shutil.rmtree(self.path)


def as_nobody(command: Sequence[str], *, groups: Iterable[int] = ()) -> list[str]:
    """Return what runs *command* as nobody, and in *groups*.

    It is the same process, and killed when the thread that started it ends.
    Nobody may look into a checkout or an interpreter that is root's own, unless with this capability, which does not
    help him to write anything.
    """
    ability = "+dac_read_search"
    others = ",".join(map(str, groups))
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={others}" if others else "--clear-groups"]
    who.append("--pdeathsig=KILL")
    return ["setpriv", *who, f"--inh-caps={ability}", f"--ambient-caps={ability}", "--", *command]


def with_disk(path: Path, size: str, command: Sequence[str]) -> list[str]:
    """Return what runs *command*, in the same process, with a file system in memory at *path*, of *size* and nobody's.

    It is in a mount namespace of that process, so it goes with it, in whatever way that ends, and others only see it
    by /proc/PID/root.
    """
    options = f"size={size},mode=0700,uid={NOBODY},gid={NOBODY}"
    script = 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"'
    return ["unshare", "--mount", "--", "sh", "-c", script, options, str(path), *command]


def within(debian: Path, place: Path, command: Sequence[str]) -> list[str]:
    """Return what runs *command*, in the same process, in another Debian's root directory, where *place* is too.

    What is mounted for that is in a mount namespace of that process.
    """
    script = 'mkdir -p "$0$1" && mount --bind "$1" "$0$1" && mount -t proc proc "$0/proc" && root=$0 && shift && '
    script += 'exec chroot "$root" "$@"'
    return ["unshare", "--mount", "--", "sh", "-c", script, str(debian), str(place), *command]


def can_mount(path: Path) -> bool:
    """Return whether `with_disk` works here. There are containers whose root may not mount anything."""
    return (
        subprocess.run(with_disk(path, "64k", ["true"]), stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    )


def run(command: Sequence[str | Path], seconds: float = 60) -> str:
    """Run a program; return its output; `NotStartedError` if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
    )
    if done.returncode:
        raise NotStartedError(f"{command[0]} ended with exit code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def _processes() -> list[tuple[int, tuple[str, int, int]]]:
    """Return state, parent and session of each process there is (proc(5))."""
    found: list[tuple[int, tuple[str, int, int]]] = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append((int(name), (fields[0], int(fields[1]), int(fields[3]))))
    return found


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:]) or "nothing"
