"""The command line: how a subcommand is added to it, how its help looks, and what the values of its options are.

A subcommand is a module with a function ``add_parser(commands: Commands) -> None``, which calls `add_command` once. The
module is named in `maildir_async.command.main.SUBCOMMANDS`, and imported when it is asked for.
"""

import argparse
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from textwrap import dedent, fill, wrap
from textwrap import indent as indent_by
from typing import TYPE_CHECKING, Any, Final, NoReturn

from maildir_async.command.answers import print_text, write_line
from maildir_async.format.given import meant
from maildir_async.format.sizes import size_of

__all__ = ["Command", "Commands", "Parser", "add_command", "hours", "moment", "size"]

#: What does a subcommand's work: takes the options, and returns the exit code, or a coroutine that does, which a signal
#: cancels. ValueError and OverflowError are mistakes of the command line: exit code 64. OSError is 75.
Command = Callable[[argparse.Namespace], int | Coroutine[Any, Any, int]]

#: The most hours that an age may have: a thousand years. What is far above them is no time any more.
HOURS_MOST: Final = 24 * 365 * 1000


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, say what may have been meant, and exit with 64 (EX_USAGE)."""

    # argparse's own is overloaded for namespaces of other types, which nobody gives here.
    def parse_known_args(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return the options. What a subcommand does not know is its own error: the command's knows no options.

        FILEs that come behind an option are FILEs too: argparse gives a ``*`` all or nothing of what is before it.
        """
        found, rest = super().parse_known_args(args, namespace)
        if not rest:
            return found, rest
        if strange := [word for word in rest if word.startswith("-") and word != "-"]:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            word = strange[0].partition("=")[0]
            self.error(f"there is no option {word}{meant(word, known)}")
        several = next((action.dest for action in self._actions if action.nargs == "*"), None)
        if several is None:
            self.error(f"too many arguments: {' '.join(rest)}")
        setattr(found, several, [*(getattr(found, several, None) or []), *rest])
        return found, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for what is none of the choices; 3.14 says what may be meant, those before do not."""
        if action.choices is not None and value not in action.choices:
            choices = [str(each) for each in action.choices]
            text = f"one of {', '.join(choices)} is wanted, not {value!r}{meant(str(value), choices)}"
            raise argparse.ArgumentError(action, text)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help, or an error. `OutputError` if that is standard output's, and it cannot be written."""
        if file is not None and file is sys.stdout:
            print_text(message)
        else:
            write_line(sys.stderr, message.removesuffix("\n"))

    def refuse(self, exc: Exception) -> NoReturn:
        """Exit, and say what *exc* does: where it begins with the library's name of an argument, by the option's."""
        said = str(exc)
        name = said.replace(":", " ", 1).partition(" ")[0]
        shown = {each.dest: each.option_strings[-1] for each in self._actions if each.option_strings}
        if "keyword" in shown:
            shown["keywords"] = shown["keyword"]
        if any(each.dest == "maildir" for each in self._actions):
            shown["path"] = "MAILDIR"
        self.error(shown.get(name, name) + said.removeprefix(name))

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
        blocks = [
            block if "\n " in block else fill(" ".join(block.split()), width, break_on_hyphens=False)  # of --options
            for block in text.split("\n\n")
        ]
        return indent_by("\n\n".join(blocks), indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width, break_on_hyphens=False)


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


def hours(text: str) -> timedelta:
    """Return an age, given in hours."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= HOURS_MOST:  # nor is it NaN
        raise argparse.ArgumentTypeError(f"a number of hours, such as 36 or 0.5, is wanted, not {text!r}")
    return timedelta(hours=number)
