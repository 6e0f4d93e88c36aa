"""``maildir-async import``: mail of other formats comes into a maildir."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from maildir_async.command.answers import Parents, told, write_line
from maildir_async.command.parser import Commands, add_command
from maildir_async.errors import MaildirError
from maildir_async.format.delivered import Durability
from maildir_async.format.options import check_path
from maildir_async.mail_import.importer import import_mail
from maildir_async.mail_import.mbox import DIALECTS
from maildir_async.mail_import.messages import STDIN
from maildir_async.mail_import.report import ImportReport
from maildir_async.mailbox.maildir import Maildir

__all__ = ["add_parser"]

Progress = Callable[[int, int | None, int], object]


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "import",
        _import,
        summary="import mboxes, Maildirs, MH folders and .eml files, each message once",
        description="""
            Import mail of other formats into a maildir. A SOURCE is an mbox, a Maildir with its folders, an MH folder,
            a directory of .eml files or mboxes, an .eml file, or - for standard input. Files may be compressed by gzip.

            What has been imported from the same SOURCE before is not imported again: after an interruption, whatever it
            was, give the same command again.
            """,
        epilog="""
            examples:
              maildir-async import ~/mail/inbox ~/Maildir
              maildir-async import --dry-run --folder Archive old.mbox.gz ~/Maildir
              zcat 2019-*.mbox.gz | maildir-async import - ~/Maildir

            exit codes:
              0   all is imported, or was before
              64  the command line is wrong
              65  some of it could not be read, and is named on standard error
              66  a SOURCE cannot be opened
              75  it may work later: MAILDIR did not take some of it, or is none; another
                  import into it is under way; or a signal came
            """,
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="where the mail is; - is standard input")
    parser.add_argument(
        "maildir", metavar="MAILDIR", help="where it goes; made if it is not there, with what is above it"
    )
    parser.add_argument("--dry-run", action="store_true", help="look at all of it, and store nothing")
    parser.add_argument("--folder", metavar="NAME", help="the folder that it goes to, or below, such as Archive/2024")
    parser.add_argument(
        "--mbox", metavar="DIALECT", default="auto", choices=DIALECTS, help=f"how an mbox quotes: {', '.join(DIALECTS)}"
    )
    parser.add_argument(
        "--journal", metavar="FILE", help="what remembers what has been imported; in MAILDIR by default"
    )
    parser.add_argument(
        "--durability", default="full", choices=[level.value for level in Durability], help="what is synced"
    )
    parser.add_argument("--no-create", dest="create", action="store_false", help="fail if there is no maildir")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no bar, also on a terminal")


def _import(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    maildir = Maildir(options.maildir, create=options.create, durability=Durability(options.durability))
    maildir.mailbox_of(options.folder)  # raises what is wrong with it
    if options.journal is not None:
        check_path(options.journal, "journal")
    return _import_each(maildir, options, Parents(maildir.path))


async def _import_each(maildir: Maildir, options: argparse.Namespace, parents: Parents) -> int:
    whole, code, unread = ImportReport(dry_run=options.dry_run), os.EX_OK, 0
    for source in options.sources:
        seen = _Seen()
        try:
            with _bar(source, is_wanted=options.progress) as show:
                seen.show = show
                report = await import_mail(
                    source,
                    maildir,
                    dry_run=options.dry_run,
                    on_progress=seen,
                    folder=options.folder,
                    dialect=options.mbox,
                    journal=options.journal,
                )
        except asyncio.CancelledError:  # by a signal
            again = "" if options.dry_run else "; the same command goes on from there"
            _say(f"{source}: {seen.done:,} messages gone through{again}")
            raise
        except OSError as exc:
            _say(f"{source} cannot be read: {exc.strerror}")
            code, unread = max(code, os.EX_NOINPUT), unread + 1
        except ValueError as exc:
            _say(str(exc))
            code, unread = max(code, os.EX_NOINPUT), unread + 1
        except MaildirError as exc:
            _say(f"{source}: {told(exc)}")
            return os.EX_TEMPFAIL
        else:
            for problem in report.problems:
                _say(str(problem))
            if more := report.problem_count - len(report.problems):
                _say(f"{source}: and {more} more of the like")
            if not (report.imported or report.already_there or report.problem_count):
                _say(f"{source}: there is no mail in it")
            whole += report
            if report.failed:
                code = max(code, os.EX_TEMPFAIL if report.refused else os.EX_DATAERR)
    parents.tell()
    _say(f"{whole}; {unread} of {len(options.sources)} sources not read at all" if unread else str(whole))
    return code


class _Seen:
    """Knows how far an import is, for when a signal ends it."""

    def __init__(self) -> None:
        self.done = 0
        self.show: Progress | None = None

    def __call__(self, done: int, total: int | None, at: int) -> None:
        self.done = done
        if self.show is not None:
            self.show(done, total, at)


def _say(text: str) -> None:
    """Write a line to standard error. A terminal must not take what a file is called for commands."""
    write_line(sys.stderr, "maildir-async: " + "".join(one if one.isprintable() else "?" for one in text))


def _bar(source: str, *, is_wanted: bool) -> AbstractContextManager[Progress | None]:
    """Return what shows how far an import is, on a terminal; nothing where there is none, or no library for it."""
    if not is_wanted or sys.stderr is None or not sys.stderr.isatty():
        return nullcontext()
    try:
        # Here, since it takes long, and only a person at a terminal has use for it: the extra `cli` brings it.
        from maildir_async.command.import_progress import shown
    except ImportError:
        return nullcontext()
    return shown(source, _size_of(source))


def _size_of(source: str) -> int | None:
    """Return about how many bytes of messages a source has, if that can be told at once."""
    if source == STDIN or source.endswith(".gz") or not os.path.isfile(source):
        return None
    return os.path.getsize(source)
