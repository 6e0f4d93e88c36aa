"""Fuzz target: PROXY headers."""

from contextlib import suppress

from maildir_async.smtp.proxied import ProxyHeaderError, parse_proxy


def one_input(data: bytes) -> None:
    """Whatever *data* is, it is a PROXY header or a ProxyHeaderError."""
    with suppress(ProxyHeaderError):
        parse_proxy(data)
