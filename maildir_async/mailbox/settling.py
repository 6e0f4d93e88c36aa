"""What becomes of a problem that a check has found: told, left to a person, or repaired."""

from collections.abc import Callable

from maildir_async.errors import MaildirError
from maildir_async.format.problems import CheckOptions, CheckReport, Problem

__all__ = ["Settling", "reason"]


class Settling:
    """Counts each problem of one check, and tells of it.

    Args:
        options: whether a repair is asked for.
        tell: is given each problem.

    Attributes:
        report: what has been counted.

    """

    def __init__(self, options: CheckOptions, tell: Callable[[Problem], None]) -> None:
        self._is_repair = options.repair
        self._tell = tell
        self.report = CheckReport()

    def settle(self, problem: Problem) -> None:
        """Tell of *problem* as it is."""
        self.report.count(problem)
        self._tell(problem)

    def leave(self, problem: Problem) -> None:
        """Tell of *problem*, which a repair leaves to a person."""
        is_asked = self._is_repair and problem.level == "problem"
        self.settle(problem.settled("it is left to you", repaired=False) if is_asked else problem)

    def repair(self, problem: Problem, do: Callable[[], str]) -> None:
        """Tell of *problem*, which *do* puts right, if that is asked: it returns what it has done."""
        if self._is_repair:
            try:
                problem = problem.settled(do(), repaired=True)
            except (OSError, MaildirError) as exc:
                problem = problem.settled(reason(exc), repaired=False)
        self.settle(problem)


def reason(exc: BaseException) -> str:
    """Return why something has failed, for a line that names the path."""
    return exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
