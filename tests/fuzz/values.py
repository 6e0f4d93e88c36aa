"""Values of options, as the command line and the configuration have them."""

import argparse
import ipaddress
from datetime import datetime
from typing import Any

from maildir_async.command import parser
from maildir_async.daemon import values
from maildir_async.daemon.flags import OPTIONS
from maildir_async.daemon.privileges import identity_of
from maildir_async.daemon.resolver import NamedResolver
from maildir_async.daemon.sockets import PassedAddress, TcpAddress, UnixAddress, parse_address, parse_listening

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    *(
        b"127.0.0.1",
        b":24",
        b"[::1]",
        b"unix:",
        b"systemd:",
        b"/x",
        b"\0",
        b"0",
        b"1",
        b"99999",
        b"-",
        b".",
        b"a",
        b"_",
        b"e",
    ),
    *(b"nan", b"inf", b"\xd9\xa1", b"K", b"S", b"/8", b"%", b":", b"2024-01-01T00:00", b"+01:00", b"X: y", b"*", b","),
)


def target(data: bytes) -> None:
    """Read *data* as each kind of value: a ValueError, or a value that is in its bounds."""
    text = decoded(data)
    for option in OPTIONS:
        for given in (text, [text], True, 1, 1.5, [1, text], {"a": text}, None):
            try:
                option.value_of(given)
            except ValueError:
                continue
    found = {
        name: _read(name, text) for name in ("count", "seconds", "some_seconds", "mode", "network", "hostname", "ident")
    }
    number, wait, least, mode = (found[name] for name in ("count", "seconds", "some_seconds", "mode"))
    assert number is None or 1 <= number < 2**53
    assert wait is None or 0 <= wait < 2**31
    assert least is None or 0.001 <= least < 2**31
    assert mode is None or 0 <= mode <= 0o777
    if found["network"] not in (None, "unix"):
        assert str(ipaddress.ip_network(found["network"])) == found["network"]
    assert found["hostname"] is None or (found["hostname"].isascii() and found["hostname"].isprintable())
    assert found["ident"] is None or found["ident"].isprintable()
    metrics = _read("metrics_address", text)
    assert metrics is None or isinstance(metrics, UnixAddress) or ipaddress.ip_address(metrics.host).is_loopback
    _check_address(text)
    for read in (lambda: identity_of(text, None), lambda: identity_of("0", text), lambda: NamedResolver(text)):
        try:
            read()
        except ValueError:
            continue
    try:
        assert isinstance(parser.moment(text), datetime)
        parser.size(text)
    except argparse.ArgumentTypeError:
        return


def _read(name: str, text: str) -> Any:
    try:
        return getattr(values, name)(text)
    except ValueError:
        return None


def _check_address(text: str) -> None:
    try:
        address = parse_listening(text)
    except ValueError:
        return
    if isinstance(address, TcpAddress):
        assert 0 <= address.port <= 65535
        assert address.host
        address.host.encode("idna")
        assert parse_address(f"[{address.host}]:{address.port}") == address
    elif isinstance(address, UnixAddress):
        assert address.path.startswith("/")
        assert "\0" not in address.path
    else:
        assert isinstance(address, PassedAddress)
