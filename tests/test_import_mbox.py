"""The mbox splitter: what it finds is what Python's `mailbox` and a reader that goes line by line find."""

import mailbox
import re
import tempfile
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maildir_async.mail_import.mbox as mbox_module
from maildir_async.mail_import.mbox import Dialect, Mbox, is_from_line
from support import reproducible

#: The default suite has little time; `-m heavy` draws many more.
few: Final = settings(reproducible, max_examples=40)
many: Final = settings(reproducible, max_examples=3000)

DATED: Final = b"From alice@example.org Sun Nov 29 00:00:00 2026\n"
HEADER: Final = b"Subject: x\n\n"


class Bytes:
    """Gives bytes in chunks of a size, and lets them be peeked at or not."""

    def __init__(self, data: bytes, size: int = 1 << 18, *, can_peek: bool = True) -> None:
        self._data = data
        self._size = size
        self._at = 0
        self._can_peek = can_peek

    def read(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + min(size, self._size)]
        self._at += len(piece)
        return piece

    def peek(self, offset: int, size: int) -> bytes | None:
        return self._data[offset : offset + size] if self._can_peek else None


def split(
    data: bytes, dialect: Dialect = "auto", size: int = 1 << 18, *, can_peek: bool = True
) -> tuple[list[bytes], list[str]]:
    """Return the messages in *data*, and what was said to be odd."""
    odd = list[str]()
    mbox = Mbox(Bytes(data, size, can_peek=can_peek), dialect, lambda offset, text: odd.append(f"{offset}: {text}"))
    return [b"".join(part.pieces) for part in mbox.parts()], odd


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (b"From alice@example.org Sun Nov 29 00:00:00 2026", True),
        (b"From alice@example.org Sun Nov 29 00:00:00 2026\r", True),
        (b"From - Tue Jan  1 10:00:00 2002", True),
        (b"From MAILER-DAEMON Tue Jan  1 10:00 EST 2002", True),
        (b"From a b c Tue Jan  1 10:00:00 2002 +0100", True),
        (b"From a Tue Jan  1 10:00:00 2002 remote from b", True),
        (b"From a Tue, 01 Jan 2002 10:00:00 +0100", True),
        (b"From  Tue Jan  1 10:00:00 2002", True),
        (b"From here on, all is well", False),
        (b"From Jan 1 to Jan 3 2002 at 10:00 I was away", False),
        (b"From: a Tue Jan  1 10:00:00 2002", False),
        (b">From a Tue Jan  1 10:00:00 2002", False),
    ],
)
def test_which_lines_are_from_lines(line: bytes, is_one: bool) -> None:
    """A From line has a date, with a zone or without, and perhaps a sender; text that begins with From has none."""
    assert is_from_line(line) is is_one


@pytest.mark.parametrize("size", [1, 7, 1 << 18])
@pytest.mark.parametrize(
    ("data", "messages", "odd"),
    [
        (b"", [], []),
        (b"\n\r\n\n", [], []),
        (DATED, [b""], []),
        (DATED + b"\n", [b""], []),
        (DATED + HEADER + b"a\n\n" + DATED + HEADER + b"b\n\n", [HEADER + b"a\n", HEADER + b"b\n"], []),
        (b"\n\n\n" + DATED + HEADER + b"a\n\n\n", [HEADER + b"a\n\n"], []),
        (DATED + HEADER + b"a\n\nFrom here on\n", [HEADER + b"a\n\nFrom here on\n"], ["no date"]),
        (DATED + HEADER + b"a\n" + DATED + b"b\n", [HEADER + b"a\n" + DATED + b"b\n"], []),
        (DATED + HEADER + b"a\n" + DATED + HEADER + b"b\n", [HEADER + b"a\n", HEADER + b"b\n"], ["no empty line"]),
        (DATED + HEADER + b"a", [HEADER + b"a"], ["cut off"]),
        (b"junk\n\n" + DATED + HEADER + b"a\n", [b"junk\n", HEADER + b"a\n"], ["no From line"]),
        (b"From nobody\n" + HEADER + b"a\n", [HEADER + b"a\n"], []),
        (DATED + HEADER + b"\0a\0\n\n" + DATED + b"\0\n", [HEADER + b"\0a\0\n", b"\0\n"], []),
        (DATED + HEADER + b">From a\n>>From b\n> From c\n>x\n", [HEADER + b"From a\n>From b\n> From c\n>x\n"], []),
        (
            b"From a Sun Nov 29 00:00:00 2026\r\nA: b\r\n\r\nx\r\n\r\nFrom a Sun Nov 29 00:00:00 2026\r\nA: c\r\n\r\n",
            [b"A: b\r\n\r\nx\r\n", b"A: c\r\n"],
            [],
        ),
        (b"From a Sun Nov 29 00:00:00 2026\rA: b\r\rx\r", [b"From a Sun Nov 29 00:00:00 2026\rA: b\r\rx\r"], ["", ""]),
    ],
)
def test_where_messages_begin_and_end(data: bytes, messages: list[bytes], odd: list[str], size: int) -> None:
    """Messages are cut at From lines alone, and what is odd is named, in whatever pieces the file is read."""
    found, said = split(data, size=size)
    assert found == messages
    assert len(said) == len(odd)
    assert all(part in text for part, text in zip(odd, said, strict=True)), said


@pytest.mark.parametrize("size", [1, 7, 1 << 18])
@pytest.mark.parametrize("can_peek", [False, True])
@pytest.mark.parametrize(
    ("length", "is_trusted"), [(0, False), (1, False), (None, True), (4, False), (1000, False), (10**17, False)]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_content_length_is_believed_where_it_fits(
    length: int | None, is_trusted: bool, size: int, can_peek: bool, end: str
) -> None:
    """A body of the right length may have From lines in it; by a wrong one nothing is lost, and it is named."""
    line = DATED.replace(b"\n", end.encode())
    inner = line + b"A: b".replace(b"\n", end.encode()) + end.encode()
    body = b"x" + end.encode() * 2 + inner
    header = f"Content-Length: {len(body) if length is None else length}{end}{end}".encode()
    data = line + header + body + end.encode() + line + header.replace(b"Content-Length", b"X") + b"y" + end.encode()

    found, odd = split(data, size=size, can_peek=can_peek)

    if is_trusted:
        assert found == [header + body, header.replace(b"Content-Length", b"X") + b"y" + end.encode()]
        assert odd == []
    else:
        assert found[0] == header + b"x" + end.encode()
        assert len(found) == 3
        assert any("Content-Length" in text for text in odd)


@pytest.mark.parametrize(
    ("dialect", "kept"),
    [("auto", b"From \n>From \n"), ("mboxrd", b"From \n>From \n"), ("mboxo", b">From \n>>From \n")],
)
def test_what_quoting_means(dialect: Dialect, kept: bytes) -> None:
    """Of mboxrd one angle bracket is taken away; of mboxo, where nobody can know, none."""
    assert split(DATED + HEADER + b">From \n>>From \n", dialect)[0] == [HEADER + kept]


def reference(data: bytes, dialect: Dialect) -> list[bytes]:
    """Return the messages of *data*, which begins with a From line, by a second reading of the rules, line by line."""
    lines = re.findall(rb"[^\n]*\n|[^\n]+\Z", data)
    messages = list[list[bytes]]()
    for number, line in enumerate(lines):
        is_dated = is_from_line(line.removesuffix(b"\n")) and line.endswith(b"\n")
        before = lines[number - 1] if number else b""
        after = lines[number + 1] if number + 1 < len(lines) else b""
        if number == 0 or (
            is_dated and (before in (b"\n", b"\r\n") or re.match(rb"[!-9;-~]+[ \t]*:", after) is not None)
        ):
            if messages and messages[-1] and messages[-1][-1] in (b"\n", b"\r\n"):
                del messages[-1][-1]
            messages.append([])
        else:
            messages[-1].append(re.sub(rb"^>(>*From )", rb"\1", line) if dialect == "mboxrd" else line)
    if messages and messages[-1] and messages[-1][-1] in (b"\n", b"\r\n"):
        del messages[-1][-1]
    return [b"".join(message) for message in messages]


LINES: Final = st.lists(
    st.sampled_from(
        [
            *(DATED, b"From here\n", b">From a\n", b">>From b\n", b"\n", b"\r\n", b"Subject: x\n", b"text\n"),
            *(DATED[:-1] + b"\r\n", b"From \n", b"\0\n", b"\r\r\n", b"From", b">", b"x" * 60 + b"\n"),
        ]
    ),
    max_size=14,
).map(b"".join)


@few
@given(LINES, st.sampled_from(["mboxrd", "mboxo"]), st.integers(1, 40))
def test_pieces_of_any_size_are_split_as_line_by_line(rest: bytes, dialect: Dialect, size: int) -> None:
    """The splitter finds what a reader that goes line by line does, however the file comes."""
    data = DATED + rest
    assert split(data, dialect, size)[0] == reference(data, dialect)


@pytest.mark.heavy
@many
@given(LINES, st.sampled_from(["mboxrd", "mboxo"]), st.integers(1, 40))
def test_many_files_are_split_as_line_by_line(rest: bytes, dialect: Dialect, size: int) -> None:
    """The same for many more files."""
    data = DATED + rest
    assert split(data, dialect, size)[0] == reference(data, dialect)


@few
@given(LINES)
def test_a_long_line_is_not_kept_whole(rest: bytes) -> None:
    """A line that is longer than any piece goes on as it comes, and nothing of it is lost or unquoted by mistake."""
    before, mbox_module.CHUNK = mbox_module.CHUNK, 16  # type: ignore[misc]
    try:
        data = DATED + b"y" * 5000 + rest
        assert split(data, "mboxrd")[0] == reference(data, "mboxrd")
    finally:
        mbox_module.CHUNK = before  # type: ignore[misc]


BODIES: Final = st.lists(
    st.sampled_from([b"From a\n", b">From b\n", b"\n", b"text\n", b"> From\n", b"\xff\0\n"]), max_size=6
).map(b"".join)


@few
@given(st.lists(BODIES, min_size=1, max_size=5))
def test_what_python_has_written_comes_back(bodies: list[bytes]) -> None:
    """Of an mbox that Python's `mailbox` has written each message comes back as that module reads it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "mbox")
        box = mailbox.mbox(path)
        for body in bodies:
            box.add(HEADER + body)
        box.flush()
        expected = [box.get_bytes(key) for key in sorted(box.keys())]
        box.close()
        assert split(path.read_bytes(), "mboxo")[0] == expected
