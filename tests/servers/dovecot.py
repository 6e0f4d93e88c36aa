"""A private Dovecot: IMAP on loopback for maildirs that others deliver to; LMTP too, to try the rig with."""

import imaplib
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .place import NOBODY, Place, run

PORT: Final = 1143

PASSWORD: Final = "secret"

CONFIGURATION: Final = """\
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
default_internal_user = dovecot
default_internal_group = dovecot
default_login_user = dovenull
first_valid_uid = 1
protocols = imap lmtp
listen = {address}
ssl = no
disable_plaintext_auth = no
mail_location = maildir:{root}/%Ld/%Ln/Maildir
recipient_delimiter = +
auth_username_format = %Lu
mail_max_userip_connections = 100
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%Lu {home}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%Lu {home}/users
  default_fields = uid={uid} gid={uid} home={home}/homes/%Lu
}}
service imap-login {{
  process_min_avail = 0
  service_count = 0
  client_limit = 1000
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  user = root
  process_limit = 40
  unix_listener lmtp {{
    mode = 0666
  }}
}}
service anvil {{
  chroot =
  client_limit = 4096
}}
service auth {{
  client_limit = 4096
}}
"""

#: What Dovecot says that is no complaint.
_CALM: Final = (": Info: ", ": Debug: ")


class Dovecot:
    """Runs from the constructor to `stop`.

    Args:
        place: where to run.
        root: the mailbox of user@domain is ROOT/domain/user/Maildir.
        users: who may log in.

    """

    def __init__(self, place: Place, root: Path, users: Iterable[str]) -> None:
        self._host = place.address
        home = place.directory("dovecot")
        place.directory("dovecot/homes", NOBODY)
        (home / "users").write_text("".join(f"{user}:{PASSWORD}::::::\n" for user in users))
        configuration = CONFIGURATION.format(home=home, root=root, address=place.address, port=PORT, uid=NOBODY)
        (home / "dovecot.conf").write_text(configuration)
        self._log = home / "log"
        self.lmtp = home / "run/lmtp"
        self.server = place.start("dovecot", ["dovecot", "-F", "-c", home / "dovecot.conf"], {"TZ": "UTC"})
        self.server.wait_for(self._answers, "does it take connections")

    def _answers(self) -> bool:
        try:
            self.connect(None).logout()
        except (OSError, imaplib.IMAP4.error):
            return False
        return True

    def connect(self, user: str | None) -> imaplib.IMAP4:
        """Return a session in which *user* is logged in."""
        client = imaplib.IMAP4(self._host, PORT, timeout=60)
        if user is not None:
            client.login(user, PASSWORD)
        return client

    def complaints(self) -> list[str]:
        """Return what its log has beside the usual."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return [line for line in lines if not any(calm in line for calm in _CALM)]

    def stop(self) -> list[str]:
        """End it; return what was not as it should be."""
        return self.server.stop(signal.SIGTERM)


def version() -> str:
    """Return the version of the Dovecot that is installed."""
    return run(["dovecot", "--version"]).split()[0]
