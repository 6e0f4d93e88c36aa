"""``serve`` with certificates, and as another user."""

import os
import pwd
import signal
import smtplib
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from support import contents
from test_serve import Daemon, refused, serving

NOBODY = pwd.getpwnam("nobody")


def certificate(authority: trustme.CA, directory: Path) -> list[str]:
    """Write a certificate of *authority*; return the options that name it."""
    issued = authority.issue_cert("mx.example")
    cert, key = directory / "cert.pem", directory / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return ["--tls-cert", str(cert), "--tls-key", str(key)]


def address_of(daemon: Daemon) -> tuple[str, int]:
    address = daemon.address
    assert isinstance(address, tuple)
    return address


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.check_hostname = False
    return context


def test_starttls_is_offered_and_required(tmp_path: Path) -> None:
    """STARTTLS is announced; before it MAIL is 530 (RFC 3207 §4); after it Received says ESMTPS (RFC 3848)."""
    authority = trustme.CA()
    options = [*certificate(authority, tmp_path), "--require-tls", "--create", "--ident", "ready when you are"]
    with serving(tmp_path, *options, address="127.0.0.1:0", protocol="--smtp") as daemon:
        host, port = address_of(daemon)
        with daemon.client() as greeted:
            assert greeted.reply() == "220 mx.example ready when you are"
        with smtplib.SMTP(host, port, local_hostname="c.example", timeout=30) as client:
            client.ehlo()
            assert client.has_extn("starttls")
            assert client.mail("a@example.com")[0] == 530
            client.starttls(context=trusting(authority))
            client.sendmail("a@example.com", ["alice@example.com"], b"Subject: x\r\n\r\nbody\r\n")
        (message,) = contents(tmp_path / "mail/alice")["new"]
        assert b" with ESMTPS" in message
        assert daemon.stop() == 0


def shown(address: tuple[str, int], authority: trustme.CA) -> bool:
    """Whether a new connection is shown a certificate of *authority*."""
    try:
        with smtplib.SMTP(*address, local_hostname="c.example", timeout=30) as client:
            client.starttls(context=trusting(authority))
            return True
    except ssl.SSLError:
        return False


def test_certificates_are_reloaded(tmp_path: Path) -> None:
    """After SIGHUP new connections get the new certificate; what cannot be loaded is told, and the old one stays."""
    old, new = trustme.CA(), trustme.CA()
    options = [*certificate(old, tmp_path), "--create"]
    with serving(tmp_path, *options, address="127.0.0.1:0", protocol="--smtp") as daemon:
        host, port = address_of(daemon)
        address = host, port
        assert shown(address, old)
        certificate(new, tmp_path)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        assert (shown(address, old), shown(address, new)) == (False, True)
        (tmp_path / "key.pem").write_text("nonsense")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("reload_failed")
        assert shown(address, new)


def test_implicit_tls(tmp_path: Path) -> None:
    """With --implicit-tls the connection begins with TLS (RFC 8314 §3.3), and STARTTLS is not announced."""
    authority = trustme.CA()
    options = [*certificate(authority, tmp_path), "--implicit-tls", "--require-tls", "--create"]
    with serving(tmp_path, *options, address="127.0.0.1:0", protocol="--smtp") as daemon:
        host, port = address_of(daemon)
        context = trusting(authority)
        with smtplib.SMTP_SSL(host, port, local_hostname="c.example", timeout=30, context=context) as client:
            client.ehlo()
            assert not client.has_extn("starttls")
            client.sendmail("a@example.com", ["alice@example.com"], b"Subject: x\r\n\r\nbody\r\n")
        (message,) = contents(tmp_path / "mail/alice")["new"]
        assert b" with ESMTPS" in message
        assert daemon.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: root only")
def test_root_is_refused(tmp_path: Path) -> None:
    """As root, serve exits with 77 (EX_NOPERM of sysexits.h) and says what to do."""
    command = [sys.executable, "-m", "maildir_async", "serve", "--lmtp", f"unix:{tmp_path}/s", "--layout", "/m/{user}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == os.EX_NOPERM
    assert "--user NAME" in done.stderr
    assert "--allow-root" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: root only")
def test_user_is_become_for_good(tmp_path: Path) -> None:
    """With --user every process has the user's ids and groups for good; a file that only root can read is told."""
    options = [*certificate(trustme.CA(), tmp_path), "--user", "nobody"]
    (tmp_path / "key.pem").chmod(0o600)
    with serving(tmp_path, *options, "--pidfile", str(tmp_path / "pid")) as daemon:
        daemon.wait_for("ready")
        (told,) = daemon.events("cannot_reload")
        assert str(tmp_path / "key.pem") in told["files"]
        for pid in {daemon.process.pid, *daemon.workers}:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert status["Uid"].split() == [str(NOBODY.pw_uid)] * 4
            assert status["Gid"].split() == [str(NOBODY.pw_gid)] * 4
            assert set(status["Groups"].split()) <= {str(NOBODY.pw_gid)}
            assert int(status["CapEff"], 16) == 0


def test_user_that_is_none(tmp_path: Path) -> None:
    """A user that there is not is told before anything is bound."""
    done = refused("--lmtp", f"unix:{tmp_path}/s", "--layout", "/m/{user}", "--user", "no-such-user")
    assert "there is no user 'no-such-user'" in done.stderr
    assert not (tmp_path / "s").exists()
