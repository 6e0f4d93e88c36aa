"""``maildir-async info``: what is in a maildir, as tables or as JSON. Nothing is changed.

The JSON is one object, whose names stay as long as its ``format`` does; docs/info-and-check.md tells what they mean.
"""

import argparse
import json
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from maildir_async.command.answers import print_text
from maildir_async.command.parser import Commands, add_command
from maildir_async.command.working import run_stoppable, sized, table, told

if TYPE_CHECKING:
    from maildir_async.disk.directories import Directories
    from maildir_async.mailbox.inspection import FolderReport, MaildirReport

__all__ = ["add_parser"]

_DESCRIPTION = """\
Tell what is in a maildir: its folders, how many messages and bytes, flags, keywords, the quota, what is left in tmp/,
and what its file system can do. Nothing is changed."""

_EPILOG = """\
examples:
  maildir-async info ~/Maildir
  maildir-async info --json ~/Maildir | jq '.folders[] | select(.tmp > 0)'

exit codes:
  0   all of it has been told
  64  the command line is wrong
  66  MAILDIR is none, or something in it could not be looked at
  75  it may work later, or a signal came
  141 who read it has gone"""


def add_parser(commands: Commands) -> None:
    """Add the subcommand to *commands*."""
    parser = add_command(
        commands,
        "info",
        _info,
        summary="tell what is in a maildir, and what its file system can do",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("maildir", metavar="MAILDIR", help="the directory that has tmp, new and cur")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="make files in tmp/, which are removed, to see whether links and RENAME_NOREPLACE work",
    )
    add_encoding(parser)


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how folders' names are written."""
    parser.add_argument(
        "--folder-encoding",
        choices=("utf-7", "utf-8"),
        default="utf-7",
        help="how names of folders are written: as Dovecot does (utf-7, the default) or Courier (utf-8)",
    )


def _info(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    # Imported here: who delivers a message by a pipe is not to wait for it.
    from maildir_async.mailbox.maildir import Maildir

    directories = Maildir(options.maildir, create=False).mailbox.directories
    return run_stoppable(lambda is_wanted: _tell(directories, options, is_wanted))


def _tell(directories: "Directories", options: argparse.Namespace, is_wanted: Callable[[], None]) -> int:
    from maildir_async.mailbox.inspection import inspect

    report = inspect(directories, options.folder_encoding, is_wanted, by_files=options.probe)
    lines = [json.dumps(report.as_json(), indent=2)] if options.json else _lines(report)
    print_text("\n".join(lines) + "\n")
    return os.EX_NOINPUT if any(each.troubles for each in report.folders) else os.EX_OK


def _lines(report: "MaildirReport") -> list[str]:
    rows = [["folder", "new", "cur", "size", "flags", "keywords", "tmp", "oldest in tmp"]]
    rows += [_row(each) for each in report.folders]
    every = report.folders
    if len(every) > 1:
        new, cur, size, tmp = (
            sum(numbers)
            for numbers in zip(*((each.new, each.cur, each.bytes, each.tmp) for each in every), strict=True)
        )
        rows.append(["total", str(new), str(cur), sized(size), "", "", str(tmp), ""])
    lines = [told(report.path), "", *table(rows, right=(1, 2, 3, 6))]
    lines += [f"trouble: {told(trouble)}" for each in report.folders for trouble in each.troubles]
    return [*lines, "", *_quota(report), "", *_abilities(report)]


def _row(each: "FolderReport") -> list[str]:
    return [
        told(each.folder or "INBOX"),
        str(each.new),
        str(each.cur),
        sized(each.bytes),
        " ".join(f"{flag}:{count}" for flag, count in each.flags.items()),
        " ".join(f"{told(keyword)}:{count}" for keyword, count in each.keywords.items()),
        str(each.tmp),
        "" if each.oldest_tmp is None else f"{_age(each.oldest_tmp[1])} {told(each.oldest_tmp[0])}",
    ]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _quota(report: "MaildirReport") -> list[str]:
    quota = report.quota
    if quota is None:
        return ["quota  none (there is no maildirsize)"]
    size, number = quota.limits
    rows = [
        ["quota", "size", "messages"],
        ["limit", sized(size) if size else "none", str(number) if number else "none"],
    ]
    if quota.recorded is not None:
        rows.append(["recorded", sized(quota.recorded[0]), str(quota.recorded[1])])
    else:
        rows.append(["recorded", told(quota.trouble) or "has to be counted anew", ""])
    rows.append(["counted", sized(quota.counted[0]), str(quota.counted[1])])
    return table(rows)


def _abilities(report: "MaildirReport") -> list[str]:
    abilities = report.abilities
    answers = {True: "yes", False: "no", None: "not known"}
    rows = [["file system", told(abilities.type or "not known"), ""]]
    rows += [
        [name.replace("_", " "), answers[works], told(abilities.reasons.get(name, ""))]
        for name, works in abilities.works.items()
    ]
    return table(rows)
