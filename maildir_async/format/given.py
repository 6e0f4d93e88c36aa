"""What a caller has given, as an error says it: in a few words, whatever it was; and what he may have meant."""

from collections.abc import Iterable
from typing import Final

__all__ = ["given", "meant"]

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


def meant(word: str, known: Iterable[str]) -> str:
    """Return what may have been meant by *word*, of what is *known*, to stand behind what is said of it; or ""."""
    from difflib import get_close_matches  # for the mistakes of a person only; no delivery has use for it

    found = get_close_matches(word.lower().replace("_", "-"), list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
