"""The options of ``serve``: one table, from which the command line, the configuration file and `Settings` are made."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, TypeVar, cast

from maildir_async.daemon import values
from maildir_async.daemon.config import Config, ConfigError, Source, placed, read_config
from maildir_async.daemon.settings import ListenerSettings, Settings
from maildir_async.daemon.sockets import parse_listening
from maildir_async.format.delivered import Durability
from maildir_async.format.options import DETAIL_FOLDERS

__all__ = ["OPTIONS", "Option", "add_options", "settings_of"]

T = TypeVar("T")

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
            parts = [part.strip() for text in _items(given) for part in _text(text).split(",")]
            return tuple(self.read(part) for part in parts if part)
        return self.read(_text(given))


def _items(given: object) -> list[object]:
    return cast("list[object]", given) if isinstance(given, list) else [given]


def _text(given: object) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return str(given)
    raise ValueError(f"a text or a number is wanted, not {given!r}")


OPTIONS: Final = (
    Option("lmtp", "speak LMTP: behind Postfix", default=False, of_listener=True),
    Option("smtp", "speak SMTP", default=False, of_listener=True),
    Option("layout", "such as /var/mail/{domain}/{user}/Maildir", values.path, metavar="TEMPLATE"),
    Option("map", "each address and where its mail goes; alone, or before --layout", values.path, metavar="FILE"),
    Option("resolver", "code of yours that finds the maildirs", values.any_text, metavar="MODULE:CALLABLE"),
    Option("users", "with --layout: the addresses there are, one a line", values.path, metavar="FILE"),
    Option("create", "with --layout alone: every address is a user, with a maildir or not yet", default=False),
    Option("domains", "take mail for these domains only", values.any_text, metavar="NAME,...", is_list=True),
    Option("recipient-delimiter", "between user and detail; '+' by default, '': none", values.any_text, "+", "CHARS"),
    Option(
        "detail-folder",
        "folder that a detail names: existing, or create",
        values.one_of(*DETAIL_FOLDERS),
        None,
        "HOW",
    ),
    Option("junk-header", "such as 'X-Spam-Flag: YES': what has it goes to Junk", values.junk_header, None, "FIELD"),
    Option("postmaster", "who gets mail to postmaster, if nobody else is it", values.any_text, metavar="ADDRESS"),
    Option("require-mount", "take mail only while a file system is mounted there", values.path, metavar="DIR"),
    Option("inherit-mode", "owner, group and mode of mail from the maildir's directory", default=False),
    Option("quota", "of each maildir: 2G,10000C; file: what its maildirsize says", values.quota, None, "LIMITS"),
    Option("quota-permanent", "552 5.2.2 for what is past the quota, not 452 4.2.2", default=False),
    Option("durability", "full by default; file, none", values.durability, Durability.FULL, "LEVEL"),
    Option("size-limit", "refuse a larger message; 50M by default, 0: no limit", values.size, SIZE_LIMIT, "BYTES"),
    Option("line-length-limit", "refuse a longer line; none by default", partial(values.size, least=3), None, "BYTES"),
    Option("max-connections", f"at once; {MAX_CONNECTIONS}", values.count, MAX_CONNECTIONS, "N"),
    Option("max-connections-per-address", "of an IPv4 address or an IPv6 /64; no limit", values.count, None, "N"),
    Option("max-in-flight", f"messages at once; {MAX_IN_FLIGHT}", values.count, MAX_IN_FLIGHT, "N"),
    Option("busy-wait", f"for a place in flight; {BUSY_WAIT_S:g}", values.seconds, BUSY_WAIT_S, "S", "busy_wait_s"),
    Option("max-errors", f"refused commands of a session; {MAX_ERRORS}", values.count, MAX_ERRORS, "N"),
    Option("accept-bare-lf", "let a command line end with LF alone, as RFC 5321 forbids", default=False),
    Option("timeout", f"for a command, or silence; {TIMEOUT_S:g}", values.some_seconds, TIMEOUT_S, "S", "timeout_s"),
    Option(
        "message-timeout",
        f"for a message; {MESSAGE_TIMEOUT_S:g}",
        values.some_seconds,
        MESSAGE_TIMEOUT_S,
        "S",
        "message_timeout_s",
    ),
    Option("drain-timeout", f"to finish; {DRAIN_TIMEOUT_S:g}", values.seconds, DRAIN_TIMEOUT_S, "S", "drain_timeout_s"),
    Option("workers", "processes; 1 by default", values.count, 1, "N"),
    Option("helper-process", "have another process beside each worker write to the disk", default=False),
    Option("user", "drop root's privileges for this user's, once it listens", values.any_text, metavar="NAME"),
    Option("group", "with --user: another group than the user's own", values.any_text, metavar="NAME"),
    Option("allow-root", "serve with root's privileges: each maildir's owner owns what is delivered", default=False),
    Option("tls-cert", "certificate with its chain, in PEM: STARTTLS is offered", values.path, metavar="FILE"),
    Option("tls-key", "its key, in PEM; by default it is in the same file", values.path, metavar="FILE"),
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
    Option("socket-mode", "of a Unix socket; 0660 by default", values.mode, 0o660, "OCTAL", of_listener=True),
    Option("pidfile", "holds the process id while the daemon runs", values.path, metavar="PATH"),
    Option(
        "metrics",
        "metrics and health at unix:PATH, or a loopback HOST:PORT",
        values.metrics_address,
        None,
        "ADDRESS",
    ),
    Option("metrics-mode", "of a Unix socket for metrics; 0660 by default", values.mode, 0o660, "OCTAL"),
    Option("log-level", "info by default; debug, warning, error", values.one_of(*LEVELS), "info", "LEVEL"),
    Option("hostname", "in the greeting and in Received; the system's by default", values.hostname, None, "NAME"),
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

BY_NAME: Final[Mapping[str, Option]] = {option.name: option for option in OPTIONS}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Have *parser* know the options. What is not said is not in its namespace."""
    add = partial(parser.add_argument, default=argparse.SUPPRESS)
    text = "unix:PATH, HOST:PORT, [IPv6]:PORT or systemd:NAME; not needed under a .socket"
    parser.add_argument("address", metavar="ADDRESS", nargs="*", help=text)
    for option in OPTIONS:
        if option.read is None:
            add(option.flag, dest=option.name, action="store_true", help=option.help)
        else:
            kind = "append" if option.is_list else "store"
            add(option.flag, dest=option.name, action=kind, metavar=option.metavar, help=option.help)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what *options*, and the file that they name, come to.

    ValueError if they make no sense; `ConfigError` if it is the file that does not. OSError if that cannot be read. The
    system is asked for its name if none is said, which may ask the DNS. Needs aiosmtpd.
    """
    from maildir_async.smtp.hostname import own_name

    said = vars(options)
    path = said.get("config")
    config = read_config(path) if path is not None else Config()
    flags = Source({name: value for name, value in said.items() if name in BY_NAME})
    top = config.top.without("address")
    found = _values([flags, top])
    listeners = _listeners(said.get("address") or [], flags, top, config)
    common = {option.dest: found[option.name] for option in OPTIONS if not option.of_listener}
    common |= {"hostname": found["hostname"] or own_name(), "listeners": listeners}
    settings = Settings(**{field.name: common[field.name] for field in fields(Settings)})
    try:
        _check(settings)
    except ValueError as exc:
        raise (ValueError if path is None else ConfigError)(placed(path, str(exc))) from None
    return settings


def _values(sources: Sequence[Source]) -> dict[str, Any]:
    """Return the value of each option by its name: that of the first of *sources* which has one, or its default."""
    found: dict[str, Any] = {}
    for source in sources:
        for name, given in source.said.items():
            option = BY_NAME.get(name)
            if option is None or (option.only_flag and source.path is not None):
                raise source.mistake(name, "there is no such option")
            try:
                value = option.value_of(given)
            except ValueError as exc:
                raise source.mistake(name, exc) from None
            found.setdefault(name, value)
    return {option.name: found.get(option.name, option.default) for option in OPTIONS}


def _listeners(addresses: Sequence[str], flags: Source, top: Source, config: Config) -> tuple[ListenerSettings, ...]:
    """Return where mail comes in: at the command line's addresses if it has some, or else at the file's."""
    if addresses:
        return tuple(_listener(text, [flags, top], None) for text in addresses)
    found: list[ListenerSettings] = []
    for text in _items(config.top.said.get("address", [])):
        if not isinstance(text, str):
            raise config.top.mistake("address", f"an address, or a list of some, is wanted, not {text!r}")
        found.append(_listener(text, [flags, top], config.top))
    if not config.listeners and not found:
        return (_listener(None, [flags, top], None),)
    for source in config.listeners:
        said = dict(source.said)
        address = said.pop("address", None)
        own = source.without("address")
        if strange := sorted(name for name in said if not (name in BY_NAME and BY_NAME[name].of_listener)):
            raise source.mistake(strange[0], "a listener has no such option")
        if not isinstance(address, str):
            raise source.mistake("address", f"an address is wanted, not {address!r}")
        found.append(_listener(address, [flags, own, top], source))
    return tuple(found)


def _listener(text: str | None, sources: Sequence[Source], source: Source | None) -> ListenerSettings:
    found = _values(sources)
    try:
        address = None if text is None else parse_listening(text)
    except ValueError as exc:
        raise exc if source is None else source.mistake("address", exc) from None
    own: dict[str, Any] = {option.dest: found[option.name] for option in OPTIONS if option.of_listener}
    own["lmtp"] = _speaks_lmtp(text, sources)
    del own["smtp"]
    return ListenerSettings(address=address, **own)


def _speaks_lmtp(text: str | None, sources: Sequence[Source]) -> bool:
    """Return whether it is LMTP, and not SMTP, in the first of *sources* that says one of the two."""
    for source in sources:
        lmtp, smtp = source.said.get("lmtp") is True, source.said.get("smtp") is True
        if lmtp and smtp:
            raise source.mistake("smtp", "it goes without --lmtp")
        if lmtp or smtp:
            return lmtp
    raise ValueError(f"one of --lmtp and --smtp is wanted{f' for {text}' if text else ''}")


def _check(settings: Settings) -> None:
    """Raise ValueError for what does not go together."""
    if settings.users is not None and settings.layout is None:
        raise ValueError("--users goes with --layout")
    if settings.layout is None and settings.resolver is None and settings.map is None:
        raise ValueError("one of --layout, --map and --resolver is wanted")
    if settings.resolver is not None and (settings.map or settings.layout) is not None:
        raise ValueError("--resolver goes alone, and --map with --layout, or alone")
    if settings.group is not None and settings.user is None:
        raise ValueError("--group goes with --user")
    if settings.tls_key is not None and settings.tls_cert is None:
        raise ValueError("--tls-key goes with --tls-cert")
    for listener in settings.listeners:
        if (listener.require_tls or listener.implicit_tls) and settings.tls_cert is None:
            raise ValueError(f"--{'implicit' if listener.implicit_tls else 'require'}-tls goes with --tls-cert")
