"""Who talks to the daemon on the wire, and looks what has come of it: for the hostile cases."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from .daemon import Daemon
from .mail import MIB
from .place import NOBODY, Place

USER: Final = "user@a.test"
OTHER: Final = "other@a.test"
CRAMPED: Final = "user@small.test"
LIMIT: Final = 2 * MIB

#: What an error of a program looks like, which is nobody's business: paths, Python's and the kernel's words.
_LEAK: Final = re.compile(r"/tmp|/var|/usr|/home|Traceback|Errno|Error: \(|\w+Error\b|maildir_async|object at 0x")

#: Recipients that would lead out of the tree, to a hidden file, to another user, or nowhere.
CLIMBERS: Final = (
    *("../../etc/passwd@a.test", "..@a.test", ".@a.test", ".hidden@a.test", "../user@a.test", "a.test/user@a.test"),
    *("user/../other@a.test", "user\\..\\other@a.test", '"../user"@a.test', '"user/"@a.test', "user@../a.test"),
    *("user@.", "user@..", "user@a.test/..", "/etc/passwd", "%2e%2e%2fuser@a.test", "user\x01@a.test"),
    *("\uff0e\uff0e\uff0fuser@a.test", "\u202euser@a.test", "us\u200ber@a.test", "a" * 65 + "@a.test"),
    *("|/bin/sh@a.test", "user@[127.0.0.1]", "+user@a.test"),
)

#: What ends a message for some careless server, and a second message behind it.
SMUGGLED: Final = b"".join(
    line + b"\r\n"
    for line in (b"MAIL FROM:<evil@a.test>", b"RCPT TO:<%b>" % OTHER.encode(), b"DATA", b"Subject: smuggled", b"", b"x")
)
ENDS: Final = (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\r\n\x00.\r\n", b"\r\n.\x00\r\n")


HEADER: Final = b"Subject: hello\r\n\r\n"

#: A message with its dot, and its body as it is stored.
GOOD: Final = HEADER + b"hello\r\n.\r\n"
HELLO: Final = b"hello\n"

#: The body of a message, those of several, or None for no message.
Got = bytes | Sequence[bytes] | None


class Listener(Protocol):
    """What can be talked to."""

    def connect(self) -> socket.socket:
        """Return a connection to it."""
        ...


@dataclass
class Talk:
    """A session with the daemon, and what was wrong with it."""

    daemon: Listener
    lmtp: bool
    faults: list[str]
    what: str = ""
    replies: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.connection = self.daemon.connect()
        self._file = self.connection.makefile("rb")
        self.expect("220 ")

    def send(self, data: bytes) -> None:
        """Send some octets; a server that has closed the connection does not hear them."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.sendall(data)

    def expect(self, pattern: str) -> str:
        """Read one reply, whose last line is to match; return all of it, or "" at the end of the connection."""
        lines: list[str] = []
        with suppress(ConnectionResetError, TimeoutError):
            while line := self._file.readline().decode(errors="replace"):
                lines.append(line.rstrip("\r\n"))
                if line[3:4] != "-":
                    break
        reply = "\n".join(lines)
        self.replies.append(reply)
        if not re.match(pattern, lines[-1] if lines else ""):
            self.faults.append(f"{self.what}: {reply or 'nothing'!r} is not {pattern!r}")
        if _LEAK.search(reply):
            self.faults.append(f"{self.what}: tells what is nobody's business: {reply!r}")
        return reply

    def ask(self, command: str, pattern: str) -> str:
        """Send a command and read its reply."""
        self.send(command.encode() + b"\r\n")
        return self.expect(pattern)

    def hello(self) -> str:
        """Begin."""
        return self.ask("LHLO client.test" if self.lmtp else "EHLO client.test", "250 ")

    def mail(self, *recipients: str, options: str = "") -> None:
        """Begin a message."""
        self.ask(f"MAIL FROM:<sender@a.test>{options}", "250 2.1.0")
        for recipient in recipients:
            self.ask(f"RCPT TO:<{recipient}>", "250 2.1.5")

    def message(self, content: bytes, pattern: str) -> None:
        """Send a message and its dot; the reply to that is to match, or that to DATA if it is no 354."""
        if not self.ask("DATA", f"354 |{pattern}").startswith("354"):
            return
        self.send(content)
        self.expect(pattern)

    def close(self) -> None:
        """Go away without a word."""
        self._file.close()
        self.connection.close()


class Bench:
    """A daemon with two users, and what they have.

    Args:
        place: where it runs.
        protocol: ``lmtp`` or ``smtp``.
        standing: users are those who have a maildir, and a maildir that is gone is not made again.
        small_disk: with that, there is another user, whose disk has room for 1 MiB.

    """

    def __init__(self, place: Place, protocol: str, *, standing: bool = False, small_disk: bool = False) -> None:
        self.lmtp = protocol == "lmtp"
        name = "standing" if standing else "daemon"
        self.root = place.directory(f"mail-{name}-{protocol}", NOBODY, 0o700)
        disk = place.directory(f"{self.root.name}/{CRAMPED.partition('@')[2]}", NOBODY) if small_disk else None
        users = None if standing else {USER, OTHER}
        more = ("--max-connections", "1100", "--max-errors", "1000")
        self.daemon = Daemon(place, self.root, users, *more, protocol=protocol, name=name, size_limit=LIMIT, disk=disk)
        self.root = self.daemon.seen(self.root)
        self.faults: list[str] = []
        self.count = 0
        self._what = ""
        self._talks: list[Talk] = []

    def fault(self, text: str) -> None:
        """Note what is wrong."""
        self.faults.append(f"{self._what}: {text}")

    def talk(self) -> Talk:
        """Return a new session that has said hello."""
        talk = Talk(self.daemon, self.lmtp, self.faults, self._what)
        self._talks.append(talk)
        talk.hello()
        return talk

    def begun(self, *recipients: str, options: str = "") -> Talk:
        """Return a new session that has begun a message."""
        talk = self.talk()
        talk.mail(*recipients, options=options)
        return talk

    def data(self, *recipients: str, options: str = "") -> Talk:
        """Return a new session that is to send a message."""
        talk = self.begun(*recipients, options=options)
        talk.ask("DATA", "354 ")
        return talk

    def maildir(self, user: str) -> Path:
        """Return where a user's maildir is, or is to be."""
        return self.root.joinpath(*reversed(user.split("@")), "Maildir")

    def make(self, user: str) -> None:
        """Make a user's maildir."""
        home = self.maildir(user).parent
        for path in (home.parent, home, home / "Maildir", *(home / "Maildir" / name for name in ("tmp", "new", "cur"))):
            if not path.exists():
                path.mkdir()
                os.chown(path, NOBODY, NOBODY)

    def nothing_in_tmp(self) -> None:
        """See that there is nothing in any tmp/ now."""
        for path in self.root.glob("*/*/Maildir/tmp/*"):
            self.fault(f"has a file in tmp/ of {path.stat().st_size} bytes")

    def case(self, what: str, run: Callable[["Bench"], Got]) -> None:
        """Run a case, which returns the bodies that the users then have to have got."""
        self._what = f"{'LMTP' if self.lmtp else 'SMTP'}, {what}"
        self.count += 1
        try:
            expected = run(self)
        except (OSError, subprocess.SubprocessError) as exc:
            self.faults.append(f"{self._what}: {exc!r}")
            expected = None
        while self._talks:
            self._talks.pop().close()
        self._wait_for_abort()
        found = sorted(self._take())
        wanted = [] if expected is None else [expected] if isinstance(expected, bytes) else sorted(expected)
        if found != wanted:
            self.faults.append(
                f"{self._what}: stored is {[each[-60:] for each in found]}, not {[e[-60:] for e in wanted]}"
            )

    def _wait_for_abort(self) -> None:
        """Wait until the daemon has noticed that a client is gone, if it has to have files in tmp/ until then."""
        deadline = time.monotonic() + 10
        while any(self.root.glob("*/*/Maildir/tmp/*")) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _take(self) -> list[bytes]:
        """Return the bodies of all messages there are, and remove them; a file anywhere else is a fault."""
        found: list[bytes] = []
        for path in self.root.rglob("*"):
            if path.is_dir():
                continue
            relative = path.relative_to(self.root).parts
            if path.parent in (self.maildir(USER) / "new", self.maildir(CRAMPED) / "new"):
                found.append(path.read_bytes().partition(b"\n\n")[2])
            else:
                self.faults.append(f"{self._what}: left {'/'.join(relative)}")
            path.unlink()
        return found

    def swaks(self, *arguments: str) -> str:
        """Run swaks; return what was said."""
        where = ["--protocol", "LMTP", "--socket", str(self.daemon.lmtp)]
        if not self.lmtp:
            where = ["--protocol", "ESMTP", "--server", self.daemon.host, "--port", str(self.daemon.port)]
        command = ["swaks", *where, "--from", "sender@a.test", "--ehlo", "client.test", "--timeout", "30", *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60
        )
        return done.stdout

    def expect(self, said: str, pattern: str) -> None:
        """See that swaks has got an answer."""
        if not re.search(pattern, said, re.MULTILINE):
            self.faults.append(f"{self._what}: no {pattern!r} in {said[-400:]!r}")
