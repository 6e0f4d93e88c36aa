"""The options of ``serve``: one table, from which the command line, the configuration file and `Settings` are made."""

import argparse
import ipaddress
import math
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, TypeVar

from maildir_async.daemon.config import Config, Source, read_config
from maildir_async.daemon.settings import UNIX, ListenerSettings, Settings
from maildir_async.daemon.sockets import Address, TcpAddress, UnixAddress, parse_address, parse_listening
from maildir_async.format.delivered import Durability

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

#: Octets of the greeting's text: a reply line has 510 (RFC 5321 §4.5.3.1.5), and a host name up to 255 of them.
IDENT_MAX: Final = 200

_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LITERAL: Final = re.compile(r"\[[0-9A-Fa-f.:IPv]+\]")

LEVELS: Final = ("debug", "info", "warning", "error")

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

Read = Callable[[str], Any]


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
        is_off: whether the flag is ``--no-NAME``, and switches off.
        only_flag: whether it makes no sense in the file.

    """

    name: str
    help: str
    read: Read | None = None
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
        return f"--no-{self.name}" if self.is_off else f"--{self.name}"

    @property
    def dest(self) -> str:
        """What it is called in Python."""
        return self.field or self.name.replace("-", "_")

    def value_of(self, given: object) -> Any:
        """Return the value that *given*, from file or command line, stands for. ValueError says what is wrong."""
        if self.read is None:
            if not isinstance(given, bool):
                raise ValueError(f"true or false is wanted, not {given!r}")
            return given
        if self.is_list:
            texts = given if isinstance(given, list) else [given]
            parts = [part.strip() for text in texts for part in _text(text).split(",")]
            return tuple(self.read(part) for part in parts if part)
        return self.read(_text(given))


def _text(given: object) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return str(given)
    raise ValueError(f"a text or a number is wanted, not {given!r}")


# What values are made of.


def _count(text: str, least: int = 1) -> int:
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) < 2**53:
        raise ValueError(f"a whole number of at least {least} is wanted, not {text!r}")
    return int(text)


def _size(text: str, least: int = 0) -> int | None:
    found = re.fullmatch(r"(\d+)([KMG]?)", text.upper(), re.ASCII)
    if found is None or not (size := int(found[1]) * _UNITS[found[2]]) < 2**53 or 0 < size < least:
        raise ValueError(f"a number of bytes, such as 52428800 or 50M, is wanted, not {text!r}")
    return size or None


def _seconds(text: str, least: float = 0.0) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds < 2**31:
        raise ValueError(f"a number of seconds {'greater than 0 ' if least else ''}is wanted, not {text!r}")
    return seconds


_some_seconds: Final = partial(_seconds, least=0.001)


def _mode(text: str) -> int:
    if not text or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError(f"an octal number up to 0777 is wanted, not {text!r}")
    return int(text, 8)


def _one_of(*choices: str) -> Read:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is wanted, not {text!r}")
        return text

    return read


def _durability(text: str) -> Durability:
    return Durability(_one_of(*(level.value for level in Durability))(text))


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"a path is wanted, not {text!r}")
    return text


def _network(text: str) -> str:
    if text == UNIX:
        return text
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"a network such as 192.0.2.0/24, an address, or unix is wanted, not {text!r}") from None


def _metrics_address(text: str) -> Address:
    address = parse_address(text)
    if isinstance(address, UnixAddress):
        return address
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:  # nobody is asked who he is there
        raise ValueError(f"metrics are served on a loopback address or a Unix socket only, not at {text!r}")
    return TcpAddress(host, address.port)


def _hostname(text: str) -> str:
    # RFC 1035 §2.3.4: labels of 63 octets, 253 in all. An address literal will do too (RFC 5321 §4.1.1.1).
    if not (len(text) <= 253 and all(map(_LABEL.fullmatch, text.split(".")))) and not _LITERAL.fullmatch(text):
        raise ValueError(f"a host name is wanted, not {text!r}")
    return text


def _ident(text: str) -> str:
    if not text.isascii() or not text.isprintable() or len(text) > IDENT_MAX:
        raise ValueError(f"up to {IDENT_MAX} printable ASCII characters are wanted, not {text!r}")
    return text


def _any(text: str) -> str:
    return text


OPTIONS: Final = (
    Option("protocol", "lmtp, as --lmtp has it, or smtp", _one_of("lmtp", "smtp"), metavar="NAME", of_listener=True),
    Option("layout", "such as /var/mail/{domain}/{user}/Maildir", _path, metavar="TEMPLATE"),
    Option("map", "each address and where its mail goes; alone, or before --layout", _path, metavar="FILE"),
    Option("resolver", "code of yours that finds the maildirs", _any, metavar="MODULE:CALLABLE"),
    Option("users", "with --layout: the addresses there are, one a line", _path, metavar="FILE"),
    Option("create", "with --layout alone: every address is a user, with a maildir or not yet", default=False),
    Option("domains", "take mail for these domains only", _any, metavar="NAME,...", is_list=True),
    Option("recipient-delimiter", "between user and detail; '+' by default, '': none", _any, "+", "CHARS"),
    Option("postmaster", "who gets mail to postmaster, if nobody else is it", _any, metavar="ADDRESS"),
    Option("require-mount", "take mail only while a file system is mounted there", _path, metavar="DIR"),
    Option("durability", "full by default; file, none", _durability, Durability.FULL, "LEVEL"),
    Option("size-limit", "refuse a larger message; 50M by default, 0: no limit", _size, SIZE_LIMIT, "BYTES"),
    Option("line-length-limit", "refuse a message with a longer line; none", partial(_size, least=3), None, "BYTES"),
    Option("max-connections", f"at once; {MAX_CONNECTIONS}", _count, MAX_CONNECTIONS, "N"),
    Option("max-connections-per-address", "of an IPv4 address or an IPv6 /64; no limit", _count, None, "N"),
    Option("max-in-flight", f"messages at once; {MAX_IN_FLIGHT}", _count, MAX_IN_FLIGHT, "N"),
    Option("busy-wait", f"for a place in flight; {BUSY_WAIT_S:g}", _seconds, BUSY_WAIT_S, "S", "busy_wait_s"),
    Option("max-errors", f"refused commands of a session; {MAX_ERRORS}", _count, MAX_ERRORS, "N"),
    Option("accept-bare-lf", "let a command line end with LF alone, as RFC 5321 forbids", default=False),
    Option("timeout", f"for a command, or silence; {TIMEOUT_S:g}", _some_seconds, TIMEOUT_S, "S", "timeout_s"),
    Option(
        "message-timeout",
        f"for a message; {MESSAGE_TIMEOUT_S:g}",
        _some_seconds,
        MESSAGE_TIMEOUT_S,
        "S",
        "message_timeout_s",
    ),
    Option("drain-timeout", f"to finish; {DRAIN_TIMEOUT_S:g}", _seconds, DRAIN_TIMEOUT_S, "S", "drain_timeout_s"),
    Option("workers", "processes; 1 by default", _count, 1, "N"),
    Option("helper-process", "have another process beside each worker write to the disk", default=False),
    Option("user", "drop root's privileges for this user's, once it listens", _any, metavar="NAME"),
    Option("group", "with --user: another group than the user's own", _any, metavar="NAME"),
    Option("allow-root", "serve with root's privileges: each maildir's owner owns what is delivered", default=False),
    Option("tls-cert", "certificate with its chain, in PEM: STARTTLS is offered", _path, metavar="FILE"),
    Option("tls-key", "its key, in PEM; by default it is in the same file", _path, metavar="FILE"),
    Option("require-tls", "take mail only after STARTTLS", default=False, of_listener=True),
    Option("implicit-tls", "begin each connection with TLS", default=False, of_listener=True),
    Option(
        "proxy-protocol",
        "from there a PROXY header comes first; unix: from Unix sockets",
        _network,
        (),
        "NETWORK,...",
        is_list=True,
        of_listener=True,
    ),
    Option(
        "trusted-peers",
        "take XCLIENT and XFORWARD from there; unix: from Unix sockets",
        _network,
        (),
        "NETWORK,...",
        is_list=True,
        of_listener=True,
    ),
    Option("socket-mode", "of a Unix socket; 0660 by default", _mode, 0o660, "OCTAL", of_listener=True),
    Option("pidfile", "holds the process id while the daemon runs", _path, metavar="PATH"),
    Option(
        "metrics", "serve metrics and health at unix:PATH, or a loopback HOST:PORT", _metrics_address, None, "ADDRESS"
    ),
    Option("metrics-mode", "of a Unix socket for metrics; 0660 by default", _mode, 0o660, "OCTAL"),
    Option("log-level", "info by default; debug, warning, error", _one_of(*LEVELS), "info", "LEVEL"),
    Option("hostname", "in the greeting and in Received; the system's by default", _hostname, None, "NAME"),
    Option("ident", "what the greeting says after the host name", _ident, "ESMTP", "TEXT"),
    Option("newline", "how to store line ends: lf, or keep", _one_of("lf", "keep"), "lf", "POLICY"),
    Option("return-path", "write no Return-Path header", default=True, is_off=True),
    Option("delivered-to", "write no Delivered-To header", default=True, is_off=True),
    Option("original-to", "write an X-Original-To header", default=False),
    Option("received", "write no Received header", default=True, is_off=True),
    Option("per-recipient-headers", "a copy, with these headers, for each of several users", default=False),
    Option(
        "config", "read options from there, too; those of the command line win", _path, None, "FILE", only_flag=True
    ),
    Option("check-config", "say what is wrong, and serve nothing", default=False, only_flag=True),
)

BY_NAME: Final[Mapping[str, Option]] = {option.name: option for option in OPTIONS}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Have *parser* know the options. What is not said is not in its namespace."""
    add = partial(parser.add_argument, default=argparse.SUPPRESS)
    text = "unix:PATH, HOST:PORT, [IPv6]:PORT or systemd:NAME; not needed under a .socket"
    parser.add_argument("address", metavar="ADDRESS", nargs="*", help=text)
    add("--lmtp", dest="protocol", action="store_const", const="lmtp", help="speak LMTP: behind Postfix")
    add("--smtp", dest="protocol", action="store_const", const="smtp", help="speak SMTP")
    for option in OPTIONS:
        if option.read is None:
            action = "store_false" if option.is_off else "store_true"
            add(option.flag, dest=option.name, action=action, help=option.help)
        else:
            kind = "append" if option.is_list else "store"
            add(option.flag, dest=option.name, action=kind, metavar=option.metavar, help=option.help)


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what *options*, and the file that they name, come to.

    ValueError if they make no sense; `ConfigError` if it is the file that does not. OSError if that cannot be read. The
    system is asked for its name if none is said, which may ask the DNS.
    """
    said = vars(options)
    path = said.get("config")
    config = read_config(path) if path is not None else Config()
    flags = Source({name: value for name, value in said.items() if name in BY_NAME})
    values = _values([flags, config.top])
    hostname = values["hostname"]
    if hostname is None:
        try:
            hostname = _hostname(socket.getfqdn())
        except ValueError as exc:
            raise ValueError(f"the system's name is {exc}: --hostname says another") from None
    listeners = _listeners(said.get("address") or [], flags, config)
    common = {option.dest: values[option.name] for option in OPTIONS if not option.of_listener}
    common |= {"hostname": hostname, "listeners": listeners}
    settings = Settings(**{field.name: common[field.name] for field in fields(Settings)})
    try:
        _check(settings)
    except ValueError as exc:
        # The option that the text names may stand in the file.
        named = re.search(r"--([a-z-]+)", str(exc))
        if named is None or named[1] not in config.top.said or named[1] in flags.said:
            raise
        raise config.top.mistake(named[1], exc) from None
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


def _listeners(addresses: Sequence[str], flags: Source, config: Config) -> tuple[ListenerSettings, ...]:
    """Return where mail comes in: at the command line's addresses if it has some, or else at the file's."""
    if addresses:
        return tuple(_listener(text, [flags, config.top], None) for text in addresses)
    if not config.listeners:
        return (_listener(None, [flags, config.top], None),)
    found: list[ListenerSettings] = []
    for source in config.listeners:
        said = dict(source.said)
        address = said.pop("address", None)
        own = source.without("address")
        if strange := sorted(name for name in said if not (name in BY_NAME and BY_NAME[name].of_listener)):
            raise source.mistake(strange[0], "a listener has no such option")
        if not isinstance(address, str):
            raise source.mistake("address", f"an address is wanted, not {address!r}")
        found.append(_listener(address, [flags, own, config.top], source))
    return tuple(found)


def _listener(text: str | None, sources: Sequence[Source], source: Source | None) -> ListenerSettings:
    values = _values(sources)
    try:
        address = None if text is None else parse_listening(text)
    except ValueError as exc:
        raise exc if source is None else source.mistake("address", exc) from None
    if values["protocol"] is None:
        raise ValueError(f"one of --lmtp and --smtp is wanted{f' for {text}' if text else ''}")
    own = {option.dest: values[option.name] for option in OPTIONS if option.of_listener}
    lmtp = own.pop("protocol") == "lmtp"
    return ListenerSettings(address=address, lmtp=lmtp, **own)


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
