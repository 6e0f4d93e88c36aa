"""Folder names: what is refused, what stands on the disk, and that each comes back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.format.folders import LONGEST, FolderEncoding, directory_of, folder_of, parts_of

UTF_7 = [
    ("Archive/2024", ".Archive.2024"),
    ("Entwürfe", ".Entw&APw-rfe"),
    ("a&b", ".a&-b"),
    ("&&", ".&-&-"),
    ("ü&ü", ".&APw-&-&APw-"),
    ("日本語/台北", ".&ZeVnLIqe-.&U,BTFw-"),  # RFC 3501 §5.1.3
    ("😀", ".&2D3eAA-"),
    ("a b", ".a b"),
    ("a\\b~:", ".a\\b~:"),
]

UTF_8 = [
    ("Archive/2024", ".Archive.2024"),
    ("Entwürfe", ".Entwürfe"),
    ("a.b", ".a\\056b"),
    ("~a:b\\c", ".\\176a\\072b\\134c"),
    ("a&b", ".a&b"),
]


@pytest.mark.parametrize(("folder", "directory", "encoding"), [
    *((folder, directory, "utf-7") for folder, directory in UTF_7),
    *((folder, directory, "utf-8") for folder, directory in UTF_8),
])  # fmt: skip
def test_names_on_the_disk(folder: str, directory: str, encoding: FolderEncoding) -> None:
    """Each folder has the directory that Dovecot or Courier gives it, and is found again by that."""
    assert directory_of(parts_of(folder), encoding) == directory
    assert folder_of(directory, encoding) == folder


@pytest.mark.parametrize("folder", [None, "", "INBOX", "inbox", [], ["INBOX"]])
def test_the_maildir_itself(folder: "str | list[str] | None") -> None:
    """These are no folder, but the maildir."""
    assert parts_of(folder) == ()


@pytest.mark.parametrize(
    "folder", ["/", "a/", "/a", "a//b", ["a/b"], [""], "a\0b", "a\nb", "a\x7f", "a\x85", "\ud800", ["a", "\udc00x"]]
)
def test_refused_in_every_encoding(folder: "str | list[str]") -> None:
    """No encoding carries these."""
    with pytest.raises(ValueError, match=r"^folder has "):
        parts_of(folder)


@pytest.mark.parametrize("folder", [1, b"a", ["a", 1], object()])
def test_what_is_no_name(folder: object) -> None:
    """A name is text."""
    with pytest.raises(TypeError, match=r"^folder must be "):
        parts_of(folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", [".", "..", "a.b", "a/../b", "x/."])
def test_a_dot_in_utf_7(folder: str) -> None:
    """A dot separates parts on the disk, and modified UTF-7 has no other way to write it."""
    with pytest.raises(ValueError, match=r"with a dot.*; write / between folders"):
        directory_of(parts_of(folder), "utf-7")


@pytest.mark.parametrize("encoding", ["utf-7", "utf-8"])
def test_a_name_has_an_end(encoding: FolderEncoding) -> None:
    """A name that a file system would not take with what readers put behind it is refused."""
    assert len(directory_of(["a" * (LONGEST - 1)], encoding)) == LONGEST
    with pytest.raises(ValueError, match="bytes"):
        directory_of(["a" * LONGEST], encoding)
    with pytest.raises(ValueError, match="bytes"):
        directory_of(["ü" * 130], encoding)


@pytest.mark.parametrize(
    "directory",
    [
        "",
        "a",
        ".",
        "..",
        "..a",
        ".a.",
        ".a..b",
        ".a&b",
        ".&APw",
        ".&AGE-",
        ".&APw-&APw-",
        ".a\tb",
        ".Entwürfe",
        ".&2D0-",
    ],
)
def test_what_no_folder_is_called(directory: str) -> None:
    """What others have left in a maildir, or written in another encoding, is no folder."""
    assert folder_of(directory, "utf-7") is None


PARTS = st.lists(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
).filter(lambda parts: [part.upper() for part in parts] != ["INBOX"])


@given(PARTS, st.sampled_from(["utf-7", "utf-8"]))
def test_comes_back(parts: list[str], encoding: FolderEncoding) -> None:
    """Whatever can be written is read back as it was, and has nothing in it that a directory's name must not have."""
    if encoding == "utf-7":
        parts = [part.replace(".", "x") for part in parts]
    directory = directory_of(parts, encoding)
    assert folder_of(directory, encoding) == "/".join(parts)
    assert "/" not in directory
    assert directory.count(".") == len(parts)
