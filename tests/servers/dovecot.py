"""A private Dovecot: IMAP on loopback for maildirs that others deliver to; LMTP too, to try the rig with.

That of this system, whose configuration is in the language of 2.3, or 2.4 out of another Debian's root directory.
"""

import imaplib
import re
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from .place import NOBODY, Place, run, within

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

CONFIGURATION_2_4: Final = """\
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
first_valid_uid = 1
protocols = imap
listen = {address}
ssl = no
auth_allow_cleartext = yes
auth_username_format = %{{user | lower}}
mail_driver = maildir
mail_path = {root}/%{{user | domain | lower}}/%{{user | username | lower}}/Maildir
mail_max_userip_connections = 100
passdb passwd-file {{
  passwd_file_path = {home}/users
  default_password_scheme = PLAIN
}}
userdb passwd-file {{
  passwd_file_path = {home}/users
  fields {{
    uid:default = {uid}
    gid:default = {uid}
    home:default = {home}/homes/%{{user | lower}}
  }}
}}
service imap-login {{
  process_min_avail = 0
  restart_request_count = unlimited
  client_limit = 1000
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
"""

#: The quota plugin, with Maildir++'s ``maildirsize``, which 2.4 has too, though its own default is another.
QUOTA: Final = """\
mail_plugins = quota
protocol imap {{
  mail_plugins = quota imap_quota
}}
plugin {{
  quota = maildir:User quota
  quota_rule = *:storage={kibibytes}k:messages={messages}
}}
"""

QUOTA_2_4: Final = """\
mail_plugins {{
  quota = yes
}}
protocol imap {{
  mail_plugins {{
    imap_quota = yes
  }}
}}
quota "User quota" {{
  driver = maildir
  storage_size = {kibibytes}k
  message_count = {messages}
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
        owners: the uid of those whose mail is not nobody's.
        group: the gid of these; by default it is each one's uid.
        quota: of each user, in kibibytes and messages.
        debian: root directory of another Debian, with Dovecot 2.4, to run that one.

    """

    def __init__(
        self,
        place: Place,
        root: Path,
        users: Iterable[str],
        *,
        owners: Mapping[str, int] | None = None,
        group: int | None = None,
        quota: tuple[int, int] | None = None,
        debian: Path | None = None,
    ) -> None:
        self._host = place.address
        name = "dovecot" if debian is None else "dovecot-2.4"
        home = place.directory(name)
        place.directory(f"{name}/homes", NOBODY, 0o777)
        ids = {user: f"{uid}:{uid if group is None else group}" for user, uid in (owners or {}).items()}
        (home / "users").write_text("".join(f"{user}:{PASSWORD}:{ids.get(user, ':')}::::\n" for user in users))
        configuration = CONFIGURATION if debian is None else CONFIGURATION_2_4
        configuration = configuration.format(home=home, root=root, address=place.address, port=PORT, uid=NOBODY)
        if quota is not None:
            kibibytes, messages = quota
            plugin = QUOTA if debian is None else QUOTA_2_4
            configuration += plugin.format(kibibytes=kibibytes, messages=messages)
        (home / "dovecot.conf").write_text(configuration)
        self._log = home / "log"
        self._place, self._debian = place, debian
        self._doveadm = ["doveadm", "-c", str(home / "dovecot.conf"), "-f", "tab"]
        self.lmtp = home / "run/lmtp"
        command = ["dovecot", "-F", "-c", str(home / "dovecot.conf")]
        if debian is not None:
            command = within(debian, place.path, command)
        self.server = place.start(name, command, {"TZ": "UTC"})
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

    def doveadm(self, *words: str) -> str:
        """Return what its administrator's command says."""
        command = [*self._doveadm, *words]
        return run(command if self._debian is None else within(self._debian, self._place.path, command))

    def quota(self, user: str) -> tuple[int, int]:
        """Return how many kibibytes, rounded up, and messages *user* has, as ``doveadm quota get`` tells."""
        _, *rows = self.doveadm("quota", "get", "-u", user).splitlines()
        values = {name: int(value) for _, name, value, *_ in (row.split("\t") for row in rows)}
        return values["STORAGE"], values["MESSAGE"]

    def complaints(self) -> list[str]:
        """Return what its log has beside the usual."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return [line for line in lines if not any(calm in line for calm in _CALM)]

    def stop(self) -> list[str]:
        """End it; return what was not as it should be."""
        return self.server.stop(signal.SIGTERM)


def quota_by_imap(client: imaplib.IMAP4) -> tuple[int, int, int, int]:
    """Return kibibytes and messages that an inbox has, and may have, as IMAP tells: STORAGE, MESSAGE, their limits."""
    kind, (_, answers) = client.getquotaroot("INBOX")
    answer: Any = answers[0]
    found = re.search(rb"\(STORAGE (\d+) (\d+) MESSAGE (\d+) (\d+)\)", answer or b"")
    if kind != "OK" or found is None:
        raise imaplib.IMAP4.error(f"GETQUOTAROOT: {kind}, {answer!r}")
    storage, storage_limit, messages, messages_limit = map(int, found.groups())
    return storage, messages, storage_limit, messages_limit


def version() -> str:
    """Return the version of the Dovecot that is installed."""
    return run(["dovecot", "--version"]).split()[0]
