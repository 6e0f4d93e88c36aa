"""What a run was made on: a figure without it means nothing."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.filesystems import Place

__all__ = ["conditions", "interpreter"]

LIBRARIES = ("maildir-async", "aiofiles", "anyio", "uvloop", "Twisted", "aiosmtpd", "matplotlib")

#: Prints what the interpreter is.
WHO = """
import platform, sys
gil = getattr(sys, "_is_gil_enabled", lambda: True)()
print(platform.python_implementation(), platform.python_version(), "" if gil else "free-threaded")
"""


def conditions(places: dict[str, Place]) -> dict[str, Any]:
    """Return the conditions, as JSON has them."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": interpreter(sys.executable),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": _versions(),
        "commit": _commit(),
        "file_systems": {
            name: {"what": place.description, "flush_ms": round(place.flush_ms, 3)} for name, place in places.items()
        },
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.machine()


def interpreter(python: str) -> str:
    """Return what another Python is, or its path if it does not say."""
    try:
        done = subprocess.run([python, "-c", WHO], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return python
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        said = [
            subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "../maildir_async"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said[0] + (" with changes" if said[1] else "")
