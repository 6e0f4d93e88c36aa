"""A replicated GlusterFS volume in namespaces of our own: glusterd, bricks that are killed and healed, mounts."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

#: An address that is not 127.*, which GlusterFS refuses; it is in no network but that of this namespace.
ADDRESS: Final = "10.99.0.1"

VOLUME: Final = "mail"

#: Seconds after which a server that does not come up is a fault: far more than a busy machine takes.
STARTED_S: Final = 180

#: Seconds after which ``heal info`` is asked, and healing begun again, though the bricks still have entries to heal.
PATIENCE_S: Final = 3.0


class NotStartedError(Exception):
    """A server did not come up, or a program failed; says what it wrote."""


class Volume:
    """Three bricks on one machine, and any number of mounts.

    To be made by the first process of a namespace of mounts, network and processes.

    Args:
        place: a directory for all of it.
        ping_timeout_s: seconds after which a client takes a brick that is silent for dead.
        bricks: how many copies there are.

    """

    def __init__(self, place: Path, *, ping_timeout_s: int, bricks: int = 3) -> None:
        self.place = place
        self._ping_timeout_s = ping_timeout_s
        self.bricks = [place / f"brick{number}" for number in range(bricks)]
        self.mounts: list[Path] = []
        self._glusterd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Bring up network, daemon and volume."""
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        run("mount", "--make-rprivate", "/")
        for name, mounted in (("lib", "/var/lib/glusterd"), ("log", "/var/log/glusterfs")):
            (self.place / name).mkdir()
            run("mount", "--bind", self.place / name, mounted)
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        os.mkdir("/run/gluster")
        with open(self.place / "glusterd.out", "wb") as output:
            self._glusterd = subprocess.Popen(
                ["glusterd", "--no-daemon", "--log-level", "WARNING", "--pid-file", self.place / "glusterd.pid"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_for(self._answers, "glusterd answers", STARTED_S)
        for brick in self.bricks:
            brick.mkdir()
        where = [f"{ADDRESS}:{brick}" for brick in self.bricks]
        gluster("volume", "create", VOLUME, "replica", str(len(where)), *where, "force")
        gluster("volume", "set", VOLUME, "network.ping-timeout", str(self._ping_timeout_s))
        # Else a file that is replaced elsewhere is stale for as long as its name is cached, and not opened anew.
        gluster("volume", "set", VOLUME, "performance.open-behind", "off")
        gluster("volume", "start", VOLUME)
        wait_for(lambda: all(self._pids()), "bricks run", STARTED_S)

    def mount(self, name: str) -> Path:
        """Return a new mount of it: a client by itself."""
        path = self.place / name
        path.mkdir()
        run("glusterfs", "-s", ADDRESS, "--volfile-id", VOLUME, path)
        self.mounts.append(path)
        wait_for(lambda: os.path.ismount(path), f"{name} is mounted", STARTED_S)
        return path

    def signal(self, brick: int, number: signal.Signals) -> None:
        """Kill a brick, freeze it, or have it go on."""
        pid = self._pids()[brick]
        if pid is None:
            raise NotStartedError(f"brick {brick} does not run")
        os.kill(pid, number)
        if number == signal.SIGKILL:
            # Bricks are daemons, so this process is their parent now; glusterd takes a zombie for a brick that runs.
            os.waitpid(pid, 0)

    def start_bricks(self) -> None:
        """Start those that do not run. They are healed from then on."""
        gluster("volume", "start", VOLUME, "force")
        wait_for(lambda: all(self._pids()), "bricks run again", STARTED_S)

    def unhealed(self) -> int | None:
        """Return how many entries wait to be healed, or are in dispute; None while that cannot be told.

        A brick is not connected, or a busy daemon has not answered in time ("Not able to fetch volfile").
        """
        try:
            said = gluster("volume", "heal", VOLUME, "info")
        except NotStartedError:
            return None
        counts = re.findall(r"^Number of entries: (\S+)$", said, re.MULTILINE)
        if len(counts) != len(self.bricks) or not all(map(str.isdecimal, counts)):
            return None
        return sum(map(int, counts))

    def heal(self, seconds: float) -> float:
        """Wait until all is healed; return how long it took, or raise `NotStartedError`."""
        began = time.monotonic()
        asked = -PATIENCE_S

        def clean() -> bool:
            nonlocal asked
            if self._indexed() and time.monotonic() - asked < PATIENCE_S:
                return False
            asked = time.monotonic()
            if self.unhealed() == 0:
                return True
            with suppress(NotStartedError):  # it is under way already, or the self-heal daemon is still connecting
                gluster("volume", "heal", VOLUME)
            return False

        wait_for(clean, "heal info is clean", seconds, step=0.2)
        return time.monotonic() - began

    def _indexed(self) -> int:
        """Return how many entries the bricks' own indices have for healing, which costs less than ``heal info``."""
        indices = [brick / ".glusterfs" / "indices" / kind for brick in self.bricks for kind in ("xattrop", "dirty")]
        return sum(not name.startswith(index.name) for index in indices for name in os.listdir(index))

    def stop(self) -> list[str]:
        """Unmount, and end every server; return what did not end."""
        faults = list[str]()
        for path in reversed(self.mounts):
            try:
                run("umount", path)
            except NotStartedError as exc:
                faults.append(f"not unmounted: {exc}")
                run("umount", "--lazy", path)
        self.mounts.clear()
        with suppress(NotStartedError):
            gluster("volume", "stop", VOLUME, "force")
        if self._glusterd is not None:
            self._glusterd.terminate()
            try:
                self._glusterd.wait(20)
            except subprocess.TimeoutExpired:
                faults.append("glusterd did not end")
        with suppress(NotStartedError):
            wait_for(lambda: not _others(), "all servers are over", 20)
        for pid in _others():
            faults.append(f"left behind: {_command(pid)}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return faults

    def _answers(self) -> bool:
        if self._glusterd is not None and self._glusterd.poll() is not None:
            raise NotStartedError(f"glusterd: {(self.place / 'glusterd.out').read_text(errors='replace')[-500:]}")
        with suppress(NotStartedError):
            gluster("pool", "list")
            return True
        return False

    def _pids(self) -> list[int | None]:
        """Return the process of each brick, in their order; None for one that does not run."""
        found = list[int | None]()
        for brick in self.bricks:
            name = f"{ADDRESS}-{str(brick).strip('/').replace('/', '-')}.pid"
            pid = None
            with suppress(FileNotFoundError, ValueError):
                pid = int(Path("/run/gluster/vols", VOLUME, name).read_text())
            found.append(pid if pid is not None and _runs(pid) else None)
        return found


def gluster(*arguments: str) -> str:
    """Have glusterd do something; return what is said."""
    return run("gluster", "--mode=script", *arguments)


def run(*command: str | Path) -> str:
    """Run a program; return its output; `NotStartedError` if it fails, or does not end."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STARTED_S)
    except subprocess.TimeoutExpired:
        raise NotStartedError(f"{' '.join(map(str, command))}: it did not end") from None
    if done.returncode:
        raise NotStartedError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}".strip())
    return done.stdout


def wait_for(condition: Callable[[], object], what: str, seconds: float, step: float = 0.05) -> None:
    """Wait until *condition* holds; `NotStartedError` if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise NotStartedError(f"{what}? not within {seconds:.0f} s")
        time.sleep(step)


def _runs(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _others() -> list[int]:
    """Return all processes of this namespace but the first, which is this one."""
    return [
        int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid() and _runs(int(name))
    ]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    return str(pid)
