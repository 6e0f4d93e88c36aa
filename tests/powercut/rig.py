"""Records a workload's disk, cuts the power, and looks at what is left."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .checking import Found, check
from .machine import FileSystem, Recorder, copy_sparse, mounted
from .pessimist import Pessimist, trace
from .states import Crash, Log, crashes

__all__ = ["Rig", "Verdict"]

#: Seconds that a workload may take.
WORKLOAD_S: Final = 300


@dataclass
class Verdict:
    """What came of the crashes of one recording.

    Attributes:
        states: how many were made and looked at.
        lost: how many acknowledged messages were gone, over all of them, whatever was promised.
        torn: visible files that were no whole message.
        promised: how many messages were found as promised, or not.
        faults: each kind of fault, and how often.
        first: the first fault with its crash.
        recorded: writes, flushes and packets in the log.
        locks: maildirs whose lock file of the keywords was still there.
        kernel_aio: whether the package has the kernel sync files there side by side.
        seconds: that it took.

    """

    states: int = 0
    lost: int = 0
    torn: int = 0
    promised: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    first: str = ""
    recorded: tuple[int, int, int] = (0, 0, 0)
    locks: int = 0
    kernel_aio: bool = False
    seconds: float = 0.0

    def add(self, crash: Crash, found: Found) -> None:
        self.states += 1
        self.lost += found.lost
        self.torn += found.torn
        self.promised += found.promised
        self.locks += found.locks
        for fault in found.faults:
            self.faults[fault.partition(":")[0]] += 1
        if found.faults and not self.first:
            self.first = f"{crash}\n    " + "\n    ".join(found.faults[:5])


class Rig:
    """Records and cuts on one kind of file system.

    Args:
        work: an empty directory, best on a tmpfs; emptied again.
        program: the recorder, compiled.
        file_system: which kind.

    """

    def __init__(self, work: Path, program: Path, file_system: FileSystem) -> None:
        self._work = work
        self._program = program
        self.file_system = file_system
        self._mount = work / "mail"  # both for the workload and for what is left: paths are the same
        self._mount.mkdir(exist_ok=True)

    def run(
        self, scenario: str, wanted: int, *, seed: int = 0, without: str | None = None, neighbour: bool = False
    ) -> Verdict:
        """Record *scenario* and look at *wanted* of its crashes."""
        began = time.monotonic()
        verdict = Verdict()
        with tempfile.TemporaryDirectory(dir=self._work) as directory:
            here = Path(directory)
            fresh = here / "fresh"
            self._make(fresh)
            log = self._record(here, fresh, scenario, without, neighbour)
            verdict.kernel_aio = any(b'"kernel-aio": true' in packet for _, packet in log.told)
            verdict.recorded = (len(log.writes), len(log.flushes), len(log.told))
            state = here / "state"
            with open(fresh, "r+b", buffering=0) as flushed:  # from here on: what is flushed
                done = 0
                for crash in crashes(log, wanted, self.file_system.whole, seed):
                    for write in log.writes[done : crash.flushed]:
                        log.apply(flushed.fileno(), write)
                    done = crash.flushed
                    copy_sparse(fresh, state)
                    with open(state, "r+b", buffering=0) as file:
                        crash.complete(log, file.fileno(), self.file_system.whole)
                    verdict.add(crash, self._look(state, log.told_before(crash.cut), tears=scenario == "level-none"))
        verdict.seconds = time.monotonic() - began
        return verdict

    def trace(self, scenario: str, without: str | None = None) -> Pessimist:
        """Return what a pessimist makes of *scenario*, on a file system of its own without the recording disk."""
        with tempfile.TemporaryDirectory(dir=self._work) as directory:
            image = Path(directory, "image")
            self._make(image)
            with mounted(image, self._mount, self.file_system):
                return trace(self._mount / "site", scenario, Path(directory, "trace"), without)

    def _make(self, image: Path) -> None:
        """Make the file system; the site's own directory in it is durable."""
        with open(image, "wb") as file:
            os.truncate(file.fileno(), self.file_system.size)
        subprocess.run([*self.file_system.make, str(image)], check=True, capture_output=True)
        with mounted(image, self._mount, self.file_system):
            (self._mount / "site").mkdir()

    def _record(self, here: Path, fresh: Path, scenario: str, without: str | None, neighbour: bool) -> Log:
        disk = here / "recorded"
        copy_sparse(fresh, disk)
        recorder = Recorder(self._program, disk, here)
        try:
            with mounted(recorder.disk, self._mount, self.file_system, direct=True):
                command = [sys.executable, "-m", "tests.powercut.workload", scenario, str(self._mount / "site")]
                command += ["--tell", str(recorder.socket)]
                command += ["--without", without] if without else []
                command += ["--neighbour"] if neighbour else []
                done = subprocess.run(command, capture_output=True, text=True, timeout=WORKLOAD_S)
                recorder.tell("END")
                if done.returncode or done.stderr:
                    raise RuntimeError(f"the workload {scenario} failed: {done.stderr or done.returncode}")
        finally:
            recorder.close()
        disk.unlink()
        return Log.read(recorder.log)

    def _look(self, state: Path, told: list[bytes], *, tears: bool) -> Found:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(mounted(state, self._mount, self.file_system))
            except OSError as exc:
                return Found(faults=[f"the file system does not recover: {exc}"])
            return check(self._mount / "site", told, tears=tears)
