"""Addresses: one form for all spellings of one, and none for what cannot be the name of a directory."""

import unicodedata
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maildir_async.smtp.addresses import Address, host_name, parse_address
from support import reproducible


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("alice@example.com", Address("alice", "example.com")),
        ("Alice@EXAMPLE.com", Address("alice", "example.com")),
        ("alice+lists@example.com", Address("alice", "example.com", "lists")),
        ("alice+a+b@example.com", Address("alice", "example.com", "a+b")),
        ("alice+@example.com", Address("alice", "example.com")),
        ("alice+.x@example.com", Address("alice", "example.com", ".x")),
        ("+alice@example.com", Address("+alice", "example.com")),
        ('"alice"@example.com', Address("alice", "example.com")),
        ('"al\\ice"@example.com', Address("alice", "example.com")),
        ("o'neil#1@example.com", Address("o'neil#1", "example.com")),
        ("a%b=c!d@localhost", Address("a%b=c!d", "localhost")),
        ("J\u00dcRGEN@B\u00dcCHER.example", Address("j\u00fcrgen", "xn--bcher-kva.example")),
        ("ju\u0308rgen@XN--bcher-kva.example", Address("j\u00fcrgen", "xn--bcher-kva.example")),
        ("\u039f\u0394\u039f\u03a3@\u039f\u0394\u039f\u03a3.gr", Address("\u03bf\u03b4\u03bf\u03c2", "xn--pxavbm.gr")),
        ("\u7528\u6237@example.com", Address("\u7528\u6237", "example.com")),
        ("a" * 64 + "@example.com", Address("a" * 64, "example.com")),
        ("\u00e9" * 32 + "@example.com", Address("\u00e9" * 32, "example.com")),
        ("postmaster", Address("postmaster", "")),
        ("Postmaster", Address("postmaster", "")),
        ("postmaster+x", Address("postmaster", "", "x")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    """All spellings of an address come to one, which is written as it is parsed."""
    assert parse_address(text) == address
    assert parse_address(address.whole) == address
    assert parse_address(str(address)) == Address(address.local, address.domain)


LOCALS: Final = (
    *(
        "",
        ".",
        "..",
        ".a",
        "a.",
        "a..b",
        "../a",
        "a/b",
        "a\\b",
        "a\0",
        "a\n",
        "a\x7f",
        "a b",
        " a",
        "a ",
        "-rf",
        "a.+x",
        "+.",
    ),
    *('"../a"', '"a/b"', '".a"', '"a b"', '"a@b"', '"\\/a"', '"a\\\0"', '""', '"', '"a', 'a"', 'a"b"', '""a""', "a(b)"),
    *(
        "a:b",
        "a,b",
        "a;b",
        "<a>",
        "[a]",
        "a" * 65,
        "\u00e9" * 33,
        "\u2c65" * 22,
        "\u023a" * 32,
    ),  # three octets as \u2c65
    # Seen as something else: solidi, dots, spaces, letters.
    *("\uff0fa", "a\u2215b", "a\u2044b", "\u2024\u2024", "\uff0e\uff0e", "a\u3002b", "\uff41", "\ufb01", "\u017f"),
    *("a\u00aa", "a\u00a0", "a\u2003", "a\u3000", "a\u2028", "a\x85", "\u00b7", "\u2260", "\U0001f600"),
    # Not seen at all, or no characters.
    *("a\u200b", "a\u200d", "\u202ea", "\u2066a", "\ufeffa", "a\u00ad", "a\ufe0f", "a\u034f", "\u115f", "\u3164"),
    *("\U000e0041", "a\U000e0100", "\ud800", "a\udce9", "\ue000", "\uffff", "\u0378"),
    # A mark on what is no letter.
    *("\u0301a", "a.\u0301", "a+\u0301", "a/\u0338"),
)


@pytest.mark.parametrize("local", LOCALS)
def test_local_parts_that_nobody_has(local: str) -> None:
    """What could be more than the name of one directory, or look like another one's, is nobody's."""
    assert parse_address(f"{local}@example.com") is None
    assert parse_address(local) is None


DOMAINS: Final = (
    *("", ".", "..", "../x", "a..b", ".a", "a.", "a/b", "[127.0.0.1]", "[IPv6:::1]", "a b", "a\0", "a\n", "-a", "a-.b"),
    *("a" * 64, "a." * 126 + "aa", "\u00e9" * 63, "\uff41.b", "a\u3002b", "a\uff0eb", "\u2024", "a\u00ad", "a\u200b"),
    *("\ud800", "xn--\u00e9", "xn--", "xn--a", "xn--zzzzzzzzzz99999", "xn--example-", "a*b", "{user}", "\U0001f600.a"),
    *("\u0301a", "a@", ".".join(["\u00e9"] * 36)),
)


@pytest.mark.parametrize("domain", DOMAINS)
def test_domains_that_are_none(domain: str) -> None:
    """Literals, dots at the ends, and what is no host name in IDNA2008."""
    assert host_name(domain) is None
    assert parse_address(f"alice@{domain}") is None


def test_domains_that_differ() -> None:
    """\u00df is not ss, as it was in IDNA2003: those are two domains, of two owners."""
    assert host_name("stra\u00dfe.example") == "xn--strae-oqa.example"
    assert host_name("STRASSE.example") == "strasse.example"
    assert host_name("a_b.example") == "a_b.example"
    assert host_name("a." * 126 + "a") == "a." * 126 + "a"


def test_without_a_domain_there_is_only_postmaster() -> None:
    """RFC 5321 §4.5.1 names him alone."""
    for text in ("alice", "postmasters", "postmaster@", "@", "@example.com", ""):
        assert parse_address(text) is None


letters = st.text(
    alphabet="abzABZ09.-_+'\"\\/ \u00e9\u0301\u00c9\u0130\u0131\u0307\u00df\u1e9e\u03a3\u03c3\u03c2\u212a\u0345",
    max_size=9,
)


@reproducible
@given(st.text(max_size=70) | letters, st.sampled_from(["example.com", "B\u00fccher.example"]) | st.text() | letters)
@example("\u1fb3\u0301", "example.com")
@example("\u0345\u0301", "example.com")
def test_what_is_parsed_is_in_its_last_form(local: str, domain: str) -> None:
    """To parse it again changes nothing, and both parts are names of directories, for any text at all."""
    address = parse_address(f"{local}@{domain}")
    if address is None:
        return
    assert parse_address(address.whole) == address
    assert address.domain.isascii()
    for part in (address.local, address.whole_local, address.domain):
        assert part
        assert part[0] not in ".-"
        assert part.isprintable()
        assert not set(part) & set('/\\" :\0')
        assert part == unicodedata.normalize("NFKC", part) == unicodedata.normalize("NFC", part.lower())
        assert len(part.encode()) <= 253
