"""The command line: how a subcommand is added to it, how its help looks, and what the values of its options are.

A subcommand is a module with a function ``add_parser(commands: Commands) -> None``, which calls `add_command` once. The
module is named in `maildir_async.command.main.SUBCOMMANDS`, and imported when it is asked for.
"""

import argparse
import os
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from textwrap import dedent, fill
from textwrap import indent as indent_by
from typing import TYPE_CHECKING, Any, NoReturn

from maildir_async.format.sizes import size_of

__all__ = ["Command", "Commands", "Parser", "add_command", "moment", "size"]

#: What does a subcommand's work: takes the options, and returns the exit code, or a coroutine that does, which a signal
#: cancels. ValueError and OverflowError are mistakes of the command line: exit code 64. OSError is 75.
Command = Callable[[argparse.Namespace], int | Coroutine[Any, Any, int]]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and exit with 64 (EX_USAGE)."""

    def error(self, message: str) -> NoReturn:
        """Exit, and say why."""
        self.exit(os.EX_USAGE, f"{self.prog}: {message} (--help tells more)\n")


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]  # pyright: ignore[reportPrivateUsage] # it has no other name
else:
    Commands = Any


def add_command(
    commands: Commands, name: str, command: Command, *, summary: str, description: str, epilog: str
) -> Parser:
    """Return the parser of a new subcommand *name*, to add its options to.

    Args:
        commands: what `argparse.ArgumentParser.add_subparsers` has returned.
        name: what the user types.
        command: does the work.
        summary: one line, without a full stop, for the list of subcommands.
        description: a paragraph or two, before the options. Its indentation is taken off.
        epilog: what comes after the options: the headings ``examples:`` and ``exit codes:``, with indented lines.

    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=dedent(description).strip(),
        epilog=dedent(epilog).strip(),
        formatter_class=_Formatter,
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs to the terminal's width, and keeps those that are indented, and headings, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = [block if "\n " in block else fill(" ".join(block.split()), width) for block in text.split("\n\n")]
        return indent_by("\n\n".join(blocks), indent)


# Types of arguments: their errors are told with the option's name.


def size(text: str) -> int:
    """Return a size in bytes, such as 50M."""
    try:
        return size_of(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def moment(text: str) -> datetime:
    """Return a time as ISO 8601 has it, or in seconds since the epoch; local time where no zone is said."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.fromtimestamp(float(text), UTC)
        except (ValueError, OverflowError, OSError):
            raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2024-05-01T12:00+02:00") from None
