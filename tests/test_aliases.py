"""A recipient with several maildirs, behind an alias: the message once to each, one reply, a receipt for each."""

import errno
import os
import re
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async import MaildirError, NotAMaildirError
from maildir_async.smtp import (
    Aliases,
    Layout,
    MaildirHandler,
    MapFile,
    Receipt,
    Refused,
    Site,
    StreamingLMTP,
    Target,
    UserFile,
)
from maildir_async.testing import Fault, FaultDisk
from support import contents
from wire import KINDS, Client, Faulty, is_lmtp, serving

MAIL: Final = b"Subject: x\r\n\r\n.\r\n"
both_kinds: Final = pytest.mark.parametrize("kind", KINDS)


def aliases(root: Path) -> dict[str, Any]:
    return {
        "alice@x.example": root / "alice",
        "bob@x.example": root / "bob",
        "one@x.example": "alice@x.example",
        "both@x.example": ["alice@x.example", "bob@x.example"],
        "all@x.example": ["both@x.example", root / "archive"],
    }


def stored(root: Path, *names: str) -> list[int]:
    return [len(contents(root / name).get("new", [])) for name in names]


async def session(server: Any, kind: Any, *recipients: str) -> tuple[list[str], list[str]]:
    """Send a message; return the answers to RCPT, and to the message if it could be sent."""
    client: Client = await server.connect()
    told = await client.asks(
        "LHLO me" if is_lmtp(kind) else "EHLO me",
        "MAIL FROM:<a@example.com>",
        *(f"RCPT TO:<{to}>" for to in recipients),
    )
    taken = sum(reply.startswith("250") for reply in told[2:])
    answer = await client.ask("DATA")
    if not answer.startswith("354"):
        return told[2:], [answer]
    first = await client.ask(MAIL[:-3] + b"\r\n.\r\n")
    return told[2:], [first, *([await client.hear() for _ in range(taken - 1)] if is_lmtp(kind) else [])]


@both_kinds
async def test_each_maildir_of_an_alias_gets_the_message_once(tmp_path: Path, kind: Any) -> None:
    """It is one file, also where recipients share a maildir; one reply and, for each maildir, a receipt."""
    receipts: list[Receipt] = []
    handler = MaildirHandler(aliases(tmp_path), on_receipt=receipts.append)
    async with serving(handler, kind) as server:
        asked, told = await session(server, kind, "all+x@x.example", "bob@x.example", "both@x.example")
    assert [reply[:3] for reply in asked] == ["250"] * 3
    assert [reply[:3] for reply in told] == ["250"] * (3 if is_lmtp(kind) else 1)
    assert stored(tmp_path, "alice", "bob", "archive") == [1, 1, 1]
    assert next((tmp_path / "bob" / "new").iterdir()).stat().st_nlink == 3
    assert [(receipt.address, receipt.maildir and receipt.maildir.rpartition("/")[2]) for receipt in receipts] == [
        ("all+x@x.example", "alice"),
        ("all+x@x.example", "bob"),
        ("all+x@x.example", "archive"),
        ("bob@x.example", "bob"),
        ("both@x.example", "alice"),
        ("both@x.example", "bob"),
    ]
    assert {receipt.verdict for receipt in receipts} == {"delivered"}


@both_kinds
async def test_one_maildir_that_fails_is_told_for_the_alias(tmp_path: Path, kind: Any) -> None:
    """Its reply is the trouble of one maildir, though the others have the message; another recipient has his own."""
    receipts: list[Receipt] = []
    disk = FaultDisk(Fault("link", error=errno.EIO, nth=0, path="bob/"))
    handler = Faulty(disk, aliases(tmp_path), on_receipt=receipts.append)
    async with serving(handler, kind) as server:
        _, told = await session(server, kind, "all@x.example", "alice@x.example")
    assert [reply[:9] for reply in told] == (["451 4.3.0", "250 2.0.0"] if is_lmtp(kind) else ["451 4.3.0"])
    assert [receipt.verdict for receipt in receipts] == ["delivered", "deferred", "delivered", "delivered"]
    assert stored(tmp_path, "alice", "bob", "archive") == [1, 0, 1]


@both_kinds
async def test_a_maildir_that_can_be_seen_to_fail_refuses_the_alias(tmp_path: Path, kind: Any) -> None:
    """Told at RCPT, so that no other maildir of the alias gets the message with each try; other recipients have it."""
    receipts: list[Receipt] = []
    (tmp_path / "bob").symlink_to("nowhere")
    handler = MaildirHandler(aliases(tmp_path), on_receipt=receipts.append)
    async with serving(handler, kind) as server:
        asked, told = await session(server, kind, "all@x.example", "one@x.example")
    assert [reply[:9] for reply in [*asked, *told]] == ["451 4.3.5", "250 2.1.5", "250 2.0.0"]
    assert stored(tmp_path, "alice", "archive") == [1, 0]
    assert [(receipt.address, receipt.maildir) for receipt in receipts] == [
        ("all@x.example", str(tmp_path / "bob")),
        ("one@x.example", str(tmp_path / "alice")),
    ]
    assert isinstance(receipts[0].error, MaildirError)


def named(root: Path, name: str) -> dict[str, str]:
    (message,) = contents(root / name)["new"]
    return dict(re.findall(r"^(Delivered-To|X-Original-To): (.*)$", message.decode(), re.MULTILINE))


@pytest.mark.parametrize("per_recipient", [False, True])
async def test_headers_behind_an_alias(tmp_path: Path, per_recipient: bool) -> None:
    """As with Postfix's virtual(5): Delivered-To is the last address, X-Original-To what the client has written.

    Where there are several maildirs, Delivered-To would cost each a copy of its own, and is written if that is wanted.
    """
    handler = MaildirHandler(aliases(tmp_path), original_to=True, per_recipient_headers=per_recipient)
    async with serving(handler, StreamingLMTP) as server:
        await session(server, StreamingLMTP, "One+x@x.example")
        assert named(tmp_path, "alice") == {"Delivered-To": "alice@x.example", "X-Original-To": "One+x@x.example"}
        next((tmp_path / "alice" / "new").iterdir()).unlink()
        await session(server, StreamingLMTP, "all@x.example")
    for name in ("alice", "bob", "archive"):
        delivered = "all" if name == "archive" else name
        also = {"Delivered-To": f"{delivered}@x.example"} if per_recipient else {}
        assert named(tmp_path, name) == {"X-Original-To": "all@x.example"} | also


@both_kinds
async def test_a_resolver_may_find_several_paths(tmp_path: Path, kind: Any) -> None:
    """A list, a tuple, with names or without; none of them is nobody; and one may refuse in words of its own."""

    async def find(address: str) -> Any:
        local = address.partition("@")[0]
        if local == "full":
            raise Refused("452 4.2.2 Mailbox full")
        return {
            "two": [tmp_path / "a", f"{tmp_path}/b", f"{tmp_path}/./a"],
            "name": (Target(f"{tmp_path}/c", "c@y.example"),),
            "none": [],
            "target": Target(f"{tmp_path}/d", "d@y.example"),
        }.get(local)

    receipts: list[Receipt] = []
    async with serving(MaildirHandler(find, on_receipt=receipts.append), kind) as server:
        asked, _ = await session(server, kind, *(f"{x}@x.example" for x in ("two", "none", "full", "nobody")))
        await session(server, kind, "name@x.example")
        await session(server, kind, "target@x.example")
    assert [reply[:9] for reply in asked] == ["250 2.1.5", "550 5.1.1", "452 4.2.2", "550 5.1.1"]
    assert stored(tmp_path, "a", "b", "c", "d") == [1, 1, 1, 1]
    assert named(tmp_path, "c")["Delivered-To"] == "c@y.example"
    assert named(tmp_path, "d")["Delivered-To"] == "d@y.example"
    assert [receipt.reply[:3] for receipt in receipts[:3]] == ["550", "452", "550"]


# A map in front of a layout.


def partial(tmp_path: Path, text: str, *, domains: list[str] | None = None) -> Aliases:
    (tmp_path / "users").write_text("alice@x.example\nbob@x.example\nbob@y.example\n")
    (tmp_path / "map").write_text(text)
    users, table = UserFile(tmp_path / "users"), MapFile(tmp_path / "map", is_partial=True)
    users.load()
    table.load()
    layout = Layout("/mail/{domain}/{user}", users=users)
    return Aliases(table, layout if domains is None else Site(layout, domains=domains))


MAP: Final = """\
info@x.example     alice@x.example, Bob+info@y.example, /archive/info, alice@x.example
chain@x.example    info@x.example, bob@x.example
bob@x.example      bob@x.example, /archive/bob
alice+x@x.example  /archive/x
@x.example         alice@x.example
@z.example         somebody@x.example
gone@y.example     nobody@y.example, alice@x.example
away@y.example     bob@w.example
"""


@pytest.mark.parametrize(
    ("address", "targets"),
    [
        ("alice@x.example", ["/mail/x.example/alice"]),
        ("alice+y@x.example", ["/mail/x.example/alice alice+y@x.example (y)"]),
        (
            "info+y@x.example",
            [
                "/mail/x.example/alice alice@x.example (y)",
                "/mail/y.example/bob Bob+info@y.example (info)",
                "/archive/info info+y@x.example (y)",
            ],
        ),
        ("alice+x@x.example", ["/archive/x"]),
        ("bob@x.example", ["/mail/x.example/bob bob@x.example", "/archive/bob"]),
        (
            "info@x.example",
            ["/mail/x.example/alice alice@x.example", "/mail/y.example/bob Bob+info@y.example (info)", "/archive/info"],
        ),
        (
            "chain@x.example",
            [
                "/mail/x.example/alice alice@x.example",
                "/mail/y.example/bob Bob+info@y.example (info)",
                "/archive/info info@x.example",
                "/mail/x.example/bob bob@x.example",
                "/archive/bob bob@x.example",
            ],
        ),
        ("nobody@x.example", ["/mail/x.example/alice alice@x.example"]),
        ("nobody@z.example", ["/mail/x.example/alice alice@x.example"]),
        ("nobody@y.example", []),
        ("bob@y.example", ["/mail/y.example/bob"]),
    ],
)
async def test_a_map_before_a_layout(tmp_path: Path, address: str, targets: list[str]) -> None:
    """An exact line wins, then the layout's user, then the line for the domain; an alias may keep its own user."""
    found = await partial(tmp_path, MAP)(address)
    listed = [found] if isinstance(found, str | os.PathLike) else found or []
    assert [shown(target) for target in listed] == targets


def shown(target: str | os.PathLike[str]) -> str:
    if not isinstance(target, Target):
        return os.fspath(target)
    return f"{target.path} {target.address}" + (f" ({target.detail})" if target.detail else "")


async def test_an_alias_to_nobody_may_heal(tmp_path: Path) -> None:
    """A user who is not listed yet, or in a domain that is not the site's: 451, for the map is mended or the list."""
    for address, goal in (("gone@y.example", "nobody@y.example"), ("away@y.example", "bob@w.example")):
        with pytest.raises(NotAMaildirError, match=f"an alias leads to {goal}"):
            await partial(tmp_path, MAP, domains=["x.example", "y.example"])(address)


def test_loops_of_a_partial_map(tmp_path: Path) -> None:
    """An alias may name itself, and no other that leads back."""
    with pytest.raises(ValueError, match="line 2: the alias leads back to itself"):
        partial(tmp_path, "a@x.example b@x.example\nb@x.example a@x.example\n")


def test_what_is_made_by_hand(tmp_path: Path) -> None:
    """The layout's root for its paths, the parent for those of the map; the domains of both."""
    aliases = partial(tmp_path, MAP)
    assert aliases.root_of("/mail/x.example/alice") == "/mail"
    assert aliases.root_of("/archive/x") == "/archive"
    assert [aliases.has_domain(f"{name}.example") for name in "xyzw"] == [True, True, True, False]
