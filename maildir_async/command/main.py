"""The command: delivers standard input or files, sweeps ``tmp/``, and is the daemon.

What it answers is its exit code, out of sysexits.h; the greatest, if there are several. 75 (EX_TEMPFAIL) stands for
every failure that may heal. 74 (EX_IOERR) is never used, though disks have I/O errors: Postfix returns the message to
its sender after 64, 65, 66, 73 and 74, and keeps it for another try after 75 (sys_exits.c there).
"""

import argparse
import asyncio
import contextlib
import errno
import importlib.util
import os
import signal
import stat
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, Any, Final, NoReturn

from maildir_async.command import importing
from maildir_async.disk.threads import Crew
from maildir_async.errors import MaildirError, QuotaExceededError
from maildir_async.format.content import NEWLINES
from maildir_async.format.delivered import Durability
from maildir_async.format.options import MessageOptions
from maildir_async.format.quota import quota_of
from maildir_async.mailbox.maildir import Maildir
from maildir_async.mailbox.upkeep import CLEAN_AGE
from maildir_async.receive.task import AppendTask

__all__ = ["main"]

#: What ends the command in good order. Those that whoever started it has it ignore (nohup) stay ignored.
SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: The subcommand that is a program of its own.
SERVE: Final = "serve"

#: The name of standard input among FILEs.
STDIN: Final = "-"

#: Opens files in a thread that a program may end without: to open a FIFO that nobody writes to takes for ever.
_opener: Final = Crew(1, "maildir-open")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments* (those of the process by default), and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _serve(arguments[1:]) if arguments[:1] == [SERVE] else _run(arguments)
    except OSError as exc:  # there are no descriptors, no memory for what is to be shared, or the like
        return _failed(os.EX_TEMPFAIL, str(exc))


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        work: Coroutine[Any, Any, int] = options.command(options)
    except (ValueError, OverflowError) as exc:
        parser.error(str(exc))
    return asyncio.run(_interruptible(work))


async def _interruptible(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(work)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return _failed(os.EX_TEMPFAIL, "interrupted")


def _deliver(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    level = Durability(options.durability)
    maildir = Maildir(
        options.maildir,
        create=options.create,
        durability=level,
        size_limit=options.size_limit,
        inherit_mode=options.inherit_mode,
        quota=quota_of(options.quota, is_permanent=options.quota_permanent),
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
    return _deliver_each(maildir, options.files or [STDIN], asked)


async def _deliver_each(maildir: Maildir, names: Sequence[str], asked: MessageOptions) -> int:
    worst = os.EX_OK
    for name in names:
        if (this := asyncio.current_task()) is not None and this.cancelling():
            raise asyncio.CancelledError  # by a signal that came too late for the message before
        worst = max(worst, await _deliver_one(maildir, name, asked))
    return worst


async def _deliver_one(maildir: Maildir, name: str, asked: MessageOptions) -> int:
    try:
        async with _opened(name) as source:
            task = AppendTask(maildir, source, **asked)
            try:
                delivered = await task
            except asyncio.CancelledError:
                if task.future.cancelled():
                    raise
                delivered = task.future.result()  # the signal came too late, and the sender should know
    except (MaildirError, OSError) as exc:
        if isinstance(exc, MaildirError) and not (exc.stage == "receive" and isinstance(exc.__cause__, OSError)):
            return _failed(_exit_code(exc), f"{name}: {exc}")
        # Whoever pipes a message to us has it still, and is not to throw it away because we could not read it.
        return _failed(os.EX_TEMPFAIL if name == STDIN else os.EX_NOINPUT, f"{name} cannot be read: {exc}")
    except Exception as exc:  # a defect, which must cost nobody his mail: Python's own exit code 1 would
        return _failed(os.EX_TEMPFAIL, f"{name}: {type(exc).__name__}: {exc}")
    for warning in delivered.warnings:
        _failed(os.EX_OK, f"{delivered.path}: {warning}")
    _write_line(sys.stdout, delivered.path)
    return os.EX_OK


@contextlib.asynccontextmanager
async def _opened(name: str) -> AsyncGenerator[Any, None]:
    """Give a source that a signal can interrupt: what may keep us waiting is read by the loop, not in a thread."""
    loop = asyncio.get_running_loop()
    with await loop.run_in_executor(_opener, _open, name) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty()):
            yield file
            return
        reader = asyncio.StreamReader()
        try:
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
            with contextlib.closing(transport):
                yield reader
        finally:
            if name == STDIN:  # which others may have open as well: a shell its terminal
                os.set_blocking(sys.stdin.fileno(), True)


def _open(name: str) -> IO[bytes]:
    if name != STDIN:
        return open(name, "rb", buffering=0)
    if sys.stdin is None:  # and so descriptor 0 may be anything by now
        raise OSError(errno.EBADF, "it is closed")
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _clean(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    age = timedelta(hours=options.older_than)
    if age < timedelta():
        raise ValueError(f"--older-than must not be negative: {options.older_than}")
    return _clean_tmp(Maildir(options.maildir), age)


async def _clean_tmp(maildir: Maildir, age: timedelta) -> int:
    try:
        for path in await maildir.clean_tmp(age):
            _write_line(sys.stdout, path)
    except MaildirError as exc:
        return _failed(_exit_code(exc), str(exc))
    return os.EX_OK


def _serve(arguments: Sequence[str]) -> int:
    parser = _Parser(prog=f"maildir-async {SERVE}", description="Be a mail server that delivers to maildirs.")
    # Imported here: who delivers a message by a pipe is not to wait for a mail server to be loaded.
    from maildir_async.daemon.config import ConfigError
    from maildir_async.daemon.options import add_options, settings_of

    add_options(parser)
    options = parser.parse_args(arguments)
    if (missing := _missing("aiosmtpd", "smtp")) is not None:
        return missing
    is_checked = "check-config" in options
    try:
        settings = settings_of(options)
    except OSError as exc:
        return _failed(os.EX_CONFIG if is_checked else os.EX_NOINPUT, f"{exc.filename} cannot be read: {exc.strerror}")
    except ValueError as exc:
        if isinstance(exc, ConfigError) or is_checked:
            return _failed(os.EX_CONFIG, str(exc))
        parser.error(str(exc))
    if settings.metrics is not None and (missing := _missing("prometheus_client", "metrics")) is not None:
        return missing
    from maildir_async.daemon.start import DaemonError, serve

    try:
        return serve(settings, lambda: settings_of(options))
    except ValueError as exc:
        parser.error(str(exc))
    except DaemonError as exc:
        return _failed(exc.code, str(exc))


def _missing(module: str, extra: str) -> int | None:
    """Return the exit code, after a line that says why, if *module*, which *extra* brings, is not installed."""
    if importlib.util.find_spec(module) is not None:
        return None
    return _failed(os.EX_UNAVAILABLE, f"{SERVE} needs {module}: pip install 'maildir-async[{extra}]'")


def _exit_code(exc: MaildirError) -> int:
    # Also where there is no maildir, be it a file or a link that leads nowhere: the store may be away for a while, and
    # Postfix's pipe(8) and local(8) return the message to its sender after 73.
    if exc.temporary:
        return os.EX_TEMPFAIL
    if isinstance(exc, QuotaExceededError):
        return os.EX_NOPERM  # as Courier's deliverquota does
    return os.EX_CANTCREAT if exc.stage == "create" else os.EX_DATAERR


def _failed(code: int, text: str) -> int:
    _write_line(sys.stderr, "maildir-async: " + " ".join(text.splitlines()))
    return code


def _write_line(stream: Any, line: str) -> None:
    """Write a line. If that fails, it is lost: a message that has been delivered must not be sent again for it."""
    if stream is not None:
        with contextlib.suppress(OSError):
            os.write(stream.fileno(), os.fsencode(line) + b"\n")


def _time(text: str) -> datetime:
    """Return a time as ISO 8601 has it, or in seconds since the epoch; local time where no zone is said."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.fromtimestamp(float(text), UTC)
        except (ValueError, OverflowError, OSError):
            raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2024-05-01T12:00+02:00") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(os.EX_USAGE, f"{self.prog}: {message} (--help tells more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="maildir-async", description="Deliver mail into a Maildir, durably.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    deliver = commands.add_parser("deliver", help="store standard input, or files, and print the path of each message")
    deliver.set_defaults(command=_deliver)
    deliver.add_argument("maildir", metavar="MAILDIR")
    deliver.add_argument("files", metavar="FILE", nargs="*", help="a message each; - is standard input, the default")
    deliver.add_argument("--folder", metavar="NAME", help="a Maildir++ folder, such as Archive/2024")
    deliver.add_argument("--keyword", metavar="NAME", action="append", default=[], help="an IMAP keyword; repeatable")
    deliver.add_argument("--received-at", metavar="TIME", type=_time, help="such as 2024-05-01T12:00+02:00")
    deliver.add_argument("--prefix", metavar="LINE", action="append", default=[], help="a header line; repeatable")
    deliver.add_argument("--strip-from-line", action="store_true", help="drop the line an mbox has before a message")
    deliver.add_argument("--inherit-mode", action="store_true", help="owner, group, mode from the maildir's directory")
    deliver.add_argument("--quota", metavar="LIMITS", help="such as 2G,10000C; file: what maildirsize says")
    deliver.add_argument("--quota-permanent", action="store_true", help="exit with 77 if it is full, and not with 75")
    deliver.add_argument("--flags", default="", help="letters out of DFPRST")
    deliver.add_argument("--durability", default="full", choices=[level.value for level in Durability])
    deliver.add_argument("--newline", default="keep", choices=NEWLINES, help="how to store line ends")
    deliver.add_argument("--no-create", dest="create", action="store_false", help="fail if there is no maildir")
    deliver.add_argument("--size-limit", metavar="BYTES", type=int, help="refuse a larger message")

    importing.add_parser(commands)
    commands.add_parser(SERVE, help="be an SMTP or LMTP daemon that delivers to maildirs: see serve --help")

    clean = commands.add_parser("clean", help="remove what killed deliveries have left in tmp/, and print its paths")
    clean.set_defaults(command=_clean)
    clean.add_argument("maildir", metavar="MAILDIR")
    default = CLEAN_AGE / timedelta(hours=1)
    clean.add_argument("--older-than", metavar="HOURS", type=float, default=default, help="36 by default")
    return parser
