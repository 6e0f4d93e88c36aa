"""Messages to send: each with bytes of its own that a number makes again, and who gets which."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

KIB: Final = 2**10
MIB: Final = 2**20

#: Bytes. The daemon refuses a larger message.
SIZE_LIMIT: Final = 24 * MIB

#: The users: fifty. `smtp-source` writes a number in front of the address that it is given, hence 1team, 2team, ...
SENDERS: Final = tuple(f"sender{number}@a.test" for number in range(4))
PEOPLE: Final = tuple(f"user{number:02}@{'a' if number % 2 else 'b'}.test" for number in range(34))
TEAM: Final = tuple(f"{number or ''}team@b.test" for number in range(12))
USERS: Final = frozenset((*SENDERS, *PEOPLE, *TEAM))

#: Nobody's: no such user, no user at all in that domain.
GHOSTS: Final = ("ghost@a.test", "user01@c.test", "user0@b.test")

#: Lines that break what takes mail apart wrongly.
_TRAPS: Final = (
    *(b".", b"..", b".dot", b"From here on", b"", b" ", b"trailing blank ", b"\ttab\t", b"latin \xe9\xff\xfe"),
    *("UTF-8 é…😀".encode(), b"bare \r return", b"x" * 5000, b"-- ", b"=3D=\x01\x7f", b"QUIT", b"RSET", b"DATA"),
)


def mailbox(address: str) -> str:
    """Return the user that an address is for: no detail, lower case."""
    local, _, domain = address.rpartition("@")
    return f"{local.partition('+')[0]}@{domain}".lower()


@dataclass(frozen=True)
class Letter:
    """A message to be sent.

    Attributes:
        number: what its bytes are made of.
        size: bytes, about.
        sender: address.
        recipients: addresses, no two of them the same user's.

    """

    number: int
    size: int
    sender: str
    recipients: tuple[str, ...]

    def content(self, newline: bytes = b"\r\n") -> bytes:
        """Return the message; every line of it ends."""
        draw = random.Random(self.number)
        header = [
            b"X-Rig: %d" % self.number,
            b"From: <%b>" % self.sender.encode(),
            b"To: undisclosed-recipients:;",
            b"Date: Thu, 01 Jan 1970 00:00:00 +0000",
            b"Message-ID: <%d@rig.test>" % self.number,
            b"Subject: folded\n\tand =?utf-8?q?encoded?= \xc3\xa9".replace(b"\n", newline),
            b"",
        ]
        return newline.join([*header, *_lines(draw, self.size), b""])


def _lines(draw: random.Random, size: int) -> Iterator[bytes]:
    while size > 0:
        if draw.random() < 0.1:
            line = draw.choice(_TRAPS)
            size -= len(line) + 2
            yield line
            continue
        # A piece of random text, in lines of all lengths up to 998.
        text = draw.randbytes(min(size, 64 * KIB) // 2 + 1).hex().encode()
        start = 0
        while start < len(text):
            length = draw.randrange(1, 999)
            yield text[start : start + length]
            start += length
        size -= len(text)


def digest(content: bytes) -> str:
    """Return what tells contents apart, line ends aside."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def letters(count: int, largest: int, seed: int) -> list[Letter]:
    """Return so many letters of 1 KiB up to *largest* bytes, most of them small, and one that is too large."""
    draw = random.Random(seed)
    found = [
        Letter(
            number=seed * 1_000_000 + number,
            size=_size(draw, largest),
            sender=draw.choice(SENDERS),
            recipients=_recipients(draw),
        )
        for number in range(count - 2)
    ]
    # Neither the smallest, nor the largest, nor the one beyond is left to chance.
    last = seed * 1_000_000 + count
    found.insert(draw.randrange(count - 1), Letter(last, largest, SENDERS[0], (PEOPLE[3], PEOPLE[4])))
    found.insert(draw.randrange(count), Letter(last + 1, SIZE_LIMIT + MIB, SENDERS[1], (PEOPLE[5],)))
    return found


def _size(draw: random.Random, largest: int) -> int:
    """Return a size: nine in ten up to 64 KiB, one in a hundred above an eighth of the largest."""
    kind = draw.random()
    if kind < 0.9:
        return int(KIB * 2 ** draw.uniform(0, 6))
    if kind < 0.99:
        return draw.randrange(64 * KIB, max(largest // 16, 128 * KIB))
    return draw.randrange(largest // 8, largest)


def _recipients(draw: random.Random) -> tuple[str, ...]:
    count = draw.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 8))
    addresses = draw.sample(PEOPLE, count)
    kind = draw.random()
    if kind < 0.06:  # one of them, perhaps the only one, is unknown
        addresses[draw.randrange(count)] = draw.choice(GHOSTS)
    elif kind < 0.2:
        addresses[0] = addresses[0].replace("@", "+some.detail@")
    elif kind < 0.3:
        addresses[0] = addresses[0].replace("user", "User").replace(".test", ".TEST")
    return tuple(addresses)
