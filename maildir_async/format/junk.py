"""A header field that marks a message as junk. Pure."""

import re
from typing import Final

__all__ = ["JunkHeader"]

#: Bytes of a message in which its header is looked for what marks it.
HEADER_MAX: Final = 64 * 2**10

#: RFC 5322 §2.2.
_FIELD: Final = re.compile(r"([!-9;-~]+)[ \t]*:[ \t]*(\S.*)")

_HEADERS_END: Final = re.compile(rb"(?:\A|\n)\r?\n")


class JunkHeader:
    """A header field that marks a message as junk, such as ``X-Spam-Flag: YES``.

    Args:
        text: the field's name and its value, neither in any special case. A ``*`` at the end of the value stands for
            anything. ValueError for what is no field.

    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] it comes from callers
            raise TypeError(f"junk_header must be a str or None, not {text!r}")
        field = _FIELD.fullmatch(text)
        if field is None or not text.isascii() or not text.isprintable():
            raise ValueError(f"junk_header must be such as 'X-Spam-Flag: YES', not {text!r}")
        value = b" ".join(field[2].encode().lower().split())
        self._is_open = value.endswith(b"*")
        self._value = value.removesuffix(b"*")
        # Unfolded as RFC 5322 §2.2.3 has it.
        name = re.escape(field[1].encode())
        self._fields = re.compile(rb"^%s[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)" % name, re.IGNORECASE | re.MULTILINE)

    def can_tell(self, head: bytes | bytearray, seen: int = 0) -> bool:
        """Whether *head* has all of the header, or as much of it as is looked at: it did not with *seen* bytes."""
        return len(head) >= HEADER_MAX or _HEADERS_END.search(head, seen) is not None

    def marks(self, head: bytes) -> bool:
        """Whether a field in the header of what begins with *head* is this one."""
        end = _HEADERS_END.search(head, 0, HEADER_MAX)
        stop = min(len(head), HEADER_MAX) if end is None else end.start() + 1
        for field in self._fields.finditer(head, 0, stop):
            value = b" ".join(field[1].lower().split())
            if value.startswith(self._value) if self._is_open else value == self._value:
                return True
        return False
