"""The command ``maildir-async``: finds the subcommand that is asked for, and runs it."""

import argparse
import atexit
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

from maildir_async.command.answers import OutputError, failed, print_text, write_line
from maildir_async.command.parser import Commands, Parser

__all__ = ["SUBCOMMANDS", "main", "make_parser", "run"]

#: Each subcommand, and the module whose ``add_parser`` adds it. Only the one that is asked for is imported: who
#: delivers a message by a pipe is not to wait for a mail server to be loaded.
SUBCOMMANDS: Final[Mapping[str, str]] = {
    "deliver": "maildir_async.command.deliver",
    "import": "maildir_async.command.importing",
    "info": "maildir_async.command.info",
    "check": "maildir_async.command.check",
    "serve": "maildir_async.command.serve",
    "clean": "maildir_async.command.clean",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments* (those of the process by default), and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except OutputError as exc:
        return exc.tell()
    except OSError as exc:  # there are no descriptors, no memory for what is to be shared, or the like
        return failed(os.EX_TEMPFAIL, str(exc))


def run() -> NoReturn:
    """Run the command, and end the process.

    After `deliver` it ends at once: what is registered for the end is called, and threads are all daemons; but the
    interpreter is not taken apart, which is a sixth of the time that a whole delivery takes.

    Before there is an event loop, which catches signals, there is nothing to be put in order: SIGINT then ends the
    process as SIGTERM does, without Python's traceback. Once the exit code is known, no signal makes another of it: a
    message that has been delivered would be sent again.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        code = main()
    except KeyboardInterrupt:  # the event loop has gone, and has put Python's own handler back
        code = failed(os.EX_TEMPFAIL, "interrupted")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[1:2] == ["deliver"]:
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] # it is under no other name
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    asked = arguments[:1] if arguments and arguments[0] in SUBCOMMANDS else SUBCOMMANDS
    whole = make_parser(asked)
    options = whole.parse_args(arguments)
    if "parser" not in options:
        return _ask_for_one(whole, options.commands)
    parser: Parser = options.parser
    try:
        done = options.command(options)
    except (ValueError, OverflowError) as exc:
        parser.refuse(exc)
    if isinstance(done, int):
        return done
    from maildir_async.command.signals import run_until_signal  # not for those that need no event loop

    return run_until_signal(done)


def make_parser(names: Iterable[str] = SUBCOMMANDS) -> Parser:
    """Return the parser of the command with the subcommands *names*, whose modules are imported."""
    parser = Parser(
        prog="maildir-async",
        description="Deliver mail into a Maildir, durably.",
        epilog="maildir-async COMMAND --help tells about each of them.",
    )
    parser.add_argument("--version", action=_Version, help="say which version this is, and exit")
    commands = parser.add_subparsers(metavar="COMMAND")
    parser.set_defaults(commands=commands)
    for name in names:
        importlib.import_module(SUBCOMMANDS[name]).add_parser(commands)
    return parser


def _ask_for_one(parser: Parser, commands: Commands) -> int:
    """Say which subcommands there are: who gives none does not know them."""
    lines = [f"{parser.prog}: a COMMAND is wanted (COMMAND --help tells more about it), one of"]
    listed: list[argparse.Action] = commands._get_subactions()  # pyright: ignore[reportPrivateUsage] # no other name
    lines += [f"  {command.dest:8} {command.help}" for command in listed]
    write_line(sys.stderr, "\n".join(lines))
    return os.EX_USAGE


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version  # 20 ms that no other use of the command needs

        try:
            found = version("maildir-async")
        except PackageNotFoundError:  # run from its source
            found = "(not installed)"
        print_text(f"maildir-async {found}, Python {sys.version.partition(' ')[0]}\n")
        parser.exit()
