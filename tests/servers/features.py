"""What a mailbox has beside its inbox, with a real Dovecot, 2.3 and 2.4: folders, quota, whose mail it is.

The daemon refuses at RCPT who has no room, until he removes something by IMAP; what it delivers with the mode of a
shared maildir a second user of the system reads and removes; what the library has put into folders is there by IMAP
with its name, bytes, flags, keywords, size and date.
"""

import asyncio
import email
import imaplib
import os
import re
import smtplib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from maildir_async import Maildir

from . import deliveries
from .checks import Verdict
from .daemon import Daemon
from .deliveries import FOLDERS, MAIL, Told
from .dovecot import Dovecot, quota_by_imap
from .exposed import Serve
from .place import NOBODY, Place

#: Whose mail it is, in a domain of each Dovecot.
DOMAINS: Final = {"2.3": "a.test", "2.4": "b.test"}
PEOPLE: Final = ("full", "room", "shared", "own", "folders")

#: A group and users of the system, by number: nobody else has them. The maildir of ``shared`` is nobody's and the
#: group's, and the user that reads it by IMAP is another one of the group.
VMAIL: Final = 64010
OWNERS: Final = {"shared": 64002, "own": 64001}

#: Of each maildir, in kibibytes and messages: of the daemon, and of Dovecot.
LIMITS: Final = (8192, 60)

SMALL: Final = b"Subject: small\r\n\r\nhello\r\n"

#: What IMAP shows for a letter. P is none of its.
IMAP_FLAGS: Final = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}


class Daemons:
    """The daemons, and the maildirs, of all sites.

    Attributes:
        root: of the layout.
        soft: has a quota, and the mode that a maildir has; nobody's, and in the group.
        hard: has the limits that the file has, and refuses for good.
        owning: root's, so that mail is its owner's.
        owning_at: where that takes mail.

    """

    def __init__(self, place: Place) -> None:
        self.root = place.directory("mail")
        users = [f"{name}@{domain}" for domain in DOMAINS.values() for name in PEOPLE]
        for user in users:
            name, _, domain = user.partition("@")
            place.directory(f"mail/{domain}/{name}", NOBODY)
        kibibytes, messages = LIMITS
        # One worker each: what one has not done itself it sees a moment later.
        soft = ("--workers", "1", "--inherit-mode", "--quota", f"{kibibytes}K,{messages}C")
        hard = ("--workers", "1", "--quota", "file", "--quota-permanent")
        self.soft = Daemon(place, self.root, users, *soft, name="soft", groups=(VMAIL,))
        self.hard = Daemon(place, self.root, users, *hard, name="hard", protocol="smtp")
        home = place.directory("owning")
        (home / "users").write_text("".join(f"{user}\n" for user in users))
        self.owning_at = home / "lmtp"
        options = ["--layout", f"{self.root}/{{domain}}/{{user}}/Maildir", "--users", str(home / "users")]
        options += ["--hostname", "mail.test", "--inherit-mode", "--allow-root"]
        self.owning = Serve(place, "owning", home, "--lmtp", f"unix:{self.owning_at}", *options)

    def by_soft(self) -> smtplib.SMTP:
        """Connect to the first, by LMTP."""
        return smtplib.LMTP(str(self.soft.lmtp))

    def by_hard(self) -> smtplib.SMTP:
        """Connect to the second, by SMTP."""
        return smtplib.SMTP(self.hard.host, self.hard.port, timeout=30)

    def stop(self) -> list[str]:
        """End them; return what was not as it should be."""
        complaints = [f"the daemon: {line}" for daemon in (self.soft, self.hard) for line in daemon.complaints()]
        complaints += self.owning.complaints()
        return complaints + self.soft.stop() + self.hard.stop() + self.owning.server.stop()


class Site:
    """What one Dovecot serves, and what was found there.

    Attributes:
        place: where all of it runs.
        daemons: that deliver.
        version: of Dovecot.
        dovecot: that reads the mail.
        verdict: what was found.

    """

    def __init__(self, place: Place, daemons: Daemons, verdict: Verdict, debian: Path | None) -> None:
        self.place, self.daemons, self.verdict = place, daemons, verdict
        self.version = "2.3" if debian is None else "2.4"
        users = [self.user(name) for name in PEOPLE]
        owners = {self.user(name): uid for name, uid in OWNERS.items()}
        self.dovecot = Dovecot(place, daemons.root, users, owners=owners, group=VMAIL, quota=LIMITS, debian=debian)

    def user(self, name: str) -> str:
        """Return the address of somebody of this site."""
        return f"{name}@{DOMAINS[self.version]}"

    def maildir(self, name: str) -> Path:
        """Return where somebody's mail is."""
        return self.daemons.root / DOMAINS[self.version] / name / "Maildir"

    def imap(self, name: str) -> imaplib.IMAP4:
        """Return a session in which somebody is logged in."""
        return self.dovecot.connect(self.user(name))

    def expect(self, what: str, found: object, expected: object) -> None:
        """Count a case; it is a fault if *found* is not what was *expected*."""
        self.verdict.counts["cases"] += 1
        if found != expected:
            self.verdict.faults.append(f"{what}, with Dovecot {self.version}: {found!r}, not {expected!r}")


def features(place: Place, say: Callable[[str], None], debian: Path | None = None) -> Verdict:
    """Run all cases with each Dovecot there is; return what was found."""
    verdict = Verdict()
    daemons = Daemons(place)
    for system in dict.fromkeys((None, debian)):
        site = Site(place, daemons, verdict, system)
        for what, case in CASES.items():
            say(f"{what}, with Dovecot {site.version}")
            try:
                case(site)
            except (imaplib.IMAP4.error, smtplib.SMTPException, ValueError) as exc:
                verdict.faults.append(f"{what}, with Dovecot {site.version}: {exc!r}")
        complaints = [f"Dovecot {site.version}: {line}" for line in site.dovecot.complaints()]
        verdict.faults += complaints + site.dovecot.stop()
    verdict.faults += daemons.stop()
    return verdict


def _quota(site: Site) -> None:
    """Fill a maildir; make room by IMAP; fill it again. Each refusal is at RCPT."""
    kibibytes, messages = LIMITS
    full, room = site.user("full"), site.user("room")
    by_soft, by_hard = site.daemons.by_soft, site.daemons.by_hard
    # The second daemon has the limits from the file, which has them from the first.
    said = {_sent(by_soft() if number % 2 == 0 else by_hard(), full) for number in range(messages)}
    site.expect("until it is full", said, {"250 2.0.0"})
    for turn in range(2):
        site.expect(f"full, LMTP, {turn}", _sent(by_soft(), full), "452 4.2.2")
        site.expect(f"full, SMTP, for good, {turn}", _sent(by_hard(), full), "552 5.2.2")
        with site.imap("full") as client:
            storage, number, *limits = quota_by_imap(client)
            site.expect("GETQUOTAROOT", (number, limits), (messages, [kibibytes, messages]))
            held = sum(path.stat().st_size for path in _files(site.maildir("full")))
            site.expect("GETQUOTAROOT", storage, -(-held // 1024))
            client.select("INBOX")
            client.store("1:2", "+FLAGS", "\\Deleted")
            client.expunge()
        site.expect("doveadm quota get", site.dovecot.quota(full)[1], messages - 2)
        # The first has the last: it knows then that nothing more has room.
        for connect in (by_hard, by_soft):
            site.expect(f"there is room, {turn}", _sent(connect(), full), "250 2.0.0")
    with by_soft() as client:  # the others of a message get it
        client.ehlo_or_helo_if_needed()
        client.mail("sender@a.test")
        said_to = [_code(client.rcpt(user)) for user in (full, room)]
        client.putcmd("DATA")
        said_to.append(_code(client.getreply()))
        client.send(SMALL + b".\r\n")
        said_to.append(_code(client.getreply()))
    site.expect("one of two is full", said_to, ["452 4.2.2", "250 2.1.5", "354", "250 2.0.0"])
    for connect, code in ((by_soft, "452 4.2.2"), (by_hard, "552 5.2.2")):
        with connect() as client:
            client.ehlo_or_helo_if_needed()
            client.mail("sender@a.test", [f"SIZE={kibibytes * 1024}"])
            site.expect("declared too large for the quota", _code(client.rcpt(room)), code)
    site.expect("doveadm quota get", site.dovecot.quota(room)[1], 1)
    site.dovecot.doveadm("quota", "recalc", "-u", full)
    site.expect("after quota recalc", site.dovecot.quota(full)[1], messages)
    site.expect("full after quota recalc", _sent(by_soft(), full), "452 4.2.2")


def _sent(client: smtplib.SMTP, recipient: str, message: bytes = SMALL) -> str:
    """Send a message; return the code of what refused it at RCPT, or of the last reply."""
    with client:
        client.ehlo_or_helo_if_needed()
        client.mail("sender@a.test")
        said = client.rcpt(recipient)
        if said[0] == 250:
            said = client.data(message)
        return _code(said)


def _code(said: tuple[int, bytes]) -> str:
    """Return a reply's code, and the enhanced one if it has one."""
    enhanced = re.match(rb"\d\.\d{1,3}\.\d{1,3}(?= )", said[1])
    return f"{said[0]} {enhanced[0].decode()}" if enhanced else str(said[0])


def _files(maildir: Path) -> list[Path]:
    return [path for where in ("new", "cur") for path in maildir.glob(f"**/{where}/*")]


def _looked(path: Path) -> tuple[int, int, int]:
    """Return owner, group and permission bits."""
    about = path.stat()
    return about.st_uid, about.st_gid, about.st_mode & 0o7777


def _shared_maildir(site: Site) -> None:
    """Deliver to a maildir that is a group's, by a daemon in that group; another user of the group has it by IMAP."""
    maildir, user = site.maildir("shared"), site.user("shared")
    maildir.mkdir()
    os.chown(maildir, NOBODY, VMAIL)
    maildir.chmod(0o2770)
    for number in (1, 2, 3):
        site.expect("shared", _sent(site.daemons.by_soft(), user), "250 2.0.0")
        with site.imap("shared") as client:
            site.expect("a second user reads", client.select("INBOX"), ("OK", [b"%d" % number]))
            site.expect("a second user reads", b"hello" in _body(client, number), True)
            if number == 2:  # and does with it what she likes
                client.store("1", "+FLAGS", "\\Deleted")
                client.create("Done")
                site.expect("APPEND", client.append("Done", "", "", SMALL)[0], "OK")
    with site.imap("shared") as client:
        client.select("INBOX")
        site.expect("a second user removes", client.expunge(), ("OK", [b"1"]))
    for path in _files(maildir):
        uid = OWNERS["shared"] if path.parents[1] == maildir / ".Done" else NOBODY
        site.expect(f"{path}", _looked(path), (uid, VMAIL, 0o660))
    for name in ("tmp", "new", "cur"):
        site.expect(f"{maildir / name}", _looked(maildir / name), (NOBODY, VMAIL, 0o2770))


def _owned_maildir(site: Site) -> None:
    """Deliver as root to a maildir that is a user's and a group's: so are its messages."""
    maildir, uid = site.maildir("own"), OWNERS["own"]
    maildir.mkdir()
    for path in (maildir, maildir.parent):
        os.chown(path, uid, VMAIL)
    maildir.chmod(0o2750)
    site.expect("root delivers", _sent(smtplib.LMTP(str(site.daemons.owning_at)), site.user("own")), "250 2.0.0")
    for path in _files(maildir):
        site.expect(f"{path}", _looked(path), (uid, VMAIL, 0o640))
    site.expect(f"{maildir / 'new'}", _looked(maildir / "new"), (uid, VMAIL, 0o2750))
    with site.imap("own") as client:
        site.expect("its owner reads", client.select("INBOX"), ("OK", [b"1"]))
        site.expect("its owner reads", b"hello" in _body(client, 1), True)


def _body(client: imaplib.IMAP4, number: int) -> bytes:
    """Return a message, and mark it as seen."""
    _, found = client.fetch(str(number), "(RFC822.SIZE BODY[])")
    return cast("tuple[bytes, bytes]", found[0])[1]


def _folders(site: Site) -> None:
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
    site.expect("copied", len(_files(path / ".Gel&APY-scht.neu")), len(MAIL))


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


#: What is done with each Dovecot, in this order.
CASES: Final[dict[str, Callable[[Site], None]]] = {
    "quota at RCPT": _quota,
    "a maildir of a group's": _shared_maildir,
    "a maildir of a user's": _owned_maildir,
    "folders": _folders,
}
