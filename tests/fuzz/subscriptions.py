"""``subscriptions``: what is in it stays, whatever it is."""

from maildir_async.format.subscriptions import with_subscription

__all__ = ["target"]

PIECES = (b"V\t2\n\n", b"V\t2\n", b"INBOX", b"a\tb", b"a.b", b"\n", b"\r\n", b"|a|b", b"\0", b"a", b"b")


def target(data: bytes) -> None:
    """Add the parts behind the first ``|`` to the file before it."""
    found, _, told = data.partition(b"|")
    parts = ["".join(char for char in part.decode("latin-1") if char.isalnum()) or "x" for part in told.split(b"|")]
    for before in (found, None):
        after = with_subscription(before, parts)
        if after is None:
            assert before is not None
            separator = b"\t" if before.startswith(b"V\t2\n\n") else b"."
            assert separator.join(part.encode() for part in parts) in before.replace(b"\r", b"").split(b"\n")
            continue
        begun = b"V\t2\n\n" if before is None else before
        assert after.startswith(begun)
        assert after.endswith(b"\n")
        assert len(after) <= len(begun) + len("|".join(parts).encode()) + 2
        assert with_subscription(after, parts) is None
