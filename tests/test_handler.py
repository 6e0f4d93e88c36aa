"""`MaildirHandler` in aiosmtpd's own servers: what is stored, for whom, and what the client is told."""

import asyncio
import contextlib
import errno
import itertools
import os
import smtplib
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope

import maildir_async
from look import until
from maildir_async import Durability, GroupCommit, Maildir, MaildirError, Quota
from maildir_async.smtp import Layout, MaildirHandler, Receipt, StreamingLMTP, StreamingSMTP
from maildir_async.testing import Fault, FaultDisk
from support import Gate, contents, forked
from wire import Faulty

MAIL: Final = b"Subject: x\r\nX-DKIM:  kept \t\r\n\r\n.dot\r\nbare \r and 8 bit \xe9\r\n"
STORED: Final = MAIL.replace(b"\r\n", b"\n")

SERVERS: Final[dict[str, Any]] = {
    "SMTP": SMTP,
    "LMTP": LMTP,
    "StreamingSMTP": StreamingSMTP,
    "StreamingLMTP": StreamingLMTP,
}


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest) -> Any:
    return SERVERS[request.param]


class Client(smtplib.LMTP):
    """One session, by hand: every reply as it comes."""

    def __init__(self, address: str, greeting: str) -> None:
        self._greeting = greeting
        super().__init__(address, local_hostname="client.example")

    def connect(self, host: str = "", port: int = 0, source_address: object = None) -> tuple[int, bytes]:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(host)
        self.file = None
        return self.getreply()

    def said(self, line: str) -> str:
        code, text = self.docmd(line)
        return f"{code} {text.decode()}"

    def begin(self, *recipients: str, sender: str = "a@example.com") -> list[str]:
        self.said(f"{self._greeting} client.example")
        return [self.said(f"MAIL FROM:<{sender}>"), *(self.said(f"RCPT TO:<{to}>") for to in recipients)]

    def transmit(self, message: bytes, replies: int) -> list[str]:
        answer = self.said("DATA")
        if not answer.startswith("354"):
            return [answer]
        self.send(smtplib._quote_periods(message) + b".\r\n")  # type: ignore[attr-defined]
        return [f"{code} {text.decode()}" for code, text in (self.getreply() for _ in range(replies))]


@contextlib.asynccontextmanager
async def serving(
    server: Any, handler: MaildirHandler, directory: Path, **options: Any
) -> AsyncIterator[Callable[[Callable[[Client], Any]], Any]]:
    """Serve on a Unix socket; what it yields has a function talk to the server from a thread."""
    address = str(directory / "socket")
    loop = asyncio.get_running_loop()
    listening = await loop.create_unix_server(
        lambda: server(handler, hostname="mx.example", loop=loop, **options), address
    )
    greeting = "LHLO" if issubclass(server, LMTP) else "EHLO"

    async def talk(session: Callable[[Client], Any]) -> Any:
        def run() -> Any:
            client = Client(address, greeting)
            try:
                return session(client)
            finally:
                client.close()

        return await asyncio.to_thread(run)

    try:
        yield talk
    finally:
        listening.close()
        with contextlib.suppress(FileNotFoundError):  # Python 3.13 has removed it
            os.unlink(address)


def is_lmtp(server: Any) -> bool:
    return issubclass(server, LMTP)


def test_no_two_messages_are_called_the_same(tmp_path: Path) -> None:
    """Not in one process, nor in two that have been forked from it, as the daemon's workers are."""

    def message_ids() -> list[str]:
        receipts: list[Receipt] = []
        handler = MaildirHandler(tmp_path / "m", durability=Durability.NONE, on_receipt=receipts.append)

        async def receive() -> None:
            envelope = Envelope()
            envelope.mail_from, envelope.rcpt_tos = "a@example.com", ["b@example.com"]
            server: Any = SimpleNamespace(hostname="mx.example")
            session: Any = SimpleNamespace(peer=None, host_name="client.example")
            delivery = await handler.open_delivery(server, session, envelope, protocol="SMTP", size=len(MAIL))
            await delivery.send(MAIL)
            assert (await delivery.finish())[0].startswith("250")

        for _ in range(3):
            asyncio.run(receive())
        return [receipt.message_id for receipt in receipts]

    found = [*message_ids(), *itertools.chain(*forked(message_ids, children=2))]
    assert len(set(found)) == len(found) == 9


@pytest.mark.every_loop
async def test_content_is_the_bytes_that_were_sent(tmp_path: Path, server: Any) -> None:
    """The message is stored as it came, LF for CRLF, behind the trace headers; nothing of it is parsed."""
    receipts: list[Receipt] = []
    handler = MaildirHandler(tmp_path / "m", on_receipt=receipts.append)
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("b@example.com"), *client.transmit(MAIL, 1)])
    assert [reply[:3] for reply in told] == ["250"] * 3
    (stored,) = contents(tmp_path / "m")["new"]
    trace, _, rest = stored.partition(b"Subject: ")
    assert b"Subject: " + rest == STORED
    assert trace.startswith(b"Return-Path: <a@example.com>\nDelivered-To: b@example.com\nReceived: from client.example")
    assert (b"LMTP" in trace) == is_lmtp(server)
    (receipt,) = receipts
    assert receipt.message_id.encode() in trace
    assert receipt.message_id in told[-1]
    assert receipt.delivered is not None
    assert (receipt.client.helo, receipt.client.mail_from, receipt.address) == (
        "client.example",
        "a@example.com",
        "b@example.com",
    )
    assert (receipt.size, receipt.maildir, receipt.reply) == (len(MAIL), str(tmp_path / "m"), told[-1])
    assert receipt.delivered.durability is Durability.FULL


async def test_newlines_can_be_kept_and_headers_left_out(tmp_path: Path, server: Any) -> None:
    """With everything switched off, what is stored is what was sent."""
    handler = MaildirHandler(
        tmp_path / "m", newline="keep", return_path=False, delivered_to=False, original_to=False, received=False
    )
    async with serving(server, handler, tmp_path) as talk:
        await talk(lambda client: [*client.begin("b@example.com"), *client.transmit(MAIL, 1)])
    assert contents(tmp_path / "m")["new"] == [MAIL]


async def test_all_recipients_get_one_file(tmp_path: Path, server: Any) -> None:
    """Several recipients: one file, which names none of them; one reply, or one for each in LMTP."""
    handler = MaildirHandler(Layout(f"{tmp_path}/{{user}}", create=True))
    users = ["alice", "bob", "carol"]
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(
            lambda client: [
                *client.begin(*(f"{user}@example.com" for user in users)),
                *client.transmit(MAIL, 3 if is_lmtp(server) else 1),
            ]
        )
    assert [reply[:3] for reply in told[4:]] == ["250"] * (3 if is_lmtp(server) else 1)
    files = [path for user in users for path in (tmp_path / user / "new").iterdir()]
    assert [path.stat().st_nlink for path in files] == [3, 3, 3]
    assert not any(user.encode() in files[0].read_bytes() for user in users)
    assert files[0].read_bytes().endswith(STORED)


async def test_mail_may_have_its_directorys_mode(tmp_path: Path) -> None:
    """With inherit_mode each recipient's copy has the mode of his own maildir's directory."""
    modes = {"alice": 0o770, "bob": 0o700, "carol": 0o755}
    for name, mode in modes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    handler = MaildirHandler(Layout(f"{tmp_path}/{{user}}", create=True), inherit_mode=True)
    async with serving(StreamingLMTP, handler, tmp_path) as talk:
        everybody = [f"{name}@example.com" for name in modes]
        await talk(lambda client: [*client.begin(*everybody), *client.transmit(MAIL, 3)])
    stored = {name: next((tmp_path / name / "new").iterdir()).stat().st_mode & 0o777 for name in modes}
    assert stored == {"alice": 0o660, "bob": 0o600, "carol": 0o644}


async def test_who_is_over_his_quota_is_refused_at_rcpt(tmp_path: Path) -> None:
    """A full maildir is seen at RCPT, with the reply that the quota says; the others get the message."""
    quota = Quota(messages=1, over="552 5.2.2 Mailbox full")
    handler = MaildirHandler(Layout(f"{tmp_path}/{{user}}", create=True), quota=quota)
    await Maildir(tmp_path / "alice").append(b"x")
    async with serving(StreamingLMTP, handler, tmp_path) as talk:
        replies = await talk(lambda client: client.begin("alice@example.com", "bob@example.com"))
        assert "552 5.2.2" in str(replies)
        await talk(lambda client: [*client.begin("bob@example.com"), *client.transmit(MAIL, 1)])
    assert len(contents(tmp_path / "alice")["new"]) == 1
    assert len(contents(tmp_path / "bob")["new"]) == 1


async def test_a_message_that_fills_a_maildir_is_seen_at_the_next_rcpt(tmp_path: Path) -> None:
    """What this process has delivered is known at once, though there was room a moment ago."""
    quota = Quota(messages=2, over="552 5.2.2 Mailbox full")
    handler = MaildirHandler(Layout(f"{tmp_path}/{{user}}", create=True), quota=quota)
    async with serving(StreamingLMTP, handler, tmp_path) as talk:
        for _ in range(2):
            await talk(lambda client: [*client.begin("alice@example.com"), *client.transmit(MAIL, 1)])
        replies = await talk(lambda client: client.begin("alice@example.com", "bob@example.com"))
        assert "552 5.2.2" in str(replies)
    assert len(contents(tmp_path / "alice")["new"]) == 2


async def test_recipients_may_have_headers_of_their_own(tmp_path: Path) -> None:
    """If asked for, each recipient's copy says who it is for, and nobody else."""
    handler = MaildirHandler(
        Layout(f"{tmp_path}/{{user}}", create=True), per_recipient_headers=True, original_to=True, received=False
    )
    async with serving(StreamingLMTP, handler, tmp_path) as talk:
        await talk(lambda client: [*client.begin("alice+x@example.com", "bob@example.com"), *client.transmit(MAIL, 2)])
    (alice,), (bob,) = contents(tmp_path / "alice")["new"], contents(tmp_path / "bob")["new"]
    assert alice.startswith(b"Return-Path: <a@example.com>\nDelivered-To: alice")
    assert b"X-Original-To: alice+x@example.com\n" in alice
    assert b"bob" not in alice
    assert b"alice" not in bob


async def test_addresses_that_share_a_maildir_share_the_message(tmp_path: Path, server: Any) -> None:
    """Two addresses of one user: the message once, a reply for each."""
    handler = MaildirHandler({"a@example.com": tmp_path / "m", "b@example.com": tmp_path / "m"})
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(
            lambda client: [
                *client.begin("a@example.com", "b@example.com", "a+detail@example.com"),
                *client.transmit(MAIL, 3 if is_lmtp(server) else 1),
            ]
        )
    assert {reply[:3] for reply in told} == {"250"}
    assert len(contents(tmp_path / "m")["new"]) == 1


async def test_unknown_users_are_refused_at_rcpt(tmp_path: Path, server: Any) -> None:
    """550 5.1.1 at RCPT, and a receipt; the others get the message."""
    receipts: list[Receipt] = []
    handler = MaildirHandler({"b@example.com": tmp_path / "m"}, on_receipt=receipts.append)
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(
            lambda client: [
                *client.begin("x@example.com", "b@example.com", "../b@example.com"),
                *client.transmit(MAIL, 1),
            ]
        )
    assert [reply[:9] for reply in told[1:]] == ["550 5.1.1", "250 2.1.5", "550 5.1.1", "250 2.0.0"]
    assert [(receipt.address, receipt.maildir is None) for receipt in receipts] == [
        ("x@example.com", True),
        ("../b@example.com", True),
        ("b@example.com", False),
    ]


async def test_a_lookup_may_be_async_and_may_fail(tmp_path: Path) -> None:
    """What a callable raises is a temporary failure without its words."""

    async def look_up(address: str) -> str | None:
        await asyncio.sleep(0)
        if address.startswith("down"):
            raise OSError(errno.EIO, "the directory server at 10.0.0.1 is down")
        return f"{tmp_path}/m" if address.startswith("b") else None

    handler = MaildirHandler(look_up)
    async with serving(StreamingSMTP, handler, tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("down@x.example", "c@x.example", "b@x.example")])
    assert [reply[:9] for reply in told[1:]] == ["451 4.3.0", "550 5.1.1", "250 2.1.5"]
    assert "10.0.0.1" not in "".join(told)


async def test_a_path_is_left_to_the_system(tmp_path: Path, server: Any) -> None:
    """``..`` after a symbolic link leads to where the system says; a path that cannot be encoded is 451, and logged."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")

    def look_up(address: str) -> str:
        return f"{tmp_path}/link/../{'box' if address.startswith('a') else chr(0xD800)}"

    async with serving(server, MaildirHandler(look_up), tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("a@x.example", "b@x.example"), *client.transmit(MAIL, 1)])
    assert [reply[:9] for reply in told[1:]] == ["250 2.1.5", "451 4.3.0", "250 2.0.0"]
    assert len(contents(tmp_path / "far" / "box")["new"]) == 1
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_recipients": "2"}, TypeError),
        ({"max_recipients": 0}, ValueError),
        ({"on_receipt": 3}, TypeError),
        ({"return_path": "no"}, TypeError),
        ({"delivered_to": None}, TypeError),
        ({"original_to": 1}, TypeError),
        ({"received": 0}, TypeError),
        ({"per_recipient_headers": "yes"}, TypeError),
        ({"newline": "LF"}, ValueError),
        ({"deadline": 3}, TypeError),
        ({"durability": "full"}, TypeError),
        ({"create": "no"}, TypeError),
        ({"file_mode": "600"}, TypeError),
        ({"inherit_mode": "yes"}, TypeError),
        ({"quota": 1000}, TypeError),
    ],
    ids=str,
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    """A wrong option of the handler raises, naming the option and what it was."""
    ((name, value),) = options.items()
    with pytest.raises(error, match=f"{name}.*{value!r}"):
        MaildirHandler(f"{tmp_path}/m", **options)


async def test_too_many_recipients(tmp_path: Path) -> None:
    """Past the limit: 452 4.5.3, upon which a client delivers to those it has and comes again."""
    handler = MaildirHandler(tmp_path / "m", max_recipients=2)
    async with serving(SMTP, handler, tmp_path) as talk:
        told = await talk(lambda client: [*client.begin(*["b@example.com"] * 3), *client.transmit(MAIL, 1)])
    assert [reply[:9] for reply in told[1:]] == ["250 2.1.5", "250 2.1.5", "452 4.5.3", "250 2.0.0"]


@pytest.mark.parametrize(
    ("operation", "number", "reply"),
    [
        ("write", errno.ENOSPC, "452 4.3.1"),
        ("write", errno.EDQUOT, "452 4.2.2"),
        ("create", errno.EACCES, "451 4.3.5"),
        ("sync", errno.EIO, "451 4.3.0"),
        ("open_directory", errno.EROFS, "451 4.3.5"),
        ("room", errno.EACCES, "451 4.3.5"),
    ],
)
async def test_failures_are_told_as_they_are(
    tmp_path: Path, server: Any, operation: str, number: int, reply: str
) -> None:
    """What can heal is a 4xx, without a path, an errno's text or a class; what failed has left nothing."""
    disk = FaultDisk()
    handler = Faulty(disk, Layout(f"{tmp_path}/{{user}}", create=True))
    await Maildir(tmp_path / "alice").create()
    disk.faults.append(Fault(operation, error=number, nth=0))
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("alice@example.com"), *client.transmit(MAIL, 1)])
    refusal = told[-2 if operation == "room" else -1]  # to RCPT, or to the message
    assert refusal.startswith(reply)
    assert not any(word in refusal for word in (str(tmp_path), os.strerror(number), "Error", "alice"))
    assert not any(contents(tmp_path / "alice").values())


class Elsewhere(Faulty):
    """Its maildirs are where symbolic links lead to."""

    def maildir(self, path: Any, commit: GroupCommit | None = None) -> Maildir:
        return super().maildir(os.path.realpath(path), commit)


async def test_a_maildir_may_be_at_another_path_than_was_found(tmp_path: Path, server: Any) -> None:
    """An overridden ``maildir()`` has its outcome told like any other: 452 for a full disk, 250 for what is stored."""
    (tmp_path / "link").symlink_to(tmp_path / "m")
    await Maildir(tmp_path / "m").create()
    disk = FaultDisk(Fault("write", error=errno.ENOSPC))
    paths = {"a@example.com": tmp_path / "link", "b@example.com": tmp_path / "m"}
    replies = 2 if is_lmtp(server) else 1
    async with serving(server, Elsewhere(disk, paths), tmp_path) as talk:
        for code, count in (("452", 0), ("250", 1)):
            told = await talk(lambda client: [*client.begin(*paths), *client.transmit(MAIL, replies)])
            assert [reply[:3] for reply in told[3:]] == [code] * replies
            assert len(contents(tmp_path / "m")["new"]) == count


async def test_a_delivery_that_was_given_up_is_no_success(tmp_path: Path) -> None:
    """What has been aborted is told as not stored, if anybody asks."""
    handler = MaildirHandler(tmp_path / "m")
    envelope = Envelope()
    envelope.rcpt_tos = ["a@example.com", "b@example.com"]
    session: Any = SimpleNamespace(peer="", host_name="me")
    server: Any = SimpleNamespace(hostname="mx.example")
    delivery = await handler.open_delivery(server, session, envelope, protocol="SMTP", size=None)
    await delivery.send(MAIL)
    delivery.abort()
    assert [reply[:3] for reply in await delivery.finish()] == ["451"] * 2
    assert not any(contents(tmp_path / "m").values())


async def test_outcomes_are_independent(tmp_path: Path, server: Any) -> None:
    """One recipient's trouble is no other's: LMTP says so; SMTP has the client send again, rather than lose one.

    Receipts tell what was said, and of each what came of it.
    """
    receipts: list[Receipt] = []
    disk = FaultDisk(Fault("link", error=errno.EIO, nth=0, path="bob/"))
    handler = Faulty(disk, Layout(f"{tmp_path}/{{user}}", create=True), on_receipt=receipts.append)
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(
            lambda client: [
                *client.begin("alice@example.com", "bob@example.com", "carol@example.com"),
                *client.transmit(MAIL, 3 if is_lmtp(server) else 1),
            ]
        )
    codes = [reply[:3] for reply in told[4:]]
    assert codes == (["250", "451", "250"] if is_lmtp(server) else ["451"])
    assert [receipt.reply for receipt in receipts] == (told[4:] if is_lmtp(server) else told[4:] * 3)
    assert [receipt.verdict for receipt in receipts] == ["delivered", "deferred", "delivered"]
    assert [receipt.delivered is None for receipt in receipts] == [receipt.error is not None for receipt in receipts]
    assert [len(contents(tmp_path / user)["new"]) for user in ("alice", "bob", "carol")] == [1, 0, 1]


async def test_an_uncertain_message_is_sent_again(tmp_path: Path, server: Any) -> None:
    """Visible but perhaps not durable: 451. A duplicate is better than a loss."""
    disk = FaultDisk(Fault("sync", error=errno.EIO, nth=0, path="/new"))
    async with serving(server, Faulty(disk, tmp_path / "m"), tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("b@example.com"), *client.transmit(MAIL, 1)])
    assert told[-1].startswith("451 4.3.0")
    assert len(contents(tmp_path / "m")["new"]) == 1


@pytest.mark.every_loop
async def test_a_full_queue_is_told_at_once(tmp_path: Path, server: Any) -> None:
    """With no place among the pending deliveries the answer is 451 4.3.2, not a wait."""
    gate = Gate()
    commit = GroupCommit(max_pending=1, wait=False)
    slow = Maildir(tmp_path / "slow", commit=commit, disk=FaultDisk(Fault("create", gate=gate)))
    first = asyncio.create_task(slow.append(MAIL))
    await gate.reached()
    async with serving(server, MaildirHandler(tmp_path / "m", commit=commit), tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("b@example.com"), *client.transmit(MAIL, 1)])
        gate.open()
        await first
        again = await talk(lambda client: [*client.begin("b@example.com"), *client.transmit(MAIL, 1)])
    assert told[-1].startswith("451 4.3.2")
    assert again[-1].startswith("250 2.0.0")


async def test_who_cannot_have_the_message_is_refused_at_rcpt(tmp_path: Path, server: Any) -> None:
    """A path that is no maildir, or out of reach, or a full disk, is told at RCPT; the others have the message once."""
    receipts: list[Receipt] = []
    (tmp_path / "file").write_bytes(b"")
    disk = FaultDisk(
        Fault("room", error=errno.ENOSPC, nth=0, path="full/"), Fault("room", error=errno.EACCES, nth=0, path="closed/")
    )
    names = ["alice", "file", "full", "closed"]
    addresses = [f"{name}@example.com" for name in names]
    handler = Faulty(disk, {f"{name}@example.com": tmp_path / name for name in names}, on_receipt=receipts.append)
    await asyncio.gather(*(Maildir(tmp_path / name).create() for name in ("full", "closed")))
    async with serving(server, handler, tmp_path) as talk:
        told = await talk(lambda client: [*client.begin(*addresses), *client.transmit(MAIL, 1)])
    assert [reply[:9] for reply in told[1:]] == ["250 2.1.5", "451 4.3.5", "452 4.3.1", "451 4.3.5", "250 2.0.0"]
    assert [len(contents(tmp_path / name).get("new", [])) for name in names] == [1, 0, 0, 0]
    assert [(receipt.address, receipt.reply) for receipt in receipts] == [
        *zip(addresses[1:], told[2:-1], strict=True),
        (addresses[0], told[-1]),
    ]
    assert [receipt.maildir for receipt in receipts[:3]] == [str(tmp_path / name) for name in names[1:]]
    assert all(isinstance(receipt.error, MaildirError) for receipt in receipts[:3])


async def test_a_maildir_is_looked_at_once_in_a_while(tmp_path: Path) -> None:
    """For many messages to one maildir the disk is asked once; again for a larger one, by the announced size."""

    class Disk(FaultDisk):
        def room(self, path: str) -> int:
            super().room(path)
            return 50_000_000

    disk = Disk()
    await Maildir(tmp_path / "m").create()
    handler = Faulty(disk, tmp_path / "m")
    told: list[str] = []

    def session(client: Client) -> None:
        client.said("EHLO me")
        for size in (0, 1000, 2**20, 49_000_000, 48_000_000, 51_000_000):
            told.append(client.said(f"MAIL FROM:<> SIZE={size}"))
            told.extend(client.said(f"RCPT TO:<{name}@example.com>") for name in ("b", "c"))
            told.append(client.said("DATA")[:3])
            told.append(client.said(".") if told[-1] == "354" else client.said("RSET"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maildir_async.smtp.finder.CHECKED_S", 1000.0)
        async with serving(StreamingSMTP, handler, tmp_path, data_size_limit=None) as talk:
            await talk(session)
    assert [reply[:3] for reply in told] == ["250", "250", "250", "354", "250"] * 5 + [
        "250",
        "452",
        "452",
        "503",
        "250",
    ]
    rooms = Counter(call.path.rpartition("/")[2] for call in disk.calls if call.operation == "room")
    assert rooms == {"tmp": 4, "new": 2}  # none, 49 MB, and twice 51 MB, which tmp/ has no room for


@pytest.mark.parametrize("streaming", [StreamingSMTP, StreamingLMTP])
async def test_what_can_be_known_is_told_before_the_message_is_sent(
    tmp_path: Path, streaming: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full by the time of DATA answers it: nothing is sent in vain, nor stored for some in SMTP."""
    monkeypatch.setattr("maildir_async.smtp.finder.CHECKED_S", 0.0)
    receipts: list[Receipt] = []
    disk = FaultDisk()
    handler = Faulty(disk, Layout(f"{tmp_path}/{{user}}", create=True), on_receipt=receipts.append)
    users = ["alice", "bob"]
    for user in users:
        await Maildir(tmp_path / user).create()
    for path, code in (("", "452"), ("bob/", "354" if is_lmtp(streaming) else "452")):

        def session(client: Client, path: str = path) -> list[str]:
            client.begin(*(f"{user}@example.com" for user in users))
            disk.faults[:] = [Fault("room", error=errno.ENOSPC, nth=0, path=path)]
            told = client.transmit(MAIL, 2)
            disk.faults.clear()
            return [*told, client.said("NOOP")]

        receipts.clear()
        async with serving(streaming, handler, tmp_path) as talk:
            told = await talk(session)
        assert [reply[:3] for reply in told] == (["250", "452", "250"] if code == "354" else ["452", "250"])
        assert [receipt.reply for receipt in receipts] == (told[:-1] if code == "354" else told[:1] * 2)
        assert [receipt.size for receipt in receipts] == [len(MAIL) if code == "354" else 0] * 2
    assert [len(contents(tmp_path / user)["new"]) for user in users] == [int(is_lmtp(streaming)), 0]


class Filled(MaildirHandler):
    """It takes every recipient, and asks nobody."""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: Any, rcpt_options: Any) -> str:  # noqa: N802
        envelope.rcpt_tos.append(address)
        return "250 OK"


async def test_recipients_that_a_subclass_has_taken(tmp_path: Path, server: Any) -> None:
    """Each has an outcome of his own, known or not; SMTP, with one reply for all, stores nothing if one may heal."""

    def look_up(address: str) -> Path | None:
        if address.startswith("down"):
            raise OSError(errno.EIO, "secret")
        return tmp_path / "alice" if address.startswith("alice") else None

    receipts: list[Receipt] = []
    handler = Filled(look_up, on_receipt=receipts.append)
    for users, lmtp, smtp, stored in (
        (["alice", "nobody"], ["250 2.0.0", "550 5.1.1"], "550 5.1.1", 1),
        (["down", "nobody"], ["451 4.3.0"] * 2, "451 4.3.0", 0),
        (["nobody", "nobody"], ["550 5.1.1"] * 2, "550 5.1.1", 0),
        (["nobody", "alice", "down"], ["550 5.1.1", "250 2.0.0", "451 4.3.0"], "451 4.3.0", int(is_lmtp(server))),
    ):
        receipts.clear()
        addresses = [f"{user}@example.com" for user in users]
        async with serving(server, handler, tmp_path) as talk:
            told = await talk(
                lambda client, addresses=addresses, lmtp=lmtp: [  # type: ignore[misc]
                    *client.begin(*addresses),
                    *client.transmit(MAIL, len(lmtp) if is_lmtp(server) else 1),
                ]
            )
        answers = [reply[:9] for reply in told[1 + len(users) :]]
        is_one_answer = not is_lmtp(server) or (server is StreamingLMTP and "alice" not in users)  # to DATA, or for all
        assert answers == ([smtp] if is_one_answer else lmtp)
        assert [receipt.address for receipt in receipts] == addresses
        assert [receipt.reply[:9] for receipt in receipts] == (lmtp if is_lmtp(server) else [smtp] * len(lmtp))
        found = contents(tmp_path / "alice").get("new", [])
        assert len(found) == stored
        for path in (tmp_path / "alice").glob("new/*"):
            path.unlink()


async def test_an_exception_tells_the_client_nothing(tmp_path: Path) -> None:
    """A defect is a temporary failure to the client."""
    reply = await MaildirHandler(tmp_path / "m").handle_exception(OSError(errno.EIO, "secret", "/var/mail/alice"))
    assert reply.startswith("451 4.3.0 ")
    assert "alice" not in reply


async def test_a_defect_is_answered_for_every_recipient(tmp_path: Path, server: Any) -> None:
    """What nobody has foreseen is 451 for each recipient in LMTP, and once in SMTP; the session goes on."""

    class Broken(MaildirHandler):
        async def open_delivery(self, *args: Any, **options: Any) -> Any:
            delivery = await super().open_delivery(*args, **options)

            async def broken(chunk: bytes) -> None:
                raise OSError(errno.EIO, "secret", "/var/mail/alice")

            delivery.send = broken  # type: ignore[method-assign]
            return delivery

    commit = GroupCommit()
    replies = 3 if is_lmtp(server) else 1
    async with serving(server, Broken(tmp_path / "m", commit=commit), tmp_path) as talk:
        told = await talk(
            lambda client: [
                *client.begin("b@example.com", "c@example.com", "d@example.com"),
                *client.transmit(MAIL, replies),
                client.said("NOOP"),
            ]
        )
    assert told[4:-1] == ["451 4.3.0 Message not stored, try again later"] * replies
    assert told[-1].startswith("250 ")
    assert commit.statistics().pending == 0
    assert not any(contents(tmp_path / "m").values())


async def test_a_receipt_callback_that_raises_costs_nobody_his_mail(tmp_path: Path) -> None:
    """What it raises is logged."""

    def broken(receipt: Receipt) -> None:
        raise ValueError

    async with serving(StreamingSMTP, MaildirHandler(tmp_path / "m", on_receipt=broken), tmp_path) as talk:
        told = await talk(lambda client: [*client.begin("b@example.com"), *client.transmit(MAIL, 1)])
    assert told[-1].startswith("250 ")


def test_wrong_options(tmp_path: Path) -> None:
    """What cannot be right is told when the handler is made."""
    for wrong in ({"newline": "cr"}, {"file_mode": 0o777}, {"durability": "full"}):
        with pytest.raises((ValueError, TypeError)):
            MaildirHandler(tmp_path / "m", **wrong)
    with pytest.raises(TypeError):
        MaildirHandler(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="user"):
        MaildirHandler("/var/mail/{name}")


def test_aiosmtpd_s_command_line(tmp_path: Path) -> None:
    """``python -m aiosmtpd -c maildir_async.smtp.MaildirHandler DIR`` stores what it is sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(Path(maildir_async.__file__).parents[1])}
    program = ["-m", "aiosmtpd", "-n", "-l", f"127.0.0.1:{port}", "-c", "maildir_async.smtp.MaildirHandler"]
    wrong = subprocess.run([sys.executable, *program], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "MaildirHandler usage: DIR" in wrong.stderr
    with subprocess.Popen([sys.executable, *program, str(tmp_path / "m")], env=environment) as process:
        try:

            def sent() -> bool:
                assert process.poll() is None
                with contextlib.suppress(ConnectionRefusedError), smtplib.SMTP("127.0.0.1", port) as client:
                    client.sendmail("a@example.com", ["b@example.com"], MAIL)
                    return True
                return False

            until(sent)
        finally:
            process.kill()
    (stored,) = contents(tmp_path / "m")["new"]
    assert stored.endswith(STORED)
