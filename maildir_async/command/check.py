"""``maildir-async check``: what is wrong with a maildir, and with ``--repair`` put right, without removing mail.

The JSON is one object, printed as it is found out; its names stay as long as its ``format`` does.
docs/info-and-check.md tells what they mean.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from maildir_async.command.answers import OutputError, print_text
from maildir_async.command.info import add_encoding
from maildir_async.command.parser import Commands, add_command, hours
from maildir_async.command.working import run_stoppable, told
from maildir_async.format.options import check_age

if TYPE_CHECKING:
    from maildir_async.disk.directories import Directories
    from maildir_async.format.problems import CheckOptions, CheckReport, Problem

__all__ = ["add_parser"]

#: The exit code for problems that are there in the end. Of those in sysexits.h none says that.
PROBLEMS: Final = 1

#: Notes of one kind that are shown. Arbitrary: enough to see what they have in common.
NOTES: Final = 5

_DESCRIPTION = """\
Tell what is wrong with a maildir: sizes in names, flags, two messages with one key, what is no message, owners and
modes, missing directories, what dead deliveries have left in tmp/, dovecot-keywords, maildirsize. Every message is
read, unless --quick says otherwise. Nothing is changed without --repair, which says what it has done. Mail may be read
and delivered meanwhile."""

_EPILOG = """\
examples:
  maildir-async check ~/Maildir
  maildir-async check --quick --json ~/Maildir | jq '.summary.kinds'
  maildir-async check --repair ~/Maildir

exit codes:
  0   nothing is wrong, or all of it has been repaired; notes do not count
  1   something is wrong
  64  the command line is wrong
  66  MAILDIR is none, or may not be looked at
  75  it may work later, or a signal came: what has been told is done
  141 who read it has gone; a repair goes on"""


def add_parser(commands: Commands) -> None:
    """Add the subcommand to *commands*."""
    parser = add_command(
        commands,
        "check",
        _check,
        summary="tell what is wrong with a maildir, and repair it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("maildir", metavar="MAILDIR", help="the directory that has tmp, new and cur")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help=f"show all notes, not the first {NOTES} of a kind")
    parser.add_argument("--repair", action="store_true", help="put right what can be; mail is never removed")
    parser.add_argument("--quick", action="store_true", help="do not read the messages: look at names and sizes only")
    parser.add_argument(
        "--older-than",
        metavar="HOURS",
        type=hours,
        default=timedelta(hours=36),
        help="age of what counts as left in tmp/; 36 by default, and less is safe only where nobody delivers",
    )
    add_encoding(parser)


def _check(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    # Imported here: who delivers a message by a pipe is not to wait for it.
    from maildir_async.format.problems import CheckOptions
    from maildir_async.mailbox.maildir import Maildir

    wanted = CheckOptions(
        repair=options.repair,
        is_quick=options.quick,
        encoding=options.folder_encoding,
        tmp_age_s=check_age(options.older_than),
    )
    directories = Maildir(options.maildir, create=False).mailbox.directories
    printer = _Json(directories.path) if options.json else _Text(shows_all=options.verbose)
    printer.is_needed = not options.repair
    return run_stoppable(lambda is_wanted: _run(directories, wanted, printer, is_wanted))


def _run(directories: "Directories", options: "CheckOptions", printer: "_Text", is_wanted: Callable[[], None]) -> int:
    from maildir_async.mailbox.check import Check

    report = Check(directories, options, printer.tell, is_wanted).run()
    printer.end(report)
    return PROBLEMS if report.problems > report.repaired else os.EX_OK


class _Text:
    """Prints each problem as it is found: a line for it, and one for what becomes of it.

    Of notes of one kind only the first `NOTES` are shown, unless all are asked for; of the others, how many.

    Attributes:
        is_needed: whether nothing is to be looked at any more when it cannot be printed. Otherwise that is told once,
            and a repair goes on.

    """

    def __init__(self, *, shows_all: bool) -> None:
        self._shows_all = shows_all
        self._notes = Counter[str]()
        self._lost: OutputError | None = None
        self.is_needed = True

    def tell(self, problem: "Problem") -> None:
        if problem.level != "problem" and not self._shows_all:
            self._notes[problem.kind] += 1
            if self._notes[problem.kind] > NOTES:
                return
        what = problem.kind if problem.level == "problem" else f"{problem.kind} (note)"
        self._print(f"{what}: {problem.path}: {problem.text}")
        if problem.outcome is not None:
            self._print(f"  {'repaired' if problem.repaired else 'not repaired'}: {problem.outcome}")
        elif problem.remedy is not None:
            self._print(f"  --repair would {problem.remedy}")

    def end(self, report: "CheckReport") -> None:
        for kind, number in self._notes.items():
            if number > NOTES:
                self._print(f"{kind} (note): and {number - NOTES} more; --verbose lists all")
        packed = f", {report.compressed} of them compressed or encrypted" if report.compressed else ""
        repaired = f", {report.repaired} of them repaired" if report.repaired else ""
        self._print(
            f"{report.messages} messages{packed} in {report.folders} folders:"
            f" {report.problems} problems{repaired}, {report.notes} notes"
        )

    def _print(self, line: str) -> None:
        if self._lost is not None:
            return
        try:
            print_text(told(line) + "\n")
        except OutputError as exc:
            if self.is_needed:
                raise
            exc.tell()
            self._lost = exc


class _Json(_Text):
    """Prints one object, a line for each problem, as they are found: there may be a million."""

    def __init__(self, path: str) -> None:
        super().__init__(shows_all=True)
        self._path = path
        self._is_first = True

    def tell(self, problem: "Problem") -> None:
        self._begin()
        comma = "" if self._is_first else ","
        self._is_first = False
        self._print(f"{comma}{json.dumps(problem.as_json())}")

    def end(self, report: "CheckReport") -> None:
        self._begin()
        self._print(f'], "summary": {json.dumps(report.as_json())}}}')

    def _begin(self) -> None:
        from maildir_async.format.problems import FORMAT

        if self._path:
            self._print(f'{{"format": {FORMAT}, "path": {json.dumps(self._path)}, "problems": [')
            self._path = ""
