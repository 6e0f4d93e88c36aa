"""Addresses as those of users, as keys of maps, and as paths of a layout."""

import os
import posixpath

from maildir_async.smtp.addresses import (
    check_delimiters,
    destination,
    detail_of,
    divided,
    host_name,
    parse_address,
    parse_key,
    unquoted,
)
from maildir_async.smtp.layout import Layout
from maildir_async.smtp.paths import parse_mailbox

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    *(b"@", b"+", b"-", b".", b"a", b"B", b"example.org", b'"', b"\\", b"/", b"..", b"xn--", b"[127.0.0.1]", b"[IPv6:"),
    *(b"\xc3\xa4", b"\xc3\x9f", b"\xcc\x80\xcc\xa3", b"\xef\xbc\x8f", b"\xe2\x80\x8d", b"owner-", b"-request", b"%"),
    *(b"postmaster", b"{domain}", b"{user}", b"::1]", b" "),
)

LAYOUTS = tuple(
    Layout(template, create=True, delimiters="+-")
    for template in ("/srv/mail/{domain}/{user}/Maildir", "/srv/{user}", "/srv/x{user}@{domain}y")
)


def target(data: bytes) -> None:
    """Read *data* as an address, as a domain, and as delimiters."""
    text = decoded(data)
    for delimiters in ("+", "+-", ""):
        _check_address(text, delimiters)
    for domain in (text, text.rpartition("@")[2]):
        host = host_name(domain)
        assert host is None or (host_name(host) == host and host.isascii() and host == host.lower() and len(host) < 254)
        place = destination(domain)
        assert place is None or (destination(place) == place and place.isascii())
    try:
        check_delimiters(text)
    except ValueError:
        return
    assert not any(char.isalnum() or char in '@"\\ ' for char in text)


def _check_address(text: str, delimiters: str) -> None:
    name, delimiter, detail = divided(text, delimiters)
    assert name + delimiter + detail == text
    address = parse_address(text, delimiters)
    key = parse_key(text, delimiters)
    if key is not None:
        again = parse_key(str(key), "")
        # Characters that have to be quoted are not in the form that is compared.
        assert again is None or (again.local, again.domain) == (key.local, key.domain)
        assert key.local.isprintable()
    if address is None:
        return
    for part in (address.local, address.domain):
        assert "/" not in part
        assert "\0" not in part
        assert not part.startswith((".", "-", " "))
        assert part.isprintable()
        part.encode()
    assert address.local
    assert len(address.local.encode()) <= 64
    assert parse_address(str(address), "") in (address, parse_address(str(address), delimiters), None)
    local = text.rpartition("@")[0] or text
    assert address.detail or not detail_of(text, delimiters)
    assert unquoted(unquoted(local)) is not None
    if parse_mailbox(text) is not None and key is not None:
        assert (key.local, key.domain, key.detail) == (address.local, address.domain, address.detail)
    for layout in LAYOUTS:
        path = layout.path_of(address)
        if path is not None:
            assert posixpath.normpath(path) == path
            assert path.startswith("/srv/")
            assert path.count("/") in (2, 5)
            assert max(len(os.fsencode(part)) for part in path.split("/")) <= 255
