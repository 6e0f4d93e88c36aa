"""Faults at system calls: strace has a call fail that the kernel would have done."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .checks import in_tmp, names_in, wrong_with
from .kills import Result
from .scenarios import Scenario, Tell
from .traced import run_in_new_place, run_plain

__all__ = ["ERRORS", "FAULTED", "fail_everywhere"]

#: What each call may fail with, by its manual page. EINTR comes once, since Python tries again (PEP 475) for as long.
ERRORS: Final[dict[str, tuple[str, ...]]] = {
    "openat": ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "ENOMEM", "EROFS", "EINTR", "EACCES"),
    "mkdir": ("ENOSPC", "EIO", "EDQUOT", "EROFS"),
    "write": ("ENOSPC", "EIO", "EDQUOT", "EINTR", "EFBIG"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT", "EINTR"),
    "io_submit": ("EAGAIN", "EINVAL", "EBADF"),
    "io_getevents": ("EINTR",),
    "renameat2": ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EINVAL"),
    "rename": ("EIO", "ENOSPC", "EROFS"),
    "link": ("EIO", "EMLINK", "EPERM", "EDQUOT"),
    "linkat": ("EIO", "EMLINK", "EPERM", "EDQUOT"),
    "unlink": ("EIO", "EROFS"),
    "fchmod": ("EIO", "EROFS", "EPERM"),
    "fchown": ("EIO", "EPERM", "EDQUOT"),
    "utimensat": ("EIO", "EROFS"),
    "fadvise64": ("EIO", "EINVAL"),
    "syncfs": ("EIO", "ENOSPC"),
    "newfstatat": ("EIO", "ENOMEM"),
    "statx": ("EIO", "ENOSYS"),
    "close": ("EIO", "EINTR", "ENOSPC"),
}

#: The programs that meet them. In a batch or a fan-out one message may fail and the others not.
FAULTED: Final = ("alone", "streaming", "folder", "quota", "keywords", "transaction", "batch", "fan-out")

#: Of which a failed one leaves the others to be delivered.
_SEVERAL: Final = frozenset(["batch", "fan-out", "streaming"])

#: What `maildir_async` raises. Any other exception would be a failure that nobody has foreseen.
_CLEAR: Final = ("AppendError", "NotAMaildirError", "UncertainAppendError", "MaildirError", "QuotaExceededError")

#: After which something may be left behind, as the exception's note says: what is removed is looked for, as root by
#: opening each directory on the way.
_REMOVERS: Final = frozenset(["unlink"])
_REMOVERS_FROM_THEN_ON: Final = frozenset(["openat", "newfstatat", "statx"])


def fail_everywhere(scenario: Scenario, work: Path, *, full: bool, say: Callable[[str], None]) -> Result:
    """Have each call of *scenario* fail (in the short form, the first and one further of each kind)."""
    result = Result(f"{scenario.name}, faults")
    calls = tuple(ERRORS)
    undisturbed = run_in_new_place(scenario, work, calls)
    if undisturbed.error or undisturbed.signal:
        result.faults.append(f"undisturbed it did not end well: {undisturbed.error or undisturbed.signal}")
        return result
    counts = Counter((call.thread, call.call) for call in undisturbed.calls)
    most = dict[str, int]()
    for (_, name), count in counts.items():
        most[name] = max(most.get(name, 0), count)
    for call, count in most.items():
        errors = ERRORS[call] if full else ERRORS[call][:1]
        for number in range(1, count + 1, 1 if full else max(1, count // 2)):
            for error in errors:
                for when in (str(number), f"{number}+") if full and error != "EINTR" else (str(number),):
                    say(f"{result.name}: {call} {error}, {when} of {count}")
                    _fail(scenario, work, calls, call, error, when, result)
    return result


def _fail(
    scenario: Scenario, work: Path, calls: tuple[str, ...], call: str, error: str, when: str, result: Result
) -> None:
    met = run_in_new_place(scenario, work, calls, f"{call}:error={error}:when={when}")
    place = work / "place"
    if "(INJECTED)" not in (work / "log").read_text(errors="replace"):
        return
    result.figures["faults"] += 1
    result.figures["errors told" if met.error else "delivered all the same"] += 1
    faults = wrong_with(place, scenario, met.told)
    if met.hung or met.signal:
        faults.append("hung" if met.hung else f"died of signal {met.signal}")
    kind = met.error.partition(":")[0]
    if met.error and kind not in _CLEAR:
        faults.append(f"not a clear error: {met.error}")
    untold = names_in(place, scenario) - {name for name, _ in met.told}
    if untold and kind != "UncertainAppendError" and scenario.name not in _SEVERAL:
        faults.append(f"there, and not acknowledged: {sorted(untold)}; {met.error}")
    may_leave = call in _REMOVERS or (when.endswith("+") and call in _REMOVERS_FROM_THEN_ON)
    if not may_leave and (left := in_tmp(place, scenario)):
        faults.append(f"left in tmp/: {[path.name for path in left]}; {met.error}")

    async def second(tell: Tell) -> None:
        await scenario.run(place, "second-", tell)

    later = run_plain(second)
    if later.error or later.hung:
        faults.append(f"the fault is over, and yet: {later.error or 'it hangs'}")
    result.slowest_s = max(result.slowest_s, later.seconds)
    faults += wrong_with(place, scenario, met.told + later.told)
    result.faults += [f"{call} {error}, {when}: {fault}" for fault in faults]
