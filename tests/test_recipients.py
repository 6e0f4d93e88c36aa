"""From addresses to maildirs: whatever a client writes, it names one of the site's maildirs or none."""

import asyncio
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maildir_async.smtp import AddressMap, Layout, MapFile, Target, UserFile
from support import reproducible

HOSTILE: Final = (
    *("../alice", "..", ".", ".alice", "alice.", "a..b", "alice/../bob", "/etc/passwd", "alice/", "alice\\bob", ""),
    *("alice\0", "alice\n", "ali ce", "\talice", "alice\r\n", "\x7falice", "+", "+detail", "-", "~root", "{user}"),
    *('"../alice"', '"alice/bob"', '".alice"', '" alice"', '"\\/alice"', '"a\\\0b"', '""', '"', '"alice', "a@b"),
    *(
        "\uff0falice",
        "alice\u2215bob",
        "\u2024\u2024",
        "\uff0e\uff0e\uff0f",
        "alice\u200b",
        "\u202ealice",
    ),
    *(
        "\ufeffalice",
        "\u0301alice",
        "a\u00adlice",
        "\ud800",
        "alice\udce9",
        "\u2126",
        "\ufb01sh",
        "\u3164",
        "\U000e0041",
        "\u2028",
        "a\ufe0f",
        "a\u034f",
        "\u115f",
        "\u00b7",
        "a.\u0338",
        "\u2260",
    ),
    *("a" * 65, "\u00e9" * 33, "*", "a|b", "a`b`", "$(id)", "%2e%2e", "..+x", ".+x", "a.+x", "a+../x", "a+x/../y"),
)
"""Local parts that somebody has tried somewhere, or may."""

HOSTILE_DOMAINS: Final = (
    *(
        "",
        ".",
        "..",
        "../x",
        "a..b",
        ".example",
        "example..",
        "a/b",
        "[127.0.0.1]",
        "[IPv6:::1]",
        "a b",
        "a\0b",
        "-a.b",
    ),
    *("a" * 64, "a." * 127 + "aa", "ex\uff0fample", "\u2024\u2024.example", "a\nb", "a_b/../c", "{user}", "xn--\u00e9"),
)


def found(resolver: Layout, address: str) -> str | None:
    return asyncio.run(_found(resolver, address))


async def _found(resolver: Layout, address: str) -> str | None:
    path = await resolver(address)
    return None if path is None else os.fspath(path)


def assert_inside(path: str, template: str) -> None:
    """It has as many parts as the template, the same where that has no field, and none that is hidden or no name."""
    parts, wanted = path.split("/"), template.split("/")
    assert len(parts) == len(wanted)
    for part, want in zip(parts, wanted, strict=True):
        if "{" not in want:
            assert part == want
        else:
            assert part
            assert not part.startswith(".")
            assert not set(part) & set("/\0\n\r")
            assert part.isprintable()
            assert len(os.fsencode(part)) <= 255
            assert unicodedata.normalize("NFKC", part) == part
    assert os.path.normpath(path) == path


TEMPLATE: Final = "/var/mail/{domain}/{user}/Maildir"


def test_hostile_addresses_are_nobody_s_or_stay_inside() -> None:
    """None of them leads out, or to a hidden file."""
    for local in HOSTILE:
        for address in (f"{local}@example.com", local):
            path = found(Layout(TEMPLATE, create=True), address)
            if path is not None:
                assert_inside(path, TEMPLATE)
    assert found(Layout(TEMPLATE, create=True), "postmaster") is None
    for domain in HOSTILE_DOMAINS:
        assert found(Layout(TEMPLATE, create=True), f"alice@{domain}") is None, domain


@reproducible
@given(st.text() | st.from_regex(r"[^@]*@[^@]*") | st.builds("{}@{}".format, st.sampled_from(HOSTILE), st.text()))
@example('"\\.\\./x"@example.com')
def test_any_text_stays_inside(address: str) -> None:
    """Whatever the address, the path has the parts of the template."""
    path = found(Layout(TEMPLATE, create=True), address)
    if path is not None:
        assert_inside(path, TEMPLATE)


@reproducible
@given(st.data())
def test_mutated_hostile_local_parts_stay_inside(data: st.DataObject) -> None:
    """Pieces of hostile addresses in any order."""
    pieces = data.draw(st.lists(st.sampled_from([*HOSTILE, *'./\\"+@ab\0\u2024\uff0f']), max_size=5))
    quoted = data.draw(st.booleans())
    local = "".join(pieces)
    path = found(Layout(TEMPLATE, create=True), f'"{local}"@example.com' if quoted else f"{local}@example.com")
    if path is not None:
        assert_inside(path, TEMPLATE)


names = st.text(alphabet="abcxyzABC019.-_+\u00e9\u0301\u00c9e\u0130\u0131i\u00df\u1e9e", min_size=1, max_size=12)


@reproducible
@given(names, names)
def test_different_users_have_different_maildirs(first: str, second: str) -> None:
    """Two addresses share a maildir only if they differ in case, detail, or how an accent is written."""
    layout = Layout(TEMPLATE, create=True)
    one, other = found(layout, f"{first}@example.com"), found(layout, f"{second}@example.com")
    if one is not None and one == other:

        def user(text: str) -> str:
            return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).partition("+")[0]

        assert user(first) == user(second)


async def test_a_user_exists_if_the_maildir_does(tmp_path: Path) -> None:
    """Without a list of users, and without create, it is looked whether there is a maildir."""
    (tmp_path / "alice" / "new").mkdir(parents=True)
    (tmp_path / "bob").mkdir()
    layout = Layout(f"{tmp_path}/{{user}}")
    assert await layout("Alice+x@example.com") == Target(f"{tmp_path}/alice", "Alice+x@example.com", "x")
    assert await layout("bob@example.com") is None
    assert await layout("carol@example.com") is None


async def test_users_of_a_file(tmp_path: Path) -> None:
    """Those listed exist, with any detail; a detail may be listed, too. A bad file changes nothing."""
    file = tmp_path / "users"
    file.write_text("# users\n\nAlice@example.com\nbob+own@example.com\npostmaster\n")
    users = UserFile(file)
    layout = Layout("/mail/{domain}/{user}", users=users)
    with pytest.raises(RuntimeError, match="not been loaded"):  # a client is told to come again
        await layout("alice@example.com")
    users.load()
    assert await layout("alice@example.com") == "/mail/example.com/alice"
    assert await layout("alice+x@example.com") == Target("/mail/example.com/alice", "alice+x@example.com", "x")
    assert await layout("bob+own@example.com") == "/mail/example.com/bob+own"
    assert await layout("bob@example.com") is None
    assert await layout("postmaster") is None  # the template wants a domain, and no postmaster here has one
    assert await Layout("/mail/{user}", users=users)("postmaster") == "/mail/postmaster"
    file.write_text("postmaster\nbob@a.example\npostmaster@b.example\npostmaster@c.example\n")
    users.load()
    assert await layout("Postmaster") == "/mail/b.example/postmaster"
    file.write_text("postmaster@b.example\n")
    users.load()
    assert await layout("POSTMASTER") == "/mail/b.example/postmaster"
    found = Target("/mail/postmaster", "postmaster+x", "x")
    assert await Layout("/mail/{user}", users=users)("postmaster+x") == found
    file.write_text("postmaster\nbob@a.example\n")
    users.load()
    assert await layout("postmaster") is None  # nor has any domain one
    assert await layout("postmaster@a.example") is None
    assert await Layout("/mail/{user}", users=users)("Postmaster@a.example") == "/mail/postmaster"
    assert await Layout("/mail/{user}", users=users)("postmaster@b.example") is None
    file.write_text("Alice@example.com\nbob+own@example.com\n")
    users.load()
    file.write_text("carol@example.com\nnot an address\n")
    with pytest.raises(ValueError, match="line 2"):
        users.load()
    assert await layout("carol@example.com") is None
    assert await layout("alice@example.com") == "/mail/example.com/alice"
    file.write_text("carol@example.com\n")
    users.load()
    assert await layout("carol@example.com") == "/mail/example.com/carol"
    assert await layout("alice@example.com") is None


def test_a_map_in_a_file(tmp_path: Path) -> None:
    """An address and a path a line; what is not listed is unknown."""
    file = tmp_path / "map"
    file.write_text("# map\nAlice@Example.com  /mail/a b/c\nbob@example.com\t/mail/bob\nbob+x@example.com /mail/x\n")
    resolve = MapFile(file)
    with pytest.raises(RuntimeError, match="not been loaded"):
        resolve("bob@example.com")
    resolve.load()
    assert resolve("alice+z@example.COM") == Target("/mail/a b/c", "alice+z@example.COM", "z")
    assert resolve("bob@example.com") == "/mail/bob"
    assert resolve("bob+x@example.com") == "/mail/x"
    assert resolve("bob+y@example.com") == Target("/mail/bob", "bob+y@example.com", "y")
    assert resolve("../bob@example.com") is None
    bads = (b"bob@example.com\n", b"bob@example.com mail/bob\n", b"bob /mail/bob\n", b"ALICE@example.com /mail/new\n")
    for bad in (*bads, b"b\xe9b@example.com /mail/bob\n", b"bob@example.com /mail/\0\n", b"a,b@example.com /mail/b"):
        file.write_bytes(b"alice@example.com /mail/new\n" + bad)
        with pytest.raises(ValueError, match="line 2"):
            resolve.load()
        assert resolve("alice@example.com") == "/mail/a b/c"


def test_a_map_file_is_bytes(tmp_path: Path) -> None:
    """A path need not be UTF-8; an editor's mark, CRLF and a missing last line end are no part of a line."""
    file = tmp_path / "map"
    file.write_bytes(b"\xef\xbb\xbfbob@example.com /mail/b\xe9b\r\nj\xc3\xbcrgen@example.com /mail/j\xe2\x80\xa8 x")
    resolve = MapFile(file)
    resolve.load()
    assert resolve("bob@example.com") == os.fsdecode(b"/mail/b\xe9b")
    assert resolve("JU\u0308RGEN@example.com") == "/mail/j\u2028 x"


def test_a_map_without_its_file(tmp_path: Path) -> None:
    """Until there is a file to read, who is known stays as it was."""
    resolve = MapFile(tmp_path / "map")
    with pytest.raises(FileNotFoundError):
        resolve.load()
    (tmp_path / "map").write_text("postmaster /mail/admin\n")
    resolve.load()
    (tmp_path / "map").unlink()
    with pytest.raises(FileNotFoundError):
        resolve.load()
    assert resolve("Postmaster") == "/mail/admin"


def test_a_map_in_memory(tmp_path: Path) -> None:
    """A mapping has the rules of a file, and is copied."""
    paths: dict[str, str | os.PathLike[str]] = {"Bob@example.com": tmp_path, "bob+x@example.com": "/mail/x"}
    resolve = AddressMap(paths)
    paths.clear()
    assert resolve('"bob"@EXAMPLE.com') == str(tmp_path)
    assert resolve("bob+y@example.com") == Target(str(tmp_path), "bob+y@example.com", "y")
    assert resolve("bob+x@example.com") == "/mail/x"
    assert resolve("carol@example.com") is None
    bad: Mapping[str, str]
    for bad in ({"bob": "/mail/bob"}, {"bob@a": "mail/bob"}, {"bob@a": "/m/1", "BOB@a": "/m/2"}, {"bob@a": "/m\0"}):
        with pytest.raises(ValueError, match="bob"):
            AddressMap(bad)


async def test_a_maildir_being_made_is_one(tmp_path: Path) -> None:
    """One of its directories is enough: to say that there is no such user would be for ever."""
    for name in ("cur", "new", "tmp"):
        (tmp_path / name / name).mkdir(parents=True)
        assert await Layout(f"{tmp_path}/{{user}}")(f"{name}@example.com") == f"{tmp_path}/{name}"


async def test_a_name_too_long_is_nobody_s() -> None:
    """A part of a path beyond what file systems take is no maildir, rather than an error for ever."""
    layout = Layout("/mail/{domain}@{user}", create=True)
    domain = ".".join(["a" * 49] * 5)
    assert await layout(f"alice@{domain}") == f"/mail/{domain}@alice"
    assert await layout(f"alice-and-bob@{domain}") is None


@reproducible
@given(
    st.sampled_from(["/m/{user}@{domain}", "/m/{domain}_:{user}", "/m/{domain}/{user}", "/m/x{user}/{domain}y/{user}"]),
    st.lists(st.text(alphabet="ab.-_@:", min_size=1, max_size=7), min_size=4, max_size=4),
)
def test_no_template_makes_two_users_one(template: str, parts: list[str]) -> None:
    """Where user and domain are in one name too, addresses that differ have different paths."""
    addresses = [f"{parts[0]}@{parts[1]}", f"{parts[2]}@{parts[3]}"]
    one, other = (found(Layout(template, create=True), address) for address in addresses)
    assert one is None or one != other or addresses[0] == addresses[1]


def test_a_slash_at_the_end_of_a_template() -> None:
    """It is as if it were not there."""
    assert found(Layout("/mail/{user}/", create=True), "alice@example.com") == "/mail/alice"


@pytest.mark.parametrize(
    "template",
    [
        *("/mail/{name}", "/mail/all", "mail/{user}", "/mail/../{user}", "/mail/{user}/\0", "/mail/{user}}", "", "/"),
        *(
            "/{user}/Maildir",
            "/{domain}/{user}",
            "/mail//{user}",
            "/mail/./{user}",
            "/mail/{user!r}",
            "/mail/{user:>9}",
        ),
        *("/mail/{user}-{domain}", "/mail/{domain}{user}", "/mail/{domain}.{user}", "/mail/{}/{user}", "//mail/{user}"),
        *("/mail/{{user}}", "~/{user}", "/mail/{user}/{detail}", "mail/all/{user}", "/mail/{user}_{domain}"),
    ],
)
def test_templates_that_cannot_be_right(template: str) -> None:
    """A template without a user, with an unknown field, relative, or leading elsewhere is refused at once."""
    with pytest.raises(ValueError, match="template"):
        Layout(template)
