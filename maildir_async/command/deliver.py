"""``deliver``: stores standard input, or files."""

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from typing import Any

from maildir_async.command.answers import Parents, exit_code, failed, told
from maildir_async.command.outcomes import Outcome, Outcomes
from maildir_async.command.parser import Commands, add_command, moment, size
from maildir_async.command.progress import progress_of
from maildir_async.command.several import deliver_each
from maildir_async.command.sources import STDIN, opened
from maildir_async.errors import MaildirError
from maildir_async.format.content import NEWLINES
from maildir_async.format.delivered import Durability
from maildir_async.format.options import MessageOptions
from maildir_async.format.quota import quota_of
from maildir_async.mailbox.maildir import Maildir
from maildir_async.receive.task import AppendTask

__all__ = ["add_parser"]


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "deliver",
        _deliver,
        summary="store standard input, or files, and print the path of each message",
        description="""
            Store a message in a maildir, which is made if there is none, and print its path. It is not printed before
            the message is durable. The message is standard input, or each FILE is one: several are delivered at once,
            their paths are printed in their order, and a line on standard error sums up. If directories above the
            maildir have been made, a line says so: --no-create makes none, where a path may be mistyped.

            SIGHUP, SIGINT and SIGTERM abort what is being received, and leave nothing of it. What is visible already
            is delivered, and told.
            """,
        epilog="""
            A SIZE is in bytes, or has a unit: 50M, 1.5G, 64KiB. Units are powers of 1024.

            examples:
              maildir-async deliver ~/Maildir < message
              maildir-async deliver ~/Maildir --folder Archive --flags S old/*.eml
              in Postfix's master.cf, as a transport of pipe(8):
                maildir unix - n n - - pipe flags=DRXhu user=vmail
                  argv=/usr/local/bin/maildir-async deliver --size-limit 50M
                  /var/mail/${domain}/${user}/Maildir
              in a .forward file:
                "|/usr/local/bin/maildir-async deliver $HOME/Maildir"

            exit codes; with several FILEs the greatest counts:
              0   all delivered
              64  the command line is wrong
              65  the message is too large
              66  a FILE cannot be read
              73  the path is too long for a maildir
              75  it may work later, and nothing is lost by trying again: the disk
                  is full, MAILDIR is no maildir and cannot be made one, the
                  maildir is over its quota, a signal came
              77  the maildir is over its quota, with --quota-permanent
            """,
    )
    parser.add_argument(
        "maildir",
        metavar="MAILDIR",
        help="the directory of tmp, new and cur; made if there is none, with those above it",
    )
    # argparse says that FILE is required unless there is a default.
    parser.add_argument(
        "files", metavar="FILE", nargs="*", default=[], help="a message each; - is standard input, the default"
    )

    where = parser.add_argument_group("where it goes")
    where.add_argument("--folder", metavar="NAME", help="a Maildir++ folder, such as Archive/2024; made if missing")
    text = "letters out of DFPRST (draft, flagged, passed, replied, seen, trashed). With any, it goes to cur/, not new/"
    where.add_argument("--flags", metavar="LETTERS", default="", help=text)
    text = "an IMAP keyword, such as $Junk; repeatable. With any, it goes to cur/; dovecot-keywords has its letter"
    where.add_argument("--keyword", metavar="NAME", action="append", default=[], help=text)
    where.add_argument(
        "--no-create", dest="create", action="store_false", help="exit with 75 if there is no maildir, and make none"
    )
    text = "have owner, group and mode of MAILDIR's directory, as Dovecot does. Otherwise a message's mode is 0600"
    where.add_argument("--inherit-mode", action="store_true", help=text)

    content = parser.add_argument_group("what is stored")
    text = "when it was received, which is the file's mtime: such as 2024-05-01T12:00+02:00, or seconds since 1970"
    content.add_argument("--received-at", metavar="TIME", type=moment, help=text)
    text = "a header line to store before the message, such as 'Delivered-To: me@example.com'; repeatable"
    content.add_argument("--prefix", metavar="LINE", action="append", default=[], help=text)
    text = "drop the line beginning with 'From ' that an mbox has before a message"
    content.add_argument("--strip-from-line", action="store_true", help=text)
    text = "line ends: keep stores them as they are (the default), lf and crlf make all of them so"
    content.add_argument("--newline", default="keep", choices=NEWLINES, help=text)

    limits = parser.add_argument_group("limits and durability")
    text = "exit with 65 if the message is larger, which leaves nothing; such as 50M"
    limits.add_argument("--size-limit", metavar="SIZE", type=size, help=text)
    text = "what the maildir and its folders may hold, such as 2G,10000C (bytes, messages); file: what maildirsize says"
    limits.add_argument("--quota", metavar="LIMITS", help=text)
    limits.add_argument("--quota-permanent", action="store_true", help="exit with 77 if it is full, and not with 75")
    text = (
        "what a message survives: full, a power cut (the default); file, a power cut half a minute later; none, the end"
        " of this process"
    )
    limits.add_argument("--durability", default="full", choices=[level.value for level in Durability], help=text)


def _deliver(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    level = Durability(options.durability)
    try:
        quota = quota_of(options.quota, is_permanent=options.quota_permanent)
    except ValueError as exc:
        raise ValueError(f"quota: {exc}") from None
    maildir = Maildir(
        options.maildir,
        create=options.create,
        durability=level,
        size_limit=options.size_limit,
        inherit_mode=options.inherit_mode,
        quota=quota,
    )
    asked: MessageOptions = {
        "folder": options.folder,
        "flags": options.flags,
        "keywords": options.keyword,
        "received_at": options.received_at,
        "prefix": b"".join(line.encode(errors="surrogateescape") + b"\n" for line in options.prefix),
        "newline": options.newline,
        "strip_from_line": options.strip_from_line,
    }
    maildir.open_append(**asked)  # raises what is wrong with them
    return _deliver_files(maildir, options.files or [STDIN], asked, Parents(maildir.path))


async def _deliver_files(maildir: Maildir, names: list[str], asked: MessageOptions, parents: Parents) -> int:
    async def deliver(name: str, source: Any) -> Outcome:
        return await _deliver_one(maildir, name, source, asked)

    if len(names) == 1:
        outcomes = Outcomes()
        outcomes.add(0, await deliver(names[0], None))
        parents.tell()
        return outcomes.worst
    begun = time.monotonic()
    with progress_of(len(names)) as progress:
        outcomes = Outcomes(progress)
        try:
            await deliver_each(names, deliver, outcomes)
        except asyncio.CancelledError:
            if outcomes.settled < len(names):
                raise  # or else the signal came too late for all of them
        finally:
            outcomes.tell_rest()
            progress.end()
            parents.tell()
            failed(os.EX_OK, outcomes.summary(len(names), time.monotonic() - begun))
    return outcomes.worst


async def _deliver_one(maildir: Maildir, name: str, source: Any, asked: MessageOptions) -> Outcome:
    """Deliver the FILE *name*.

    *source* is all of it, the open file, why it could not be read, or None, if nobody has looked yet. What goes wrong
    is told by the outcome. A cancellation is raised unless the message has been delivered.
    """
    try:
        if isinstance(source, OSError):
            raise source
        async with opened(name) if source is None else contextlib.nullcontext(source) as message:
            task = AppendTask(maildir, message, **asked)
            try:
                delivered = await task
            except asyncio.CancelledError:
                if task.future.cancelled():
                    raise
                delivered = task.future.result()  # the signal came too late, and the sender should know
    except (MaildirError, OSError) as exc:
        if isinstance(exc, MaildirError) and not (exc.stage == "receive" and isinstance(exc.__cause__, OSError)):
            return Outcome(exit_code(exc), [f"{name}: {told(exc)}"])
        # Whoever pipes a message to us has it still, and is not to throw it away because we could not read it.
        return Outcome(os.EX_TEMPFAIL if name == STDIN else os.EX_NOINPUT, [f"{name} cannot be read: {_why(exc)}"])
    except Exception as exc:  # a defect, which must cost nobody his mail: Python's own exit code 1 would
        return Outcome(os.EX_TEMPFAIL, [f"{name}: {type(exc).__name__}: {exc}"])
    warnings = [f"{delivered.path}: {warning}" for warning in delivered.warnings]
    return Outcome(os.EX_OK, warnings, delivered.path, delivered.size)


def _why(exc: MaildirError | OSError) -> str:
    """Return why a FILE cannot be read, without its name, which the line has already."""
    cause = exc.__cause__ if isinstance(exc, MaildirError) else exc
    if isinstance(cause, IsADirectoryError):
        return f"{cause.strerror} (MAILDIR comes first, then each FILE)"
    return (isinstance(cause, OSError) and cause.strerror) or str(exc)
