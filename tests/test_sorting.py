"""Sorting: the folder that the detail of an address names, and the folder of what a header marks as junk."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildir_async import Maildir
from maildir_async.format.junk import HEADER_MAX, JunkHeader
from maildir_async.smtp import AddressMap, Layout, MaildirHandler, Receipt, StreamingLMTP, StreamingSMTP, Target
from maildir_async.testing import Fault, FaultDisk
from support import contents, reproducible
from wire import Faulty, Server, is_lmtp, serving

both_kinds = pytest.mark.parametrize("kind", [StreamingSMTP, StreamingLMTP])

CLEAN: Final = b"Subject: x\r\n\r\nbody\r\n"
JUNK: Final = b"X-Spam-Flag: YES\r\n" + CLEAN
LONG: Final = b"z" * 98 + b"\r\n"


async def session(server: Server, kind: Any, *local: str, message: bytes = CLEAN) -> list[str]:
    """Send one message to local parts of example.org; return the replies to it."""
    client = await server.connect()
    asked = await client.asks(
        ("LHLO" if is_lmtp(kind) else "EHLO") + " c.example",
        "MAIL FROM:<s@example.org>",
        *(f"RCPT TO:<{to}@example.org>" for to in local),
        "DATA",
    )
    assert {reply[:3] for reply in asked[:-1]} == {"250"}, asked
    told = [await client.ask(message + b".\r\n")]
    return [*told, *([await client.hear() for _ in local[1:]] if is_lmtp(kind) else [])]


def stored(root: Path) -> dict[str, int]:
    """Return how many messages there are, by where they are: the maildir, or maildir/folder."""
    found: dict[str, int] = {}
    for path in sorted(root.glob("**/new")):
        count = len(os.listdir(path))
        if count:
            found[str(path.parent.relative_to(root))] = count
    assert not list(root.glob("**/tmp/*"))
    return found


def site(root: Path, *, names: tuple[str, ...] = ("alice", "bob")) -> AddressMap:
    return AddressMap({f"{name}@example.org": f"{root}/{name}" for name in names})


@both_kinds
async def test_a_detail_names_a_folder_that_is_there(tmp_path: Path, kind: Any) -> None:
    """As it is written or in lower case, dots and slashes between its parts; what names none goes to the inbox."""
    alice = Maildir(tmp_path / "alice")
    for folder in ("lists", "lists/Python", "Entwürfe"):
        await alice.create_folder(folder)
    handler = MaildirHandler(site(tmp_path), detail_folder="existing")
    async with serving(handler, kind, enable_SMTPUTF8=True) as server:
        for local in ("alice+lists", "alice+LISTS", "alice+lists.Python", "alice+lists/Python"):
            await session(server, kind, local)
        for local in ("alice", "alice+", "alice+none", "alice+lists.python", "alice+inbox", "alice+..", "alice+a..b"):
            await session(server, kind, local)
        await session(server, kind, f"alice+{'x' * 240}")
        await session(server, kind, "bob+lists")
    assert stored(tmp_path) == {"alice": 8, "alice/.lists": 2, "alice/.lists.Python": 2, "bob": 1}


@both_kinds
async def test_a_folder_is_made_if_that_is_wanted(tmp_path: Path, kind: Any) -> None:
    """Durably, with the marker that readers look for; as it is written; what can name none goes to the inbox."""
    handler = MaildirHandler(site(tmp_path), detail_folder="create")
    async with serving(handler, kind) as server:
        await session(server, kind, "alice+lists.python")
        await session(server, kind, "alice+New")
        await session(server, kind, "alice+..")
        await session(server, kind, "alice+inbox")
    assert stored(tmp_path) == {"alice": 2, "alice/.lists.python": 1, "alice/.new": 1}
    assert await Maildir(tmp_path / "alice").folders() == ["lists/python", "new"]
    assert (tmp_path / "alice/.new/maildirfolder").exists()


async def test_a_detail_says_nothing_without_the_option(tmp_path: Path) -> None:
    """And two addresses of one user are one copy."""
    await Maildir(tmp_path / "alice").create_folder("lists")
    async with serving(MaildirHandler(site(tmp_path)), StreamingSMTP) as server:
        await session(server, StreamingSMTP, "alice+lists", "alice+work", "alice")
    assert stored(tmp_path) == {"alice": 1}


@both_kinds
async def test_each_folder_has_its_copy(tmp_path: Path, kind: Any) -> None:
    """Of one message to several details of a user: one file, linked; a reply and a receipt for each."""
    alice, receipts = Maildir(tmp_path / "alice"), list[Receipt]()
    for folder in ("lists", "work"):
        await alice.create_folder(folder)
    handler = MaildirHandler(site(tmp_path), detail_folder="existing", on_receipt=receipts.append)
    async with serving(handler, kind) as server:
        told = await session(server, kind, "alice+lists", "alice+work", "alice+none", "alice", "bob")
    assert {reply[:3] for reply in told} == {"250"}
    assert stored(tmp_path) == {"alice": 1, "alice/.lists": 1, "alice/.work": 1, "bob": 1}
    assert next((tmp_path / "bob/new").iterdir()).stat().st_nlink == 4
    folders = [receipt.delivered.folder for receipt in receipts if receipt.delivered is not None]
    assert folders == ["lists", "work", None, None, None]


async def test_whom_a_detail_is_for(tmp_path: Path) -> None:
    """A user of that whole name comes first; Delivered-To names the address with its detail; aliases pass it on."""
    for name in ("alice", "both"):
        await Maildir(tmp_path / name).create_folder("lists")
    table = AddressMap(
        {
            "alice@example.org": tmp_path / "alice",
            "alice+own@example.org": tmp_path / "own",
            "info@example.org": ["alice@example.org", f"{tmp_path}/both"],
            "work@example.org": "alice+lists@example.org",
        }
    )
    handler = MaildirHandler(table, detail_folder="existing")
    async with serving(handler, StreamingLMTP) as server:
        await session(server, StreamingLMTP, "Alice+Lists")
        await session(server, StreamingLMTP, "alice+own")
        assert stored(tmp_path) == {"alice/.lists": 1, "own": 1}
        (message,) = contents(tmp_path / "alice/.lists")["new"]
        assert b"Delivered-To: Alice+Lists@example.org\n" in message
        await session(server, StreamingLMTP, "info+lists")
        await session(server, StreamingLMTP, "work")
    assert stored(tmp_path) == {"alice/.lists": 3, "both/.lists": 1, "own": 1}


async def test_a_resolver_may_tell_a_detail(tmp_path: Path) -> None:
    """With `Target`; a layout does."""
    for name in ("a", "alice"):
        await Maildir(tmp_path / name).create_folder("lists")

    def find(address: str) -> Target:
        return Target(f"{tmp_path}/a", address, "lists")

    async with serving(MaildirHandler(find, detail_folder="existing"), StreamingSMTP) as server:
        await session(server, StreamingSMTP, "x")
    layout = Layout(f"{tmp_path}/{{user}}")
    async with serving(MaildirHandler(layout, detail_folder="existing"), StreamingSMTP) as server:
        await session(server, StreamingSMTP, "alice+lists")
    assert stored(tmp_path) == {"a/.lists": 1, "alice/.lists": 1}


@pytest.mark.parametrize("how", ["existing", "create"])
async def test_a_folder_that_leads_out_is_none(tmp_path: Path, how: Any) -> None:
    """Nobody's mail lands where a link leads: it goes to the inbox."""
    await Maildir(tmp_path / "alice").create()
    await Maildir(tmp_path / "elsewhere").create()
    (tmp_path / "alice/.lists").symlink_to(tmp_path / "elsewhere")
    handler = MaildirHandler(site(tmp_path), detail_folder=how, junk_header="X-Spam-Flag: YES")
    (tmp_path / "alice/.Junk").symlink_to(tmp_path / "elsewhere")
    async with serving(handler, StreamingSMTP) as server:
        await session(server, StreamingSMTP, "alice+lists")
        await session(server, StreamingSMTP, "alice", message=JUNK)
    assert stored(tmp_path) == {"alice": 2}


async def test_a_folder_that_has_gone_is_looked_for_again(tmp_path: Path) -> None:
    """A look counts for a second; while it does, the folder is made anew where that is allowed, else it is a 451."""
    (tmp_path / "alice/.lists/cur").mkdir(parents=True)
    await Maildir(tmp_path / "alice").create_folder("lists")
    handler = MaildirHandler(Layout(f"{tmp_path}/{{user}}"), create=False, detail_folder="existing")
    async with serving(handler, StreamingSMTP) as server:
        await session(server, StreamingSMTP, "alice+lists")
        (tmp_path / "alice/.lists").rename(tmp_path / "away")
        (told,) = await session(server, StreamingSMTP, "alice+lists")
        handler._finder._detail_folders._known.clear()  # type: ignore[union-attr] # a second later
        (again,) = await session(server, StreamingSMTP, "alice+lists")
    assert [told[:9], again[:3]] == ["451 4.3.5", "250"]
    assert stored(tmp_path) == {"alice": 1, "away": 1}


async def test_a_look_that_fails_is_a_451(tmp_path: Path) -> None:
    """Where the disk does not say whether there is such a folder, it is not certain where the mail belongs."""
    await Maildir(tmp_path / "alice").create_folder("lists")
    handler = Faulty(
        FaultDisk(Fault("stat", error=errno.EIO, path=".lists/")), site(tmp_path), detail_folder="existing"
    )
    async with serving(handler, StreamingSMTP) as server:
        client = await server.connect()
        told = await client.asks("EHLO me", "MAIL FROM:<s@example.org>", *["RCPT TO:<alice+lists@example.org>"] * 2)
    assert [reply[:9] for reply in told[2:]] == ["451 4.3.0", "250 2.1.5"]


# Junk.


@both_kinds
@pytest.mark.parametrize("body", [b"", LONG * 1000, LONG * 8000], ids=["short", "longer", "stream"])
async def test_what_is_marked_goes_to_junk(tmp_path: Path, kind: Any, body: bytes) -> None:
    """Whole, whatever its size, from a folder of a detail too, in each of several maildirs; nothing else does."""
    await Maildir(tmp_path / "alice").create_folder("lists")
    handler = MaildirHandler(
        site(tmp_path), detail_folder="existing", junk_header="x-spam-flag: yes", received=False, return_path=False
    )
    async with serving(handler, kind) as server:
        assert (await session(server, kind, "alice", message=JUNK + body))[0][:3] == "250"
        assert stored(tmp_path) == {"alice/.Junk": 1}
        await session(server, kind, "bob", message=CLEAN + JUNK + body)  # in its body
        assert stored(tmp_path) == {"alice/.Junk": 1, "bob": 1}
        told = await session(server, kind, "alice+lists", "alice", "bob", message=JUNK + body)
        assert {reply[:3] for reply in told} == {"250"}
    assert stored(tmp_path) == {"alice/.Junk": 2, "bob": 1, "bob/.Junk": 1}
    (message,) = contents(tmp_path / "bob/.Junk")["new"]
    assert message == (JUNK + body).replace(b"\r\n", b"\n")


async def test_aiosmtpd_s_own_classes_sort_too(tmp_path: Path) -> None:
    """The handler does it, not the streaming servers."""
    from aiosmtpd.smtp import SMTP

    handler = MaildirHandler(site(tmp_path), junk_header="X-Spam-Flag: YES")
    async with serving(handler, SMTP) as server:
        await session(server, SMTP, "alice", message=JUNK)
        await session(server, SMTP, "alice")
    assert stored(tmp_path) == {"alice": 1, "alice/.Junk": 1}


async def test_without_a_folder_for_junk_it_is_in_the_inbox(tmp_path: Path) -> None:
    """Where none may be made; and where a look at it fails: mail is lost by neither."""
    for name in ("alice", "bob"):
        await Maildir(tmp_path / name).create()
    await Maildir(tmp_path / "bob").create_folder("Junk")
    handler = MaildirHandler(site(tmp_path), create=False, junk_header="X-Spam-Flag: YES")
    async with serving(handler, StreamingSMTP) as server:
        await session(server, StreamingSMTP, "alice", "bob", message=JUNK)
    assert stored(tmp_path) == {"alice": 1, "bob/.Junk": 1}
    disk = FaultDisk(Fault("stat", error=errno.EIO, path="bob/.Junk/"))
    async with serving(Faulty(disk, site(tmp_path), junk_header="X-Spam-Flag: YES"), StreamingSMTP) as server:
        await session(server, StreamingSMTP, "bob", message=JUNK)
    assert stored(tmp_path) == {"alice": 1, "bob": 1, "bob/.Junk": 1}


async def test_a_client_that_goes_leaves_nothing(tmp_path: Path) -> None:
    """Neither in the header, nor after it."""
    await Maildir(tmp_path / "alice").create()
    handler = MaildirHandler(site(tmp_path), junk_header="X-Spam-Flag: YES")
    for sent in (b"X-Spam-Flag: YE", JUNK, JUNK + LONG * 8000):
        async with serving(handler, StreamingSMTP) as server:
            client = await server.connect()
            await client.begin("alice@example.org")
            await client.ask("DATA")
            client.writer.write(sent)
            await client.writer.drain()
            client.writer.close()
            await server.over()
    assert stored(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "head", "is_marked"),
    [
        ("X-Spam-Flag: YES", b"X-Spam-Flag: YES\n\n", True),
        ("X-Spam-Flag: YES", b"a: b\r\nx-spam-FLAG :\tyes \r\n\r\n", True),
        ("X-Spam-Flag: YES", b"X-Spam-Flag:\n YES\n\n", True),
        ("X-Spam-Flag: YES", b"X-Spam-Flag: NO\nX-Spam-Flag: YES\n\n", True),
        ("X-Spam-Flag: YES", b"X-Spam-Flag: YES", True),
        ("X-Spam-Flag: YES", b"X-Spam-Flag: YES, really\n\n", False),
        ("X-Spam-Flag: YES", b"X-Spam-Flag: NO\n\n", False),
        ("X-Spam-Flag: YES", b"XX-Spam-Flag: YES\n\n", False),
        ("X-Spam-Flag: YES", b"Subject: a\n X-Spam-Flag: YES\n\n", False),
        ("X-Spam-Flag: YES", b"Subject: a\n\nX-Spam-Flag: YES\n\n", False),
        ("X-Spam-Flag: YES", b"Subject: a\r\n\r\nX-Spam-Flag: YES\r\n", False),
        ("X-Spam-Flag: YES", b"\nX-Spam-Flag: YES\n", False),
        ("X-Spam-Flag: YES", b"\r\nX-Spam-Flag: YES\n", False),
        ("X-Spam-Flag: YES", b"", False),
        ("X-Spam-Flag: YES", b"a: " + b"b" * HEADER_MAX + b"\nX-Spam-Flag: YES\n\n", False),
        ("X-Spam-Status: Yes*", b"X-Spam-Status: Yes, score=9.1\n\ttests=X\n\n", True),
        ("X-Spam-Status: Yes*", b"X-Spam-Status: yes\n\n", True),
        ("X-Spam-Status: Yes*", b"X-Spam-Status: No, score=1\n\n", False),
        ("X-Spam-Status: Yes, a  b", b"X-Spam-Status: yes,\n a\n b\n\n", True),
        ("X-Spam-Level: *", b"X-Spam-Level:\n\n", True),
    ],
)
def test_what_marks_junk(text: str, head: bytes, is_marked: bool) -> None:
    """A field of the header, of that name and value, in whatever case and however it is folded."""
    assert JunkHeader(text).marks(head) is is_marked


@pytest.mark.parametrize(
    "text", ["", "X-Spam-Flag", "X-Spam-Flag:", ": YES", "X Spam: YES", "X-Späm: YES", "a: b\nc: d"]
)
def test_what_is_no_field(text: str) -> None:
    """It is refused, and named."""
    with pytest.raises(ValueError, match="junk_header must be such as"):
        JunkHeader(text)
    with pytest.raises(ValueError, match="junk_header must be such as"):
        MaildirHandler("/mail", junk_header=text)


def test_what_is_no_option() -> None:
    """It is refused, and named."""
    with pytest.raises(ValueError, match="detail_folder must be one of existing, create or None, not 'all'"):
        MaildirHandler("/mail", detail_folder="all")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="junk_header must be a str or None, not 5"):
        MaildirHandler("/mail", junk_header=5)  # type: ignore[arg-type]


@reproducible
@given(st.lists(st.sampled_from([b"X-J: y", b"\n", b"\r\n", b" ", b"a", b":", b"X-J: n\n"]), max_size=12), st.data())
def test_a_header_is_told_however_it_comes(pieces: list[bytes], data: st.DataObject) -> None:
    """It can be told at the first chunk with which it has all come, and what comes after that changes nothing."""
    header, message = JunkHeader("X-J: y"), b"".join(pieces)
    head, at = b"", 0
    while at < len(message):
        size = data.draw(st.integers(1, 4))
        seen = max(0, len(head) - 2)
        head, at = message[: at + size], at + size
        assert header.can_tell(head, seen) == header.can_tell(head)
        if header.can_tell(head):
            assert header.marks(head) == header.marks(message)
            return


async def test_looks_are_shared_for_a_second(tmp_path: Path) -> None:
    """Recipients of many messages at once cost one look at their folder."""
    await Maildir(tmp_path / "alice").create_folder("lists")
    disk = FaultDisk()
    async with serving(Faulty(disk, site(tmp_path), detail_folder="existing"), StreamingSMTP) as server:
        await session(server, StreamingSMTP, "alice+lists")
        looks = [call for call in disk.calls if call.path.endswith(".lists/cur/.")]
        await asyncio.gather(*(session(server, StreamingSMTP, "alice+lists") for _ in range(8)))
    assert stored(tmp_path) == {"alice/.lists": 9}
    assert [call for call in disk.calls if call.path.endswith(".lists/cur/.") and call.operation == "stat"] == looks
