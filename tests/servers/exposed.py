"""The daemon as a site runs it: from root, with a configuration, TLS, aliases, proxies; and mail that is its owner's.

A real Postfix hands over by LMTP with XFORWARD, a real HAProxy with the PROXY protocol, swaks speaks TLS, and a real
Dovecot serves what was stored, each user's as that user.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import trustme

from .checks import Verdict
from .daemon import SERVE, environment
from .dovecot import Dovecot
from .mailboxes import fetch_all
from .place import NOBODY, Place, within
from .postfix import Postfix, flow_to

#: Where clients come from, as Postfix and HAProxy see them.
CLIENT: Final = "127.0.0.9"

ALICE: Final = "alice@a.test"
BOB: Final = "bob@a.test"
CATCH_ALL: Final = "everything@b.test"

#: Users of the system, by number: nobody else has them.
OWNERS: Final = {ALICE: 64001, BOB: 64002}

SITE: Final = """\
user = "nobody"
hostname = "mail.test"
workers = 2
map = "{home}/map"
tls-cert = "{home}/chain.pem"
tls-key = "{home}/key.pem"
require-tls = true

[[listener]]
address = "unix:{home}/lmtp"
lmtp = true
require-tls = false
socket-mode = "0666"
trusted-peers = ["unix"]

[[listener]]
address = "{address}:2424"
smtp = true

[[listener]]
address = "{address}:2465"
smtp = true
implicit-tls = true

[[listener]]
address = "{address}:2466"
smtp = true
require-tls = false
proxy-protocol = ["{address}"]
"""

MAP: Final = """\
alice@a.test        {root}/a.test/alice/Maildir
bob@a.test          {root}/a.test/bob/Maildir
team@a.test         alice@a.test, bob@a.test
postmaster          alice@a.test
@b.test             {root}/b.test/everything/Maildir
"""

HAPROXY: Final = """\
defaults
  mode tcp
  timeout connect 10s
  timeout client 60s
  timeout server 60s
listen v1
  bind {address}:2501
  server daemon {address}:2466 send-proxy source {address}
listen v2
  bind {address}:2502
  server daemon {address}:2466 send-proxy-v2 source {address}
"""


class Serve:
    """``maildir-async serve``, started as root, from the constructor to `stop`.

    Args:
        place: where to run.
        name: of its output.
        home: directory of its own.
        arguments: of the command.
        log: what its output is called.

    """

    def __init__(self, place: Place, name: str, home: Path, *arguments: str) -> None:
        self.server = place.start(name, [*SERVE, *arguments], environment(home))
        self.server.wait_for(lambda: '"ready"' in self.server.log.read_text(), "is it ready")

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of its log of one kind."""
        lines = map(json.loads, self.server.log.read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    def complaints(self) -> list[str]:
        """Return the lines of its log that are errors."""
        lines = map(json.loads, self.server.log.read_text().splitlines())
        return [f"the daemon: {line}" for line in lines if line["level"] in ("error", "critical")]

    def uids(self) -> set[str]:
        """Return the ids, real, effective, saved and for files, of all of its processes (proc(5)); and the groups'."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in self.server.session()]
        return {word for text in status for line in re.findall(r"^[UG]id:(.*)$", text, re.M) for word in line.split()}


def swaks(*arguments: str, client: str | None = None) -> str:
    """Send a message by swaks; return what was said."""
    command = ["swaks", "--from", "sender@client.test", "--ehlo", "client.test", "--timeout", "30", *arguments]
    if client is not None:
        command += ["--local-interface", client]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60
    )
    return done.stdout + done.stderr


def exposed(place: Place, say: Callable[[str], None], debian: Path | None = None) -> Verdict:
    """Run both forms of a site; return what was found. With *debian*, its Dovecot reads the mail."""
    verdict = Verdict()
    say("a site with a configuration")
    _site(place, verdict)
    say("mail that is its owner's")
    _owners(place, verdict, debian)
    return verdict


def _site(place: Place, verdict: Verdict) -> None:
    home = place.directory("site", NOBODY)
    root = place.directory("site-mail", NOBODY, 0o700)
    for domain in ("a.test", "b.test"):
        for user in ("alice", "bob", "everything"):
            place.directory(f"site-mail/{domain}/{user}", NOBODY, 0o700)
        os.chown(root / domain, NOBODY, NOBODY)
    authority = trustme.CA()
    certificate = authority.issue_cert("mail.test")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(home / "chain.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(home / "key.pem"))
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    os.chmod(home / "key.pem", 0o600)  # root's: it is read before the privileges go
    (home / "map").write_text(MAP.format(root=root))
    (home / "site.toml").write_text(SITE.format(home=home, address=place.address))
    checked = subprocess.run(
        [*SERVE, "--check-config", "--config", str(home / "site.toml")],
        env=os.environ | environment(home),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if checked.returncode:
        verdict.faults.append(f"--check-config: {checked.returncode}: {checked.stderr}")
    daemon = Serve(place, "site", home, "--config", str(home / "site.toml"))
    wanted = Counter[Path]()

    def is_due(*maildirs: str) -> None:
        wanted.update(root / maildir / "Maildir" for maildir in maildirs)

    def case(what: str, said: str, pattern: str) -> None:
        verdict.counts["cases"] += 1
        if not re.search(pattern, said, re.MULTILINE):
            verdict.faults.append(f"{what}: no {pattern!r} in {said[-600:]!r}")

    # Postfix, whose client is not to be taken for Postfix.
    settings = flow_to(home / "lmtp") + "lmtp_send_xforward_command = yes\n"
    postfix = Postfix(place, settings)
    by_postfix = ["--server", postfix.host, "--port", str(postfix.port)]
    for recipients, maildirs in (
        ([ALICE], ["a.test/alice"]),
        (["team@a.test"], ["a.test/alice", "a.test/bob"]),
        ([ALICE, "team@a.test"], ["a.test/alice", "a.test/bob"]),
        (["whoever@b.test", "TEAM+detail@A.TEST"], ["b.test/everything", "a.test/alice", "a.test/bob"]),
    ):
        case("by Postfix", swaks(*by_postfix, "--to", ",".join(recipients), client=CLIENT), r"^<-  250 2\.0\.0 Ok: q")
        is_due(*maildirs)
    daemon.server.wait_for(lambda: _count(root) == sum(wanted.values()), "has Postfix delivered everything", 60)
    for path in root.glob("*/*/Maildir/new/*"):
        ours = _received(path)
        if f"[{CLIENT}]" not in ours or "mail.test" not in ours:
            verdict.faults.append(f"by Postfix: {ours!r} does not name {CLIENT}")
    # Past the end of a transaction the client is Postfix again, and others may not say who they are.
    smtp = ["--server", place.address, "--port", "2424"]
    case("not trusted", swaks(*smtp, "--to", ALICE, "--xclient", "ADDR=192.0.2.1"), r"XCLIENT|550|503|502")
    case("no TLS", swaks(*smtp, "--to", ALICE), r"^<\*\* 530 5\.7\.0 ")
    trusting = ["--tls-ca-path", str(home / "ca.pem")]
    if "TLS not available" in swaks("--support"):
        print("NOT TESTED WITH TLS: apt-get install libnet-ssleay-perl", flush=True)
    else:
        case("STARTTLS", swaks(*smtp, "--tls", *trusting, "--to", BOB), r"^<~  250 2\.0\.0 ")
        is_due("a.test/bob")
        implicit = [*smtp[:2], "--port", "2465", "--tlsc", *trusting]
        case("TLS", swaks(*implicit, "--to", f"{BOB},postmaster"), r"^<~  250 2\.0\.0 ")
        is_due("a.test/bob", "a.test/alice")
        case("nobody", swaks(*smtp, "--tls", "--to", "ghost@a.test"), r"^<~\* 550 5\.1\.1 ")
    # Behind HAProxy.
    (home / "haproxy.cfg").write_text(HAPROXY.format(address=place.address))
    if shutil.which("haproxy") is None:
        print("NOT TESTED BEHIND HAPROXY: apt-get install haproxy", flush=True)
    else:
        proxy = place.start("haproxy", ["haproxy", "-db", "-f", str(home / "haproxy.cfg")])
        proxy.wait_for(lambda: _listens(place.address, 2502), "does it listen")
        for port in ("2501", "2502"):
            before = set(root.glob("a.test/alice/Maildir/new/*"))
            case("by HAProxy", swaks(*smtp[:2], "--port", port, "--to", ALICE, client=CLIENT), r"^<-  250 2\.0\.0 ")
            is_due("a.test/alice")
            for path in set(root.glob("a.test/alice/Maildir/new/*")) - before:
                if f"[{CLIENT}]" not in _received(path):
                    verdict.faults.append(f"by HAProxy: {_received(path)!r} does not name {CLIENT}")
        verdict.faults += proxy.stop(expected=-signal.SIGTERM)
    direct = [*smtp[:2], "--port", "2466", "--to", ALICE]
    case("a peer that is no proxy", swaks(*direct, client=CLIENT), r"^<-  250 2\.0\.0 ")
    is_due("a.test/alice")
    # The proxy's address, and no header: the client's first line is taken for one, and is none.
    case("a proxy without its header", swaks(*direct, "--timeout", "15", client=place.address), r"^\*\*\* ")
    found = Counter(path.parents[1] for path in root.glob("*/*/Maildir/new/*"))
    verdict.counts["delivered"] += found.total()
    if found != wanted:
        verdict.faults.append(f"stored is {dict(found)}, not {dict(wanted)}")
    verdict.faults += [
        f"{path} is not nobody's alone"
        for path in root.glob("*/*/Maildir/new/*")
        if (path.stat().st_uid, path.stat().st_mode & 0o777) != (NOBODY, 0o600)
    ]
    if daemon.uids() != {str(NOBODY)}:
        verdict.faults.append(f"the daemon runs as {daemon.uids()}")
    peers = {line["peer"] for line in daemon.told("delivered")}
    if CLIENT not in peers:
        verdict.faults.append(f"the log names {peers}")
    verdict.faults += daemon.complaints() + postfix.stop() + daemon.server.stop()


def _owners(place: Place, verdict: Verdict, debian: Path | None) -> None:
    """Deliver as root to users of the system, whose maildirs are their own, and have each read his by IMAP."""
    home = place.directory("owners")
    root = place.directory("owners-mail")
    place.directory("owners-mail/a.test")
    for user, uid in OWNERS.items():
        place.directory(f"owners-mail/a.test/{user.partition('@')[0]}", uid, 0o700)
    (home / "users").write_text("".join(f"{user}\n" for user in OWNERS))
    layout = f"{root}/{{domain}}/{{user}}/Maildir"
    address = f"unix:{home}/lmtp"
    arguments = ["--lmtp", address, "--layout", layout, "--users", str(home / "users"), "--hostname", "mail.test"]
    refused = subprocess.run(
        [*SERVE, *arguments], env=os.environ | environment(home), capture_output=True, text=True, timeout=60
    )
    verdict.counts["cases"] += 1
    if refused.returncode == 0 or "--allow-root" not in refused.stderr:
        verdict.faults.append(f"serve as root: {refused.returncode}: {refused.stderr}")
    daemon = Serve(place, "owners", home, *arguments, "--allow-root")
    lmtp = ["--protocol", "LMTP", "--socket", f"{home}/lmtp"]
    for _ in range(2):
        said = swaks(*lmtp, "--to", ",".join(OWNERS))
        verdict.counts["cases"] += 1
        if len(re.findall(r"^<-  250 2\.0\.0 ", said, re.M)) < 2:
            verdict.faults.append(f"as root: {said[-600:]!r}")
    for user, uid in OWNERS.items():
        mine = root / "a.test" / user.partition("@")[0]
        for path in [*mine.rglob("*")]:
            about = path.lstat()
            if (about.st_uid, about.st_gid) != (uid, uid):
                verdict.faults.append(f"{path} is {about.st_uid}'s, not {uid}'s")
            if path.is_file() and (about.st_nlink != 1 or about.st_mode & 0o777 != 0o600):
                verdict.faults.append(f"{path} has {about.st_nlink} links and mode {about.st_mode:o}")
    # A user's link leads nowhere.
    mine, other = root / "a.test/alice/Maildir", root / "a.test/bob/Maildir"
    os.rename(mine / "new", mine / "old")
    os.symlink(other / "new", mine / "new")
    os.lchown(mine / "new", OWNERS[ALICE], OWNERS[ALICE])
    before = sorted(other.rglob("*"))
    said = swaks(*lmtp, "--to", ALICE)
    verdict.counts["cases"] += 1
    if not re.search(r"^<\*\* 451 4\.3\.5 ", said, re.M) or sorted(other.rglob("*")) != before:
        verdict.faults.append(f"through a user's link: {said[-600:]!r}")
    os.unlink(mine / "new")
    os.rename(mine / "old", mine / "new")
    if debian is not None:
        _check_fragment(place, debian, verdict)
    for system in dict.fromkeys((None, debian)):
        dovecot = Dovecot(place, root, OWNERS, owners=OWNERS, debian=system)
        copies, dropped = fetch_all(dovecot, OWNERS)
        read = Counter(copy.user for copy in copies)
        verdict.counts["delivered"] += read.total()
        if read != Counter(dict.fromkeys(OWNERS, 2)):
            verdict.faults.append(f"by IMAP there are {dict(read)}")
        verdict.faults += dropped + [f"Dovecot: {line}" for line in dovecot.complaints()] + dovecot.stop()
    verdict.faults += daemon.complaints() + daemon.server.stop()


def _check_fragment(place: Place, debian: Path, verdict: Verdict) -> None:
    """See that Dovecot 2.4 understands what is proposed to it."""
    fragment = Path(__file__).parents[2] / "examples/deployment/dovecot-2.4.conf"
    path = place.path / "fragment.conf"
    # Debian's own file begins so, and has in the end what is in conf.d.
    versions = "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"
    path.write_text(versions + fragment.read_text())
    done = subprocess.run(
        within(debian, place.path, ["doveconf", "-n", "-c", str(path)]), capture_output=True, text=True, timeout=60
    )
    verdict.counts["cases"] += 1
    if done.returncode or "mail_path = /var/mail/%{user | domain | lower}" not in done.stdout:
        verdict.faults.append(f"Dovecot 2.4 and the fragment: {done.stderr}")


def _count(root: Path) -> int:
    return len(list(root.glob("*/*/Maildir/new/*")))


def _received(path: Path) -> str:
    """Return the topmost Received field, unfolded."""
    header = path.read_text(errors="replace").partition("\n\n")[0]
    fields: Iterable[str] = re.sub(r"\n[ \t]+", " ", header).splitlines()
    return next((line for line in fields if line.startswith("Received:")), "")


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True
