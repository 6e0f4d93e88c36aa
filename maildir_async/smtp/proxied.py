"""Who the client really is, behind a proxy or another mail server: PROXY headers, XCLIENT and XFORWARD. Pure.

PROXY is HAProxy's ``proxy-protocol.txt``, versions 1 and 2. XCLIENT and XFORWARD are Postfix's ``XCLIENT_README`` and
``XFORWARD_README``.
"""

import ipaddress
import re
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

__all__ = [
    "ATTRIBUTE_NAMES",
    "AttributeSyntaxError",
    "Attributes",
    "Network",
    "Networks",
    "Peer",
    "ProxyHeaderError",
    "parse_attributes",
    "parse_proxy",
    "plain_host",
    "read_proxy",
]

Network = str | ipaddress.IPv4Network | ipaddress.IPv6Network

#: A client's address and port, as asyncio has them for IPv4; the client of a Unix socket is ``("", 0)``.
Peer = tuple[str, int]

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"  # §2.2
V1_MAX: Final = 107  # octets of a version 1 header with its CRLF, §2.1
V1_MIN: Final = len(b"PROXY UNKNOWN\r\n")
V2_MAX: Final = 4096  # octets of addresses and TLVs. The format has room for 64 KiB; HAProxy's own limit is far less

#: Address family and transport (§2.2) → the format of the addresses. Datagrams (2) carry no mail.
_FORMATS: Final = {0x11: struct.Struct("!4s4sHH"), 0x21: struct.Struct("!16s16sHH"), 0x31: struct.Struct("!108s108s")}
_CRC32C: Final = 0x03  # PP2_TYPE_CRC32C, §2.2.3

_MAPPED: Final = "::ffff:"


class ProxyHeaderError(ValueError):
    """What should be a PROXY header is none."""


class AttributeSyntaxError(ValueError):
    """An argument of XCLIENT or XFORWARD cannot be read. Its text is the reply."""


def plain_host(host: str) -> str:
    """Return *host*, an IPv4 address if it is one in IPv6's clothes (RFC 4291 §2.5.5.2), as dual-stack sockets have."""
    if not host.startswith(_MAPPED):
        return host
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return host if mapped is None else str(mapped)


class Networks:
    """A set of clients.

    Args:
        networks: networks or addresses; the word ``unix`` stands for the clients of Unix sockets.

    Raises:
        ValueError: one of them is none of these. A network with host bits set is one, too: it is a slip of the pen.

    """

    def __init__(self, networks: Iterable[Network]) -> None:
        if isinstance(networks, (str, bytes)):
            raise TypeError("networks are a sequence, not one text")
        networks = list(networks)
        self._has_unix = "unix" in networks
        self._networks = [ipaddress.ip_network(network) for network in networks if network != "unix"]

    def __bool__(self) -> bool:
        return self._has_unix or bool(self._networks)

    def __contains__(self, host: str) -> bool:
        """Whether a client at *host* is one of these; "" is the client of a Unix socket."""
        if not host:
            return self._has_unix
        try:
            address = ipaddress.ip_address(plain_host(host).partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)


# PROXY.


async def read_proxy(read: Callable[[int], Awaitable[bytes]]) -> Peer | None:
    """Read a header with *read*, which returns exactly as many octets as it is asked for, and not one octet more.

    Returns what `parse_proxy` does; raises `ProxyHeaderError`, and whatever *read* raises.
    """
    # The shortest header of each version is longer than the signature.
    head = await read(len(SIGNATURE))
    if head == SIGNATURE:
        head += await read(4)
        (size,) = struct.unpack_from("!H", head, 14)
        if size > V2_MAX:
            raise ProxyHeaderError(f"a PROXY header of {size} octets")
        return parse_proxy(head + await read(size))
    if not head.startswith(b"PROXY "):
        raise ProxyHeaderError("no PROXY header")
    while not head.endswith(b"\n"):
        if len(head) >= V1_MAX:
            raise ProxyHeaderError("a PROXY line without an end")
        head += await read(1 if len(head) >= V1_MIN else V1_MIN - len(head))
    return parse_proxy(head)


def parse_proxy(header: bytes) -> Peer | None:
    """Return the client that a whole *header* names.

    None if it names none, and the connection's own peer is the client: UNKNOWN in version 1, LOCAL or an unspecified
    family in version 2. Raises `ProxyHeaderError`, and nothing else.
    """
    return _parse_v2(header) if header.startswith(SIGNATURE) else _parse_v1(header)


def _parse_v1(header: bytes) -> Peer | None:
    if len(header) > V1_MAX or not header.endswith(b"\r\n") or not header.isascii():
        raise ProxyHeaderError("no PROXY line")
    text = header[:-2].decode()
    if text == "PROXY UNKNOWN" or text.startswith("PROXY UNKNOWN "):
        return None  # "the receiver must ignore anything presented before the CRLF", §2.1
    words = text.split(" ")
    if len(words) != 6 or words[0] != "PROXY" or words[1] not in ("TCP4", "TCP6"):
        raise ProxyHeaderError("no PROXY line")
    kind = ipaddress.IPv4Address if words[1] == "TCP4" else ipaddress.IPv6Address
    try:
        source, _ = kind(words[2]), kind(words[3])
    except ValueError as exc:
        raise ProxyHeaderError(str(exc)) from None
    if "%" in words[2] + words[3]:
        raise ProxyHeaderError("an address with a zone")
    port, _ = _port(words[4]), _port(words[5])
    return plain_host(str(source)), port


def _port(text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", text) or int(text) > 65535:
        raise ProxyHeaderError(f"{text[:10]!r} is no port")
    return int(text)


def _parse_v2(header: bytes) -> Peer | None:
    if len(header) < 16:
        raise ProxyHeaderError("half a PROXY header")
    command, family, size = struct.unpack_from("!BBH", header, 12)
    if command not in (0x20, 0x21) or len(header) != 16 + size:
        raise ProxyHeaderError("a PROXY header of an unknown kind, or cut short")
    if command == 0x20:  # LOCAL: the proxy itself, for a health check; the rest has to be skipped
        return None
    if family == 0x00:  # unspecified: "the receiver should ignore address information"
        _check_crc(header, 16)
        return None
    addresses = _FORMATS.get(family)
    if addresses is None or size < addresses.size:
        raise ProxyHeaderError("addresses of an unknown kind, or cut short")
    _check_crc(header, 16 + addresses.size)
    if family == 0x31:
        return "", 0
    source, _, port, _ = addresses.unpack_from(header, 16)
    return plain_host(str(ipaddress.ip_address(source))), int(port)


def _check_crc(header: bytes, at: int) -> None:
    """Go through the TLVs from *at*; the one that has the sum of the header (§2.2.3) has to be right."""
    has_sum = False
    while at < len(header):
        if at + 3 > len(header):
            raise ProxyHeaderError("half a TLV")
        kind, size = struct.unpack_from("!BH", header, at)
        at += 3
        if at + size > len(header):
            raise ProxyHeaderError("half a TLV")
        if kind == _CRC32C:
            if has_sum:  # each one takes milliseconds, and there is room for hundreds
                raise ProxyHeaderError("more than one checksum")
            has_sum = True
            blank = header[:at] + bytes(size) + header[at + size :]
            if size != 4 or int.from_bytes(header[at : at + 4]) != _crc32c(blank):
                raise ProxyHeaderError("the checksum is wrong")
        at += size


def _crc32c(data: bytes) -> int:
    """Return the sum of RFC 9260 Appendix A (Castagnoli). zlib has another polynomial."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


# XCLIENT and XFORWARD.

ATTRIBUTE_NAMES: Final = {
    "XCLIENT": ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT"),
    "XFORWARD": ("NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"),
}
_UNKNOWN: Final = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")

#: RFC 3461 §4: printable ASCII but for "+" and "=", and "+" with two hexadecimal digits. Postfix takes either case, and
#: "=" too.
_XTEXT: Final = re.compile(r"(?:[!-*,-~]|\+[0-9A-Fa-f]{2})*")
_ENCODED: Final = re.compile(rb"\+([0-9A-Fa-f]{2})")

VALUE_MAX: Final = 255  # octets; Postfix has the same limit for XFORWARD


@dataclass(frozen=True, slots=True)
class Attributes:
    """What XCLIENT or XFORWARD tells of a client. None is what it did not tell; "" is what is not known.

    Attributes:
        addr: an IPv4 or IPv6 address.
        port: 0 if it is not known.
        proto: ``SMTP`` or ``ESMTP``.
        helo: the name the client gave itself.
        login: as whom it has authenticated.

    """

    addr: str | None = None
    port: int | None = None
    proto: str | None = None
    helo: str | None = None
    login: str | None = None

    def updated(self, later: "Attributes") -> "Attributes":
        """Return these with what *later* ones tell: a client may need several XFORWARD commands."""
        told = {name: value for name in self.__slots__ if (value := getattr(later, name)) is not None}
        return replace(self, **told)


def parse_attributes(command: str, arg: str) -> Attributes:
    """Return what the argument of *command*, ``XCLIENT`` or ``XFORWARD``, tells. The last one of a name counts.

    Raises `AttributeSyntaxError`, and nothing else.
    """
    words = arg.split()
    if not words:
        raise AttributeSyntaxError(f"501 5.5.4 Syntax: {command} attribute=value...")
    names = ATTRIBUTE_NAMES[command]
    found: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise AttributeSyntaxError(f"501 5.5.4 Error: attribute=value expected in {command}")
        name = name.upper()
        if name not in names:
            raise AttributeSyntaxError(f"501 5.5.4 Bad {command} attribute name")
        found[name] = _value(command, text)
    addr, port, proto = found.get("ADDR"), found.get("PORT"), found.get("PROTO")
    if proto and proto.upper() not in ("SMTP", "ESMTP", "LMTP"):
        raise _bad(command, "PROTO")
    if found.get("SOURCE", "").upper() not in ("", "LOCAL", "REMOTE"):
        raise _bad(command, "SOURCE")
    for name in ("PORT", "DESTPORT"):
        number = found.get(name)
        if number and not (number.isascii() and number.isdecimal() and len(number) <= 5 and int(number) <= 65535):
            raise _bad(command, name)
    _address(command, "DESTADDR", found.get("DESTADDR"))
    return Attributes(
        addr=_address(command, "ADDR", addr),
        port=None if port is None else int(port or 0),
        proto=None if proto is None else proto.upper(),
        helo=found.get("HELO"),
        login=found.get("LOGIN"),
    )


def _value(command: str, text: str) -> str:
    if "+" not in text and "[" not in text and text.isascii() and text.isprintable() and len(text) <= VALUE_MAX:
        return text  # as nearly all are
    if text.upper() in _UNKNOWN:
        return ""
    if not _XTEXT.fullmatch(text):
        raise AttributeSyntaxError(f"501 5.5.4 Bad {command} attribute value syntax")
    octets = _ENCODED.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode())
    try:
        value = octets.decode()
    except UnicodeDecodeError:
        value = "\0"
    if len(octets) > VALUE_MAX or not value.isprintable():  # nor is anything that ends lines
        raise AttributeSyntaxError(f"501 5.5.4 Bad {command} attribute value syntax")
    # An encoded "[UNAVAILABLE]" is the same to Postfix, whose clients encode it.
    return "" if value.upper() in _UNKNOWN else value


def _address(command: str, name: str, text: str | None) -> str | None:
    if not text:
        return text
    is_six = text[:5].upper() == "IPV6:"
    try:
        address = ipaddress.ip_address(text[5:] if is_six else text)
    except ValueError:
        raise _bad(command, name) from None
    if "%" in text or (address.version == 4 and is_six):
        raise _bad(command, name)
    return plain_host(str(address))


def _bad(command: str, name: str) -> AttributeSyntaxError:
    return AttributeSyntaxError(f"501 5.5.4 Bad {command} {name} value")
