"""What a site copies out of examples/deployment: it is understood, and mail goes through it."""

import argparse
import os
import shutil
import smtplib
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import maildir_async
from look import until
from maildir_async.daemon.options import add_options, settings_of
from maildir_async.daemon.settings import Settings
from servers.daemon import SERVE, environment
from servers.mail import digest
from servers.mailboxes import copy_of
from servers.place import NOBODY, Place, as_nobody
from servers.postfix import MASTER, Postfix, debian

FRAGMENTS: Final = Path(__file__).parents[1] / "examples/deployment"
POSTFIX: Final = (FRAGMENTS / "postfix-main.cf").read_text()

#: Where Debian's Postfix lives, and systemd's unit makes a socket.
QUEUE_DIRECTORY: Final = "/var/spool/postfix/"

#: Where the configuration is.
ETC: Final = "/etc/maildir-async"

#: How long Postfix's SMTP server waits for the answer to an address probe, a little at a time.
PATIENCE: Final = "address_verify_poll_delay = 1s\naddress_verify_poll_count = 30\n"

#: Does what systemd does for a .socket unit: PATH OWNER MODE COMMAND...
ACTIVATE: Final = """
import os, shutil, socket, sys
path, owner, mode, *command = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
shutil.chown(path, owner)
os.chmod(path, int(mode, 8))
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execvp(command[0], command)
"""

#: What Postfix alters unless told otherwise: a long line, a bare CR, an address without a domain, no Date.
MESSAGE: Final = (
    b"From: a@example.com\r\nTo: somebody\r\n\r\n.dot\r\nbare \r CR\r\n" + b"x" * 5000 + b"\r\n8 bit \xe9\r\n"
)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: serve is for Linux")


def unit(name: str) -> dict[str, str]:
    """Return the settings of a unit, whatever their sections."""
    lines = (FRAGMENTS / name).read_text().replace("\\\n", " ").splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] not in "#[")


def arguments() -> list[str]:
    """Return what the unit has the daemon told."""
    program, command, *rest = unit("maildir-async.service")["ExecStart"].split()
    assert (Path(program).name, command) == ("maildir-async", "serve")
    return rest


def settings(words: list[str]) -> Settings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return settings_of(parser.parse_args(words))


def test_the_fragments_are_understood(tmp_path: Path) -> None:
    """Postfix, Dovecot, systemd and our own command understand what is proposed to them."""
    names = {"postfix-main.cf", "dovecot.conf", "dovecot-2.4.conf", "maildir-async.service", "maildir-async.socket"}
    names |= {"maildir-async.toml", "new-site.sh"}
    assert {path.name for path in FRAGMENTS.iterdir()} == names
    missing = [name for name in ("postconf", "doveconf", "systemd-analyze") if shutil.which(name) is None]
    if "postconf" not in missing:
        (tmp_path / "main.cf").write_text("compatibility_level = 3.6\n" + POSTFIX)
        (tmp_path / "master.cf").write_text("lmtp unix - - y - - lmtp\n")
        told = run("postconf", "-c", tmp_path, "-n")
        assert "virtual_transport = lmtp:unix:private/maildir-async" in told.stdout
        assert "unused parameter" not in told.stderr
    if "doveconf" not in missing:
        told = run("doveconf", "-n", "-c", FRAGMENTS / "dovecot.conf")
        assert "mail_location = maildir:/var/mail/%Ld/%Ln/Maildir" in told.stdout
    if "systemd-analyze" not in missing:
        for name in ("maildir-async.service", "maildir-async.socket"):
            (tmp_path / name).write_text(
                (FRAGMENTS / name).read_text().replace("/opt/maildir-async/bin/maildir-async", "/bin/true")
            )
        units = [tmp_path / "maildir-async.service", tmp_path / "maildir-async.socket"]
        told = run("systemd-analyze", "verify", *units, check=False)  # of whatever else there is, too
        assert [line for line in told.stderr.splitlines() if "maildir-async" in line] == []
    assert arguments() == ["--config", f"{ETC}/maildir-async.toml"]
    found = settings(["--config", str(FRAGMENTS / "maildir-async.toml")])
    (listener,) = found.listeners
    assert (listener.lmtp, found.workers, found.layout) == (True, 2, "/var/mail/{domain}/{user}/Maildir")
    assert listener.address is None
    if missing:
        pytest.skip(f"NOT TESTED: {', '.join(missing)} (apt-get install postfix dovecot-core systemd)")


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check)


@pytest.mark.heavy
@pytest.mark.skipif(
    os.geteuid() != 0 or None in map(shutil.which, ("postfix", "setpriv")),
    reason="NOT TESTED: a private Postfix (root, and apt-get install postfix)",
)
@pytest.mark.parametrize("master", [debian(MASTER), MASTER], ids=["in a chroot, as on Debian", "not in a chroot"])
def test_mail_goes_through_the_fragments(master: str) -> None:
    """Postfix with the fragment in its main.cf hands over a message for two at the socket of systemd's unit, with every
    byte as it came; and it refuses at once whom the daemon does not know.
    """
    socket_unit = unit("maildir-async.socket")
    path = socket_unit["ListenStream"]
    assert path.startswith(QUEUE_DIRECTORY)
    with Place() as place:
        postfix = Postfix(place, POSTFIX + PATIENCE, master=master)
        home, mail = place.directory("daemon", NOBODY), place.directory("mail", NOBODY, 0o700)
        (home / "users").write_text("alice@example.org\nbob@example.org\n")
        places = {"/var/mail": str(mail), ETC: str(home)}
        configuration = (FRAGMENTS / "maildir-async.toml").read_text()
        for there, here in places.items():
            configuration = configuration.replace(there, here)
        (home / "maildir-async.toml").write_text(configuration)
        words = [word.replace(ETC, str(home)) for word in arguments()]
        socket = postfix.queue_directory / path.removeprefix(QUEUE_DIRECTORY)
        activate = [sys.executable, "-c", ACTIVATE, str(socket), socket_unit["SocketUser"], socket_unit["SocketMode"]]
        daemon = place.start("daemon", [*activate, *as_nobody([*SERVE, *words])], environment(home))
        daemon.wait_for(lambda: '"ready"' in daemon.log.read_text(), "is it ready")

        with smtplib.SMTP(postfix.host, postfix.port, timeout=60) as client:
            client.ehlo()
            assert client.mail("a@example.com", ["BODY=8BITMIME"])[0] == 250
            assert [client.rcpt(f"{name}@example.org")[0] for name in ("alice", "bob")] == [250, 250]
            code, text = client.rcpt("ghost@example.org")
            assert code == 550
            assert b"550 5.1.1 No such user here" in text
            assert client.data(MESSAGE)[0] == 250

        new = [mail / "example.org" / name / "Maildir/new" for name in ("alice", "bob")]
        until(lambda: all(path.is_dir() and any(path.iterdir()) for path in new))
        for directory in new:
            (message,) = directory.iterdir()
            found = copy_of("", 0, message.read_bytes(), 0)
            assert [field for field, _ in found.trace] == ["Return-Path", "Received", "Received"]
            assert found.digest == digest(MESSAGE)
        assert daemon.stop() == []
        assert socket.exists(), "it is systemd's"
        assert postfix.stop() == []


#: Runs a command in a copy of this system's directories that goes with it: NEW-SITE COMMAND...
COPY: Final = """
mount -t tmpfs tmpfs "$0"
for part in etc var/mail; do
    mkdir -p "$0/$part/upper" "$0/$part/work"
    mount -t overlay -o "lowerdir=/$part,upperdir=$0/$part/upper,workdir=$0/$part/work" overlay "/$part"
done
mount -t tmpfs tmpfs /opt
mkdir -p /opt/maildir-async/bin /opt/stubs
printf '#!/bin/sh\\nexec %s -m maildir_async "$@"\\n' "$PYTHON" >/opt/maildir-async/bin/maildir-async
printf '#!/bin/sh\\necho systemctl "$@"\\n' >/opt/stubs/systemctl
chmod 755 /opt/maildir-async/bin/maildir-async /opt/stubs/systemctl
PATH=/opt/stubs:$PATH
sh -eu ./new-site.sh site.example
postconf -n
doveconf -n
stat -c '%U %a %n' /var/mail/site.example
grep . /etc/maildir-async/users
ls /etc/systemd/system
"""


@pytest.mark.heavy
@pytest.mark.skipif(
    os.geteuid() != 0 or None in map(shutil.which, ("postconf", "dovecot", "doveconf", "unshare")),
    reason="NOT TESTED: a new site (root, and apt-get install postfix dovecot-core)",
)
def test_a_new_site_is_made_in_ten_lines(tmp_path: Path) -> None:
    """The script, in a copy of this system's /etc and /var/mail, leaves a Postfix, a Dovecot and a daemon."""
    script = (FRAGMENTS / "new-site.sh").read_text().splitlines()
    assert len([line for line in script if not line.startswith("#")]) == 10
    path = os.pathsep.join([str(Path(maildir_async.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run(
        ["unshare", "--mount", "--", "sh", "-eu", "-c", COPY, str(tmp_path)],
        cwd=FRAGMENTS,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "overlay" in told.stderr and "mount" in told.stderr:
        pytest.skip(f"NOT TESTED: nothing can be mounted here: {told.stderr}")
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    for line in (
        "virtual_mailbox_domains = site.example",
        "virtual_transport = lmtp:unix:private/maildir-async",
        "lmtp_send_xforward_command = yes",
        "mail_location = maildir:/var/mail/%Ld/%Ln/Maildir",
        "vmail 700 /var/mail/site.example",
        "postmaster@site.example",
        "maildir-async.socket",
        "systemctl daemon-reload",
    ):
        assert line in lines, told.stdout
