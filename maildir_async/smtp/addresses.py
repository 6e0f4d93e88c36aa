"""What an address of a RCPT command names: a local part and a domain that are safe as names of directories. Pure."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import idna

__all__ = ["Address", "host_name", "parse_address", "unquoted"]

LOCAL_MAX: Final = 64  # octets: RFC 5321 §4.5.3.1.1
HOST_MAX: Final = 253  # octets without a dot at the end: RFC 1035 §2.3.4
LABEL_MAX: Final = 63

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

#: Letters, digits and hyphens (RFC 952), and the underscore, which some sites have in the names of their hosts.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Address:
    """An address in one form for all its spellings: lower case, NFC, the domain in ASCII.

    Attributes:
        local: the local part, without *detail*.
        domain: "" for the one address without, postmaster (RFC 5321 §4.5.1).
        detail: what follows the first ``+`` of the local part (RFC 5233), or "".

    """

    local: str
    domain: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}" if self.domain else self.local

    @property
    def whole_local(self) -> str:
        """The local part with its detail."""
        return f"{self.local}+{self.detail}" if self.detail else self.local

    @property
    def whole(self) -> str:
        """The address with its detail."""
        return f"{self.whole_local}@{self.domain}" if self.domain else self.whole_local


def parse_address(text: str) -> Address | None:
    """Return the address, or None if it can name no mailbox here.

    The local part can be used as the name of a directory, and so can the domain: neither is empty, begins with a dot,
    or has a slash, a NUL, a space, or anything that cannot be seen. An address that breaks these rules is nobody's,
    even where RFC 5321 would let it be somebody's.
    """
    local, at, domain = text.rpartition("@")
    folded = _folded(unquoted(local if at else text))
    if folded is None:
        return None
    user, _, detail = folded.partition("+")
    if not user:
        user, detail = folded, ""
    if user.endswith("."):
        return None  # no dot-string, without its detail
    if not at:
        return Address(user, "", detail) if user == "postmaster" else None
    host = host_name(domain)
    return Address(user, host, detail) if host is not None else None


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


def _folded(local: str) -> str | None:
    """Return a local part as it is compared and stored, or None for one that no user here has."""
    if len(local) > LOCAL_MAX:
        return None
    if local.isascii():
        folded = local.lower()
    else:
        # Once more after lower(), which may take a letter apart.
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", local).lower())
        if not _is_of_letters(folded):
            return None
    # A length that lower() changes counts in the form that is stored; both are far below a file name's 255.
    return folded if _LOCAL.fullmatch(folded) and len(folded.encode()) <= LOCAL_MAX else None


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
