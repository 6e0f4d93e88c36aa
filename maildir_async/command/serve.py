"""``serve``: the daemon."""

import argparse
import importlib.util
import os

from maildir_async.command.answers import failed
from maildir_async.command.parser import Commands, add_command
from maildir_async.daemon.config import ConfigError
from maildir_async.daemon.options import add_options, settings_of

__all__ = ["add_parser"]


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "serve",
        _serve,
        summary="be an SMTP or LMTP daemon that delivers to maildirs",
        description="""
            Be an SMTP or LMTP server that delivers to maildirs, and answers 250 when a message is durable. It relays
            nothing. Needs the extra maildir-async[smtp]. docs/serve.md tells more about each option.
            """,
        epilog="""
            A SIZE is in bytes, or has a unit: 50M, 1.5G, 64KiB. Units are powers of 1024. In a configuration file,
            which is TOML, options are keys, without their dashes.

            examples:
              behind Postfix, with a list of users:
                maildir-async serve --lmtp unix:/run/maildir-async/lmtp \\
                    --layout '/var/mail/{domain}/{user}/Maildir' --users users
              all that is sent to a port of one's own, to look at it:
                maildir-async serve --smtp 127.0.0.1:2525 --layout "$PWD/{user}" --create
              see whether a configuration is right, and serve by it:
                maildir-async serve --config serve.toml --check-config
                maildir-async serve --config serve.toml

            signals:
              SIGTERM, SIGINT  end when messages under way are stored
              SIGHUP           read users, map and certificate again
              SIGUSR1          write a line of statistics

            exit codes:
              0   it has ended as it was told to; --check-config has found no mistake
              64  the command line is wrong
              66  the users or the map cannot be read
              69  a package that it needs is not installed
              71  root's privileges cannot be dropped
              73  it cannot listen there, or cannot write its pidfile
              75  the address is in use, or a worker had to be killed at the end
              77  it would have root's privileges, and nobody has asked for that
              78  there is a mistake in configuration, users, map or certificates
            """,
    )
    parser.usage = "%(prog)s [options] [ADDRESS ...]"  # there are sixty of them
    add_options(parser)


def _serve(options: argparse.Namespace) -> int:
    if (missing := _missing("aiosmtpd", "smtp")) is not None:
        return missing
    is_checked = "check-config" in options
    try:
        settings = settings_of(options)
    except OSError as exc:
        return failed(os.EX_CONFIG if is_checked else os.EX_NOINPUT, f"{exc.filename} cannot be read: {exc.strerror}")
    except ValueError as exc:
        if isinstance(exc, ConfigError) or is_checked:
            return failed(os.EX_CONFIG, str(exc))
        raise
    if settings.metrics is not None and (missing := _missing("prometheus_client", "metrics")) is not None:
        return missing
    from maildir_async.daemon.start import DaemonError, serve  # needs aiosmtpd, which --help does not

    try:
        return serve(settings, lambda: settings_of(options))
    except DaemonError as exc:
        return failed(exc.code, str(exc))


def _missing(module: str, extra: str) -> int | None:
    """Return the exit code, after a line that says why, if *module*, which *extra* brings, is not installed."""
    if importlib.util.find_spec(module) is not None:
        return None
    return failed(os.EX_UNAVAILABLE, f"serve needs {module}: pip install 'maildir-async[{extra}]'")
