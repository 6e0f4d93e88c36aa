"""``maildirsize``, and limits and sizes as people write them."""

import re

from maildir_async.format.quota import LARGEST, Limits, format_held, limits_of, parse_held, parse_limits, quota_of
from maildir_async.format.sizes import LARGEST_SIZE, size_of

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    b"1000S",
    b",",
    b"10C",
    b"\n",
    b"5 1\n",
    b"-5 -1\n",
    b" ",
    b"\r\n",
    b"9" * 18,
    b"1.5",
    b"G",
    b"KiB",
    b"\xc5\xbf",
)

LINE = re.compile(rb"[ \t]*([+-]?[0-9]{1,18})[ \t]+([+-]?[0-9]{1,18})[ \t]*\r*")


def target(data: bytes) -> None:
    """Read *data* as that file, and as a limit."""
    held = parse_held(data)
    limits = parse_limits(data)
    assert min(limits) >= 0
    if held is not None:
        assert len(data) < LARGEST
        assert held.limits == limits
        lines = [found for line in data.split(b"\n")[1:-1] if (found := LINE.fullmatch(line))]
        assert held[1:] == (sum(int(each[1]) for each in lines), sum(int(each[2]) for each in lines), len(lines))
        written = format_held(held.limits, held.bytes, held.messages)
        assert parse_held(written) == held._replace(lines=1)
    for line in data.splitlines(keepends=True):
        _check_written(decoded(line))


def _check_written(text: str) -> None:
    size: int | None = None
    try:
        size = size_of(text)
    except ValueError:
        pass
    else:
        assert size is not None
        assert 0 <= size <= LARGEST_SIZE
        assert size_of(str(size)) == size
        assert text.isascii()
    try:
        limits = limits_of(text)
    except ValueError:
        return
    assert text.isascii()
    quota = quota_of(text, is_permanent=True)
    assert quota is not None
    assert quota.limits == limits
    if limits is not None:
        assert limits == limits_of(
            ",".join(f"{number}{unit}" for number, unit in zip(limits, "SC", strict=True) if number)
        )
        assert size is None or limits == Limits(size, 0)
        assert not limits.refuse(limits.bytes, limits.messages)
