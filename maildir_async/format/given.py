"""What a caller has given, as an error says it: in a few words, whatever it was."""

from typing import Final

__all__ = ["given"]

#: Characters of it that are shown.
LONGEST: Final = 80


def given(value: object) -> str:
    """Return *value* as Python writes it, cut off where it is long: a mistake may be a megabyte, and is logged."""
    if isinstance(value, str | bytes | bytearray) and len(value) > LONGEST:
        value = value[:LONGEST]  # not all of it need be written
        return f"{value!r}…"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({type(value).__name__})"
