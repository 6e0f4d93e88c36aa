"""What is done to the store while mail flows: bricks killed, frozen, and two killed at once."""

import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from .volume import NotStartedError, Volume

#: Whatever the rig does to a store, no delivery may wait for longer than this, seconds: else it hangs. It is told how
#: long the longest was; a busy machine may make that many times what it is.
LONGEST_S: Final = 180

#: Seconds after which a client takes a brick that is silent for dead: GlusterFS's default, which no machine is too busy
#: for, and in the long form, which freezes bricks, what one can wait for.
PATIENT_S: Final = 42
IMPATIENT_S: Final = 5

#: Seconds that a mount may need to find bricks which have come back.
RECONNECT_S: Final = 10

#: Seconds that mail flows between two troubles.
CALM_S: Final = 2.0


@dataclass
class Run:
    """One run, as it goes on.

    Attributes:
        volume: the store.
        faults: what must not be.
        told: lines of the summary.
        writers: the processes that deliver, by name.
        away: when the store could not be written to: begin and end, by the monotonic clock.

    """

    volume: Volume
    faults: list[str] = field(default_factory=list[str])
    told: list[str] = field(default_factory=list[str])
    writers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, subprocess.Popen[bytes]])
    away: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def calm(self, seconds: float = CALM_S) -> None:
        """Let mail flow."""
        time.sleep(seconds)

    def healed(self, what: str) -> None:
        """Wait until the bricks agree, without new mail: ``heal info`` counts what is being written, too."""
        say(f"{what}: healing")
        self._command(b"pause\n")
        for name, writer in self.writers.items():
            if not _says_that_it_is_paused(writer):
                raise NotStartedError(f"writer {name} is not to be paused")
        self.heal(f"{what}: what {CALM_S:.0f} s of healing beside mail had left")
        self._command(b"go\n")

    def heal(self, what: str) -> None:
        """Wait until ``heal info`` is clean; if it does not become so, that is a fault, and no more."""
        try:
            self.told.append(f"{what} took {self.volume.heal(600):.1f} s")
        except NotStartedError as exc:
            self.faults.append(f"{what}: {exc}; entries: {self.volume.unhealed()}")

    def _command(self, line: bytes) -> None:
        for writer in self.writers.values():
            if writer.stdin is not None:
                with suppress(BrokenPipeError):  # it is over, which is told in the end
                    writer.stdin.write(line)
                    writer.stdin.flush()


def kill_one(run: Run, brick: int) -> None:
    """A brick is killed, mail flows without it, and it is started and healed while mail flows."""
    say(f"brick {brick} is killed")
    run.volume.signal(brick, signal.SIGKILL)
    run.calm()
    run.volume.start_bricks()
    run.calm()
    run.healed(f"brick {brick} killed")


def freeze_one(run: Run, brick: int) -> None:
    """A brick says nothing any more: the clients wait until they take it for dead."""
    say(f"brick {brick} is frozen")
    run.volume.signal(brick, signal.SIGSTOP)
    run.calm(IMPATIENT_S + CALM_S)
    run.volume.signal(brick, signal.SIGCONT)
    run.calm()
    run.healed(f"brick {brick} frozen")


def kill_two(run: Run, brick: int) -> None:
    """Two of three are killed: there is no quorum, and what is sent now has to be refused."""
    other = (brick + 1) % len(run.volume.bricks)
    say(f"bricks {brick} and {other} are killed")
    began = time.monotonic()
    run.volume.signal(brick, signal.SIGKILL)
    run.volume.signal(other, signal.SIGKILL)
    run.calm()
    run.volume.start_bricks()
    run.calm()
    run.healed(f"bricks {brick} and {other} killed")
    # That the bricks agree does not say that each mount has them back: a client looks for them every three seconds.
    run.away.append((began, time.monotonic() + RECONNECT_S))


def _says_that_it_is_paused(writer: subprocess.Popen[bytes]) -> bool:
    if writer.stdout is None or not select.select([writer.stdout], [], [], LONGEST_S)[0]:
        return False
    return writer.stdout.readline() in (b"paused\n", b"")  # or it is over, which is told in the end


Trouble = tuple[Callable[[Run, int], None], int]
SHORT: Final[tuple[Trouble, ...]] = ((kill_one, 0),)
FULL: Final[tuple[Trouble, ...]] = (
    (kill_one, 0),
    (kill_one, 1),
    (freeze_one, 2),
    (kill_two, 0),
    (kill_one, 2),
    (freeze_one, 1),
    (kill_two, 1),
)


def say(text: str) -> None:
    """Tell a person who looks on what is being done."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
