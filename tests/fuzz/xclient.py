"""Fuzz target: the arguments of XCLIENT and XFORWARD."""

from contextlib import suppress

from maildir_async.smtp.proxied import ATTRIBUTE_NAMES, AttributeSyntaxError, parse_attributes


def target(data: bytes) -> None:
    """Whatever *data* is, it is attributes that a header can hold, or an AttributeSyntaxError."""
    for command in ATTRIBUTE_NAMES:
        with suppress(AttributeSyntaxError):
            told = parse_attributes(command, data.decode("utf-8", "surrogateescape"))
            assert (told.helo or "").isprintable()
