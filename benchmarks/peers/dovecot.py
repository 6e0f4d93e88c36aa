"""A Dovecot of our own, which speaks LMTP over a Unix socket. It also looks users up, and keeps an index."""

import asyncio
import contextlib
import grp
import os
import pwd
import shutil
import subprocess
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.peers.kinds import NotHereError, WholeMessagesOnly
from benchmarks.workload import Workload

#: Owns the mail where root starts Dovecot, which refuses to serve root: nobody, everywhere.
NOBODY: Final = 65534

CONFIGURATION: Final = """\
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
default_internal_user = {internal}
default_internal_group = {group}
default_login_user = {login}
first_valid_uid = 1
protocols = lmtp
ssl = no
mail_location = maildir:{root}/%n
auth_username_format = %n
lmtp_hdr_delivery_address = none
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={home}/homes/%n allow_all_users=yes
}}
passdb {{
  driver = static
  args = nopassword=y
}}
service lmtp {{
  process_limit = {limit}
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
service stats {{
  client_limit = 4096
}}
"""


class Dovecot:
    """The server.

    Args:
        root: where the maildirs are; user N has the maildir N.
        connections: how many there will be at once.

    Attributes:
        process: its main process, once it has been started.
        socket: where it speaks LMTP.

    """

    def __init__(self, root: str, connections: int) -> None:
        version = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True).stdout
        if not version.startswith("2.3."):
            raise NotHereError(
                f"Dovecot {version.split()[0]}, whose configuration is another language than that of 2.3"
            )
        self._root = root
        self._connections = connections

    def start(self) -> None:
        """Start it. It listens a moment later."""
        self._home = Path(tempfile.mkdtemp(prefix="dovecot-"))  # short: a socket's path must be
        self._home.chmod(0o755)
        self.socket = self._home / "run/lmtp"
        (self._home / "dovecot.conf").write_text(self._configuration())
        (self._home / "homes").mkdir(mode=0o777)
        (self._home / "homes").chmod(0o777)
        self.process = subprocess.Popen(
            ["dovecot", "-F", "-c", self._home / "dovecot.conf"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _configuration(self) -> str:
        if os.geteuid() == 0:
            for path in (Path(self._root), *Path(self._root).rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            internal, group, login, uid, gid = "dovecot", "dovecot", "dovenull", NOBODY, NOBODY
        else:
            uid, gid = os.geteuid(), os.getegid()
            internal = login = pwd.getpwuid(uid).pw_name
            group = grp.getgrgid(gid).gr_name
        return CONFIGURATION.format(
            home=self._home,
            root=self._root,
            internal=internal,
            group=group,
            login=login,
            uid=uid,
            gid=gid,
            limit=self._connections + 10,
        )

    def last_words(self) -> str:
        """Return what it has said last."""
        log = self._home / "log"
        said = log.read_text().splitlines() if log.exists() else []
        return said[-1] if said else "no word of why"

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            shutil.rmtree(self._home, ignore_errors=True)


class Lmtp(WholeMessagesOnly):
    """A connection for each delivery in flight; commands up to DATA go in one packet."""

    def __init__(self, paths: Sequence[str], workload: Workload) -> None:
        self._server = Dovecot(os.path.dirname(paths[0]), workload.in_flight)
        self._in_flight = workload.in_flight
        self._connections: list[tuple[StreamReader, StreamWriter]] = []

    async def start(self) -> None:
        """Start Dovecot and connect."""
        self._server.start()
        try:
            self._connections = [await self._connect() for _ in range(self._in_flight)]
        except NotHereError:
            await self.aclose()
            raise

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        for _ in range(500):
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(self._server.socket)
                await _reply(reader, b"2")
                writer.write(b"LHLO localhost\r\n")
                await _reply(reader, b"2")
                return reader, writer
            if self._server.process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        raise NotHereError(f"Dovecot did not answer: {self._server.last_words()}")

    async def deliver(self, maildir: int, message: bytes) -> None:
        """Deliver one message."""
        reader, writer = connection = self._connections.pop()
        writer.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<%d@localhost>\r\nDATA\r\n" % maildir)
        await _reply(reader, b"2")
        await _reply(reader, b"2")
        await _reply(reader, b"3")
        writer.write(message.replace(b"\n", b"\r\n") + b".\r\n")
        await writer.drain()
        await _reply(reader, b"2")
        self._connections.append(connection)

    async def aclose(self) -> None:
        """Disconnect, and end Dovecot."""
        for _, writer in self._connections:
            writer.close()
        await asyncio.to_thread(self._server.stop)


async def _reply(reader: StreamReader, expected: bytes) -> None:
    while True:
        line = await reader.readline()
        if line[3:4] != b"-":
            break
    if not line.startswith(expected):
        raise RuntimeError(f"Dovecot said: {line.decode(errors='replace').strip() or 'nothing'}")
