"""What an address of a RCPT command names: a local part and a domain that are safe as names of directories. Pure."""

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import idna

__all__ = [
    "Address",
    "check_delimiters",
    "destination",
    "detail_of",
    "host_name",
    "parse_address",
    "parse_key",
    "unquoted",
]

LOCAL_MAX: Final = 64  # octets: RFC 5321 §4.5.3.1.1
HOST_MAX: Final = 253  # octets without a dot at the end: RFC 1035 §2.3.4
LABEL_MAX: Final = 63

#: Characters of an address, which is nobody's if it has more: no path of SMTP has as many octets (`PATH_MAX` in
#: ``paths.py``), and to bring ten thousand accents over one letter into order takes Unicode's normal form a second.
ADDRESS_MAX: Final = 1024

#: Names of hosts that are kept as they come out: most come again.
KEPT: Final = 256

#: A dot-string (RFC 5321 §4.1.2) in lower case. Its atext is without "/", which no file name may hold; what is not
#: ASCII is looked at by itself. A hyphen in front looks like an option to whoever lists the directory in a shell.
_LOCAL: Final = re.compile(
    r"(?!-)[a-z0-9!#$%&'*+\-=?^_`{|}~\x80-\U0010ffff]+(?:\.[a-z0-9!#$%&'*+\-=?^_`{|}~\x80-\U0010ffff]+)*"
)

#: Letters in lower case, marks that belong to one, digits (RFC 8264 §4.2 allows no more for names of users). All else
#: of Unicode looks like something it is not, or cannot be seen, or is no character at all.
_CATEGORIES: Final = frozenset({"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"})

#: Marks and letters that cannot be seen: what Unicode's Default_Ignorable_Code_Point has in those categories.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)

#: A quoted string, and atoms with dots between them or anywhere (RFC 5321 §4.1.2, RFC 6531 §3.3).
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_UNQUOTED: Final = re.compile(r'[^\s"(),:;<>@\[\\\]]+')

#: An address literal in lower case: of IPv4, or with a tag.
_LITERAL: Final = re.compile(r"\[(?:[0-9.]+|[a-z0-9-]*[a-z0-9]:[!-Z^-~]+)\]")

#: Names that are whole although ``-`` is a delimiter.
_UNDIVIDED: Final = re.compile(r"owner-.*|.+-request|mailer-daemon", re.IGNORECASE | re.DOTALL)

#: Letters, digits and hyphens (RFC 952), and the underscore, which some sites have in the names of their hosts.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Address:
    """An address in one form for all its spellings: lower case, NFC, the domain in ASCII.

    Attributes:
        local: the local part, without *detail*: the user.
        domain: "" for the one address without, postmaster (RFC 5321 §4.5.1).
        detail: what follows the first delimiter of the local part (RFC 5233), or "".
        delimiter: that character; ``+`` where there is no detail.

    """

    local: str
    domain: str
    detail: str = ""
    delimiter: str = "+"

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local

    @property
    def whole_local(self) -> str:
        """The local part with its detail."""
        return f"{self.local}{self.delimiter}{self.detail}" if self.detail else self.local

    @property
    def whole(self) -> str:
        """The address with its detail."""
        return f"{self.whole_local}@{self.domain}" if self.domain else self.whole_local


def parse_address(text: str, delimiters: str = "+") -> Address | None:
    """Return the address, or None if its user can have no directory of his name here.

    The user's name can be used as the name of a directory, and so can the domain: neither is empty, begins with a dot,
    or has a slash, a NUL, a space, or anything that cannot be seen. An address that breaks these rules is nobody's,
    even where RFC 5321 would let it be somebody's. The 64 octets of RFC 5321 are the user's too. The detail is free:
    it may hold whatever can be seen, and is never part of a path.

    Args:
        text: the address, without angle brackets.
        delimiters: characters that separate user and detail (see `divided`); "" for none.

    """
    if len(text) > ADDRESS_MAX:
        return None
    local, at, domain = text.rpartition("@")
    name, delimiter, detail = divided(unquoted(local if at else text), delimiters)
    user = _folded(name)
    if user is None:
        return None
    if detail:
        detail = folded(detail)
        if not detail.isprintable():
            return None
    else:
        delimiter = "+"
    if not at:
        return Address(user, "", detail, delimiter) if user == "postmaster" else None
    host = host_name(domain)
    return Address(user, host, detail, delimiter) if host is not None else None


def parse_key(text: str, delimiters: str = "+") -> Address | None:
    """Return any address in the form in which addresses are compared, or None for what is none.

    No path may be made of it: the local part may hold a slash, and blanks if it is quoted, and the domain may be an
    address literal. What is quoted is the same as what it stands for (RFC 5321 §4.1.2).
    """
    if len(text) > ADDRESS_MAX:
        return None
    local, at, domain = text.rpartition("@")
    if text.endswith("]"):
        local, at, rest = text.rpartition("@[")
        domain = f"[{rest}"
    name = local if at else text
    if (
        not (_QUOTED if name.startswith('"') else _UNQUOTED).fullmatch(name)
        or not (name := unquoted(name)).isprintable()
    ):
        return None
    user, delimiter, detail = divided(folded(name), delimiters)
    if not user:
        return None  # the empty string, quoted
    if not detail:
        delimiter = "+"
    if not at:
        return Address(user, "", detail, delimiter) if user == "postmaster" else None
    host = destination(domain)
    return Address(user, host, detail, delimiter) if host is not None else None


def detail_of(text: str, delimiters: str) -> str:
    """Return the detail of an address as it is written, or "" if it has none."""
    local, at, _ = text.rpartition("@")
    return divided(unquoted(local if at else text), delimiters)[2]


def destination(domain: str) -> str | None:
    """Return a domain, or an address literal (RFC 5321 §4.1.3), in the one form that all spellings of it have."""
    if not domain.startswith("["):
        return host_name(domain)
    literal = domain.lower()
    if not _LITERAL.fullmatch(literal):
        return None
    tag, colon, content = literal[1:-1].partition(":")
    try:
        if not colon:
            return f"[{ipaddress.IPv4Address(tag)}]"
        return f"[ipv6:{ipaddress.IPv6Address(content)}]" if tag == "ipv6" else literal
    except ValueError:
        return None


def divided(local: str, delimiters: str) -> tuple[str, str, str]:
    """Return user, delimiter and detail of a local part; the whole of it as the user where it has no detail.

    Each of *delimiters* ends the user's name where it comes first, unless it is the first character of all. Where ``-``
    is one of them, ``owner-list``, ``list-request`` and ``mailer-daemon`` are whole names. All this is as Postfix has
    it (``recipient_delimiter`` in postconf(5), ``owner_request_special``, and split_addr.c for what it never splits).
    """
    if len(delimiters) == 1 and delimiters != "-":
        name, delimiter, detail = local.partition(delimiters)
    else:
        at = next((at for at, char in enumerate(local) if char in delimiters), len(local))
        name, delimiter, detail = local[:at], local[at : at + 1], local[at + 1 :]
        if "-" in delimiters and _UNDIVIDED.fullmatch(local):
            return local, "", ""
    return (name, delimiter, detail) if name else (local, "", "")


def check_delimiters(delimiters: str) -> str:
    """Return *delimiters*; ValueError if one could be part of any user's name, or of no local part at all."""
    if not isinstance(delimiters, str):  # pyright: ignore[reportUnnecessaryIsInstance] it comes from callers
        raise TypeError(f"delimiters must be str, not {delimiters!r}")
    for char in delimiters:
        if not char.isascii() or not char.isprintable() or char.isalnum() or char in ' "(),:;<>@[\\]':
            raise ValueError(f"not a delimiter between user and detail: {char!r}")
    return delimiters


def unquoted(local: str) -> str:
    """Return what a quoted string stands for (RFC 5321 §4.1.2), or *local* as it is."""
    if len(local) >= 2 and local.startswith('"') and local.endswith('"'):
        return re.sub(r"\\(.)", r"\1", local[1:-1])
    return local


@lru_cache(KEPT)
def host_name(domain: str) -> str | None:
    """Return *domain* in ASCII and lower case; None for address literals, and whatever else is no name of a host.

    U-labels become A-labels as RFC 5891 has it, and not as RFC 3490 had: to that one ß was ss, and so two domains one.
    """
    domain = domain.removesuffix(".")  # that of the root (RFC 1034 §3.1)
    if len(domain) > HOST_MAX:
        return None
    labels: list[str] = []
    for part in domain.split("."):
        label = unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).lower())
        if not label.isascii() or label.startswith("xn--"):
            try:
                label = idna.alabel(label).decode("ascii")
            except UnicodeError:
                return None
        if len(label) > LABEL_MAX or not _LABEL.fullmatch(label):
            return None
        labels.append(label)
    name = ".".join(labels)
    return name if len(name) <= HOST_MAX else None


def folded(text: str) -> str:
    """Return *text* in the one form in which it is compared: lower case and NFC."""
    if text.isascii():
        return text.lower()
    # Once more after lower(), which may take a letter apart.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


def _folded(user: str) -> str | None:
    """Return a user's name as it is compared and stored, or None for one that no user here has."""
    if len(user) > LOCAL_MAX:
        return None
    name = folded(user)
    if not name.isascii() and not _is_of_letters(name):
        return None
    # A length that lower() changes counts in the form that is stored; both are far below a file name's 255.
    return name if _LOCAL.fullmatch(name) and len(name.encode()) <= LOCAL_MAX else None


def _is_of_letters(folded: str) -> bool:
    # What NFKC changes looks like something else: a fullwidth solidus like a solidus, two dot leaders like "..".
    if unicodedata.normalize("NFKC", folded) != folded or _INVISIBLE.search(folded):
        return False
    if any(not char.isascii() and unicodedata.category(char) not in _CATEGORIES for char in folded):
        return False  # surrogates too, which stand for bytes that were not UTF-8
    # A mark needs a letter before it: it would be seen on the "/" of a path, or on the dot.
    return not any(
        unicodedata.category(char).startswith("M") and before in "./+"
        for before, char in zip("/" + folded, folded, strict=False)
    )
