"""What the values of options are made of: each takes a text, and says in a ValueError what is wrong with it. Pure."""

import ipaddress
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from maildir_async.daemon.settings import UNIX
from maildir_async.daemon.sockets import Address, TcpAddress, UnixAddress, parse_address
from maildir_async.format.delivered import Durability
from maildir_async.format.junk import JunkHeader
from maildir_async.format.quota import limits_of
from maildir_async.format.sizes import size_of

__all__ = [
    "Read",
    "any_text",
    "count",
    "durability",
    "hostname",
    "ident",
    "junk_header",
    "metrics_address",
    "mode",
    "network",
    "one_of",
    "path",
    "seconds",
    "size",
    "some_seconds",
]

#: Octets of the greeting's text: a reply line has 510 (RFC 5321 §4.5.3.1.5), and a host name up to 255 of them.
IDENT_MAX: Final = 200

_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_LITERAL: Final = re.compile(r"\[[0-9A-Fa-f.:IPv]+\]")

Read = Callable[[str], Any]


def count(text: str, least: int = 1) -> int:
    """A whole number of at least *least*."""
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) < 2**53:
        raise ValueError(f"a whole number of at least {least} is wanted, not {text!r}")
    return int(text)


def size(text: str, least: int = 0) -> int | None:
    """Bytes, as `size_of` takes them; 0, for no limit, is None."""
    size = size_of(text)
    if 0 < size < least:
        raise ValueError(f"a size of at least {least} bytes is wanted, or 0 for no limit, not {text!r}")
    return size or None


def junk_header(text: str) -> str:
    """A header field that marks junk, as it is written."""
    JunkHeader(text)
    return text


def quota(text: str) -> str:
    """What a maildir may hold, as it is written."""
    limits_of(text)
    return text


def seconds(text: str, least: float = 0.0) -> float:
    """Seconds of at least *least*."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds < 2**31:
        raise ValueError(f"a number of seconds {'greater than 0 ' if least else ''}is wanted, not {text!r}")
    return seconds


some_seconds: Final = partial(seconds, least=0.001)


def mode(text: str) -> int:
    """Permission bits."""
    if not text or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError(f"an octal number up to 0777 is wanted, not {text!r}")
    return int(text, 8)


def one_of(*choices: str) -> Read:
    """Return what takes one of *choices*."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is wanted, not {text!r}")
        return text

    return read


def durability(text: str) -> Durability:
    """A level."""
    return Durability(one_of(*(level.value for level in Durability))(text))


def path(text: str) -> str:
    """A path."""
    if not text or "\0" in text:
        raise ValueError(f"a path is wanted, not {text!r}")
    return text


def network(text: str) -> str:
    """A network or an address in one form, or ``unix``."""
    if text == UNIX:
        return text
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"a network such as 192.0.2.0/24, an address, or unix is wanted, not {text!r}") from None


def metrics_address(text: str) -> Address:
    """Where nobody from outside can ask: a loopback address or a Unix socket."""
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


def hostname(text: str) -> str:
    """A name that a greeting can have."""
    # RFC 1035 §2.3.4: labels of 63 octets, 253 in all. An address literal will do too (RFC 5321 §4.1.1.1).
    if not (len(text) <= 253 and all(map(_LABEL.fullmatch, text.split(".")))) and not _LITERAL.fullmatch(text):
        raise ValueError(f"a host name is wanted, not {text!r}")
    return text


def ident(text: str) -> str:
    """What a greeting can say after the name."""
    if not text.isascii() or not text.isprintable() or len(text) > IDENT_MAX:
        raise ValueError(f"up to {IDENT_MAX} printable ASCII characters are wanted, not {text!r}")
    return text


def any_text(text: str) -> str:
    """Whatever it is: it is looked at by whom it is for."""
    return text
