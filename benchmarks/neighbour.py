"""Somebody else on the same file system, who writes much and syncs nothing.

python -m benchmarks.neighbour FILE MEGABYTES-A-SECOND

Until it is terminated.
"""

import os
import sys
import time
from typing import Final

#: Bytes after which it begins at the start of the file again.
FILE_SIZE: Final = 2**30

#: Seconds between two writes.
BEAT_S: Final = 0.01


def main(path: str, megabytes: int) -> None:
    """Write for ever."""
    data = os.urandom(int(megabytes * 1e6 * BEAT_S))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    offset, due = 0, time.monotonic()
    while True:
        os.pwrite(fd, data, offset)
        offset = (offset + len(data)) % FILE_SIZE
        due += BEAT_S
        time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
