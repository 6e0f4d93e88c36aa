"""A private Postfix: takes mail by SMTP on loopback, and does with it what it is told."""

import os
import pwd
import signal
import smtplib
from contextlib import suppress
from pathlib import Path
from typing import Final

from .place import Place, run
from .postfix_log import PostfixLog

#: The name it gives itself, and what begins its Received header.
HOSTNAME: Final = "mx.test"

DOMAINS: Final = ("a.test", "b.test", "c.test")

PORT: Final = 2525

#: Bytes. More than the daemon takes, so that it is the daemon which refuses.
MESSAGE_LIMIT: Final = 64 * 2**20

#: What makes it private.
MAIN: Final = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {home}/log/mail.log
maillog_file_prefixes = {home}
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = {hostname}
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtpd_peername_lookup = no
notify_classes =
enable_long_queue_ids = yes
"""

#: To hand all mail over by LMTP to one server, and to be patient with it.
FLOW: Final = """\
virtual_mailbox_domains = {domains}
virtual_mailbox_maps =
virtual_transport = lmtp:unix:{lmtp}
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
message_size_limit = {limit}
mailbox_size_limit = 0
virtual_mailbox_limit = 0
# Bytes are to stay what they were: no long line folded, no CR replaced, no header added.
lmtp_line_length_limit = 0
cleanup_replace_stray_cr_lf = no
local_header_rewrite_clients =
# A killed worker is back in a moment.
minimal_backoff_time = 1s
maximal_backoff_time = 3s
queue_run_delay = 1s
default_destination_concurrency_failed_cohort_limit = 100000
initial_destination_concurrency = 20
in_flow_delay = 0
"""

MASTER: Final = """\
{address}:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


#: What Debian's master.cf has run outside of the queue directory; all else is in a chroot there.
NOT_IN_CHROOT: Final = ("qmgr", "proxymap", "proxywrite", "virtual", "postlog")


def flow_to(lmtp: Path) -> str:
    """Return the settings by which all mail for `DOMAINS` goes to the LMTP server at this socket."""
    return FLOW.format(lmtp=lmtp, domains=", ".join(DOMAINS), limit=MESSAGE_LIMIT)


def debian(master: str) -> str:
    """Return a master.cf with chroot where Debian has it."""
    services = [line.split() for line in master.splitlines()]
    for fields in services:
        fields[4] = "n" if fields[0] in NOT_IN_CHROOT else "y"
    return "".join(" ".join(fields) + "\n" for fields in services)


class Postfix:
    """Runs from the constructor to `stop`.

    Args:
        place: where to run.
        settings: what main.cf has beside what makes this Postfix private.
        master: its master.cf, with places for its address and port.

    Attributes:
        queue_directory: where it lives.

    """

    def __init__(self, place: Place, settings: str, *, master: str = MASTER) -> None:
        self.host, self.port = place.address, PORT
        home = place.directory("postfix")
        for name, owner in (("etc", 0), ("queue", 0), ("data", pwd.getpwnam("postfix").pw_uid), ("log", 0)):
            place.directory(f"postfix/{name}", owner)
        self.queue_directory = home / "queue"
        (home / "etc/main.cf").write_text(MAIN.format(home=home, hostname=HOSTNAME) + settings)
        (home / "etc/master.cf").write_text(master.format(address=place.address, port=PORT))
        self._etc = home / "etc"
        self.log = PostfixLog(home / "log/mail.log")
        # start-fg: a child of ours. Seconds since midnight must not jump while it runs: UTC.
        self._server = place.start("postfix", ["postfix", "-c", self._etc, "start-fg"], {"TZ": "UTC"})
        try:
            self._server.wait_for(self._answers, "does it take connections")
        finally:
            with suppress(FileNotFoundError):
                self._server.leads_too(int((home / "queue/pid/master.pid").read_text()))

    def _answers(self) -> bool:
        try:
            with smtplib.SMTP(self.host, self.port, timeout=10) as client:
                return client.noop()[0] == 250
        except OSError:
            return False

    def stop(self) -> list[str]:
        """End it; return what was not as it should be."""
        if self._server.process.poll() is None:
            run(["postfix", "-c", self._etc, "stop"])
        return self._server.stop(None, 128 + signal.SIGTERM)  # which its master sends to all of its process group

    @property
    def queue(self) -> int:
        """How many messages are in its queue, by the files there."""
        return sum(len(files) for name in QUEUES for _, _, files in os.walk(self._etc.parent / "queue" / name))


QUEUES: Final = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")
