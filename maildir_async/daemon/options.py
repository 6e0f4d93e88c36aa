"""The command line of ``serve``, and what it comes to."""

import argparse
import ipaddress
import socket
from dataclasses import dataclass
from typing import Any, Final

from maildir_async.daemon.log import LEVELS
from maildir_async.daemon.sockets import Address, TcpAddress, UnixAddress, parse_address
from maildir_async.format.content import Newline
from maildir_async.format.delivered import Durability

__all__ = ["Settings", "add_options", "settings_of"]

#: Bytes of a message, by default: twice what large providers let through. Postfix, before us, has its own limit.
SIZE_LIMIT: Final = 50 * 2**20

#: Connections at once, by default. Postfix opens 20 to a destination unless told otherwise, of each of its instances.
MAX_CONNECTIONS: Final = 1000

#: Messages at once, by default. Each holds up to 1 MiB.
MAX_IN_FLIGHT: Final = 256

#: Seconds that a message waits for a place among those at once before the client is told to come again, by default.
#: Arbitrary: clients wait two minutes for the answer to DATA (RFC 5321 §4.5.3.2.4).
BUSY_WAIT_S: Final = 5.0

#: Seconds for a command, and of silence, after which a client is sent away: RFC 5321 §4.5.3.2.7.
TIMEOUT_S: Final = 300.0

#: Seconds for a message, by default. Arbitrary: 50 MiB come in them at 15 kB/s.
MESSAGE_TIMEOUT_S: Final = 3600.0

#: Seconds for messages under way when the daemon is to end. systemd kills after 90, unless told otherwise.
DRAIN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon is to do. One of `layout`, `map` and `resolver` is given, or `layout` with `map`.

    Attributes:
        lmtp: whether LMTP is spoken, else SMTP.
        address: where to listen; None leaves it to systemd.
        layout: template of the maildirs' paths.
        users: path of the file of addresses there are, if only these are.
        map: path of the file of addresses, and maildirs or other addresses; with a layout, it is asked first.
        resolver: ``module:callable`` that finds the maildirs.
        domains: those whose addresses are taken; None for any.
        recipient_delimiter: characters between user and detail; "" for none.
        postmaster: the address that gets mail to postmaster, if nobody else is it.
        require_mount: a directory that has to be a mount point for mail to be taken.
        create: whether a user that no file lists exists also without a maildir.
        durability: what a message survives once it is acknowledged.
        size_limit: bytes of a message; None for no limit.
        line_length_limit: bytes of a line of a message, CRLF included; None for no limit.
        max_connections: connections at once, in all workers.
        max_in_flight: messages at once, in all workers.
        timeout_s: seconds for a command, and of silence, after which a client is sent away.
        message_timeout_s: seconds for a message to come, after which the client is sent away.
        drain_timeout_s: seconds for messages under way when the daemon is to end.
        workers: how many processes.
        pidfile: where the main process writes its id.
        socket_mode: permission bits of a Unix socket.
        helper_process: whether each worker has a helper process write to the disk.
        metrics: where Prometheus finds the metrics.
        metrics_mode: permission bits of a Unix socket for them.
        max_connections_per_address: connections of one client at once, in all workers; None for no limit.
        busy_wait_s: seconds that a message waits for a place among those at once.
        log_level: what is less than this is not told.
        hostname: what the daemon calls itself.
        newline: ``lf`` or ``keep``.
        return_path, delivered_to, original_to, received: which trace headers are written.
        per_recipient_headers: whether those that differ are written also where there are several recipients.

    """

    lmtp: bool
    address: Address | None
    layout: str | None
    users: str | None
    map: str | None
    resolver: str | None
    domains: tuple[str, ...] | None
    recipient_delimiter: str
    postmaster: str | None
    require_mount: str | None
    create: bool
    durability: Durability
    size_limit: int | None
    line_length_limit: int | None
    max_connections: int
    max_in_flight: int
    timeout_s: float
    message_timeout_s: float
    drain_timeout_s: float
    workers: int
    pidfile: str | None
    socket_mode: int
    helper_process: bool
    metrics: Address | None
    metrics_mode: int
    max_connections_per_address: int | None
    busy_wait_s: float
    log_level: str
    hostname: str
    newline: Newline
    return_path: bool
    delivered_to: bool
    original_to: bool
    received: bool
    per_recipient_headers: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Have *parser* know the options."""
    add = parser.add_argument
    add("address", metavar="ADDRESS", nargs="?", help="unix:PATH, HOST:PORT or [IPv6]:PORT; not needed under a .socket")
    protocol = parser.add_mutually_exclusive_group(required=True)
    protocol.add_argument("--lmtp", action="store_true", help="speak LMTP: behind Postfix")
    protocol.add_argument("--smtp", action="store_true", help="speak SMTP")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--layout", metavar="TEMPLATE", help="such as /var/mail/{domain}/{user}/Maildir")
    where.add_argument("--resolver", metavar="MODULE:CALLABLE", help="code of yours that finds the maildirs")
    add("--map", metavar="FILE", help="each address and where its mail goes; alone, or before --layout")
    add("--domains", metavar="NAME,...", action="append", help="take mail for these domains only")
    add("--recipient-delimiter", metavar="CHARS", default="+", help="between user and detail; '+' by default, '': none")
    add("--postmaster", metavar="ADDRESS", help="who gets mail to postmaster, if nobody else is it")
    add("--require-mount", metavar="DIR", help="take mail only while a file system is mounted there")
    add("--users", metavar="FILE", help="with --layout: the addresses there are, one a line")
    add("--create", action="store_true", help="with --layout alone: every address is a user, with a maildir or not yet")
    add("--durability", default="full", choices=[level.value for level in Durability])
    add("--size-limit", metavar="BYTES", type=int, default=SIZE_LIMIT, help="refuse a larger message; 0: no limit")
    add("--line-length-limit", metavar="BYTES", type=int, help="refuse a message with a longer line; none by default")
    add("--max-connections", metavar="N", type=int, default=MAX_CONNECTIONS, help="%(default)s by default")
    add("--max-connections-per-address", metavar="N", type=int, help="of an IPv4 address or an IPv6 /64; no limit")
    add("--max-in-flight", metavar="N", type=int, default=MAX_IN_FLIGHT, help="messages at once; %(default)s")
    add("--busy-wait", metavar="S", type=float, default=BUSY_WAIT_S, help="for a place in flight; %(default)g")
    add("--timeout", metavar="S", type=float, default=TIMEOUT_S, help="seconds for a command, or silence; %(default)g")
    add("--message-timeout", metavar="S", type=float, default=MESSAGE_TIMEOUT_S, help="for a message; %(default)g")
    add("--drain-timeout", metavar="S", type=float, default=DRAIN_TIMEOUT_S, help="seconds to finish; %(default)g")
    add("--workers", metavar="N", type=int, default=1, help="processes; 1 by default")
    add("--pidfile", metavar="PATH", help="holds the process id while the daemon runs")
    add("--socket-mode", metavar="OCTAL", default="0660", help="of a Unix socket; 0660 by default")
    add("--helper-process", action="store_true", help="have another process beside each worker write to the disk")
    add("--metrics", metavar="ADDRESS", help="serve metrics and health there: unix:PATH, or a loopback HOST:PORT")
    add("--metrics-mode", metavar="OCTAL", default="0660", help="of a Unix socket for metrics; 0660 by default")
    add("--log-level", default="info", choices=[level for level in LEVELS if level != "critical"])
    add("--hostname", metavar="NAME", help="in the greeting and in Received; the system's by default")
    add("--newline", default="lf", choices=["lf", "keep"], help="how to store line ends")
    add("--no-return-path", dest="return_path", action="store_false", help="write no Return-Path header")
    add("--no-delivered-to", dest="delivered_to", action="store_false", help="write no Delivered-To header")
    add("--original-to", action="store_true", help="write an X-Original-To header")
    add("--no-received", dest="received", action="store_false", help="write no Received header")
    add("--per-recipient-headers", action="store_true", help="a copy, with these headers, for each of several users")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what *options* come to. ValueError if they make no sense."""
    if options.users is not None and options.layout is None:
        raise ValueError("--users goes with --layout")
    if options.layout is None and options.resolver is None and options.map is None:
        raise ValueError("one of --layout, --map and --resolver is wanted")
    if options.resolver is not None and options.map is not None:
        raise ValueError("--map goes with --layout, or alone")
    for name in ("workers", "max_connections", "max_in_flight"):
        _check(name, getattr(options, name), 1)
    if options.max_connections_per_address is not None:
        _check("max_connections_per_address", options.max_connections_per_address, 1)
    for name in ("size_limit", "busy_wait", "timeout", "message_timeout", "drain_timeout"):
        _check(name, getattr(options, name), 0)
    for name in ("timeout", "message_timeout"):
        if not getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')} must be greater than 0")
    if options.line_length_limit is not None:
        _check("line_length_limit", options.line_length_limit, 3)  # an octet and its CRLF
    return Settings(
        lmtp=options.lmtp,
        address=None if options.address is None else parse_address(options.address),
        layout=options.layout,
        users=options.users,
        map=options.map,
        resolver=options.resolver,
        domains=_domains(options.domains),
        recipient_delimiter=options.recipient_delimiter,
        postmaster=options.postmaster,
        require_mount=options.require_mount,
        create=options.create,
        durability=Durability(options.durability),
        size_limit=options.size_limit or None,
        line_length_limit=options.line_length_limit,
        max_connections=options.max_connections,
        max_in_flight=options.max_in_flight,
        timeout_s=options.timeout,
        message_timeout_s=options.message_timeout,
        drain_timeout_s=options.drain_timeout,
        workers=options.workers,
        pidfile=options.pidfile,
        socket_mode=_mode("socket_mode", options.socket_mode),
        helper_process=options.helper_process,
        metrics=None if options.metrics is None else _loopback(options.metrics),
        metrics_mode=_mode("metrics_mode", options.metrics_mode),
        max_connections_per_address=options.max_connections_per_address,
        busy_wait_s=options.busy_wait,
        log_level=options.log_level,
        hostname=_hostname(options.hostname),
        newline=options.newline,
        return_path=options.return_path,
        delivered_to=options.delivered_to,
        original_to=options.original_to,
        received=options.received,
        per_recipient_headers=options.per_recipient_headers,
    )


def _domains(texts: list[str] | None) -> tuple[str, ...] | None:
    if texts is None:
        return None
    return tuple(name for text in texts for part in text.split(",") if (name := part.strip()))


def _check(name: str, value: Any, least: int) -> None:
    if not least <= value < 2**53:  # NaN and infinity too
        raise ValueError(f"--{name.replace('_', '-')} must be {least} at least: {value}")


def _mode(name: str, text: str) -> int:
    if not text or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError(f"--{name.replace('_', '-')} is an octal number up to 0777: {text!r}")
    return int(text, 8)


def _loopback(text: str) -> Address:
    address = parse_address(text)
    if isinstance(address, UnixAddress):
        return address
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:  # nobody is asked who he is there
        raise ValueError(f"--metrics is served on a loopback address only: {text!r}")
    return TcpAddress(host, address.port)


def _hostname(text: str | None) -> str:
    name = text if text is not None else socket.getfqdn()  # here, since it may ask the DNS
    if not name or not name.isascii() or not name.isprintable() or " " in name:
        raise ValueError(f"not a host name: {name!r}")
    return name
