"""``clean``: removes what killed deliveries have left in ``tmp/``."""

import argparse
import os
import sys
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

from maildir_async.command.answers import exit_code, failed, told, write_line
from maildir_async.command.parser import Commands, add_command, hours
from maildir_async.errors import MaildirError
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.upkeep import CLEAN_AGE

__all__ = ["add_parser"]


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "clean",
        _clean,
        summary="remove what killed deliveries have left in tmp/, and print its paths",
        description="""
            Remove what is older than 36 hours from tmp/ of a maildir and of its folders: deliveries that were killed
            have left it. Print the path of each file removed. Mail is not touched.
            """,
        epilog="""
            examples:
              maildir-async clean ~/Maildir
              for box in /var/mail/*/*/Maildir; do maildir-async clean "$box"; done

            exit codes:
              0   all that was old has been removed
              64  the command line is wrong
              75  it may work later: MAILDIR is none, or something in it cannot be
                  read or removed; or a signal came
            """,
    )
    parser.add_argument("maildir", metavar="MAILDIR", help="the directory that has tmp, new and cur")
    text = "remove what has not been changed for so long; 36 by default, which no delivery takes"
    parser.add_argument("--older-than", metavar="HOURS", type=hours, default=CLEAN_AGE, help=text)


def _clean(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    return _clean_tmp(Maildir(options.maildir), options.older_than)


async def _clean_tmp(maildir: Maildir, age: timedelta) -> int:
    try:
        for path in await maildir.clean_tmp(age):
            write_line(sys.stdout, path)
    except MaildirError as exc:
        return failed(exit_code(exc), told(exc))
    return os.EX_OK
