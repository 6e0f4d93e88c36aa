"""What a site says of itself: its domains, its postmaster, and where its store has to be."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from maildir_async.smtp import AddressMap, Layout, MaildirHandler, Receipt, Refused, Resolver, Site, Target, UserFile
from maildir_async.smtp.recipients import resolved
from support import contents, tree
from wire import KINDS, is_lmtp, serving

both_kinds: Final = pytest.mark.parametrize("kind", KINDS)


async def rcpt(handler: MaildirHandler, kind: Any, *recipients: str) -> list[str]:
    """Return the answers to RCPT."""
    async with serving(handler, kind) as server:
        client = await server.connect()
        hello = "LHLO me" if is_lmtp(kind) else "EHLO me"
        told = await client.asks(hello, "MAIL FROM:<>", *(f"RCPT TO:<{to}>" for to in recipients))
    return [reply[:9] for reply in told[2:]]


# Its domains.


@both_kinds
async def test_other_domains_are_no_relaying(tmp_path: Path, kind: Any) -> None:
    """An address elsewhere is refused with 550 5.7.1, as Postfix would, whoever it is; unknown users are 550 5.1.1."""
    layout = Layout(f"{tmp_path}/{{user}}")
    (tmp_path / "alice" / "new").mkdir(parents=True)
    site = Site(layout, domains=["Example.org", "b\u00fccher.example", "[192.0.2.1]"])
    told = await rcpt(
        MaildirHandler(site),
        kind,
        *("alice@EXAMPLE.org", "alice@xn--bcher-kva.example", "bob@example.org"),
        *("alice@example.com", "bob@example.com", "alice@sub.example.org", "postmaster@example.com"),
    )
    assert told == ["250 2.1.5", "250 2.1.5", "550 5.1.1", *["550 5.7.1"] * 4]


@pytest.mark.parametrize("domain", ["", "*", "@example.org", "a b", "[1.2.3]"])
def test_domains_that_are_none(domain: str) -> None:
    """Told when the site is made."""
    with pytest.raises(ValueError, match="not a domain"):
        Site(lambda address: None, domains=[domain])


# Its postmaster.

SPELLINGS: Final = ("postmaster", "POSTMASTER", "PostMaster")


def users(tmp_path: Path, text: str) -> UserFile:
    (tmp_path / "users").write_text(text)
    found = UserFile(tmp_path / "users")
    found.load()
    return found


@both_kinds
@pytest.mark.parametrize("way", ["layout", "users", "map"])
async def test_postmaster_without_a_domain(tmp_path: Path, kind: Any, way: str) -> None:
    """RFC 5321 §4.5.1: in any case, and somebody else may be it."""
    (tmp_path / "mail" / "alice" / "new").mkdir(parents=True)
    makers: dict[str, Callable[[], Resolver]] = {
        "layout": lambda: Layout(f"{tmp_path}/mail/{{user}}"),
        "users": lambda: Layout(f"{tmp_path}/mail/{{user}}", users=users(tmp_path, "alice@example.org\n")),
        "map": lambda: AddressMap({"alice@example.org": tmp_path / "mail" / "alice"}),
    }
    resolver = makers[way]()
    assert await rcpt(MaildirHandler(resolver), kind, *SPELLINGS) == ["550 5.1.1"] * 3
    handler = MaildirHandler(Site(resolver, postmaster="alice@example.org"))
    told = await rcpt(handler, kind, *SPELLINGS, "Postmaster@example.org", "postmaster@example.com", "x@example.org")
    elsewhere = "250 2.1.5" if way == "layout" else "550 5.1.1"  # whose users are the same in all domains
    assert told == ["250 2.1.5"] * 4 + [elsewhere, "550 5.1.1"]


async def test_a_postmaster_who_is_listed_wins(tmp_path: Path) -> None:
    """The one that the site has is for addresses that nobody has; mail to it is delivered to its address."""
    site = Site(
        AddressMap(
            {"postmaster@a.example": "/mail/p", "x@b.example": "/mail/x", "both@b.example": ["/mail/x", "/mail/y"]}
        ),
        postmaster="x@b.example",
    )
    assert await site("postmaster@a.example") == await site("postmaster") == "/mail/p"
    assert await site("postmaster@b.example") == Target("/mail/x", "x@b.example")
    assert await site("postmaster@c.example") is None
    several = Site(AddressMap({"both@b.example": ["/mail/x", "/mail/y"]}), postmaster="both@b.example")
    assert await several("postmaster") == [Target("/mail/x", "both@b.example"), Target("/mail/y", "both@b.example")]
    with pytest.raises(Refused, match=r"550 5\.7\.1"):
        await Site(site, domains=["a.example"])("postmaster@b.example")
    assert await Site(lambda address: None, domains=["a.example"], postmaster="x@a.example")("postmaster") is None


async def test_a_resolver_is_asked_sooner_or_later() -> None:
    """A site's may be async, or not."""

    async def find(address: str) -> str | None:
        return "/mail/x" if address == "x@a.example" else None

    assert await resolved(Site(find, postmaster="x@a.example"), "postmaster") == Target("/mail/x", "x@a.example")
    assert await resolved(lambda address: "/mail/y", "x") == "/mail/y"


# Its store.


@both_kinds
@pytest.mark.parametrize("way", ["layout", "create", "users", "map"])
@pytest.mark.parametrize("is_link", [False, True])
async def test_a_root_that_is_away(
    tmp_path: Path, kind: Any, way: str, is_link: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Everybody is told to come again, nothing is made, and the receipt says why; no traceback for each."""
    root = tmp_path / "mail"
    if is_link:
        root.symlink_to("nowhere")
    makers: dict[str, Callable[[], Resolver]] = {
        "layout": lambda: Layout(f"{root}/{{domain}}/{{user}}"),
        "create": lambda: Layout(f"{root}/{{domain}}/{{user}}", create=True),
        "users": lambda: Layout(f"{root}/{{domain}}/{{user}}", users=users(tmp_path, "alice@example.org\n")),
        "map": lambda: AddressMap({"alice@example.org": root / "alice"}),
    }
    resolver = makers[way]()
    receipts: list[Receipt] = []
    handler = MaildirHandler(resolver, on_receipt=receipts.append)
    before = tree(tmp_path)
    assert await rcpt(handler, kind, "alice@example.org") == ["451 4.3.5"]
    assert tree(tmp_path) == before
    assert str(root) in receipts[0].reason
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@both_kinds
async def test_a_root_that_goes_between_rcpt_and_data(tmp_path: Path, kind: Any) -> None:
    """What RCPT has seen may be gone by the end of the message: 451, and nothing is made in its place."""
    root = tmp_path / "mail"
    root.mkdir()
    async with serving(MaildirHandler(Layout(f"{root}/{{user}}", create=True)), kind) as server:
        client = await server.connect()
        await client.begin("alice@example.org", hello="LHLO" if is_lmtp(kind) else "EHLO")
        assert (await client.ask("DATA")).startswith("354")
        root.rmdir()
        assert (await client.ask(b"x\r\n.\r\n")).startswith("451 4.3.5")
    assert os.listdir(tmp_path) == []


@both_kinds
async def test_a_store_that_has_to_be_mounted(tmp_path: Path, kind: Any) -> None:
    """While it is not, everybody is told to come again, also who does not exist; nothing is made in its place."""
    (tmp_path / "mail").mkdir()
    for resolver in (
        Layout(f"{tmp_path}/mail/{{user}}", create=True),
        AddressMap({"alice@example.org": tmp_path / "mail" / "alice"}),
        lambda _: tmp_path / "mail" / "x" / "alice",
    ):
        handler = MaildirHandler(resolver, require_mount=tmp_path / "mail")
        told = await rcpt(handler, kind, "alice@example.org", "nobody@example.org")
        assert told == ["451 4.3.5"] * 2
        assert os.listdir(tmp_path / "mail") == []
    assert await rcpt(MaildirHandler(tmp_path / "m", require_mount="/"), kind, "a@example.org") == ["250 2.1.5"]


async def test_a_mount_is_looked_at_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For many recipients once; that it is none is not remembered."""
    looks: list[str] = []
    (tmp_path / "mail").mkdir()
    monkeypatch.setattr("maildir_async.smtp.finder.CHECKED_S", 1000.0)
    monkeypatch.setattr("maildir_async.smtp.finder.Base.check_mount", lambda base, disk: looks.append(base.mount))
    handler = MaildirHandler(lambda _: None, require_mount=tmp_path / "mail")
    assert await rcpt(handler, KINDS[0], *["a@example.org"] * 3) == ["550 5.1.1"] * 3
    assert looks == [str(tmp_path / "mail")]


@both_kinds
async def test_others_have_the_message_once(tmp_path: Path, kind: Any) -> None:
    """A maildir that is a link to nowhere is told at RCPT, not by DATA for all."""
    (tmp_path / "mail").mkdir()
    (tmp_path / "mail" / "bob").symlink_to("nowhere")
    (tmp_path / "mail" / "carol").write_bytes(b"")
    listed = users(tmp_path, "alice@example.org\nbob@example.org\ncarol@example.org\n")
    async with serving(MaildirHandler(Layout(f"{tmp_path}/mail/{{user}}", users=listed)), kind) as server:
        client = await server.connect()
        told = await client.asks(
            "LHLO me" if is_lmtp(kind) else "EHLO me",
            "MAIL FROM:<>",
            *(f"RCPT TO:<{name}@example.org>" for name in ("alice", "bob", "carol")),
            "DATA",
            b"x\r\n.\r\n",
        )
    assert [reply[:3] for reply in told[2:]] == ["250", "451", "451", "354", "250"]
    assert len(contents(tmp_path / "mail" / "alice")["new"]) == 1
