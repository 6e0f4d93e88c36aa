"""One measurement of a mail server: the server in processes of its own, and the clients in another (smtpload.c).

    python -m benchmarks.load PEER WORKLOAD-AS-JSON DIRECTORY PROGRAM

The maildirs are DIRECTORY/0, DIRECTORY/1, ... and exist; PROGRAM is the compiled smtpload.c. Prints one JSON object: a
`Measurement`, or why there is none. CPU time and memory are those of the server, all of its processes together.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import PEERS
from benchmarks.peers.kinds import NotHereError
from benchmarks.peers.servers import Server, Started
from benchmarks.workload import Workload

#: Seconds for a server to listen.
PATIENCE_S: Final = 20.0

TICKS: Final = os.sysconf("SC_CLK_TCK")


class FailedError(Exception):
    """Something did not go as it should; the text says what."""


@dataclass(frozen=True, slots=True)
class Use:
    """What the processes of a server have used; those that have ended are counted by their parents."""

    cpu_s: float
    resident: int
    peak: int

    @classmethod
    def of(cls, root: int, *, reset: bool = False) -> "Use":
        """Return what the process *root* and its descendants have used. With *reset*, peaks are counted from here."""
        cpu_s, resident, peak = 0.0, 0, 0
        for pid in _tree(root):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if reset:
                    Path(f"/proc/{pid}/clear_refs").write_text("5")
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu_s += sum(map(int, fields[11:15])) / TICKS
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                resident += int(status["VmRSS"].split()[0]) * 1024
                peak += int(status["VmHWM"].split()[0]) * 1024
        return cls(cpu_s, resident, peak)


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:  # which grows
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def measure(server: Server, workload: Workload, program: str) -> dict[str, Any]:
    """Return what was seen of *server*, which has been started."""
    _await(server)
    main = server.process.pid
    before = Use.of(main, reset=True)
    clients = subprocess.Popen(
        [program, str(server.socket), *_options(server, workload)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert clients.stdout is not None
        if clients.stdout.readline() != "warm\n":
            raise FailedError(f"the clients gave up while warming up; the server: {server.last_words()}")
        server.begin()
        start = Use.of(main, reset=not workload.stream)
        resident = (before if workload.stream else start).resident  # what streams need, they need from the first on
        out, _ = clients.communicate("go\n")
        if clients.returncode:
            raise FailedError(f"the clients gave up; the server: {server.last_words()}")
        found: dict[str, Any] = json.loads(out)
        after = Use.of(main)
        return {**found, **server.end(), "cpu_s": after.cpu_s - start.cpu_s, "memory": after.peak - resident}
    finally:
        clients.kill()
        clients.wait()


def _options(server: Server, workload: Workload) -> list[str]:
    options = {
        "lmtp": int(server.lmtp),
        "pipelining": int(server.pipelining),
        "messages": workload.messages,
        "seconds": workload.seconds,
        "warmup": workload.warmup,
        "size": workload.size,
        "maildirs": workload.maildirs,
        "in_flight": workload.in_flight,
        "stream": int(workload.stream),
    }
    return [f"{name}={value}" for name, value in options.items()]


def _await(server: Server) -> None:
    """Return when *server* listens."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(server.socket))
            probe.recv(1)  # its greeting: it works, and does not only listen
            return
        if server.process.poll() is not None:
            # Why somebody else's does not start on this machine is not for us to say.
            error = FailedError if isinstance(server, Started) else NotHereError
            raise error(f"it did not start: {server.last_words()}")
        time.sleep(0.01)
    raise FailedError(f"it does not answer: {server.last_words()}")


def main(name: str, workload_json: str, root: str, program: str) -> None:
    """Measure, and print what was seen."""
    workload = Workload.from_json(workload_json)
    module, _, class_name = (PEERS[name].server or "").partition(":")
    try:
        server: Server = getattr(importlib.import_module(f"benchmarks.peers.{module}"), class_name)(root, workload)
        server.start()
        try:
            found = measure(server, workload, program)
        finally:
            server.stop()
    except NotHereError as exc:
        found = {"skipped": str(exc)}
    except FailedError as exc:
        sys.exit(str(exc))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
