"""The paths of MAIL and RCPT, and their parameters: RFC 5321 §4.1.2 and §4.1.3, with UTF-8 by RFC 6531 §3.3. Pure.

The envelope is read by this grammar alone. A header parser has comments, folding and encoded words, which an envelope
has not: it would find another address than the client has written.

Three kindnesses. Empty atoms (``a..b``, ``a.``, ``.a``), which real local parts have. A dot at the end of the domain
(``a@b.example.``). An underscore in the domain, which some sites have in the names of their hosts.
"""

import ipaddress
import re
from typing import Final, NamedTuple

from maildir_async.smtp.addresses import host_name

__all__ = [
    "PATH_MAX",
    "Mailbox",
    "is_recipient",
    "parse_mailbox",
    "parse_parameters",
    "parse_path",
    "parse_vrfy",
    "xtext_is_valid",
]

#: Octets of a path. RFC 5321 §4.5.3.1.3 has 256, and says that a server should take more: senders of mailing lists
#: have whole addresses in their local parts. A Return-Path header of that much fits into a line of 998 octets.
PATH_MAX: Final = 900

#: Octets of a domain: RFC 5321 §4.5.3.1.2.
DOMAIN_MAX: Final = 255

#: Octets of an argument up to which a plain path cannot be too long, nor its domain.
PLAIN_MAX: Final = DOMAIN_MAX

# Every repetition is possessive (no backtracking), and what follows one cannot be part of it: linear time, any input.
# Of groups it is an atomic group that repeats: before Python 3.11.5 a possessive group keeps what it has matched of a
# repetition that fails (gh-106052), and "a@b.." was a mailbox.

_ATEXT: Final = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-"

#: Atoms with dots before, between and after them; at least one atom.
_ATOMS: Final = rf"\.*+[{_ATEXT}][{_ATEXT}.]*+"
_QUOTED: Final = r'"(?>(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*)"'

#: Letters, digits, hyphens; not in front of a label nor at its end. U-labels are looked at by `host_name`.
_LABEL: Final = r"(?!-)[A-Za-z0-9_\x80-\U0010ffff-]++(?<!-)"
_DOMAIN: Final = rf"{_LABEL}(?>(?:\.{_LABEL})*)"
_LITERAL: Final = r"\[[!-Z^-~]++\]"

#: A source route, which must be accepted, and should be ignored (RFC 5321 §4.1.1.3 and appendix C).
_ROUTE: Final = rf"@{_DOMAIN}(?>(?:,@{_DOMAIN})*):"

_MAILBOX: Final = re.compile(rf"({_ATOMS}|{_QUOTED})@({_DOMAIN}\.?+|{_LITERAL})")
_POSTMASTER: Final = re.compile("postmaster", re.IGNORECASE | re.ASCII)
_LOCAL: Final = re.compile(rf"{_ATOMS}|{_QUOTED}")

_MAILBOX_OR_NAME: Final = rf"(?:{_ATOMS}|{_QUOTED})(?>(?:@(?:{_DOMAIN}\.?+|{_LITERAL}))?)"

#: A path in angle brackets with what follows it. Spaces between parameters are left to `parse_parameters`.
_PATH: Final = re.compile(rf"<(?>(?:{_ROUTE})?)((?>(?:{_MAILBOX_OR_NAME})?))>(?: (.*))?")

#: A mailbox such as nearly all are, which needs no second look.
_USUAL: Final = r"[a-z0-9._+=-]*+(?<=[a-z0-9_])@(?>(?:[a-z0-9]++[.-])*)[a-z0-9]++"
_PLAIN_MAILBOX: Final = re.compile(_USUAL, re.IGNORECASE | re.ASCII)
_PLAIN_PATH: Final = re.compile(rf"<({_USUAL})>(?: (.*))?", re.IGNORECASE | re.ASCII)

#: RFC 5321 §4.1.3. General literals have a registered tag; IPv6 is the only one there is, the others name nobody here.
_IPV4: Final = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}", re.ASCII)
_GENERAL: Final = re.compile(r"[A-Za-z0-9-]*+(?<=[A-Za-z0-9]):[!-Z^-~]++")

#: RFC 5321 §4.1.2: keywords, each alone or with a value.
_PARAMETERS: Final = re.compile(r" *+(?>(?:[A-Za-z0-9][A-Za-z0-9-]*+(?>(?:=[!-<>-~]++)?)(?: ++|$))*)")

#: RFC 4954 §8: what stands for a mailbox in AUTH=.
_XTEXT: Final = re.compile(r"(?>(?:[!-*,-<>-~]|\+[0-9A-F]{2})*)")

#: Seen by nobody, but they belong into words of some scripts (RFC 5892 appendix A), where they change what is seen.
_JOINERS: Final = re.compile("[\u200c\u200d]")


class Mailbox(NamedTuple):
    """A mailbox as it is written.

    Attributes:
        local: the local part, with its quotes if it has any.
        domain: the domain or the address literal; "" for postmaster, who may be without.

    """

    local: str
    domain: str


def parse_path(text: str) -> tuple[str, str] | None:
    """Return the path and the parameters that follow ``FROM:`` or ``TO:``, or None if there is no path.

    The path is what stands between the brackets, without a source route, as it is written; "" is the null path.

    Spaces and tabs may come before the path, which RFC 5321 §3.3 forbids: old clients send them, and what is in a path
    does not depend on that.
    """
    if (plain := _PLAIN_PATH.fullmatch(text)) is not None and len(text) <= PLAIN_MAX:
        return plain[1], plain[2] or ""
    text = text.lstrip(" \t")
    found = _PATH.fullmatch(text)
    if found is None:
        return None
    address: str = found[1]
    if address:
        if parse_mailbox(address) is None:
            return None
    elif not text.startswith("<>"):
        return None  # a source route to nobody
    return address, found[2] or ""


def parse_mailbox(text: str) -> Mailbox | None:
    """Return a mailbox, or None if *text* is none: ``local@domain``, or postmaster (RFC 5321 §4.1.1.3)."""
    if len(text) > PATH_MAX:
        return None
    found = _MAILBOX.fullmatch(text)
    if found is None:
        return Mailbox(text, "") if _POSTMASTER.fullmatch(text) else None
    local, domain = found.groups()
    if len(domain) > DOMAIN_MAX or (domain.startswith("[") and not _is_literal(domain[1:-1])):
        return None
    if not text.isascii():
        # A byte that is not UTF-8 is no character; controls and line separators are no text; a blank is no atom.
        if not _JOINERS.sub("", text).isprintable() or len(text.encode()) > PATH_MAX:
            return None
        if not domain.isascii() and (len(domain.encode()) > DOMAIN_MAX or host_name(domain) is None):
            return None
    return Mailbox(local, domain)


def is_recipient(text: str) -> bool:
    """Whether *text* can be the address of a recipient: `parse_mailbox` takes it."""
    if len(text) <= PLAIN_MAX and _PLAIN_MAILBOX.fullmatch(text):
        return True
    return parse_mailbox(text) is not None


def parse_vrfy(text: str) -> str | None:
    """Return whom VRFY asks for, or None: a mailbox, with brackets or without, or a user's name (RFC 5321 §3.5.1)."""
    text = text.strip(" \t")
    if text.startswith("<"):
        path = parse_path(text)
        return path[0] or None if path is not None and not path[1] else None
    if is_recipient(text):
        return text
    is_name = len(text) <= PATH_MAX and text.isprintable() and _LOCAL.fullmatch(text)
    return text if is_name else None


def parse_parameters(text: str) -> dict[str, str | None] | None:
    """Return the parameters of MAIL or RCPT: keyword in capitals → value as it is written, None where it has none.

    None if they are malformed. Of one that is there twice, as Python's smtplib sends SIZE for those who say it by
    themselves, the last counts.
    """
    if not _PARAMETERS.fullmatch(text):
        return None
    parameters: dict[str, str | None] = {}
    for word in text.split():
        keyword, _, value = word.partition("=")
        parameters[keyword.upper()] = value or None
    return parameters


def xtext_is_valid(text: str) -> bool:
    """Whether *text* is xtext (RFC 3461 §4), as the value of AUTH= is. ``<>`` is among it."""
    return _XTEXT.fullmatch(text) is not None


def _is_literal(text: str) -> bool:
    """Whether an address literal may have this between its brackets."""
    if _IPV4.fullmatch(text):
        return all(int(part) < 256 for part in text.split("."))
    if text[:5].upper() == "IPV6:":
        try:
            return not ipaddress.IPv6Address(text[5:]).scope_id
        except ValueError:
            return False
    return _GENERAL.fullmatch(text) is not None
