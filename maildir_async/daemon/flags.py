"""The options of ``serve`` as a table: what each is called, what it means, and how its value is read."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from maildir_async.daemon import values
from maildir_async.format.delivered import Durability
from maildir_async.format.options import DETAIL_FOLDERS

__all__ = ["BY_NAME", "OPTIONS", "Option", "add_options", "items_of"]

#: Bytes of a message, by default: twice what large providers let through. Postfix, before us, has its own limit.
SIZE_LIMIT: Final = 50 * 2**20

#: Connections at once, by default. Postfix opens 20 to a destination unless told otherwise, of each of its instances.
MAX_CONNECTIONS: Final = 1000

#: Messages at once, by default. Each holds up to 1 MiB.
MAX_IN_FLIGHT: Final = 256

#: Seconds that a message waits for a place among those at once before the client is told to come again, by default.
#: Arbitrary: clients wait two minutes for the answer to DATA (RFC 5321 §4.5.3.2.4).
BUSY_WAIT_S: Final = 5.0

#: Refused commands of a session, by default: Postfix's smtpd_hard_error_limit.
MAX_ERRORS: Final = 20

#: Seconds for a command, and of silence, after which a client is sent away: RFC 5321 §4.5.3.2.7.
TIMEOUT_S: Final = 300.0

#: Seconds for a message, by default. Arbitrary: 50 MiB come in them at 15 kB/s.
MESSAGE_TIMEOUT_S: Final = 3600.0

#: Seconds for messages under way when the daemon is to end. systemd kills after 90, unless told otherwise.
DRAIN_TIMEOUT_S: Final = 30.0

LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: of the flag, without ``--``, and of the key in the file.
        help: for ``--help``.
        read: makes a value of a text; ValueError says what is wrong. None for a switch, which is on or off.
        default: the value if nothing is said.
        metavar: what stands for the value in ``--help``.
        field: of `Settings` or `ListenerSettings`; by default *name* with underscores.
        is_list: whether there may be several values, separated by commas, or in a list in the file.
        of_listener: whether each listener may have its own.
        is_off: whether it is a switch that switches off.
        only_flag: whether it makes no sense in the file.

    """

    name: str
    help: str
    read: values.Read | None = None
    default: Any = None
    metavar: str | None = None
    field: str = ""
    is_list: bool = False
    of_listener: bool = False
    is_off: bool = False
    only_flag: bool = False

    @property
    def flag(self) -> str:
        """The flag."""
        return f"--{self.name}"

    @property
    def dest(self) -> str:
        """What it is called in Python."""
        return self.field or self.name.replace("-", "_")

    def value_of(self, given: object) -> Any:
        """Return the value that *given*, from file or command line, stands for. ValueError says what is wrong."""
        if self.read is None:
            if not isinstance(given, bool):
                raise ValueError(f"true or false is wanted, not {given!r}")
            return given is not self.is_off
        if self.is_list:
            parts = [part.strip() for text in items_of(given) for part in _text(text).split(",")]
            return tuple(self.read(part) for part in parts if part)
        return self.read(_text(given))


def items_of(given: object) -> list[object]:
    """Return *given*, or what it is a list of."""
    return cast("list[object]", given) if isinstance(given, list) else [given]


def _text(given: object) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return str(given)
    raise ValueError(f"a text or a number is wanted, not {given!r}")


OPTIONS: Final = (
    Option(
        "lmtp", "speak LMTP, as behind Postfix: each recipient has a reply of its own", default=False, of_listener=True
    ),
    Option("smtp", "speak SMTP: one reply for all recipients", default=False, of_listener=True),
    Option("layout", "where maildirs are, such as /var/mail/{domain}/{user}/Maildir", values.path, metavar="TEMPLATE"),
    Option("map", "each address and where its mail goes; alone, or before --layout", values.path, metavar="FILE"),
    Option("resolver", "code of yours that finds the maildirs", values.any_text, metavar="MODULE:CALLABLE"),
    Option("users", "with --layout: the addresses there are, one a line", values.path, metavar="FILE"),
    Option("create", "with --layout alone: every address is a user, with a maildir or not yet", default=False),
    Option("domains", "take mail for these domains only", values.any_text, metavar="NAME,...", is_list=True),
    Option("recipient-delimiter", "between user and detail; '+' by default, '': none", values.any_text, "+", "CHARS"),
    Option(
        "detail-folder",
        "the folder that a detail names: existing, or create",
        values.one_of(*DETAIL_FOLDERS),
        None,
        "HOW",
    ),
    Option("junk-header", "such as 'X-Spam-Flag: YES': what has it goes to Junk", values.junk_header, None, "FIELD"),
    Option("postmaster", "who gets mail to postmaster, if nobody else is it", values.any_text, metavar="ADDRESS"),
    Option("require-mount", "take mail only while a file system is mounted there", values.path, metavar="DIR"),
    Option("inherit-mode", "owner, group and mode of mail from the maildir's directory", default=False),
    Option("quota", "what each maildir may hold: 2G,10000C; file: what maildirsize says", values.quota, None, "LIMITS"),
    Option("quota-permanent", "552 5.2.2 for what is past the quota, not 452 4.2.2", default=False),
    Option(
        "durability",
        "what 250 means is stored: full by default; file, none",
        values.durability,
        Durability.FULL,
        "LEVEL",
    ),
    Option("size-limit", "refuse a larger message; 50M by default, 0: no limit", values.size, SIZE_LIMIT, "SIZE"),
    Option("line-length-limit", "refuse a longer line; none by default", partial(values.size, least=3), None, "SIZE"),
    Option("max-connections", f"connections at once; {MAX_CONNECTIONS} by default", values.count, MAX_CONNECTIONS, "N"),
    Option(
        "max-connections-per-address", "of one IPv4 address or IPv6 /64; no limit by default", values.count, None, "N"
    ),
    Option("max-in-flight", f"messages at once; {MAX_IN_FLIGHT} by default", values.count, MAX_IN_FLIGHT, "N"),
    Option(
        "busy-wait",
        f"wait so long for a place among them; {BUSY_WAIT_S:g} by default",
        values.seconds,
        BUSY_WAIT_S,
        "SECONDS",
        "busy_wait_s",
    ),
    Option("max-errors", f"refused commands of a session; {MAX_ERRORS} by default", values.count, MAX_ERRORS, "N"),
    Option("accept-bare-lf", "let a command line end with LF alone, as RFC 5321 forbids", default=False),
    Option(
        "timeout",
        f"wait so long for a command, or in silence; {TIMEOUT_S:g} by default",
        values.some_seconds,
        TIMEOUT_S,
        "SECONDS",
        "timeout_s",
    ),
    Option(
        "message-timeout",
        f"take so long over a message; {MESSAGE_TIMEOUT_S:g} by default",
        values.some_seconds,
        MESSAGE_TIMEOUT_S,
        "SECONDS",
        "message_timeout_s",
    ),
    Option(
        "drain-timeout",
        f"let what is under way take so long at the end; {DRAIN_TIMEOUT_S:g} by default",
        values.seconds,
        DRAIN_TIMEOUT_S,
        "SECONDS",
        "drain_timeout_s",
    ),
    Option("workers", "processes that share the sockets; 1 by default", values.count, 1, "N"),
    Option("helper-process", "have another process beside each worker write to the disk", default=False),
    Option("user", "drop root's privileges for this user's, once it listens", values.any_text, metavar="NAME"),
    Option("group", "with --user: another group than the user's own", values.any_text, metavar="NAME"),
    Option("allow-root", "serve with root's privileges: each maildir's owner owns what is delivered", default=False),
    Option("tls-cert", "a certificate with its chain, in PEM: STARTTLS is offered", values.path, metavar="FILE"),
    Option("tls-key", "the certificate's key, in PEM; by default it is in the same file", values.path, metavar="FILE"),
    Option("require-tls", "take mail only after STARTTLS", default=False, of_listener=True),
    Option("implicit-tls", "begin each connection with TLS", default=False, of_listener=True),
    Option(
        "proxy-protocol",
        "from there a PROXY header comes first; unix: from Unix sockets",
        values.network,
        (),
        "NETWORK,...",
        is_list=True,
        of_listener=True,
    ),
    Option(
        "trusted-peers",
        "take XCLIENT and XFORWARD from there; unix: from Unix sockets",
        values.network,
        (),
        "NETWORK,...",
        is_list=True,
        of_listener=True,
    ),
    Option(
        "socket-mode",
        "permission bits of a Unix socket; 0660 by default",
        values.mode,
        0o660,
        "OCTAL",
        of_listener=True,
    ),
    Option("pidfile", "a file to hold the process id while the daemon runs", values.path, metavar="PATH"),
    Option(
        "metrics",
        "show metrics and health at unix:PATH, or a loopback HOST:PORT",
        values.metrics_address,
        None,
        "ADDRESS",
    ),
    Option(
        "metrics-mode", "permission bits of a Unix socket for metrics; 0660 by default", values.mode, 0o660, "OCTAL"
    ),
    Option(
        "log-level", "what is logged: info by default; debug, warning, error", values.one_of(*LEVELS), "info", "LEVEL"
    ),
    Option(
        "hostname", "the name in the greeting and in Received; the system's by default", values.hostname, None, "NAME"
    ),
    Option("ident", "what the greeting says after the host name", values.ident, "ESMTP", "TEXT"),
    Option("newline", "how to store line ends: lf, or keep", values.one_of("lf", "keep"), "lf", "POLICY"),
    Option("no-return-path", "write no Return-Path header", default=True, field="return_path", is_off=True),
    Option("no-delivered-to", "write no Delivered-To header", default=True, field="delivered_to", is_off=True),
    Option("original-to", "write an X-Original-To header", default=False),
    Option("no-received", "write no Received header", default=True, field="received", is_off=True),
    Option("per-recipient-headers", "a copy, with these headers, for each of several users", default=False),
    Option(
        "config",
        "read options there; those of the command line win",
        values.path,
        None,
        "FILE",
        only_flag=True,
    ),
    Option("check-config", "say what is wrong, and serve nothing", default=False, only_flag=True),
)

#: The headings of ``--help``, each before the option that it is at.
HEADINGS: Final = {
    "lmtp": "what is spoken",
    "layout": "who has a maildir, and where",
    "inherit-mode": "how mail is stored",
    "size-limit": "limits",
    "workers": "processes and privileges",
    "tls-cert": "TLS and who the client is",
    "pidfile": "operation",
    "hostname": "what is said, and written in front of a message",
    "config": "configuration",
}

BY_NAME: Final[Mapping[str, Option]] = {option.name: option for option in OPTIONS}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Have *parser* know the options. What is not said is not in its namespace."""
    text = "unix:PATH, HOST:PORT, [IPv6]:PORT or systemd:NAME; not needed under a .socket"
    parser.add_argument("address", metavar="ADDRESS", nargs="*", help=text)
    group: argparse._ArgumentGroup | argparse.ArgumentParser = parser  # pyright: ignore[reportPrivateUsage]
    for option in OPTIONS:
        if (heading := HEADINGS.get(option.name)) is not None:
            group = parser.add_argument_group(heading)
        add = partial(group.add_argument, default=argparse.SUPPRESS)
        if option.read is None:
            add(option.flag, dest=option.name, action="store_true", help=option.help)
        else:
            kind = "append" if option.is_list else "store"
            add(option.flag, dest=option.name, action=kind, metavar=option.metavar, help=option.help)
