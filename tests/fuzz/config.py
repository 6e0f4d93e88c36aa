"""The configuration file, and what all of it comes to."""

import argparse
import os

from maildir_async.daemon.config import ConfigError, placed, read_config
from maildir_async.daemon.flags import OPTIONS
from maildir_async.daemon.options import settings_of

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    *(f"{option.name} = ".encode() for option in OPTIONS),
    *(
        b"[[listener]]\n",
        b"address = ",
        b'"127.0.0.1:24"',
        b'"unix:/x"',
        b"true",
        b"false",
        b"1",
        b"0.5",
        b'""',
        b"[",
        b"]",
    ),
    *(
        b'"/srv/{user}"',
        b'"/x"',
        b"\n",
        b",",
        b"{",
        b"}",
        b"#",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\r\n",
        b"'''",
    ),
    *(
        b"lmtp = true\n",
        b'layout = "/srv/{user}/Maildir"\n',
        b"2024-02-30",
        b"nan",
        b"9" * 20,
        b'"a,b"',
        b'["a"]',
        b"0x1",
    ),
)

#: tomllib takes a time that is quadratic in the parts of a key. Who writes the file is who runs the daemon.
PATTERN_MOST = 1 << 12


def target(data: bytes) -> None:
    """Read *data* as that file: settings, or an error that says where the mistake is."""
    fd = os.memfd_create("config")
    try:
        os.write(fd, data)
        _check(f"/proc/self/fd/{fd}", data)
    finally:
        os.close(fd)
    assert placed(None, decoded(data)) == decoded(data)


def _check(path: str, data: bytes) -> None:
    try:
        read_config(path)
    except ConfigError as exc:
        place = str(exc).removeprefix(f"{path}, line ")
        number = int(place.partition(":")[0])
        assert 1 <= number <= data.count(b"\n") + 1
    try:
        settings_of(argparse.Namespace(config=path, hostname="mx.example"))
    except ConfigError as exc:
        # What is missing in the file has no line in it.
        assert str(exc).startswith(path) or " --" in str(exc)  # noqa: PT017 anything else is raised
    except ValueError as exc:
        assert "--lmtp" in str(exc)  # noqa: PT017 anything else is raised
    else:
        assert b"mtp" in data
    placed(path, "--layout is wanted")
