"""Folders that are delivered to, by the library and by the daemon, as Dovecot shows them."""

import asyncio
import email
import imaplib
import re
import smtplib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from maildir_async import Maildir

from . import deliveries
from .deliveries import FOLDERS, MAIL, Told
from .dovecot import quota_by_imap
from .place import NOBODY
from .site import LISTED, VMAIL, Site, files, looked, sent

#: What IMAP shows for a letter. P is none of its.
IMAP_FLAGS: Final = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}


def read_folders(site: Site) -> None:
    """Have the library write to folders, and Dovecot show them; have Dovecot change them, and the library see it."""
    path = site.maildir("folders")
    writer = deliveries.start(site.place, f"folders-{site.version}", "folders", path)
    site.verdict.faults += writer.stop(None)
    written: dict[str | None, list[Told]] = {}
    for each in deliveries.told(writer):
        written.setdefault(each.folder, []).append(each)
    counts = {folder: len(receipts) for folder, receipts in written.items()}
    site.expect("what was written", counts, dict.fromkeys(FOLDERS, len(MAIL)))
    with site.imap("folders") as client:
        site.expect("LIST", _names(client), set(FOLDERS.values()))
        for folder, receipts in written.items():
            _read_folder(site, client, folder, dict(zip(MAIL, receipts, strict=True)))
        held = sum(each.size for each in _all(written))
        site.expect("GETQUOTAROOT", quota_by_imap(client)[:2], (-(-held // 1024), len(_all(written))))
        # What a client makes is the library's too.
        client.create('"Gel&APY-scht.neu"')
        client.select('"a&-b"')
        site.expect("COPY", client.copy("1:*", '"Gel&APY-scht.neu"')[0], "OK")
        client.select("INBOX")
        client.delete('"a&-b"')
        client.rename('"Archive.2024"', '"Archive.2025"')
    ours = asyncio.run(Maildir(path, create=False).folders())
    site.expect("folders()", ours, ["Archive/2025", "Entwürfe", "Gelöscht/neu", "台北/日本語"])
    site.expect("copied", len(files(path / ".Gel&APY-scht.neu")), len(MAIL))


def _all(written: Mapping[str | None, Sequence[Told]]) -> list[Told]:
    return [each for receipts in written.values() for each in receipts]


def _names(client: imaplib.IMAP4) -> set[str]:
    _, listed = client.list()
    lines = [cast("bytes", line).decode() for line in listed]
    return {line.split()[-1].strip('"') for line in lines if not re.search(r"\\no(select|nexistent)", line, re.I)}


def _read_folder(site: Site, client: imaplib.IMAP4, folder: str | None, written: dict[str, Told]) -> None:
    """See that a folder has each message with its bytes, flags, keywords, size and date."""
    name = f'"{FOLDERS[folder]}"'
    unseen = sum("S" not in options.get("flags", "") for _, options in MAIL.values())
    status = cast("bytes", client.status(name, "(MESSAGES UNSEEN)")[1][0])
    site.expect(f"STATUS of {name}", status.partition(b"(")[2], b"MESSAGES %d UNSEEN %d)" % (len(MAIL), unseen))
    client.select(name, readonly=True)
    fetched = cast("list[Any]", client.fetch("1:*", "(FLAGS RFC822.SIZE INTERNALDATE BODY.PEEK[])")[1])
    found = {email.message_from_bytes(data)["Subject"]: (head, data) for head, data in fetched[::2]}
    site.expect(f"what is in {name}", sorted(found), sorted(MAIL))
    for subject, (head, data) in found.items():
        message, options = MAIL[subject]
        size = int(re.search(rb"RFC822\.SIZE (\d+)", head)[1])  # type: ignore[index]
        date = re.search(rb'INTERNALDATE ("[^"]+")', head)[1]  # type: ignore[index]
        flags = {flag.decode() for flag in imaplib.ParseFlags(head)} - {"\\Recent"}
        meant = {IMAP_FLAGS[letter] for letter in options.get("flags", "") if letter != "P"}
        meant |= set(options.get("keywords", []))
        seconds = options.get("received_at", written[subject].mtime)
        expected = imaplib.Time2Internaldate(seconds).encode()
        is_whole = data == message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        found_ = (is_whole, size, flags, date)
        site.expect(f"{subject} in {name}", found_, (True, written[subject].wire_size, meant, expected))


def details(site: Site) -> None:
    """A detail of an address names a folder, where there is one, or where it is to be made."""
    soft, hard = site.daemons.by_soft, site.daemons.by_hard
    domain = site.user("detail").partition("@")[2]

    def send(connect: Callable[[], smtplib.SMTP], subject: str, *recipients: str) -> None:
        users = [f"{recipient}@{domain}" for recipient in recipients]
        site.expect(f"{subject} to {users}", sent(connect(), *users, message=message(subject)), "250 2.0.0")

    with site.imap("detail") as client:
        for name in ("lists", "lists.python", "listed", "Entw&APw-rfe"):
            site.expect(f"CREATE {name}", client.create(name)[0], "OK")
    send(soft, "exact", "detail+lists")
    send(soft, "other case", "detail+LISTS")
    send(soft, "deeper", "detail+lists.python")
    send(soft, "several", "detail+lists", "detail", "detail+nothing", "detail+lists.python", "listed")
    send(soft, "non-ASCII", "detail+Entwürfe")
    send(soft, "a user", LISTED)  # of her own, though there is such a folder
    send(hard, "made", "detail+Neu.für")
    send(hard, "made, and inbox", "detail+fresh", "detail")
    send(hard, "no name of a folder", "detail+..")
    found = {
        "INBOX": ["several", "made, and inbox", "no name of a folder"],
        "lists": ["exact", "other case", "several"],
        "lists.python": ["deeper", "several"],
        "listed": [],
        "Entw&APw-rfe": ["non-ASCII"],
        "neu.f&APw-r": ["made"],
        "fresh": ["made, and inbox"],
    }
    with site.imap("detail") as client:  # another one: what a session has listed it keeps for a second
        site.expect("LIST", _names(client), {*found})
        for name, subjects in found.items():
            site.expect(f"what is in {name}", _subjects(client, name), sorted(subjects))
    with site.imap("listed") as client:
        site.expect("a user's own mail", _subjects(client, "INBOX"), ["a user", "several"])
    # A folder that another user of the group has made.
    send(soft, "shared", "shared+Done")
    with site.imap("shared") as client:
        site.expect("what is in Done", _subjects(client, "Done"), ["shared", "small"])
    modes = {
        looked(path) for path in files(site.maildir("shared") / ".Done") if b"Subject: shared" in path.read_bytes()
    }
    site.expect("the rights of mail in her folder", modes, {(NOBODY, VMAIL, 0o660)})


def junk(site: Site) -> None:
    """What a filter has marked goes to Junk, whatever else is said."""
    domain = site.user("junk").partition("@")[2]
    for subject, field, recipients in (
        ("good", "", ["junk"]),
        ("cleared", "X-Spam-Flag: NO\r\n", ["junk"]),
        ("marked", "X-Spam-Flag: YES\r\n", ["junk"]),
        ("detailed", "x-spam-flag:yes\r\n", ["junk+lists"]),
        ("several", "X-Spam-Flag: YES\r\n", ["junk", "listed"]),
    ):
        users = [f"{recipient}@{domain}" for recipient in recipients]
        said = sent(site.daemons.by_soft(), *users, message=message(subject, field))
        site.expect(f"{subject} to {users}", said, "250 2.0.0")
    in_body = message("quoted") + b"X-Spam-Flag: YES\r\n"
    site.expect("quoted", sent(site.daemons.by_soft(), site.user("junk"), message=in_body), "250 2.0.0")
    with site.imap("junk") as client:
        site.expect("LIST", _names(client), {"INBOX", "Junk"})
        site.expect("what is in INBOX", _subjects(client, "INBOX"), ["cleared", "good", "quoted"])
        site.expect("what is in Junk", _subjects(client, "Junk"), ["detailed", "marked", "several"])
    with site.imap("listed") as client:
        site.expect("what is in Junk", _subjects(client, "Junk"), ["several"])


def message(subject: str, fields: str = "") -> bytes:
    """Return a message, with CRLF."""
    return f"Subject: {subject}\r\n{fields}\r\nhello\r\n".encode()


def _subjects(client: imaplib.IMAP4, folder: str) -> list[str]:
    """Return the subjects of the messages in a folder, sorted."""
    client.select(f'"{folder}"', readonly=True)
    found = cast("list[Any]", client.fetch("1:*", "(BODY.PEEK[HEADER])")[1]) if client.search(None, "ALL")[1][0] else []
    return sorted(str(email.message_from_bytes(each[1])["Subject"]) for each in found if isinstance(each, tuple))
