"""What a service tells systemd, if that has started it: sd_notify(3), without its library."""

import contextlib
import os
import socket
import time

__all__ = ["READY", "STOPPING", "WATCHDOG", "notify", "reloading", "watchdog_s"]

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def watchdog_s() -> float | None:
    """Return the seconds within which systemd wants to hear `WATCHDOG`; None if it does not: sd_watchdog_enabled(3)."""
    time_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if (
        not (time_us.isascii() and time_us.isdecimal() and len(time_us) < 19)
        or not int(time_us)
        or pid not in ("", str(os.getpid()))
    ):
        return None
    return int(time_us) / 1e6


def reloading() -> str:
    """Return the state of a service that has begun to read its files again. ``Type=notify-reload`` wants the time."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"


def notify(state: str) -> None:
    """Tell *state* to the socket that the environment names; do nothing where there is none, or nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):  # vsock, for virtual machines
        return
    if address.startswith("@"):  # the abstract name space has no files
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # whoever started us must not be able to stop us
        sender.sendto(state.encode(), address)
