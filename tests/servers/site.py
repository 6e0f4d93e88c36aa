"""What the cases of `features` have in common: daemons with each option, and what one Dovecot serves of their mail."""

import imaplib
import re
import smtplib
from pathlib import Path
from typing import Final, cast

from .checks import Verdict
from .daemon import Daemon
from .dovecot import Dovecot
from .exposed import Serve
from .place import NOBODY, Place

#: Whose mail it is, in a domain of each Dovecot.
DOMAINS: Final = {"2.3": "a.test", "2.4": "b.test"}
PEOPLE: Final = ("full", "room", "shared", "own", "folders", "detail", "listed", "junk")

#: A user of her own, and no detail of ``detail``.
LISTED: Final = "detail+listed"

#: A group and users of the system, by number: nobody else has them. The maildir of ``shared`` is nobody's and the
#: group's, and the user that reads it by IMAP is another one of the group.
VMAIL: Final = 64010
OWNERS: Final = {"shared": 64002, "own": 64001}

#: Of each maildir, in kibibytes and messages: of the daemon, and of Dovecot.
LIMITS: Final = (8192, 60)

SMALL: Final = b"Subject: small\r\n\r\nhello\r\n"


class Daemons:
    """The daemons, and the maildirs, of all sites.

    Attributes:
        root: of the layout.
        soft: has a quota, the mode that a maildir has, folders of details where they are, and one for junk; nobody's,
            and in the group.
        hard: has the limits that the file has, and refuses for good; makes folders of details.
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
        soft = ["--workers", "1", "--inherit-mode", "--quota", f"{kibibytes}K,{messages}C"]
        soft += ["--detail-folder", "existing", "--junk-header", "X-Spam-Flag: YES"]
        # An address that has the delimiter in it, and is nobody's detail.
        (place.path / "map").write_text(
            "".join(f"{LISTED}@{domain} {self.root}/{domain}/listed/Maildir\n" for domain in DOMAINS.values())
        )
        soft += ["--map", str(place.path / "map")]
        hard = ["--workers", "1", "--quota", "file", "--quota-permanent", "--detail-folder", "create"]
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


def sent(client: smtplib.SMTP, *recipients: str, message: bytes = SMALL) -> str:
    """Send a message; return the code of what refused a recipient, or what all were told of it in the end."""
    with client:
        client.ehlo_or_helo_if_needed()
        is_ascii = all(recipient.isascii() for recipient in recipients)
        client.command_encoding = "ascii" if is_ascii else "utf-8"
        client.mail("sender@a.test", () if is_ascii else ("SMTPUTF8",))
        said = [client.rcpt(recipient) for recipient in recipients]
        if all(reply[0] == 250 for reply in said):
            said = [client.data(message)]
            if isinstance(client, smtplib.LMTP):  # which hears one reply, and there is one for each
                said += [client.getreply() for _ in recipients[1:]]
        return ", ".join(sorted({code(reply) for reply in said}))


def code(said: tuple[int, bytes]) -> str:
    """Return a reply's code, and the enhanced one if it has one."""
    enhanced = re.match(rb"\d\.\d{1,3}\.\d{1,3}(?= )", said[1])
    return f"{said[0]} {enhanced[0].decode()}" if enhanced else str(said[0])


def files(maildir: Path) -> list[Path]:
    """Return the messages of a maildir and its folders."""
    return [path for where in ("new", "cur") for path in maildir.glob(f"**/{where}/*")]


def looked(path: Path) -> tuple[int, int, int]:
    """Return owner, group and permission bits."""
    about = path.stat()
    return about.st_uid, about.st_gid, about.st_mode & 0o7777


def body(client: imaplib.IMAP4, number: int) -> bytes:
    """Return a message, and mark it as seen."""
    _, found = client.fetch(str(number), "(RFC822.SIZE BODY[])")
    return cast("tuple[bytes, bytes]", found[0])[1]
