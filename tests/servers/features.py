"""What a mailbox has beside its inbox, with a real Dovecot, 2.3 and 2.4: quota, whose mail it is, and `folders`.

The daemon refuses at RCPT who has no room, until he removes something by IMAP; what it delivers with the mode of a
shared maildir a second user of the system reads and removes.
"""

import imaplib
import os
import smtplib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .checks import Verdict
from .dovecot import quota_by_imap
from .folders import details, junk, read_folders
from .place import NOBODY, Place
from .site import LIMITS, OWNERS, SMALL, VMAIL, Daemons, Site, body, code, files, looked, sent


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
            except (imaplib.IMAP4.error, smtplib.SMTPException, ValueError, TypeError) as exc:  # or there is no answer
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
    said = {sent(by_soft() if number % 2 == 0 else by_hard(), full) for number in range(messages)}
    site.expect("until it is full", said, {"250 2.0.0"})
    for turn in range(2):
        site.expect(f"full, LMTP, {turn}", sent(by_soft(), full), "452 4.2.2")
        site.expect(f"full, SMTP, for good, {turn}", sent(by_hard(), full), "552 5.2.2")
        with site.imap("full") as client:
            storage, number, *limits = quota_by_imap(client)
            site.expect("GETQUOTAROOT", (number, limits), (messages, [kibibytes, messages]))
            held = sum(path.stat().st_size for path in files(site.maildir("full")))
            site.expect("GETQUOTAROOT", storage, -(-held // 1024))
            client.select("INBOX")
            client.store("1:2", "+FLAGS", "\\Deleted")
            client.expunge()
        site.expect("doveadm quota get", site.dovecot.quota(full)[1], messages - 2)
        # The first has the last: it knows then that nothing more has room.
        for connect in (by_hard, by_soft):
            site.expect(f"there is room, {turn}", sent(connect(), full), "250 2.0.0")
    with by_soft() as client:  # the others of a message get it
        client.ehlo_or_helo_if_needed()
        client.mail("sender@a.test")
        said_to = [code(client.rcpt(user)) for user in (full, room)]
        client.putcmd("DATA")
        said_to.append(code(client.getreply()))
        client.send(SMALL + b".\r\n")
        said_to.append(code(client.getreply()))
    site.expect("one of two is full", said_to, ["452 4.2.2", "250 2.1.5", "354", "250 2.0.0"])
    for connect, refusal in ((by_soft, "452 4.2.2"), (by_hard, "552 5.2.2")):
        with connect() as client:
            client.ehlo_or_helo_if_needed()
            client.mail("sender@a.test", [f"SIZE={kibibytes * 1024}"])
            site.expect("declared too large for the quota", code(client.rcpt(room)), refusal)
    site.expect("doveadm quota get", site.dovecot.quota(room)[1], 1)
    site.dovecot.doveadm("quota", "recalc", "-u", full)
    site.expect("after quota recalc", site.dovecot.quota(full)[1], messages)
    site.expect("full after quota recalc", sent(by_soft(), full), "452 4.2.2")


def _shared_maildir(site: Site) -> None:
    """Deliver to a maildir that is a group's, by a daemon in that group; another user of the group has it by IMAP."""
    maildir, user = site.maildir("shared"), site.user("shared")
    maildir.mkdir()
    os.chown(maildir, NOBODY, VMAIL)
    maildir.chmod(0o2770)
    for number in (1, 2, 3):
        site.expect("shared", sent(site.daemons.by_soft(), user), "250 2.0.0")
        with site.imap("shared") as client:
            site.expect("a second user reads", client.select("INBOX"), ("OK", [b"%d" % number]))
            site.expect("a second user reads", b"hello" in body(client, number), True)
            if number == 2:  # and does with it what she likes
                client.store("1", "+FLAGS", "\\Deleted")
                client.create("Done")
                site.expect("APPEND", client.append("Done", "", "", SMALL)[0], "OK")
    with site.imap("shared") as client:
        client.select("INBOX")
        site.expect("a second user removes", client.expunge(), ("OK", [b"1"]))
    for path in files(maildir):
        uid = OWNERS["shared"] if path.parents[1] == maildir / ".Done" else NOBODY
        site.expect(f"{path}", looked(path), (uid, VMAIL, 0o660))
    for name in ("tmp", "new", "cur"):
        site.expect(f"{maildir / name}", looked(maildir / name), (NOBODY, VMAIL, 0o2770))


def _owned_maildir(site: Site) -> None:
    """Deliver as root to a maildir that is a user's and a group's: so are its messages."""
    maildir, uid = site.maildir("own"), OWNERS["own"]
    maildir.mkdir()
    for path in (maildir, maildir.parent):
        os.chown(path, uid, VMAIL)
    maildir.chmod(0o2750)
    site.expect("root delivers", sent(smtplib.LMTP(str(site.daemons.owning_at)), site.user("own")), "250 2.0.0")
    for path in files(maildir):
        site.expect(f"{path}", looked(path), (uid, VMAIL, 0o640))
    site.expect(f"{maildir / 'new'}", looked(maildir / "new"), (uid, VMAIL, 0o2750))
    with site.imap("own") as client:
        site.expect("its owner reads", client.select("INBOX"), ("OK", [b"1"]))
        site.expect("its owner reads", b"hello" in body(client, 1), True)


#: What is done with each Dovecot, in this order.
CASES: Final[dict[str, Callable[[Site], None]]] = {
    "quota at RCPT": _quota,
    "a maildir of a group's": _shared_maildir,
    "a maildir of a user's": _owned_maildir,
    "folders": read_folders,
    "folders of details": details,
    "junk": junk,
}
