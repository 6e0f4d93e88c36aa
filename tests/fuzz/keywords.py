"""``dovecot-keywords``, and keywords as they are asked for."""

from maildir_async.format.keywords import MOST, check_keywords, format_keywords, key, parse_keywords
from maildir_async.mailbox.check_files import _broken

from .cutting import decoded

__all__ = ["target"]

PIECES = (b"0 a\n", b"1 b\r\n", b"25 z\n", b"26 no\n", b" ", b"\n", b"\r", b"\0", b"00001 ", b"\xb2", b"A", b"-1 x\n")


def target(data: bytes) -> None:
    """Read *data* as that file, and each of its words as a keyword."""
    names = parse_keywords(data)
    assert all(0 <= index < MOST and name and "\n" not in name for index, name in names.items())
    assert len({key(name) for name in names.values()}) == len(names) <= MOST
    assert parse_keywords(format_keywords(names)) == names
    lines = data.split(b"\n")
    for index, name in names.items():
        assert any(
            b" " in line and line.split(b" ")[0].lstrip(b"0") in (b"%d" % index, b"" if not index else b"-")
            for line in lines
            if name.encode("latin-1") in line
        )
    assert bool(_broken(data)) == (len([line for line in lines if line]) != len(names))
    for word in decoded(data).split():
        try:
            (checked,) = check_keywords([word])
        except ValueError:
            continue
        assert checked == word
        assert word.isascii()
        assert word.isprintable()
        assert parse_keywords(format_keywords({3: word})) == {3: word}
