"""Maps: which address goes where, by aliases, for whole domains; and which lines are mistakes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async.smtp import AddressMap, Layout, MapFile, Target
from maildir_async.smtp.addresses import parse_address, parse_key
from support import reproducible


def loaded(tmp_path: Path, text: str, **options: Any) -> MapFile:
    (tmp_path / "map").write_text(text)
    found = MapFile(tmp_path / "map", **options)
    found.load()
    return found


def listed(found: Any) -> Sequence[str | os.PathLike[str]]:
    return [found] if isinstance(found, str | os.PathLike) else (found or ())


def shown(found: Any, own: str = "") -> list[tuple[str, str]]:
    """Return paths and the addresses that mail to them is for, "" for the recipient's *own*."""
    names = [target.address if isinstance(target, Target) else own for target in listed(found)]
    return [(os.fspath(path), "" if name == own else name) for path, name in zip(listed(found), names, strict=True)]


ALIASES: Final = """\
alice@example.org      /mail/alice
bob@example.org        /mail/b o,b
both@example.org       alice@example.org, Bob+x@example.org,alice@example.org
all@example.org        both@example.org, /mail/archive, "/mail/a, b", owner@example.net
lists+x@example.org    /mail/x
"a b"@example.org      "c, d"@example.org
"c, d"@example.org     /mail/cd
@example.net           alice@example.org
info@example.net       /mail/info
info+own@example.net   /mail/own
@[192.0.2.1]           /mail/literal
me@[IPv6:2001:db8::1]  /mail/me
a/b@example.org        /mail/ab
"a\\"b"@example.org     /mail/quote
"""


@pytest.mark.parametrize(
    ("address", "targets"),
    [
        ("Alice@Example.org", [("/mail/alice", "")]),
        ('"alice"@example.org', [("/mail/alice", "")]),
        ("alice+" + "x" * 188 + "@example.org", [("/mail/alice", "")]),
        ("alice+a/b..c@example.org", [("/mail/alice", "")]),
        ("bob@example.org", [("/mail/b o,b", "")]),
        ("both@example.org", [("/mail/alice", "alice@example.org"), ("/mail/b o,b", "Bob+x@example.org")]),
        (
            "all+x@example.org",
            [
                ("/mail/alice", "alice@example.org"),
                ("/mail/b o,b", "Bob+x@example.org"),
                ("/mail/archive", ""),
                ("/mail/a, b", ""),
            ],
        ),
        ("lists@example.org", []),
        ("lists+x@example.org", [("/mail/x", "")]),
        ("lists+y@example.org", []),
        ('"a b"@example.org', [("/mail/cd", '"c, d"@example.org')]),
        ("anybody@example.net", [("/mail/alice", "alice@example.org")]),
        ("info@example.net", [("/mail/info", "")]),
        ("info+x@example.net", [("/mail/info", "")]),
        ("info+own@example.net", [("/mail/own", "")]),
        ('".."@example.net', [("/mail/alice", "alice@example.org")]),
        ("me@[192.0.2.1]", [("/mail/literal", "")]),
        ("me@[ipv6:2001:DB8:0::1]", [("/mail/me", "")]),
        ("me@[192.0.2.2]", []),
        ("A/B@example.org", [("/mail/ab", "")]),
        ('"a/b"@example.org', [("/mail/ab", "")]),
        ('"a\\"b"@example.org', [("/mail/quote", "")]),
        ("nobody@example.org", []),
        ("anybody@sub.example.net", []),
        ("example.net", []),
        ("@example.net", []),
        ('""@example.net', []),
        ("a b@example.net", []),
        ("postmaster", []),
    ],
)
def test_where_mail_goes(tmp_path: Path, address: str, targets: list[tuple[str, str]]) -> None:
    """The exact entry wins, then the one without the detail, then the whole domain's; each path of an alias once."""
    assert shown(loaded(tmp_path, ALIASES)(address), address) == targets


@pytest.mark.parametrize(
    ("address", "details"),
    [
        ("alice@example.org", [""]),
        ("Alice+Lists@example.org", ["Lists"]),
        ('"alice+a b"@example.org', ["a b"]),
        ("alice+@example.org", [""]),
        ("lists+x@example.org", [""]),
        ("info+own@example.net", [""]),
        ("nobody+x@example.net", [""]),
        ("both@example.org", ["", "x"]),
        ("both+y@example.org", ["y", "x"]),
        ("all+y@example.org", ["y", "x", "y", "y"]),
        ("two@example.org", ["a", "b", ""]),
        ("two+y@example.org", ["a", "b", "y"]),
    ],
)
def test_what_a_detail_goes_with(tmp_path: Path, address: str, details: list[str]) -> None:
    """With who is found without it, as it is written, and through aliases where those have none of their own."""
    more = "two@example.org alice+a@example.org, alice+b@example.org, alice@example.org\n"
    found = listed(loaded(tmp_path, ALIASES + more)(address))
    assert [target.detail if isinstance(target, Target) else "" for target in found] == details


MISTAKES: Final = {
    "a star": ("*@example.org /mail/x", "'@example.org', without the star"),
    "an alias to nobody": ("x@example.org nobody@example.org", "nobody"),
    "an alias to another domain": ("x@example.org alice@example.com", "nobody"),
    "itself": ("x@example.org x@example.org", "back to itself"),
    "itself, among others": ("x@example.org alice@example.org, X+y@example.org", "back to itself"),
    "a loop": ("x@example.org y@example.org\ny@example.org z@example.org\nz@example.org x@example.org", "itself"),
    "a loop by a domain": ("@example.com x@example.com", "back to itself"),
    "nothing": ("x@example.org", "paths and addresses are wanted"),
    "a relative path": ("x@example.org mail/x", "neither an absolute path nor an address"),
    "a relative path behind": ("x@example.org /mail/x, mail/y", "neither an absolute path nor an address"),
    "no comma": ("x@example.org alice@example.org bob@example.org", "commas"),
    "two commas": ("x@example.org alice@example.org,,bob@example.org", "commas"),
    "a domain": ("x@example.org @example.org", "neither"),
    "no address": ("x@@example.org /mail/x", "not an address"),
    "no domain": ("@ /mail/x", "not an address"),
    "a dot": ("@.example.org /mail/x", "not an address"),
    "a name too long": ("x@example.org /mail/" + "x" * 256, "no file system"),
    "a path too long": ("x@example.org " + "/mail" * 820, "no file system"),
    "the same": ('"alice"@EXAMPLE.org /mail/x', "'alice@example.org' is there already"),
    "a literal": ("x@[192.0.2.256] /mail/x", "not an address"),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    """Each is a ValueError that names the line, and what was known before stays."""
    good = "alice@example.org /mail/alice\nbob@example.org /mail/bob\n"
    resolve = loaded(tmp_path, good)
    (tmp_path / "map").write_text(good + text + "\n")
    with pytest.raises(ValueError, match=r"map, line [345]: ") as caught:
        resolve.load()
    assert words in str(caught.value)
    assert resolve("alice@example.org") == "/mail/alice"


def test_long_chains_and_many_targets(tmp_path: Path) -> None:
    """A chain may be as long as a file; one address has 1,000 maildirs at most, as with Postfix."""
    chain = "".join(f"a{number}@x.example a{number + 1}@x.example\n" for number in range(3000))
    assert shown(loaded(tmp_path, f"{chain}a3000@x.example /mail/end\n")("a0@x.example")) == [
        ("/mail/end", "a3000@x.example")
    ]
    for count in (1000, 1001):
        text = "all@x.example " + ", ".join(f"/mail/{number}" for number in range(count))
        if count == 1000:
            assert len(shown(loaded(tmp_path, text)("all@x.example"))) == count
        else:
            with pytest.raises(ValueError, match="line 1: 1 to 1000 maildirs"):
                loaded(tmp_path, text)


def test_delimiters_of_a_map(tmp_path: Path) -> None:
    """Those it is told of, also where an alias leads to; none of them, none divides."""
    text = "a@x.example /mail/a\na-b@x.example /mail/ab\nto@x.example a-c@x.example\n"
    resolve = loaded(tmp_path, text, delimiters="-")
    assert [resolve(f"{local}@x.example") for local in ("a-b", "a-c", "a", "a+c")] == [
        "/mail/ab",
        Target("/mail/a", "a-c@x.example", "c"),
        "/mail/a",
        None,
    ]
    assert shown(resolve("to@x.example")) == [("/mail/a", "a-c@x.example")]
    assert loaded(tmp_path, "a@x.example /mail/a", delimiters="")("a+b@x.example") is None
    with pytest.raises(ValueError, match="delimiter"):
        MapFile(tmp_path / "map", delimiters="a")


def test_postmaster_of_a_map(tmp_path: Path) -> None:
    """Without a domain he is the line of that name, or else the first of a domain; the line is for the domains too."""
    resolve = loaded(tmp_path, "a@x.example /mail/a\npostmaster@x.example /mail/x\npostmaster@y.example /mail/y\n")
    assert resolve("PostMaster") == "/mail/x"
    assert resolve("postmaster+x") == Target("/mail/x", "postmaster+x", "x")
    resolve = loaded(tmp_path, "a@x.example /mail/a\npostmaster a@x.example\n")
    assert shown(resolve("postmaster")) == shown(resolve("Postmaster@x.example")) == [("/mail/a", "a@x.example")]
    assert resolve("postmaster@y.example") is None
    resolve = loaded(tmp_path, "@x.example /mail/all\npostmaster /mail/p\n")
    assert resolve("postmaster@x.example") == "/mail/all"


def test_an_emptied_map_is_refused(tmp_path: Path) -> None:
    """It may be one being written: the old one stays. The first may be empty."""
    resolve = loaded(tmp_path, "")
    resolve.load()
    assert resolve("a@x.example") is None
    (tmp_path / "map").write_text("a@x.example /mail/a\n")
    resolve.load()
    (tmp_path / "map").write_text("\n")
    with pytest.raises(ValueError, match="no addresses any more"):
        resolve.load()
    assert resolve("a@x.example") == "/mail/a"


def test_aliases_in_memory(tmp_path: Path) -> None:
    """A mapping has aliases too: an address, or a list of addresses and paths."""
    mapping: Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]] = {
        "a@x.example": tmp_path / "a, b",
        "b@x.example": "a@x.example",
        "c@x.example": ["b@x.example", "/mail/c"],
        "@x.example": ("c@x.example",),
    }
    resolve = AddressMap(mapping)
    assert shown(resolve("a@x.example")) == [(f"{tmp_path}/a, b", "")]
    assert shown(resolve("b@x.example")) == [(f"{tmp_path}/a, b", "a@x.example")]
    assert shown(resolve("z@x.example")) == [(f"{tmp_path}/a, b", "a@x.example"), ("/mail/c", "c@x.example")]
    with pytest.raises(ValueError, match="z@x"):
        AddressMap({"z@x.example": []})


def test_what_resolvers_know_of_a_site(tmp_path: Path) -> None:
    """A map makes no maildir's parent, a layout nothing before its first field; each knows its domains."""
    resolve = loaded(tmp_path, "a@x.example /mail/x/a\n")
    assert resolve.root_of("/mail/x/a") == "/mail/x"
    assert [resolve.has_domain(domain) for domain in ("x.example", "y.example")] == [True, False]
    assert Layout("/mail/a{user}/b").root_of("") == "/mail"


letters = st.text(alphabet="abB09.-_+'\"\\/ @\u00e9\u0301\u00c9\u0130\u00df\u212a\u0345[]:", max_size=9)


@reproducible
@given(letters, st.sampled_from(["example.com", "[192.0.2.1]"]) | letters, st.sampled_from(["", "+", "+-"]))
def test_keys_are_wider_than_addresses(local: str, domain: str, delimiters: str) -> None:
    """Where an address can name a directory, the key of a map is that address; and each is in its last form."""
    text = f"{local}@{domain}"
    address, key = parse_address(text, delimiters), parse_key(text, delimiters)
    if address is not None and key is not None:
        assert key == address
    if key is not None:
        assert key.whole.isprintable()
        quoted = key.whole_local.replace("\\", "\\\\").replace('"', '\\"')
        assert parse_key(f'"{quoted}"@{key.domain}', delimiters) == key
