"""Addresses: one form for all spellings of one, and none for what cannot be the name of a directory."""

import unicodedata
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maildir_async.smtp.addresses import Address, check_delimiters, host_name, parse_address
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
    *("\u0301a", "a.\u0301", "a/\u0338"),
)


@pytest.mark.parametrize("local", LOCALS)
def test_local_parts_that_nobody_has(local: str) -> None:
    """What could be more than the name of one directory, or look like another one's, is nobody's."""
    assert parse_address(f"{local}@example.com") is None
    assert parse_address(local) is None


REPLY: Final = "reply+" + "x" * 188  # with the 64 octets of a user, which are the user's alone


@pytest.mark.parametrize(
    ("text", "user", "detail"),
    [
        (REPLY, "reply", "x" * 188),
        ("a" * 64 + "+" + "x" * 100, "a" * 64, "x" * 100),
        ("list+alice=example.org", "list", "alice=example.org"),
        ("srs0+hash=tt=example.org=alice", "srs0", "hash=tt=example.org=alice"),
        *(("a+x..y", "a", "x..y"), ("a+x.", "a", "x."), ("a+x/y", "a", "x/y"), ("a+../../etc", "a", "../../etc")),
        *(("A+\u00c9T\u00c9", "a", "\u00e9t\u00e9"), ("a+\u0301", "a", "\u0301"), ("a+e\u0301", "a", "\u00e9")),
        ('"a+b c"', "a", "b c"),
        ('"a+b@c"', "a", "b@c"),
        ("a+\U0001f600", "a", "\U0001f600"),
    ],
)
def test_the_detail_is_free(text: str, user: str, detail: str) -> None:
    """RFC 5233 bounds no detail: VERP, SRS and reply tokens have what no user's name may have."""
    assert parse_address(f"{text}@example.com") == Address(user, "example.com", detail)


@pytest.mark.parametrize("local", ["a+\0", "a+\n", "a+\x7f", "a+\ud800", "a+\u202e", "a" * 65 + "+x", ".+x", "a b+x"])
def test_details_that_are_none(local: str) -> None:
    """What cannot be seen is in no detail; and the rules for users hold for them, with a detail or without."""
    assert parse_address(f"{local}@example.com") is None


@pytest.mark.parametrize(
    ("delimiters", "local", "user", "detail", "delimiter"),
    [
        *(("", "a+b", "a+b", "", "+"), ("-", "a+b", "a+b", "", "+"), ("-", "a-b", "a", "b", "-")),
        *(("-", "a-b-c", "a", "b-c", "-"), ("+-", "a-b+c", "a", "b+c", "-"), ("-+", "a+b-c", "a", "b-c", "+")),
        *(("-", "a-", "a", "", "+"), ("+-", "+a-b", "+a-b", "", "+"), (".", "a.b", "a", "b", ".")),
        *(("-", "owner-list", "owner-list", "", "+"), ("-", "List-Request", "list-request", "", "+")),
        *(("-", "list-request-x", "list", "request-x", "-"), ("-", "mailer-daemon", "mailer-daemon", "", "+")),
        *(("+", "owner-list+x", "owner-list", "x", "+"), ("_=", "a=b_c", "a", "b_c", "=")),
    ],
)
def test_delimiters(delimiters: str, local: str, user: str, detail: str, delimiter: str) -> None:
    """Each of several divides where it comes first, but not in front; what Postfix never divides stays whole."""
    address = parse_address(f"{local}@example.com", delimiters)
    assert address == Address(user, "example.com", detail, delimiter)
    assert parse_address(address.whole, delimiters) == address


def test_a_hyphen_in_front_is_no_name() -> None:
    """With a hyphen for a delimiter too: it would look like an option."""
    assert parse_address("-a@example.com", "-") is None
    assert parse_address("-a@example.com", "+-") is None


@pytest.mark.parametrize("delimiters", ["a", "7", " ", "@", '"', "\\", "(", "\u00b7", "\n", "+a"])
def test_delimiters_that_are_none(delimiters: str) -> None:
    """Letters and digits would take every name apart, and what is in no unquoted local part none."""
    with pytest.raises(ValueError, match="delimiter"):
        check_delimiters(delimiters)


def test_good_delimiters() -> None:
    """Any, several, or none."""
    for delimiters in ("", "+", "-", "+-", "=_./!#$%&'*?^`{|}~"):
        assert check_delimiters(delimiters) == delimiters


DOMAINS: Final = (
    *("", ".", "..", "../x", "a..b", ".a", "a/b", "[127.0.0.1]", "[IPv6:::1]", "a b", "a\0", "a\n", "-a", "a-.b"),
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
    assert host_name("a.example.") == "a.example"  # the same, with the root's dot
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
    assert address.whole.isprintable()
    for part in (address.local, address.domain):
        assert part
        assert part[0] not in ".-"
        assert part.isprintable()
        assert not set(part) & set('/\\" :\0')
        assert part == unicodedata.normalize("NFKC", part) == unicodedata.normalize("NFC", part.lower())
        assert len(part.encode()) <= 253
