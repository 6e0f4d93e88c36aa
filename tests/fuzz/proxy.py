"""Fuzz target: PROXY headers."""

from contextlib import suppress

from maildir_async.smtp.proxied import SIGNATURE, ProxyHeaderError, parse_proxy


def target(data: bytes) -> None:
    """Whatever *data* is, by itself or behind the beginning of a header, it is one or a ProxyHeaderError."""
    for head in (b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21"):
        with suppress(ProxyHeaderError):
            parse_proxy(head + data)
