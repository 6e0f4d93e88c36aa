"""Which of many things have come before: 64 bits of each, in an array. Pure."""

from array import array
from typing import Final

__all__ = ["Hashes"]

_FIRST: Final = 1 << 12
_MASK: Final = (1 << 64) - 1


class Hashes:
    """A set of hashes, which takes 12 to 24 bytes for each; a set of Python's has some 100.

    Two things of a million have the same 64 bits with a probability of 3e-8, if these are as good as random.
    """

    __slots__ = ("_count", "_mask", "_slots")

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST))
        self._mask = _FIRST - 1
        self._count = 0

    def add(self, number: int) -> bool:
        """Have *number* in it, and return whether it was there. Of its bits 64 count."""
        number = number & _MASK or 1  # 0 is a free place
        slots, mask = self._slots, self._mask
        at = number & mask
        while found := slots[at]:
            if found == number:
                return True
            at = (at + 1) & mask
        slots[at] = number
        self._count += 1
        if 3 * self._count > 2 * mask:
            self._grow()
        return False

    def _grow(self) -> None:
        before = self._slots
        self._mask = 2 * self._mask + 1
        mask, slots = self._mask, array("Q", bytes(8 * (self._mask + 1)))
        for number in before:
            if number:
                at = number & mask
                while slots[at]:
                    at = (at + 1) & mask
                slots[at] = number
        self._slots = slots
