"""Files of addresses: a map, users, and the template of a layout."""

import os

from maildir_async.smtp.layout import Layout
from maildir_async.smtp.maps import AddressMap, Elsewhere, MapFile
from maildir_async.smtp.recipients import Target
from maildir_async.smtp.tables import UserFile

from .cutting import decoded

__all__ = ["target"]

PIECES = (
    *(
        b"a@b.example ",
        b"c@b.example ",
        b"@b.example ",
        b"/srv/a",
        b"/srv/a b",
        b'"/srv/a, b"',
        b", ",
        b",",
        b"\n",
        b"#",
    ),
    *(
        b"*@b.example ",
        b'"q q"@b.example ',
        b"\xef\xbb\xbf",
        b"\xff",
        b"a+x@b.example",
        b"postmaster ",
        b" ",
        b"\t",
        b"\r\n",
    ),
    *(b"{user}", b"{domain}", b"/", b"{", b"..", b"\0", b"\xe3\x80\x80", b'"', b"\\"),
)

ASKED = (
    "a@b.example",
    "a+x@b.example",
    "c@b.example",
    "x@b.example",
    "postmaster",
    "postmaster@b.example",
    "no",
    '"q q"@b.example',
)


def target(data: bytes) -> None:
    """Read *data* as such a file: a ValueError, or answers that are absolute paths."""
    fd = os.memfd_create("map")
    try:
        os.write(fd, data)
        path = f"/proc/self/fd/{fd}"
        for is_partial in (False, True):
            _check_map(path, data, is_partial=is_partial)
        _check_users(path, data)
    finally:
        os.close(fd)
    _check_template(decoded(data))


def _check_map(path: str, data: bytes, *, is_partial: bool) -> None:
    table = MapFile(path, is_partial=is_partial)
    try:
        table.load()
    except ValueError as exc:
        assert str(exc).startswith(f"{path}, line ")  # noqa: PT017 anything else is raised
        return
    for address in ASKED:
        found = table(address)
        for goal in found if isinstance(found, (tuple, list)) else [found]:
            if goal is None:
                continue
            if isinstance(goal, Elsewhere):
                assert is_partial
                continue
            assert isinstance(goal, (str, Target))
            told = os.fspath(goal)
            assert told.startswith("/")
            assert os.fsencode(told) in data
    if not is_partial:
        lines = [
            line
            for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            if line.strip() and not line.strip().startswith(b"#")
        ]
        assert len(table._map.found) == len(lines)  # type: ignore[union-attr]  # it has been loaded


def _check_users(path: str, data: bytes) -> None:
    users = UserFile(path)
    try:
        users.load()
    except ValueError as exc:
        assert str(exc).startswith(f"{path}, line ")  # noqa: PT017 anything else is raised
        return
    layout = Layout("/srv/{domain}/{user}", users=users)
    for address in ASKED:
        found = layout.find(address)
        assert found is None or os.fspath(found).startswith("/srv/")


def _check_template(text: str) -> None:
    try:
        layout = Layout(text, create=True)
    except ValueError:
        pass
    else:
        first, second = (layout.find(f"{name}@b.example") for name in "ac")
        assert first != second or first is None
        for found in (first, second):
            assert found is None or os.path.normpath(found) == os.fspath(found)
            assert found is None or os.fspath(found).startswith(layout.root_of(os.fspath(found)) + "/")
    try:
        AddressMap({"a@b.example": text})
    except ValueError:
        return
    assert AddressMap({"a@b.example": text})("a@b.example") == text
