"""The manual page and the shell completions, made of the parser: ``python -m maildir_async.command.manual share``.

They are checked in, below ``share/``, and the wheel installs them from there; a test says when they are to be made
anew. So neither an installation nor a build needs shtab, and no shell starts Python to complete a word.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from maildir_async.command.main import make_parser
from maildir_async.command.parser import Parser

__all__ = ["completion", "main", "manual"]

#: Each file, by what makes it: "man", or a shell.
FILES: Final = {
    "man": "man/man1/maildir-async.1",
    "bash": "bash-completion/completions/maildir-async",
    "zsh": "zsh/site-functions/_maildir-async",
    "tcsh": "maildir-async/maildir-async.csh",
}

#: What stands for a value that is a directory, or a file.
DIRECTORIES: Final = {"MAILDIR", "DIR"}
PATHS: Final = {"FILE", "PATH", "SOURCE", "TEMPLATE"}


def main(arguments: Sequence[str]) -> int:
    """Write the files below the directory that *arguments* name, and print their paths."""
    (root,) = arguments
    for kind, name in FILES.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(manual() if kind == "man" else completion(kind))
        print(path)
    return 0


def completion(shell: str) -> str:
    """Return what completes the command's words in *shell*: bash, zsh or tcsh. Needs shtab."""
    import shtab

    parser = make_parser()
    for _, summary, found in _subcommands(parser):
        found.description = summary  # which shells show beside the name
        for action in _actions(found):
            if action.metavar in DIRECTORIES | PATHS:
                how = shtab.DIRECTORY if action.metavar in DIRECTORIES else shtab.FILE
                setattr(action, "complete", how)  # noqa: B010 - an attribute that argparse does not know
    made = shtab.complete(parser, shell=shell)
    return re.sub(r"[ \t]+$", "", made, flags=re.MULTILINE).rstrip() + "\n"


def manual() -> str:
    """Return the manual page, in the macros of man(7)."""
    parser = make_parser()
    lines = [
        '.\\" Made by python -m maildir_async.command.manual',
        ".TH MAILDIR-ASYNC 1",
        ".SH NAME",
        r"maildir\-async \- deliver mail into a Maildir, durably",
        ".SH SYNOPSIS",
    ]
    subcommands = list(_subcommands(parser))
    lines += [line for _, _, found in subcommands for line in _synopsis(found)]
    lines += [".B maildir\\-async \\-\\-version", ".SH DESCRIPTION", *_text(_DESCRIPTION)]
    for name, _, found in subcommands:
        lines += [f".SH {name.upper()}", *_text(found.description or ""), *_options(found), *_rest(found.epilog or "")]
    lines += [".SH SEE ALSO", "maildir (5), maildirmake (1), deliverquota (8), pipe (8), lmtp (8)"]
    return "\n".join(lines) + "\n"


_DESCRIPTION: Final = """
A message is printed or answered as delivered when it survives a power cut: its file has been written and synced, moved
from tmp/ to new/, and the directory has been synced. A reader sees all of it or nothing.
"""


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # pyright: ignore[reportPrivateUsage] # argparse tells it by no other name


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, Parser]]:
    """Give the name, the line in the list, and the parser of each."""
    for action in _actions(parser):
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            listed: list[argparse.Action] = action._get_subactions()  # pyright: ignore[reportPrivateUsage]
            for one in listed:
                yield one.dest, one.help or "", action.choices[one.dest]


def _synopsis(parser: Parser) -> list[str]:
    words = [_quoted(action.metavar, action.nargs) for action in _shown(parser) if not action.option_strings]
    return [".B " + _escaped(parser.prog), r"[\fIoptions\fR] " + " ".join(words), ".br"]


def _quoted(metavar: Any, nargs: Any) -> str:
    word = rf"\fI{_escaped(str(metavar))}\fR"
    return {"*": f"[{word} ...]", "+": f"{word} ...", "?": f"[{word}]"}.get(nargs, word)


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in _actions(parser) if action.help != argparse.SUPPRESS and action.dest != "help"]


def _options(parser: Parser) -> Iterator[str]:
    for action in _shown(parser):
        yield ".TP"
        if not action.option_strings:
            yield _quoted(action.metavar, action.nargs)
        else:
            value = ""
            if action.nargs != 0:
                value = " " + (_quoted(action.metavar, None) if action.choices is None else _choices(action.choices))
            yield ", ".join(rf"\fB{_escaped(name)}\fR" for name in action.option_strings) + value
        yield from _text((action.help or "") % {"default": action.default, "prog": parser.prog})


def _choices(choices: Any) -> str:
    return "{" + ",".join(rf"\fB{_escaped(str(choice))}\fR" for choice in choices) + "}"


def _rest(epilog: str) -> Iterator[str]:
    """What comes after the options: a line that ends with a colon and is not indented is a heading."""
    filled = True
    if epilog:
        yield ".PP"
    for line in epilog.splitlines():
        if re.fullmatch(r"\w.*:", line):
            yield from () if filled else (".fi",)
            yield from (f".SS {_escaped(line.removesuffix(':'))}", ".nf")
            filled = False
        else:
            yield _escaped(line) or ".sp"
    yield from () if filled else (".fi",)


def _text(text: str) -> list[str]:
    return [_escaped(line) or ".PP" for line in text.strip().splitlines()]


def _escaped(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
