"""What a measurement must have left: every message, once, whole, where it belongs, and nothing else."""

import os
import re
from pathlib import Path
from typing import Final, Literal

from benchmarks.workload import HEAD_SIZE, MIB, Workload, body, head

__all__ = ["EXISTING_PREFIX", "Added", "WrongMailError", "verify"]

#: Names of messages that were there before begin so, and are left alone.
EXISTING_PREFIX: Final = "0.existing"

NUMBER: Final = re.compile(rb"^Subject: benchmark message (\d{10})\n", re.MULTILINE)


#: Where header lines may have been added to a message.
Added = Literal["nowhere", "in front", "anywhere"]


class WrongMailError(Exception):
    """What is in the maildirs is not what was delivered."""


def verify(root: Path, workload: Workload, delivered: int, *, adds: Added = "nowhere") -> None:
    """Raise `WrongMailError` unless the maildirs in *root* hold messages 0 to *delivered* - 1, and nothing else.

    Args:
        root: where the maildirs are.
        workload: what was asked for.
        delivered: how many messages the peer says it has delivered.
        adds: where the peer adds header lines. In front: all that follows them is compared. Anywhere: the number and
            the body are.

    """
    missing = set(range(delivered))
    for maildir in range(workload.maildirs):
        for sub in ("tmp", "cur"):
            left = os.listdir(root / str(maildir) / sub)
            if left:
                raise WrongMailError(f"{len(left)} files in {sub}/ of maildir {maildir}, such as {left[0]}")
        new = root / str(maildir) / "new"
        for name in os.listdir(new):
            if name.startswith(EXISTING_PREFIX):
                continue
            number = _number_of(f"{new}/{name}", workload, adds)
            if number not in missing:
                what = "twice" if number < delivered else "though never delivered"
                raise WrongMailError(f"message {number} is there {what}: {name}")
            if number % workload.maildirs != maildir:
                raise WrongMailError(f"message {number} is in maildir {maildir}")
            missing.discard(number)
    if missing:
        raise WrongMailError(f"{len(missing)} of {delivered} messages are missing, such as number {min(missing)}")


def _number_of(path: str, workload: Workload, adds: Added) -> int:
    """Return the number of the message at *path*, whose content is right."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(MIB)
        found = NUMBER.search(start)
        if found is None:
            raise WrongMailError(f"no message of ours: {path}")
        number = int(found[1])
        header_end = start.index(b"\n\n") + 2
        begin = found.start() if adds == "in front" else 0
        if adds != "anywhere" and start[begin:header_end] != head(number):
            raise WrongMailError(f"message {number} has another header: {path}")
        left = workload.size_of(number) - HEAD_SIZE
        offset, piece = 0, start[header_end:]
        while piece:
            # Pieces of up to a period, which begin anywhere in it.
            expected = body(offset % MIB + min(len(piece), left))[offset % MIB :]
            if piece != expected:
                raise WrongMailError(f"message {number} has another body: {path}")
            left -= len(piece)
            offset += len(piece)
            piece = file.read(MIB)
    if left:
        raise WrongMailError(f"message {number} lacks {left} bytes: {path}")
    return number
